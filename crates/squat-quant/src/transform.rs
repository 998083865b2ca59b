//! Orthogonal transforms of a row before it is quantized: they spread outliers over many values, so that a coarse step
//! loses less (QuaRot, arXiv 2404.00456; QuIP#, arXiv 2402.04396).
//!
//! `y = x W^T = (x T)(W T)^T` for an orthogonal T, so the weight behind a transformed point has its rows transformed
//! likewise, once.

use core::fmt;

use crate::math::sqrt;

/// What is applied to a row before it is quantized.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Transform {
    /// Nothing.
    #[default]
    None,
    /// The Walsh-Hadamard matrix of a size, on each block of so many values: see [`hadamard`]. The size is a power of two,
    /// at least 2 ([`Transform::hadamard`]).
    Hadamard(usize),
}

impl Transform {
    /// A Hadamard transform on blocks of `size` values; `None` for a size that is not a power of two from 2 on.
    pub const fn hadamard(size: usize) -> Option<Self> {
        if size >= 2 && size.is_power_of_two() { Some(Self::Hadamard(size)) } else { None }
    }

    /// Whether nothing is applied.
    pub const fn is_none(self) -> bool {
        matches!(self, Self::None)
    }

    /// Whether rows of `cols` values can be transformed: whole blocks only.
    pub const fn fits(self, cols: usize) -> bool {
        match self {
            Self::None => true,
            Self::Hadamard(size) => size >= 2 && size.is_power_of_two() && cols.is_multiple_of(size),
        }
    }

    /// Transforms one row, in place.
    ///
    /// The matrices here are symmetric and orthogonal, so this is also the inverse, and the backward pass of itself.
    ///
    /// The row must fit ([`Self::fits`]): the rest of a row that is not whole blocks stays as it is.
    ///
    /// # Panics
    /// When the size is not a power of two.
    #[inline(always)]
    pub fn apply(self, row: &mut [f32]) {
        debug_assert!(self.fits(row.len()), "{} values under {self}", row.len());
        match self {
            Self::None => {}
            Self::Hadamard(size) => {
                for block in row.chunks_exact_mut(size) {
                    hadamard(block);
                }
            }
        }
    }

    /// Transforms rows of `cols` values, in place: what trainer and engine do before they quantize the rows.
    #[inline(always)]
    pub fn apply_rows(self, rows: &mut [f32], cols: usize) {
        if !self.is_none() {
            for row in rows.chunks_exact_mut(cols) {
                self.apply(row);
            }
        }
    }

    /// The transform of that name: `none` or `hadamard(SIZE)`.
    pub fn from_name(name: &str) -> Option<Self> {
        if name == "none" {
            return Some(Self::None);
        }
        Self::hadamard(name.strip_prefix("hadamard(")?.strip_suffix(')')?.parse().ok()?)
    }
}

impl fmt::Display for Transform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => f.write_str("none"),
            Self::Hadamard(size) => write!(f, "hadamard({size})"),
        }
    }
}

/// Multiplies a block of n values, n a power of two, by the orthonormal Walsh-Hadamard matrix
/// `H[i][j] = (-1)^popcount(i & j) / sqrt(n)`, in place.
///
/// The order of operations is part of the definition, so that every caller gets the same bits: butterflies
/// `(a, b) -> (a + b, a - b)` of strides 1, 2, 4, ..., n / 2, then one multiplication by `1 / sqrt(n)` rounded to f32.
///
/// # Panics
/// When the length is not a power of two.
#[inline(always)]
pub fn hadamard(block: &mut [f32]) {
    let n = block.len();
    assert!(n.is_power_of_two(), "a Hadamard transform of {n} values");
    let mut stride = 1;
    while stride < n {
        for pair in block.chunks_exact_mut(2 * stride) {
            let (low, high) = pair.split_at_mut(stride);
            for (a, b) in low.iter_mut().zip(high) {
                (*a, *b) = (*a + *b, *a - *b);
            }
        }
        stride *= 2;
    }
    let factor = 1.0 / sqrt(n as f32);
    for x in block {
        *x *= factor;
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use proptest::prelude::*;
    use std::string::ToString;
    use std::vec::Vec;

    /// The definition, in f64.
    fn reference(x: &[f32]) -> Vec<f64> {
        let norm = 1.0 / (x.len() as f64).sqrt();
        (0..x.len())
            .map(|i| {
                let signed = |(j, &x): (usize, &f32)| if (i & j).count_ones() % 2 == 0 { x } else { -x };
                x.iter().enumerate().map(|entry| f64::from(signed(entry))).sum::<f64>() * norm
            })
            .collect()
    }

    proptest! {
        #[test]
        fn matches_the_definition(power in 0u32..9, seed in prop::collection::vec(-4f32..4.0, 256)) {
            let x = &seed[..1 << power];
            let mut fast = x.to_vec();
            hadamard(&mut fast);
            for (fast, want) in fast.iter().zip(reference(x)) {
                prop_assert!((f64::from(*fast) - want).abs() < 1e-5, "{} {}", fast, want);
            }
        }

        #[test]
        fn twice_is_the_identity(x in prop::collection::vec(-4f32..4.0, 96)) {
            let transform = Transform::hadamard(32).unwrap();
            prop_assert!(transform.fits(x.len()));
            let mut twice = x.clone();
            transform.apply(&mut twice);
            let norm = |x: &[f32]| x.iter().map(|&x| f64::from(x) * f64::from(x)).sum::<f64>();
            prop_assert!((norm(&twice) - norm(&x)).abs() < 1e-4 * norm(&x).max(1.0));
            transform.apply(&mut twice);
            for (a, b) in twice.iter().zip(&x) {
                prop_assert!((a - b).abs() < 1e-5);
            }
        }
    }

    /// Sums of small integers are exact, and the factor is a power of two where the size is one of four.
    #[test]
    fn whole_numbers_are_exact() {
        let mut x: Vec<f32> = (0..64).map(|i| ((i * 37) % 23) as f32 - 11.0).collect();
        let want = reference(&x);
        hadamard(&mut x);
        assert!(x.iter().zip(want).all(|(x, want)| f64::from(*x) == want));
    }

    #[test]
    fn names_and_sizes() {
        for transform in [Transform::None, Transform::Hadamard(2), Transform::Hadamard(128)] {
            assert_eq!(Transform::from_name(&transform.to_string()), Some(transform));
        }
        for name in
            ["hadamard", "hadamard(0)", "hadamard(1)", "hadamard(12)", "hadamard(64", "Hadamard(64)", ""]
        {
            assert_eq!(Transform::from_name(name), None, "{name}");
        }
        assert!(Transform::Hadamard(16).fits(48) && !Transform::Hadamard(16).fits(40));
        let mut row = [3.0, 1.0];
        Transform::None.apply(&mut row);
        assert_eq!(row, [3.0, 1.0]);
    }
}
