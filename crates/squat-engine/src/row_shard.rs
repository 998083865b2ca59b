//! The rows of a block that one worker computes: everything in a layer except attention is row-independent.

use crate::attention::HeadScratch;
use crate::linear::{Linear, Operand};
use crate::model::{Layer, Model, Norm};
use crate::pool::{Pool, lock};
use crate::workspace::Row;
use squat_model::Mlp;
use squat_quant::token_policy::{TokenEvidence, TokenPolicy, mean_over_heads};
use squat_quant::{ActBits, Transform, math};
use std::ops::{Deref, DerefMut};
use std::sync::Mutex;

/// Floats aligned to a cache line: a vector of 64 bytes that crosses a line takes twice as long to load.
#[derive(Debug)]
struct AlignedFloats {
    values: Vec<f32>,
    start: usize,
    len: usize,
}

impl AlignedFloats {
    fn zeros(len: usize) -> Self {
        const SPARE: usize = 15;
        let values = vec![0.0; len + SPARE];
        let start = values.as_ptr().align_offset(64).min(SPARE);
        Self { values, start, len }
    }
}

impl Deref for AlignedFloats {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        &self.values[self.start..self.start + self.len]
    }
}

impl DerefMut for AlignedFloats {
    fn deref_mut(&mut self) -> &mut [f32] {
        &mut self.values[self.start..self.start + self.len]
    }
}

/// Buffers for some consecutive tokens of a block, reused by every layer.
#[derive(Debug)]
pub(crate) struct RowShard {
    /// Index of the first token in the block.
    pub first: usize,
    /// Tokens held.
    pub count: usize,
    /// Activation bits of each token in the current layer.
    pub bits: Vec<ActBits>,
    /// Residual stream, `[tokens, hidden]`.
    pub x: Vec<f32>,
    /// Output of the latest product: between the projections and attention `[tokens, q + k + v]`.
    pub output: Vec<f32>,
    /// Input of the next product.
    input: AlignedFloats,
    operand: Operand,
    /// Probabilities of position 0, by head, of one token.
    sink_probs: Vec<f32>,
}

impl RowShard {
    /// A shard for up to `tokens` tokens.
    pub(crate) fn new(model: &Model, tokens: usize) -> Self {
        let spec = &model.spec;
        let heads = spec.num_attention_heads * spec.head_dim;
        let input = spec.hidden_size.max(heads).max(spec.intermediate_size);
        let output = model
            .layers
            .iter()
            .flat_map(|layer| [layer.qkv.rows, layer.output.rows, layer.gate_up.rows, layer.down.rows]);
        let output = output.max().unwrap_or(0);
        Self {
            first: 0,
            count: 0,
            bits: vec![ActBits::A8; tokens],
            x: vec![0.0; tokens * spec.hidden_size],
            output: vec![0.0; tokens * output],
            input: AlignedFloats::zeros(tokens * input),
            operand: Operand::default(),
            sink_probs: vec![0.0; spec.num_attention_heads],
        }
    }

    /// Bytes held.
    pub(crate) fn bytes(&self) -> usize {
        4 * (self.x.len() + self.output.len() + self.input.len()) + self.bits.len() + self.operand.bytes()
    }

    /// Looks the tokens' rows up, and adds those of their positions where these are learned.
    pub(crate) fn embed(&mut self, model: &Model, rows: &[Row]) {
        let hidden = model.spec.hidden_size;
        let rows = &rows[self.first..self.first + self.count];
        for (row, x) in rows.iter().zip(self.x.chunks_exact_mut(hidden)) {
            model.embedding.read_row(row.token as usize, x);
            if let Some(positions) = &model.positions {
                model.kernels.add(x, &positions[row.position * hidden..][..hidden]);
            }
        }
    }

    /// Chooses the bits of each token, then norm and projections of `layer`; leaves `[q, k, v]` in `output`.
    ///
    /// `rows` are those of the block; `heads` hold the probabilities of the layer below.
    pub(crate) fn project(
        &mut self,
        model: &Model,
        layer: usize,
        rows: &[Row],
        heads: &[Mutex<HeadScratch>],
        pool: Option<&Pool>,
    ) {
        self.choose_bits(model, layer, rows, heads);
        let layer = &model.layers[layer];
        self.norm(model, layer.attn_norm.as_ref(), &layer.qkv);
        self.product(model, &layer.qkv, pool);
        self.norm_rows(model, layer);
    }

    /// Output projection, residual and MLP of `layer`, from the attended values in `heads`.
    pub(crate) fn finish(
        &mut self,
        model: &Model,
        layer: usize,
        heads: &[Mutex<HeadScratch>],
        pool: Option<&Pool>,
    ) {
        let (kernels, layer) = (model.kernels, &model.layers[layer]);
        let (count, hidden) = (self.count, model.spec.hidden_size);
        let (cols, width) = (layer.output.cols, layer.output.cols / heads.len());
        for (index, head) in heads.iter().enumerate() {
            let attended = &lock(head).attended[self.first * width..][..count * width];
            let rows = self.input[..count * cols].chunks_exact_mut(cols);
            for (row, attended) in rows.zip(attended.chunks_exact(width)) {
                row[index * width..][..width].copy_from_slice(attended);
            }
        }
        self.prepare(model, &layer.output);
        self.product(model, &layer.output, pool);
        self.norm_output(model, layer.attn_output_norm.as_ref());
        kernels.add(&mut self.x[..count * hidden], &self.output[..count * hidden]);
        self.norm(model, layer.mlp_norm.as_ref(), &layer.gate_up);
        self.product(model, &layer.gate_up, pool);
        self.activate(model, &layer.down);
        self.product(model, &layer.down, pool);
        self.norm_output(model, layer.mlp_output_norm.as_ref());
        kernels.add(&mut self.x[..count * hidden], &self.output[..count * hidden]);
    }

