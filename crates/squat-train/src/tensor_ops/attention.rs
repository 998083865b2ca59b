//! Attention and the two attention losses as tensor expressions.

use super::quantizer::{Rows, rows};
use super::{TensorForm, transformed};
use crate::fake_quant::ActQuant;
use crate::ops::alignment::Alignment;
use crate::ops::attention::{Attention, AttentionShape, HeadRotation};
use crate::ops::entropy::CodeEntropy;
use burn::tensor::{Bool, Tensor, TensorData, activation};
use squat_kernels::attention::query_factor;
use squat_quant::token_policy::mean_over_heads;
use squat_quant::{ActBits, ActScheme, CodeRange};
use std::sync::Arc;

/// `[tokens, heads * d]` to one row for each (token, head), rotated.
fn head_rows(x: Tensor<2>, shape: AttentionShape, heads: usize, rope: Option<&HeadRotation>) -> Tensor<2> {
    let (tokens, d) = (shape.batch * shape.seq, shape.head_dim);
    let x = x.reshape([tokens * heads, d]);
    let Some(rope) = rope else { return x };
    let half = d / 2;
    let device = x.device();
    let table = |table: &[f32]| {
        let rows: Vec<f32> = (0..tokens * heads)
            .flat_map(|row| {
                let at = row / heads % shape.seq * half;
                table[at..at + half].iter().copied()
            })
            .collect();
        Tensor::<2>::from_data(TensorData::new(rows, [tokens * heads, half]), &device)
    };
    let (cos, sin) = (table(&rope.cos), table(&rope.sin));
    let n = tokens * heads;
    let (a, b) = (x.clone().slice([0..n, 0..half]), x.slice([0..n, half..d]));
    let low = a.clone() * cos.clone() - b.clone() * sin.clone();
    let high = b * cos + a * sin;
    transformed(Tensor::cat(vec![low, high], 1), rope.transform)
}

/// Rows of (token, head) as `[batch, query heads, seq, d]`, key and value heads repeated for their group.
fn by_head(x: Tensor<2>, shape: AttentionShape, heads: usize) -> Tensor<4> {
    let d = x.dims()[1];
    let x: Tensor<4> = x.reshape([shape.batch, shape.seq, heads, d]).swap_dims(1, 2);
    let group = shape.heads / heads;
    if group == 1 {
        return x;
    }
    let wide: Tensor<5> = x.unsqueeze_dim::<5>(2).repeat_dim(2, group);
    wide.reshape([shape.batch, shape.heads, shape.seq, d])
}

fn quantized(x: Tensor<2>, quant: Option<&ActQuant>, parameters: Option<Tensor<2>>, heads: usize) -> Rows {
    match quant {
        Some(quant) => rows(x, quant, parameters, heads),
        None => {
            let scales = Tensor::ones([x.dims()[0], 1], &x.device().inner());
            Rows { scales: on_device_of(scales, &x), values: x }
        }
    }
}

/// Moves a constant to the device of `like`, tape included.
fn on_device_of<const D: usize>(x: Tensor<D>, like: &Tensor<2>) -> Tensor<D> {
    if like.device().is_autodiff() { Tensor::from_inner(x) } else { x }
}

fn causal_softmax(q: Tensor<4>, k: Tensor<4>, shape: AttentionShape) -> Tensor<4> {
    let device = q.device();
    let scores = q.matmul(k.swap_dims(2, 3)) * query_factor(1.0, shape.head_dim);
    let mask = Tensor::<2, Bool>::tril_mask([shape.seq, shape.seq], 0, &device);
    let mask: Tensor<4, Bool> = mask.reshape([1, 1, shape.seq, shape.seq]);
    let mask = mask.expand([shape.batch, shape.heads, shape.seq, shape.seq]);
    activation::softmax(scores.mask_fill(mask, f32::NEG_INFINITY), 3)
}

