//! Fake quantizers on host memory: codes kept as exact integers in `f32`, scales apart.
//!
//! The training forward multiplies integer codes and applies the scales to the sum, as the deployed integer product
//! does (METHOD.md section 2): `y[m,n] = (sum_k qa[m,k] * qw[n,k] as f32 * s_a[m]) * s_w[n]`. Sums of integers below
//! 2^24 are exact in `f32` in any order, so the fake-quantized model and the packed one agree bit for bit.

use crate::host::multiversion;
use squat_kernels::{Kernels, PackedMatrix, QuantizedRows, RowQuantizer};
use squat_quant::affine::max_abs;
use squat_quant::math::exp;
use squat_quant::{ActBits, ActScheme, Affine, WeightScheme, dynamic_scale};
use std::sync::Arc;

/// Activation bits of each token of a batch, in order.
#[derive(Clone, Debug, PartialEq)]
pub enum TokenBits {
    /// The same for all.
    Uniform(ActBits),
    /// One entry for each token.
    PerToken(Arc<[ActBits]>),
}

impl TokenBits {
    /// Bits of token `index`.
    pub fn get(&self, index: usize) -> ActBits {
        match self {
            Self::Uniform(bits) => *bits,
            Self::PerToken(bits) => bits[index],
        }
    }
}

/// How an activation point is quantized in one call.
#[derive(Clone, Debug, PartialEq)]
pub struct ActQuant {
    /// Where scales come from.
    pub scheme: ActScheme,
    /// Bits of each token.
    pub bits: TokenBits,
}

/// Length of the learned parameters of a static point: `[log_scale_4, zero_point_4, log_scale_8, zero_point_8]`.
pub const STATIC_PARAMETERS: usize = 4;

/// The static quantizer of `bits` bits in a point's learned parameters.
pub fn static_affine(parameters: &[f32], bits: ActBits) -> Affine {
    let at = 2 * bits.index();
    let range = bits.range();
    let zero_point = squat_quant::math::round_ties_even(parameters[at + 1].max(-1e6).min(1e6)) as i32;
    Affine { scale: exp(parameters[at]), zero_point: zero_point.clamp(range.min, range.max), range }
}

/// Quantized rows: `value ~ scale[row] * codes[row][i]`, codes centered on their zero point.
#[derive(Debug)]
pub struct Rows {
    /// Centered codes, exact integers, `[rows, cols]`.
    pub codes: Vec<f32>,
    /// Scale of each row.
    pub scales: Vec<f32>,
}

impl Rows {
    /// Values that the codes stand for, `[rows, cols]`.
    pub fn dequantize(&self, cols: usize) -> Vec<f32> {
        let mut out = self.codes.clone();
        scale_rows(&mut out, cols, &self.scales);
        out
    }
}

multiversion! {
    fn center(x: &[f32], affine: Affine, out: &mut [f32]) {
        for (out, &x) in out.iter_mut().zip(x) {
            *out = affine.centered(x);
        }
    }
}

multiversion! {
    /// Multiplies row `i` of `x` by `scales[i]`.
    pub fn scale_rows(x: &mut [f32], cols: usize, scales: &[f32]) {
        for (row, &scale) in x.chunks_exact_mut(cols).zip(scales) {
            for x in row {
                *x *= scale;
            }
        }
    }
}

multiversion! {
    fn largest(x: &[f32]) -> f32 {
        max_abs(x)
    }
}

/// Quantizer of one row: static from the point's parameters, or dynamic from the row.
pub fn row_affine(row: &[f32], quant: &ActQuant, bits: ActBits, parameters: Option<&[f32]>) -> Affine {
    match (quant.scheme, parameters) {
        (ActScheme::Static, Some(parameters)) => static_affine(parameters, bits),
        _ => Affine::symmetric(dynamic_scale(largest(row), bits.range()), bits.range()),
    }
}

/// Quantizes `[rows, cols]` values; row `r` belongs to token `r / rows_per_token`.
pub fn quantize_rows(
    x: &[f32],
    cols: usize,
    quant: &ActQuant,
    parameters: Option<&[f32]>,
    rows_per_token: usize,
) -> Rows {
    let mut codes = vec![0f32; x.len()];
    let mut scales = Vec::with_capacity(x.len() / cols);
    for (index, (row, out)) in x.chunks_exact(cols).zip(codes.chunks_exact_mut(cols)).enumerate() {
        let affine = row_affine(row, quant, quant.bits.get(index / rows_per_token), parameters);
        center(row, affine, out);
        scales.push(affine.scale);
    }
    Rows { codes, scales }
}

/// Gradients of 16 elements, or of the rest: `grad` becomes that of `x`, those of scale and zero point are added.
#[inline(always)]
fn gradient_lanes(x: &[f32], affine: Affine, grad: &mut [f32], scale: &mut [f32; 16], zero: &mut [f32; 16]) {
    for i in 0..x.len() {
        let (dx, ds, dz) = affine.gradient(x[i]);
        scale[i] += grad[i] * ds;
        zero[i] += grad[i] * dz;
        grad[i] *= dx;
    }
}

