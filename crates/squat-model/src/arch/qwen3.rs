//! Qwen3, dense: `Qwen3ForCausalLM`. LLaMA with an RMSNorm on each head of the queries and keys before RoPE.

use super::decoder::{self, Defaults, Windows};
use super::{Definition, Gguf, llama};
use crate::spec::{Architecture, ModelSpec, QkNorm};

pub(super) const DEFINITION: Definition = Definition {
    architecture: ARCHITECTURE,
    from_config: |config| decoder::from_config(config, base(), &DEFAULTS),
    to_config: Some(decoder::to_config),
    stored: None,
    gguf: Some(Gguf { name: "qwen3", base, interleaved_rope: false, windows: false, features: None }),
};

/// Hugging Face's names of the family.
pub const ARCHITECTURE: Architecture = Architecture { class: "Qwen3ForCausalLM", model_type: "qwen3" };

const DEFAULTS: Defaults =
    Defaults { max_position_embeddings: 32_768, norm_eps: 1e-6, rope_theta: 10_000.0, head_dim: Some(128), windows: Windows::From };

/// The features of the family, with sizes of zero.
pub fn base() -> ModelSpec {
    ModelSpec { architecture: ARCHITECTURE, qk_norm: QkNorm::Head, ..llama::base() }
}
