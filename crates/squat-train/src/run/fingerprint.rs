//! One hash of everything that the result of a stage depends on.
//!
//! A run folder holds the hashes of its stages, so the hashed text keeps the words and the order of the first version,
//! and a switch that was added later is left out while it is off. Taking the configuration apart field by field makes the
//! compiler ask, for each new field, whether it belongs to the hash.

use crate::recipe::{
    LossConfig, MixedPrecision, ModelConfig, QuantConfig, Recipe, StageConfig, StageKind, TeacherDtype,
};
use serde::Serialize;
use sha2::{Digest, Sha256};
pub(super) use squat_files::sums::hex;
use std::path::Path;

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// The part of a [`StageConfig`] that moves the result.
#[derive(Serialize)]
struct StageIdentity<'a> {
    name: &'a str,
    kind: StageKind,
    init: &'a Option<String>,
    teachers: &'a [String],
    #[serde(skip_serializing_if = "is_default")]
    teacher_dtype: TeacherDtype,
    #[serde(skip_serializing_if = "is_default")]
    mixed_precision: MixedPrecision,
    model: &'a Option<ModelConfig>,
    steps: u64,
    batch_size: usize,
    micro_batch: usize,
    learning_rate: f32,
    #[serde(rename = "step_learning_rate")]
    scale_learning_rate: f32,
    warmup: u64,
    final_learning_rate_ratio: f32,
    weight_decay: f32,
    clip_norm: f64,
    beta1: f32,
    beta2: f32,
    init_std: f32,
    loss: LossIdentity<'a>,
    quant: &'a Option<QuantConfig>,
    eval_every: u64,
    eval_sequences: u64,
    /// How often something is written changes nothing: always 1.
    save_every: u64,
    /// As `save_every`.
    log_every: u64,
}

impl<'a> From<&'a StageConfig> for StageIdentity<'a> {
    fn from(config: &'a StageConfig) -> Self {
        let StageConfig {
            name,
            kind,
            init,
            teachers,
            teacher_dtype,
            mixed_precision,
            model,
            steps,
            batch_size,
            micro_batch,
            activation_checkpointing: _,
            learning_rate,
            scale_learning_rate,
            warmup,
            final_learning_rate_ratio,
            weight_decay,
            clip_norm,
            beta1,
            beta2,
            init_std,
            loss,
            quant,
            eval_every,
            eval_sequences,
            save_every: _,
            log_every: _,
        } = config;
        Self {
            name,
            kind: *kind,
            init,
            teachers,
            teacher_dtype: *teacher_dtype,
            mixed_precision: *mixed_precision,
            model,
            steps: *steps,
            batch_size: *batch_size,
            micro_batch: *micro_batch,
            learning_rate: *learning_rate,
            scale_learning_rate: *scale_learning_rate,
            warmup: *warmup,
            final_learning_rate_ratio: *final_learning_rate_ratio,
            weight_decay: *weight_decay,
            clip_norm: *clip_norm,
            beta1: *beta1,
            beta2: *beta2,
            init_std: *init_std,
            loss: loss.into(),
            quant,
            eval_every: *eval_every,
            eval_sequences: *eval_sequences,
            save_every: 1,
            log_every: 1,
        }
    }
}

/// The part of a [`LossConfig`] that moves the result: all of it.
#[derive(Serialize)]
struct LossIdentity<'a> {
    gamma: f32,
    temperature: f32,
    entropy: f32,
    alignment: f32,
    alignment_layers: &'a [i64],
    #[serde(skip_serializing_if = "is_default")]
    teacher_top_k: usize,
}

impl<'a> From<&'a LossConfig> for LossIdentity<'a> {
    fn from(config: &'a LossConfig) -> Self {
        let LossConfig { gamma, temperature, entropy, alignment, alignment_layers, teacher_top_k } = config;
        Self {
            gamma: *gamma,
            temperature: *temperature,
            entropy: *entropy,
            alignment: *alignment,
            alignment_layers,
            teacher_top_k: *teacher_top_k,
        }
    }
}

