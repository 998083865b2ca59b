//! Limits of the machine, measured in the same run as the figures that are compared with them.

use super::work::Work;
use squat_kernels::{Kernels, probe};
use std::sync::Barrier;
use std::time::Duration;

/// Duration of one measurement.
const MOMENT: Duration = Duration::from_millis(120);

/// Rates of all threads together, measured while all of them run.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Limits {
    /// Bytes per second of repeated reads of a working set of the model's size.
    pub read: f64,
    /// Integer operations per second on registers.
    pub integer: f64,
    /// Float operations per second on registers, with separately rounded multiplications and additions.
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

    /// Lower bound of the seconds that the work takes on this machine, and the limit that sets it.
    pub fn floor(&self, work: &Work) -> (f64, Bound) {
        let memory = work.bytes / self.read;
        let compute = work.operations / if work.integer { self.integer } else { self.float };
        if memory >= compute { (memory, Bound::Memory) } else { (compute, Bound::Compute) }
    }
}

/// The limit that binds.
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

/// Sum of the rates of `threads` threads that start at the same time, each with its own prepared data.
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
