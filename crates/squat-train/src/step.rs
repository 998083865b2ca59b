//! Loss and gradients of one micro-batch.

use crate::checkpoint::Loaded;
use crate::device::is_cpu;
use crate::error::TrainError;
use crate::fake_quant::TokenBits;
use crate::model::{ForwardOptions, ForwardOutput, Model, ParamTensors, pack_linears};
use crate::ops::lm_loss::{LmLoss, LossTerms};
use crate::ops::teacher_logits::{TeacherLogits, TopTokens};
use crate::parameters::Parameters;
use crate::profile::{self, Phase};
use crate::recipe::{LossConfig, TeacherDtype};
use crate::recompute::{self, Pass};
use burn::tensor::{Device, Tensor};
use squat_quant::ActBits;
use std::collections::HashMap;
use std::sync::{Arc, Mutex};

/// A frozen model that teaches.
pub struct Teacher {
    /// Its forward.
    pub model: Model,
    /// Its parameters, without a tape.
    pub params: ParamTensors,
}

impl Teacher {
    /// A loaded model that teaches on sequences of up to `max_seq` tokens.
    ///
    /// # Errors
    /// bf16 for a quantized model, whose codes rounding would change, or for another device than the CPU.
    pub fn new(
        mut loaded: Loaded,
        dtype: TeacherDtype,
        max_seq: usize,
        device: &Device,
        threads: usize,
    ) -> Result<Self, TrainError> {
        let refuse = |why| Err(TrainError::Input(format!("teacher_dtype bf16 {why}; use f32")));
        match dtype {
            TeacherDtype::Bf16 if loaded.plan.is_some() => return refuse("is for full-precision teachers"),
            TeacherDtype::Bf16 if !is_cpu(device) => return refuse("works on the CPU only"),
            _ => {}
        }
        let mut model = Model::new(loaded.spec, loaded.plan, max_seq);
        model.quantizer = loaded.quantizer;
        let packed = pack_linears(&model, &loaded.parameters, device, threads);
        let params = match dtype {
            TeacherDtype::F32 => ParamTensors::take(&mut loaded.parameters, device),
            TeacherDtype::Bf16 => ParamTensors::take_half(&mut loaded.parameters),
        };
        Ok(Self { model, params: params.with_packed(packed) })
    }
}

/// The loss of a micro-batch, term by term. Unweighted; a switched-off term is `None`.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct StepLoss {
    /// The loss that is minimised.
    pub total: f64,
    /// Cross-entropy, nats per token.
    pub cross_entropy: f64,
    /// Divergence from the teachers, nats per token.
    pub divergence: Option<f64>,
    /// Entropy term L_E.
    pub entropy: Option<f64>,
    /// Alignment term L_D.
    pub alignment: Option<f64>,
}

impl StepLoss {
    /// Terms by name, the total first.
    pub fn terms(&self) -> impl Iterator<Item = (&'static str, f64)> {
        [
            ("loss", Some(self.total)),
            ("cross_entropy", Some(self.cross_entropy)),
            ("divergence", self.divergence),
            ("entropy", self.entropy),
            ("alignment", self.alignment),
        ]
        .into_iter()
        .filter_map(|(name, value)| value.map(|value| (name, value)))
    }

    /// Mean over micro-batches.
    pub fn mean(losses: &[Self]) -> Self {
        let n = losses.len().max(1) as f64;
        let optional = |get: fn(&Self) -> Option<f64>| -> Option<f64> {
            losses.iter().map(get).try_fold(0.0, |sum, x| x.map(|x| sum + x)).map(|sum| sum / n)
        };
        Self {
            total: losses.iter().map(|l| l.total).sum::<f64>() / n,
            cross_entropy: losses.iter().map(|l| l.cross_entropy).sum::<f64>() / n,
            divergence: optional(|l| l.divergence),
            entropy: optional(|l| l.entropy),
            alignment: optional(|l| l.alignment),
        }
    }
}

