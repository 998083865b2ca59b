//! The LLaMA family: `LlamaForCausalLM`.

use super::decoder::{self, Defaults, Windows};
use super::{Definition, Gguf};
use crate::rope::Rope;
use crate::spec::{Architecture, LinearSet, Mlp, ModelSpec, Norm, NormPlaces, QkNorm};

pub(super) const DEFINITION: Definition = Definition {
    architecture: ARCHITECTURE,
    from_config: |config| decoder::from_config(config, base(), &DEFAULTS),
    to_config: Some(decoder::to_config),
    stored: None,
    // Converters to GGUF pair neighbouring rows for RoPE.
    gguf: Some(Gguf { name: "llama", base, interleaved_rope: true, windows: false, features: None }),
};

/// Hugging Face's names of the family.
pub const ARCHITECTURE: Architecture = Architecture { class: "LlamaForCausalLM", model_type: "llama" };

const DEFAULTS: Defaults =
    Defaults { max_position_embeddings: 2048, norm_eps: 1e-6, rope_theta: 10_000.0, head_dim: None, windows: Windows::Never };

/// The features of the family, with sizes of zero: RMSNorm, RoPE, grouped-query attention, SwiGLU, no biases.
pub fn base() -> ModelSpec {
    ModelSpec {
        architecture: ARCHITECTURE,
        vocab_size: 0,
        hidden_size: 0,
        intermediate_size: 0,
        num_hidden_layers: 0,
        num_attention_heads: 0,
        num_key_value_heads: 0,
        head_dim: 0,
        max_position_embeddings: 0,
        norm: Norm::Rms,
        norm_eps: 1e-5,
        norm_places: NormPlaces::Input,
        qk_norm: QkNorm::None,
        mlp: Mlp::SwiGlu,
        biases: LinearSet::NONE,
        rope: Some(Rope::new(10_000.0)),
        without_rope: Vec::new(),
        window: None,
        tie_word_embeddings: false,
        bos_token_id: None,
        eos_token_ids: Vec::new(),
        pad_token_id: None,
    }
}
