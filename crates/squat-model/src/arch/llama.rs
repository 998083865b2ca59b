//! The LLaMA family: `LlamaForCausalLM`.

use serde_json::{Map, Value, json};

use super::{Architecture, Definition, Mlp, Norm};
use crate::error::ModelError;
use crate::json::{self as read, shown};
use crate::spec::ModelSpec;

pub(super) const DEFINITION: Definition = Definition {
    architecture: Architecture::Llama,
    class: "LlamaForCausalLM",
    model_type: "llama",
    norm: Norm::RootMeanSquare,
    mlp: Mlp::SwiGlu,
    biases: false,
    from_config,
    to_config,
    stored: None,
};

fn from_config(config: &Map<String, Value>) -> Result<ModelSpec, ModelError> {
    refuse_unsupported(config)?;
    let hidden_size = read::size(config, "hidden_size")?;
    let num_attention_heads = read::size(config, "num_attention_heads")?;
    let head_dim = match read::optional_size(config, "head_dim")? {
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
    let rope = config.get("rope_parameters").and_then(Value::as_object);
    let rope_theta = match rope.filter(|rope| rope.contains_key("rope_theta")) {
        Some(rope) => read::optional_number(rope, "rope_theta")?,
        None => read::optional_number(config, "rope_theta")?,
    };
    Ok(ModelSpec {
        architecture: Architecture::Llama,
        vocab_size: read::size(config, "vocab_size")?,
        hidden_size,
        intermediate_size: read::size(config, "intermediate_size")?,
        num_hidden_layers: read::size(config, "num_hidden_layers")?,
        num_attention_heads,
        num_key_value_heads: read::optional_size(config, "num_key_value_heads")?
            .unwrap_or(num_attention_heads),
        head_dim,
        // The defaults are those of the family's configuration class.
        max_position_embeddings: read::optional_size(config, "max_position_embeddings")?.unwrap_or(2048),
        norm_eps: read::optional_number(config, "rms_norm_eps")?.unwrap_or(1e-6),
        rope_theta: Some(rope_theta.unwrap_or(10_000.0)),
        tie_word_embeddings: read::optional_bool(config, "tie_word_embeddings")?.unwrap_or(false),
        bos_token_id: read::token_ids(config, "bos_token_id")?.first().copied(),
        eos_token_ids: read::token_ids(config, "eos_token_id")?,
        pad_token_id: read::token_ids(config, "pad_token_id")?.first().copied(),
    })
}

/// Features that would change the forward pass and are not implemented: better a refusal than wrong logits.
fn refuse_unsupported(config: &Map<String, Value>) -> Result<(), ModelError> {
    match config.get("hidden_act") {
        None => {}
        Some(Value::String(act)) if act == "silu" || act == "swish" => {}
        Some(other) => return Err(ModelError::config("hidden_act", "\"silu\"", shown(other), "")),
    }
    for key in ["attention_bias", "mlp_bias"] {
        if read::optional_bool(config, key)?.unwrap_or(false) {
            return Err(ModelError::config(key, "false", "true", "; biases are not supported"));
        }
    }
    for key in ["rope_scaling", "rope_parameters"] {
        let Some(value) = config.get(key).filter(|value| !value.is_null()) else { continue };
        let kind = ["rope_type", "type"].iter().find_map(|k| value.get(k)).and_then(Value::as_str);
        if kind != Some("default") && (kind.is_some() || key == "rope_scaling") {
            let hint = "; scaled rotary frequencies are not supported";
            return Err(ModelError::config(key, "null or rope_type \"default\"", shown(value), hint));
        }
    }
    if let Some(factor) = read::optional_number(config, "partial_rotary_factor")?.filter(|&f| f != 1.0) {
        return Err(ModelError::config("partial_rotary_factor", "1", factor.to_string(), ""));
    }
    Ok(())
}

fn to_config(spec: &ModelSpec) -> Map<String, Value> {
    let config = json!({
        "architectures": [DEFINITION.class],
        "model_type": DEFINITION.model_type,
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
        "rope_theta": spec.rope_theta,
        "rope_scaling": null,
        "attention_bias": false,
        "mlp_bias": false,
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
