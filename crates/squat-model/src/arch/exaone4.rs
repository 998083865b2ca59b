//! EXAONE 4: `Exaone4ForCausalLM`. Norms behind the blocks, and of the heads of queries and keys. Where it has windows, the layers
//! without one are without RoPE.

use serde_json::{Map, Value};

use super::decoder::{self, Defaults, Windows};
use super::{Definition, Stored, llama, olmo2};
use crate::error::ModelError;
use crate::spec::{Architecture, ModelSpec, NormPlaces, QkNorm};

pub(super) const DEFINITION: Definition =
    Definition { architecture: ARCHITECTURE, from_config, to_config: None, stored: Some(stored), gguf: None };

/// Hugging Face's names of the family.
pub const ARCHITECTURE: Architecture = Architecture { class: "Exaone4ForCausalLM", model_type: "exaone4" };

const DEFAULTS: Defaults = Defaults {
    max_position_embeddings: 2048,
    norm_eps: 1e-5,
    rope_theta: 10_000.0,
    head_dim: None,
    windows: Windows::AllBut(4),
};

/// The features of the family, with sizes of zero.
pub fn base() -> ModelSpec {
    ModelSpec {
        architecture: ARCHITECTURE,
        norm_places: NormPlaces::Output,
        qk_norm: QkNorm::Head,
        ..llama::base()
    }
}

fn from_config(config: &Map<String, Value>) -> Result<ModelSpec, ModelError> {
    let mut config = config.clone();
    config.entry("sliding_window").or_insert(4096.into());
    let has_windows = !config["sliding_window"].is_null();
    let mut spec = decoder::from_config(&config, base(), &DEFAULTS)?;
    if has_windows {
        let windows = spec.window.as_ref().map(|window| window.layers.clone()).unwrap_or_default();
        let layers = 0..spec.num_hidden_layers;
        spec.without_rope = layers.map(|layer| !windows.get(layer).is_some_and(|&has| has)).collect();
    }
    Ok(spec)
}

fn stored(_: &Map<String, Value>) -> Result<Stored, ModelError> {
    Ok(Stored { location: Some(olmo2::location), ..Stored::default() })
}
