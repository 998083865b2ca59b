//! The forward pass of a LLaMA-family model over named parameters, full precision or fake-quantized.

use crate::calibration::Observer;
use crate::device::is_cpu;
use crate::error::TrainError;
use crate::half_matrix::HalfMatrix;
use crate::ops::alignment::Alignment;
use crate::ops::attention::{Attention, AttentionQuant, AttentionShape, AttentionSide, Rope, prepare};
use crate::ops::embedding::Embedding;
use crate::ops::entropy::CodeEntropy;
use crate::ops::linear::Linear;
use crate::ops::rms_norm::RmsNorm;
use crate::ops::swiglu::SwiGlu;
use crate::parameters::{Group, Parameter, Parameters};
use crate::plain::{PlainForm, run};
use crate::profile::{self, Phase};
use crate::quantizer::{ActQuant, STATIC_PARAMETERS, TokenBits, pack_weight};
use crate::recipe::MixedPrecision;
use burn::tensor::{Device, Tensor, TensorData};
use squat_kernels::{Kernels, PackedMatrix};
use squat_model::{LinearKind, ModelSpec, ParamKind, QuantPlan};
use squat_quant::token_policy::TokenEvidence;
use squat_quant::{ActBits, ActPoint, ActScheme, WeightScheme};
use std::collections::HashMap;
use std::sync::{Arc, Mutex};

/// Parameters as tensors of one device, leaves of the tape where training asks for it.
pub struct Leaves {
    tensors: HashMap<String, Held>,
    packed: Arc<HashMap<String, Arc<PackedMatrix>>>,
}

impl Leaves {
    /// Copies parameters to tensors on the CPU, without a tape.
    pub fn constant(parameters: &Parameters) -> Self {
        Self::on(parameters, &Device::flex())
    }

    /// Copies parameters to tensors of a device, without a tape.
    pub fn on(parameters: &Parameters, device: &Device) -> Self {
        Self::from_values(parameters.iter().map(|p| (p, p.values.clone())), device)
    }

    /// Takes the parameters' values as tensors of a device, without a tape; [`Self::give_back`] returns them. On the CPU
    /// nothing is copied.
    pub fn take(parameters: &mut Parameters, device: &Device) -> Self {
        let values: Vec<Vec<f32>> =
            parameters.list_mut().iter_mut().map(|p| std::mem::take(&mut p.values)).collect();
        Self::from_values(parameters.iter().zip(values), device)
    }

    /// Takes the values of a frozen model as [`Self::take`] does on the CPU, weights rounded to bf16.
    pub fn take_half(parameters: &mut Parameters) -> Self {
        let device = Device::flex();
        let held = parameters.list_mut().iter_mut().map(|p| {
            let values = std::mem::take(&mut p.values);
            let held = match p.group {
                Group::Weight => Held::Half(Arc::new(HalfMatrix::new(&values, p.shape))),
                _ => Held::Tensor(Tensor::from_data(TensorData::new(values, p.shape), &device)),
            };
            (p.name.clone(), held)
        });
        Self { tensors: held.collect(), packed: Arc::default() }
    }

    /// Returns what [`Self::take`] took.
    ///
    /// # Panics
    /// When the parameters are others, an error of this crate.
    pub fn give_back(mut self, parameters: &mut Parameters) {
        for parameter in parameters.list_mut() {
            let Some(Held::Tensor(tensor)) = self.tensors.remove(&parameter.name) else {
                panic!("the parameters that were taken: {}", parameter.name)
            };
            parameter.values = tensor.into_data().try_into_vec::<f32>().expect("parameters are f32");
        }
    }

