//! A training stage from its first step to its last.
//!
//! Everything that a step depends on is a function of (seed, step) or part of the checkpoint, so a stage that was
//! interrupted continues bit for bit.

use crate::basis::Bases;
use crate::calibration::calibrate;
use crate::checkpoint::{self, State};
use crate::error::TrainError;
use crate::evaluate::held_out_loss;
use crate::execution::Execution;
use crate::metrics::Metrics;
use crate::model::{
    ForwardOptions, Model, ParamTensors, add_quantizer_parameters, pack_linears, transform_weights,
};
use crate::optimizer::Moments;
use crate::parallel;
use crate::parameters::Parameters;
use crate::quantizer::WeightQuantizer;
use crate::recipe::StageConfig;
use crate::step::{StepLoss, Teacher, split};
use crate::thresholds;
use crate::trainer::{StepFailure, StepReport, Trainer, merge_scores};
use serde_json::json;
use squat_data::{Chunks, Sequential};
use squat_files::write::{NewFile, Replace, create_folder};
use squat_model::QuantPlan;
use squat_model::TokenizerFiles;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// The sequences of a stage.
pub struct StageData {
    /// Training sequences.
    pub train: Chunks,
    /// Held-out sequences.
    pub valid: Sequential,
}

/// A number of steps, or between events, that follows from the [`Budget`].
pub const UNDECIDED: u64 = u64::MAX;

/// Steps whose time tells how many will fit; the very first one is slower than others.
const TIMED: std::ops::RangeInclusive<u64> = 2..=4;

/// Evaluations in a stage of undecided length, besides the one before the first step.
const EVALUATIONS: u64 = 5;

/// A stage that ends by the clock. How many steps that is, is decided after a few of them and written down, so that a resumed
/// stage has the same schedule.
#[derive(Clone, Copy, Debug)]
pub struct Budget {
    /// When it has to end.
    pub until: Instant,
}

/// Inputs of a stage in addition to its configuration.
pub struct StageInput<'a> {
    /// The stage's part of the recipe.
    pub config: &'a StageConfig,
    /// Student: sizes, first parameters, and whether they have quantizers already.
    pub student: checkpoint::Loaded,
    /// Quantization plan of a qat stage.
    pub plan: Option<QuantPlan>,
    /// Where the scales of its weights come from.
    pub quantizer: &'static dyn WeightQuantizer,
    /// Bases in which the optimizer sees parameters.
    pub bases: Bases,
    /// Frozen teachers.
    pub teachers: Vec<Teacher>,
    /// Sequences.
    pub data: StageData,
    /// Tokens of a training sequence.
    pub seq_len: usize,
    /// Tokenizer files that go into the checkpoints.
    pub tokenizer: TokenizerFiles,
    /// Folder of the stage.
    pub folder: PathBuf,
    /// Hash of whatever else the result depends on (data, tokenizer, teachers, seed).
    pub fingerprint: String,
    /// Where and with whom; `resume` continues from `last`, if it is there.
    pub execution: Execution,
    /// For a stage whose `steps` are [`UNDECIDED`].
    pub budget: Option<Budget>,
}

/// Progress of a stage.
#[derive(Clone, Debug)]
pub enum Event {
    /// The stage begins (or continues) at a step.
    Start {
        /// Steps done before.
        step: u64,
        /// Steps in all.
        steps: u64,
        /// Trainable values.
        parameters: usize,
    },
    /// A step is done.
    Step {
        /// Steps done.
        step: u64,
        /// Steps in all.
        steps: u64,
        /// Loss by term.
        loss: StepLoss,
        /// Learning rate.
        learning_rate: f32,
        /// Gradient norm before clipping.
        gradient_norm: f64,
        /// Training tokens per second since the start.
        tokens_per_second: f64,
        /// Share of 8-bit (token, layer) pairs.
        eight_bit_share: f64,
    },
    /// Held-out cross-entropy, nats per token.
    Evaluated {
        /// Steps done.
        step: u64,
        /// Mean over the held-out sequences.
        cross_entropy: f64,
        /// Whether it is the best so far.
        best: bool,
    },
    /// A checkpoint is on disk.
    Saved {
        /// Steps done.
        step: u64,
        /// Its folder.
        path: PathBuf,
    },
}