    /// The prepared input of `down` from the output of the projections before it.
    fn activate(&mut self, model: &Model, down: &Linear) {
        let (kernels, count, inner) = (model.kernels, self.count, down.cols);
        if model.spec.mlp == Mlp::Gelu {
            kernels.gelu(&self.output[..count * inner], &mut self.input[..count * inner]);
            return self.prepare(model, down);
        }
        let gate_up = &self.output[..count * 2 * inner];
        if model.spec.mlp == Mlp::GeGlu {
            let mids = self.input.chunks_exact_mut(inner);
            for (row, mid) in gate_up.chunks_exact(2 * inner).zip(mids) {
                kernels.gelu_mul(&row[..inner], &row[inner..], mid);
            }
            return self.prepare(model, down);
        }
        if let Some((quantizer, transform)) = down.integer_input() {
            let rows = self.operand.reset(count, inner);
            let (scratch, bits) = (&mut self.input[..inner], &self.bits[..count]);
            kernels.silu_mul_quantize_into(rows, gate_up, scratch, transform, bits, quantizer);
            return;
        }
        let mids = self.input.chunks_exact_mut(inner);
        for (row, mid) in gate_up.chunks_exact(2 * inner).zip(mids) {
            kernels.silu_mul(&row[..inner], &row[inner..], mid);
        }
        self.prepare(model, down);
    }

    /// Transforms and quantizes the input of `linear`.
    fn prepare(&mut self, model: &Model, linear: &Linear) {
        let input = &mut self.input[..self.count * linear.cols];
        linear.prepare(model.kernels, input, &self.bits[..self.count], &mut self.operand);
    }

    /// `output = linear(input)`, the input being prepared.
    fn product(&mut self, model: &Model, linear: &Linear, pool: Option<&Pool>) {
        let input = &self.input[..self.count * linear.cols];
        let output = &mut self.output[..self.count * linear.rows];
        linear.product(model.kernels, pool, input, &self.operand, self.count, output);
    }

    /// Norms of whole rows of queries and of keys, in the output of the projections.
    fn norm_rows(&mut self, model: &Model, layer: &Layer) {
        if !layer.attention.row_norms {
            return;
        }
        let norms = [&layer.attention.query_norm, &layer.attention.key_norm];
        for row in self.output.chunks_exact_mut(layer.qkv.rows).take(self.count) {
            let mut first = 0;
            for norm in norms.into_iter().flatten() {
                let part = &mut row[first..first + norm.gain.len()];
                let normed = &mut self.input[..part.len()];
                norm.apply(model.kernels, part, normed);
                part.copy_from_slice(normed);
                first += part.len();
            }
        }
    }

    /// The norm behind a block, of its rows in `output`.
    fn norm_output(&mut self, model: &Model, norm: Option<&Norm>) {
        let Some(norm) = norm else { return };
        let hidden = model.spec.hidden_size;
        for row in self.output[..self.count * hidden].chunks_exact_mut(hidden) {
            let normed = &mut self.input[..hidden];
            norm.apply(model.kernels, row, normed);
            row.copy_from_slice(normed);
        }
    }

    /// `norm(x)`, or `x` where the model has no norm there, as the prepared input of `linear`.
    fn norm(&mut self, model: &Model, norm: Option<&Norm>, linear: &Linear) {
        let (kernels, hidden) = (model.kernels, model.spec.hidden_size);
        let x = &self.x[..self.count * hidden];
        let Some(norm) = norm else {
            self.input[..x.len()].copy_from_slice(x);
            return self.prepare(model, linear);
        };
        if let (Some((quantizer, Transform::None)), None) = (linear.integer_input(), &norm.bias) {
            let rows = self.operand.reset(self.count, hidden);
            kernels.rms_norm_quantize_into(
                rows,
                x,
                &norm.gain,
                norm.eps,
                &self.bits[..self.count],
                quantizer,
            );
            return;
        }
        for (row, out) in x.chunks_exact(hidden).zip(self.input.chunks_exact_mut(hidden)) {
            norm.apply(kernels, row, out);
        }
        self.prepare(model, linear);
    }

    fn choose_bits(&mut self, model: &Model, layer: usize, rows: &[Row], heads: &[Mutex<HeadScratch>]) {
        let plan = &model.plan;
        if let Some(bits) = plan.policy.uniform() {
            self.bits[..self.count].fill(bits);
            return;
        }
        let theta = plan.threshold(layer);
        let hidden = model.spec.hidden_size;
        let group = model.spec.num_attention_heads / model.spec.num_key_value_heads;
        for index in 0..self.count {
            let token = self.first + index;
            let sink_probability = if layer == 0 {
                0.0
            } else {
                for (head, column) in heads.iter().zip(self.sink_probs.chunks_exact_mut(group)) {
                    column.copy_from_slice(&lock(head).sink_probs[token * group..][..group]);
                }
                mean_over_heads(&self.sink_probs)
            };
            let input_norm = match plan.policy {
                TokenPolicy::ActivationNorm => {
                    math::sqrt(model.kernels.sum_squares(&self.x[index * hidden..][..hidden]))
                }
                _ => 0.0,
            };
            let evidence = TokenEvidence { position: rows[token].position, sink_probability, input_norm };
            self.bits[index] = plan.policy.decide(layer, theta, &evidence);
        }
    }
}
