//! Entropy-guided loss: keep the information in quantized queries and keys (METHOD.md section 4).
//!
//! Under a Gaussian the entropy of a code grows with the logarithm of its variance in units of the step. For every
//! (token, head) row r = var(x / s), x / s clipped to the code range, and `L_E = -mean 1/2 log(1 + r)`. The range
//! bounds r by q_max^2, and s moves with the row, so growing norms cannot satisfy the term.

use crate::autograd::{FusedOp, Input, multiversion};
use crate::fake_quant::{ActQuant, row_affine};
use crate::ops::attention::{AttentionShape, HeadRotation, prepare, prepare_backward};
use squat_kernels::Kernels;
use squat_quant::ActScheme;
use std::sync::Arc;

/// `x [tokens, heads * d] (x static parameters [1, 4]) -> [1, 1]`.
#[derive(Debug)]
pub struct CodeEntropy {
    /// Sizes; `heads` is ignored in favour of the field below.
    pub shape: AttentionShape,
    /// Heads of this input: query or key heads.
    pub heads: usize,
    /// Rotary tables.
    pub rope: Arc<HeadRotation>,
    /// Quantizer whose codes are meant.
    pub quant: ActQuant,
}

#[inline(always)]
fn moment_lanes(x: &[f32], inv: f32, low: f32, high: f32, sum: &mut [f64; 16], square: &mut [f64; 16]) {
    for i in 0..x.len() {
        let v = f64::from((x[i] * inv).max(low).min(high));
        sum[i] += v;
        square[i] += v * v;
    }
}

multiversion! {
    /// Mean and variance of `clamp(x * inv, low, high)`.
    fn clipped_moments(x: &[f32], inv: f32, low: f32, high: f32) -> (f32, f32) {
        let (mut sum, mut square) = ([0f64; 16], [0f64; 16]);
        let (chunks, rest) = x.as_chunks::<16>();
        for chunk in chunks {
            moment_lanes(chunk, inv, low, high, &mut sum, &mut square);
        }
        moment_lanes(rest, inv, low, high, &mut sum, &mut square);
        let n = x.len() as f64;
        let mean = sum.iter().sum::<f64>() / n;
        (mean as f32, (square.iter().sum::<f64>() / n - mean * mean).max(0.0) as f32)
    }
}

/// A row's clipping and the factors of its gradient.
#[derive(Clone, Copy)]
struct RowGradient {
    inv: f32,
    low: f32,
    high: f32,
    mean: f32,
    factor: f32,
}

#[inline(always)]
fn gradient_lanes(x: &[f32], r: RowGradient, out: &mut [f32], through_scale: &mut [f32; 16]) {
    for i in 0..x.len() {
        let v = x[i] * r.inv;
        let inside = v >= r.low && v <= r.high;
        let dv = if inside { r.factor * (v - r.mean) } else { 0.0 };
        out[i] = dv * r.inv;
        through_scale[i] += dv * v;
    }
}

multiversion! {
    /// Gradient of one row with its scale held constant; returns that through the scale.
    fn row_gradient(x: &[f32], r: RowGradient, out: &mut [f32]) -> f32 {
        let mut through_scale = [0f32; 16];
        let (chunks, rest) = x.as_chunks::<16>();
        let (out, out_rest) = out.as_chunks_mut::<16>();
        for (chunk, out) in chunks.iter().zip(out) {
            gradient_lanes(chunk, r, out, &mut through_scale);
        }
        gradient_lanes(rest, r, out_rest, &mut through_scale);
        through_scale.iter().sum()
    }
}

/// Position of the first largest magnitude.
fn largest_at(row: &[f32]) -> usize {
    let largest = Kernels::detect().max_abs(row);
    row.iter().position(|x| x.abs() == largest).unwrap_or(0)
}

impl CodeEntropy {
    fn visit(
        &self,
        rotated: &[f32],
        parameters: Option<&[f32]>,
        mut visit: impl FnMut(usize, f32, f32, f32, f32, f32),
    ) {
        let d = self.shape.head_dim;
        for (index, row) in rotated.chunks_exact(d).enumerate() {
            let affine = row_affine(row, &self.quant, self.quant.bits.get(index / self.heads), parameters);
            let low = (affine.range.min - affine.zero_point) as f32;
            let high = (affine.range.max - affine.zero_point) as f32;
            let inv = 1.0 / affine.scale;
            let (mean, variance) = clipped_moments(row, inv, low, high);
            visit(index, inv, low, high, mean, variance);
        }
    }
}

