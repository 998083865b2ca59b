//! The `config.json` that most families share: the keys of LLaMA's, with RoPE under old and new names.

use serde_json::{Map, Value, json};

use crate::error::ModelError;
use crate::json::{self as read, shown};
use crate::rope::{Rope, RopeScaling};
use crate::spec::{LinearSet, ModelSpec};

/// What the configuration class of a family assumes where a key is absent.
pub(super) struct Defaults {
    pub max_position_embeddings: usize,
    pub norm_eps: f64,
    pub rope_theta: f64,
    /// Where it does not follow from `hidden_size` and the number of heads.
    pub head_dim: Option<usize>,
}

/// Fills the sizes of `base` from `config`. Whatever would change the forward pass and is not implemented is refused.
pub(super) fn from_config(
    config: &Map<String, Value>,
    base: ModelSpec,
    defaults: &Defaults,
) -> Result<ModelSpec, ModelError> {
    refuse_unsupported(config)?;
    let hidden_size = read::size(config, "hidden_size")?;
    let num_attention_heads = read::size(config, "num_attention_heads")?;
    let head_dim = match read::optional_size(config, "head_dim")?.or(defaults.head_dim) {
        Some(head_dim) => head_dim,
        None if num_attention_heads > 0 && hidden_size % num_attention_heads == 0 => {
            hidden_size / num_attention_heads
        }
        None => {
            return Err(ModelError::config(
                "num_attention_heads",
                format!("a divisor of hidden_size = {hidden_size}"),
                num_attention_heads.to_string(),
                "; or state head_dim",
            ));
        }
    };
    let mut biases = base.biases;
    for (key, kinds) in [("attention_bias", LinearSet::ATTENTION), ("mlp_bias", LinearSet::MLP)] {
        if read::optional_bool(config, key)?.unwrap_or(false) {
            biases = biases.union(kinds);
        }
    }
    let max_position_embeddings =
        read::optional_size(config, "max_position_embeddings")?.unwrap_or(defaults.max_position_embeddings);
    Ok(ModelSpec {
        vocab_size: read::size(config, "vocab_size")?,
        hidden_size,
        intermediate_size: read::size(config, "intermediate_size")?,
        num_hidden_layers: read::size(config, "num_hidden_layers")?,
        num_attention_heads,
        num_key_value_heads: read::optional_size(config, "num_key_value_heads")?
            .unwrap_or(num_attention_heads),
        head_dim,
        max_position_embeddings,
        norm_eps: read::optional_number(config, "rms_norm_eps")?.unwrap_or(defaults.norm_eps),
        biases,
        rope: Some(rope(config, defaults.rope_theta, max_position_embeddings)?),
        tie_word_embeddings: read::optional_bool(config, "tie_word_embeddings")?.unwrap_or(false),
        bos_token_id: read::token_ids(config, "bos_token_id")?.first().copied(),
        eos_token_ids: read::token_ids(config, "eos_token_id")?,
        pad_token_id: read::token_ids(config, "pad_token_id")?.first().copied(),
        ..base
    })
}

/// Features that would change the forward pass and are not implemented: better a refusal than wrong logits.
fn refuse_unsupported(config: &Map<String, Value>) -> Result<(), ModelError> {
    match config.get("hidden_act") {
        None => {}
        Some(Value::String(act)) if act == "silu" || act == "swish" => {}
        Some(other) => return Err(ModelError::config("hidden_act", "\"silu\"", shown(other), "")),
    }
    if let Some(factor) = read::optional_number(config, "partial_rotary_factor")?.filter(|&f| f != 1.0) {
        return Err(ModelError::config("partial_rotary_factor", "1", factor.to_string(), ""));
    }
    let hint = "; attention over a sliding window is not supported";
    // `layer_types` counts where it is there; else layers from `max_window_layers` on have the window.
    if let Some(layers) = config.get("layer_types").filter(|value| !value.is_null()) {
        let full = |list: &Vec<Value>| list.iter().all(|layer| layer == "full_attention");
        if !layers.as_array().is_some_and(full) {
            return Err(ModelError::config(
                "layer_types",
                "\"full_attention\" everywhere",
                shown(layers),
                hint,
            ));
        }
        return Ok(());
    }
    let windows = read::optional_bool(config, "use_sliding_window")?.unwrap_or(false)
        && config.get("sliding_window").is_none_or(|value| !value.is_null());
    let first = read::optional_size(config, "max_window_layers")?.unwrap_or(0);
    if windows && first < read::size(config, "num_hidden_layers")? {
        return Err(ModelError::config("use_sliding_window", "false", "true", hint));
    }
    Ok(())
}

