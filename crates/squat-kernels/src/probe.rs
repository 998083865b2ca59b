//! The limits of this CPU, to hold a kernel's speed against: operations per second of the instructions that a set of
//! kernels is made of, and bytes per second of reading.
//!
//! Take them in the same run as the speed they are compared with, on the same thread: clock rate and neighbours change
//! from minute to minute. Every function repeats short rounds for as long as it is told and returns the best rate.
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
use crate::float::FloatSimd;
use crate::matrix::Block;
use crate::product::IntSimd;
use core::hint::black_box;
use std::time::{Duration, Instant};

/// Operands of a peak: enough that no compiler computes the result beforehand, few enough to stay in the first cache.
pub(crate) const OPERANDS: usize = 32;

/// Times a loop over the operands is repeated in one call.
const REPEATS: usize = 64;

/// What a peak did: operations (a multiplication and an addition are two), and a value that depends on all of them.
pub(crate) type Work = (u64, u64);

/// Dot products of registers: the inner loop of an `MR x NP` tile of 4-bit weights, without its loads and unpacking.
#[inline(always)]
pub(crate) fn integer_dots<S: IntSimd, const MR: usize, const NP: usize>(
    s: S,
    w: &[[Block; 2]; NP],
    a: &[[i8; 4]; OPERANDS],
) -> Work {
    let mut acc = [[s.zero(); NP]; MR];
    let mut fields = [[s.zero(); NP]; 2];
    for p in 0..NP {
        (fields[0][p], fields[1][p]) = (s.load(&w[p][0].0), s.load(&w[p][1].0));
    }
    let (a, _) = a.as_chunks();
    let limited = S::SMALL_ROOM < usize::MAX;
    let run = if limited { S::SMALL_ROOM / (2 * 15) } else { OPERANDS / 2 };
    let mut small = [[s.zero_small(); NP]; MR];
    for _ in 0..REPEATS {
        for first in (0..OPERANDS / 2).step_by(run) {
            for i in first..(OPERANDS / 2).min(first + run) {
                let mut rows = [&a[i]; MR];
                for m in 1..MR {
                    rows[m] = &a[(i + m) % (OPERANDS / 2)];
                }
                s.dot_rows(&mut small, &fields, &rows);
            }
            if limited {
                s.flush_rows(&mut acc, &small);
                small = [[s.zero_small(); NP]; MR];
            }
        }
    }
    s.flush_rows(&mut acc, &small);
    let mut sum = 0u64;
    for acc in acc.as_flattened() {
        sum = s.store(*acc).iter().fold(sum, |sum, &x| sum.wrapping_add(x as u64));
    }
    ((REPEATS * (OPERANDS / 2) * MR * NP * 2 * 128) as u64, sum)
}

/// Multiplications and additions of registers: the inner loop of an `MR x NR` tile of floats.
#[inline(always)]
pub(crate) fn float_products<S: FloatSimd, const MR: usize, const NR: usize>(
    s: S,
    w: &[[f32; 16]; NR],
    a: &[[f32; 16]; OPERANDS],
) -> Work {
    let mut acc = [[s.zero(); NR]; MR];
    let mut held = [s.zero(); NR];
    for n in 0..NR {
        held[n] = s.load(&w[n]);
    }
    for _ in 0..REPEATS {
        for i in 0..OPERANDS {
            for m in 0..MR {
                let a = s.load(&a[(i + m) % OPERANDS]);
                for n in 0..NR {
                    acc[m][n] = s.multiply_add(acc[m][n], a, held[n]);
                }
            }
        }
    }
    let mut sum = 0u64;
    for acc in acc.as_flattened() {
        sum = s.store(*acc).iter().fold(sum, |sum, x| sum.wrapping_add(u64::from(x.to_bits())));
    }
    ((REPEATS * OPERANDS * MR * NR * 2 * 16) as u64, sum)
}