/// How a stage ended.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    /// All steps are done; best held-out cross-entropy.
    Finished {
        /// Nats per token.
        best: f64,
    },
    /// It was stopped from outside and can be resumed.
    Interrupted {
        /// Steps done.
        step: u64,
    },
}

/// The stage's trainer; takes the teachers out of the input.
fn trainer(
    input: &mut StageInput<'_>,
    model: Model,
    parameters: Parameters,
    moments: Moments,
    step: u64,
) -> Trainer {
    Trainer {
        model,
        parameters,
        moments,
        bases: std::mem::take(&mut input.bases),
        teachers: std::mem::take(&mut input.teachers),
        step,
        seq_len: input.seq_len,
        execution: input.execution.clone(),
    }
}

struct StageRun<'a> {
    input: StageInput<'a>,
    trainer: Trainer,
    best: Option<f64>,
    /// Of the process that writes.
    metrics: Option<Metrics>,
}

/// Trains a stage.
///
/// # Errors
/// A loss that is not finite, a checkpoint that cannot be written or does not fit.
pub fn train(input: StageInput<'_>, report: &mut dyn FnMut(Event)) -> Result<Outcome, TrainError> {
    let micros = input.config.batch_size / input.config.micro_batch;
    if micros < input.execution.group.world() {
        return Err(TrainError::Recipe(format!(
            "stage `{}`: {} processes share {micros} micro-batches (batch_size {} / micro_batch {}); start at most \
             {micros} processes, or make micro_batch smaller",
            input.config.name,
            input.execution.group.world(),
            input.config.batch_size,
            input.config.micro_batch
        )));
    }
    create_folder(&input.folder)?;
    let last = input.folder.join("last");
    // Rank 0 decides, because only the process that writes is sure to see its own files.
    let resume = input
        .execution
        .group
        .broadcast(vec![u8::from(input.execution.resume && checkpoint::resumable(&last))])?;
    let mut run = if resume == [1] { StageRun::resume(input, &last)? } else { StageRun::fresh(input)? };
    run.start_alike()?;
    let outcome = run.train(report);
    if let Err(TrainError::Parallel(error)) = outcome {
        return Err(run.save_after(error, report));
    }
    outcome
}

impl<'a> StageRun<'a> {
    fn fresh(mut input: StageInput<'a>) -> Result<Self, TrainError> {
        let spec = input.student.spec.clone();
        let mut parameters = std::mem::take(&mut input.student.parameters);
        let mut plan = input.plan.take();
        if let Some(plan) = &mut plan
            && input.student.plan.is_none()
        {
            let first: Vec<_> = (0..4)
                .map(|step| {
                    let (ids, _, batch, seq) = split(&input.data.train.batch(step, input.config.micro_batch));
                    (ids, batch, seq)
                })
                .collect();
            begin_quantizing(&spec, (plan, input.quantizer), &mut parameters, &first, input.seq_len);
        }
        let moments = Moments::zeros(&parameters);
        let mut model = Model::new(spec, plan, input.seq_len);
        model.quantizer = input.quantizer;
        let metrics = Metrics::open(&input, None)?;
        let trainer = trainer(&mut input, model, parameters, moments, 0);
        Ok(Self { input, trainer, best: None, metrics })
    }

    fn resume(mut input: StageInput<'a>, last: &Path) -> Result<Self, TrainError> {
        squat_files::sums::verify(last)?;
        let mut loaded = checkpoint::load(last)?;
        let (state, moments) = checkpoint::load_state(last, &mut loaded)?;
        if state.fingerprint != input.fingerprint {
            return Err(checkpoint::made_with_another(last));
        }
        if let Some(plan) = &mut loaded.plan {
            plan.thresholds = state.thresholds.iter().map(|&b| f32::from_bits(b)).collect();
        }
        let mut model = Model::new(loaded.spec, loaded.plan, input.seq_len);
        model.quantizer = loaded.quantizer;
        let metrics = Metrics::open(&input, Some(state.step))?;
        let best = state.best.map(f64::from_bits);
        let trainer = trainer(&mut input, model, loaded.parameters, moments, state.step);
        Ok(Self { input, trainer, best, metrics })
    }

