//! The paper's packed multiplier: two 4-bit weights in one 16-bit operand share one multiplication by a 4-bit
//! activation (METHOD.md section 6). Measured for comparison; [`crate::Kernels::linear`] does not use it.
//!
//! Weights and activations are made unsigned by adding 8. The weights of channels `c` and `c + 16` share a word, [`SHIFT`]
//! bits apart:
//!
//! ```text
//! (w[c] + w[c + 16] * 2^12) * a = w[c] * a + (w[c + 16] * a) * 2^12
//! ```
//!
//! A product of two 4-bit numbers is at most 225, so the lower sum stays within its 12 bits for [`STEPS`] = 18 products;
//! then the two are separated and added to 32-bit sums. These exceed the true sums by `8 * sum(w + 8) + 8 * sum(a)`, the
//! first term known when the matrix is packed.
//!
//! Measured by `example speed`: faster than the plain loops in scalar code, far slower wherever bytes can be multiplied in
//! vectors. A multiplication of 16-bit operands into 32 bits has half as many lanes as one of bytes, so two products per
//! lane only make up for that, while the weights take twice the memory and the words must be separated. A dot-product
//! instruction computes four products in such a lane, and adds them.

use crate::error::MatrixError;
use crate::matrix::MAX_COLS;
use alloc::vec;
use alloc::vec::Vec;
use squat_quant::{CodeRange, WeightBits};

/// Words per input of a panel; each holds two channels.
const LANES: usize = 16;
/// Distance of the two weights in a word, and width of the lower sum.
const SHIFT: u32 = 12;
/// Products after which the sums must be separated: `18 * 15 * 15 < 2^12`.
const STEPS: usize = ((1 << SHIFT) - 1) / (15 * 15);
/// The offset that makes a 4-bit code unsigned.
const OFFSET: i32 = 8;

/// 4-bit weights `[rows, cols]` in pairs.
#[derive(Clone, Debug)]
pub struct PairedMatrix {
    rows: usize,
    cols: usize,
    /// `[panels of 32 channels, cols]`
    words: Vec<[u16; LANES]>,
    /// `8 * sum(w + 8)` of each channel.
    shifts: Vec<i32>,
}

impl PairedMatrix {
    /// Packs row-major 4-bit codes `[rows, cols]`.
    ///
    /// # Errors
    /// A number of codes other than `rows * cols`, codes outside -8..=7, too many columns.
    pub fn from_codes(rows: usize, cols: usize, codes: &[i8]) -> Result<Self, MatrixError> {
        if cols > MAX_COLS {
            return Err(MatrixError::Columns(MAX_COLS, cols));
        }
        if codes.len() != rows * cols {
            return Err(MatrixError::Codes(rows * cols, codes.len()));
        }
        let panels = rows.div_ceil(2 * LANES);
        let mut words = vec![[0u16; LANES]; panels * cols];
        let mut shifts = vec![0; rows];
        for (index, &code) in codes.iter().enumerate() {
            let (row, col) = (index / cols, index % cols);
            if !WeightBits::W4.range().contains(i32::from(code)) {
                return Err(MatrixError::Code(row, col, code, WeightBits::W4));
            }
            let stored = i32::from(code) + OFFSET;
            let (panel, channel) = (row / (2 * LANES), row % (2 * LANES));
            let place = SHIFT * (channel / LANES) as u32;
            words[panel * cols + col][channel % LANES] |= (stored << place) as u16;
            shifts[row] += OFFSET * stored;
        }
        Ok(Self { rows, cols, words, shifts })
    }

    /// Output channels.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Inputs.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Bytes held.
    pub fn bytes(&self) -> usize {
        self.words.len() * LANES * 2 + self.shifts.len() * 4
    }
}

/// `out[n] = sum_k codes[k] * w[n, k]`, exact, for 4-bit codes.
///
/// # Panics
/// If the length of `codes` is not the number of columns, or that of `out` not the number of rows, or a code is outside
/// -8..=7.
#[inline(always)]
pub fn product(matrix: &PairedMatrix, codes: &[i8], out: &mut [i32]) {
    assert!(codes.len() == matrix.cols && out.len() == matrix.rows, "shapes of a product");
    let range = CodeRange::signed(4);
    let mut fits = true;
    for &code in codes {
        fits &= range.contains(i32::from(code));
    }
    assert!(fits, "expected codes in {}..={}", range.min, range.max);
    let sum: i32 = codes.iter().map(|&code| i32::from(code)).sum();
    if matrix.cols == 0 {
        out.fill(0);
        return;
    }
    let panels = matrix.words.chunks_exact(matrix.cols);
    for ((panel, out), shifts) in panels.zip(out.chunks_mut(2 * LANES)).zip(matrix.shifts.chunks(2 * LANES)) {
        let (mut low, mut high) = ([0u32; LANES], [0u32; LANES]);
        for (words, codes) in panel.chunks(STEPS).zip(codes.chunks(STEPS)) {
            let mut pairs = [0u32; LANES];
            for (words, &code) in words.iter().zip(codes) {
                let a = (i32::from(code) + OFFSET) as u16;
                for l in 0..LANES {
                    // Both operands have 16 bits: one widening multiplication on CPUs that have it.
                    pairs[l] += u32::from(words[l]) * u32::from(a);
                }
            }
            for l in 0..LANES {
                low[l] += pairs[l] & ((1 << SHIFT) - 1);
                high[l] += pairs[l] >> SHIFT;
            }
        }
        let sums = low.iter().chain(&high);
        for ((out, &stored), &shift) in out.iter_mut().zip(sums).zip(shifts) {
            *out = stored as i32 - shift - OFFSET * sum;
        }
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use crate::Kernels;
    use proptest::prelude::*;
    use std::string::ToString;

    fn check(rows: usize, cols: usize, weights: &[i8], codes: &[i8]) -> Result<(), TestCaseError> {
        let matrix = PairedMatrix::from_codes(rows, cols, weights).unwrap();
        let want: Vec<i32> = (0..rows)
            .map(|n| (0..cols).map(|k| i32::from(codes[k]) * i32::from(weights[n * cols + k])).sum())
            .collect();
        for kernels in Kernels::available() {
            let mut got = vec![-1; rows];
            kernels.paired_product(&matrix, codes, &mut got);
            prop_assert_eq!(&got, &want, "{}", kernels.name());
        }
        Ok(())
    }

    proptest! {
        #[test]
        fn exact((rows, cols, weights, codes) in (0usize..70, 0usize..60).prop_flat_map(|(rows, cols)| {
            let code = prop_oneof![-8i8..8, Just(-8i8), Just(7)];
            let weights = prop::collection::vec(code.clone(), rows * cols);
            (Just(rows), Just(cols), weights, prop::collection::vec(code, cols))
        })) {
            check(rows, cols, &weights, &codes)?;
        }
    }

    #[test]
    fn ends_of_the_ranges_in_long_rows() {
        for (w, a) in [(7, 7), (-8, -8), (7, -8), (-8, 7)] {
            check(33, 1000, &[w; 33 * 1000], &[a; 1000]).unwrap();
        }
    }

    #[test]
    fn other_codes_are_refused() {
        let error = PairedMatrix::from_codes(1, 2, &[7, 8]).unwrap_err();
        assert_eq!(error, MatrixError::Code(0, 1, 8, WeightBits::W4));
        assert!(PairedMatrix::from_codes(1, 2, &[7]).unwrap_err().to_string().contains("expected 2"));
    }
}
