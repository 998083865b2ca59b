//! Training of a model that was quantized without training, on what the original says: self-distillation for a given time.
//!
//! It is a stage like any other ([`crate::stage`]), with the original as its only teacher, so it can be interrupted and goes on
//! bit for bit. The number of steps is what fits into the time, measured in the first steps.

use crate::basis::{Bases, bases_of};
use crate::checkpoint::{self, Loaded};
use crate::error::TrainError;
use crate::execution::Execution;
use crate::fake_quant::Weight;
use crate::quantizer::{default_quantizer, parameter_name};
use crate::recipe::{LossConfig, MixedPrecision, StageConfig, StageKind, TeacherDtype};
use crate::stage::{self, Budget, Event, Outcome, StageData, StageInput};
use crate::step::Teacher;
use squat_data::{Chunks, Sequential, TokenShards};
use squat_model::{ParamKind, TokenizerFiles};
use std::path::{Path, PathBuf};
use std::time::Instant;

/// Settings that were found by experiment (docs/LOG.md); they hold for every architecture.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Settings {
    /// Peak learning rate of weights and norms, as a share of the mean scale of the weights, so that it means the same for every
    /// model: how much of the way to the next code a step can go.
    pub rate: f32,
    /// Peak learning rate of the logarithms of scales.
    pub scale_learning_rate: f32,
    /// Tokens of a step.
    pub step_tokens: usize,
    /// Longest sequence.
    pub seq_len: usize,
    /// Temperature of the distillation.
    pub temperature: f32,
}

impl Default for Settings {
    fn default() -> Self {
        Self { rate: 0.003, scale_learning_rate: 1e-3, step_tokens: 2048, seq_len: 256, temperature: 1.0 }
    }
}

/// What is tuned.
pub struct Tuning<'a> {
    /// The model in full precision: the teacher.
    pub original: Loaded,
    /// The same model with codes and scales ([`crate::start::start`]).
    pub started: Loaded,
    /// Token ids to train on, and others to choose the best checkpoint by.
    pub text: [Vec<u32>; 2],
    /// Id that begins a sequence.
    pub bos: u32,
    /// Tokenizer files that go into the checkpoints.
    pub tokenizer: TokenizerFiles,
    /// Folder of the stage's checkpoints and metrics.
    pub folder: &'a Path,
    /// What everything depends on: a folder of another is refused.
    pub fingerprint: String,
    /// When it has to end.
    pub until: Instant,
    /// Seed of the order of the text.
    pub seed: u64,
    /// Settings.
    pub settings: Settings,
    /// Where and with whom.
    pub execution: Execution,
}

/// Trains until `until`; returns how it ended and the folder of the best checkpoint by held-out cross-entropy, which may be the
/// start itself.
///
/// # Errors
/// Text that is too short, files that cannot be written. A loss that is not finite ends it with the best so far, if there is
/// one, and is reported.
pub fn tune(tuning: Tuning<'_>, report: &mut dyn FnMut(Event)) -> Result<(Outcome, PathBuf), TrainError> {
    let Tuning {
        original,
        mut started,
        text,
        bos,
        tokenizer,
        folder,
        fingerprint,
        until,
        seed,
        settings,
        execution,
    } = tuning;
    let seq_len = settings.seq_len.min(original.spec.max_position_embeddings);
    let batch_size = (settings.step_tokens / seq_len).max(2);
    let [train, valid] = text.map(|tokens| TokenShards::from_tokens(tokens).with_bos(bos));
    let data =
        StageData { train: Chunks::new(&train, seq_len, seed)?, valid: Sequential::new(&valid, seq_len)? };
    let plan = started.plan.clone();
    let mean_scale = loosen(&mut started)?;
    let bases = match &plan {
        Some(plan) => bases_of(&original.parameters, &original.spec, plan),
        None => Bases::new(),
    };
    let config = StageConfig {
        name: "tune".to_owned(),
        kind: StageKind::Qat,
        init: None,
        teachers: Vec::new(),
        teacher_dtype: TeacherDtype::F32,
        mixed_precision: MixedPrecision::No,
        model: None,
        steps: stage::UNDECIDED,
        batch_size,
        micro_batch: 2,
        activation_checkpointing: false,
        learning_rate: settings.rate * mean_scale,
        scale_learning_rate: settings.scale_learning_rate,
        warmup: 5,
        final_learning_rate_ratio: 0.05,
        weight_decay: 0.0,
        clip_norm: 1.0,
        beta1: 0.9,
        beta2: 0.95,
        init_std: 0.0,
        loss: LossConfig { gamma: 1.0, temperature: settings.temperature, ..LossConfig::default() },
        quant: None,
        eval_every: stage::UNDECIDED,
        eval_sequences: data.valid.len(),
        save_every: stage::UNDECIDED,
        log_every: 1,
    };
    let teacher = Teacher::new(original, TeacherDtype::F32, seq_len, &execution.device, execution.threads)?;
    let input = StageInput {
        config: &config,
        student: started,
        plan,
        quantizer: default_quantizer(),
        bases,
        teachers: vec![teacher],
        data,
        seq_len,
        tokenizer,
        folder: folder.to_path_buf(),
        fingerprint,
        execution: Execution { resume: true, ..execution },
        budget: Some(Budget { until }),
    };
    let outcome = stage::train(input, report)?;
    Ok((outcome, checkpoint::best_or_last(folder)))
}

/// From codes to weights that can move: the default quantizer's parameters stand for the scales that were found. Every weight begins
/// in the middle of the interval that rounds to its code. Returns the mean scale.
fn loosen(started: &mut Loaded) -> Result<f32, TrainError> {
    let Some(plan) = started.plan.clone() else {
        return Err(TrainError::Input(
            "expected a quantized model to train, got one in full precision".into(),
        ));
    };
    let (mut sum, mut count) = (0f64, 0usize);
    for info in started.spec.parameters() {
        let Some(scheme) = plan.scheme_of(&info) else { continue };
        let list = &started.parameters;
        let (Some(weight), Some(learned)) = (list.index(&info.name), list.index(&parameter_name(&info.name)))
        else {
            continue;
        };
        let list = started.parameters.list_mut();
        let found = Weight { values: &list[weight].values, cols: list[weight].shape[1], scheme };
        let scales = started.quantizer.scales(found, &list[learned].values);
        let values = default_quantizer().parameters(found, &scales);
        list[learned].values = values;
        if matches!(info.kind, ParamKind::Linear(_)) {
            sum += scales.iter().map(|&scale| f64::from(scale)).sum::<f64>();
            count += scales.len();
        }
    }
    started.quantizer = default_quantizer();
    Ok((sum / count.max(1) as f64) as f32)
}