/// RoPE: transformers 5 writes everything under `rope_parameters`; older files have `rope_theta` beside `rope_scaling`,
/// where `rope_scaling` may hold the base as well. An empty object says nothing.
fn rope(config: &Map<String, Value>, theta: f64, context: usize) -> Result<Rope, ModelError> {
    let mut found: Option<(&str, &Map<String, Value>)> = None;
    for key in ["rope_parameters", "rope_scaling"] {
        let Some(value) = config.get(key).filter(|value| !value.is_null()) else { continue };
        let object =
            value.as_object().ok_or_else(|| ModelError::config(key, "an object", shown(value), ""))?;
        match found {
            _ if object.is_empty() => {}
            Some((_, first)) if first != object => {
                let hint = "; keep the one that the model was trained with";
                return Err(ModelError::config(key, "what rope_parameters says", shown(value), hint));
            }
            _ => found = Some((key, object)),
        }
    }
    let outer = read::optional_number(config, "rope_theta")?;
    let Some((key, object)) = found else { return Ok(Rope::new(outer.unwrap_or(theta))) };
    let inner = read::optional_number(object, "rope_theta").map_err(|error| error.inside(key))?;
    if let (Some(outer), Some(inner)) = (outer, inner)
        && outer != inner
    {
        let hint = "; keep the one that the model was trained with";
        return Err(ModelError::config(
            "rope_theta",
            format!("{inner}, as {key} says"),
            outer.to_string(),
            hint,
        ));
    }
    if let Some(factor) = read::optional_number(object, "partial_rotary_factor")?.filter(|&f| f != 1.0) {
        return Err(ModelError::config(format!("{key}.partial_rotary_factor"), "1", factor.to_string(), ""));
    }
    Ok(Rope { theta: inner.or(outer).unwrap_or(theta), scaling: scaling(key, object, context)? })
}

fn scaling(key: &str, object: &Map<String, Value>, context: usize) -> Result<RopeScaling, ModelError> {
    let kind = ["rope_type", "type"].iter().find_map(|name| object.get(*name)).filter(|kind| !kind.is_null());
    let number = |name: &str| {
        let number = read::optional_number(object, name).map_err(|error| error.inside(key))?;
        number.ok_or_else(|| ModelError::config(format!("{key}.{name}"), "a number", "nothing", ""))
    };
    match kind.and_then(Value::as_str) {
        Some("default") => Ok(RopeScaling::Default),
        Some("linear") => Ok(RopeScaling::Linear { factor: number("factor")? }),
        Some("llama3") => Ok(RopeScaling::Llama3 {
            factor: number("factor")?,
            low_freq_factor: number("low_freq_factor")?,
            high_freq_factor: number("high_freq_factor")?,
            original_max_position_embeddings: read::optional_size(object, "original_max_position_embeddings")
                .map_err(|error| error.inside(key))?
                .unwrap_or(context),
        }),
        // The base alone, as transformers 5 may write it.
        None if kind.is_none() && object.keys().all(|name| name == "rope_theta") => Ok(RopeScaling::Default),
        _ => {
            let hint = "; other rotary scalings are not supported";
            let expected = "rope_type \"default\", \"linear\" or \"llama3\"";
            Err(ModelError::config(key, expected, shown(&Value::Object(object.clone())), hint))
        }
    }
}

/// The keys that [`from_config`] reads.
pub(super) fn to_config(spec: &ModelSpec) -> Map<String, Value> {
    let rope = spec.rope.clone().unwrap_or(Rope::new(10_000.0));
    let scaling = match rope.scaling {
        RopeScaling::Default => Value::Null,
        RopeScaling::Linear { factor } => json!({"rope_type": "linear", "factor": factor}),
        RopeScaling::Llama3 {
            factor,
            low_freq_factor,
            high_freq_factor,
            original_max_position_embeddings,
        } => json!({
            "rope_type": "llama3",
            "factor": factor,
            "low_freq_factor": low_freq_factor,
            "high_freq_factor": high_freq_factor,
            "original_max_position_embeddings": original_max_position_embeddings,
        }),
    };
    let config = json!({
        "architectures": [spec.architecture.class],
        "model_type": spec.architecture.model_type,
        "vocab_size": spec.vocab_size,
        "hidden_size": spec.hidden_size,
        "intermediate_size": spec.intermediate_size,
        "num_hidden_layers": spec.num_hidden_layers,
        "num_attention_heads": spec.num_attention_heads,
        "num_key_value_heads": spec.num_key_value_heads,
        "head_dim": spec.head_dim,
        "max_position_embeddings": spec.max_position_embeddings,
        "hidden_act": "silu",
        "rms_norm_eps": spec.norm_eps,
        "rope_theta": rope.theta,
        "rope_scaling": scaling,
        "attention_bias": spec.biases.contains_all(LinearSet::ATTENTION),
        "mlp_bias": spec.biases.contains_all(LinearSet::MLP),
        "tie_word_embeddings": spec.tie_word_embeddings,
        "bos_token_id": spec.bos_token_id,
        "eos_token_id": read::token_ids_value(&spec.eos_token_ids),
        "pad_token_id": spec.pad_token_id,
    });
    match config {
        Value::Object(config) => config,
        _ => Map::new(),
    }
}