/// Results of one micro-batch.
pub struct MicroResult {
    /// Loss by term.
    pub loss: StepLoss,
    /// Gradients in the order of the parameters.
    pub gradients: Vec<Vec<f32>>,
    /// Token-policy scores of each layer.
    pub scores: Vec<Vec<f32>>,
    /// Share of (token, layer) pairs at 8 bits.
    pub eight_bit_share: f64,
}

/// Inputs and targets of `[batch, seq + 1]` sequences.
pub fn split(sequences: &[Vec<u32>]) -> (Vec<u32>, Vec<Option<u32>>, usize, usize) {
    let seq = sequences.first().map_or(0, |s| s.len() - 1);
    let ids = sequences.iter().flat_map(|s| s[..seq].iter().copied()).collect();
    let targets = sequences.iter().flat_map(|s| s[1..].iter().map(|&t| Some(t))).collect();
    (ids, targets, sequences.len(), seq)
}

/// Layers whose maps are aligned: all of them, or those the recipe names (negative from the end).
pub fn aligned_layers(config: &LossConfig, layers: usize) -> Vec<usize> {
    if config.alignment_layers.is_empty() {
        return (0..layers).collect();
    }
    config
        .alignment_layers
        .iter()
        .filter_map(|&layer| usize::try_from(if layer < 0 { layer + layers as i64 } else { layer }).ok())
        .filter(|&layer| layer < layers)
        .collect()
}

/// Share of 8-bit (token, layer) pairs.
pub fn eight_bit_share(bits: &[TokenBits], tokens: usize) -> f64 {
    let eight = |bits: &TokenBits| match bits {
        TokenBits::Uniform(ActBits::A8) => tokens,
        TokenBits::Uniform(ActBits::A4) => 0,
        TokenBits::PerToken(list) => list.iter().filter(|&&b| b == ActBits::A8).count(),
    };
    bits.iter().map(eight).sum::<usize>() as f64 / (tokens * bits.len()).max(1) as f64
}

/// Forward and backward of one micro-batch of `[batch, seq + 1]` sequences.
pub fn micro_step(
    model: &Model,
    parameters: &Parameters,
    constant: &ParamTensors,
    teachers: &[Teacher],
    config: &LossConfig,
    sequences: &[Vec<u32>],
) -> MicroResult {
    let (ids, targets, batch, seq) = split(sequences);
    let mut options =
        ForwardOptions { entropy: config.entropy != 0.0 && model.plan.is_some(), ..Default::default() };
    let layers = if config.alignment != 0.0 {
        aligned_layers(config, model.spec.num_hidden_layers)
    } else {
        Vec::new()
    };
    let teaching = (!teachers.is_empty()).then(|| profile::phase(Phase::Teacher));
    let teacher = teach(teachers, config, &ids, (batch, seq), &layers, &mut options.align);
    drop(teaching);
    let terms: Arc<Mutex<LossTerms>> = Arc::default();
    let gamma = if teacher.is_some() { config.gamma } else { 0.0 };
    let distilled = teacher.is_some();
    let lm = LmLoss::new(targets.into(), teacher, gamma, config.temperature, terms.clone());
    let block = (ids.as_slice(), batch, seq);
    let pass = match model.recompute {
        true => recompute::pass(model, parameters, constant, block, &options, lm, config),
        false => whole_pass(model, parameters, constant, block, &options, lm, config),
    };
    let scalar = |t: &Tensor<2>| f64::from(t.clone().into_scalar::<f32>());
    let terms = *terms.lock().unwrap_or_else(|e| e.into_inner());
    let loss = StepLoss {
        total: scalar(&pass.total),
        cross_entropy: terms.cross_entropy,
        divergence: distilled.then_some(terms.divergence),
        entropy: pass.entropy.as_ref().map(scalar),
        alignment: pass.alignment.as_ref().map(scalar),
    };
    let eight_bit_share = eight_bit_share(&pass.bits, batch * seq);
    MicroResult { loss, gradients: pass.gradients, scores: pass.scores, eight_bit_share }
}

