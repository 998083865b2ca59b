//! Recipes: an experiment as a TOML file. Unknown keys are errors with a suggestion.

use crate::error::TrainError;
use serde::{Deserialize, Serialize};
use squat_model::{ModelSpec, QuantPlan};
use squat_quant::token_policy::TokenPolicy;
use squat_quant::{ActPoint, ActScheme, Granularity, WeightBits, WeightScheme};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

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
    /// Sizes of the model, for stages that give none of their own.
    pub model: ModelConfig,
    /// Training stages, in order.
    #[serde(rename = "stage")]
    pub stages: Vec<StageConfig>,
}

/// Corpus and tokenizer.
#[derive(Clone, Debug, Deserialize, Serialize)]
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

/// What a stage does.
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

/// One training stage.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct StageConfig {
    /// Name: a folder of the run.
    pub name: String,
    /// What it does.
    pub kind: StageKind,
    /// Stage of this run, or model folder, to start from.
    #[serde(default)]
    pub init: Option<String>,
    /// Stages of this run, or model folders, whose logits are averaged as the teacher.
    #[serde(default)]
    pub teachers: Vec<String>,
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
    /// Peak learning rate.
    pub learning_rate: f32,
    /// Peak learning rate of quantizer steps (in log space).
    #[serde(default = "default_step_rate")]
    pub step_learning_rate: f32,
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
}

impl Default for LossConfig {
    fn default() -> Self {
        Self { gamma: 0.5, temperature: 2.0, entropy: 0.0, alignment: 0.0, alignment_layers: Vec::new() }
    }
}

