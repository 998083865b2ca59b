//! Granite 3: `GraniteForCausalLM`. LLaMA with four factors: of the table, the scores, the residual stream and the logits.

use serde_json::{Map, Value};

use super::decoder::{self, Defaults, Windows};
use super::{Definition, Gguf, Stored, llama};
use crate::error::ModelError;
use crate::format::gguf::Metadata;
use crate::json::{self as read};
use crate::spec::{Architecture, ModelSpec};

pub(super) const DEFINITION: Definition = Definition {
    architecture: ARCHITECTURE,
    from_config: |config| decoder::from_config(config, base(), &DEFAULTS),
    to_config: None,
    stored: Some(stored),
    // Converters to GGUF pair neighbouring rows for RoPE.
    gguf: Some(Gguf { name: "granite", base, interleaved_rope: true, windows: false, features: Some(gguf_features) }),
};

/// Hugging Face's names of the family.
pub const ARCHITECTURE: Architecture = Architecture { class: "GraniteForCausalLM", model_type: "granite" };

pub(super) const DEFAULTS: Defaults = Defaults {
    max_position_embeddings: 2048,
    norm_eps: 1e-6,
    rope_theta: 10_000.0,
    head_dim: None,
    windows: Windows::Never,
};

/// The features of the family, with sizes of zero.
pub fn base() -> ModelSpec {
    ModelSpec { architecture: ARCHITECTURE, ..llama::base() }
}

/// The factors of a configuration; a score's factor stands there by itself, not beside the root of a head's width.
pub(super) fn stored(config: &Map<String, Value>) -> Result<Stored, ModelError> {
    let number = |key| Ok::<f64, ModelError>(read::optional_number(config, key)?.unwrap_or(1.0));
    let spec = decoder::from_config(config, base(), &DEFAULTS)?;
    Ok(Stored {
        embedding: number("embedding_multiplier")?,
        attention: number("attention_multiplier")? * (spec.head_dim as f64).sqrt(),
        residual: number("residual_multiplier")?,
        logits: 1.0 / number("logits_scaling")?,
        ..Stored::default()
    })
}

fn gguf_features(metadata: &Metadata<'_>, spec: &mut ModelSpec) -> Result<Stored, ModelError> {
    let root = (spec.head_dim as f64).sqrt();
    // A factor of 0 stands for none.
    let number = |key| Ok::<Option<f64>, ModelError>(metadata.number(key)?.filter(|&factor| factor != 0.0));
    Ok(Stored {
        embedding: number("embedding_scale")?.unwrap_or(1.0),
        attention: number("attention.scale")?.map_or(1.0, |scale| scale * root),
        residual: number("residual_scale")?.unwrap_or(1.0),
        logits: 1.0 / number("logit_scale")?.unwrap_or(1.0),
        ..Stored::default()
    })
}