/// Forward and backward with the whole model on one tape.
fn whole_pass(
    model: &Model,
    parameters: &Parameters,
    constant: &ParamTensors,
    (ids, batch, seq): (&[u32], usize, usize),
    options: &ForwardOptions,
    lm: LmLoss,
    config: &LossConfig,
) -> Pass {
    let forward = profile::phase(Phase::Forward);
    let params = constant.require_grad();
    let ForwardOutput { logits, alignment, entropy, scores, bits, .. } =
        model.forward(&params, ids, (batch, seq), options);
    let mut total = model.apply(lm, vec![logits]);
    if let Some(entropy) = &entropy {
        total = total + entropy.clone() * config.entropy;
    }
    if let Some(alignment) = &alignment {
        total = total + alignment.clone() * config.alignment;
    }
    drop(forward);
    let _backward = profile::phase(Phase::Backward);
    let mut grads = total.backward();
    let gradients = parameters
        .iter()
        .map(|p| match params.get(&p.name).grad_remove(&mut grads) {
            Some(grad) => grad.into_data().try_into_vec::<f32>().expect("gradients are f32"),
            None => vec![0.0; p.shape[0] * p.shape[1]],
        })
        .collect();
    let off_tape = |term: Option<Tensor<2>>| term.map(Tensor::inner);
    let (entropy, alignment) = (off_tape(entropy), off_tape(alignment));
    Pass { total: total.inner(), entropy, alignment, gradients, scores, bits }
}

/// Tokens that go through the teachers together where only the likeliest of their logits are kept.
const TEACHER_BLOCK: usize = 512;

/// Mean of the teachers' logits, or its likeliest tokens; leaves the first teacher's maps of `layers` in `maps`.
fn teach(
    teachers: &[Teacher],
    config: &LossConfig,
    ids: &[u32],
    (batch, seq): (usize, usize),
    layers: &[usize],
    maps: &mut HashMap<usize, Arc<Vec<f32>>>,
) -> Option<TeacherLogits> {
    let vocabulary = teachers.first()?.model.spec.vocab_size;
    if config.teacher_top_k == 0 || config.teacher_top_k >= vocabulary {
        let (logits, found) = mean_logits(teachers, ids, (batch, seq), layers);
        maps.extend(layers.iter().copied().zip(found));
        return Some(TeacherLogits::Whole(Arc::new(logits)));
    }
    let mut top = TopTokens::new(config.teacher_top_k);
    let mut all: Vec<Vec<f32>> = vec![Vec::new(); layers.len()];
    for block in ids.chunks((TEACHER_BLOCK / seq).max(1) * seq) {
        let (logits, found) = mean_logits(teachers, block, (block.len() / seq, seq), layers);
        top.extend(&logits, vocabulary, config.temperature);
        // Maps are [batch, heads, seq, seq], so blocks of sequences follow one another.
        all.iter_mut().zip(found).for_each(|(all, map)| all.extend_from_slice(&map));
    }
    maps.extend(layers.iter().copied().zip(all.into_iter().map(Arc::new)));
    Some(TeacherLogits::Top(Arc::new(top)))
}

/// Mean of the teachers' logits, and the first teacher's maps of `layers`.
fn mean_logits(
    teachers: &[Teacher],
    ids: &[u32],
    shape: (usize, usize),
    layers: &[usize],
) -> (Vec<f32>, Vec<Arc<Vec<f32>>>) {
    let (mut mean, mut maps) = (Vec::new(), Vec::new());
    for (index, teacher) in teachers.iter().enumerate() {
        let options = ForwardOptions { keep_maps: index == 0 && !layers.is_empty(), ..Default::default() };
        let output = teacher.model.forward(&teacher.params, ids, shape, &options);
        if options.keep_maps {
            maps = layers.iter().map(|&layer| output.maps[layer].clone()).collect();
        }
        let logits = output.logits.into_data().try_into_vec::<f32>().expect("logits are f32");
        if index == 0 {
            mean = logits;
        } else {
            mean.iter_mut().zip(&logits).for_each(|(m, x)| *m += x);
        }
    }
    if teachers.len() > 1 {
        let share = 1.0 / teachers.len() as f32;
        mean.iter_mut().for_each(|x| *x *= share);
    }
    (mean, maps)
}
