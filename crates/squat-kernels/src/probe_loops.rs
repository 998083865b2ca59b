//! Loops that keep the execution units or the memory of a core busy: what `probe` times.

use crate::block::Block;
use crate::lanes::LANES;
use crate::simd::{FloatSimd, IntSimd, Quad};
use core::hint::black_box;

/// 64 bytes.
pub(crate) type Line = [f32; LANES];

/// Operands of a loop: enough that the compiler cannot precompute the result, few enough for the first-level cache.
pub(crate) const OPERANDS: usize = 32;

/// Passes over the operands in one call.
const REPEATS: usize = 64;

/// Operations done (a multiplication and an addition are two), and a value that depends on all of them.
pub(crate) type Work = (u64, u64);

/// Dot products of registers: the inner loop of an `MR x NP` tile of 4-bit weights, without its loads and unpacking.
#[inline(always)]
pub(crate) fn integer_dots<S: IntSimd, const MR: usize, const NP: usize>(s: S, a: &[Quad; OPERANDS]) -> Work {
    let w = black_box([[Block([7; 64]), Block([9; 64])]; NP]);
    let mut acc = [[s.zero(); NP]; MR];
    let mut fields = [[s.zero(); NP]; 2];
    for p in 0..NP {
        (fields[0][p], fields[1][p]) = (s.load(&w[p][0].0), s.load(&w[p][1].0));
    }
    let (a, _) = a.as_chunks();
    let limited = S::PARTIAL_LIMIT < usize::MAX;
    let interval = if limited { S::PARTIAL_LIMIT / (2 * 15) } else { OPERANDS / 2 };
    let mut partial = [[s.zero_partial(); NP]; MR];
    for _ in 0..REPEATS {
        for first in (0..OPERANDS / 2).step_by(interval) {
            for i in first..(OPERANDS / 2).min(first + interval) {
                let mut rows = [&a[i]; MR];
                for m in 1..MR {
                    rows[m] = &a[(i + m) % (OPERANDS / 2)];
                }
                s.dot_rows(&mut partial, &fields, &rows);
            }
            if limited {
                s.flush_rows(&mut acc, &partial);
                partial = [[s.zero_partial(); NP]; MR];
            }
        }
    }
    s.flush_rows(&mut acc, &partial);
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
    a: &[[f32; LANES]; OPERANDS],
) -> Work {
    let w = black_box([[0.5; LANES]; NR]);
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
                    acc[m][n] = s.mul_add(acc[m][n], a, held[n]);
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

/// The sum of all floats of a multiple of 8 lines, read from four places at once: the fastest way to read memory.
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