    fn from_values<'a>(values: impl Iterator<Item = (&'a Parameter, Vec<f32>)>, device: &Device) -> Self {
        let tensors = values
            .map(|(p, values)| {
                let tensor = Tensor::from_data(TensorData::new(values, p.shape), device);
                (p.name.clone(), Held::Tensor(tensor))
            })
            .collect();
        Self { tensors, packed: Arc::default() }
    }

    /// With weights that [`pack_linears`] packed from the same parameters; they serve every forward that follows.
    pub fn with_packed(self, packed: PackedLinears) -> Self {
        Self { packed: packed.0, ..self }
    }

    /// The same memory as leaves of a new tape; what is held as bf16 stays off it.
    pub fn tracked(&self) -> Self {
        let track = |held: &Held| match held {
            Held::Tensor(tensor) => Held::Tensor(Tensor::from_inner(tensor.clone()).require_grad()),
            Held::Half(half) => Held::Half(half.clone()),
        };
        let tensors = self.tensors.iter().map(|(name, held)| (name.clone(), track(held))).collect();
        Self { tensors, packed: self.packed.clone() }
    }

    /// The tensor of that name; what is held as bf16 is widened anew.
    ///
    /// # Panics
    /// When there is none: the parameters do not belong to the spec, an error of this crate.
    pub fn get(&self, name: &str) -> Tensor<2> {
        match self.tensors.get(name) {
            Some(Held::Tensor(tensor)) => tensor.clone(),
            Some(Held::Half(half)) => half.widened(),
            None => panic!("no parameter {name}"),
        }
    }

    /// These rows of a tensor, if it is held as bf16.
    fn half_rows(&self, name: &str, rows: &[u32]) -> Option<Tensor<2>> {
        match self.tensors.get(name) {
            Some(Held::Half(half)) => Some(half.rows(rows)),
            _ => None,
        }
    }

    /// Bytes of all tensors, packed weights left out.
    pub fn bytes(&self) -> usize {
        let bytes = |held: &Held| match held {
            Held::Tensor(tensor) => tensor.shape().num_elements() * size_of::<f32>(),
            Held::Half(half) => half.bytes(),
        };
        self.tensors.values().map(bytes).sum()
    }
}

/// How a parameter is held.
#[allow(clippy::large_enum_variant)] // One for each weight, and nearly always the large one.
enum Held {
    Tensor(Tensor<2>),
    Half(Arc<HalfMatrix>),
}

/// Quantized weights as the integer kernels take them, by name.
#[derive(Clone, Debug, Default)]
pub struct PackedLinears(Arc<HashMap<String, Arc<PackedMatrix>>>);

/// Quantizes and packs every linear of the model that runs on the integer kernels; none on other devices than the CPU.
pub fn pack_linears(
    model: &Model,
    parameters: &Parameters,
    device: &Device,
    threads: usize,
) -> PackedLinears {
    if !is_cpu(device) {
        return PackedLinears::default();
    }
    let mut jobs: Vec<(String, WeightScheme, &Parameter, &Parameter)> = model
        .integer_linears()
        .into_iter()
        .filter_map(|(name, scheme)| {
            let (weight, logs) = (parameters.get(&name)?, parameters.get(&log_scale_name(&name))?);
            Some((name, scheme, weight, logs))
        })
        .collect();
    // The largest first, so that threads end together.
    jobs.sort_by_key(|(_, _, weight, _)| weight.values.len());
    let threads = threads.min(jobs.len());
    let jobs = Mutex::new(jobs);
    let packed = Mutex::new(HashMap::new());
    let work = || {
        loop {
            let next = jobs.lock().unwrap_or_else(|e| e.into_inner()).pop();
            let Some((name, scheme, weight, logs)) = next else { return };
            let [rows, cols] = weight.shape;
            if let Some(matrix) = pack_weight(&weight.values, rows, cols, scheme, &logs.values) {
                packed.lock().unwrap_or_else(|e| e.into_inner()).insert(name, Arc::new(matrix));
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 1..threads {
            scope.spawn(|| {
                let _phase = profile::phase(Phase::Parameters);
                work();
            });
        }
        work();
    });
    PackedLinears(Arc::new(packed.into_inner().unwrap_or_else(|e| e.into_inner())))
}

/// Name of the log scales of a weight.
pub fn log_scale_name(weight: &str) -> String {
    format!("{}.weight_log_scale", weight.strip_suffix(".weight").unwrap_or(weight))
}

/// Name under which the four learned parameters of a static activation point are trained.
pub fn static_name(layer: Option<usize>, point: ActPoint) -> String {
    match layer {
        Some(layer) => format!("model.layers.{layer}.{}.static", point.name()),
        None => format!("model.{}.static", point.name()),
    }
}

/// What a forward pass should compute beside the logits.
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

impl ForwardOptions {
    fn record(&self, layer: Option<usize>, point: ActPoint, x: &Tensor<2>) {
        if let Some(observer) = &self.observe {
            let data = x.clone().into_data();
            let values = data.as_slice::<f32>().expect("activations are f32");
            observer.lock().unwrap_or_else(|e| e.into_inner()).record(layer, point, values);
        }
    }
}

/// What a forward pass gives.
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
    /// For each layer the softmax rows, if asked for.
    pub maps: Vec<Arc<Vec<f32>>>,
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
    /// Operations are tensor expressions on the CPU too: slow, and there to hold the fused ones against.
    pub plain_forms: bool,
    rope: Arc<Rope>,
}

