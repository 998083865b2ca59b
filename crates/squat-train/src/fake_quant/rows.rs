//! Fake quantizers of activations.

use super::loops::{affine_backward, center, fake_quantize, largest, scale_rows};
use squat_kernels::{Kernels, QuantizedRows, RowQuantizer};
use squat_quant::math::exp;
use squat_quant::{ActBits, ActScheme, Affine, Clip};
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
    /// How far the codes of dynamic rows reach.
    pub clip: Clip,
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
    /// The dequantized values, `[rows, cols]`.
    pub fn dequantize(&self, cols: usize) -> Vec<f32> {
        let mut out = self.codes.clone();
        scale_rows(&mut out, cols, &self.scales);
        out
    }
}

/// Quantizer of one row: static from the point's parameters, or dynamic from the row.
pub fn row_affine(row: &[f32], quant: &ActQuant, bits: ActBits, parameters: Option<&[f32]>) -> Affine {
    match (quant.scheme, parameters) {
        (ActScheme::Static, Some(parameters)) => static_affine(parameters, bits),
        _ => quant.clip.affine(largest(row), bits),
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

/// Rows `[rows, cols]` in the layout of the integer kernels; `None` for static parameters that give no valid quantizer.
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
        _ => RowQuantizer::Dynamic(quant.clip),
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
/// Dynamic rows pass the gradient straight through, clipped values too, and the scale is held constant.
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

#[cfg(test)]
mod tests {
    use super::*;
    use squat_quant::affine::max_abs;

    #[test]
    fn rows_match_the_one_definition_bit_for_bit() {
        let x: Vec<f32> = (0..40).map(|i| ((i * 29 % 31) as f32 - 15.0) * 0.2).collect();
        let bits: Arc<[ActBits]> = [ActBits::A8, ActBits::A4].into();
        let parameters = [-1.0, 2.2, -4.0, -31.7];
        for scheme in [ActScheme::Static, ActScheme::Dynamic] {
            let quant =
                ActQuant { scheme, bits: TokenBits::PerToken(bits.clone()), clip: Clip::new(0.8).unwrap() };
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
                        quant.clip.affine(max_abs(row), bits)
                    }
                };
                assert_eq!(v.to_bits(), affine.fake_quantize(x[i]).to_bits());
            }
        }
    }
}
