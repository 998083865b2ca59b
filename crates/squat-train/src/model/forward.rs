//! The forward pass, full precision or fake-quantized.

use super::params::ParamTensors;
use super::static_name;
use crate::calibration::Observer;
use crate::fake_quant::{ActQuant, TokenBits};
use crate::ops::alignment::Alignment;
use crate::ops::attention::{
    Attention, AttentionQuant, AttentionShape, AttentionTaps, HeadRotation, prepare,
};
use crate::ops::embedding::Embedding;
use crate::ops::entropy::CodeEntropy;
use crate::ops::linear::Linear;
use crate::ops::rms_norm::RmsNorm;
use crate::ops::swiglu::SwiGlu;
use crate::ops::transform::TransformRows;
use crate::quantizer::{WeightQuant, WeightQuantizer, default_quantizer, parameter_name};
use crate::recipe::MixedPrecision;
use crate::tensor_ops::{TensorForm, dispatch};
use burn::tensor::Tensor;
use squat_kernels::Kernels;
use squat_model::spec::bias_name;
use squat_model::{LinearKind, ModelSpec, QuantPlan};
use squat_quant::token_policy::TokenEvidence;
use squat_quant::{ActBits, ActPoint, ActScheme, Transform, WeightScheme};
use std::collections::HashMap;
use std::sync::{Arc, Mutex};

/// What a forward pass computes in addition to the logits.
#[derive(Clone, Debug, Default)]
pub struct ForwardOptions {
    /// Teacher's softmax rows by layer, for the layers whose maps are aligned.
    pub align: HashMap<usize, Arc<Vec<f32>>>,
    /// Whether to compute the entropy term.
    pub entropy: bool,
    /// Keep every layer's softmax rows (a teacher's maps).
    pub keep_maps: bool,
    /// Where to record the values of every activation point, for calibration.
    pub observe: Option<Arc<Mutex<Observer>>>,
}

/// Results of a forward pass.
pub struct ForwardOutput {
    /// `[tokens, vocabulary]`.
    pub logits: Tensor<2>,
    /// Mean over the chosen layers of `1 - cos` of attention rows, `[1, 1]`.
    pub alignment: Option<Tensor<2>>,
    /// Mean over layers, queries and keys of the entropy term, `[1, 1]`.
    pub entropy: Option<Tensor<2>>,
    /// For each layer the token policy's scores `[tokens]` (empty where the policy has none).
    pub scores: Vec<Vec<f32>>,
    /// For each layer the activation bits used.
    pub bits: Vec<TokenBits>,
    /// For each layer the softmax rows, if `keep_maps` is set.
    pub maps: Vec<Arc<Vec<f32>>>,
}

/// How queries and keys of sequences of up to `seq` tokens are turned.
fn head_rotation(spec: &ModelSpec, plan: Option<&QuantPlan>, seq: usize) -> HeadRotation {
    let rope = spec.rope.as_ref().expect("models that can be trained have RoPE, callers check");
    let (cos, sin) = rope.tables(seq, spec.head_dim);
    let transform = plan.map_or(Transform::None, |plan| plan.transform(ActPoint::Query));
    HeadRotation { cos, sin, transform }
}

/// A model: its shape and its quantization plan, if any. Parameters are passed to [`Model::forward`].
#[derive(Clone, Debug)]
pub struct Model {
    /// Architecture and sizes.
    pub spec: ModelSpec,
    /// Quantization plan; `None` is full precision.
    pub plan: Option<QuantPlan>,
    /// Training keeps only the input of each layer and computes the rest again when it goes backwards.
    pub recompute: bool,
    /// Numbers in which linear layers multiply, where operations are tensor expressions.
    pub mixed_precision: MixedPrecision,
    /// Operations are tensor expressions on the CPU too: slow, for comparison with the fused ones.
    pub tensor_forms: bool,
    /// Where the scales of quantized weights come from.
    pub quantizer: &'static dyn WeightQuantizer,
    rope: Arc<HeadRotation>,
}

impl Model {
    /// A model for sequences of up to `max_seq` tokens.
    ///
    /// # Panics
    /// With a spec that [`check_trainable`] refuses.
    pub fn new(spec: ModelSpec, plan: Option<QuantPlan>, max_seq: usize) -> Self {
        let rope = Arc::new(head_rotation(&spec, plan.as_ref(), max_seq));
        Self {
            spec,
            plan,
            recompute: false,
            mixed_precision: MixedPrecision::No,
            tensor_forms: false,
            quantizer: default_quantizer(),
            rope,
        }
    }

