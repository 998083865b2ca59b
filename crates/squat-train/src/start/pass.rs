//! The model, layer by layer: inputs are collected, weights quantized, outputs handed on.

use super::Methods;
use super::gram::Gram;
use super::migrate::{Place, migrate};
use super::solve::{Moments, for_each_job};
use crate::checkpoint::Loaded;
use crate::error::TrainError;
use crate::fake_quant::{TokenBits, fake_quantize_rows};
use crate::model::{
    ForwardOptions, Model, ParamTensors, add_quantizer_parameters, pack_linears, transform_values,
    transform_weights,
};
use crate::parameters::{Group, Parameters};
use crate::quantizer::{parameter_name, stored_scales};
use crate::thresholds::quantile;
use burn::tensor::{Device, Tensor, TensorData};
use squat_kernels::Kernels;
use squat_model::{LinearKind, ModelSpec, QuantPlan};
use squat_quant::{ActBits, ActPoint, ActScheme, Transform};

/// Sums that are formed side by side.
const LANES: usize = 4;

/// Linears of a layer that have one input, in the order in which they are quantized.
const STEPS: [&[LinearKind]; 4] = [
    &[LinearKind::Q, LinearKind::K, LinearKind::V],
    &[LinearKind::O],
    &[LinearKind::Gate, LinearKind::Up],
    &[LinearKind::Down],
];

/// A layer is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Layers done.
    pub layers: usize,
    /// Layers in all.
    pub of: usize,
}

/// A model with its first codes and scales.
#[derive(Clone, Debug)]
pub struct Started {
    /// Quantized weights are `scale * code`; their scales are the parameters of the quantizer whose parameters are scales.
    pub loaded: Loaded,
}

/// One sequence on its way through both models.
struct Stream {
    tokens: usize,
    /// In the model as quantized so far, `[tokens, hidden]`.
    quantized: Vec<f32>,
    /// In full precision.
    plain: Vec<f32>,
    /// What each token attends to the first one, in the layer below of the model as quantized so far.
    sink_probs: Vec<f32>,
    /// Activation bits of each token in this layer.
    bits: TokenBits,
}

/// Finds first codes and scales of `model`, in full precision, under `plan`, on `sequences` of token ids that begin with BOS.
///
/// Token table and head get the scales of least squared error. Thresholds of a token policy are those that the wanted share of
/// the tokens reaches, layer by layer, in the model as quantized so far.
///
/// # Errors
/// A model that has quantizers already; a plan that does not fit it, or has static points; a wish to stop
/// ([`squat_files::interrupt`]).
pub fn start(
    model: &Loaded,
    plan: &QuantPlan,
    sequences: &[Vec<u32>],
    methods: &Methods,
    threads: usize,
    report: &mut dyn FnMut(Progress),
) -> Result<Started, TrainError> {
    if model.plan.is_some() {
        return Err(TrainError::Input(
            "expected a model in full precision, got one with quantizers; give the model it was made from"
                .into(),
        ));
    }
    let spec = &model.spec;
    plan.validate(spec)?;
    if plan.points.contains(&Some(ActScheme::Static)) {
        return Err(TrainError::Input(
            "expected a plan whose activations have dynamic scales, got static ones, which training calibrates".into(),
        ));
    }
    let mut parameters = model.parameters.clone();
    if methods.rotate {
        transform_values(&mut parameters, spec);
    }
    transform_weights(&mut parameters, spec, plan);
    add_quantizer_parameters(&mut parameters, spec, plan, stored_scales());
    let longest = sequences.iter().map(Vec::len).max().unwrap_or(0).max(1);
    let mut quantized = Model::new(spec.clone(), Some(plan.clone()), longest);
    quantized.quantizer = stored_scales();
    let mut pass = Pass {
        plain: Model::new(spec.clone(), Some(plan.without_quantizers()), longest),
        quantized,
        parameters,
        methods: *methods,
        threads: threads.max(1),
        streams: Vec::new(),
    };
    let calibrates = methods.calibrates() || plan.needs_thresholds();
    if plan.weight.is_some() && calibrates && !sequences.is_empty() {
        pass.embed(sequences);
        for layer in 0..spec.num_hidden_layers {
            squat_files::interrupt::check()?;
            pass.layer(layer);
            report(Progress { layers: layer + 1, of: spec.num_hidden_layers });
        }
    }
    let Pass { parameters, quantized, .. } = pass;
    let plan = quantized.plan;
    plan.iter().try_for_each(|plan| plan.validate_frozen(spec))?;
    Ok(Started { loaded: Loaded { spec: spec.clone(), plan, parameters, quantizer: stored_scales() } })
}

