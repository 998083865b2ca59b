//! The speed of a training step on random data, without files.

use crate::checkpoint::Loaded;
use crate::device::device;
use crate::error::TrainError;
use crate::execution::Execution;
use crate::model::{Model, check_trainable, initial_parameters};
use crate::optimizer::Moments;
use crate::process;
use crate::profile::{self, Entry, Phase};
use crate::quantizer::default_quantizer;
use crate::recipe::{LossConfig, StageConfig, StageKind, TeacherDtype};
use crate::stage::begin_quantizing;
use crate::step::{Teacher, split};
use crate::trainer::{StepFailure, Trainer};
use squat_model::{ModelSpec, QuantPlan};
use std::time::Instant;

/// What to measure.
#[derive(Clone, Debug)]
pub struct StepBench {
    /// Sizes of the model.
    pub spec: ModelSpec,
    /// Named plan; `fp` trains in full precision without a teacher.
    pub scheme: String,
    /// Threads.
    pub threads: usize,
    /// Sequences of a step, shared out evenly over the threads as micro-batches.
    pub batch: usize,
    /// Tokens of a sequence.
    pub seq: usize,
    /// Steps that count, after one that does not.
    pub steps: u64,
    /// Keep only the input of each layer for the backward pass.
    pub activation_checkpointing: bool,
    /// Keep only so many of the teacher's likeliest tokens; 0 keeps all.
    pub teacher_top_k: usize,
    /// How the teacher's weights are held.
    pub teacher_dtype: TeacherDtype,
}

/// Medians over the steps.
#[derive(Clone, Debug)]
pub struct StepSpeed {
    /// Processor time of all threads.
    pub cpu_seconds: f64,
    /// Time on the wall.
    pub wall_seconds: f64,
    /// Tokens of a step by [`Self::wall_seconds`].
    pub tokens_per_second: f64,
    /// Most memory that the process held at one time, where the system tells.
    pub peak_resident_bytes: Option<u64>,
    /// Loss of the last step.
    pub loss: f64,
    /// Cost of one step (a mean), by phase and operation.
    pub profile: Vec<Entry>,
}

impl StepSpeed {
    /// Mean processor time of a phase in a step.
    pub fn phase(&self, phase: Phase) -> f64 {
        let whole = |entry: &&Entry| entry.phase == phase && entry.operation.is_empty();
        self.profile.iter().find(whole).map_or(0.0, |entry| entry.row.seconds)
    }
}

impl StepBench {
    /// A model of one of the names of [`squat_model::shapes`].
    ///
    /// # Errors
    /// An unknown name, with the nearest; a model that cannot be trained.
    pub fn named(shape: &str, scheme: &str) -> Result<Self, TrainError> {
        let spec = squat_model::shapes::shape(shape)?;
        check_trainable(&spec)?;
        Ok(Self {
            spec,
            scheme: scheme.to_owned(),
            threads: 1,
            batch: 4,
            seq: 128,
            steps: 5,
            activation_checkpointing: false,
            teacher_top_k: 0,
            teacher_dtype: TeacherDtype::F32,
        })
    }

    /// Measures. With a plan every term of the loss is on (distillation from the model before quantization, entropy,
    /// alignment of all layers), as in the recipes.
    ///
    /// # Errors
    /// An unknown plan, a batch or sequence length of 0, a loss that is not finite.
    pub fn run(&self) -> Result<StepSpeed, TrainError> {
        if self.batch == 0 || self.seq < 2 || self.steps == 0 {
            return Err(TrainError::Input(format!(
                "expected a batch and steps of at least 1 and sequences of at least 2 tokens, got {}, {} and {}",
                self.batch, self.steps, self.seq
            )));
        }
        crate::memory::keep_freed();
        let (mut trainer, config) = self.trainer()?;
        let mut times = Vec::new();
        let mut loss = 0.0;
        for step in 0..=self.steps {
            if step == 1 {
                profile::start();
            }
            let batch = self.sequences(step);
            let (wall, cpu) = (Instant::now(), process::cpu_seconds());
            let report = trainer.step(&config, &batch).map_err(|failure| match failure {
                StepFailure::NotFinite(term) => {
                    TrainError::Input(format!("{term} is not finite at step {step} on random data"))
                }
                StepFailure::Parallel(error) => error.into(),
            })?;
            if step > 0 {
                times.push((process::cpu_seconds() - cpu, wall.elapsed().as_secs_f64()));
            }
            loss = report.loss.total;
        }
        let mut profile = profile::finish();
        for Entry { row, .. } in &mut profile {
            row.calls /= self.steps;
            row.seconds /= self.steps as f64;
            row.bytes /= self.steps;
        }
        let median = |mut times: Vec<f64>| {
            times.sort_by(f64::total_cmp);
            times[times.len() / 2]
        };
        let wall_seconds = median(times.iter().map(|t| t.1).collect());
        Ok(StepSpeed {
            cpu_seconds: median(times.iter().map(|t| t.0).collect()),
            wall_seconds,
            tokens_per_second: (self.batch * self.seq) as f64 / wall_seconds,
            peak_resident_bytes: process::peak_resident_bytes(),
            loss,
            profile,
        })
    }