/// The sum of all floats of a multiple of 8 lines, read from four places at once: the order in which memory is fastest.
#[inline(always)]
pub(crate) fn read<S: FloatSimd>(s: S, lines: &[Line]) -> u64 {
    let (front, back) = lines.as_chunks::<2>().0.split_at(lines.len() / 4);
    let (a, b) = front.split_at(front.len() / 2);
    let (c, d) = back.split_at(back.len() / 2);
    let mut acc = [s.zero(); 8];
    for (((a, b), c), d) in a.iter().zip(b).zip(c).zip(d) {
        let lines = [a, b, c, d];
        for i in 0..8 {
            acc[i] = s.add(acc[i], s.load(&lines[i / 2][i % 2]));
        }
    }
    acc.iter().flat_map(|acc| s.store(*acc)).sum::<f32>().to_bits().into()
}

/// The best rate of rounds of `work` within `time`, in operations per second.
fn best_rate(time: Duration, mut work: impl FnMut() -> Work) -> f64 {
    let start = Instant::now();
    let mut best = 0f64;
    loop {
        let round = Instant::now();
        let (mut operations, mut sum) = (0, 0u64);
        // Rounds of a fifth of a millisecond: long against the clock's resolution, short against a time slice.
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
    best_rate(time, || (kernels.table().integer_peak)(black_box(&a)))
}

/// Float operations per second of one thread with fused multiply-add on register operands, as [`Kernels::matmul_f32`]
/// does it: its limit for many rows. Takes about `time`.
pub fn float_peak(kernels: &Kernels, time: Duration) -> f64 {
    let a = core::array::from_fn(|i| [1.0 + i as f32 / 64.0; 16]);
    best_rate(time, || (kernels.table().float_peak)(black_box(&a)))
}

/// 64 bytes.
pub(crate) type Line = [f32; 16];

/// Memory to be read by [`read_bandwidth`].
#[derive(Debug)]
pub struct Buffer(ArenaSlice<Line>);

impl Buffer {
    /// At least `bytes` bytes, written once so that they have pages of their own, in the kind of memory that weights have.
    pub fn new(bytes: usize) -> Self {
        // Not all the same: pages of one content may be shared.
        let line = |i: usize| core::array::from_fn(|at| if at == 0 { (i % 4096) as f32 } else { 1.0 });
        Self(ArenaSlice::new(None, bytes.div_ceil(64).next_multiple_of(64), (0..).map(line)))
    }

    /// Bytes held.
    pub fn bytes(&self) -> usize {
        self.0.len() * 64
    }
}

/// Bytes per second that one thread reads from `buffer` over and over, from four places at once: the limit of a product
/// with a single row. A buffer several times as large as the last cache gives the speed of memory, smaller ones that of
/// the caches. Takes about `time`, at least one pass.
pub fn read_bandwidth(kernels: &Kernels, buffer: &Buffer, time: Duration) -> f64 {
    let bytes = buffer.bytes() as u64;
    best_rate(time, || (bytes, (kernels.table().read)(black_box(&buffer.0))))
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;

    #[test]
    fn every_byte_is_read() {
        let mut buffer = Buffer::new(64 * 64 * 3);
        assert_eq!(buffer.bytes(), 64 * 64 * 3);
        for kernels in Kernels::available() {
            let read = kernels.table().read;
            let before = read(&buffer.0);
            for at in [0, 63, 64, 100, buffer.0.len() - 1] {
                buffer.0[at][5] += 65536.0;
                assert_ne!(read(&buffer.0), before, "{} line {at}", kernels.name());
                buffer.0[at][5] -= 65536.0;
            }
        }
    }

    #[test]
    fn work_is_done_and_counted() {
        let a: [[i8; 4]; OPERANDS] = core::array::from_fn(|i| [i as i8, 1, -1, 2]);
        for kernels in Kernels::available() {
            let (operations, first) = (kernels.table().integer_peak)(&a);
            let mut other = a;
            other[7][2] += 1;
            let (_, second) = (kernels.table().integer_peak)(&other);
            assert!(operations > 0 && first != second, "{}", kernels.name());
            let moment = Duration::from_millis(1);
            assert!(integer_peak(kernels, moment) > 0.0 && float_peak(kernels, moment) > 0.0);
            assert!(read_bandwidth(kernels, &Buffer::new(4096), moment) > 0.0);
        }
    }
}