/// State between layers.
struct Pass {
    plain: Model,
    quantized: Model,
    /// Weights and scales; those of the layers done are final.
    parameters: Parameters,
    methods: Methods,
    threads: usize,
    streams: Vec<Stream>,
}

/// Rows of a tensor.
fn rows(x: Tensor<2>) -> Vec<f32> {
    x.into_data().try_into_vec::<f32>().expect("activations are f32")
}

fn tensor(x: Vec<f32>, cols: usize) -> Tensor<2> {
    let rows = x.len() / cols;
    Tensor::from_data(TensorData::new(x, [rows, cols]), &Device::flex())
}

impl Pass {
    fn spec(&self) -> &ModelSpec {
        &self.plain.spec
    }

    fn plan(&self) -> &QuantPlan {
        self.quantized.plan.as_ref().expect("the quantized model has a plan")
    }

    /// The threshold of a layer, where the token policy has one, and the bits of every token.
    fn choose_bits(&mut self, layer: usize) {
        let hidden = self.spec().hidden_size;
        let mut streams = std::mem::take(&mut self.streams);
        let decide = |model: &Model, stream: &Stream, scores: &mut Vec<Vec<f32>>| {
            let x = tensor(stream.quantized.clone(), hidden);
            model.token_bits(layer, &x, &stream.sink_probs, stream.tokens, scores)
        };
        if self.plan().needs_thresholds() {
            let mut scores = Vec::new();
            streams.iter().for_each(|stream| drop(decide(&self.quantized, stream, &mut scores)));
            // The first token has 8 bits whatever its score is.
            let scores: Vec<f32> = scores.iter().flat_map(|own| own.iter().skip(1)).copied().collect();
            if let Some(plan) = &mut self.quantized.plan {
                plan.thresholds.truncate(layer);
                // A layer without scores, whose tokens are the first of their sequences, lets all pass.
                let threshold = if scores.is_empty() { 0.0 } else { quantile(&scores, plan.rho) };
                plan.thresholds.push(threshold);
            }
        }
        for stream in &mut streams {
            stream.bits = decide(&self.quantized, stream, &mut Vec::new());
        }
        self.streams = streams;
    }

    /// The parameters whose names pass, as tensors.
    fn tensors(&self, model: &Model, wanted: impl Fn(&str) -> bool) -> ParamTensors {
        let mut some = Parameters::default();
        for p in self.parameters.iter().filter(|p| wanted(&p.name)) {
            some.push(p.name.clone(), p.shape, p.values.clone(), p.group);
        }
        let packed = pack_linears(model, &some, &Device::flex(), self.threads);
        ParamTensors::take(&mut some, &Device::flex()).with_packed(packed)
    }

    fn embed(&mut self, sequences: &[Vec<u32>]) {
        let table = [ModelSpec::EMBEDDING.to_owned(), parameter_name(ModelSpec::EMBEDDING)];
        let mut all = Parameters::default();
        for p in self.parameters.iter().filter(|p| table.contains(&p.name)) {
            all.push(p.name.clone(), p.shape, p.values.clone(), p.group);
        }
        let params = ParamTensors::take(&mut all, &Device::flex());
        self.streams = sequences
            .iter()
            .map(|ids| Stream {
                tokens: ids.len(),
                quantized: rows(self.quantized.embed(&params, ids)),
                plain: rows(self.plain.embed(&params, ids)),
                sink_probs: vec![0.0; ids.len()],
                bits: TokenBits::Uniform(ActBits::A8),
            })
            .collect();
    }

