//! Causal attention with quantized queries, keys, probabilities and values (METHOD.md sections 2, 3, 5).
//!
//! One operation from the projections to the input of the output projection: RoPE, quantization, scores, softmax,
//! value product. It follows the engine's integer computation in `f32`, in the same order, so both give the same bits; the
//! float steps between the products are those of [`squat_kernels::attention`].

mod probabilities;
mod rows;
#[cfg(test)]
mod tests;

use crate::autograd::{FusedOp, Input, Layout, gemm, integer_gemm};
use crate::fake_quant::{ActQuant, scale_rows};
use squat_kernels::attention::query_factor;
use squat_quant::token_policy::mean_over_heads;
use squat_quant::{ActScheme, Transform};
use std::sync::{Arc, Mutex};

pub(crate) use probabilities::{head_probabilities, softmax_backward};
pub(crate) use rows::{Prepared, gather, gather_scales, prepare, prepare_backward, scatter_add};

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

/// What turns the heads of queries and keys before they are quantized: by their position (RoPE), then by a transform of the plan.
/// Both turn a query and a key alike, so their product stays what it is.
#[derive(Debug, Default)]
pub struct HeadRotation {
    /// Cosines, `[positions, head_dim / 2]`.
    pub cos: Vec<f32>,
    /// Sines, likewise.
    pub sin: Vec<f32>,
    /// What is applied to each head after RoPE.
    pub transform: Transform,
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
    /// Its tables are for at least `seq` positions.
    pub rope: Arc<HeadRotation>,
    /// Quantizers.
    pub quant: AttentionQuant,
    /// Where the forward leaves probabilities and sink scores.
    pub taps: Arc<Mutex<AttentionTaps>>,
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

    /// Codes (or values) of one head's values as they enter the product, `[seq, d]`.
    fn value_operand(&self, prepared: &Prepared, batch: usize, head: usize, out: &mut [f32]) {
        gather(&prepared.rows.codes, self.shape, self.shape.kv_heads, batch, head, out);
        let integer =
            self.folded() || matches!(self.quant.value, Some(ActQuant { scheme: ActScheme::Static, .. }));
        if !integer {
            let scales = gather_scales(&prepared.rows.scales, self.shape, self.shape.kv_heads, batch, head);
            scale_rows(out, self.shape.head_dim, &scales);
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
                    scale_rows(&mut product, d, &factors.wide_scale);
                    if let Some((codes, scales)) = &factors.narrow {
                        value_product(codes, &vh, &mut second);
                        scale_rows(&mut second, d, scales);
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
        let inv = query_factor(1.0, d);
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
