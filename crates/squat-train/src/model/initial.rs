//! First values of weights and quantizers, and how the optimizer treats each.

use crate::error::TrainError;
use crate::fake_quant::{STATIC_PARAMETERS, Weight};
use crate::parameters::{Group, Parameters};
use crate::quantizer::{WeightQuantizer, parameter_name};
use squat_model::{LinearKind, Mlp, ModelSpec, Norm, NormPlaces, ParamKind, QkNorm, QuantPlan};
use squat_quant::random::SplitMix64;
use squat_quant::{ActPoint, ActScheme};

/// Name under which the four learned parameters of a static activation point are trained.
pub fn static_name(layer: Option<usize>, point: ActPoint) -> String {
    match layer {
        Some(layer) => format!("model.layers.{layer}.{}.static", point.name()),
        None => format!("model.{}.static", point.name()),
    }
}

/// Shape of a parameter as the trainer holds it: vectors are `[1, n]`.
pub fn matrix_shape(shape: &[usize]) -> [usize; 2] {
    match *shape {
        [rows, cols] => [rows, cols],
        _ => [1, shape.iter().product()],
    }
}

/// Whether the trainer has the forward pass of a model with these features: RMSNorm, SwiGLU and RoPE; biases of linear
/// layers and norms of queries and keys are optional.
///
/// # Errors
/// The features that it does not have.
pub fn check_trainable(spec: &ModelSpec) -> Result<(), TrainError> {
    let mut missing = Vec::new();
    if spec.norm != Norm::Rms {
        missing.push("LayerNorm");
    }
    if spec.mlp != Mlp::SwiGlu {
        missing.push("a GELU MLP");
    }
    if spec.norm_places != NormPlaces::Input {
        missing.push("norms behind their blocks");
    }
    if spec.qk_norm == QkNorm::Row {
        missing.push("norms of whole rows of queries and keys");
    }
    if spec.window.is_some() {
        missing.push("windows");
    }
    if !spec.without_rope.is_empty() {
        missing.push("layers without RoPE");
    }
    if spec.rope.is_none() {
        missing.push("learned positions");
    }
    if missing.is_empty() {
        return Ok(());
    }
    Err(TrainError::Input(format!(
        "models of the class {} cannot be trained, nor teach: they have {}, and the trainer has the forward pass of \
         LlamaForCausalLM and its relatives only; they can be packed by rounding to nearest (squat pack --plan w4a8), run \
         and evaluated",
        spec.architecture.class,
        missing.join(", ")
    )))
}

/// How the optimizer treats a parameter of this kind: gains and biases never decay.
pub fn group_of(kind: ParamKind) -> Group {
    match kind {
        ParamKind::Norm(_) | ParamKind::Bias => Group::Norm,
        ParamKind::Embedding | ParamKind::Positions | ParamKind::Head | ParamKind::Linear(_) => Group::Weight,
    }
}

/// Fresh parameters: normal weights of standard deviation `std` (residual projections scaled by `1/sqrt(2 layers)`),
/// gains of one, biases of zero; the same for the same seed.
pub fn initial_parameters(spec: &ModelSpec, std: f32, seed: u64) -> Parameters {
    let mut parameters = Parameters::default();
    let residual = std / (2.0 * spec.num_hidden_layers as f32).sqrt();
    for (index, info) in spec.parameters().into_iter().enumerate() {
        let shape = matrix_shape(&info.shape);
        let n = shape[0] * shape[1];
        let values = match info.kind {
            ParamKind::Norm(_) => vec![1.0; n],
            ParamKind::Bias => vec![0.0; n],
            ParamKind::Linear(LinearKind::O | LinearKind::Down) => normal(n, residual, seed, index as u64),
            ParamKind::Embedding | ParamKind::Positions | ParamKind::Head | ParamKind::Linear(_) => {
                normal(n, std, seed, index as u64)
            }
        };
        parameters.push(info.name, shape, values, group_of(info.kind));
    }
    parameters
}

/// Normal numbers by Box and Muller from SplitMix64, one stream for each (seed, stream).
fn normal(n: usize, std: f32, seed: u64, stream: u64) -> Vec<f32> {
    let mut rng = SplitMix64::new(seed ^ (stream + 1).wrapping_mul(0xA076_1D64_78BD_642F));
    let mut out = Vec::with_capacity(n + 1);
    while out.len() < n {
        let radius = (-2.0 * (1.0 - rng.uniform()).ln()).sqrt() * f64::from(std);
        let angle = std::f64::consts::TAU * rng.uniform();
        out.push((radius * angle.cos()) as f32);
        out.push((radius * angle.sin()) as f32);
    }
    out.truncate(n);
    out
}

/// Adds the quantizer parameters of `plan` to full-precision parameters: those of `quantizer` for the scales of smallest
/// squared error, and static points still uncalibrated (see `crate::calibration`).
pub fn add_quantizer_parameters(
    parameters: &mut Parameters,
    spec: &ModelSpec,
    plan: &QuantPlan,
    quantizer: &dyn WeightQuantizer,
) {
    for info in spec.parameters() {
        let Some(scheme) = plan.scheme_of(&info) else { continue };
        let Some(weight) = parameters.get(&info.name) else { continue };
        let [rows, cols] = weight.shape;
        let mut scales = vec![0f32; scheme.num_scales(rows, cols)];
        squat_quant::calibrate::weight_scales(&weight.values, rows, cols, scheme, &mut scales);
        let learned = quantizer.parameters(Weight { values: &weight.values, cols, scheme }, &scales);
        parameters.push(parameter_name(&info.name), [1, learned.len()], learned, Group::Scale);
    }
    for (layer, point) in static_points(spec, plan) {
        parameters.push(
            static_name(layer, point),
            [1, STATIC_PARAMETERS],
            vec![0.0; STATIC_PARAMETERS],
            Group::Scale,
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