    /// Quantizes one layer and hands both models' outputs on.
    fn layer(&mut self, layer: usize) {
        let (spec, hidden) = (self.spec().clone(), self.spec().hidden_size);
        let prefix = format!("model.layers.{layer}.");
        let original = self.tensors(&self.plain, |name| name.starts_with(&prefix));
        self.choose_bits(layer);
        let wide = TokenBits::Uniform(ActBits::A8);
        let options = ForwardOptions::default();
        // What a point's row is in full precision, for every stream; then the same in the quantized model.
        let mut streams = std::mem::take(&mut self.streams);
        let mut plain: Vec<[Vec<f32>; 4]> = streams.iter().map(|_| Default::default()).collect();
        let model = &self.plain;
        for_each_job(streams.iter_mut().zip(&mut plain), self.threads, |(stream, kept)| {
            let shape = (1, stream.tokens);
            let mut state = model.begin(&vec![0; stream.tokens]);
            let x = tensor(std::mem::take(&mut stream.plain), hidden);
            let h = model.normed(&original, x.clone(), &spec.attn_norm_name(layer));
            kept[0] = rows(h.clone());
            let attended = model.attended(&original, h, layer, shape, &wide, &options, &mut state);
            kept[1] = rows(attended.clone());
            let x = x + model.projection(&original, attended, layer, LinearKind::O, &wide);
            let h = model.normed(&original, x.clone(), &spec.mlp_norm_name(layer));
            kept[2] = rows(h.clone());
            let mid = model.gated(&original, h, layer, &wide);
            kept[3] = rows(mid.clone());
            stream.plain = rows(x + model.projection(&original, mid, layer, LinearKind::Down, &wide));
        });
        drop(original);
        if self.methods.migrate && self.plan().residual.is_none() {
            self.migrate(layer, &mut plain);
        }
        // Inputs of the linears to quantize next, and the residual stream beside them.
        let mut inputs: Vec<Vec<f32>> = streams.iter().map(|_| Vec::new()).collect();
        for (step, kinds) in STEPS.into_iter().enumerate() {
            let params = self.tensors(&self.quantized, |name| name.starts_with(&prefix));
            let (model, point) = (&self.quantized, kinds[0].input_point());
            let cols = spec.linear_shape(kinds[0])[1];
            let crossed = self.methods.correct > 0.0;
            let transform = self.plan().transform(point);
            // Always as many sums, added in one order, so that the number of threads changes nothing.
            let mut lanes: Vec<(Vec<_>, Gram)> = (0..LANES).map(|_| (Vec::new(), Gram::default())).collect();
            for (at, job) in streams.iter_mut().zip(&mut inputs).zip(&mut plain).enumerate() {
                lanes[at % LANES].0.push(job);
            }
            for_each_job(lanes.iter_mut(), self.threads, |(jobs, gram)| {
                *gram = Gram::new(cols, crossed);
                for ((stream, input), kept) in jobs.drain(..) {
                    let bits = stream.bits.clone();
                    let x = tensor(std::mem::take(&mut stream.quantized), hidden);
                    let (x, h) = match step {
                        0 => (x.clone(), model.normed(&params, x, &spec.attn_norm_name(layer))),
                        1 => {
                            let mut state = model.begin(&vec![0; stream.tokens]);
                            let h = tensor(std::mem::take(input), hidden);
                            let shape = (1, stream.tokens);
                            let h = model.attended(&params, h, layer, shape, &bits, &options, &mut state);
                            if !state.sink_probs.is_empty() {
                                stream.sink_probs = state.sink_probs;
                            }
                            (x, h)
                        }
                        2 => {
                            let width = spec.linear_shape(LinearKind::O)[1];
                            let h = tensor(std::mem::take(input), width);
                            let x = x + model.projection(&params, h, layer, LinearKind::O, &bits);
                            (x.clone(), model.normed(&params, x, &spec.mlp_norm_name(layer)))
                        }
                        _ => {
                            let h = tensor(std::mem::take(input), hidden);
                            (x, model.gated(&params, h, layer, &bits))
                        }
                    };
                    stream.quantized = rows(x);
                    *input = rows(h);
                    let mut seen = input.clone();
                    transform.apply_rows(&mut seen, cols);
                    if let Some(quant) = model.act(point, &bits) {
                        fake_quantize_rows(&seen.clone(), cols, &quant, None, 1, &mut seen);
                    }
                    let mut wanted = std::mem::take(&mut kept[step]);
                    transform.apply_rows(&mut wanted, cols);
                    gram.add(&seen, &wanted);
                }
            });
            let mut gram = Gram::new(cols, crossed);
            lanes.iter().for_each(|(_, lane)| gram.merge(lane));
            drop(lanes);
            gram.finish(self.methods.damping);
            self.quantize(layer, kinds, &gram);
        }
        // The down projection of the quantized layer.
        let params = self.tensors(&self.quantized, |name| name.starts_with(&prefix));
        let model = &self.quantized;
        let width = spec.linear_shape(LinearKind::Down)[1];
        for_each_job(streams.iter_mut().zip(inputs), self.threads, |(stream, input)| {
            let x = tensor(std::mem::take(&mut stream.quantized), hidden);
            let mid = model.projection(&params, tensor(input, width), layer, LinearKind::Down, &stream.bits);
            stream.quantized = rows(x + mid);
        });
        self.streams = streams;
    }

