//! Fake-quantized weights.

use super::loops::{affine_backward, center, fake_quantize, scale_rows};
use squat_kernels::{Kernels, PackedMatrix};
use squat_quant::{Affine, WeightScheme};
use std::ops::Range;

/// A weight `[rows, cols]`, row-major, and the scheme that it is quantized with.
#[derive(Clone, Copy, Debug)]
pub struct Weight<'a> {
    /// Values in full precision.
    pub values: &'a [f32],
    /// Length of a row.
    pub cols: usize,
    /// Bits and granularity.
    pub scheme: WeightScheme,
}

/// A fake-quantized weight: integer codes, and the scales of its scheme.
#[derive(Debug)]
pub struct QuantizedWeight<'a> {
    /// Codes as exact integers in `f32`, `[rows, cols]`.
    pub codes: Vec<f32>,
    /// Scales, as many as the scheme has.
    pub scales: &'a [f32],
    cols: usize,
    scheme: WeightScheme,
}

impl<'a> Weight<'a> {
    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.values.len() / self.cols
    }

    /// Number of scales.
    pub fn num_scales(&self) -> usize {
        self.scheme.num_scales(self.rows(), self.cols)
    }

    /// Number of weights that share each scale.
    pub fn weights_per_scale(&self) -> Vec<usize> {
        let mut counts = vec![0; self.num_scales()];
        for_each_run(self.values.len(), self.cols, self.scheme, |at, index| counts[index] += at.len());
        counts
    }

    fn affine(&self, scale: f32) -> Affine {
        Affine::symmetric(scale, self.scheme.bits.range())
    }

    /// The codes that these scales give.
    pub fn quantize<'s>(&self, scales: &'s [f32]) -> QuantizedWeight<'s> {
        let mut codes = vec![0f32; self.values.len()];
        for_each_run(codes.len(), self.cols, self.scheme, |at, index| {
            center(&self.values[at.clone()], self.affine(scales[index]), &mut codes[at]);
        });
        QuantizedWeight { codes, scales, cols: self.cols, scheme: self.scheme }
    }

    /// The values of [`QuantizedWeight::dequantize`] after [`Self::quantize`], bit for bit, in one pass.
    pub fn fake_quantize(&self, scales: &[f32], out: &mut [f32]) {
        for_each_run(self.values.len(), self.cols, self.scheme, |at, index| {
            fake_quantize(&self.values[at.clone()], self.affine(scales[index]), &mut out[at]);
        });
    }

    /// The codes in the layout of the integer kernels; `None` for scales that are not finite and positive.
    pub fn pack(&self, scales: &[f32]) -> Option<PackedMatrix> {
        Kernels::detect().quantize_matrix(self.rows(), self.cols, self.scheme, self.values, scales).ok()
    }

    /// Straight-through backward (METHOD.md section 2): turns the gradient of the dequantized values into that of the
    /// weight, in place, and passes `(index, d scale[index])` to `add` for every run of weights with one scale. A scale
    /// of several rows gets one call for each row, in order.
    pub fn straight_through(&self, scales: &[f32], grad: &mut [f32], mut add: impl FnMut(usize, f32)) {
        for_each_run(self.values.len(), self.cols, self.scheme, |at, index| {
            let affine = self.affine(scales[index]);
            let (scale, _) = affine_backward(&self.values[at.clone()], affine, &mut grad[at]);
            add(index, scale);
        });
    }
}

impl QuantizedWeight<'_> {
    /// The dequantized values.
    pub fn dequantize(&self) -> Vec<f32> {
        let mut out = self.codes.clone();
        for_each_run(self.codes.len(), self.cols, self.scheme, |at, index| {
            scale_rows(&mut out[at.clone()], at.len(), &self.scales[index..=index]);
        });
        out
    }
}

/// Calls `visit(range of elements, index of their scale)` for every run of weights with one scale.
fn for_each_run(len: usize, cols: usize, scheme: WeightScheme, mut visit: impl FnMut(Range<usize>, usize)) {
    let group = scheme.group_len(cols);
    for row in 0..len / cols {
        let mut col = 0;
        while col < cols {
            let end = (col + group).min(cols);
            visit(row * cols + col..row * cols + end, scheme.scale_index(row, col, cols));
            col = end;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use squat_quant::{Granularity, WeightBits};

    #[test]
    fn weights_match_the_one_definition_bit_for_bit() {
        let (rows, cols) = (3, 10);
        let values: Vec<f32> = (0..rows * cols).map(|i| ((i * 37 % 23) as f32 - 11.0) * 0.07).collect();
        for granularity in [Granularity::PerTensor, Granularity::PerChannel, Granularity::PerGroup(4)] {
            for bits in WeightBits::ALL {
                let scheme = WeightScheme { bits, granularity };
                let weight = Weight { values: &values, cols, scheme };
                let scales: Vec<f32> =
                    (0..weight.num_scales()).map(|i| 0.13 * 0.9f32.powi(i as i32)).collect();
                let dequantized = weight.quantize(&scales).dequantize();
                for (i, &w) in values.iter().enumerate() {
                    let scale = scales[scheme.scale_index(i / cols, i % cols, cols)];
                    let want = Affine::symmetric(scale, bits.range()).fake_quantize(w);
                    assert_eq!(dequantized[i].to_bits(), want.to_bits(), "{scheme:?} {i}");
                }
                let mut fused = vec![0f32; values.len()];
                weight.fake_quantize(&scales, &mut fused);
                assert!(fused.iter().zip(&dequantized).all(|(a, b)| a.to_bits() == b.to_bits()));
                assert_eq!(weight.weights_per_scale().iter().sum::<usize>(), values.len());
            }
        }
    }
}
