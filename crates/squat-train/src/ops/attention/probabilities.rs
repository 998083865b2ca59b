//! Probabilities of one head: from scores, into the value product, and back.

use super::{Attention, AttentionShape};
use crate::autograd::{Layout, gemm, multiversion};
use crate::fake_quant::{ActQuant, TokenBits, scale_rows, static_affine};
use squat_kernels::Kernels;
use squat_kernels::attention::query_factor;
use squat_quant::{ActBits, ActScheme, Affine, CodeRange};

/// Causal softmax rows of one head into `out [seq, seq]`, zero above the diagonal.
pub(crate) fn head_probabilities(
    (q, q_scales): (&[f32], &[f32]),
    (k, k_scales): (&[f32], &[f32]),
    shape: AttentionShape,
    out: &mut [f32],
) {
    let (t, d) = (shape.seq, shape.head_dim);
    gemm((t, d, t), 1.0, (q, Layout::Normal), (k, Layout::Transposed), 0.0, out);
    for (i, row) in out.chunks_exact_mut(t).enumerate() {
        let (live, rest) = row.split_at_mut(i + 1);
        Kernels::detect().scaled_softmax(live, query_factor(q_scales[i], d), &k_scales[..=i]);
        rest.fill(0.0);
    }
}

/// How one head's probabilities enter the value product: a matrix `[seq, seq]` of codes (or values) and a factor of each
/// row `[seq]`, for each precision group.
pub(super) struct ValueFactors {
    /// Of the 8-bit group, or everything.
    pub wide: Vec<f32>,
    pub wide_scale: Vec<f32>,
    /// Of the 4-bit group, if there is one.
    pub narrow: Option<(Vec<f32>, Vec<f32>)>,
}

impl Attention {
    /// Whether value scales are folded into the probabilities before these are quantized.
    pub(super) fn folded(&self) -> bool {
        self.quant.probs.is_some()
            && matches!(self.quant.value, Some(ActQuant { scheme: ActScheme::Dynamic, .. }))
    }

    /// Width of each value of a sequence, `[seq]`.
    fn value_bits(&self, batch: usize) -> Vec<ActBits> {
        let t = self.shape.seq;
        let uniform = TokenBits::Uniform(ActBits::A8);
        let bits = self.quant.value.as_ref().map_or(&uniform, |quant| &quant.bits);
        (0..t).map(|j| bits.get(batch * t + j)).collect()
    }

    pub(super) fn value_factors(
        &self,
        probabilities: &[f32],
        v_scales: &[f32],
        batch: usize,
        value_parameters: Option<&[f32]>,
    ) -> ValueFactors {
        let t = self.shape.seq;
        let bits = self.value_bits(batch);
        let mut wide = probabilities.to_vec();
        let mut wide_scale = vec![0f32; t];
        let mut narrow_scale = vec![0f32; t];
        let range = CodeRange::unsigned(self.quant.probs.unwrap_or(8));
        // Fixed probability scale (or none); a static value scale is the same for each row of a precision.
        let probability = self.quant.probs.map(Affine::probability);
        let p_scale = probability.map_or(1.0, |affine| affine.scale);
        for (i, row) in wide.chunks_exact_mut(t).enumerate() {
            let live = &mut row[..=i];
            if self.folded() {
                let (v_scales, bits) = (&v_scales[..=i], &bits[..=i]);
                let scales = Kernels::detect().quantize_probabilities(live, v_scales, bits, range);
                [narrow_scale[i], wide_scale[i]] = scales.map(|scale| scale.unwrap_or(0.0));
                continue;
            }
            let value = |bits: ActBits| value_parameters.map_or(1.0, |p| static_affine(p, bits).scale);
            [narrow_scale[i], wide_scale[i]] = ActBits::ALL.map(|bits| p_scale * value(bits));
            if let Some(affine) = probability {
                center_all(live, affine);
            }
        }
        // Without folded scales or static parameters the values in the product are dequantized already: one group.
        let groups = self.folded() || value_parameters.is_some();
        let narrow = (groups && bits.contains(&ActBits::A4)).then(|| {
            let mut codes = vec![0f32; t * t];
            for (wide, codes) in wide.chunks_exact_mut(t).zip(codes.chunks_exact_mut(t)) {
                for ((wide, code), &bits) in wide.iter_mut().zip(codes).zip(&bits) {
                    if bits == ActBits::A4 {
                        *code = std::mem::take(wide);
                    }
                }
            }
            (codes, narrow_scale)
        });
        ValueFactors { wide, wide_scale, narrow }
    }

    /// The probabilities that the value product really used, `[seq, seq]`.
    pub(super) fn effective(
        &self,
        p: &[f32],
        v_scales: &[f32],
        batch: usize,
        value_parameters: Option<&[f32]>,
        out: &mut [f32],
    ) {
        if self.quant.probs.is_none() {
            out.copy_from_slice(p);
            return;
        }
        let t = self.shape.seq;
        let factors = self.value_factors(p, v_scales, batch, value_parameters);
        out.copy_from_slice(&factors.wide);
        if self.folded() {
            scale_rows(out, t, &factors.wide_scale);
            if let Some((mut codes, scales)) = factors.narrow {
                scale_rows(&mut codes, t, &scales);
                for (out, x) in out.iter_mut().zip(&codes) {
                    *out += x;
                }
            }
            for row in out.chunks_exact_mut(t) {
                for (x, scale) in row.iter_mut().zip(v_scales) {
                    *x /= scale;
                }
            }
        } else {
            if let Some((codes, _)) = factors.narrow {
                for (out, x) in out.iter_mut().zip(&codes) {
                    *out += x;
                }
            }
            let scale = self.quant.probs.map_or(1.0, |bits| Affine::probability(bits).scale);
            scale_rows(out, t, &vec![scale; t]);
        }
    }
}

multiversion! {
    fn center_all(x: &mut [f32], affine: Affine) {
        for x in x {
            *x = affine.centered(*x);
        }
    }
}

multiversion! {
    /// Softmax backward of one row, in place: `ds = p (dp - sum_j dp_j p_j) * scale`.
    pub(crate) fn softmax_backward(p: &[f32], dp: &mut [f32], scale: f32) {
        let mut lanes = [0f32; 16];
        let (chunks, rest) = p.as_chunks::<16>();
        let (dp_chunks, dp_rest) = dp.as_chunks::<16>();
        for (p, dp) in chunks.iter().zip(dp_chunks) {
            for i in 0..16 {
                lanes[i] += p[i] * dp[i];
            }
        }
        for (lane, (p, dp)) in lanes.iter_mut().zip(rest.iter().zip(dp_rest)) {
            *lane += p * dp;
        }
        let dot: f32 = lanes.iter().sum();
        for (p, dp) in p.iter().zip(dp) {
            *dp = *p * (*dp - dot) * scale;
        }
    }
}