    /// The same model where it reaches sequences of `seq` tokens already, else a copy with larger tables.
    pub(crate) fn reaching(&self, seq: usize) -> std::borrow::Cow<'_, Self> {
        if seq * self.spec.head_dim / 2 <= self.rope.cos.len() {
            return std::borrow::Cow::Borrowed(self);
        }
        let rope = Arc::new(head_rotation(&self.spec, self.plan.as_ref(), seq));
        std::borrow::Cow::Owned(Self { rope, ..self.clone() })
    }

    /// Runs an operation fused where it can be, else as tensor expressions.
    pub(crate) fn apply(&self, op: impl TensorForm, inputs: Vec<Tensor<2>>) -> Tensor<2> {
        if self.tensor_forms { op.tensor_form(inputs) } else { dispatch(op, inputs) }
    }

    /// This scheme with the model's quantizer.
    fn quant(&self, scheme: Option<WeightScheme>) -> Option<WeightQuant> {
        scheme.map(|scheme| WeightQuant { scheme, quantizer: self.quantizer })
    }

    /// Names and quantizers of the linears whose weight and input are both quantized.
    pub(super) fn integer_linears(&self) -> Vec<(String, WeightQuant)> {
        let Some(plan) = &self.plan else { return Vec::new() };
        let mut found = Vec::new();
        for layer in 0..self.spec.num_hidden_layers {
            for &kind in self.spec.linears() {
                let weight = self.quant(plan.weight_of(layer, kind));
                if let (Some(quant), Some(_)) = (weight, plan.point(kind.input_point())) {
                    found.push((self.spec.linear_name(layer, kind), quant));
                }
            }
        }
        if let (Some(quant), Some(_)) = (self.quant(plan.head), plan.point(ActPoint::LmHeadInput)) {
            found.push((self.spec.head_name().to_owned(), quant));
        }
        found
    }

    pub(crate) fn act(&self, point: ActPoint, bits: &TokenBits) -> Option<ActQuant> {
        let plan = self.plan.as_ref()?;
        Some(ActQuant { scheme: plan.point(point)?, bits: bits.clone(), clip: plan.clip })
    }

    fn static_tensor(
        &self,
        params: &ParamTensors,
        quant: Option<&ActQuant>,
        layer: Option<usize>,
        point: ActPoint,
    ) -> Option<Tensor<2>> {
        match quant {
            Some(ActQuant { scheme: ActScheme::Static, .. }) => Some(params.get(&static_name(layer, point))),
            _ => None,
        }
    }

    fn transform(&self, point: ActPoint) -> Transform {
        self.plan.as_ref().map_or(Transform::None, |plan| plan.transform(point))
    }

    /// Shows the rows of a point to the observer, as its quantizer would see them.
    fn record(&self, options: &ForwardOptions, layer: Option<usize>, point: ActPoint, x: &Tensor<2>) {
        let Some(observer) = &options.observe else { return };
        let cols = x.dims()[1];
        let mut values = x.clone().into_data().try_into_vec::<f32>().expect("activations are f32");
        self.transform(point).apply_rows(&mut values, cols);
        observer.lock().unwrap_or_else(|e| e.into_inner()).record(layer, point, &values);
    }

    /// The linear layer of this kind.
    pub(crate) fn projection(
        &self,
        params: &ParamTensors,
        x: Tensor<2>,
        layer: usize,
        kind: LinearKind,
        bits: &TokenBits,
    ) -> Tensor<2> {
        let weight = self.plan.as_ref().and_then(|plan| plan.weight_of(layer, kind));
        let name = self.spec.linear_name(layer, kind);
        let bias = self.spec.biases.contains(kind);
        self.linear(params, x, (&name, weight, bias), (kind.input_point(), Some(layer), bits))
    }

    fn linear(
        &self,
        params: &ParamTensors,
        x: Tensor<2>,
        (name, scheme, bias): (&str, Option<WeightScheme>, bool),
        (point, layer, bits): (ActPoint, Option<usize>, &TokenBits),
    ) -> Tensor<2> {
        let input = self.act(point, bits);
        let parameters = self.static_tensor(params, input.as_ref(), layer, point);
        let op = Linear {
            weight: self.quant(scheme),
            transform: self.transform(point),
            input,
            packed: params.packed(name),
            bias,
            bf16: self.mixed_precision == MixedPrecision::Bf16,
        };
        let learned = scheme.map(|_| params.get(&parameter_name(name)));
        let bias = bias.then(|| params.get(&bias_name(name)));
        let inputs = [x, params.get(name)].into_iter().chain(learned).chain(parameters).chain(bias);
        self.apply(op, inputs.collect())
    }

    /// The RMSNorm of each head behind the projection of this kind, where the model has one: `[tokens, heads * d]` to the
    /// same.
    fn head_norm(&self, params: &ParamTensors, x: Tensor<2>, layer: usize, kind: LinearKind) -> Tensor<2> {
        if self.spec.qk_norm_of(kind).is_none() {
            return x;
        }
        let ([tokens, width], d) = (x.dims(), self.spec.head_dim);
        let gain = params.get(&ModelSpec::head_norm_name(layer, kind));
        let norm = RmsNorm { eps: self.spec.norm_eps as f32 };
        self.apply(norm, vec![x.reshape([tokens * width / d, d]), gain]).reshape([tokens, width])
    }

    /// Logits of `[batch, seq]` token ids (row-major), with the extra terms of the options.
    ///
    /// # Panics
    /// When an id is out of the vocabulary or `seq` is longer than the model was made for; callers check both.
    pub fn forward(
        &self,
        params: &ParamTensors,
        ids: &[u32],
        (batch, seq): (usize, usize),
        options: &ForwardOptions,
    ) -> ForwardOutput {
        let layers = self.spec.num_hidden_layers;
        assert_eq!(ids.len(), batch * seq, "ids of a [batch, seq] block");
        assert!(seq * self.spec.head_dim / 2 <= self.rope.cos.len(), "sequence of {seq} tokens");
        let mut state = self.begin(ids);
        let mut x = self.embed(params, ids);
        for layer in 0..layers {
            x = self.layer(params, x, layer, (batch, seq), None, options, &mut state);
        }
        ForwardOutput {
            logits: self.head(params, x, options),
            alignment: mean_of_terms(state.alignment),
            entropy: mean_of_terms(state.entropy),
            scores: state.scores,
            bits: state.bits,
            maps: state.maps,
        }
    }

    /// The state that layers hand on, before the first layer.
    pub(crate) fn begin(&self, ids: &[u32]) -> LayerState {
        LayerState { sink_probs: vec![0.0; ids.len()], ..LayerState::default() }
    }

    /// Enters or leaves the transform of the residual stream.
    fn residual_transform(&self, x: Tensor<2>) -> Tensor<2> {
        match self.plan.as_ref().map_or(Transform::None, |plan| plan.residual) {
            Transform::None => x,
            transform => self.apply(TransformRows { transform }, vec![x]),
        }
    }

    /// Rows of the token table, `[tokens, hidden]`.
    pub(crate) fn embed(&self, params: &ParamTensors, ids: &[u32]) -> Tensor<2> {
        let weight = self.plan.as_ref().and_then(|plan| plan.embedding);
        let embedding = Embedding { ids: ids.into(), weight: self.quant(weight) };
        if let (None, Some(rows)) = (weight, params.half_rows(ModelSpec::EMBEDDING, ids)) {
            return rows;
        }
        let table = params.get(ModelSpec::EMBEDDING);
        let learned = weight.map(|_| params.get(&parameter_name(ModelSpec::EMBEDDING)));
        self.apply(embedding, [table].into_iter().chain(learned).collect())
    }

    /// One layer, `[tokens, hidden]` to the same. `fixed` are activation bits that were decided before; otherwise the
    /// policy decides.
    pub(crate) fn layer(
        &self,
        params: &ParamTensors,
        x: Tensor<2>,
        layer: usize,
        (batch, seq): (usize, usize),
        fixed: Option<TokenBits>,
        options: &ForwardOptions,
        state: &mut LayerState,
    ) -> Tensor<2> {
        let bits = match fixed {
            Some(bits) => bits,
            None => self.token_bits(layer, &x, &state.sink_probs, seq, &mut state.scores),
        };
        let h = self.normed(params, x.clone(), &self.spec.attn_norm_name(layer));
        self.record(options, Some(layer), ActPoint::AttnIn, &h);
        let attended = self.attended(params, h, layer, (batch, seq), &bits, options, state);
        self.record(options, Some(layer), ActPoint::OProjInput, &attended);
        let x = x + self.projection(params, attended, layer, LinearKind::O, &bits);
        let h = self.normed(params, x.clone(), &self.spec.mlp_norm_name(layer));
        self.record(options, Some(layer), ActPoint::MlpIn, &h);
        let mid = self.gated(params, h, layer, &bits);
        self.record(options, Some(layer), ActPoint::DownProjInput, &mid);
        let mid = self.projection(params, mid, layer, LinearKind::Down, &bits);
        state.bits.push(bits);
        x + mid
    }

    /// RMSNorm with the gain of that name.
    pub(crate) fn normed(&self, params: &ParamTensors, x: Tensor<2>, gain: &str) -> Tensor<2> {
        let norm = RmsNorm { eps: self.spec.norm_eps as f32 };
        self.apply(norm, vec![x, params.get(gain)])
    }

    /// From the input of the query, key and value projections to that of the output projection.
    pub(crate) fn attended(
        &self,
        params: &ParamTensors,
        h: Tensor<2>,
        layer: usize,
        (batch, seq): (usize, usize),
        bits: &TokenBits,
        options: &ForwardOptions,
        state: &mut LayerState,
    ) -> Tensor<2> {
        let spec = &self.spec;
        let shape = AttentionShape {
            batch,
            seq,
            heads: spec.num_attention_heads,
            kv_heads: spec.num_key_value_heads,
            head_dim: spec.head_dim,
        };
        let project = |kind, x| self.projection(params, x, layer, kind, bits);
        let q = self.head_norm(params, project(LinearKind::Q, h.clone()), layer, LinearKind::Q);
        let k = self.head_norm(params, project(LinearKind::K, h.clone()), layer, LinearKind::K);
        let v = project(LinearKind::V, h);
        self.record_heads(layer, [&q, &k, &v], shape, options);
        self.extra_terms(params, layer, (&q, &k), shape, bits, options, state);
        let taps = Arc::new(Mutex::new(AttentionTaps {
            wants_sink: self.plan.as_ref().is_some_and(|plan| plan.policy.uniform().is_none()),
            wants_probabilities: options.keep_maps,
            ..AttentionTaps::default()
        }));
        let attended = self.attention(params, layer, [q, k, v], shape, bits, taps.clone());
        let mut taps = taps.lock().unwrap_or_else(|e| e.into_inner());
        state.sink_probs = std::mem::take(&mut taps.sink_probs);
        if options.keep_maps {
            state.maps.push(taps.probabilities.clone());
        }
        attended
    }

    /// From the input of the gate and up projections to that of the down projection.
    pub(crate) fn gated(
        &self,
        params: &ParamTensors,
        h: Tensor<2>,
        layer: usize,
        bits: &TokenBits,
    ) -> Tensor<2> {
        let gate = self.projection(params, h.clone(), layer, LinearKind::Gate, bits);
        self.apply(SwiGlu, vec![gate, self.projection(params, h, layer, LinearKind::Up, bits)])
    }

    /// Logits `[tokens, vocabulary]` from the output of the last layer.
    pub(crate) fn head(&self, params: &ParamTensors, x: Tensor<2>, options: &ForwardOptions) -> Tensor<2> {
        // The gain of the final norm has its place between two transforms; table and head are stored transformed.
        let x = self.normed(params, self.residual_transform(x), ModelSpec::FINAL_NORM);
        let x = self.residual_transform(x);
        self.record(options, None, ActPoint::LmHeadInput, &x);
        // The head's input is always 8 bits.
        let bits = TokenBits::Uniform(ActBits::A8);
        let scheme = self.plan.as_ref().and_then(|plan| plan.head);
        self.linear(params, x, (self.spec.head_name(), scheme, false), (ActPoint::LmHeadInput, None, &bits))
    }

    /// Activation bits of every token in `layer`; leaves the policy's scores.
    pub(crate) fn token_bits(
        &self,
        layer: usize,
        x: &Tensor<2>,
        sink_probs: &[f32],
        seq: usize,
        scores: &mut Vec<Vec<f32>>,
    ) -> TokenBits {
        let Some(plan) = &self.plan else {
            scores.push(Vec::new());
            return TokenBits::Uniform(ActBits::A8);
        };
        if let Some(bits) = plan.policy.uniform() {
            scores.push(Vec::new());
            return TokenBits::Uniform(bits);
        }
        let norms: Vec<f32> = match plan.policy {
            squat_quant::token_policy::TokenPolicy::ActivationNorm => {
                let hidden = self.spec.hidden_size;
                let data = x.clone().into_data();
                let values = data.as_slice::<f32>().expect("activations are f32");
                values
                    .chunks_exact(hidden)
                    .map(|row| squat_quant::math::sqrt(Kernels::detect().sum_squares(row)))
                    .collect()
            }
            _ => vec![0.0; sink_probs.len()],
        };
        let theta = plan.thresholds.get(layer).copied().unwrap_or(0.0);
        let mut found = Vec::new();
        let bits: Vec<ActBits> = sink_probs
            .iter()
            .zip(&norms)
            .enumerate()
            .map(|(token, (&sink_probability, &input_norm))| {
                let evidence = TokenEvidence { position: token % seq, sink_probability, input_norm };
                found.extend(plan.policy.score(&evidence));
                plan.policy.decide(layer, theta, &evidence)
            })
            .collect();
        scores.push(found);
        TokenBits::PerToken(bits.into())
    }

    fn record_heads(
        &self,
        layer: usize,
        [q, k, v]: [&Tensor<2>; 3],
        shape: AttentionShape,
        options: &ForwardOptions,
    ) {
        if let Some(observer) = &options.observe {
            let rope = Some(self.rope.as_ref());
            let points = [
                (q, ActPoint::Query, shape.heads, rope),
                (k, ActPoint::Key, shape.kv_heads, rope),
                (v, ActPoint::Value, shape.kv_heads, None),
            ];
            for (x, point, heads, rope) in points {
                let data = x.clone().into_data();
                let values = data.as_slice::<f32>().expect("activations are f32");
                let rotated = prepare(values, shape, heads, rope, None, None).rotated;
                observer.lock().unwrap_or_else(|e| e.into_inner()).record(Some(layer), point, &rotated);
            }
        }
    }

    fn attention(
        &self,
        params: &ParamTensors,
        layer: usize,
        qkv: [Tensor<2>; 3],
        shape: AttentionShape,
        bits: &TokenBits,
        taps: Arc<Mutex<AttentionTaps>>,
    ) -> Tensor<2> {
        let points = [ActPoint::Query, ActPoint::Key, ActPoint::Value];
        let [query, key, value] = points.map(|point| self.act(point, bits));
        let probs =
            self.plan.as_ref().and_then(|plan| plan.point(ActPoint::AttnProbs).map(|_| plan.attn_probs_bits));
        let parameters = points
            .into_iter()
            .zip([&query, &key, &value])
            .filter_map(|(point, quant)| self.static_tensor(params, quant.as_ref(), Some(layer), point));
        let inputs = qkv.into_iter().chain(parameters).collect();
        let quant = AttentionQuant { query, key, value, probs };
        self.apply(Attention { shape, rope: self.rope.clone(), quant, taps }, inputs)
    }

    fn extra_terms(
        &self,
        params: &ParamTensors,
        layer: usize,
        (q, k): (&Tensor<2>, &Tensor<2>),
        shape: AttentionShape,
        bits: &TokenBits,
        options: &ForwardOptions,
        output: &mut LayerState,
    ) {
        let (query, key) = (self.act(ActPoint::Query, bits), self.act(ActPoint::Key, bits));
        let at = Some(layer);
        let query_parameters = self.static_tensor(params, query.as_ref(), at, ActPoint::Query);
        let key_parameters = self.static_tensor(params, key.as_ref(), at, ActPoint::Key);
        if let Some(teacher) = options.align.get(&layer) {
            let op = Alignment {
                shape,
                rope: self.rope.clone(),
                query: query.clone(),
                key: key.clone(),
                teacher: teacher.clone(),
            };
            let parameters = [&query_parameters, &key_parameters].into_iter().flatten().cloned();
            let inputs = [q, k].into_iter().cloned().chain(parameters).collect();
            output.alignment.push(self.apply(op, inputs));
        }
        if options.entropy {
            let points =
                [(q, query, query_parameters, shape.heads), (k, key, key_parameters, shape.kv_heads)];
            for (x, quant, parameters, heads) in points {
                let Some(quant) = quant else { continue };
                let op = CodeEntropy { shape, heads, rope: self.rope.clone(), quant };
                output.entropy.push(self.apply(op, [x.clone()].into_iter().chain(parameters).collect()));
            }
        }
    }
}

/// The state that layers hand on to those above and to the loss.
#[derive(Default)]
pub(crate) struct LayerState {
    /// Each token's own probability of the first position in the layer below, mean over heads.
    pub(crate) sink_probs: Vec<f32>,
    pub(crate) alignment: Vec<Tensor<2>>,
    pub(crate) entropy: Vec<Tensor<2>>,
    pub(crate) scores: Vec<Vec<f32>>,
    pub(crate) bits: Vec<TokenBits>,
    maps: Vec<Arc<Vec<f32>>>,
}

/// Mean of the terms of all layers.
pub(crate) fn mean_of_terms(terms: Vec<Tensor<2>>) -> Option<Tensor<2>> {
    let n = terms.len() as f32;
    terms.into_iter().reduce(|a, b| a + b).map(|sum| sum / n)
}