/// The quantization of a `qat` stage: a named plan and what differs from it.
#[derive(Clone, Debug, Deserialize, Serialize, PartialEq)]
#[serde(deny_unknown_fields)]
pub struct QuantConfig {
    /// Named plan: `w4a8`, `w4a4`, `w8a8`, `w2a8`, `rho50`, ...
    pub plan: String,
    /// Granularity of linears: `tensor`, `channel`, or a group size.
    #[serde(default)]
    pub weight_granularity: Option<String>,
    /// Bits of the token table: `8`, `4`, `fp`.
    #[serde(default)]
    pub embedding: Option<String>,
    /// Bits of the head: `8`, `4`, `fp`.
    #[serde(default)]
    pub head: Option<String>,
    /// Scheme of all activation points: `dynamic` or `static`.
    #[serde(default)]
    pub activations: Option<String>,
    /// Scheme of single points: `dynamic`, `static` or `fp`.
    #[serde(default)]
    pub points: BTreeMap<String, String>,
    /// Bits of the attention probabilities: 8 or 4.
    #[serde(default)]
    pub attn_probs_bits: Option<u32>,
    /// Token policy: `sink_attention`, `random`, `first`, `activation_norm` (the last three are controls).
    #[serde(default)]
    pub policy: Option<String>,
    /// Share of 8-bit tokens.
    #[serde(default)]
    pub rho: Option<f32>,
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
fn default_step_rate() -> f32 {
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

/// The nearest of `known` to `word`, if it is near at all.
pub fn nearest<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    known
        .into_iter()
        .map(|k| (strsim::damerau_levenshtein(word, k), k))
        .min_by_key(|(d, _)| *d)
        .filter(|(d, k)| *d <= k.len().max(3) / 2)
        .map(|(_, k)| k)
}

fn with_suggestion(message: &str) -> String {
    // Serde says: unknown field `x`, expected one of `a`, `b`.
    let mut quoted = message.split('`').skip(1).step_by(2);
    match (message.contains("unknown field") || message.contains("unknown variant"), quoted.next()) {
        (true, Some(word)) => match nearest(word, quoted) {
            Some(near) => format!("{message}\nhint: did you mean `{near}`?"),
            None => message.to_owned(),
        },
        _ => message.to_owned(),
    }
}

impl Recipe {
    /// Reads a recipe and applies `key=value` settings; keys are dotted paths, stages are named: `stage.fp.steps=100`.
    ///
    /// # Errors
    /// A missing file, bad TOML, unknown keys, or values that contradict each other.
    pub fn load(path: &Path, settings: &[String]) -> Result<Self, TrainError> {
        let text = std::fs::read_to_string(path).map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound => squat_data::DataError::missing(path).into(),
            _ => TrainError::io("cannot read recipe", path)(error),
        })?;
        Self::parse(&text, settings).map_err(|error| match error {
            TrainError::Recipe(message) => TrainError::Recipe(format!("{}: {message}", path.display())),
            other => other,
        })
    }

    /// The same from text.
    ///
    /// # Errors
    /// Bad TOML, unknown keys, or values that contradict each other.
    pub fn parse(text: &str, settings: &[String]) -> Result<Self, TrainError> {
        let mut table: toml::Table =
            toml::from_str(text).map_err(|e| TrainError::Recipe(e.to_string().trim().to_owned()))?;
        for setting in settings {
            set(&mut table, setting)?;
        }
        let recipe: Self = toml::Value::Table(table).try_into().map_err(|error: toml::de::Error| {
            // What is wrong in the text itself is shown with its line; what a setting brought in has none.
            let message = match toml::from_str::<Self>(text) {
                Err(in_text) => in_text.to_string(),
                Ok(_) => format!("after --set {}: {}", settings.join(" --set "), error.message()),
            };
            TrainError::Recipe(with_suggestion(message.trim()))
        })?;
        recipe.validate()?;
        Ok(recipe)
    }

    /// The recipe as TOML, all defaults written out.
    ///
    /// # Errors
    /// Never for a recipe that was read.
    pub fn to_toml(&self) -> Result<String, TrainError> {
        toml::to_string_pretty(self).map_err(|e| TrainError::Recipe(e.to_string()))
    }

    /// The stage of that name.
    ///
    /// # Errors
    /// None of that name; the message has the nearest.
    pub fn stage(&self, name: &str) -> Result<&StageConfig, TrainError> {
        self.stages.iter().find(|stage| stage.name == name).ok_or_else(|| {
            let names: Vec<&str> = self.stages.iter().map(|s| s.name.as_str()).collect();
            let near = nearest(name, names.iter().copied()).unwrap_or("");
            TrainError::Recipe(format!("no stage `{name}`; there are {names:?}; nearest: `{near}`"))
        })
    }

    fn validate(&self) -> Result<(), TrainError> {
        let fail = |message: String| Err(TrainError::Recipe(message));
        if self.stages.is_empty() {
            return fail("no [[stage]]: add at least one".into());
        }
        if self.data.seq_len < 2 {
            return fail(format!("data.seq_len must be at least 2, got {}", self.data.seq_len));
        }
        for (index, stage) in self.stages.iter().enumerate() {
            let at = format!("stage `{}`", stage.name);
            if stage.name.is_empty() || stage.name.contains(['/', '\\', '.']) {
                return fail(format!("{at}: a stage's name is a folder name; use letters, digits, - and _"));
            }
            if self.stages[..index].iter().any(|other| other.name == stage.name) {
                return fail(format!("{at} stands twice"));
            }
            if stage.steps == 0 || stage.batch_size == 0 || stage.micro_batch == 0 {
                return fail(format!("{at}: steps, batch_size and micro_batch must be positive"));
            }
            if !stage.batch_size.is_multiple_of(stage.micro_batch) {
                return fail(format!(
                    "{at}: batch_size {} is no multiple of micro_batch {}",
                    stage.batch_size, stage.micro_batch
                ));
            }
            if stage.eval_every == 0 || stage.save_every == 0 || stage.log_every == 0 {
                return fail(format!("{at}: eval_every, save_every and log_every must be positive"));
            }
            let loss = &stage.loss;
            if !(0.0..=1.0).contains(&loss.gamma) || loss.temperature.is_nan() || loss.temperature <= 0.0 {
                return fail(format!("{at}: loss.gamma must lie in 0..=1 and loss.temperature be positive"));
            }
            if !(stage.learning_rate > 0.0 && stage.learning_rate.is_finite()) {
                return fail(format!("{at}: learning_rate must be positive, got {}", stage.learning_rate));
            }
            let needs = |what: &str| fail(format!("{at}: kind {:?} needs `{what}`", stage.kind));
            match stage.kind {
                StageKind::Pretrain if !stage.teachers.is_empty() => {
                    return fail(format!("{at}: a pretrain stage has no teachers; make it `distill`"));
                }
                StageKind::Distill if stage.teachers.is_empty() => return needs("teachers"),
                StageKind::Qat if stage.init.is_none() => return needs("init"),
                StageKind::Qat if stage.quant.is_none() => return needs("quant"),
                StageKind::Pretrain | StageKind::Distill if stage.quant.is_some() => {
                    return fail(format!("{at}: `quant` belongs to a qat stage"));
                }
                _ => {}
            }
            if let Some(name) = stage.init.iter().chain(&stage.teachers).find(|&name| {
                self.stages[index..].iter().any(|later| &later.name == name)
                    && !self.stages[..index].iter().any(|earlier| &earlier.name == name)
            }) {
                return fail(format!("{at}: stage `{name}` must come before the stages that use it"));
            }
            if loss.alignment != 0.0 && stage.teachers.is_empty() {
                return fail(format!("{at}: loss.alignment needs a teacher of the student's shape"));
            }
            if let Some(quant) = &stage.quant {
                quant.plan(self.data.seq_len, self.seed)?;
            }
        }
        Ok(())
    }
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
                "model.hidden_size {} is no multiple of num_attention_heads {heads}",
                self.hidden_size
            )));
        }
        let spec = ModelSpec {
            architecture: squat_model::Architecture::Llama,
            vocab_size,
            hidden_size: self.hidden_size,
            intermediate_size: self.intermediate_size,
            num_hidden_layers: self.num_hidden_layers,
            num_attention_heads: heads,
            num_key_value_heads: self.num_key_value_heads.unwrap_or(heads),
            head_dim: self.hidden_size / heads,
            max_position_embeddings: self.max_position_embeddings,
            rms_norm_eps: self.rms_norm_eps,
            rope_theta: self.rope_theta,
            tie_word_embeddings: self.tie_word_embeddings,
            bos_token_id: Some(1),
            eos_token_ids: vec![2],
            pad_token_id: Some(0),
        };
        spec.validate()?;
        Ok(spec)
    }
}