impl Model {
    /// A model for sequences of up to `max_seq` tokens.
    ///
    /// # Panics
    /// With a spec that [`check_trainable`] refuses.
    pub fn new(spec: ModelSpec, plan: Option<QuantPlan>, max_seq: usize) -> Self {
        let rope = spec.rope.as_ref().expect("models that can be trained have RoPE, callers check");
        let (cos, sin) = rope.tables(max_seq, spec.head_dim);
        Self {
            spec,
            plan,
            recompute: false,
            mixed_precision: MixedPrecision::No,
            plain_forms: false,
            rope: Arc::new(Rope { cos, sin }),
        }
    }

    /// Runs an operation fused where it can be, else as tensor expressions.
    pub(crate) fn run<const N: usize>(&self, op: impl PlainForm, inputs: [Tensor<2>; N]) -> Tensor<2> {
        if self.plain_forms { op.plain(inputs.into_iter().collect()) } else { run(op, inputs) }
    }

    /// Names and schemes of the linears whose weight and input are both quantized.
    fn integer_linears(&self) -> Vec<(String, WeightScheme)> {
        let Some(plan) = &self.plan else { return Vec::new() };
        let points = [
            (LinearKind::Q, ActPoint::AttnIn),
            (LinearKind::K, ActPoint::AttnIn),
            (LinearKind::V, ActPoint::AttnIn),
            (LinearKind::O, ActPoint::OProjInput),
            (LinearKind::Gate, ActPoint::MlpIn),
            (LinearKind::Up, ActPoint::MlpIn),
            (LinearKind::Down, ActPoint::DownProjInput),
        ];
        let mut found = Vec::new();
        for layer in 0..self.spec.num_hidden_layers {
            for (kind, point) in points {
                if let (Some(scheme), Some(_)) = (plan.weight, plan.point(point)) {
                    found.push((self.spec.linear_name(layer, kind), scheme));
                }
            }
        }
        if let (Some(scheme), Some(_)) = (plan.head, plan.point(ActPoint::LmHeadInput)) {
            found.push((self.spec.head_name().to_owned(), scheme));
        }
        found
    }

    fn act(&self, point: ActPoint, bits: &TokenBits) -> Option<ActQuant> {
        let scheme = self.plan.as_ref()?.point(point)?;
        Some(ActQuant { scheme, bits: bits.clone() })
    }

