//! Orthogonal transforms of a row before it is quantized: they spread outliers over many values, so that a coarse step
//! loses less (QuaRot, arXiv 2404.00456; QuIP#, arXiv 2402.04396).
//!
//! `y = x W^T = (x T)(W T)^T` for an orthogonal T, so the weight behind a transformed point has its rows transformed
//! likewise, once. All matrices here are Hadamard matrices over the square root of their order, and symmetric: each is its own
//! inverse, and the backward pass of itself.

mod small;

use core::fmt;
use core::ops::Range;

use crate::math::sqrt;
use small::{MAX_SMALL, small};

/// What is applied to a row before it is quantized.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Transform {
    /// Nothing.
    #[default]
    None,
    /// The Hadamard matrix of a size that [`factors`] knows, on each block of so many values: see [`hadamard`].
    Hadamard(usize),
    /// The same matrix, on blocks that are interleaved: of n blocks, block b holds the values b, b + n, b + 2 n and so on. It
    /// spreads outliers as well, and vector instructions compute many blocks side by side.
    Interleaved(usize),
    /// The largest [`Transform::Hadamard`] that fits a point, once its width is known ([`Transform::for_width`]).
    Largest,
}

impl Transform {
    /// A Hadamard transform on blocks of `size` values; `None` for a size without a matrix ([`factors`]).
    pub const fn hadamard(size: usize) -> Option<Self> {
        if factors(size).is_some() { Some(Self::Hadamard(size)) } else { None }
    }

    /// [`Self::Hadamard`] with interleaved blocks; `None` for a size without a matrix.
    pub const fn interleaved(size: usize) -> Option<Self> {
        if factors(size).is_some() { Some(Self::Interleaved(size)) } else { None }
    }

    /// [`Self::Largest`] for rows of `cols` values: the largest block that divides them, nothing where none does. Others stay
    /// as they are.
    pub fn for_width(self, cols: usize) -> Self {
        match self {
            Self::Largest => (2..=cols)
                .rev()
                .find(|&size| cols.is_multiple_of(size) && factors(size).is_some())
                .map_or(Self::None, Self::Hadamard),
            known => known,
        }
    }

    /// Whether nothing is applied.
    pub const fn is_none(self) -> bool {
        matches!(self, Self::None)
    }

    /// Whether rows of `cols` values can be transformed: whole blocks only.
    pub const fn fits(self, cols: usize) -> bool {
        match self {
            Self::None => true,
            Self::Hadamard(size) | Self::Interleaved(size) => {
                factors(size).is_some() && cols.is_multiple_of(size)
            }
            Self::Largest => false,
        }
    }

    /// Transforms one row, in place; the transform is its own inverse, and the backward pass of itself.
    ///
    /// The row must fit ([`Self::fits`]): the rest of a row that is not whole blocks stays as it is, and
    /// [`Self::Largest`] changes nothing.
    ///
    /// # Panics
    /// When the size has no matrix.
    #[inline(always)]
    pub fn apply(self, row: &mut [f32]) {
        self.apply_with(row, near_butterflies);
    }

    /// [`Self::apply`], with another form of [`near_butterflies`], which must give the same bits.
    #[inline(always)]
    fn apply_with(self, row: &mut [f32], near: impl Fn(&mut [f32; NEAR]) + Copy) {
        debug_assert!(self.fits(row.len()), "{} values under {self}", row.len());
        // One call for both, so that programs hold the code once.
        let (part, size) = match self {
            Self::Hadamard(size) => (size, size),
            Self::Interleaved(size) => (row.len().max(1), size),
            Self::None | Self::Largest => return,
        };
        row.chunks_exact_mut(part).for_each(|part| interleaved_with(part, size, near));
    }

    /// Transforms rows of `cols` values, in place: what trainer and engine do before they quantize the rows.
    #[inline(always)]
    pub fn apply_rows(self, rows: &mut [f32], cols: usize) {
        self.apply_rows_with(rows, cols, near_butterflies);
    }

    /// [`Self::apply_rows`], with another form of [`near_butterflies`], which must give the same bits.
    #[inline(always)]
    pub fn apply_rows_with(self, rows: &mut [f32], cols: usize, near: impl Fn(&mut [f32; NEAR]) + Copy) {
        if !self.is_none() {
            for row in rows.chunks_exact_mut(cols) {
                self.apply_with(row, near);
            }
        }
    }

