//! ERNIE 4.5, dense: `Ernie4_5ForCausalLM`. LLaMA whose RoPE turns pairs of neighbours, and whose linear layers may all have biases.

use serde_json::{Map, Value};

use super::decoder::{self, Defaults, Windows};
use super::{Definition, Gguf, Stored, llama};
use crate::error::ModelError;
use crate::json::{self as read};
use crate::spec::{Architecture, LinearSet, ModelSpec};

pub(super) const DEFINITION: Definition = Definition {
    architecture: ARCHITECTURE,
    from_config,
    to_config: None,
    stored: Some(|_| Ok(Stored { neighbours: true, ..Stored::default() })),
    gguf: Some(Gguf { name: "ernie4_5", base, interleaved_rope: true, windows: false, features: None }),
};

/// Hugging Face's names of the family.
pub const ARCHITECTURE: Architecture = Architecture { class: "Ernie4_5ForCausalLM", model_type: "ernie4_5" };

const DEFAULTS: Defaults = Defaults {
    max_position_embeddings: 131_072,
    norm_eps: 1e-5,
    rope_theta: 500_000.0,
    head_dim: Some(128),
    windows: Windows::Never,
};

/// The features of the family, with sizes of zero.
pub fn base() -> ModelSpec {
    ModelSpec { architecture: ARCHITECTURE, tie_word_embeddings: true, ..llama::base() }
}

fn from_config(config: &Map<String, Value>) -> Result<ModelSpec, ModelError> {
    let mut config = config.clone();
    config.entry("tie_word_embeddings").or_insert(true.into());
    let mut spec = decoder::from_config(&config, base(), &DEFAULTS)?;
    if read::optional_bool(&config, "use_bias")?.unwrap_or(false) {
        spec.biases = LinearSet::ALL;
    }
    Ok(spec)
}