/// Static parameters from the remaining inputs, for the points that are static.
fn take(quant: Option<&ActQuant>, rest: &mut impl Iterator<Item = Tensor<2>>) -> Option<Tensor<2>> {
    match quant {
        Some(ActQuant { scheme: ActScheme::Static, .. }) => rest.next(),
        _ => None,
    }
}

impl TensorForm for Attention {
    fn tensor_form(&self, inputs: Vec<Tensor<2>>) -> Tensor<2> {
        let shape = self.shape;
        let mut inputs = inputs.into_iter();
        let mut next = || inputs.next().expect("query, key and value");
        let (q, k, v) = (next(), next(), next());
        let quant = &self.quant;
        let [pq, pk, pv] =
            [&quant.query, &quant.key, &quant.value].map(|point| take(point.as_ref(), &mut inputs));
        let rope = Some(self.rope.as_ref());
        let q = quantized(head_rows(q, shape, shape.heads, rope), quant.query.as_ref(), pq, shape.heads);
        let k = quantized(head_rows(k, shape, shape.kv_heads, rope), quant.key.as_ref(), pk, shape.kv_heads);
        let v =
            quantized(head_rows(v, shape, shape.kv_heads, None), quant.value.as_ref(), pv, shape.kv_heads);
        let p = causal_softmax(
            by_head(q.values, shape, shape.heads),
            by_head(k.values, shape, shape.kv_heads),
            shape,
        );
        self.fill_taps(&p);
        let p = match quant.probs {
            None => p,
            Some(bits) => self.quantize_probabilities(p, by_head(v.scales, shape, shape.kv_heads), bits),
        };
        let out = p.matmul(by_head(v.values, shape, shape.kv_heads));
        out.swap_dims(1, 2).reshape([shape.batch * shape.seq, shape.heads * shape.head_dim])
    }
}

impl Attention {
    fn fill_taps(&self, p: &Tensor<4>) {
        let AttentionShape { batch, seq, heads, .. } = self.shape;
        let host = |p: Tensor<4>| p.into_data().try_into_vec::<f32>().expect("probabilities are f32");
        let mut taps = self.taps.lock().unwrap_or_else(|e| e.into_inner());
        if taps.wants_sink {
            let first = host(p.clone().slice([0..batch, 0..heads, 0..seq, 0..1]));
            let mut column = vec![0f32; heads];
            taps.sink_probs.clear();
            for (b, i) in (0..batch).flat_map(|b| (0..seq).map(move |i| (b, i))) {
                for (h, column) in column.iter_mut().enumerate() {
                    *column = first[(b * heads + h) * seq + i];
                }
                taps.sink_probs.push(mean_over_heads(&column));
            }
        }
        if taps.wants_probabilities {
            taps.probabilities = Arc::new(host(p.clone()));
        }
    }

    /// Quantized probabilities with straight-through gradients; `v_scales` is `[batch, heads, seq, 1]`.
    fn quantize_probabilities(&self, p: Tensor<4>, v_scales: Tensor<4>, bits: u32) -> Tensor<4> {
        let AttentionShape { batch, seq, .. } = self.shape;
        let limit = CodeRange::unsigned(bits).max as f32;
        let fixed = p.clone().detach();
        let quantized = match &self.quant.value {
            Some(ActQuant { scheme: ActScheme::Dynamic, bits, .. }) => {
                let wide: Vec<f32> =
                    (0..batch * seq).map(|t| if bits.get(t) == ActBits::A8 { 1.0 } else { 0.0 }).collect();
                let wide: Tensor<4> =
                    Tensor::<1>::from_data(TensorData::new(wide, [batch * seq]), &fixed.device())
                        .reshape([batch, 1, 1, seq]);
                let v_scales = v_scales.swap_dims(2, 3);
                let folded = fixed * v_scales.clone();
                let narrow = wide.clone().neg() + 1.0;
                let group = |mask: Tensor<4>| {
                    let part = folded.clone() * mask;
                    let scale = (part.clone().max_dim(3) / limit).clamp_min(f32::MIN_POSITIVE);
                    (part / scale.clone()).round().clamp(0.0, limit) * scale
                };
                (group(wide) + group(narrow)) / v_scales
            }
            _ => (fixed * limit).round() / limit,
        };
        p.clone() + (quantized.detach() - p.detach())
    }
}