    /// The transform of that name: `none`, `hadamard` (the largest that fits), `hadamard(SIZE)` or
    /// `interleaved_hadamard(SIZE)`.
    pub fn from_name(name: &str) -> Option<Self> {
        let (kind, size) = match name {
            "none" => return Some(Self::None),
            "hadamard" => return Some(Self::Largest),
            name => name.strip_suffix(')')?.split_once('(')?,
        };
        let size = size.parse().ok().filter(|_| size.bytes().all(|b| b.is_ascii_digit()))?;
        match kind {
            "hadamard" => Self::hadamard(size),
            "interleaved_hadamard" => Self::interleaved(size),
            _ => None,
        }
    }
}

impl fmt::Display for Transform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => f.write_str("none"),
            Self::Hadamard(size) => write!(f, "hadamard({size})"),
            Self::Interleaved(size) => write!(f, "interleaved_hadamard({size})"),
            Self::Largest => f.write_str("hadamard"),
        }
    }
}

/// The factors of a size that has a matrix here: the order of a small matrix (1, 12, 20, 28 or 36) and a power of two. `None`
/// for all other sizes, and for 1.
pub const fn factors(size: usize) -> Option<(usize, usize)> {
    if size < 2 {
        return None;
    }
    match size >> size.trailing_zeros() {
        1 => Some((1, size)),
        odd @ (3 | 5 | 7 | 9) if size.is_multiple_of(4 * odd) => Some((4 * odd, size / (4 * odd))),
        _ => None,
    }
}

/// `1 / sqrt(size)`, rounded to f32: the factor of a transform.
#[inline(always)]
pub fn factor(size: usize) -> f32 {
    1.0 / sqrt(size as f32)
}

/// Values whose butterflies are computed within registers.
pub const NEAR: usize = 16;

/// The butterflies of strides 1, 2, 4 and 8 of 16 values.
#[inline(always)]
pub fn near_butterflies(x: &mut [f32; NEAR]) {
    for stride in [1, 2, 4, 8] {
        for i in (0..NEAR).filter(|i| i & stride == 0) {
            (x[i], x[i + stride]) = (x[i] + x[i + stride], x[i] - x[i + stride]);
        }
    }
}

/// Multiplies a block of n = m p values, m and p its [`factors`], by `(S_m x H_p) / sqrt(n)`, in place: the small matrix
/// of [`small`], and the Walsh-Hadamard matrix `H[i][j] = (-1)^popcount(i & j)`.
///
/// The order of operations is part of the definition, so that every caller gets the same bits: butterflies
/// `(a, b) -> (a + b, a - b)` of strides 1, 2, 4, ..., p / 2; then [`small`] on the m values of each place that lie p apart;
/// then one multiplication by [`factor`].
///
/// # Panics
/// When the length has no matrix.
#[inline(always)]
pub fn hadamard(block: &mut [f32]) {
    let size = block.len();
    interleaved(block, size);
}

/// [`hadamard`] on each of the interleaved blocks of `size` values of a row, in place.
///
/// # Panics
/// When the size has no matrix, or does not divide the length.
#[inline(always)]
pub fn interleaved(row: &mut [f32], size: usize) {
    interleaved_with(row, size, near_butterflies);
}

/// The factors of a size, and how many blocks of it a row of `len` values has. One function for all instruction sets.
#[inline(never)]
fn shape(len: usize, size: usize) -> (usize, usize, usize) {
    let Some((order, power)) = factors(size) else { panic!("a Hadamard transform of {size} values") };
    assert!(len.is_multiple_of(size), "{len} values in blocks of {size}");
    (order, power, len / size)
}

#[inline(always)]
fn interleaved_with(row: &mut [f32], size: usize, near: impl Fn(&mut [f32; NEAR]) + Copy) {
    let (order, power, blocks) = shape(row.len(), size);
    let (mut stride, end) = (blocks, blocks * power);
    if blocks == 1 && (power > NEAR || power == NEAR && order > 1) {
        row.as_chunks_mut::<NEAR>().0.iter_mut().for_each(near);
        stride = NEAR;
    }
    let factor = factor(size);
    // The factor belongs to the last pass over the row; before, it is 1, which changes no bit.
    let factor_of = |next: usize| if order == 1 && next == end { factor } else { 1.0 };
    // Two strides in one pass.
    while 4 * stride <= end {
        let last = factor_of(4 * stride);
        for four in row.chunks_exact_mut(4 * stride) {
            let (ab, cd) = four.split_at_mut(2 * stride);
            let ((a, b), (c, d)) = (ab.split_at_mut(stride), cd.split_at_mut(stride));
            for i in 0..stride {
                let (ab, cd) = ([a[i] + b[i], a[i] - b[i]], [c[i] + d[i], c[i] - d[i]]);
                (a[i], b[i]) = ((ab[0] + cd[0]) * last, (ab[1] + cd[1]) * last);
                (c[i], d[i]) = ((ab[0] - cd[0]) * last, (ab[1] - cd[1]) * last);
            }
        }
        stride *= 4;
    }
    if stride < end {
        let last = factor_of(2 * stride);
        for two in row.chunks_exact_mut(2 * stride) {
            let (a, b) = two.split_at_mut(stride);
            for i in 0..stride {
                (a[i], b[i]) = ((a[i] + b[i]) * last, (a[i] - b[i]) * last);
            }
        }
    }
    if order > 1 {
        for place in (0..end).step_by(WIDTH) {
            small_at(row, (order, end), place..(place + WIDTH).min(end), factor);
        }
    }
}

