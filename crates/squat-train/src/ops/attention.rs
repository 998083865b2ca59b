//! Causal attention with quantized queries, keys, probabilities and values (METHOD.md sections 2, 3, 5).
//!
//! One operation from the projections to the input of the output projection: RoPE, quantization, scores, softmax,
//! value product. It follows the engine's integer computation in `f32`, in the same order, so both give the same bits.

use crate::autograd::{FusedOp, Input, Layout, gemm, integer_gemm, multiversion};
use crate::fake_quant::{ActQuant, Rows, TokenBits, quantize_rows, quantize_rows_backward, static_affine};
use squat_kernels::Kernels;
use squat_quant::affine::max_abs;
use squat_quant::token_policy::mean_over_heads;
use squat_quant::{ActBits, ActScheme, Affine, CodeRange, dynamic_scale};
use std::sync::{Arc, Mutex};

/// Sizes of an attention call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AttentionShape {
    /// Sequences.
    pub batch: usize,
    /// Tokens of each sequence.
    pub seq: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; divides `heads`.
    pub kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
}

/// Rotary tables: `cos`, `sin`, each `[positions, head_dim / 2]`.
#[derive(Debug)]
pub struct RopeTables {
    /// Cosines.
    pub cos: Vec<f32>,
    /// Sines.
    pub sin: Vec<f32>,
}

/// What attention quantizes.
#[derive(Clone, Debug, Default)]
pub struct AttentionQuant {
    /// Queries after RoPE.
    pub query: Option<ActQuant>,
    /// Keys after RoPE.
    pub key: Option<ActQuant>,
    /// Values.
    pub value: Option<ActQuant>,
    /// Bits of the attention probabilities.
    pub probs: Option<u32>,
}

/// Intermediate results of the forward pass for other parts of the model. The fused form always fills both; the tensor form
/// fills those that are wanted, because fetching either waits for the device.
#[derive(Debug, Default)]
pub struct AttentionTaps {
    /// Whether `sink_probs` is wanted.
    pub wants_sink: bool,
    /// Whether `probabilities` are wanted.
    pub wants_probabilities: bool,
    /// Mean over heads of each token's softmax row at column 0, `[batch * seq]`.
    pub sink_probs: Vec<f32>,
    /// Softmax rows before quantization, `[batch, heads, seq, seq]`, zero above the diagonal.
    pub probabilities: Arc<Vec<f32>>,
}

/// `q [tokens, heads * d] x k [tokens, kv_heads * d] x v [tokens, kv_heads * d] -> [tokens, heads * d]`.
///
/// After q, k, v come the static parameters `[1, 4]` of query, key and value, of those that are static.
#[derive(Debug)]
pub struct Attention {
    /// Sizes.
    pub shape: AttentionShape,
    /// Rotary tables for at least `seq` positions.
    pub rope: Arc<RopeTables>,
    /// Quantizers.
    pub quant: AttentionQuant,
    /// Where the forward leaves probabilities and sink scores.
    pub taps: Arc<Mutex<AttentionTaps>>,
}

/// Queries or keys after RoPE and quantization, token-major `[tokens, heads, d]`.
pub(crate) struct Prepared {
    /// Rotated values.
    pub rotated: Vec<f32>,
    /// Codes and scales of each (token, head) row; scale 1 and the values themselves if unquantized.
    pub rows: Rows,
}

multiversion! {
    fn rotate_back(row: &mut [f32], cos: &[f32], sin: &[f32]) {
        let half = row.len() / 2;
        let (a, b) = row.split_at_mut(half);
        for i in 0..half {
            let (x, y) = (a[i], b[i]);
            a[i] = x * cos[i] + y * sin[i];
            b[i] = y * cos[i] - x * sin[i];
        }
    }
}