impl QuantConfig {
    /// The quantization plan that this describes.
    ///
    /// # Errors
    /// Unknown names.
    pub fn plan(&self, seq_len: usize, seed: u64) -> Result<QuantPlan, TrainError> {
        let fail = |key: &str, got: &str, known: &str| {
            TrainError::Recipe(format!("quant.{key}: expected {known}, got `{got}`"))
        };
        let mut plan = QuantPlan::named(&self.plan)?;
        if let (Some(granularity), Some(weight)) = (&self.weight_granularity, &mut plan.weight) {
            weight.granularity = match granularity.as_str() {
                "tensor" => Granularity::PerTensor,
                "channel" => Granularity::PerChannel,
                other => match other.parse() {
                    Ok(group) if group > 0 => Granularity::PerGroup(group),
                    _ => {
                        return Err(fail("weight_granularity", other, "`tensor`, `channel` or a group size"));
                    }
                },
            };
        }
        let table = |key: &str, bits: &Option<String>, now: Option<WeightScheme>| match bits.as_deref() {
            None => Ok(now),
            Some("fp") => Ok(None),
            Some(name) => WeightBits::from_name(name)
                .map(|bits| Some(WeightScheme::per_channel(bits)))
                .ok_or_else(|| fail(key, name, "8, 4, 3, 2, ternary or fp")),
        };
        plan.embedding = table("embedding", &self.embedding, plan.embedding)?;
        plan.head = table("head", &self.head, plan.head)?;
        let scheme = |key: &str, name: &str| match name {
            "fp" => Ok(None),
            _ => ActScheme::from_name(name).map(Some).ok_or_else(|| fail(key, name, "dynamic, static or fp")),
        };
        if let Some(name) = &self.activations {
            let scheme = scheme("activations", name)?;
            for point in ActPoint::ALL {
                if plan.point(point).is_some() {
                    plan.set_point(point, scheme);
                }
            }
        }
        for (name, value) in &self.points {
            let point = ActPoint::from_name(name).ok_or_else(|| {
                let near = nearest(name, ActPoint::ALL.map(ActPoint::name)).unwrap_or("attn_in");
                TrainError::Recipe(format!("quant.points: no point `{name}`; did you mean `{near}`?"))
            })?;
            plan.set_point(point, scheme("points", value)?);
        }
        if let Some(bits) = self.attn_probs_bits {
            if bits != 8 && bits != 4 {
                return Err(fail("attn_probs_bits", &bits.to_string(), "8 or 4"));
            }
            plan.attn_probs_bits = bits;
        }
        if let Some(rho) = self.rho {
            if !(0.0..=1.0).contains(&rho) {
                return Err(fail("rho", &rho.to_string(), "a share in 0..=1"));
            }
            plan.rho = rho;
            plan.policy = TokenPolicy::SinkAttention;
        }
        if let Some(policy) = &self.policy {
            let rho = plan.rho;
            plan.policy = match policy.as_str() {
                "sink_attention" => TokenPolicy::SinkAttention,
                "random" => TokenPolicy::Random { rho, seed },
                "first" => TokenPolicy::First { count: (rho * seq_len as f32).round() as usize },
                "activation_norm" => TokenPolicy::ActivationNorm,
                other => {
                    return Err(fail("policy", other, "sink_attention, random, first or activation_norm"));
                }
            };
        }
        Ok(plan)
    }
}