/// Hash of everything that the result of a stage depends on, except the number of threads. `data` are the identities of
/// the training and held-out shards, `run` is the folder with the stages that came before.
pub(super) fn fingerprint(recipe: &Recipe, config: &StageConfig, data: [&str; 2], run: &Path) -> String {
    let mut hasher = Sha256::new();
    let mut add = |text: &str| {
        hasher.update((text.len() as u64).to_le_bytes());
        hasher.update(text.as_bytes());
    };
    add(&serde_json::to_string(&StageIdentity::from(config)).unwrap_or_default());
    add(&serde_json::to_string(&recipe.model).unwrap_or_default());
    add(&format!("{} {} {}", recipe.seed, recipe.data.seq_len, recipe.data.start_at_line));
    data.into_iter().for_each(&mut add);
    for name in config.init.iter().chain(&config.teachers) {
        // A stage of this run is represented by its own fingerprint.
        add(&squat_files::read::text(&run.join(name).join("finished"), squat_files::read::Limit::Config)
            .unwrap_or_else(|_| name.clone()));
    }
    hex(&hasher.finalize())
}

#[cfg(test)]
mod tests {
    use super::*;

    const STAGE: &str = r#"
name = "q"
kind = "qat"
init = "fp"
teachers = ["fp"]
steps = 5
learning_rate = 1e-3
quant = { plan = "w4a8" }
"#;

    /// The text that the first version hashed, so that older runs can be resumed.
    #[test]
    fn the_words_of_the_first_version_stay() {
        let mut config: StageConfig = toml::from_str(STAGE).unwrap();
        (config.save_every, config.log_every, config.activation_checkpointing) = (7, 3, true);
        let text = serde_json::to_string(&StageIdentity::from(&config)).unwrap();
        let want = [
            r#"{"name":"q","kind":"qat","init":"fp","teachers":["fp"],"model":null,"steps":5,"batch_size":32,"#,
            r#""micro_batch":8,"learning_rate":0.001,"step_learning_rate":0.001,"warmup":100,"#,
            r#""final_learning_rate_ratio":0.1,"weight_decay":0.1,"clip_norm":1.0,"beta1":0.9,"beta2":0.95,"#,
            r#""init_std":0.02,"loss":{"gamma":0.5,"temperature":2.0,"entropy":0.0,"alignment":0.0,"#,
            r#""alignment_layers":[]},"quant":{"plan":"w4a8","weight_granularity":null,"embedding":null,"#,
            r#""head":null,"activations":null,"points":{},"attn_probs_bits":null,"policy":null,"rho":null},"#,
            r#""eval_every":250,"eval_sequences":256,"save_every":1,"log_every":1}"#,
        ];
        assert_eq!(text, want.concat());
    }

    #[test]
    fn switches_count_once_they_are_on() {
        let text = |config: &str| {
            let config: StageConfig = toml::from_str(&format!("{STAGE}{config}")).unwrap();
            serde_json::to_string(&StageIdentity::from(&config)).unwrap()
        };
        let off = text("");
        for on in [
            "teacher_dtype = \"bf16\"",
            "mixed_precision = \"bf16\"",
            "loss = { teacher_top_k = 8 }",
            "scale_learning_rate = 2e-3",
        ] {
            assert_ne!(text(on), off, "{on}");
        }
        assert_eq!(text("save_every = 9"), off);
        let other = |quant: &str| {
            let stage = STAGE.replace("plan = \"w4a8\"", &format!("plan = \"w4a8\", {quant}"));
            let config: StageConfig = toml::from_str(&stage).unwrap();
            serde_json::to_string(&StageIdentity::from(&config)).unwrap()
        };
        assert_ne!(other("quantizer = \"lsq\""), off);
        assert_ne!(other("transforms = { attn_out = \"hadamard(4)\" }"), off);
    }
}
