//! A parked thread pool: the same closure runs on every worker, and the call returns when all are done.
//!
//! A decoded token crosses the pool a few times per layer, so a join must cost microseconds: workers spin for a
//! short while after a job, because the next one usually comes at once, and park when it does not. Nothing is
//! allocated per job. The pool only decides *who* computes; each result is computed whole by one worker, so the
//! number of threads never changes a bit.

use crate::error::{EngineError, Result};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, TryLockError};
use std::thread::{self, JoinHandle, Thread};

/// Turns of the spin loop before a thread parks: some tens of microseconds.
const SPINS: u32 = 4000;

type Job = &'static (dyn Fn(usize) + Sync);

struct Shared {
    /// Number of the current job; workers wait for it to change.
    epoch: AtomicUsize,
    job: Mutex<Option<(Job, Thread)>>,
    /// Workers that have not finished the current job.
    pending: AtomicUsize,
    panicked: AtomicBool,
    stop: AtomicBool,
}

/// Persistent worker threads. The calling thread is worker 0.
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
            epoch: AtomicUsize::new(0),
            job: Mutex::new(None),
            pending: AtomicUsize::new(0),
            panicked: AtomicBool::new(false),
            stop: AtomicBool::new(false),
        });
        let mut pool = Self { shared, workers: Vec::with_capacity(threads - 1), busy: Mutex::new(()) };
        for index in 1..threads {
            let shared = pool.shared.clone();
            let handle = thread::Builder::new()
                .name(format!("squat-{index}"))
                .spawn(move || work(index, &shared))
                .map_err(|source| EngineError::Thread { index, source })?;
            pool.workers.push(handle);
        }
        Ok(pool)
    }

    /// Number of workers, the caller included.
    pub fn threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Runs `job(worker)` once for every worker `0..threads`, and returns when all have finished.
    ///
    /// If the pool is busy (another session runs, or a job starts a job), the caller runs all of it by itself.
    ///
    /// # Panics
    /// When `job` panics on any worker, after all have finished.
    pub fn run(&self, job: &(dyn Fn(usize) + Sync)) {
        let guard = match self.busy.try_lock() {
            Ok(guard) => Some(guard),
            Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        };
        if self.workers.is_empty() || guard.is_none() {
            drop(guard);
            (0..self.threads()).for_each(job);
            return;
        }
        // SAFETY: the reference is used only by workers running the current job. `finish` below waits until every
        // worker has dropped its copy and takes the pool's copy away, before this function returns or unwinds, so
        // the extended lifetime is never relied upon.
        let job_static = unsafe { std::mem::transmute::<&(dyn Fn(usize) + Sync), Job>(job) };
        *lock(&self.shared.job) = Some((job_static, thread::current()));
        self.shared.pending.store(self.workers.len(), Ordering::Relaxed);
        self.shared.epoch.fetch_add(1, Ordering::Release);
        for worker in &self.workers {
            worker.thread().unpark();
        }
        let own = catch_unwind(AssertUnwindSafe(|| job(0)));
        self.finish();
        drop(guard);
        if let Err(payload) = own {
            resume_unwind(payload);
        }
        if self.shared.panicked.swap(false, Ordering::Relaxed) {
            panic!("a worker thread of the pool panicked");
        }
    }

    /// Waits for all workers and forgets the job.
    fn finish(&self) {
        wait(|| self.shared.pending.load(Ordering::Acquire) == 0);
        *lock(&self.shared.job) = None;
    }

    /// Calls `visit(index, item)` once for each item, spread over the workers as they become free.
    pub fn for_each<T: Send>(&self, items: impl Iterator<Item = T> + Send, visit: impl Fn(usize, T) + Sync) {
        if self.workers.is_empty() || items.size_hint().1.is_some_and(|most| most < 2) {
            items.enumerate().for_each(|(index, item)| visit(index, item));
            return;
        }
        let next = Mutex::new(items.enumerate());
        self.run(&|_| {
            loop {
                let taken = lock(&next).next();
                let Some((index, item)) = taken else { break };
                visit(index, item);
            }
        });
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        self.shared.epoch.fetch_add(1, Ordering::Release);
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

fn work(index: usize, shared: &Shared) {
    let mut seen = 0;
    loop {
        wait(|| shared.epoch.load(Ordering::Acquire) != seen);
        seen = shared.epoch.load(Ordering::Acquire);
        if shared.stop.load(Ordering::Relaxed) {
            return;
        }
        let Some((job, caller)) = lock(&shared.job).clone() else { continue };
        if catch_unwind(AssertUnwindSafe(|| job(index))).is_err() {
            shared.panicked.store(true, Ordering::Relaxed);
        }
        if shared.pending.fetch_sub(1, Ordering::AcqRel) == 1 {
            caller.unpark();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_worker_runs_every_job_once() {
        for threads in [1, 2, 5] {
            let pool = Pool::new(threads).unwrap();
            let counts: Vec<AtomicUsize> = (0..threads).map(|_| AtomicUsize::new(0)).collect();
            for _ in 0..2000 {
                pool.run(&|worker| {
                    counts[worker].fetch_add(1, Ordering::Relaxed);
                });
            }
            assert!(counts.iter().all(|count| count.load(Ordering::Relaxed) == 2000));
        }
    }

    #[test]
    fn items_are_visited_once_and_may_be_changed() {
        let pool = Pool::new(3).unwrap();
        let mut items = vec![0u32; 1000];
        for round in 1..=20 {
            pool.for_each(items.iter_mut(), |index, item| *item += index as u32);
            assert!(items.iter().enumerate().all(|(index, &item)| item == round * index as u32));
        }
    }

    #[test]
    fn a_job_inside_a_job_runs_on_its_own_worker() {
        let pool = Pool::new(2).unwrap();
        let count = AtomicUsize::new(0);
        pool.run(&|_| {
            pool.run(&|_| {
                count.fetch_add(1, Ordering::Relaxed);
            })
        });
        assert_eq!(count.load(Ordering::Relaxed), 4);
    }

    #[test]
    fn a_panic_reaches_the_caller_and_the_pool_lives_on() {
        let pool = Pool::new(2).unwrap();
        for bad in 0..2 {
            let caught = catch_unwind(AssertUnwindSafe(|| pool.run(&|worker| assert_ne!(worker, bad))));
            assert!(caught.is_err());
        }
        let count = AtomicUsize::new(0);
        pool.run(&|_| {
            count.fetch_add(1, Ordering::Relaxed);
        });
        assert_eq!(count.load(Ordering::Relaxed), 2);
    }

    #[test]
    fn parked_workers_wake_up() {
        let pool = Pool::new(2).unwrap();
        let count = AtomicUsize::new(0);
        for _ in 0..3 {
            thread::sleep(std::time::Duration::from_millis(5));
            pool.run(&|_| {
                count.fetch_add(1, Ordering::Relaxed);
            });
        }
        assert_eq!(count.load(Ordering::Relaxed), 6);
    }

    #[test]
    fn thread_counts_are_checked() {
        assert!(Pool::new(0).is_err() && Pool::new(Pool::MAX_THREADS + 1).is_err());
    }
}
