//! A parked thread pool: items of a job are taken by whichever worker is free, the caller included.
//!
//! A decoded token crosses the pool a few times per layer, so a join must take microseconds: workers spin for a
//! short while after a job, because the next one usually comes at once, and park when it does not. The caller never
//! waits for a worker that has not started: when no items are left it closes the job, and waits only for the workers
//! inside it. A machine that is busy with other things therefore slows two threads down to about one, not below.
//!
//! Nothing is allocated per job. The pool only decides *who* computes; each item is computed whole by one worker, so
//! the number of threads never changes a bit.

use crate::error::{EngineError, Result};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, TryLockError};
use std::thread::{self, JoinHandle, Thread};

/// Turns of the spin loop before a thread parks: some tens of microseconds.
const SPINS: u32 = 2000;

/// Bit of [`Shared::gate`] that keeps further workers out of the job.
const CLOSED: u64 = 1 << 15;
/// Bits of [`Shared::gate`] that count the workers inside.
const INSIDE: u64 = CLOSED - 1;
/// The job's number stands above.
const EPOCH_SHIFT: u32 = 16;

type Job = &'static (dyn Fn() + Sync);

struct Shared {
    /// Number of the current job, whether it is closed, workers inside.
    gate: AtomicU64,
    job: Mutex<Option<(Job, Thread)>>,
    panicked: AtomicBool,
    stop: AtomicBool,
}

/// Persistent worker threads. The calling thread works too.
pub struct Pool {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
    /// One job at a time.
    busy: Mutex<()>,
}

/// Locks a mutex whose data stays valid when a holder panicked.
pub(crate) fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// [`lock`] for a mutex that is held for some nanoseconds, a little longer where the next item is prefetched: a thread that goes
/// to sleep for it loses thousands.
fn spin_lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    for _ in 0..SPINS {
        match mutex.try_lock() {
            Ok(guard) => return guard,
            Err(TryLockError::Poisoned(poisoned)) => return poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => std::hint::spin_loop(),
        }
    }
    // The holder has lost its core.
    lock(mutex)
}

impl Pool {
    /// Most threads a pool may have.
    pub const MAX_THREADS: usize = 256;

    /// A pool of `threads` workers, the caller included: `threads - 1` are started.
    ///
    /// # Errors
    /// Zero or more than [`Pool::MAX_THREADS`] threads; a thread that the operating system refuses.
    pub fn new(threads: usize) -> Result<Self> {
        if threads == 0 || threads > Self::MAX_THREADS {
            return Err(EngineError::Option {
                option: "threads",
                expected: format!("1 to {}", Self::MAX_THREADS),
                got: threads.to_string(),
            });
        }
        let shared = Arc::new(Shared {
            gate: AtomicU64::new(CLOSED),
            job: Mutex::new(None),
            panicked: AtomicBool::new(false),
            stop: AtomicBool::new(false),
        });
        let mut pool = Self { shared, workers: Vec::with_capacity(threads - 1), busy: Mutex::new(()) };
        for index in 1..threads {
            let shared = pool.shared.clone();
            let handle = thread::Builder::new()
                .name(format!("squat-{index}"))
                .spawn(move || work(&shared))
                .map_err(|source| EngineError::Thread { index, source })?;
            pool.workers.push(handle);
        }
        Ok(pool)
    }

    /// Number of workers, the caller included.
    pub fn threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Runs `job` on the caller and on every worker that comes before the caller is done; returns when all who began
    /// have finished. Any one of them must be able to do all of it.
    ///
    /// If the pool is busy (another session runs, or a job starts a job), the caller runs all items itself.
    fn run(&self, job: &(dyn Fn() + Sync)) {
        let guard = match self.busy.try_lock() {
            Ok(guard) => guard,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return job(),
        };
        // SAFETY: the reference is used only by workers inside the gate. This function closes the gate, waits until
        // nobody is inside and takes the reference away before it returns or unwinds, so the extended lifetime is
        // never relied upon.
        let job_static = unsafe { std::mem::transmute::<&(dyn Fn() + Sync), Job>(job) };
        *lock(&self.shared.job) = Some((job_static, thread::current()));
        let gate = &self.shared.gate;
        let epoch = (gate.load(Ordering::Relaxed) >> EPOCH_SHIFT) + 1;
        gate.store(epoch << EPOCH_SHIFT, Ordering::Release);
        for worker in &self.workers {
            worker.thread().unpark();
        }
        let own = catch_unwind(AssertUnwindSafe(job));
        gate.fetch_or(CLOSED, Ordering::AcqRel);
        wait(|| gate.load(Ordering::Acquire) & INSIDE == 0);
        *lock(&self.shared.job) = None;
        drop(guard);
        if let Err(payload) = own {
            resume_unwind(payload);
        }
        if self.shared.panicked.swap(false, Ordering::Relaxed) {
            panic!("a worker thread of the pool panicked");
        }
    }