    fn static_tensor(
        &self,
        leaves: &Leaves,
        quant: Option<&ActQuant>,
        layer: Option<usize>,
        point: ActPoint,
    ) -> Option<Tensor<2>> {
        match quant {
            Some(ActQuant { scheme: ActScheme::Static, .. }) => Some(leaves.get(&static_name(layer, point))),
            _ => None,
        }
    }

    fn linear(
        &self,
        leaves: &Leaves,
        x: Tensor<2>,
        name: &str,
        scheme: Option<WeightScheme>,
        (point, layer, bits): (ActPoint, Option<usize>, &TokenBits),
    ) -> Tensor<2> {
        let input = self.act(point, bits);
        let parameters = self.static_tensor(leaves, input.as_ref(), layer, point);
        let packed = leaves.packed.get(name).cloned();
        let op = Linear { weight: scheme, input, packed, bf16: self.mixed_precision == MixedPrecision::Bf16 };
        let weight = leaves.get(name);
        match (scheme.map(|_| leaves.get(&log_scale_name(name))), parameters) {
            (None, None) => self.run(op, [x, weight]),
            (Some(a), None) | (None, Some(a)) => self.run(op, [x, weight, a]),
            (Some(a), Some(b)) => self.run(op, [x, weight, a, b]),
        }
    }

    /// Logits of `[batch, seq]` token ids (row-major), with the extra terms that the options ask for.
    ///
    /// # Panics
    /// When an id is out of the vocabulary or `seq` is longer than the model was made for; callers check both.
    pub fn forward(
        &self,
        leaves: &Leaves,
        ids: &[u32],
        (batch, seq): (usize, usize),
        options: &ForwardOptions,
    ) -> ForwardOutput {
        let layers = self.spec.num_hidden_layers;
        assert_eq!(ids.len(), batch * seq, "ids of a [batch, seq] block");
        assert!(seq * self.spec.head_dim / 2 <= self.rope.cos.len(), "sequence of {seq} tokens");
        let mut state = self.begin(ids);
        let mut x = self.embed(leaves, ids);
        for layer in 0..layers {
            x = self.layer(leaves, x, layer, (batch, seq), None, options, &mut state);
        }
        ForwardOutput {
            logits: self.head(leaves, x, options),
            alignment: mean_of_terms(state.alignment),
            entropy: mean_of_terms(state.entropy),
            scores: state.scores,
            bits: state.bits,
            maps: state.maps,
        }
    }

    /// What layers leave behind, before the first of them.
    pub(crate) fn begin(&self, ids: &[u32]) -> LayerState {
        LayerState { sink: vec![0.0; ids.len()], ..LayerState::default() }
    }

    /// Rows of the token table, `[tokens, hidden]`.
    pub(crate) fn embed(&self, leaves: &Leaves, ids: &[u32]) -> Tensor<2> {
        let weight = self.plan.as_ref().and_then(|plan| plan.embedding);
        let embedding = Embedding { ids: ids.into(), weight };
        if let (None, Some(rows)) = (weight, leaves.half_rows(ModelSpec::EMBEDDING, ids)) {
            return rows;
        }
        let table = leaves.get(ModelSpec::EMBEDDING);
        match embedding.weight {
            Some(_) => self.run(embedding, [table, leaves.get(&log_scale_name(ModelSpec::EMBEDDING))]),
            None => self.run(embedding, [table]),
        }
    }

