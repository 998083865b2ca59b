//! Defaults of text generation in the metadata, `general.sampling.*`, which converters take from `generation_config.json`.

use super::{GgufFile, Value};
use crate::error::ModelError;
use crate::generation::GenerationConfig;
use crate::spec::ModelSpec;

/// Beginning of the keys.
const PREFIX: &str = "general.sampling.";

/// Keys that [`generation`] applies.
const APPLIED: [&str; 3] = ["temp", "top_k", "top_p"];

/// Keys that are not applied, with the value that changes nothing.
const NEUTRAL: [(&str, f64); 4] =
    [("min_p", 0.0), ("xtc_probability", 0.0), ("penalty_repeat", 1.0), ("mirostat", 0.0)];

/// Keys that have an effect only together with one of [`NEUTRAL`].
const DEPENDENT: [&str; 4] = ["xtc_threshold", "penalty_last_n", "mirostat_tau", "mirostat_eta"];

/// Defaults of text generation, with the special tokens of `spec`. The format has no `do_sample`: as in llama.cpp, a file
/// that names a temperature, top-k or top-p wants sampling; top-k up to 0 keeps all tokens.
///
/// # Errors
/// A value of the wrong type or out of range.
pub(super) fn generation(file: &GgufFile, spec: &ModelSpec) -> Result<GenerationConfig, ModelError> {
    let number = |name: &str, expected: &str, valid: fn(f64) -> bool| {
        let key = format!("{PREFIX}{name}");
        let Some(value) = file.metadata(&key) else { return Ok(None) };
        value.as_f64().filter(|&number| valid(number)).map(Some).ok_or_else(|| {
            let message = format!("metadata \"{key}\": expected {expected}, got {}", value.shown());
            ModelError::file(file.path(), message)
        })
    };
    let temperature = number("temp", "a number from 0 up", |t| t.is_finite() && t >= 0.0)?;
    let top_k = number("top_k", "a whole number", |k| k.fract() == 0.0)?;
    let top_p = number("top_p", "a number between 0 and 1", |p| (0.0..=1.0).contains(&p))?;
    Ok(GenerationConfig {
        do_sample: temperature.or(top_k).or(top_p).is_some(),
        temperature: temperature.map(super::model::shortest),
        top_k: top_k.map(|k| k.max(0.0) as usize),
        top_p: top_p.map(super::model::shortest),
        ..GenerationConfig::of_spec(spec)
    })
}

/// Keys that change the text and are not applied: one note for all of them.
pub(super) fn unsupported(file: &GgufFile) -> Option<String> {
    let changes = |name: &str, value: &Value| match NEUTRAL.iter().find(|(key, _)| *key == name) {
        Some((_, neutral)) => value.as_f64() != Some(*neutral),
        None => !APPLIED.contains(&name) && !DEPENDENT.contains(&name),
    };
    let keys = file.metadata.iter().filter_map(|(key, value)| Some((key.strip_prefix(PREFIX)?, value)));
    let found: Vec<&str> = keys.filter(|(name, value)| changes(name, value)).map(|(name, _)| name).collect();
    match found.is_empty() {
        true => None,
        false => Some(format!("general.sampling: {} not supported and not applied", found.join(", "))),
    }
}
