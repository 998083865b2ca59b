//! Gemma 3, text: `Gemma3ForCausalLM`. Norms before and behind each block, whose stored gains lack 1; norms of the heads of
//! queries and keys; GeGLU; a table that is multiplied by the root of its width; windows in five of six layers, with a rotary
//! embedding of their own.

use serde_json::{Map, Value};

use super::decoder::{self, Defaults, Windows};
use super::{Definition, Gguf, Stored, llama};
use crate::error::ModelError;
use crate::format::gguf::Metadata;
use crate::json::{self as read};
use crate::rope::Rope;
use crate::spec::{Architecture, Mlp, ModelSpec, NormKind, NormPlaces, ParamInfo, ParamKind, QkNorm, Window};
use crate::weights::TensorLocation;

pub(super) const DEFINITION: Definition = Definition {
    architecture: ARCHITECTURE,
    from_config,
    to_config: None,
    stored: Some(stored),
    gguf: Some(Gguf { name: "gemma3", base, interleaved_rope: false, windows: true, features: Some(gguf_features) }),
};

/// Hugging Face's names of the family.
pub const ARCHITECTURE: Architecture = Architecture { class: "Gemma3ForCausalLM", model_type: "gemma3_text" };

const DEFAULTS: Defaults = Defaults {
    max_position_embeddings: 131_072,
    norm_eps: 1e-6,
    rope_theta: 1e6,
    head_dim: Some(256),
    windows: Windows::AllBut(PATTERN),
};

/// Every layer of this number has no window.
const PATTERN: usize = 6;
/// Base of the rotary embedding of layers with a window.
const LOCAL_THETA: f64 = 10_000.0;

/// The features of the family, with sizes of zero.
pub fn base() -> ModelSpec {
    ModelSpec {
        architecture: ARCHITECTURE,
        norm_places: NormPlaces::Both,
        qk_norm: QkNorm::Head,
        mlp: Mlp::GeGlu,
        tie_word_embeddings: true,
        ..llama::base()
    }
}

fn from_config(config: &Map<String, Value>) -> Result<ModelSpec, ModelError> {
    if read::optional_bool(config, "use_bidirectional_attention")?.unwrap_or(false) {
        let hint = "; models that embed text are not supported";
        return Err(ModelError::config("use_bidirectional_attention", "false", "true", hint));
    }
    let mut config = config.clone();
    // The family's configuration class assumes these where the keys are absent.
    for (key, value) in [("tie_word_embeddings", Value::from(true)), ("sliding_window", Value::from(4096))] {
        config.entry(key).or_insert(value);
    }
    if config["sliding_window"].is_null() {
        let hint = "; copy the file from where the model came from";
        return Err(ModelError::config("sliding_window", "a number", "null", hint));
    }
    let mut local = Rope::new(read::optional_number(&config, "rope_local_base_freq")?.unwrap_or(LOCAL_THETA));
    // transformers 5 writes one object for each type of layer.
    if let Some(Value::Object(both)) = config.get("rope_parameters")
        && ["full_attention", "sliding_attention"].iter().any(|key| both.contains_key(*key))
    {
        let mut both = both.clone();
        let of = |value: Option<Value>| match value {
            Some(value) => Map::from_iter([("rope_parameters".to_owned(), value)]),
            None => Map::new(),
        };
        local = decoder::rope(&of(both.remove("sliding_attention")), local.theta, 0)?;
        let full = both.remove("full_attention").unwrap_or(Value::Null);
        config.insert("rope_parameters".to_owned(), full);
    }
    let mut spec = decoder::from_config(&config, base(), &DEFAULTS)?;
    if let Some(window) = &mut spec.window {
        window.rope = Some(local);
    }
    Ok(spec)
}

fn stored(config: &Map<String, Value>) -> Result<Stored, ModelError> {
    let width = read::size(config, "hidden_size")? as f64;
    let head_dim = read::optional_size(config, "head_dim")?.unwrap_or(256) as f64;
    let scalar = read::optional_number(config, "query_pre_attn_scalar")?.unwrap_or(256.0);
    Ok(Stored {
        location: Some(location),
        gain_offset: 1.0,
        embedding: width.sqrt(),
        attention: (head_dim / scalar).sqrt(),
        ..Stored::default()
    })
}

fn location(param: &ParamInfo) -> TensorLocation {
    let name = match param.kind {
        ParamKind::Norm(NormKind::AttnOutput) => "post_attention_layernorm",
        ParamKind::Norm(NormKind::Mlp) => "pre_feedforward_layernorm",
        ParamKind::Norm(NormKind::MlpOutput) => "post_feedforward_layernorm",
        _ => return TensorLocation::plain(&param.name),
    };
    TensorLocation::plain(&format!("model.layers.{}.{name}.weight", param.layer.unwrap_or_default()))
}

/// Gains in GGUF files have their 1.
fn gguf_features(metadata: &Metadata<'_>, spec: &mut ModelSpec) -> Result<Stored, ModelError> {
    if let Some(size) = metadata.optional("attention.sliding_window")? {
        let every = metadata.optional("attention.sliding_window_pattern")?.filter(|&every| every > 0).unwrap_or(PATTERN);
        let layers = (0..spec.num_hidden_layers).map(|layer| (layer + 1) % every != 0).collect();
        let theta = metadata.number("rope.freq_base_swa")?.unwrap_or(LOCAL_THETA);
        spec.window = Some(Window { size, layers, rope: Some(Rope::new(theta)) });
    }
    Ok(Stored { embedding: (spec.hidden_size as f64).sqrt(), ..Stored::default() })
}