/// Applies `a.b.c=value`; the value is TOML, or a string if it is no TOML.
fn set(table: &mut toml::Table, setting: &str) -> Result<(), TrainError> {
    let bad = |why: &str| TrainError::Recipe(format!("--set {setting}: {why}"));
    let (path, value) = setting.split_once('=').ok_or_else(|| bad("expected key=value"))?;
    let value = toml::from_str::<toml::Table>(&format!("x = {}", value.trim()))
        .ok()
        .and_then(|mut t| t.remove("x"))
        .unwrap_or_else(|| toml::Value::String(value.trim().to_owned()));
    let mut keys: Vec<&str> = path.trim().split('.').collect();
    let last = keys.pop().filter(|k| !k.is_empty()).ok_or_else(|| bad("expected key=value"))?;
    let mut at = table;
    let mut keys = keys.into_iter();
    while let Some(key) = keys.next() {
        let entry = at.entry(key).or_insert_with(|| toml::Value::Table(toml::Table::new()));
        at = match entry {
            toml::Value::Table(inner) => inner,
            toml::Value::Array(list) => {
                let name = keys.next().ok_or_else(|| bad("name the stage: stage.NAME.key=value"))?;
                list.iter_mut()
                    .filter_map(toml::Value::as_table_mut)
                    .find(|t| t.get("name").and_then(toml::Value::as_str) == Some(name))
                    .ok_or_else(|| bad(&format!("no `{key}` is named `{name}`")))?
            }
            _ => return Err(bad(&format!("`{key}` is no table"))),
        };
    }
    at.insert(last.to_owned(), value);
    Ok(())
}

/// Replaces a leading or inner `$NAME` by the environment variable, and a leading `~/` by the home folder.
///
/// # Errors
/// A variable that is not set.
pub fn expand(path: &str) -> Result<PathBuf, TrainError> {
    let mut out = String::new();
    let mut rest = path;
    while let Some(at) = rest.find('$') {
        out.push_str(&rest[..at]);
        let name: String = rest[at + 1..].chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
        let value = std::env::var(&name).map_err(|_| {
            TrainError::Recipe(format!(
                "{path}: the environment variable {name} is not set; set it to your data folder"
            ))
        })?;
        out.push_str(&value);
        rest = &rest[at + 1 + name.len()..];
    }
    out.push_str(rest);
    Ok(PathBuf::from(out))
}

#[cfg(test)]
mod tests {
    use super::*;

    const RECIPE: &str = r#"
name = "t"
[data]
train = ["generated"]
valid = ["generated"]
[model]
hidden_size = 32
intermediate_size = 64
num_hidden_layers = 2
num_attention_heads = 4
[[stage]]
name = "fp"
kind = "pretrain"
steps = 10
learning_rate = 1e-3
[[stage]]
name = "q"
kind = "qat"
init = "fp"
teachers = ["fp"]
steps = 5
learning_rate = 1e-4
quant = { plan = "w4a8", points = { head_in = "fp" } }
"#;

    #[test]
    fn settings_reach_stages_by_name() {
        let settings =
            ["stage.q.steps=7".to_owned(), "data.seq_len=64".into(), "stage.q.quant.plan=rho50".into()];
        let recipe = Recipe::parse(RECIPE, &settings).unwrap();
        assert_eq!((recipe.stages[1].steps, recipe.data.seq_len), (7, 64));
        let plan = recipe.stages[1].quant.as_ref().unwrap().plan(64, 1).unwrap();
        assert_eq!(plan.policy, TokenPolicy::SinkAttention);
        assert_eq!(plan.point(ActPoint::HeadIn), None);
        // What is written reads back.
        let again = Recipe::parse(&recipe.to_toml().unwrap(), &[]).unwrap();
        assert_eq!(again.to_toml().unwrap(), recipe.to_toml().unwrap());
    }

    #[test]
    fn unknown_keys_are_refused_with_the_nearest() {
        let error =
            Recipe::parse(&RECIPE.replace("learning_rate = 1e-3", "learning_rat = 1e-3"), &[]).unwrap_err();
        assert!(error.to_string().contains("did you mean `learning_rate`"), "{error}");
        let error = Recipe::parse(RECIPE, &["data.seq_length=3".into()]).unwrap_err();
        assert!(error.to_string().contains("did you mean `seq_len`"), "{error}");
    }

    #[test]
    fn contradictions_are_refused() {
        for (from, to, word) in [
            ("kind = \"pretrain\"", "kind = \"distill\"", "teachers"),
            ("init = \"fp\"\n", "", "init"),
            ("steps = 10", "steps = 0", "steps"),
            ("steps = 10", "steps = 10\nbatch_size = 10", "multiple"),
            ("head_in", "haed_in", "head_in"),
            ("w4a8", "w4a9", "w4a8"),
        ] {
            let error = Recipe::parse(&RECIPE.replacen(from, to, 1), &[]).unwrap_err();
            assert!(error.to_string().contains(word), "{word}: {error}");
        }
    }

    #[test]
    fn variables_expand_or_are_named() {
        assert!(expand("$SQUAT_NO_SUCH/x").unwrap_err().to_string().contains("SQUAT_NO_SUCH"));
        assert_eq!(expand("plain/x").unwrap(), PathBuf::from("plain/x"));
    }
}
