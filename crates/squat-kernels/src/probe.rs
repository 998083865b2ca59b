//! The limits of this CPU, as a reference for the speed of kernels: operations per second of the instructions of a kernel
//! set, and bytes per second of reading.
//!
//! Measure them in the same run as the speed they are compared with, on the same thread: clock rate and neighbours change
//! from minute to minute. Every function repeats short rounds for a given time and returns the best rate.
//!
//! ```
//! use squat_kernels::{Kernels, probe};
//! use std::time::Duration;
//!
//! let kernels = Kernels::detect();
//! let peak = probe::integer_peak(kernels, Duration::from_millis(20));
//! let memory = probe::read_bandwidth(kernels, &probe::Buffer::new(1 << 20), Duration::from_millis(20));
//! println!("{:.0} GOP/s, {:.0} GB/s", peak / 1e9, memory / 1e9);
//! ```

use crate::arena::ArenaSlice;
use crate::dispatch::Kernels;
use crate::probe_loops::{Line, Work};
use core::hint::black_box;
use std::time::{Duration, Instant};

/// The best rate of rounds of `work` within `time`, in operations per second.
fn best_rate(time: Duration, mut work: impl FnMut() -> Work) -> f64 {
    let start = Instant::now();
    let mut best = 0f64;
    loop {
        let round = Instant::now();
        let (mut operations, mut sum) = (0, 0u64);
        // A fifth of a millisecond: long compared with the clock's resolution, short compared with a time slice.
        while round.elapsed() < Duration::from_micros(200) {
            let (done, value) = work();
            operations += done;
            sum = sum.wrapping_add(value);
        }
        black_box(sum);
        best = best.max(operations as f64 / round.elapsed().as_secs_f64());
        if start.elapsed() >= time {
            return best;
        }
    }
}

/// Integer operations per second of one thread with the dot-product instructions of `kernels` on register operands
/// (4-bit weights, 8-bit activations; a multiplication and an addition count as two): the limit of
/// [`Kernels::linear`] for many rows. Takes about `time`.
pub fn integer_peak(kernels: &Kernels, time: Duration) -> f64 {
    let a = core::array::from_fn(|i| [i as i8, 3, -2, 1]);
    best_rate(time, || kernels.integer_dots(black_box(&a)))
}

/// Float operations per second of one thread with fused multiply-add on register operands: the limit of
/// [`Kernels::matmul_f32`] for many rows. Takes about `time`.
pub fn float_peak(kernels: &Kernels, time: Duration) -> f64 {
    let a = core::array::from_fn(|i| [1.0 + i as f32 / 64.0; 16]);
    best_rate(time, || kernels.float_products(black_box(&a)))
}

/// Memory for [`read_bandwidth`] to read.
#[derive(Debug)]
pub struct Buffer(ArenaSlice<Line>);

impl Buffer {
    /// At least `bytes` bytes, written once so that they have pages of their own, allocated like weights.
    pub fn new(bytes: usize) -> Self {
        // Varying contents: the system may merge identical pages.
        let line = |i: usize| core::array::from_fn(|at| if at == 0 { (i % 4096) as f32 } else { 1.0 });
        Self(ArenaSlice::new(None, bytes.div_ceil(64).next_multiple_of(64), (0..).map(line)))
    }

    /// Bytes held.
    pub fn bytes(&self) -> usize {
        self.0.len() * 64
    }
}

/// Bytes per second at which one thread reads `buffer` repeatedly, from four places at once: the limit of a product with a
/// single row. A buffer several times the size of the last-level cache measures memory, smaller ones the caches. Takes
/// about `time`, at least one pass.
pub fn read_bandwidth(kernels: &Kernels, buffer: &Buffer, time: Duration) -> f64 {
    let bytes = buffer.bytes() as u64;
    best_rate(time, || (bytes, kernels.read_lines(black_box(&buffer.0))))
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use crate::probe_loops::OPERANDS;

    #[test]
    fn every_byte_is_read() {
        let mut buffer = Buffer::new(64 * 64 * 3);
        assert_eq!(buffer.bytes(), 64 * 64 * 3);
        for kernels in Kernels::available() {
            let before = kernels.read_lines(&buffer.0);
            for at in [0, 63, 64, 100, buffer.0.len() - 1] {
                buffer.0[at][5] += 65536.0;
                assert_ne!(kernels.read_lines(&buffer.0), before, "{} line {at}", kernels.name());
                buffer.0[at][5] -= 65536.0;
            }
        }
    }

    #[test]
    fn work_is_done_and_counted() {
        let a: [[i8; 4]; OPERANDS] = core::array::from_fn(|i| [i as i8, 1, -1, 2]);
        for kernels in Kernels::available() {
            let (operations, first) = kernels.integer_dots(&a);
            let mut other = a;
            other[7][2] += 1;
            let (_, second) = kernels.integer_dots(&other);
            assert!(operations > 0 && first != second, "{}", kernels.name());
            let moment = Duration::from_millis(1);
            assert!(integer_peak(kernels, moment) > 0.0 && float_peak(kernels, moment) > 0.0);
            assert!(read_bandwidth(kernels, &Buffer::new(4096), moment) > 0.0);
        }
    }
}