/// Rotates and quantizes `[tokens, heads * d]`.
pub(crate) fn prepare(
    x: &[f32],
    shape: AttentionShape,
    heads: usize,
    rope: Option<&RopeTables>,
    quant: Option<&ActQuant>,
    parameters: Option<&[f32]>,
) -> Prepared {
    let d = shape.head_dim;
    let mut rotated = x.to_vec();
    if let Some(rope) = rope {
        for (token, heads) in rotated.chunks_exact_mut(heads * d).enumerate() {
            let at = token % shape.seq * (d / 2);
            let (cos, sin) = (&rope.cos[at..at + d / 2], &rope.sin[at..at + d / 2]);
            for head in heads.chunks_exact_mut(d) {
                Kernels::detect().rope(head, cos, sin);
            }
        }
    }
    let rows = match quant {
        Some(quant) => quantize_rows(&rotated, d, quant, parameters, heads),
        None => Rows { codes: rotated.clone(), scales: vec![1.0; x.len() / d] },
    };
    Prepared { rotated, rows }
}

/// Backward of [`prepare`], from the gradient of the dequantized rows, in place; returns that of the parameters.
pub(crate) fn prepare_backward(
    prepared: &Prepared,
    shape: AttentionShape,
    heads: usize,
    rope: Option<&RopeTables>,
    quant: Option<&ActQuant>,
    parameters: Option<&[f32]>,
    grad: &mut [f32],
) -> Option<Vec<f32>> {
    let d = shape.head_dim;
    let found =
        quant.and_then(|quant| quantize_rows_backward(&prepared.rotated, d, quant, parameters, heads, grad));
    if let Some(rope) = rope {
        for (token, heads) in grad.chunks_exact_mut(heads * d).enumerate() {
            let at = token % shape.seq * (d / 2);
            for head in heads.chunks_exact_mut(d) {
                rotate_back(head, &rope.cos[at..at + d / 2], &rope.sin[at..at + d / 2]);
            }
        }
    }
    found
}

/// Rows of one head, contiguous: `[seq, d]` from token-major `[tokens, heads, d]`.
pub(crate) fn gather(
    x: &[f32],
    shape: AttentionShape,
    heads: usize,
    batch: usize,
    head: usize,
    out: &mut [f32],
) {
    let d = shape.head_dim;
    for (t, out) in out.chunks_exact_mut(d).enumerate() {
        let at = ((batch * shape.seq + t) * heads + head) * d;
        out.copy_from_slice(&x[at..at + d]);
    }
}

/// Adds contiguous rows of one head back to token-major storage.
pub(crate) fn scatter_add(
    rows: &[f32],
    shape: AttentionShape,
    heads: usize,
    batch: usize,
    head: usize,
    out: &mut [f32],
) {
    let d = shape.head_dim;
    for (t, row) in rows.chunks_exact(d).enumerate() {
        let at = ((batch * shape.seq + t) * heads + head) * d;
        for (out, x) in out[at..at + d].iter_mut().zip(row) {
            *out += x;
        }
    }
}

/// Scales of one head's rows, `[seq]`.
pub(crate) fn gather_scales(
    scales: &[f32],
    shape: AttentionShape,
    heads: usize,
    batch: usize,
    head: usize,
) -> Vec<f32> {
    (0..shape.seq).map(|t| scales[(batch * shape.seq + t) * heads + head]).collect()
}

multiversion! {
    /// `(sum * (s_q * 1/sqrt(d))) * s_k[j]`: the engine's order.
    fn scale_scores(row: &mut [f32], query: f32, keys: &[f32]) {
        for (score, &key) in row.iter_mut().zip(keys) {
            *score = (*score * query) * key;
        }
    }
}

/// `1 / sqrt(head_dim)`.
pub(crate) fn inv_sqrt_dim(head_dim: usize) -> f32 {
    1.0 / (head_dim as f32).sqrt()
}