    fn train(&mut self, report: &mut dyn FnMut(Event)) -> Result<Outcome, TrainError> {
        let mut config = self.input.config.clone();
        if self.input.budget.is_some() {
            if self.trainer.step == 0 && self.best.is_none() {
                self.evaluate(report)?;
            }
            if let Some(steps) = self.decided()? {
                set_steps(&mut config, steps);
            }
        }
        let parameters = self.trainer.parameters.iter().map(|p| p.values.len()).sum();
        report(Event::Start { step: self.trainer.step, steps: config.steps, parameters });
        let started = Instant::now();
        let first = self.trainer.step;
        let mut timed = started;
        while self.trainer.step < config.steps {
            if self.late()? {
                // Slower than foreseen: what there is counts.
                if self.trainer.step > first {
                    self.evaluate(report)?;
                    self.save(report)?;
                }
                break;
            }
            if self.trainer.step + 1 == *TIMED.start() {
                timed = Instant::now();
            }
            if self.input.execution.group.any(self.input.execution.stopped())? {
                self.save(report)?;
                return Ok(Outcome::Interrupted { step: self.trainer.step });
            }
            let batch = self.input.data.train.batch(self.trainer.step, config.batch_size);
            let next = self.trainer.step + 1;
            let StepReport { loss, gradient_norm: norm, learning_rate: rate, eight_bit_share: share } =
                self.trainer.step(&config, &batch).map_err(|failure| match failure {
                    StepFailure::NotFinite(term) => self.non_finite(next, term),
                    StepFailure::Parallel(error) => error.into(),
                })?;
            if config.steps == UNDECIDED && self.trainer.step >= *TIMED.end() {
                set_steps(&mut config, self.decide(timed)?);
            }
            let tokens = (self.trainer.step - first) as f64 * (config.batch_size * self.input.seq_len) as f64;
            let tokens_per_second = tokens / started.elapsed().as_secs_f64().max(1e-9);
            if self.trainer.step.is_multiple_of(config.log_every)
                || self.trainer.step == config.steps
                || self.trainer.step == 1
            {
                let mut line =
                    json!({"step": self.trainer.step, "learning_rate": rate, "gradient_norm": norm});
                for (name, value) in loss.terms() {
                    line[name] = json!(value);
                }
                if self.trainer.model.plan.is_some() {
                    line["eight_bit_share"] = json!(share);
                }
                line["tokens_per_second"] = json!((tokens_per_second * 10.0).round() / 10.0);
                self.write_metrics(&line)?;
            }
            report(Event::Step {
                step: self.trainer.step,
                steps: config.steps,
                loss,
                learning_rate: rate,
                gradient_norm: norm,
                tokens_per_second,
                eight_bit_share: share,
            });
            let done = self.trainer.step == config.steps;
            if self.trainer.step.is_multiple_of(config.eval_every) || done {
                self.evaluate(report)?;
            }
            if self.trainer.step.is_multiple_of(config.save_every) || done {
                self.save(report)?;
            }
        }
        Ok(Outcome::Finished { best: self.best.unwrap_or(f64::NAN) })
    }

    /// Whether the time of the budget is over for any process.
    fn late(&self) -> Result<bool, TrainError> {
        let Some(budget) = self.input.budget else { return Ok(false) };
        Ok(self.input.execution.group.any(Instant::now() >= budget.until)?)
    }

    fn steps_file(&self) -> PathBuf {
        self.input.folder.join("steps")
    }

    /// The number of steps that an earlier call decided on.
    fn decided(&self) -> Result<Option<u64>, TrainError> {
        let path = self.steps_file();
        match squat_files::read::text(&path, squat_files::read::Limit::Config) {
            Err(squat_files::read::ReadError::Missing(_)) => Ok(None),
            Err(error) => Err(error.into()),
            Ok(text) => text.trim().parse().map(Some).map_err(|_| TrainError::Checkpoint {
                path,
                message: format!(
                    "expected a number of steps, got {:?}; remove the folder to begin anew",
                    text.trim()
                ),
            }),
        }
    }