    /// Calls `visit(index, item)` once for each item, spread over the workers as they become free.
    ///
    /// # Panics
    /// When `visit` panics on any worker, after all have finished; items may be left out then.
    pub fn for_each<T: Send>(&self, items: impl Iterator<Item = T> + Send, visit: impl Fn(usize, T) + Sync) {
        if self.workers.is_empty() || items.size_hint().1.is_some_and(|most| most < 2) {
            items.enumerate().for_each(|(index, item)| visit(index, item));
            return;
        }
        let next = Mutex::new(items.enumerate());
        self.run(&|| {
            loop {
                let taken = spin_lock(&next).next();
                let Some((index, item)) = taken else { break };
                visit(index, item);
            }
        });
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Release);
        for worker in self.workers.drain(..) {
            worker.thread().unpark();
            // A worker catches its panics, so the join cannot fail; nothing could be done about it here anyway.
            let _ = worker.join();
        }
    }
}

/// Spins, then parks, until `ready`. Whoever makes it ready must unpark this thread.
fn wait(ready: impl Fn() -> bool) {
    for _ in 0..SPINS {
        if ready() {
            return;
        }
        std::hint::spin_loop();
    }
    while !ready() {
        thread::park();
    }
}

fn work(shared: &Shared) {
    let epoch = |gate: u64| gate >> EPOCH_SHIFT;
    let mut seen = 0;
    loop {
        let load = || shared.gate.load(Ordering::Acquire);
        wait(|| epoch(load()) != seen || shared.stop.load(Ordering::Acquire));
        if shared.stop.load(Ordering::Acquire) {
            return;
        }
        let enter = |gate: u64| (gate & CLOSED == 0).then_some(gate + 1);
        let entered = shared.gate.fetch_update(Ordering::AcqRel, Ordering::Acquire, enter);
        let (Ok(gate) | Err(gate)) = entered;
        seen = epoch(gate);
        if entered.is_err() {
            continue;
        }
        let job = lock(&shared.job).clone();
        // There is a job as long as anybody is inside.
        if let Some((job, caller)) = job {
            if catch_unwind(AssertUnwindSafe(job)).is_err() {
                shared.panicked.store(true, Ordering::Relaxed);
            }
            let before = shared.gate.fetch_sub(1, Ordering::AcqRel);
            if before & INSIDE == 1 && before & CLOSED != 0 {
                caller.unpark();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicUsize;

    #[test]
    fn items_are_visited_once_and_may_be_changed() {
        for threads in [1, 2, 5] {
            let pool = Pool::new(threads).unwrap();
            let mut items = vec![0u32; 100];
            for round in 1..=2000 {
                pool.for_each(items.iter_mut(), |index, item| *item += index as u32);
                assert!(items.iter().enumerate().all(|(index, &item)| item == round * index as u32));
            }
        }
    }

    #[test]
    fn workers_do_help() {
        let pool = Pool::new(2).unwrap();
        let helpers = Mutex::new(std::collections::HashSet::new());
        pool.for_each(0..2, |_, _| {
            lock(&helpers).insert(thread::current().id());
            // Leave the other item to the other thread.
            thread::sleep(std::time::Duration::from_millis(200));
        });
        assert_eq!(lock(&helpers).len(), 2);
    }

    #[test]
    fn a_job_inside_a_job_runs_on_its_own_worker() {
        let pool = Pool::new(2).unwrap();
        let count = AtomicUsize::new(0);
        pool.for_each(0..3, |_, _| {
            pool.for_each(0..4, |_, _| {
                count.fetch_add(1, Ordering::Relaxed);
            })
        });
        assert_eq!(count.load(Ordering::Relaxed), 12);
    }

    #[test]
    fn two_callers_share_a_pool() {
        let pool = Pool::new(2).unwrap();
        thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    for _ in 0..500 {
                        let mut items = [1u32; 8];
                        pool.for_each(items.iter_mut(), |_, item| *item += 1);
                        assert_eq!(items, [2; 8]);
                    }
                });
            }
        });
    }

    #[test]
    fn a_panic_reaches_the_caller_and_the_pool_lives_on() {
        let pool = Pool::new(2).unwrap();
        for _ in 0..20 {
            let job = || pool.for_each(0..4, |_, item| assert_ne!(item, 2));
            assert!(catch_unwind(AssertUnwindSafe(job)).is_err());
        }
        let count = AtomicUsize::new(0);
        pool.for_each(0..4, |_, _| {
            count.fetch_add(1, Ordering::Relaxed);
        });
        assert_eq!(count.load(Ordering::Relaxed), 4);
    }

    #[test]
    fn parked_workers_wake_up() {
        let pool = Pool::new(2).unwrap();
        for _ in 0..3 {
            thread::sleep(std::time::Duration::from_millis(5));
            let mut items = [0; 3];
            pool.for_each(items.iter_mut(), |index, item| *item = index);
            assert_eq!(items, [0, 1, 2]);
        }
    }

    #[test]
    fn thread_counts_are_checked() {
        assert!(Pool::new(0).is_err() && Pool::new(Pool::MAX_THREADS + 1).is_err());
    }
}