    fn trainer(&self) -> Result<(Trainer, StageConfig), TrainError> {
        let spec = self.spec.clone();
        let mut parameters = initial_parameters(&spec, 0.02, 1);
        let (mut plan, mut teachers) = (None, Vec::new());
        if self.scheme != "fp" {
            let loaded = Loaded::full_precision(spec.clone(), parameters.clone());
            let device = device("cpu")?;
            teachers.push(Teacher::new(loaded, self.teacher_dtype, self.seq, &device, self.threads)?);
            let plan = plan.insert(QuantPlan::named(&self.scheme)?);
            let (ids, _, rows, seq) = split(&self.sequences(u64::MAX));
            begin_quantizing(
                &spec,
                (plan, default_quantizer()),
                &mut parameters,
                &[(ids, rows, seq)],
                self.seq,
            );
        }
        let text = "name = \"bench\"\nkind = \"pretrain\"\nsteps = 1000\nlearning_rate = 1e-4";
        let defaults: StageConfig =
            toml::from_str(text).map_err(|error| TrainError::Recipe(error.to_string()))?;
        let config = StageConfig {
            kind: if plan.is_some() { StageKind::Qat } else { StageKind::Pretrain },
            batch_size: self.batch,
            micro_batch: self.batch.div_ceil(self.threads.max(1)),
            activation_checkpointing: self.activation_checkpointing,
            loss: LossConfig {
                entropy: 0.01,
                alignment: 0.1,
                teacher_top_k: self.teacher_top_k,
                ..LossConfig::default()
            },
            ..defaults
        };
        let moments = Moments::zeros(&parameters);
        let trainer = Trainer {
            model: Model::new(spec, plan, self.seq),
            parameters,
            moments,
            bases: crate::basis::Bases::new(),
            teachers,
            step: 0,
            seq_len: self.seq,
            execution: Execution::on_cpu(self.threads.max(1)),
        };
        Ok((trainer, config))
    }

    /// Random sequences of `seq + 1` ids.
    fn sequences(&self, step: u64) -> Vec<Vec<u32>> {
        let mut state = step.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
        let mut next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) as u32 % self.spec.vocab_size as u32
        };
        (0..self.batch).map(|_| (0..=self.seq).map(|_| next()).collect()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_is_measured_in_all_its_parts() {
        for scheme in ["fp", "rho50"] {
            let bench =
                StepBench { threads: 2, seq: 16, steps: 2, ..StepBench::named("tiny", scheme).unwrap() };
            let speed = bench.run().unwrap();
            assert!(speed.loss.is_finite() && speed.tokens_per_second > 0.0);
            assert!(speed.phase(Phase::Forward) > 0.0 && speed.phase(Phase::Backward) > 0.0);
            assert_eq!(speed.phase(Phase::Teacher) > 0.0, scheme != "fp");
        }
    }

    #[test]
    fn names_are_checked() {
        let error = StepBench::named("llama-58", "fp").unwrap_err().to_string();
        assert!(error.contains("did you mean \"llama-58m\""), "{error}");
        let error = StepBench::named("gpt2-97m", "fp").unwrap_err().to_string();
        assert!(error.contains("GPT2LMHeadModel") && error.contains("cannot be trained"), "{error}");
        assert!(StepBench { batch: 0, ..StepBench::named("tiny", "fp").unwrap() }.run().is_err());
    }
}