    /// How many steps fit into the budget by the clock of rank 0, from the time that those since `timed` took; written down for a
    /// resumed stage.
    fn decide(&mut self, timed: Instant) -> Result<u64, TrainError> {
        let count = (TIMED.end() - TIMED.start() + 1).min(self.trainer.step).max(1);
        let each = timed.elapsed().as_secs_f64() / count as f64;
        let left = self
            .input
            .budget
            .map_or(0.0, |budget| budget.until.saturating_duration_since(Instant::now()).as_secs_f64());
        // An evaluation takes about a third of a step for each of its sequences of a step's size.
        let config = self.input.config;
        let evaluation = each * config.eval_sequences as f64 / config.batch_size as f64 / 3.0;
        let more = (left - EVALUATIONS as f64 * evaluation) / each.max(1e-9);
        let steps = self.trainer.step + more.max(1.0) as u64;
        let group = &self.input.execution.group;
        let told = group.broadcast(steps.to_le_bytes().to_vec())?;
        let steps = told.try_into().map_or(steps, u64::from_le_bytes);
        if group.is_rank0() {
            NewFile::write(&self.steps_file(), Replace::Any, format!("{steps}\n").as_bytes())?;
        }
        Ok(steps)
    }

    fn non_finite(&self, step: u64, term: &str) -> TrainError {
        let last = self.input.folder.join("last");
        let checkpoint = if checkpoint::resumable(&last) {
            format!("the last good checkpoint is {}", last.display())
        } else {
            "no checkpoint had been written yet".to_owned()
        };
        TrainError::NonFinite {
            stage: self.input.config.name.clone(),
            step,
            term: term.to_owned(),
            checkpoint,
        }
    }

    fn evaluate(&mut self, report: &mut dyn FnMut(Event)) -> Result<(), TrainError> {
        let trainer = &mut self.trainer;
        let packed = pack_linears(
            &trainer.model,
            &trainer.parameters,
            &trainer.execution.device,
            trainer.execution.threads,
        );
        let params =
            ParamTensors::take(&mut trainer.parameters, &trainer.execution.device).with_packed(packed);
        let cross_entropy = held_out_loss(
            &self.trainer.model,
            &params,
            &self.input.data.valid,
            self.input.config.eval_sequences,
            self.input.config.micro_batch,
            self.input.execution.threads,
            &self.input.execution.group,
        );
        params.give_back(&mut self.trainer.parameters);
        let cross_entropy = cross_entropy?;
        if !cross_entropy.is_finite() {
            return Err(self.non_finite(self.trainer.step, "held-out cross-entropy"));
        }
        let best = self.best.is_none_or(|best| cross_entropy < best);
        if best {
            self.best = Some(cross_entropy);
            let path = self.input.folder.join("best");
            let Trainer { model, parameters, .. } = &self.trainer;
            if self.input.execution.group.is_rank0() {
                let tokenizer = &self.input.tokenizer;
                let quantized = (model.plan.as_ref(), model.quantizer);
                checkpoint::save(&path, &model.spec, quantized, parameters, tokenizer, None)?;
            }
        }
        self.write_metrics(
            &json!({"step": self.trainer.step, "valid_cross_entropy": cross_entropy, "best": best}),
        )?;
        report(Event::Evaluated { step: self.trainer.step, cross_entropy, best });
        Ok(())
    }

    fn save(&mut self, report: &mut dyn FnMut(Event)) -> Result<(), TrainError> {
        if let Some((name, _)) = self.trainer.parameters.non_finite() {
            return Err(self.non_finite(self.trainer.step, name));
        }
        if self.input.execution.group.world() > 1 {
            self.input.execution.group.assert_equal("parameters", &self.trainer.parameters.digest())?;
        }
        self.write_last(report)
    }