impl FusedOp for CodeEntropy {
    fn name(&self) -> &'static str {
        "entropy"
    }

    fn forward(&self, inputs: &[Input<'_>]) -> (Vec<f32>, Vec<usize>) {
        let parameters = inputs.get(1).map(|input| input.data);
        let x = prepare(inputs[0].data, self.shape, self.heads, Some(&self.rope), None, None);
        let mut total = 0f64;
        let mut rows = 0u32;
        self.visit(&x.rotated, parameters, |_, _, _, _, _, variance| {
            total -= 0.5 * f64::from(1.0 + variance).ln();
            rows += 1;
        });
        (vec![(total / f64::from(rows.max(1))) as f32], vec![1, 1])
    }

    fn backward(&self, inputs: &[Input<'_>], grad: &[f32], _needed: &[bool]) -> Vec<Option<Vec<f32>>> {
        let parameters = inputs.get(1).map(|input| input.data);
        let d = self.shape.head_dim;
        let x = prepare(inputs[0].data, self.shape, self.heads, Some(&self.rope), None, None);
        let mut dx = vec![0f32; x.rotated.len()];
        let weight = grad[0] / (x.rotated.len() / d) as f32;
        let dynamic = self.quant.scheme == ActScheme::Dynamic;
        self.visit(&x.rotated, parameters, |index, inv, low, high, mean, variance| {
            let row = &x.rotated[index * d..(index + 1) * d];
            let out = &mut dx[index * d..(index + 1) * d];
            // dL/dv_i = -1/2 / (1 + r) * 2 (v_i - mean) / d.
            let factor = -weight / ((1.0 + variance) * d as f32);
            let through_scale = row_gradient(row, RowGradient { inv, low, high, mean, factor }, out);
            if dynamic {
                let largest = largest_at(row);
                if row[largest] != 0.0 {
                    // v = x q_max / max|x|: the largest entry also moves every v.
                    out[largest] -= through_scale / row[largest];
                }
            }
        });
        prepare_backward(&x, self.shape, self.heads, Some(&self.rope), None, None, &mut dx);
        // A static step is held constant here: shrinking it would only clip more.
        let rest = inputs.get(1).map(|input| Some(vec![0f32; input.data.len()]));
        std::iter::once(Some(dx)).chain(rest).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake_quant::TokenBits;
    use crate::ops::gradient_check::{noise, worst_errors};
    use squat_quant::ActBits;
    use squat_quant::Clip;

    const SHAPE: AttentionShape = AttentionShape { batch: 1, seq: 3, heads: 2, kv_heads: 2, head_dim: 6 };

    fn op(scheme: ActScheme) -> CodeEntropy {
        let rope = HeadRotation { cos: vec![0.8; 9], sin: vec![0.6; 9], ..HeadRotation::default() };
        let quant = ActQuant { scheme, bits: TokenBits::Uniform(ActBits::A4), clip: Clip::new(0.8).unwrap() };
        CodeEntropy { shape: SHAPE, heads: 2, rope: Arc::new(rope), quant }
    }

    #[test]
    fn gradients_match_numeric_ones() {
        let make = || -> Box<dyn FusedOp> { Box::new(op(ActScheme::Dynamic)) };
        let errors = worst_errors(&make, &[(noise(36, 4), vec![3, 12])], 1e-3);
        assert!(errors[0] < 1e-2, "{errors:?}");
    }

    #[test]
    fn growing_norms_cannot_satisfy_it() {
        let x = noise(36, 5);
        let shape = [3, 12];
        let loss = |x: &[f32]| op(ActScheme::Dynamic).forward(&[Input { data: x, shape: &shape }]).0[0];
        let bigger: Vec<f32> = x.iter().map(|x| x * 64.0).collect();
        assert!((loss(&x) - loss(&bigger)).abs() < 1e-5);
        // Rows that waste their range on one outlier are worse.
        let mut spiky = x.clone();
        for row in spiky.chunks_exact_mut(6) {
            row[0] = 50.0;
        }
        assert!(loss(&spiky) > loss(&x) + 0.3);
    }
}
