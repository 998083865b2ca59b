//! Mistral: `MistralForCausalLM`. LLaMA, where `sliding_window` is a number with a window in every layer. GGUF files call it
//! llama.

use super::decoder::{self, Defaults, Windows};
use super::{Definition, llama};
use crate::spec::{Architecture, ModelSpec};

pub(super) const DEFINITION: Definition = Definition {
    architecture: ARCHITECTURE,
    from_config: |config| decoder::from_config(config, base(), &DEFAULTS),
    to_config: Some(decoder::to_config),
    stored: None,
    gguf: None,
};

/// Hugging Face's names of the family.
pub const ARCHITECTURE: Architecture = Architecture { class: "MistralForCausalLM", model_type: "mistral" };

const DEFAULTS: Defaults = Defaults {
    max_position_embeddings: 131_072,
    norm_eps: 1e-6,
    rope_theta: 10_000.0,
    head_dim: None,
    windows: Windows::All,
};

/// The features of the family, with sizes of zero.
pub fn base() -> ModelSpec {
    ModelSpec { architecture: ARCHITECTURE, ..llama::base() }
}