    /// Every process begins with the parameters of the one that writes, whatever its CPU made of them.
    fn start_alike(&mut self) -> Result<(), TrainError> {
        let (group, trainer) = (&self.input.execution.group, &mut self.trainer);
        if group.world() == 1 {
            return Ok(());
        }
        group.assert_equal("steps behind it", &trainer.step.to_le_bytes())?;
        let mut bytes = Vec::new();
        trainer.parameters.iter().for_each(|p| parallel::encode(&p.values, &mut bytes));
        let thresholds = trainer.model.plan.as_mut().map(|plan| &mut plan.thresholds);
        thresholds.iter().for_each(|list| parallel::encode(list, &mut bytes));
        let bytes = group.broadcast(bytes)?;
        let mut values = bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]));
        let lists = trainer.parameters.list_mut().iter_mut().map(|p| &mut p.values).chain(thresholds);
        for value in lists.flatten() {
            *value = values.next().unwrap_or(f32::NAN);
        }
        Ok(())
    }

    /// After another process is lost: saves the steps that all processes have made.
    fn save_after(&mut self, error: parallel::ParallelError, report: &mut dyn FnMut(Event)) -> TrainError {
        let whole = self.input.execution.group.is_rank0() && self.trainer.parameters.non_finite().is_none();
        if whole && !matches!(error, parallel::ParallelError::Disagree { .. }) {
            // The lost process is the error to report, whether saving works or not.
            let _ = self.write_last(report);
        }
        error.into()
    }

    fn write_last(&mut self, report: &mut dyn FnMut(Event)) -> Result<(), TrainError> {
        if !self.input.execution.group.is_rank0() {
            return Ok(());
        }
        let path = self.input.folder.join("last");
        let plan = self.trainer.model.plan.as_ref();
        let bits = |values: &[f32]| -> Vec<u32> { values.iter().map(|x| x.to_bits()).collect() };
        let state = State {
            step: self.trainer.step,
            thresholds: plan.map(|plan| bits(&plan.thresholds)).unwrap_or_default(),
            best: self.best.map(f64::to_bits),
            fingerprint: self.input.fingerprint.clone(),
            quantizer: plan.map(|_| self.trainer.model.quantizer.name().to_owned()),
            static_points: self
                .trainer
                .parameters
                .iter()
                .filter(|p| p.name.ends_with(".static"))
                .map(|p| (p.name.clone(), bits(&p.values)))
                .collect(),
        };
        let tokenizer = &self.input.tokenizer;
        checkpoint::save(
            &path,
            &self.trainer.model.spec,
            (plan, self.trainer.model.quantizer),
            &self.trainer.parameters,
            tokenizer,
            Some((&state, &self.trainer.moments)),
        )?;
        report(Event::Saved { step: self.trainer.step, path });
        Ok(())
    }

    fn write_metrics(&mut self, line: &serde_json::Value) -> Result<(), TrainError> {
        let Some(metrics) = &mut self.metrics else { return Ok(()) };
        metrics.add(line)
    }
}

/// The schedule of a stage whose number of steps is known now.
fn set_steps(config: &mut StageConfig, steps: u64) {
    let every = (steps / EVALUATIONS).max(1);
    (config.steps, config.eval_every, config.save_every) = (steps, every, every);
}

/// Adds quantizers to full-precision parameters, their scales and thresholds found on `batches` of (ids, rows, tokens).
pub fn begin_quantizing(
    spec: &squat_model::ModelSpec,
    (plan, quantizer): (&mut QuantPlan, &'static dyn WeightQuantizer),
    parameters: &mut Parameters,
    batches: &[(Vec<u32>, usize, usize)],
    seq_len: usize,
) {
    transform_weights(parameters, spec, plan);
    add_quantizer_parameters(parameters, spec, plan, quantizer);
    let model = Model::new(spec.clone(), None, seq_len);
    calibrate(&model, parameters, plan, batches);
    first_thresholds(spec, (plan, quantizer), parameters, batches);
}

/// First thresholds: quantiles with every token at 8 bits.
fn first_thresholds(
    spec: &squat_model::ModelSpec,
    (plan, quantizer): (&mut QuantPlan, &'static dyn WeightQuantizer),
    parameters: &Parameters,
    batches: &[(Vec<u32>, usize, usize)],
) {
    use squat_quant::token_policy::TokenPolicy;
    if !matches!(plan.policy, TokenPolicy::SinkAttention | TokenPolicy::ActivationNorm) {
        return;
    }
    let seq = batches.iter().map(|b| b.2).max().unwrap_or(1);
    // Scores are never negative, so a threshold of 0 lets every token pass.
    plan.thresholds = vec![0.0; spec.num_hidden_layers];
    let mut model = Model::new(spec.clone(), Some(plan.clone()), seq);
    model.quantizer = quantizer;
    let params = ParamTensors::constant(parameters);
    let mut scores = Vec::new();
    for (ids, batch, seq) in batches {
        merge_scores(
            &mut scores,
            model.forward(&params, ids, (*batch, *seq), &ForwardOptions::default()).scores,
        );
    }
    plan.thresholds = thresholds::initial(&scores, seq, plan.rho);
}