/// Places that are computed side by side: a vector or two of most CPUs.
const WIDTH: usize = 16;

/// [`small`] on the values of up to [`WIDTH`] places, each `apart` values after the one before, and the factor. Compiled once,
/// not for each instruction set: only the residual stream has such a transform, twice for a row of logits.
#[inline(never)]
fn small_at(row: &mut [f32], (order, apart): (usize, usize), places: Range<usize>, factor: f32) {
    let mut values = [[0f32; WIDTH]; MAX_SMALL];
    let values = &mut values[..order];
    for (value, chunk) in values.iter_mut().zip(row.chunks_exact(apart)) {
        let chunk = &chunk[places.clone()];
        value[..chunk.len()].copy_from_slice(chunk);
    }
    small(values);
    for (value, chunk) in values.iter().zip(row.chunks_exact_mut(apart)) {
        for (x, value) in chunk[places.clone()].iter_mut().zip(value) {
            *x = value * factor;
        }
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use proptest::prelude::*;
    use std::string::ToString;
    use std::vec;
    use std::vec::Vec;

    /// Sizes with a matrix up to 160.
    fn sizes() -> Vec<usize> {
        (1..=160).filter(|&size| factors(size).is_some()).collect()
    }

    /// The matrix of a size times the square root of the size, from its action on unit vectors.
    fn matrix(size: usize) -> Vec<Vec<f64>> {
        let root = (size as f64).sqrt();
        let unit = |i| {
            let mut row = vec![0f32; size];
            row[i] = 1.0;
            hadamard(&mut row);
            row.into_iter().map(|x| f64::from(x) * root).collect()
        };
        (0..size).map(unit).collect()
    }

    /// Signs, symmetric, and `H H^T = n I`.
    #[test]
    fn every_matrix_is_a_symmetric_hadamard_matrix() {
        assert_eq!(
            sizes(),
            [2, 4, 8, 12, 16, 20, 24, 28, 32, 36, 40, 48, 56, 64, 72, 80, 96, 112, 128, 144, 160]
        );
        for size in sizes() {
            let rows = matrix(size);
            let signs: Vec<Vec<i64>> = rows
                .iter()
                .map(|row| {
                    assert!(row.iter().all(|x| (x.abs() - 1.0).abs() < 1e-5), "{size}");
                    row.iter().map(|&x| if x > 0.0 { 1 } else { -1 }).collect()
                })
                .collect();
            for i in 0..size {
                for j in 0..size {
                    assert_eq!(signs[i][j], signs[j][i], "{size}: {i} {j}");
                    let dot: i64 = signs[i].iter().zip(&signs[j]).map(|(a, b)| a * b).sum();
                    assert_eq!(dot, if i == j { size as i64 } else { 0 }, "{size}: rows {i} and {j}");
                }
            }
        }
    }

    /// The small matrices where Paley's construction is their definition, written down from it: quadratic residues.
    #[test]
    fn small_matrices_are_those_of_their_constructions() {
        for prime in [5usize, 13] {
            let half = prime + 1;
            let character = |d: usize| match (1..prime).any(|x| x * x % prime == d) {
                _ if d == 0 => 0i64,
                true => 1,
                false => -1,
            };
            let conference = |i: usize, j: usize| match (i, j) {
                (0, 0) => 0,
                (0, _) | (_, 0) => 1,
                _ => character((i + prime - j) % prime),
            };
            let rows = matrix(2 * half);
            for (i, row) in rows.iter().enumerate() {
                for (j, &got) in row.iter().enumerate() {
                    let (a, b) = (i / half, j / half);
                    let c = conference(i % half, j % half);
                    let on_diagonal = i64::from(i % half == j % half);
                    let want = match (a, b) {
                        (0, 0) => c + on_diagonal,
                        (0, 1) | (1, 0) => c - on_diagonal,
                        _ => -c - on_diagonal,
                    };
                    assert!((got - want as f64).abs() < 1e-5, "{prime}: {i} {j}");
                }
            }
        }
        // -1 where row, column or their sum modulo 6 agree and the place is another one.
        let rows = matrix(36);
        for (i, row) in rows.iter().enumerate() {
            for (j, &got) in row.iter().enumerate() {
                let ((r, c), (s, d)) = ((i / 6, i % 6), (j / 6, j % 6));
                let apart = i == j || (r != s && c != d && (r + c) % 6 != (s + d) % 6);
                assert!((got - if apart { 1.0 } else { -1.0 }).abs() < 1e-5, "{i} {j}");
            }
        }
    }

    proptest! {
        #[test]
        fn powers_of_two_match_the_definition(power in 1u32..9, seed in prop::collection::vec(-4f32..4.0, 256)) {
            let x = &seed[..1 << power];
            let mut fast = x.to_vec();
            hadamard(&mut fast);
            let norm = 1.0 / (x.len() as f64).sqrt();
            for (i, fast) in fast.iter().enumerate() {
                let signed = |(j, &x): (usize, &f32)| if (i & j).count_ones() % 2 == 0 { x } else { -x };
                let want = x.iter().enumerate().map(|entry| f64::from(signed(entry))).sum::<f64>() * norm;
                prop_assert!((f64::from(*fast) - want).abs() < 1e-5, "{} {}", fast, want);
            }
        }

        #[test]
        fn twice_is_the_identity(
            size in prop::sample::select(sizes()), x in prop::collection::vec(-4f32..4.0, 320)
        ) {
            let transform = Transform::hadamard(size).unwrap();
            let x = &x[..size * (320 / size)];
            prop_assert!(transform.fits(x.len()));
            let mut twice = x.to_vec();
            transform.apply(&mut twice);
            let norm = |x: &[f32]| x.iter().map(|&x| f64::from(x) * f64::from(x)).sum::<f64>();
            prop_assert!((norm(&twice) - norm(x)).abs() < 1e-4 * norm(x).max(1.0));
            transform.apply(&mut twice);
            for (a, b) in twice.iter().zip(x) {
                prop_assert!((a - b).abs() < 2e-5, "{} {}", a, b);
            }
        }
    }

    /// Each interleaved block has the bits of the same values side by side.
    #[test]
    fn interleaved_blocks_are_blocks() {
        for size in sizes() {
            for blocks in [1, 2, 3, 16, 24] {
                let row: Vec<f32> = (0..size * blocks).map(|i| ((i * 37) % 101) as f32 / 7.0 - 6.0).collect();
                let mut fast = row.clone();
                Transform::interleaved(size).unwrap().apply(&mut fast);
                for b in 0..blocks {
                    let mut block: Vec<f32> = row[b..].iter().step_by(blocks).copied().collect();
                    hadamard(&mut block);
                    let found = fast[b..].iter().step_by(blocks);
                    assert!(found.zip(&block).all(|(a, b)| a.to_bits() == b.to_bits()), "{size} x {blocks}");
                }
            }
        }
    }

    /// Sums of small integers are exact, and the factor is a power of two where the size is one of four.
    #[test]
    fn whole_numbers_are_exact() {
        let mut x: Vec<f32> = (0..64).map(|i| ((i * 37) % 23) as f32 - 11.0).collect();
        let rows = matrix(64);
        let want: Vec<f64> = rows
            .iter()
            .map(|row| row.iter().zip(&x).map(|(h, &x)| h * f64::from(x)).sum::<f64>() / 8.0)
            .collect();
        hadamard(&mut x);
        assert!(x.iter().zip(want).all(|(x, want)| f64::from(*x) == want));
    }

    #[test]
    fn names_and_sizes() {
        let all = [
            Transform::None,
            Transform::Hadamard(2),
            Transform::Hadamard(576),
            Transform::Interleaved(64),
            Transform::Largest,
        ];
        for transform in all {
            assert_eq!(Transform::from_name(&transform.to_string()), Some(transform));
        }
        for name in [
            "hadamard()",
            "hadamard(0)",
            "hadamard(1)",
            "hadamard(6)",
            "hadamard(44)",
            "hadamard(64",
            "Hadamard(64)",
            "hadamard(+4)",
            "interleaved_hadamard(6)",
            "interleaved(64)",
            "",
        ] {
            assert_eq!(Transform::from_name(name), None, "{name}");
        }
        assert!(Transform::Hadamard(16).fits(48) && !Transform::Hadamard(16).fits(40));
        for (cols, size) in [(576, 576), (1536, 1536), (768, 768), (64, 64), (960, 320), (1376, 32), (6, 2)] {
            assert_eq!(Transform::Largest.for_width(cols), Transform::Hadamard(size));
        }
        assert_eq!(Transform::Largest.for_width(83), Transform::None);
        assert_eq!(Transform::Hadamard(4).for_width(64), Transform::Hadamard(4));
        let mut row = [3.0, 1.0];
        Transform::None.apply(&mut row);
        assert_eq!(row, [3.0, 1.0]);
    }
}