impl TensorForm for Alignment {
    fn tensor_form(&self, inputs: Vec<Tensor<2>>) -> Tensor<2> {
        let shape = self.shape;
        let AttentionShape { batch, seq, heads, kv_heads, .. } = shape;
        let mut inputs = inputs.into_iter();
        let mut next = || inputs.next().expect("query and key");
        let (q, k) = (next(), next());
        let device = q.device();
        let [pq, pk] = [&self.query, &self.key].map(|point| take(point.as_ref(), &mut inputs));
        let rope = Some(self.rope.as_ref());
        let q = quantized(head_rows(q, shape, heads, rope), self.query.as_ref(), pq, heads);
        let k = quantized(head_rows(k, shape, kv_heads, rope), self.key.as_ref(), pk, kv_heads);
        let p = causal_softmax(by_head(q.values, shape, heads), by_head(k.values, shape, kv_heads), shape);
        let teacher = TensorData::new(self.teacher.as_ref().clone(), [batch, heads, seq, seq]);
        let teacher = Tensor::<4>::from_data(teacher, &device);
        let dot = (p.clone() * teacher.clone()).sum_dim(3);
        let norm = (p.square().sum_dim(3) * teacher.square().sum_dim(3)).sqrt();
        let rows = (dot / norm).neg() + 1.0;
        // The first row of each sequence has one entry and is left out.
        let rows = rows.slice([0..batch, 0..heads, 1..seq, 0..1]);
        rows.mean().reshape([1, 1])
    }
}

impl TensorForm for CodeEntropy {
    fn tensor_form(&self, inputs: Vec<Tensor<2>>) -> Tensor<2> {
        let mut inputs = inputs.into_iter();
        let x = inputs.next().expect("queries or keys");
        let x = head_rows(x, self.shape, self.heads, Some(&self.rope));
        let d = self.shape.head_dim;
        let limit = |value: &dyn Fn(ActBits) -> f32| {
            let column: Vec<f32> =
                (0..x.dims()[0]).map(|row| value(self.quant.bits.get(row / self.heads))).collect();
            Tensor::<2>::from_data(TensorData::new(column, [x.dims()[0], 1]), &x.device())
        };
        let v = match (self.quant.scheme, inputs.next()) {
            (ActScheme::Static, Some(parameters)) => {
                let host = parameters.into_data().try_into_vec::<f32>().expect("parameters are f32");
                let affine = |bits: ActBits| crate::fake_quant::static_affine(&host, bits);
                let scale = limit(&|bits| affine(bits).scale);
                let low = limit(&|bits| (affine(bits).range.min - affine(bits).zero_point) as f32);
                let high = limit(&|bits| (affine(bits).range.max - affine(bits).zero_point) as f32);
                (x.clone() / scale).max_pair(low.repeat_dim(1, d)).min_pair(high.repeat_dim(1, d))
            }
            _ => {
                let largest = x.clone().abs().max_dim(1).clamp_min(f32::MIN_POSITIVE);
                let v =
                    x.clone() * limit(&|bits| bits.range().max as f32 / self.quant.clip.at(bits)) / largest;
                let [low, high] = [
                    limit(&|bits| bits.range().min as f32).repeat_dim(1, d),
                    limit(&|bits| bits.range().max as f32).repeat_dim(1, d),
                ];
                v.max_pair(low).min_pair(high)
            }
        };
        let mean = v.clone().mean_dim(1);
        let variance = (v - mean).square().mean_dim(1);
        (variance.log1p() * -0.5).mean().reshape([1, 1])
    }
}