    /// Moves scales between the inputs of the linears of a layer and their weights; `plain` are these inputs in full precision.
    ///
    /// Only where the residual stream is not transformed: there, gains of norms are in the weights already, and the rest alone
    /// brings nothing (SmolLM2-135M in W4A8, 2048 tokens: 1.238x with, 1.234x without).
    fn migrate(&mut self, layer: usize, plain: &mut [[Vec<f32>; 4]]) {
        let spec = self.spec().clone();
        let heads = match self.methods.rotate {
            true => Transform::Largest.for_width(spec.head_dim),
            false => Transform::None,
        };
        for (step, kinds) in STEPS.into_iter().enumerate() {
            let point = kinds[0].input_point();
            let own = self.plan().transform(point);
            let (place, before, groups) = match step {
                0 => (Place::Norm(spec.attn_norm_name(layer)), Transform::None, (1, 1)),
                1 => {
                    let group = spec.num_attention_heads / spec.num_key_value_heads;
                    let name = spec.linear_name(layer, LinearKind::V);
                    (Place::Outputs(name, heads), heads, (group, spec.head_dim))
                }
                2 => (Place::Norm(spec.mlp_norm_name(layer)), Transform::None, (1, 1)),
                _ => (
                    Place::Outputs(spec.linear_name(layer, LinearKind::Up), Transform::None),
                    Transform::None,
                    (1, 1),
                ),
            };
            if own.is_none() && before.is_none() {
                continue;
            }
            let names: Vec<String> = kinds.iter().map(|&kind| spec.linear_name(layer, kind)).collect();
            let cols = spec.linear_shape(kinds[0])[1];
            let turn = |rows: &mut [f32]| Kernels::detect().transform(rows, cols, before);
            plain.iter_mut().for_each(|kept| turn(&mut kept[step]));
            let x = plain.iter().map(|kept| &kept[step][..]);
            let factors = migrate(&mut self.parameters, (&names, &place), &[before, own], groups, x);
            for kept in plain.iter_mut() {
                for row in kept[step].chunks_exact_mut(cols) {
                    row.iter_mut().zip(&factors).for_each(|(x, s)| *x *= s);
                }
                turn(&mut kept[step]);
            }
        }
    }

    /// Replaces these weights by their codes.
    fn quantize(&mut self, layer: usize, kinds: &[LinearKind], gram: &Gram) {
        let moments = Moments::new(gram);
        for &kind in kinds {
            let Some(scheme) = self.plan().weight_of(layer, kind) else { continue };
            let name = self.spec().linear_name(layer, kind);
            let (Some(weight), Some(scales)) =
                (self.parameters.index(&name), self.parameters.index(&parameter_name(&name)))
            else {
                continue;
            };
            let solved = moments.solve(
                &self.parameters.list_mut()[weight].values,
                scheme,
                &self.methods,
                self.threads,
            );
            let list = self.parameters.list_mut();
            list[weight].values = solved.values;
            list[scales].values = solved.scales;
            debug_assert_eq!(list[scales].group, Group::Scale);
        }
    }
}

// The point that each step collects is the input of its linears.
const _: () = assert!(matches!(LinearKind::Q.input_point(), ActPoint::AttnIn));
