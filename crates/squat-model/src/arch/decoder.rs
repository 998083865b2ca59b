//! The `config.json` that most families share: the keys of LLaMA's, with RoPE under old and new names.

use serde_json::{Map, Value, json};

use crate::error::ModelError;
use crate::json::{self as read, shown};
use crate::rope::{Rope, RopeScaling};
use crate::spec::{LinearSet, Mlp, ModelSpec, Window};

/// What the configuration class of a family assumes where a key is absent.
pub(super) struct Defaults {
    pub max_position_embeddings: usize,
    pub norm_eps: f64,
    pub rope_theta: f64,
    /// Where it does not follow from `hidden_size` and the number of heads.
    pub head_dim: Option<usize>,
    /// Which layers have a window where `layer_types` is absent.
    pub windows: Windows,
}

/// Which layers of a family attend to the latest positions alone.
#[derive(Clone, Copy)]
pub(super) enum Windows {
    /// None: the family has no windows.
    Never,
    /// Those from `max_window_layers` on, if `use_sliding_window` says so.
    From,
    /// All, if `sliding_window` is a number.
    All,
    /// All but every n-th; n is `sliding_window_pattern`, or this number.
    AllBut(usize),
}

/// Fills the sizes of `base` from `config`. Whatever would change the forward pass and is not implemented is refused.
pub(super) fn from_config(
    config: &Map<String, Value>,
    base: ModelSpec,
    defaults: &Defaults,
) -> Result<ModelSpec, ModelError> {
    refuse_unsupported(config, base.mlp)?;
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
    let num_hidden_layers = read::size(config, "num_hidden_layers")?;
    ModelSpec::check_layers(num_hidden_layers)?;
    let window = window(config, defaults.windows, num_hidden_layers, max_position_embeddings)?;
    Ok(ModelSpec {
        vocab_size: read::size(config, "vocab_size")?,
        hidden_size,
        intermediate_size: read::size(config, "intermediate_size")?,
        num_hidden_layers,
        window,
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
fn refuse_unsupported(config: &Map<String, Value>, mlp: Mlp) -> Result<(), ModelError> {
    let (names, expected): (&[&str], &str) = match mlp {
        Mlp::GeGlu => (&["gelu_pytorch_tanh", "gelu_new"], "\"gelu_pytorch_tanh\""),
        _ => (&["silu", "swish"], "\"silu\""),
    };
    // Gemma's configurations have the one that counts under another name.
    let keys = ["hidden_activation", "hidden_act"];
    let found =
        keys.iter().find_map(|&key| config.get(key).filter(|act| !act.is_null()).map(|act| (key, act)));
    if let Some((key, act)) = found
        && !act.as_str().is_some_and(|act| names.contains(&act))
    {
        return Err(ModelError::config(key, expected, shown(act), ""));
    }
    if let Some(factor) = read::optional_number(config, "partial_rotary_factor")?.filter(|&f| f != 1.0) {
        return Err(ModelError::config("partial_rotary_factor", "1", factor.to_string(), ""));
    }
    for key in ["attn_logit_softcapping", "final_logit_softcapping"] {
        if let Some(cap) = read::optional_number(config, key)? {
            return Err(ModelError::config(key, "null", cap.to_string(), "; soft caps are not supported"));
        }
    }
    Ok(())
}

/// Layers that attend to the latest `sliding_window` positions alone; none if no sequence is longer than that.
fn window(
    config: &Map<String, Value>,
    rule: Windows,
    layers: usize,
    context: usize,
) -> Result<Option<Window>, ModelError> {
    let hint = "; attention over a sliding window is not supported in this architecture";
    let mut size = read::optional_size(config, "sliding_window")?;
    if let Windows::Never = rule
        && read::optional_bool(config, "use_sliding_window")?.unwrap_or(false)
    {
        return Err(ModelError::config("use_sliding_window", "false", "true", hint));
    }
    if let Windows::From = rule
        && !read::optional_bool(config, "use_sliding_window")?.unwrap_or(false)
    {
        size = None;
    }
    // The list counts where it is there.
    let listed = config.get("layer_types").filter(|value| !value.is_null());
    let has_window: Vec<bool> = match listed {
        Some(list) => {
            let wrong = || {
                ModelError::config(
                    "layer_types",
                    "full_attention or sliding_attention for each layer",
                    shown(list),
                    "; layers of other types are not supported",
                )
            };
            let list = list.as_array().ok_or_else(wrong)?;
            let kind = |layer: &Value| match layer.as_str() {
                Some("full_attention" | "attention") => Ok(false),
                Some("sliding_attention") => Ok(true),
                _ => Err(wrong()),
            };
            let list = list.iter().map(kind).collect::<Result<Vec<bool>, _>>()?;
            if list.len() != layers {
                return Err(ModelError::config(
                    "layer_types",
                    format!("{layers} entries"),
                    list.len().to_string(),
                    "",
                ));
            }
            list
        }
        None => {
            let first = match rule {
                Windows::From => read::optional_size(config, "max_window_layers")?.unwrap_or(0),
                _ => 0,
            };
            let every = match rule {
                Windows::AllBut(every) => match read::optional_size(config, "sliding_window_pattern")? {
                    Some(0) => {
                        return Err(ModelError::config(
                            "sliding_window_pattern",
                            "a positive number",
                            "0",
                            "",
                        ));
                    }
                    found => found.unwrap_or(every),
                },
                _ => 0,
            };
            (0..layers)
                .map(|layer| match rule {
                    Windows::Never => false,
                    Windows::From => layer >= first,
                    Windows::All => true,
                    Windows::AllBut(_) => (layer + 1) % every != 0,
                })
                .collect()
        }
    };
    if !has_window.contains(&true) {
        return Ok(None);
    }
    if let Windows::Never = rule {
        return Err(ModelError::config(
            "layer_types",
            "\"full_attention\" everywhere",
            "sliding_attention",
            hint,
        ));
    }
    // Where layers differ by more than the window, one that no sequence reaches still says which they are.
    if size.is_none() && listed.is_some() {
        let hint = "; layer_types has layers with a window";
        return Err(ModelError::config("sliding_window", "a number that is in use", "none", hint));
    }
    let size = size.filter(|&size| size < context || matches!(rule, Windows::AllBut(_)));
    Ok(size.map(|size| Window { size, layers: has_window, rope: None }))
}

/// RoPE: transformers 5 writes everything under `rope_parameters`; older files have `rope_theta` beside `rope_scaling`,
/// where `rope_scaling` may hold the base as well. An empty object says nothing.
pub(super) fn rope(config: &Map<String, Value>, theta: f64, context: usize) -> Result<Rope, ModelError> {
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
    let scaling = scaling_value(&rope);
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
    let Value::Object(mut config) = config else { return Map::new() };
    if let Some(window) = &spec.window {
        let kind = |&has: &bool| if has { "sliding_attention" } else { "full_attention" };
        config.insert("sliding_window".to_owned(), window.size.into());
        config.insert("use_sliding_window".to_owned(), true.into());
        config.insert("layer_types".to_owned(), window.layers.iter().map(kind).collect());
    }
    config
}

/// `rope_scaling` of a rotary embedding.
pub(super) fn scaling_value(rope: &Rope) -> Value {
    match rope.scaling {
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
    }
}
