//! Qwen2 and Qwen2.5: `Qwen2ForCausalLM`. LLaMA with biases of the query, key and value projections.

use super::decoder::{self, Defaults, Windows};
use super::{Definition, Gguf, llama};
use crate::spec::{Architecture, LinearSet, ModelSpec};

pub(super) const DEFINITION: Definition = Definition {
    architecture: ARCHITECTURE,
    from_config: |config| decoder::from_config(config, base(), &DEFAULTS),
    to_config: Some(decoder::to_config),
    stored: None,
    gguf: Some(Gguf { name: "qwen2", base, interleaved_rope: false, windows: false, features: None }),
};

/// Hugging Face's names of the family.
pub const ARCHITECTURE: Architecture = Architecture { class: "Qwen2ForCausalLM", model_type: "qwen2" };

const DEFAULTS: Defaults =
    Defaults { max_position_embeddings: 32_768, norm_eps: 1e-6, rope_theta: 10_000.0, head_dim: None, windows: Windows::From };

/// The features of the family, with sizes of zero.
pub fn base() -> ModelSpec {
    ModelSpec { architecture: ARCHITECTURE, biases: LinearSet::QKV, ..llama::base() }
}