/// Causal softmax rows of one head into `out [seq, seq]`, zero above the diagonal.
pub(crate) fn head_probabilities(
    (q, q_scales): (&[f32], &[f32]),
    (k, k_scales): (&[f32], &[f32]),
    shape: AttentionShape,
    out: &mut [f32],
) {
    let (t, d) = (shape.seq, shape.head_dim);
    gemm((t, d, t), 1.0, (q, Layout::Normal), (k, Layout::Transposed), 0.0, out);
    let inv = inv_sqrt_dim(d);
    for (i, row) in out.chunks_exact_mut(t).enumerate() {
        let (live, rest) = row.split_at_mut(i + 1);
        scale_scores(live, q_scales[i] * inv, k_scales);
        Kernels::detect().softmax(live);
        rest.fill(0.0);
    }
}

/// How one head's probabilities enter the value product: a float or integer matrix and row factors for each
/// precision group, and their values.
struct ValueFactors {
    /// `[seq, seq]` codes times 1, for the 8-bit group (or everything).
    wide: Vec<f32>,
    /// Row factor of `wide`.
    wide_scale: Vec<f32>,
    /// The same for the 4-bit group, if there is one.
    narrow: Option<(Vec<f32>, Vec<f32>)>,
}

impl Attention {
    /// Static parameters of query, key and value, in this order, where they are static.
    fn parameters<'a>(&self, inputs: &[Input<'a>]) -> [Option<&'a [f32]>; 3] {
        let mut rest = inputs[3..].iter().map(|input| input.data);
        [&self.quant.query, &self.quant.key, &self.quant.value].map(|quant| match quant {
            Some(ActQuant { scheme: ActScheme::Static, .. }) => rest.next(),
            _ => None,
        })
    }

    fn token_bits(&self) -> TokenBits {
        self.quant.value.as_ref().map_or(TokenBits::Uniform(ActBits::A8), |quant| quant.bits.clone())
    }

    /// Whether value scales are folded into the probabilities before these are quantized.
    fn folded(&self) -> bool {
        self.quant.probs.is_some()
            && matches!(self.quant.value, Some(ActQuant { scheme: ActScheme::Dynamic, .. }))
    }

    fn value_factors(
        &self,
        probabilities: &[f32],
        v_scales: &[f32],
        batch: usize,
        value_parameters: Option<&[f32]>,
    ) -> ValueFactors {
        let t = self.shape.seq;
        let bits = self.token_bits();
        let narrow_at = |j: usize| bits.get(batch * t + j) == ActBits::A4;
        let any_narrow = (0..t).any(narrow_at);
        let mut wide = vec![0f32; t * t];
        let mut wide_scale = vec![0f32; t];
        let mut narrow = any_narrow.then(|| (vec![0f32; t * t], vec![0f32; t]));
        let range = self.quant.probs.map(CodeRange::unsigned);
        // A value's scale where the group counts it, 0 where the other does: what is 0 there has code 0 and is never
        // the largest.
        let group = |narrow: bool| -> Vec<f32> {
            (0..t).map(|j| if narrow_at(j) == narrow { v_scales[j] } else { 0.0 }).collect()
        };
        let (wide_scales, narrow_scales) = (group(false), group(true));
        for i in 0..t {
            let row = &probabilities[i * t..i * t + i + 1];
            if self.folded() {
                let range = range.unwrap_or(CodeRange::unsigned(8));
                let live = i * t..i * t + i + 1;
                wide_scale[i] = fold_row(row, &wide_scales[..=i], range, &mut wide[live.clone()]);
                if let Some((codes, scales)) = &mut narrow {
                    scales[i] = fold_row(row, &narrow_scales[..=i], range, &mut codes[live]);
                }
                continue;
            }
            // Fixed probability scale (or none); a static value scale is the same for each row of a precision.
            let probability = self.quant.probs.map(Affine::probability);
            let p_scale = probability.map_or(1.0, |affine| affine.scale);
            let value = |bits: ActBits| value_parameters.map_or(1.0, |p| static_affine(p, bits).scale);
            wide_scale[i] = p_scale * value(ActBits::A8);
            // Without static parameters the values in the product are dequantized already.
            if let (Some((codes, scales)), true) = (&mut narrow, value_parameters.is_some()) {
                scales[i] = p_scale * value(ActBits::A4);
                for j in 0..=i {
                    let to = if narrow_at(j) { &mut *codes } else { &mut wide };
                    to[i * t + j] = probability.map_or(row[j], |affine| affine.centered(row[j]));
                }
            } else {
                let out = &mut wide[i * t..i * t + i + 1];
                match probability {
                    Some(affine) => center_all(row, affine, out),
                    None => out.copy_from_slice(row),
                }
            }
        }
        ValueFactors { wide, wide_scale, narrow }
    }

    /// Codes (or values) of one head's values as they enter the product, `[seq, d]`.
    fn value_operand(&self, prepared: &Prepared, batch: usize, head: usize, out: &mut [f32]) {
        gather(&prepared.rows.codes, self.shape, self.shape.kv_heads, batch, head, out);
        let integer =
            self.folded() || matches!(self.quant.value, Some(ActQuant { scheme: ActScheme::Static, .. }));
        if !integer {
            let scales = gather_scales(&prepared.rows.scales, self.shape, self.shape.kv_heads, batch, head);
            crate::fake_quant::scale_rows(out, self.shape.head_dim, &scales);
        }
    }
}