    /// One layer, `[tokens, hidden]` to the same. `fixed` are activation bits that were decided before; otherwise the
    /// policy decides.
    pub(crate) fn layer(
        &self,
        leaves: &Leaves,
        x: Tensor<2>,
        layer: usize,
        (batch, seq): (usize, usize),
        fixed: Option<TokenBits>,
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
        let norm = RmsNorm { eps: spec.norm_eps as f32 };
        let weight = self.plan.as_ref().and_then(|plan| plan.weight);
        let bits = match fixed {
            Some(bits) => bits,
            None => self.token_bits(layer, &x, &state.sink, seq, &mut state.scores),
        };
        let at = Some(layer);
        let h = self.run(norm, [x.clone(), leaves.get(&spec.attn_norm_name(layer))]);
        options.record(at, ActPoint::AttnIn, &h);
        let project = |kind| {
            self.linear(
                leaves,
                h.clone(),
                &spec.linear_name(layer, kind),
                weight,
                (ActPoint::AttnIn, at, &bits),
            )
        };
        let (q, k, v) = (project(LinearKind::Q), project(LinearKind::K), project(LinearKind::V));
        self.record_heads(layer, [&q, &k, &v], shape, options);
        self.extra_terms(leaves, layer, (&q, &k), shape, &bits, options, state);
        let side = Arc::new(Mutex::new(AttentionSide {
            wants_sink: self.plan.as_ref().is_some_and(|plan| plan.policy.uniform().is_none()),
            wants_probabilities: options.keep_maps,
            ..AttentionSide::default()
        }));
        let attended = self.attention(leaves, layer, [q, k, v], shape, &bits, side.clone());
        {
            let mut side = side.lock().unwrap_or_else(|e| e.into_inner());
            state.sink = std::mem::take(&mut side.sink);
            if options.keep_maps {
                state.maps.push(side.probabilities.clone());
            }
        }
        let name = |kind| spec.linear_name(layer, kind);
        options.record(at, ActPoint::OProjInput, &attended);
        let attended =
            self.linear(leaves, attended, &name(LinearKind::O), weight, (ActPoint::OProjInput, at, &bits));
        let x = x + attended;
        let h = self.run(norm, [x.clone(), leaves.get(&spec.mlp_norm_name(layer))]);
        options.record(at, ActPoint::MlpIn, &h);
        let gate =
            self.linear(leaves, h.clone(), &name(LinearKind::Gate), weight, (ActPoint::MlpIn, at, &bits));
        let up = self.linear(leaves, h, &name(LinearKind::Up), weight, (ActPoint::MlpIn, at, &bits));
        let mid = self.run(SwiGlu, [gate, up]);
        options.record(at, ActPoint::DownProjInput, &mid);
        let mid =
            self.linear(leaves, mid, &name(LinearKind::Down), weight, (ActPoint::DownProjInput, at, &bits));
        state.bits.push(bits);
        x + mid
    }

    /// Logits `[tokens, vocabulary]` from what the last layer gives.
    pub(crate) fn head(&self, leaves: &Leaves, x: Tensor<2>, options: &ForwardOptions) -> Tensor<2> {
        let norm = RmsNorm { eps: self.spec.norm_eps as f32 };
        let x = self.run(norm, [x, leaves.get(ModelSpec::FINAL_NORM)]);
        options.record(None, ActPoint::LmHeadInput, &x);
        // The head's input is always 8 bits.
        let bits = TokenBits::Uniform(ActBits::A8);
        let scheme = self.plan.as_ref().and_then(|plan| plan.head);
        self.linear(leaves, x, self.spec.head_name(), scheme, (ActPoint::LmHeadInput, None, &bits))
    }

