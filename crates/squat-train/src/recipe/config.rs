//! The keys of a recipe, and their defaults.

use super::QuantConfig;
use crate::error::TrainError;
use serde::{Deserialize, Serialize};
use squat_model::ModelSpec;

/// A whole experiment: data, model sizes, and stages in order.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Recipe {
    /// Name of the run; its folder is `runs/NAME` unless told otherwise.
    pub name: String,
    /// Seed of everything random.
    #[serde(default = "one")]
    pub seed: u64,
    /// Corpus and tokenizer.
    pub data: DataConfig,
    /// Sizes of the model, for stages that start from no other and give none of their own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<ModelConfig>,
    /// Training stages, in order.
    #[serde(rename = "stage")]
    pub stages: Vec<StageConfig>,
}

/// Corpus and tokenizer.
#[derive(Clone, Debug, Deserialize, Serialize, PartialEq)]
#[serde(deny_unknown_fields)]
pub struct DataConfig {
    /// Files or folders of training text; `$NAME` is replaced by that environment variable. `generated` is the built-in
    /// English.
    pub train: Vec<String>,
    /// The same for held-out text.
    pub valid: Vec<String>,
    /// Tokenizer folder or file; trained on the corpus if absent.
    #[serde(default)]
    pub tokenizer: Option<String>,
    /// Vocabulary of a tokenizer trained here.
    #[serde(default = "default_vocab")]
    pub vocab_size: usize,
    /// Tokens of a training sequence, BOS included.
    #[serde(default = "default_seq")]
    pub seq_len: usize,
    /// Let sequences begin at a line's start where one is near, so that the first token is a real beginning.
    #[serde(default = "yes")]
    pub start_at_line: bool,
    /// Words of the built-in English, if `train` is `generated`.
    #[serde(default = "default_words")]
    pub generated_words: usize,
}

/// Sizes of a LLaMA-family model.
#[derive(Clone, Debug, Deserialize, Serialize, PartialEq)]
#[serde(deny_unknown_fields)]
pub struct ModelConfig {
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width of the MLP.
    pub intermediate_size: usize,
    /// Number of layers.
    pub num_hidden_layers: usize,
    /// Query heads.
    pub num_attention_heads: usize,
    /// Key and value heads; as many as query heads if absent.
    #[serde(default)]
    pub num_key_value_heads: Option<usize>,
    /// Whether the head shares the token table.
    #[serde(default = "yes")]
    pub tie_word_embeddings: bool,
    /// Longest sequence the model is meant for.
    #[serde(default = "default_positions")]
    pub max_position_embeddings: usize,
    /// RoPE's base.
    #[serde(default = "default_theta")]
    pub rope_theta: f64,
    /// Added to the mean square in norms.
    #[serde(default = "default_norm_eps")]
    pub rms_norm_eps: f64,
}

/// Kind of a stage.
#[derive(Clone, Copy, Debug, Deserialize, Serialize, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub enum StageKind {
    /// Train from scratch (or from `init`) on the corpus alone.
    Pretrain,
    /// Train a full-precision student on the corpus and on teachers.
    Distill,
    /// Train with the quantizers in the loop, from `init`.
    Qat,
}

/// Numbers in which the weights of frozen teachers are held.
#[derive(Clone, Copy, Debug, Default, Deserialize, Serialize, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub enum TeacherDtype {
    /// As they were trained.
    #[default]
    F32,
    /// Rounded to half the bytes, and widened whenever they are read.
    Bf16,
}

/// Numbers in which linear layers multiply while they train on a GPU; everything else stays f32, and so does the
/// CPU, whose products are those of the engine.
#[derive(Clone, Copy, Debug, Default, Deserialize, Serialize, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub enum MixedPrecision {
    /// f32.
    #[default]
    No,
    /// bf16. Integer codes are exact in it; sums, unquantized operands and gradients are rounded to 8 bits.
    Bf16,
}