multiversion! {
    /// In place: `grad` becomes the gradient of `x`; returns the summed gradients of scale and zero point.
    fn affine_backward(x: &[f32], affine: Affine, grad: &mut [f32]) -> (f32, f32) {
        let (mut scale, mut zero) = ([0f32; 16], [0f32; 16]);
        let (x, x_rest) = x.as_chunks::<16>();
        let (grad, grad_rest) = grad.as_chunks_mut::<16>();
        for (x, grad) in x.iter().zip(grad) {
            gradient_lanes(x, affine, grad, &mut scale, &mut zero);
        }
        gradient_lanes(x_rest, affine, grad_rest, &mut scale, &mut zero);
        (scale.iter().sum(), zero.iter().sum())
    }
}

multiversion! {
    fn fake_quantize(x: &[f32], affine: Affine, out: &mut [f32]) {
        for (out, &x) in out.iter_mut().zip(x) {
            *out = affine.fake_quantize(x);
        }
    }
}

/// The values of [`Rows::dequantize`] after [`quantize_rows`], bit for bit, in one pass.
pub fn fake_quantize_rows(
    x: &[f32],
    cols: usize,
    quant: &ActQuant,
    parameters: Option<&[f32]>,
    rows_per_token: usize,
    out: &mut [f32],
) {
    for (index, (row, out)) in x.chunks_exact(cols).zip(out.chunks_exact_mut(cols)).enumerate() {
        let affine = row_affine(row, quant, quant.bits.get(index / rows_per_token), parameters);
        fake_quantize(row, affine, out);
    }
}

/// The values of [`QuantizedWeight::dequantize`] after [`quantize_weight`], bit for bit, in one pass.
pub fn fake_quantize_weight(
    weight: &[f32],
    cols: usize,
    scheme: WeightScheme,
    log_scales: &[f32],
    out: &mut [f32],
) {
    for_each_group(weight.len(), cols, scheme, |at, index| {
        let affine = Affine::symmetric(exp(log_scales[index]), scheme.bits.range());
        fake_quantize(&weight[at.clone()], affine, &mut out[at]);
    });
}

/// A weight `[rows, cols]` as the integer kernels take it; `None` for scales that are no scales.
pub fn pack_weight(
    weight: &[f32],
    rows: usize,
    cols: usize,
    scheme: WeightScheme,
    log_scales: &[f32],
) -> Option<PackedMatrix> {
    let scales: Vec<f32> = log_scales.iter().map(|&log| exp(log)).collect();
    Kernels::detect().quantize_matrix(rows, cols, scheme, weight, &scales).ok()
}

/// Rows `[rows, cols]` as the integer kernels take them; `None` for static parameters that are no quantizer.
pub fn pack_rows(
    x: &[f32],
    cols: usize,
    quant: &ActQuant,
    parameters: Option<&[f32]>,
) -> Option<QuantizedRows> {
    let quantizer = match (quant.scheme, parameters) {
        (ActScheme::Static, Some(parameters)) => {
            RowQuantizer::fixed(ActBits::ALL.map(|bits| static_affine(parameters, bits))).ok()?
        }
        _ => RowQuantizer::Dynamic,
    };
    let uniform;
    let bits: &[ActBits] = match &quant.bits {
        TokenBits::Uniform(bits) => {
            uniform = [*bits];
            &uniform
        }
        TokenBits::PerToken(bits) => bits,
    };
    let mut rows = QuantizedRows::new();
    Kernels::detect().quantize_rows(&mut rows, x, cols, bits, &quantizer);
    Some(rows)
}

/// Backward of [`quantize_rows`]: turns the gradient of the dequantized values into that of `x`, in place, and returns
/// the gradient of the static parameters.
///
/// Dynamic rows pass the gradient straight through: nothing is clipped, and the scale is held constant.
pub fn quantize_rows_backward(
    x: &[f32],
    cols: usize,
    quant: &ActQuant,
    parameters: Option<&[f32]>,
    rows_per_token: usize,
    grad: &mut [f32],
) -> Option<Vec<f32>> {
    let parameters = match (quant.scheme, parameters) {
        (ActScheme::Static, Some(parameters)) => parameters,
        _ => return None,
    };
    let mut out = vec![0f32; STATIC_PARAMETERS];
    for (index, (row, grad)) in x.chunks_exact(cols).zip(grad.chunks_exact_mut(cols)).enumerate() {
        let bits = quant.bits.get(index / rows_per_token);
        let affine = static_affine(parameters, bits);
        let (scale, zero) = affine_backward(row, affine, grad);
        // d/d log s = s d/ds: the step is learned in log space, so it stays positive.
        out[2 * bits.index()] += scale * affine.scale;
        out[2 * bits.index() + 1] += zero;
    }
    Some(out)
}

