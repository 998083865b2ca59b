//! GPT-2: `GPT2LMHeadModel`.

use serde_json::{Map, Value, json};

use super::{Definition, Stored, llama};
use crate::error::ModelError;
use crate::json::{self as read, shown};
use crate::spec::{Architecture, LinearSet, Mlp, ModelSpec, Norm, ParamInfo, ParamKind};
use crate::weights::TensorLocation;

pub(super) const DEFINITION: Definition =
    Definition { architecture: ARCHITECTURE, from_config, to_config: Some(to_config), stored: Some(stored), gguf: None };

/// Hugging Face's names of the family.
pub const ARCHITECTURE: Architecture = Architecture { class: "GPT2LMHeadModel", model_type: "gpt2" };

/// The features of the family, with sizes of zero: LayerNorm, learned positions, GELU, biases everywhere.
pub fn base() -> ModelSpec {
    ModelSpec {
        architecture: ARCHITECTURE,
        norm: Norm::Layer,
        mlp: Mlp::Gelu,
        biases: LinearSet::ALL,
        rope: None,
        ..llama::base()
    }
}

fn from_config(config: &Map<String, Value>) -> Result<ModelSpec, ModelError> {
    refuse_unsupported(config)?;
    let hidden_size = read::size(config, "n_embd")?;
    let heads = read::size(config, "n_head")?;
    if heads == 0 || !hidden_size.is_multiple_of(heads) {
        let expected = format!("a divisor of n_embd = {hidden_size}");
        return Err(ModelError::config("n_head", expected, heads.to_string(), ""));
    }
    Ok(ModelSpec {
        vocab_size: read::size(config, "vocab_size")?,
        hidden_size,
        intermediate_size: read::optional_size(config, "n_inner")?.unwrap_or(4 * hidden_size),
        num_hidden_layers: read::size(config, "n_layer")?,
        num_attention_heads: heads,
        num_key_value_heads: heads,
        head_dim: hidden_size / heads,
        // The defaults are those of the family's configuration class.
        max_position_embeddings: read::optional_size(config, "n_positions")?.unwrap_or(1024),
        norm_eps: read::optional_number(config, "layer_norm_epsilon")?.unwrap_or(1e-5),
        tie_word_embeddings: read::optional_bool(config, "tie_word_embeddings")?.unwrap_or(true),
        bos_token_id: read::token_ids(config, "bos_token_id")?.first().copied(),
        eos_token_ids: read::token_ids(config, "eos_token_id")?,
        pad_token_id: read::token_ids(config, "pad_token_id")?.first().copied(),
        ..base()
    })
}

/// Features that would change the forward pass and are not implemented: better a refusal than wrong logits.
fn refuse_unsupported(config: &Map<String, Value>) -> Result<(), ModelError> {
    match config.get("activation_function") {
        None => {}
        // Two names of one function.
        Some(Value::String(act)) if act == "gelu_new" || act == "gelu_pytorch_tanh" => {}
        Some(other) => {
            return Err(ModelError::config("activation_function", "\"gelu_new\"", shown(other), ""));
        }
    }
    for (key, expected) in [
        ("scale_attn_weights", true),
        ("scale_attn_by_inverse_layer_idx", false),
        ("add_cross_attention", false),
    ] {
        let got = read::optional_bool(config, key)?.unwrap_or(expected);
        if got != expected {
            let hint = "; other attention is not supported";
            return Err(ModelError::config(key, expected.to_string(), got.to_string(), hint));
        }
    }
    Ok(())
}

fn to_config(spec: &ModelSpec) -> Map<String, Value> {
    let config = json!({
        "architectures": [ARCHITECTURE.class],
        "model_type": ARCHITECTURE.model_type,
        "vocab_size": spec.vocab_size,
        "n_embd": spec.hidden_size,
        "n_inner": spec.intermediate_size,
        "n_layer": spec.num_hidden_layers,
        "n_head": spec.num_attention_heads,
        "n_positions": spec.max_position_embeddings,
        "activation_function": "gelu_new",
        "layer_norm_epsilon": spec.norm_eps,
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

fn stored(_: &Map<String, Value>) -> Result<Stored, ModelError> {
    Ok(Stored { location: Some(location), ..Stored::default() })
}

/// Linears are `Conv1D`: `[in, out]`, with queries, keys and values side by side in one.
fn location(param: &ParamInfo) -> TensorLocation {
    let (module, suffix) = param.name.rsplit_once('.').unwrap_or((&param.name, "weight"));
    let (name, part, parts) = match param.kind {
        ParamKind::Head => return TensorLocation::plain("lm_head.weight"),
        ParamKind::Embedding => ("wte", 0, 1),
        ParamKind::Positions => ("wpe", 0, 1),
        ParamKind::Norm(_) | ParamKind::Linear(_) | ParamKind::Bias => {
            match module.rsplit_once('.').map_or(module, |(_, last)| last) {
                "input_layernorm" => ("ln_1", 0, 1),
                "post_attention_layernorm" => ("ln_2", 0, 1),
                "q_proj" => ("attn.c_attn", 0, 3),
                "k_proj" => ("attn.c_attn", 1, 3),
                "v_proj" => ("attn.c_attn", 2, 3),
                "o_proj" => ("attn.c_proj", 0, 1),
                "up_proj" => ("mlp.c_fc", 0, 1),
                "down_proj" => ("mlp.c_proj", 0, 1),
                _ => ("ln_f", 0, 1),
            }
        }
    };
    let layer = param.layer.map(|layer| format!("h.{layer}.")).unwrap_or_default();
    let transposed = matches!(param.kind, ParamKind::Linear(_));
    TensorLocation {
        transposed,
        part,
        parts,
        ..TensorLocation::plain(&format!("transformer.{layer}{name}.{suffix}"))
    }
}