    /// Activation bits of every token in `layer`; leaves the policy's scores.
    fn token_bits(
        &self,
        layer: usize,
        x: &Tensor<2>,
        sink: &[f32],
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
            _ => vec![0.0; sink.len()],
        };
        let theta = plan.thresholds.get(layer).copied().unwrap_or(0.0);
        let mut found = Vec::new();
        let bits: Vec<ActBits> = sink
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
        leaves: &Leaves,
        layer: usize,
        qkv: [Tensor<2>; 3],
        shape: AttentionShape,
        bits: &TokenBits,
        side: Arc<Mutex<AttentionSide>>,
    ) -> Tensor<2> {
        let points = [ActPoint::Query, ActPoint::Key, ActPoint::Value];
        let [query, key, value] = points.map(|point| self.act(point, bits));
        let probs =
            self.plan.as_ref().and_then(|plan| plan.point(ActPoint::AttnProbs).map(|_| plan.attn_probs_bits));
        let parameters: Vec<Tensor<2>> = points
            .into_iter()
            .zip([&query, &key, &value])
            .filter_map(|(point, quant)| self.static_tensor(leaves, quant.as_ref(), Some(layer), point))
            .collect();
        let quant = AttentionQuant { query, key, value, probs };
        let op = Attention { shape, rope: self.rope.clone(), quant, side };
        let [q, k, v] = qkv;
        let mut rest = parameters.into_iter();
        match (rest.next(), rest.next(), rest.next()) {
            (None, ..) => self.run(op, [q, k, v]),
            (Some(a), None, _) => self.run(op, [q, k, v, a]),
            (Some(a), Some(b), None) => self.run(op, [q, k, v, a, b]),
            (Some(a), Some(b), Some(c)) => self.run(op, [q, k, v, a, b, c]),
        }
    }

    fn extra_terms(
        &self,
        leaves: &Leaves,
        layer: usize,
        (q, k): (&Tensor<2>, &Tensor<2>),
        shape: AttentionShape,
        bits: &TokenBits,
        options: &ForwardOptions,
        output: &mut LayerState,
    ) {
        let (query, key) = (self.act(ActPoint::Query, bits), self.act(ActPoint::Key, bits));
        let at = Some(layer);
        let query_parameters = self.static_tensor(leaves, query.as_ref(), at, ActPoint::Query);
        let key_parameters = self.static_tensor(leaves, key.as_ref(), at, ActPoint::Key);
        if let Some(teacher) = options.align.get(&layer) {
            let op = Alignment {
                shape,
                rope: self.rope.clone(),
                query: query.clone(),
                key: key.clone(),
                teacher: teacher.clone(),
            };
            let (q, k) = (q.clone(), k.clone());
            output.alignment.push(match (query_parameters.clone(), key_parameters.clone()) {
                (None, None) => self.run(op, [q, k]),
                (Some(a), None) | (None, Some(a)) => self.run(op, [q, k, a]),
                (Some(a), Some(b)) => self.run(op, [q, k, a, b]),
            });
        }
        if options.entropy {
            let points =
                [(q, query, query_parameters, shape.heads), (k, key, key_parameters, shape.kv_heads)];
            for (x, quant, parameters, heads) in points {
                let Some(quant) = quant else { continue };
                let op = CodeEntropy { shape, heads, rope: self.rope.clone(), quant };
                output.entropy.push(match parameters {
                    None => self.run(op, [x.clone()]),
                    Some(a) => self.run(op, [x.clone(), a]),
                });
            }
        }
    }
}