/// A fake-quantized weight `[rows, cols]`: integer codes and the scales of its scheme.
#[derive(Debug)]
pub struct QuantizedWeight {
    /// Codes as exact integers in `f32`, `[rows, cols]`.
    pub codes: Vec<f32>,
    /// Scales, as many as the scheme has.
    pub scales: Vec<f32>,
}

/// Quantizes a weight with the scales `exp(log_scale)`.
pub fn quantize_weight(
    weight: &[f32],
    cols: usize,
    scheme: WeightScheme,
    log_scales: &[f32],
) -> QuantizedWeight {
    let scales: Vec<f32> = log_scales.iter().map(|&log| exp(log)).collect();
    let mut codes = vec![0f32; weight.len()];
    for_each_group(weight.len(), cols, scheme, |at, index| {
        center(&weight[at.clone()], Affine::symmetric(scales[index], scheme.bits.range()), &mut codes[at]);
    });
    QuantizedWeight { codes, scales }
}

/// Calls `visit(range of elements, index of their scale)` for every run of weights with one scale.
fn for_each_group(
    len: usize,
    cols: usize,
    scheme: WeightScheme,
    mut visit: impl FnMut(std::ops::Range<usize>, usize),
) {
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

impl QuantizedWeight {
    /// Values that the codes stand for.
    pub fn dequantize(&self, cols: usize, scheme: WeightScheme) -> Vec<f32> {
        let mut out = self.codes.clone();
        let len = out.len();
        for_each_group(len, cols, scheme, |at, index| {
            scale_rows(&mut out[at.clone()], at.len(), &self.scales[index..=index])
        });
        out
    }
}

/// Backward of [`quantize_weight`] and dequantizing: `grad` becomes the gradient of the weight, in place; returns the
/// gradient of the log scales.
pub fn quantize_weight_backward(
    weight: &[f32],
    cols: usize,
    scheme: WeightScheme,
    log_scales: &[f32],
    grad: &mut [f32],
) -> Vec<f32> {
    let mut out = vec![0f32; log_scales.len()];
    let len = weight.len();
    for_each_group(len, cols, scheme, |at, index| {
        let affine = Affine::symmetric(exp(log_scales[index]), scheme.bits.range());
        let (scale, _) = affine_backward(&weight[at.clone()], affine, &mut grad[at]);
        out[index] += scale * affine.scale;
    });
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use squat_quant::{Granularity, WeightBits};

    #[test]
    fn weights_match_the_one_definition_bit_for_bit() {
        let (rows, cols) = (3, 10);
        let weight: Vec<f32> = (0..rows * cols).map(|i| ((i * 37 % 23) as f32 - 11.0) * 0.07).collect();
        for granularity in [Granularity::PerTensor, Granularity::PerChannel, Granularity::PerGroup(4)] {
            for bits in WeightBits::ALL {
                let scheme = WeightScheme { bits, granularity };
                let logs: Vec<f32> =
                    (0..scheme.num_scales(rows, cols)).map(|i| -2.0 - 0.1 * i as f32).collect();
                let quantized = quantize_weight(&weight, cols, scheme, &logs);
                let values = quantized.dequantize(cols, scheme);
                for (i, &w) in weight.iter().enumerate() {
                    let scale = exp(logs[scheme.scale_index(i / cols, i % cols, cols)]);
                    let want = Affine::symmetric(scale, bits.range()).fake_quantize(w);
                    assert_eq!(values[i].to_bits(), want.to_bits(), "{scheme:?} {i}");
                }
                let mut fused = vec![0f32; weight.len()];
                fake_quantize_weight(&weight, cols, scheme, &logs, &mut fused);
                assert!(fused.iter().zip(&values).all(|(a, b)| a.to_bits() == b.to_bits()));
            }
        }
    }

    #[test]
    fn rows_match_the_one_definition_bit_for_bit() {
        let x: Vec<f32> = (0..40).map(|i| ((i * 29 % 31) as f32 - 15.0) * 0.2).collect();
        let bits: Arc<[ActBits]> = [ActBits::A8, ActBits::A4].into();
        let parameters = [-1.0, 2.2, -4.0, -31.7];
        for scheme in [ActScheme::Static, ActScheme::Dynamic] {
            let quant = ActQuant { scheme, bits: TokenBits::PerToken(bits.clone()) };
            let rows = quantize_rows(&x, 10, &quant, Some(&parameters), 2);
            let mut fused = vec![0f32; x.len()];
            fake_quantize_rows(&x, 10, &quant, Some(&parameters), 2, &mut fused);
            for (i, &v) in rows.dequantize(10).iter().enumerate() {
                assert_eq!(v.to_bits(), fused[i].to_bits());
                let bits = bits[i / 20];
                let affine = match scheme {
                    ActScheme::Static => static_affine(&parameters, bits),
                    ActScheme::Dynamic => {
                        let row = &x[i / 10 * 10..i / 10 * 10 + 10];
                        Affine::symmetric(dynamic_scale(max_abs(row), bits.range()), bits.range())
                    }
                };
                assert_eq!(v.to_bits(), affine.fake_quantize(x[i]).to_bits());
            }
        }
    }
}
