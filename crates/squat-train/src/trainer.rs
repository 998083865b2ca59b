//! One optimizer step after another, in memory.

use crate::basis::Bases;
use crate::execution::Execution;
use crate::model::{Model, ParamTensors, pack_linears};
use crate::optimizer::{AdamW, Moments, scale_and_norm, schedule};
use crate::parallel::ParallelError;
use crate::parallel::facts::{self, Facts};
use crate::parallel::tree::{Sums, add_gradients};
use crate::parameters::Parameters;
use crate::profile::{self, Phase};
use crate::recipe::StageConfig;
use crate::step::{MicroResult, StepLoss, Teacher, micro_step};
use crate::thresholds;

/// Share of a stage's end during which thresholds are fixed, so that the model adapts to the exported ones.
const FROZEN_SHARE: f64 = 0.2;

/// A model in training.
///
/// Threads and processes work on different micro-batches whose gradients are added in a fixed order
/// ([`crate::parallel::tree`]), so their number does not change the result.
pub struct Trainer {
    /// Its shape and plan; the token policy's thresholds move with training.
    pub model: Model,
    /// Trainable values.
    pub parameters: Parameters,
    /// The optimizer's moments.
    pub moments: Moments,
    /// Bases in which the optimizer sees parameters.
    pub bases: Bases,
    /// Frozen teachers.
    pub teachers: Vec<Teacher>,
    /// Steps done.
    pub step: u64,
    /// Tokens of a training sequence.
    pub seq_len: usize,
    /// Where and with whom.
    pub execution: Execution,
}

/// Why a step was not made; parameters are unchanged then.
#[derive(Clone, Debug, PartialEq)]
pub enum StepFailure {
    /// A loss term, or `gradient norm`, is not finite.
    NotFinite(&'static str),
    /// Another process is gone or failed.
    Parallel(ParallelError),
}

impl From<ParallelError> for StepFailure {
    fn from(error: ParallelError) -> Self {
        Self::Parallel(error)
    }
}

/// Results of a step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepReport {
    /// Loss by term.
    pub loss: StepLoss,
    /// Gradient norm before clipping.
    pub gradient_norm: f64,
    /// Learning rate.
    pub learning_rate: f32,
    /// Share of 8-bit (token, layer) pairs.
    pub eight_bit_share: f64,
}

impl Trainer {
    /// One step on `[batch_size]` sequences of `seq_len + 1` tokens, the same in every process: each takes its share.
    ///
    /// # Errors
    /// A loss term or gradient norm that is not finite, the loss of another process; nothing has moved then.
    pub fn step(&mut self, config: &StageConfig, batch: &[Vec<u32>]) -> Result<StepReport, StepFailure> {
        let micros: Vec<&[Vec<u32>]> = batch.chunks(config.micro_batch).collect();
        self.model.recompute = config.activation_checkpointing;
        self.model.mixed_precision = config.mixed_precision;
        let constant = {
            let _phase = profile::phase(Phase::Parameters);
            let packed =
                pack_linears(&self.model, &self.parameters, &self.execution.device, self.execution.threads);
            ParamTensors::take(&mut self.parameters, &self.execution.device).with_packed(packed)
        };
        let (mut sums, mut own) = (Sums::new(micros.len(), add_gradients), Vec::new());
        // Waves of as many micro-batches as there are threads: memory stays bounded, the order of sums fixed.
        let mut indices = self.execution.group.share(micros.len());
        for wave in micros[indices.clone()].chunks(self.execution.threads.max(1)) {
            for (result, index) in self.wave(&constant, wave, config).into_iter().zip(indices.by_ref()) {
                let MicroResult { loss, gradients, scores, eight_bit_share } = result;
                own.push(Facts { loss, eight_bit_share, scores });
                let _phase = profile::phase(Phase::Optimizer);
                sums.push(index..index + 1, gradients);
            }
        }
        constant.give_back(&mut self.parameters);
        let _phase = profile::phase(Phase::Optimizer);
        let (mut losses, mut scores, mut share) = (Vec::new(), Vec::new(), 0.0);
        for Facts { loss, eight_bit_share, scores: more } in facts::gather(&self.execution.group, own)? {
            losses.push(loss);
            share += eight_bit_share / micros.len() as f64;
            merge_scores(&mut scores, more);
        }
        let mut gradients = self.execution.group.all_reduce(micros.len(), sums)?;
        let loss = StepLoss::mean(&losses);
        if let Some((term, _)) = loss.terms().find(|(_, value)| !value.is_finite()) {
            return Err(StepFailure::NotFinite(term));
        }
        let norm = scale_and_norm(&mut gradients, 1.0 / micros.len() as f32, self.execution.threads);
        if !norm.is_finite() {
            return Err(StepFailure::NotFinite("gradient norm"));
        }
        let factor = schedule(self.step, config.steps, config.warmup, config.final_learning_rate_ratio);
        let adam =
            AdamW { beta1: config.beta1, beta2: config.beta2, eps: 1e-8, weight_decay: config.weight_decay };
        let rate = config.learning_rate * factor;
        adam.step(
            &mut self.parameters,
            &gradients,
            &mut self.moments,
            (self.step + 1, norm, config.clip_norm),
            (rate, config.scale_learning_rate * factor),
            &self.bases,
            self.execution.threads,
        );
        self.model.project(&mut self.parameters);
        let moving = (self.step as f64) < config.steps as f64 * (1.0 - FROZEN_SHARE);
        if let Some(plan) = &mut self.model.plan
            && moving
            && !plan.thresholds.is_empty()
        {
            thresholds::follow(&mut plan.thresholds, &scores, self.seq_len, plan.rho);
        }
        self.step += 1;
        Ok(StepReport { loss, gradient_norm: norm, learning_rate: rate, eight_bit_share: share })
    }

    fn wave(&self, constant: &ParamTensors, wave: &[&[Vec<u32>]], config: &StageConfig) -> Vec<MicroResult> {
        let run = |sequences: &[Vec<u32>]| {
            micro_step(&self.model, &self.parameters, constant, &self.teachers, &config.loss, sequences)
        };
        if wave.len() == 1 {
            return vec![run(wave[0])];
        }
        std::thread::scope(|scope| {
            let others: Vec<_> = wave[1..].iter().map(|sequences| scope.spawn(|| run(sequences))).collect();
            let first = run(wave[0]);
            let rest = others.into_iter().map(|handle| match handle.join() {
                Ok(result) => result,
                Err(panic) => std::panic::resume_unwind(panic),
            });
            std::iter::once(first).chain(rest).collect()
        })
    }
}

/// Appends the scores of a micro-batch, layer by layer.
pub(crate) fn merge_scores(all: &mut Vec<Vec<f32>>, more: Vec<Vec<f32>>) {
    if all.is_empty() {
        *all = more;
        return;
    }
    for (all, more) in all.iter_mut().zip(more) {
        all.extend(more);
    }
}