/// One training stage.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct StageConfig {
    /// Name: a folder of the run.
    pub name: String,
    /// Its kind.
    pub kind: StageKind,
    /// Stage of this run, or model folder, to start from.
    #[serde(default)]
    pub init: Option<String>,
    /// Stages of this run, or model folders, whose logits are averaged as the teacher.
    #[serde(default)]
    pub teachers: Vec<String>,
    /// How the teachers' weights are held.
    #[serde(default)]
    pub teacher_dtype: TeacherDtype,
    /// Numbers in which linear layers multiply on a GPU.
    #[serde(default)]
    pub mixed_precision: MixedPrecision,
    /// Sizes, if not those of the recipe.
    #[serde(default)]
    pub model: Option<ModelConfig>,
    /// Optimizer steps.
    pub steps: u64,
    /// Sequences in a step.
    #[serde(default = "default_batch")]
    pub batch_size: usize,
    /// Sequences that go through the model together; a step accumulates `batch_size / micro_batch` of them. Threads
    /// work on different micro-batches; results do not depend on the number of threads.
    #[serde(default = "default_micro")]
    pub micro_batch: usize,
    /// Keep only the input of each layer and compute the rest again when going backwards: the same bits with less
    /// memory, for about a third more time.
    #[serde(default)]
    pub activation_checkpointing: bool,
    /// Peak learning rate.
    pub learning_rate: f32,
    /// Peak learning rate of quantizer scales (in log space).
    #[serde(default = "default_scale_rate")]
    pub scale_learning_rate: f32,
    /// Steps of linear warm-up.
    #[serde(default = "default_warmup")]
    pub warmup: u64,
    /// Learning rate at the end, as a share of the peak.
    #[serde(default = "default_final")]
    pub final_learning_rate_ratio: f32,
    /// Decoupled weight decay of matrices.
    #[serde(default = "default_decay")]
    pub weight_decay: f32,
    /// Largest gradient norm; 0 switches clipping off.
    #[serde(default = "default_clip")]
    pub clip_norm: f64,
    /// AdamW's first decay.
    #[serde(default = "default_beta1")]
    pub beta1: f32,
    /// AdamW's second decay.
    #[serde(default = "default_beta2")]
    pub beta2: f32,
    /// Standard deviation of fresh weights.
    #[serde(default = "default_std")]
    pub init_std: f32,
    /// Losses.
    #[serde(default)]
    pub loss: LossConfig,
    /// Quantization, for `qat`.
    #[serde(default)]
    pub quant: Option<QuantConfig>,
    /// Steps between evaluations on held-out text.
    #[serde(default = "default_eval")]
    pub eval_every: u64,
    /// Held-out sequences in an evaluation.
    #[serde(default = "default_eval_sequences")]
    pub eval_sequences: u64,
    /// Steps between checkpoints.
    #[serde(default = "default_eval")]
    pub save_every: u64,
    /// Steps between lines of metrics.
    #[serde(default = "default_log")]
    pub log_every: u64,
}

/// Weights of the loss terms (METHOD.md section 4).
#[derive(Clone, Debug, Deserialize, Serialize, PartialEq)]
#[serde(deny_unknown_fields, default)]
pub struct LossConfig {
    /// Share of distillation against cross-entropy, `g`; 1 is distillation alone. Without teachers it is 0.
    pub gamma: f32,
    /// Temperature `t`.
    pub temperature: f32,
    /// Weight of the entropy term, `r_E`; 0 switches it off.
    pub entropy: f32,
    /// Weight of the alignment term, `r_D`; 0 switches it off. Needs a first teacher of the student's shape.
    pub alignment: f32,
    /// Layers whose attention maps are aligned; empty is all. Negative numbers count from the last.
    pub alignment_layers: Vec<i64>,
    /// Keep only so many of the teachers' likeliest tokens at each position, and the mass of the rest; 0 keeps all.
    /// Saves the memory of logits over the whole vocabulary.
    pub teacher_top_k: usize,
}

impl Default for LossConfig {
    fn default() -> Self {
        Self {
            gamma: 0.5,
            temperature: 2.0,
            entropy: 0.0,
            alignment: 0.0,
            alignment_layers: Vec::new(),
            teacher_top_k: 0,
        }
    }
}

fn one() -> u64 {
    1
}
fn yes() -> bool {
    true
}
fn default_vocab() -> usize {
    8192
}
fn default_seq() -> usize {
    128
}
fn default_words() -> usize {
    1_000_000
}
fn default_positions() -> usize {
    2048
}
fn default_theta() -> f64 {
    10_000.0
}
fn default_norm_eps() -> f64 {
    1e-5
}
fn default_batch() -> usize {
    32
}
fn default_micro() -> usize {
    8
}
fn default_scale_rate() -> f32 {
    1e-3
}
fn default_warmup() -> u64 {
    100
}
fn default_final() -> f32 {
    0.1
}
fn default_decay() -> f32 {
    0.1
}
fn default_clip() -> f64 {
    1.0
}
fn default_beta1() -> f32 {
    0.9
}
fn default_beta2() -> f32 {
    0.95
}
fn default_std() -> f32 {
    0.02
}
fn default_eval() -> u64 {
    250
}
fn default_eval_sequences() -> u64 {
    256
}
fn default_log() -> u64 {
    10
}

impl ModelConfig {
    /// The model's spec for a vocabulary with the project's special tokens (`<pad>` 0, `<s>` 1, `</s>` 2).
    ///
    /// # Errors
    /// Sizes that do not fit together.
    pub fn spec(&self, vocab_size: usize) -> Result<ModelSpec, TrainError> {
        let heads = self.num_attention_heads;
        if heads == 0 || !self.hidden_size.is_multiple_of(heads) {
            return Err(TrainError::Recipe(format!(
                "model.hidden_size {} is not a multiple of num_attention_heads {heads}",
                self.hidden_size
            )));
        }
        let spec = ModelSpec {
            vocab_size,
            hidden_size: self.hidden_size,
            intermediate_size: self.intermediate_size,
            num_hidden_layers: self.num_hidden_layers,
            num_attention_heads: heads,
            num_key_value_heads: self.num_key_value_heads.unwrap_or(heads),
            head_dim: self.hidden_size / heads,
            max_position_embeddings: self.max_position_embeddings,
            norm_eps: self.rms_norm_eps,
            rope: Some(squat_model::rope::Rope::new(self.rope_theta)),
            tie_word_embeddings: self.tie_word_embeddings,
            bos_token_id: Some(1),
            eos_token_ids: vec![2],
            pad_token_id: Some(0),
            ..squat_model::arch::llama::base()
        };
        spec.validate()?;
        Ok(spec)
    }
}
