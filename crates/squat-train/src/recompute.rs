//! Activation checkpointing: a backward pass that keeps the input of each layer and computes the rest again.
//!
//! The first pass runs without a tape and keeps one `[tokens, hidden]` block for each layer. The second goes from the
//! top to the bottom: it runs one layer again on a tape of its own, from the kept input and with the bits that were
//! decided before, and feeds the gradient of its output backwards through `sum(output * gradient)`, whose derivative
//! is that gradient exactly. Every gradient has the bits of the ordinary way, for a third more time: a layer's forward
//! runs twice.

use crate::fake_quant::TokenBits;
use crate::model::{ForwardOptions, Model, ParamTensors, mean_of_terms};
use crate::ops::lm_loss::LmLoss;
use crate::parameters::Parameters;
use crate::profile::{self, Phase};
use crate::recipe::LossConfig;
use burn::tensor::{Gradients, Tensor};
use squat_quant::ActPoint;

/// Results of either backward pass.
pub(crate) struct Pass {
    /// The loss that is minimised, `[1, 1]`.
    pub total: Tensor<2>,
    /// Entropy term, unweighted.
    pub entropy: Option<Tensor<2>>,
    /// Alignment term, unweighted.
    pub alignment: Option<Tensor<2>>,
    /// Gradients in the order of the parameters.
    pub gradients: Vec<Vec<f32>>,
    /// Token-policy scores of each layer.
    pub scores: Vec<Vec<f32>>,
    /// Activation bits of each layer.
    pub bits: Vec<TokenBits>,
}

/// Collects the gradients of parameters from one tape after another.
struct Collector<'a> {
    parameters: &'a Parameters,
    found: Vec<Option<Vec<f32>>>,
}

impl Collector<'_> {
    fn take(&mut self, params: &ParamTensors, grads: &Gradients) {
        for (p, found) in self.parameters.iter().zip(&mut self.found) {
            let Some(grad) = params.get(&p.name).grad(grads) else { continue };
            let grad = grad.into_data().try_into_vec::<f32>().expect("gradients are f32");
            match found {
                // Only a tied token table is on two tapes.
                Some(sum) => sum.iter_mut().zip(&grad).for_each(|(s, g)| *s += g),
                None => *found = Some(grad),
            }
        }
    }
}

/// Forward and backward with one layer on the tape at a time.
pub(crate) fn pass(
    model: &Model,
    parameters: &Parameters,
    constant: &ParamTensors,
    (ids, batch, seq): (&[u32], usize, usize),
    options: &ForwardOptions,
    lm: LmLoss,
    config: &LossConfig,
) -> Pass {
    let layers = model.spec.num_hidden_layers;
    let shape = (batch, seq);
    let forward = profile::phase(Phase::Forward);
    let mut inputs = Vec::with_capacity(layers);
    let mut state = model.begin(ids);
    let mut x = model.embed(constant, ids);
    for layer in 0..layers {
        inputs.push(x.clone());
        x = model.layer(constant, x, layer, shape, None, &ForwardOptions::default(), &mut state);
    }
    let (scores, bits) = (state.scores, state.bits);
    drop(forward);
    let _backward = profile::phase(Phase::Backward);
    let mut collector = Collector { parameters, found: parameters.iter().map(|_| None).collect() };

    let params = constant.require_grad();
    let top = Tensor::from_inner(x).require_grad();
    let loss = model.apply(lm, vec![model.head(&params, top.clone(), &ForwardOptions::default())]);
    let mut total = loss.clone().inner();
    let grads = loss.backward();
    let mut upstream = top.grad(&grads).expect("the head depends on its input");
    collector.take(&params, &grads);
    drop((params, grads, top));

    // The means of the ordinary way divide by the number of terms of all layers.
    let entropies = model.plan.as_ref().filter(|_| options.entropy).map_or(0, |plan| {
        layers * [ActPoint::Query, ActPoint::Key].iter().filter(|&&p| plan.point(p).is_some()).count()
    });
    let alignments = options.align.keys().filter(|&&layer| layer < layers).count();
    let weighted = |terms: &[Tensor<2>], n: usize, weight: f32| -> Option<Tensor<2>> {
        terms.iter().cloned().reduce(|a, b| a + b).map(|sum| sum / n as f32 * weight)
    };
    let (mut entropy, mut alignment) = (Vec::new(), Vec::new());
    for (layer, input) in inputs.into_iter().enumerate().rev() {
        let params = constant.require_grad();
        let input = Tensor::from_inner(input).require_grad();
        let mut state = model.begin(ids);
        let fixed = Some(bits[layer].clone());
        let output = model.layer(&params, input.clone(), layer, shape, fixed, options, &mut state);
        let main = Some((output * Tensor::from_inner(upstream)).sum());
        let ent = weighted(&state.entropy, entropies, config.entropy).map(|term| term.sum());
        let align = weighted(&state.alignment, alignments, config.alignment).map(|term| term.sum());
        // Gradients that meet in one tensor are added in the order in which the tape finds their operations, and it
        // goes depth first from the last addend: from the alignment of the highest layer down through all layers
        // below, then from the entropy, then from the logits. The same order here gives the same bits.
        let order = if options.align.keys().any(|&above| above > layer && above < layers) {
            [main, align, ent]
        } else if entropies > 0 && layer + 1 < layers {
            [align, main, ent]
        } else {
            [align, ent, main]
        };
        let scalar = order.into_iter().flatten().rev().reduce(|a, b| a + b).expect("an output at least");
        let grads = scalar.backward();
        upstream = input.grad(&grads).expect("a layer depends on its input");
        collector.take(&params, &grads);
        // The terms come from the last layer to the first; their means want the other order.
        entropy.splice(0..0, state.entropy.into_iter().map(Tensor::inner));
        alignment.splice(0..0, state.alignment.into_iter().map(Tensor::inner));
    }

    let params = constant.require_grad();
    let grads = (model.embed(&params, ids) * Tensor::from_inner(upstream)).sum().backward();
    collector.take(&params, &grads);
    let (entropy, alignment) = (mean_of_terms(entropy), mean_of_terms(alignment));
    if let Some(entropy) = &entropy {
        total = total + entropy.clone() * config.entropy;
    }
    if let Some(alignment) = &alignment {
        total = total + alignment.clone() * config.alignment;
    }
    let gradients = collector
        .found
        .into_iter()
        .zip(parameters.iter())
        .map(|(found, p)| found.unwrap_or_else(|| vec![0.0; p.shape[0] * p.shape[1]]))
        .collect();
    Pass { total, entropy, alignment, gradients, scores, bits }
}
