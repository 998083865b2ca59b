//! SmolLM3: `SmolLM3ForCausalLM`. LLaMA, with queries and keys left as they are in every fourth layer.

use serde_json::{Map, Value};

use super::decoder::{self, Defaults, Windows};
use super::{Definition, Gguf, Stored, llama};
use crate::error::ModelError;
use crate::format::gguf::Metadata;
use crate::json::{self as read, shown};
use crate::spec::{Architecture, ModelSpec};

pub(super) const DEFINITION: Definition = Definition {
    architecture: ARCHITECTURE,
    from_config,
    to_config: Some(to_config),
    stored: None,
    gguf: Some(Gguf { name: "smollm3", base, interleaved_rope: true, windows: false, features: Some(gguf_features) }),
};

/// Hugging Face's names of the family.
pub const ARCHITECTURE: Architecture = Architecture { class: "SmolLM3ForCausalLM", model_type: "smollm3" };

const DEFAULTS: Defaults = Defaults {
    max_position_embeddings: 32_768,
    norm_eps: 1e-6,
    rope_theta: 2e6,
    head_dim: None,
    windows: Windows::From,
};

/// Every layer of this number is without RoPE.
const INTERVAL: usize = 4;

/// The features of the family, with sizes of zero.
pub fn base() -> ModelSpec {
    ModelSpec { architecture: ARCHITECTURE, tie_word_embeddings: true, ..llama::base() }
}

fn every(interval: usize, layers: usize) -> Vec<bool> {
    (0..layers).map(|layer| (layer + 1) % interval.max(1) == 0).collect()
}

fn from_config(config: &Map<String, Value>) -> Result<ModelSpec, ModelError> {
    let mut config = config.clone();
    config.entry("tie_word_embeddings").or_insert(true.into());
    config.entry("num_key_value_heads").or_insert(4.into());
    let spec = decoder::from_config(&config, base(), &DEFAULTS)?;
    // The list, in spite of its name, has 1 for layers with RoPE.
    let without_rope = match config.get("no_rope_layers").filter(|value| !value.is_null()) {
        None => {
            let interval = read::optional_size(&config, "no_rope_layer_interval")?.unwrap_or(INTERVAL);
            every(interval, spec.num_hidden_layers)
        }
        Some(list) => {
            let flag = |value: &Value| value.as_u64().filter(|&flag| flag < 2).map(|flag| flag == 0);
            let flags = list.as_array().and_then(|list| list.iter().map(flag).collect::<Option<Vec<bool>>>());
            let wrong = || ModelError::config("no_rope_layers", "0 or 1 for each layer", shown(list), "");
            flags.filter(|flags| flags.len() == spec.num_hidden_layers).ok_or_else(wrong)?
        }
    };
    Ok(ModelSpec { without_rope, ..spec })
}

fn to_config(spec: &ModelSpec) -> Map<String, Value> {
    let mut config = decoder::to_config(spec);
    let flags = spec.without_rope.iter().map(|&without| Value::from(u8::from(!without))).collect();
    config.insert("no_rope_layers".to_owned(), flags);
    config
}

fn gguf_features(_: &Metadata<'_>, spec: &mut ModelSpec) -> Result<Stored, ModelError> {
    spec.without_rope = every(INTERVAL, spec.num_hidden_layers);
    Ok(Stored::default())
}