/// What layers leave for those above, and for the loss.
#[derive(Default)]
pub(crate) struct LayerState {
    /// Each token's own probability of the first position in the layer below, mean over heads.
    sink: Vec<f32>,
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

/// Shape of a parameter as the trainer holds it: vectors are `[1, n]`.
pub fn matrix_shape(shape: &[usize]) -> [usize; 2] {
    match *shape {
        [rows, cols] => [rows, cols],
        _ => [1, shape.iter().product()],
    }
}

/// Whether the trainer has the forward pass of such a model.
///
/// # Errors
/// Any architecture but LLaMA's.
pub fn check_trainable(spec: &ModelSpec) -> Result<(), TrainError> {
    let llama = squat_model::arch::llama::base();
    let features = |spec: &ModelSpec| (spec.norm, spec.qk_norm, spec.mlp, spec.biases, spec.rope.is_some());
    if features(spec) == features(&llama) {
        return Ok(());
    }
    Err(TrainError::Input(format!(
        "models of the class {} cannot be trained, nor teach: the trainer has the forward pass of {} alone; they can be \
         packed by rounding to nearest (squat pack --plan w4a8), run and evaluated",
        spec.architecture.class, llama.architecture.class
    )))
}

/// Fresh parameters: normal weights of standard deviation `std` (residual projections scaled by `1/sqrt(2 layers)`),
/// gains of one, biases of zero; the same for the same seed.
pub fn initial_parameters(spec: &ModelSpec, std: f32, seed: u64) -> Parameters {
    let mut parameters = Parameters::default();
    let residual = std / (2.0 * spec.num_hidden_layers as f32).sqrt();
    for (index, info) in spec.parameters().into_iter().enumerate() {
        let shape = matrix_shape(&info.shape);
        let n = shape[0] * shape[1];
        let (values, group) = match info.kind {
            ParamKind::Norm(_) => (vec![1.0; n], Group::Norm),
            ParamKind::Bias => (vec![0.0; n], Group::Norm),
            ParamKind::Linear(LinearKind::O | LinearKind::Down) => {
                (normal(n, residual, seed, index as u64), Group::Weight)
            }
            ParamKind::Embedding | ParamKind::Positions | ParamKind::Head | ParamKind::Linear(_) => {
                (normal(n, std, seed, index as u64), Group::Weight)
            }
        };
        parameters.push(info.name, shape, values, group);
    }
    parameters
}

/// Normal numbers by Box and Muller from SplitMix64, one stream for each (seed, stream).
fn normal(n: usize, std: f32, seed: u64, stream: u64) -> Vec<f32> {
    let mut state = seed ^ (stream + 1).wrapping_mul(0xA076_1D64_78BD_642F);
    let mut next = || {
        state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 53) as f64
    };
    let mut out = Vec::with_capacity(n + 1);
    while out.len() < n {
        let radius = (-2.0 * (1.0 - next()).ln()).sqrt() * f64::from(std);
        let angle = std::f64::consts::TAU * next();
        out.push((radius * angle.cos()) as f32);
        out.push((radius * angle.sin()) as f32);
    }
    out.truncate(n);
    out
}

/// Adds the quantizer parameters of `plan` to full-precision parameters: log scales of the smallest squared error,
/// and static points still uncalibrated (see `crate::calibration`).
pub fn add_quantizer_parameters(parameters: &mut Parameters, spec: &ModelSpec, plan: &QuantPlan) {
    for info in spec.parameters() {
        let Some(scheme) = plan.scheme_of(&info) else { continue };
        let [rows, cols] = matrix_shape(&info.shape);
        let mut scales = vec![0f32; scheme.num_scales(rows, cols)];
        if let Some(weight) = parameters.get(&info.name) {
            squat_quant::calibrate::weight_scales(&weight.values, rows, cols, scheme, &mut scales);
        }
        let logs: Vec<f32> = scales.iter().map(|s| s.ln()).collect();
        parameters.push(log_scale_name(&info.name), [1, logs.len()], logs, Group::Step);
    }
    for (layer, point) in static_points(spec, plan) {
        parameters.push(
            static_name(layer, point),
            [1, STATIC_PARAMETERS],
            vec![0.0; STATIC_PARAMETERS],
            Group::Step,
        );
    }
}

/// Every static activation point of a plan, with its layer.
pub fn static_points(spec: &ModelSpec, plan: &QuantPlan) -> Vec<(Option<usize>, ActPoint)> {
    let is_static =
        |point: ActPoint| point != ActPoint::AttnProbs && plan.point(point) == Some(ActScheme::Static);
    let layered = ActPoint::ALL.into_iter().filter(|&p| p != ActPoint::LmHeadInput && is_static(p));
    let layered: Vec<ActPoint> = layered.collect();
    let mut out: Vec<(Option<usize>, ActPoint)> = (0..spec.num_hidden_layers)
        .flat_map(|layer| layered.iter().map(move |&p| (Some(layer), p)))
        .collect();
    if is_static(ActPoint::LmHeadInput) {
        out.push((None, ActPoint::LmHeadInput));
    }
    out
}
