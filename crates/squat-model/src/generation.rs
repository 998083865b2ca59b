//! `generation_config.json`: defaults of text generation.

use serde_json::{Map, Value, json};

use crate::error::ModelError;
use crate::json::{optional_bool, optional_number, optional_size, token_ids};
use crate::spec::ModelSpec;

/// Defaults of text generation; keys this project does not use are ignored on reading.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct GenerationConfig {
    /// Token that begins every sequence.
    pub bos_token_id: Option<u32>,
    /// Tokens that end a text.
    pub eos_token_ids: Vec<u32>,
    /// Token that fills batches.
    pub pad_token_id: Option<u32>,
    /// Whether to sample; greedy otherwise.
    pub do_sample: bool,
    /// Divides the logits.
    pub temperature: Option<f64>,
    /// Sample among this many most probable tokens.
    pub top_k: Option<usize>,
    /// Sample among the most probable tokens that reach this probability together.
    pub top_p: Option<f64>,
    /// Longest text, prompt included.
    pub max_length: Option<usize>,
    /// Longest continuation.
    pub max_new_tokens: Option<usize>,
}

impl GenerationConfig {
    /// Greedy generation with the model's special tokens.
    pub fn of_spec(spec: &ModelSpec) -> Self {
        Self {
            bos_token_id: spec.bos_token_id,
            eos_token_ids: spec.eos_token_ids.clone(),
            pad_token_id: spec.pad_token_id,
            ..Self::default()
        }
    }

    /// Reads the JSON object of `generation_config.json`.
    ///
    /// # Errors
    /// A key of the wrong type or out of range.
    pub fn from_json(map: &Map<String, Value>) -> Result<Self, ModelError> {
        let config = Self {
            bos_token_id: token_ids(map, "bos_token_id")?.first().copied(),
            eos_token_ids: token_ids(map, "eos_token_id")?,
            pad_token_id: token_ids(map, "pad_token_id")?.first().copied(),
            do_sample: optional_bool(map, "do_sample")?.unwrap_or(false),
            temperature: optional_number(map, "temperature")?,
            top_k: optional_size(map, "top_k")?,
            top_p: optional_number(map, "top_p")?,
            max_length: optional_size(map, "max_length")?,
            max_new_tokens: optional_size(map, "max_new_tokens")?,
        };
        if let Some(t) = config.temperature.filter(|t| !(t.is_finite() && *t >= 0.0)) {
            return Err(ModelError::config("temperature", "a number from 0 up", t.to_string(), ""));
        }
        if let Some(p) = config.top_p.filter(|p| !(0.0..=1.0).contains(p)) {
            return Err(ModelError::config("top_p", "a number between 0 and 1", p.to_string(), ""));
        }
        Ok(config)
    }

    /// Special tokens that one side names and the other does not are copied there; where both name them and differ,
    /// those of `self` replace the spec's, and the returned notes report it.
    pub(crate) fn merge_special_tokens(&mut self, spec: &mut ModelSpec) -> Vec<String> {
        let mut notes = Vec::new();
        let mut merge = |key: &str, own: &mut Vec<u32>, of_spec: &mut Vec<u32>| {
            if own.is_empty() {
                if key == "eos_token_id" && !of_spec.is_empty() {
                    notes.push(format!(
                        "{key}: generation_config.json names none, so {of_spec:?} from config.json is used"
                    ));
                }
                own.clone_from(of_spec);
            } else if own != of_spec {
                if !of_spec.is_empty() {
                    notes.push(format!(
                        "{key}: generation_config.json says {own:?}, config.json says {of_spec:?}; generation_config.json takes precedence"
                    ));
                }
                of_spec.clone_from(own);
            }
        };
        merge("eos_token_id", &mut self.eos_token_ids, &mut spec.eos_token_ids);
        for (key, own, of_spec) in [
            ("bos_token_id", &mut self.bos_token_id, &mut spec.bos_token_id),
            ("pad_token_id", &mut self.pad_token_id, &mut spec.pad_token_id),
        ] {
            let (mut a, mut b) = (Vec::from_iter(*own), Vec::from_iter(*of_spec));
            merge(key, &mut a, &mut b);
            (*own, *of_spec) = (a.first().copied(), b.first().copied());
        }
        notes
    }

    /// Settings of `generation_config.json` that change the text and are not supported: one note for all of them.
    pub(crate) fn unsupported(map: &Map<String, Value>) -> Option<String> {
        /// Keys with the value that changes nothing.
        const NEUTRAL: [(&str, f64); 8] = [
            ("repetition_penalty", 1.0),
            ("encoder_repetition_penalty", 1.0),
            ("no_repeat_ngram_size", 0.0),
            ("num_beams", 1.0),
            ("length_penalty", 1.0),
            ("min_p", 0.0),
            ("typical_p", 1.0),
            ("min_new_tokens", 0.0),
        ];
        const LISTS: [&str; 4] =
            ["suppress_tokens", "begin_suppress_tokens", "bad_words_ids", "sequence_bias"];
        let numbers = NEUTRAL.iter().filter(|(key, neutral)| {
            map.get(*key).is_some_and(|value| !value.is_null() && value.as_f64() != Some(*neutral))
        });
        let lists = LISTS.iter().filter(|key| map.get(**key).is_some_and(|value| !value.is_null()));
        let found: Vec<&str> = numbers.map(|(key, _)| *key).chain(lists.copied()).collect();
        match found.is_empty() {
            true => None,
            false => {
                Some(format!("generation_config.json: {} not supported and not applied", found.join(", ")))
            }
        }
    }

    /// The JSON object; keys without value are left out.
    pub fn to_json(&self) -> Value {
        let eos = match self.eos_token_ids.as_slice() {
            [] => Value::Null,
            [id] => json!(id),
            ids => json!(ids),
        };
        let entries = [
            ("bos_token_id", json!(self.bos_token_id)),
            ("eos_token_id", eos),
            ("pad_token_id", json!(self.pad_token_id)),
            ("do_sample", json!(self.do_sample)),
            ("temperature", json!(self.temperature)),
            ("top_k", json!(self.top_k)),
            ("top_p", json!(self.top_p)),
            ("max_length", json!(self.max_length)),
            ("max_new_tokens", json!(self.max_new_tokens)),
        ];
        let kept = entries.into_iter().filter(|(_, value)| !value.is_null());
        Value::Object(kept.map(|(key, value)| (key.to_owned(), value)).collect())
    }
}
