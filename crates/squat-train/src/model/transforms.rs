//! Weights of a model in full precision, rewritten for the transforms of a plan: the same function of the tokens, up to rounding.

use crate::basis;
use crate::parameters::Parameters;
use squat_kernels::Kernels;
use squat_model::spec::bias_name;
use squat_model::{LinearKind, ModelSpec, ParamKind, QuantPlan};
use squat_quant::Transform;

/// Linears that read the residual stream, by the norm before them.
const READERS: [[LinearKind; 3]; 2] =
    [[LinearKind::Q, LinearKind::K, LinearKind::V], [LinearKind::Gate, LinearKind::Up, LinearKind::Up]];

/// Rewrites weights for the transforms of `plan`: those that read or write a transformed residual stream, then the rows behind
/// transformed points.
pub fn transform_weights(parameters: &mut Parameters, spec: &ModelSpec, plan: &QuantPlan) {
    transform_residual(parameters, spec, plan.residual);
    transform_inputs(parameters, spec, plan);
}

/// Undoes [`transform_weights`]. Gains of norms that were multiplied into weights stay there.
pub fn undo_transforms(parameters: &mut Parameters, spec: &ModelSpec, plan: &QuantPlan) {
    transform_inputs(parameters, spec, plan);
    transform_residual(parameters, spec, plan.residual);
}

/// The rows of the weights behind transformed points.
fn transform_inputs(parameters: &mut Parameters, spec: &ModelSpec, plan: &QuantPlan) {
    for info in spec.parameters() {
        if let ParamKind::Linear(kind) = info.kind {
            transform_rows(parameters, &info.name, plan.transform(kind.input_point()));
        }
    }
}

/// Weights for a residual stream `T(x)` in place of `x`. An RMSNorm without gain gives `T` of what it gave, so gains are
/// multiplied into the weights behind them first; the final one stays ([`QuantPlan::residual`]).
fn transform_residual(parameters: &mut Parameters, spec: &ModelSpec, transform: Transform) {
    if transform.is_none() {
        return;
    }
    transform_rows(parameters, ModelSpec::EMBEDDING, transform);
    if !spec.tie_word_embeddings {
        transform_rows(parameters, ModelSpec::HEAD, transform);
    }
    for layer in 0..spec.num_hidden_layers {
        for (kinds, norm) in READERS.iter().zip([spec.attn_norm_name(layer), spec.mlp_norm_name(layer)]) {
            let kinds: Vec<LinearKind> =
                spec.linears().iter().copied().filter(|kind| kinds.contains(kind)).collect();
            let names = kinds.iter().map(|&kind| spec.linear_name(layer, kind));
            fold_gain(parameters, &norm, names.clone());
            names.for_each(|name| transform_rows(parameters, &name, transform));
        }
        for kind in [LinearKind::O, LinearKind::Down] {
            transform_outputs(parameters, &spec.linear_name(layer, kind), transform);
        }
    }
}

/// Transforms the values of each head, by the largest matrix that fits them, and the output projection to match: their outliers, and those of
/// its rows, are spread over the head. Nothing has to be undone when the model runs, so a plan does not mention it.
pub fn transform_values(parameters: &mut Parameters, spec: &ModelSpec) {
    let transform = Transform::Largest.for_width(spec.head_dim);
    for layer in 0..spec.num_hidden_layers {
        transform_outputs(parameters, &spec.linear_name(layer, LinearKind::V), transform);
        transform_rows(parameters, &spec.linear_name(layer, LinearKind::O), transform);
    }
}

/// `W diag(gain)` for each of the weights, and a gain of ones.
fn fold_gain(parameters: &mut Parameters, norm: &str, weights: impl Iterator<Item = String>) {
    let Some(at) = parameters.index(norm) else { return };
    let ones = vec![1.0; parameters.list_mut()[at].values.len()];
    let gain = std::mem::replace(&mut parameters.list_mut()[at].values, ones);
    for name in weights {
        let Some(at) = parameters.index(&name) else { continue };
        for row in parameters.list_mut()[at].values.chunks_exact_mut(gain.len()) {
            row.iter_mut().zip(&gain).for_each(|(w, gain)| *w *= gain);
        }
    }
}

/// The inputs of a weight `[out, in]`.
fn transform_rows(parameters: &mut Parameters, name: &str, transform: Transform) {
    if let (false, Some(at)) = (transform.is_none(), parameters.index(name)) {
        let weight = &mut parameters.list_mut()[at];
        Kernels::detect().transform(&mut weight.values, weight.shape[1], transform);
    }
}

/// The outputs of a weight `[out, in]`, and its bias.
fn transform_outputs(parameters: &mut Parameters, name: &str, transform: Transform) {
    if transform.is_none() {
        return;
    }
    if let Some(at) = parameters.index(&bias_name(name)) {
        let bias = &mut parameters.list_mut()[at].values;
        let n = bias.len();
        Kernels::detect().transform(bias, n, transform);
    }
    let Some(at) = parameters.index(name) else { return };
    let weight = &mut parameters.list_mut()[at];
    basis::transform_outputs(&mut weight.values, weight.shape[1], transform);
}