multiversion! {
    fn center_all(x: &[f32], affine: Affine, out: &mut [f32]) {
        for (out, &x) in out.iter_mut().zip(x) {
            *out = affine.centered(x);
        }
    }
}

multiversion! {
    /// Quantizes `p * scales` dynamically; returns the scale.
    fn fold_row(p: &[f32], scales: &[f32], range: CodeRange, out: &mut [f32]) -> f32 {
        for ((out, p), scale) in out.iter_mut().zip(p).zip(scales) {
            *out = p * scale;
        }
        let affine = Affine::symmetric(dynamic_scale(max_abs(out), range), range);
        for x in out {
            *x = affine.centered(*x);
        }
        affine.scale
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

impl FusedOp for Attention {
    fn name(&self) -> &'static str {
        "attention"
    }

    fn forward(&self, inputs: &[Input<'_>]) -> (Vec<f32>, Vec<usize>) {
        let AttentionShape { batch, seq: t, heads, kv_heads, head_dim: d } = self.shape;
        let [pq, pk, pv] = self.parameters(inputs);
        let q = prepare(inputs[0].data, self.shape, heads, Some(&self.rope), self.quant.query.as_ref(), pq);
        let k = prepare(inputs[1].data, self.shape, kv_heads, Some(&self.rope), self.quant.key.as_ref(), pk);
        let v = prepare(inputs[2].data, self.shape, kv_heads, None, self.quant.value.as_ref(), pv);
        // Codes of 8-bit probabilities times centered codes of values: integers, where both are quantized.
        let integers = self.quant.probs.is_some() && self.quant.value.is_some();
        let value_product = |p: &[f32], v: &[f32], out: &mut [f32]| {
            if integers {
                integer_gemm((t, t, d), 255.0 * 255.0, p, (v, Layout::Normal), out);
            } else {
                gemm((t, t, d), 1.0, (p, Layout::Normal), (v, Layout::Normal), 0.0, out);
            }
        };
        let mut out = vec![0f32; batch * t * heads * d];
        let mut probabilities = vec![0f32; batch * heads * t * t];
        let (mut qh, mut kh, mut vh) = (vec![0f32; t * d], vec![0f32; t * d], vec![0f32; t * d]);
        let (mut product, mut second) = (vec![0f32; t * d], vec![0f32; t * d]);
        for b in 0..batch {
            for kv in 0..kv_heads {
                gather(&k.rows.codes, self.shape, kv_heads, b, kv, &mut kh);
                self.value_operand(&v, b, kv, &mut vh);
                let k_scales = gather_scales(&k.rows.scales, self.shape, kv_heads, b, kv);
                let v_scales = gather_scales(&v.rows.scales, self.shape, kv_heads, b, kv);
                for h in kv * (heads / kv_heads)..(kv + 1) * (heads / kv_heads) {
                    gather(&q.rows.codes, self.shape, heads, b, h, &mut qh);
                    let q_scales = gather_scales(&q.rows.scales, self.shape, heads, b, h);
                    let p = &mut probabilities[(b * heads + h) * t * t..(b * heads + h + 1) * t * t];
                    head_probabilities((&qh, &q_scales), (&kh, &k_scales), self.shape, p);
                    let factors = self.value_factors(p, &v_scales, b, pv);
                    value_product(&factors.wide, &vh, &mut product);
                    crate::fake_quant::scale_rows(&mut product, d, &factors.wide_scale);
                    if let Some((codes, scales)) = &factors.narrow {
                        value_product(codes, &vh, &mut second);
                        crate::fake_quant::scale_rows(&mut second, d, scales);
                        for (a, b) in product.iter_mut().zip(&second) {
                            *a += b;
                        }
                    }
                    scatter_add(&product, self.shape, heads, b, h, &mut out);
                }
            }
        }
        let mut sink_probs = Vec::with_capacity(batch * t);
        let mut column = vec![0f32; heads];
        for b in 0..batch {
            for i in 0..t {
                for (h, column) in column.iter_mut().enumerate() {
                    *column = probabilities[((b * heads + h) * t + i) * t];
                }
                sink_probs.push(mean_over_heads(&column));
            }
        }
        let mut taps = self.taps.lock().unwrap_or_else(|e| e.into_inner());
        (taps.sink_probs, taps.probabilities) = (sink_probs, Arc::new(probabilities));
        drop(taps);
        (out, vec![batch * t, heads * d])
    }

    fn backward(&self, inputs: &[Input<'_>], grad: &[f32], _needed: &[bool]) -> Vec<Option<Vec<f32>>> {
        let AttentionShape { batch, seq: t, heads, kv_heads, head_dim: d } = self.shape;
        let [pq, pk, pv] = self.parameters(inputs);
        let q = prepare(inputs[0].data, self.shape, heads, Some(&self.rope), self.quant.query.as_ref(), pq);
        let k = prepare(inputs[1].data, self.shape, kv_heads, Some(&self.rope), self.quant.key.as_ref(), pk);
        let v = prepare(inputs[2].data, self.shape, kv_heads, None, self.quant.value.as_ref(), pv);
        let (q_values, k_values, v_values) =
            (q.rows.dequantize(d), k.rows.dequantize(d), v.rows.dequantize(d));
        let probabilities = self.taps.lock().unwrap_or_else(|e| e.into_inner()).probabilities.clone();
        let (mut dq, mut dk, mut dv) = (
            vec![0f32; inputs[0].data.len()],
            vec![0f32; inputs[1].data.len()],
            vec![0f32; inputs[2].data.len()],
        );
        let mut head = vec![vec![0f32; t * d]; 4];
        let (mut dp, mut effective, mut part) = (vec![0f32; t * t], vec![0f32; t * t], vec![0f32; t * d]);
        let inv = inv_sqrt_dim(d);
        for b in 0..batch {
            for kv in 0..kv_heads {
                gather(&k_values, self.shape, kv_heads, b, kv, &mut head[1]);
                gather(&v_values, self.shape, kv_heads, b, kv, &mut head[2]);
                let v_scales = gather_scales(&v.rows.scales, self.shape, kv_heads, b, kv);
                for h in kv * (heads / kv_heads)..(kv + 1) * (heads / kv_heads) {
                    gather(&q_values, self.shape, heads, b, h, &mut head[0]);
                    gather(grad, self.shape, heads, b, h, &mut head[3]);
                    let p = &probabilities[(b * heads + h) * t * t..(b * heads + h + 1) * t * t];
                    self.effective(p, &v_scales, b, pv, &mut effective);
                    // dV^ = P^T dO, dP = dO V^T, straight through the probability's quantizer.
                    gemm(
                        (t, t, d),
                        1.0,
                        (&effective, Layout::Transposed),
                        (&head[3], Layout::Normal),
                        0.0,
                        &mut part,
                    );
                    scatter_add(&part, self.shape, kv_heads, b, kv, &mut dv);
                    gemm(
                        (t, d, t),
                        1.0,
                        (&head[3], Layout::Normal),
                        (&head[2], Layout::Transposed),
                        0.0,
                        &mut dp,
                    );
                    for i in 0..t {
                        let (live, rest) = dp[i * t..(i + 1) * t].split_at_mut(i + 1);
                        softmax_backward(&p[i * t..i * t + i + 1], live, inv);
                        rest.fill(0.0);
                    }
                    gemm((t, t, d), 1.0, (&dp, Layout::Normal), (&head[1], Layout::Normal), 0.0, &mut part);
                    scatter_add(&part, self.shape, heads, b, h, &mut dq);
                    gemm(
                        (t, t, d),
                        1.0,
                        (&dp, Layout::Transposed),
                        (&head[0], Layout::Normal),
                        0.0,
                        &mut part,
                    );
                    scatter_add(&part, self.shape, kv_heads, b, kv, &mut dk);
                }
            }
        }
        let rope = Some(self.rope.as_ref());
        let gq = prepare_backward(&q, self.shape, heads, rope, self.quant.query.as_ref(), pq, &mut dq);
        let gk = prepare_backward(&k, self.shape, kv_heads, rope, self.quant.key.as_ref(), pk, &mut dk);
        let gv = prepare_backward(&v, self.shape, kv_heads, None, self.quant.value.as_ref(), pv, &mut dv);
        [Some(dq), Some(dk), Some(dv)]
            .into_iter()
            .chain([gq, gk, gv].into_iter().flatten().map(Some))
            .collect()
    }
}

impl Attention {
    /// The probabilities that the value product really used, `[seq, seq]`.
    fn effective(
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
            crate::fake_quant::scale_rows(out, t, &factors.wide_scale);
            if let Some((mut codes, scales)) = factors.narrow {
                crate::fake_quant::scale_rows(&mut codes, t, &scales);
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
            crate::fake_quant::scale_rows(out, t, &vec![scale; t]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::gradient_check::{noise, worst_errors};

    const SHAPE: AttentionShape = AttentionShape { batch: 2, seq: 5, heads: 4, kv_heads: 2, head_dim: 6 };

    fn rope() -> Arc<RopeTables> {
        let angles: Vec<f32> = (0..5 * 3).map(|i| (i / 3) as f32 * 0.7f32.powi(i % 3)).collect();
        Arc::new(RopeTables {
            cos: angles.iter().map(|a| a.cos()).collect(),
            sin: angles.iter().map(|a| a.sin()).collect(),
        })
    }

    fn op(quant: AttentionQuant) -> Attention {
        Attention { shape: SHAPE, rope: rope(), quant, taps: Arc::default() }
    }

    fn inputs() -> [(Vec<f32>, Vec<usize>); 3] {
        let n = SHAPE.batch * SHAPE.seq;
        let kv = SHAPE.kv_heads * SHAPE.head_dim;
        let q = SHAPE.heads * SHAPE.head_dim;
        let big: Vec<f32> = noise(n * q, 1).iter().map(|x| x * 2.0).collect();
        [(big, vec![n, q]), (noise(n * kv, 2), vec![n, kv]), (noise(n * kv, 3), vec![n, kv])]
    }

    #[test]
    fn gradients_match_numeric_ones() {
        let make = || -> Box<dyn FusedOp> { Box::new(op(AttentionQuant::default())) };
        for error in worst_errors(&make, &inputs(), 1e-2) {
            assert!(error < 3e-3, "{error:e}");
        }
    }

    fn views(inputs: &[(Vec<f32>, Vec<usize>)]) -> Vec<Input<'_>> {
        inputs.iter().map(|(data, shape)| Input { data, shape }).collect()
    }

    fn mixed(scheme: ActScheme) -> ActQuant {
        let bits: Vec<ActBits> =
            (0..10).map(|i| if i % 3 == 1 { ActBits::A4 } else { ActBits::A8 }).collect();
        ActQuant { scheme, bits: TokenBits::PerToken(bits.into()) }
    }

    /// At 8 bits everywhere the quantized output and gradients stay near the unquantized ones; at mixed bits farther.
    #[test]
    fn quantized_attention_stays_near_the_plain_one() {
        let inputs = inputs();
        let up = noise(inputs[0].0.len(), 9);
        let plain = op(AttentionQuant::default());
        let (y, _) = plain.forward(&views(&inputs));
        let g = plain.backward(&views(&inputs), &up, &[true; 3]);
        let eight = ActQuant { scheme: ActScheme::Dynamic, bits: TokenBits::Uniform(ActBits::A8) };
        for (point, tolerance) in [(eight, 0.03), (mixed(ActScheme::Dynamic), 0.4)] {
            let quant = AttentionQuant {
                query: Some(point.clone()),
                key: Some(point.clone()),
                value: Some(point),
                probs: Some(8),
            };
            let quantized = op(quant);
            let (yq, _) = quantized.forward(&views(&inputs));
            assert!(y.iter().zip(&yq).all(|(a, b)| (a - b).abs() < tolerance));
            assert!(y.iter().zip(&yq).any(|(a, b)| a != b));
            let gq = quantized.backward(&views(&inputs), &up, &[true; 3]);
            for (a, b) in g.iter().zip(&gq) {
                let largest = a.as_ref().unwrap().iter().fold(0f32, |m, x| m.max(x.abs()));
                for (a, b) in a.as_ref().unwrap().iter().zip(b.as_ref().unwrap()) {
                    assert!((a - b).abs() < 2.0 * tolerance * largest, "{a} {b}");
                }
            }
        }
    }

    #[test]
    fn static_points_take_their_parameters_in_order() {
        let mut all = inputs().to_vec();
        for (log4, log8) in [(-1.2f32, -4.0f32), (-2.0, -4.8), (-2.0, -4.8)] {
            all.push((vec![log4, 0.0, log8, 2.0], vec![1, 4]));
        }
        let quant = AttentionQuant {
            query: Some(mixed(ActScheme::Static)),
            key: Some(mixed(ActScheme::Static)),
            value: Some(mixed(ActScheme::Static)),
            probs: Some(8),
        };
        let (y, _) = op(AttentionQuant::default()).forward(&views(&inputs()));
        let quantized = op(quant);
        let (yq, _) = quantized.forward(&views(&all));
        assert!(y.iter().zip(&yq).all(|(a, b)| (a - b).abs() < 0.5), "{y:?} {yq:?}");
        let up = noise(y.len(), 9);
        let g = quantized.backward(&views(&all), &up, &[true; 6]);
        assert_eq!(g.len(), 6);
        for g in &g[3..] {
            assert!(g.as_ref().unwrap().iter().all(|x| x.is_finite()));
            assert!(g.as_ref().unwrap().iter().any(|x| *x != 0.0));
        }
    }

    #[test]
    fn later_tokens_never_change_earlier_ones() {
        let point = mixed(ActScheme::Dynamic);
        let quant = AttentionQuant {
            query: Some(point.clone()),
            key: Some(point.clone()),
            value: Some(point),
            probs: Some(8),
        };
        let mut all = inputs();
        let (before, _) = op(quant.clone()).forward(&views(&all));
        let width = SHAPE.heads * SHAPE.head_dim;
        for (data, shape) in &mut all {
            // Change the last token of both sequences.
            for token in [4, 9] {
                for x in &mut data[token * shape[1]..(token + 1) * shape[1]] {
                    *x = -*x * 3.0;
                }
            }
        }
        let (after, _) = op(quant).forward(&views(&all));
        for token in [0, 1, 2, 3, 5, 6, 7, 8] {
            assert_eq!(before[token * width..(token + 1) * width], after[token * width..(token + 1) * width]);
        }
    }
}
