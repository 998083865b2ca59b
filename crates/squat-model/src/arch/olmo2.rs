//! OLMo 2: `Olmo2ForCausalLM`. Norms behind the blocks instead of before them, and of whole rows of queries and keys.

use serde_json::{Map, Value};

use super::decoder::{self, Defaults, Windows};
use super::{Definition, Gguf, Stored, llama};
use crate::error::ModelError;
use crate::spec::{Architecture, ModelSpec, NormKind, NormPlaces, ParamInfo, ParamKind, QkNorm};
use crate::weights::TensorLocation;

pub(super) const DEFINITION: Definition = Definition {
    architecture: ARCHITECTURE,
    from_config: |config| decoder::from_config(config, base(), &DEFAULTS),
    to_config: None,
    stored: Some(stored),
    gguf: Some(Gguf { name: "olmo2", base, interleaved_rope: false, windows: false, features: None }),
};

/// Hugging Face's names of the family.
pub const ARCHITECTURE: Architecture = Architecture { class: "Olmo2ForCausalLM", model_type: "olmo2" };

const DEFAULTS: Defaults = Defaults {
    max_position_embeddings: 2048,
    norm_eps: 1e-5,
    rope_theta: 10_000.0,
    head_dim: None,
    windows: Windows::Never,
};

/// The features of the family, with sizes of zero.
pub fn base() -> ModelSpec {
    ModelSpec {
        architecture: ARCHITECTURE,
        norm_places: NormPlaces::Output,
        qk_norm: QkNorm::Row,
        ..llama::base()
    }
}

fn stored(_: &Map<String, Value>) -> Result<Stored, ModelError> {
    Ok(Stored { location: Some(location), ..Stored::default() })
}

pub(super) fn location(param: &ParamInfo) -> TensorLocation {
    let name = match param.kind {
        ParamKind::Norm(NormKind::AttnOutput) => "post_attention_layernorm",
        ParamKind::Norm(NormKind::MlpOutput) => "post_feedforward_layernorm",
        _ => return TensorLocation::plain(&param.name),
    };
    TensorLocation::plain(&format!("model.layers.{}.{name}.weight", param.layer.unwrap_or_default()))
}
