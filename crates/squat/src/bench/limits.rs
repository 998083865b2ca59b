//! What the machine allows, measured beside what is held against it.

use super::work::Work;
use squat_kernels::{Kernels, probe};
use std::sync::Barrier;
use std::time::Duration;

/// Time for one figure.
const MOMENT: Duration = Duration::from_millis(120);

/// Rates of all threads together, measured while all of them work.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Limits {
    /// Bytes read per second over and over from a working set of the model's size.
    pub read: f64,
    /// Integer operations per second, from registers.
    pub integer: f64,
    /// Float operations per second, multiplications and additions rounded apart, from registers.
    pub float: f64,
}

impl Limits {
    /// Limits for `threads` threads that share a working set of `bytes`.
    pub fn measure(kernels: &Kernels, threads: usize, bytes: f64) -> Self {
        Self {
            read: read_bandwidth(kernels, threads, bytes as usize),
            integer: together(threads, || (), |()| probe::integer_peak(kernels, MOMENT)),
            float: together(threads, || (), |()| probe::float_peak(kernels, MOMENT)),
        }
    }

    /// Seconds below which the work cannot be done here, and what sets them.
    pub fn floor(&self, work: &Work) -> (f64, Bound) {
        let memory = work.bytes / self.read;
        let compute = work.operations / if work.integer { self.integer } else { self.float };
        if memory >= compute { (memory, Bound::Memory) } else { (compute, Bound::Compute) }
    }
}

/// Which limit is the nearer one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bound {
    /// Reading weights and cache.
    Memory,
    /// Multiplying.
    Compute,
}

impl Bound {
    pub fn name(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::Compute => "compute",
        }
    }
}

/// Bytes per second that `threads` threads together read from `bytes` bytes, each from its own part.
pub fn read_bandwidth(kernels: &Kernels, threads: usize, bytes: usize) -> f64 {
    let part = bytes.div_ceil(threads.max(1)).max(4096);
    together(threads, || probe::Buffer::new(part), |buffer| probe::read_bandwidth(kernels, buffer, MOMENT))
}

/// Sum of the rates of `threads` threads that begin at the same time, each with what it prepared.
pub fn together<T>(threads: usize, prepare: impl Fn() -> T + Sync, rate: impl Fn(&T) -> f64 + Sync) -> f64 {
    let barrier = Barrier::new(threads.max(1));
    let one = || {
        let prepared = prepare();
        barrier.wait();
        rate(&prepared)
    };
    std::thread::scope(|scope| {
        let others: Vec<_> = (1..threads).map(|_| scope.spawn(one)).collect();
        one() + others.into_iter().map(|thread| thread.join().unwrap_or(0.0)).sum::<f64>()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearer_limit_is_the_floor() {
        let limits = Limits { read: 10.0, integer: 100.0, float: 20.0 };
        let work = Work { bytes: 20.0, operations: 100.0, working_set: 20.0, integer: true };
        assert_eq!(limits.floor(&work), (2.0, Bound::Memory));
        assert_eq!(limits.floor(&Work { integer: false, ..work }), (5.0, Bound::Compute));
    }

    #[test]
    fn rates_of_threads_are_added() {
        let rate = together(3, || 2.0, |prepared| *prepared);
        assert_eq!(rate, 6.0);
    }
}
