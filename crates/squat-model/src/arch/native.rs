//! The configuration that this program writes where no family's says what the weights are: models whose files store parameters
//! otherwise than they run, and combinations of features that no family has. Other programs refuse it.

use serde_json::{Map, Value, json};

use super::decoder::{self, Defaults, Windows};
use super::{REGISTRY, llama};
use crate::error::ModelError;
use crate::json::{self as read, shown};
use crate::rope::Rope;
use crate::spec::{LinearKind, LinearSet, Mlp, ModelSpec, Norm, NormPlaces, QkNorm, Window};

const CLASS: &str = "SquatForCausalLM";

/// Words of the file for each value of a field.
const NORMS: [(&str, Norm); 2] = [("rms", Norm::Rms), ("layer", Norm::Layer)];
const PLACES: [(&str, NormPlaces); 3] =
    [("input", NormPlaces::Input), ("output", NormPlaces::Output), ("both", NormPlaces::Both)];
const QK_NORMS: [(&str, QkNorm); 3] = [("none", QkNorm::None), ("head", QkNorm::Head), ("row", QkNorm::Row)];
const MLPS: [(&str, Mlp); 3] = [("swiglu", Mlp::SwiGlu), ("geglu", Mlp::GeGlu), ("gelu", Mlp::Gelu)];

/// Whether a configuration is one of these.
pub(super) fn is_native(config: &Map<String, Value>) -> bool {
    config.get("architectures").and_then(|list| list.get(0)).is_some_and(|class| class == CLASS)
}

pub(super) fn to_config(spec: &ModelSpec) -> Map<String, Value> {
    fn word<T: PartialEq>(words: &[(&'static str, T)], value: &T) -> &'static str {
        words.iter().find(|(_, known)| known == value).map_or("", |(word, _)| word)
    }
    let rope = |rope: &Rope| json!({"rope_theta": rope.theta, "rope_scaling": decoder::scaling_value(rope)});
    let mut config = decoder::to_config(spec);
    for key in
        ["layer_types", "sliding_window", "use_sliding_window", "attention_bias", "mlp_bias", "hidden_act"]
    {
        config.remove(key);
    }
    for key in ["rope_theta", "rope_scaling"] {
        config.remove(key);
    }
    let biases = LinearKind::ALL.into_iter().filter(|&kind| spec.biases.contains(kind));
    let own = json!({
        "architectures": [CLASS],
        "model_type": "squat",
        "family": spec.architecture.class,
        "norm": word(&NORMS, &spec.norm),
        "norm_places": word(&PLACES, &spec.norm_places),
        "qk_norm": word(&QK_NORMS, &spec.qk_norm),
        "mlp": word(&MLPS, &spec.mlp),
        "biases": biases.map(LinearKind::module).collect::<Vec<_>>(),
        "rope": spec.rope.as_ref().map(rope),
        "without_rope": spec.without_rope,
        "window": spec.window.as_ref().map(|window| json!({
            "size": window.size,
            "layers": window.layers,
            "rope": window.rope.as_ref().map(rope),
        })),
    });
    if let Value::Object(own) = own {
        config.extend(own);
    }
    config
}

pub(super) fn from_config(config: &Map<String, Value>) -> Result<ModelSpec, ModelError> {
    let family = config.get("family").and_then(Value::as_str).unwrap_or_default();
    let classes: Vec<&str> = REGISTRY.iter().map(|definition| definition.architecture.class).collect();
    let architecture = REGISTRY.iter().find(|definition| definition.architecture.class == family);
    let architecture =
        architecture.ok_or_else(|| ModelError::unknown_name("family", family, &classes))?.architecture;
    let mut sizes = config.clone();
    let rope = rope_of(config.get("rope"), "rope")?;
    if let Some(Value::Object(rope)) = config.get("rope") {
        sizes.extend(rope.clone());
    }
    let defaults = Defaults {
        max_position_embeddings: 0,
        norm_eps: 0.0,
        rope_theta: 10_000.0,
        head_dim: None,
        windows: Windows::Never,
    };
    let spec = ModelSpec {
        architecture,
        norm: choice(config, "norm", &NORMS)?,
        norm_places: choice(config, "norm_places", &PLACES)?,
        qk_norm: choice(config, "qk_norm", &QK_NORMS)?,
        biases: biases(config)?,
        without_rope: flags(config.get("without_rope"), "without_rope")?,
        window: window(config)?,
        ..decoder::from_config(&sizes, llama::base(), &defaults)?
    };
    let spec = ModelSpec { mlp: choice(config, "mlp", &MLPS)?, rope, ..spec };
    spec.validate()?;
    Ok(spec)
}

fn choice<T: Copy>(
    config: &Map<String, Value>,
    key: &'static str,
    words: &[(&str, T)],
) -> Result<T, ModelError> {
    let found = config.get(key).and_then(Value::as_str).unwrap_or_default();
    let names: Vec<&str> = words.iter().map(|(word, _)| *word).collect();
    let known = words.iter().find(|(word, _)| *word == found).map(|(_, value)| *value);
    known.ok_or_else(|| ModelError::unknown_name(key, found, &names))
}

fn rope_of(value: Option<&Value>, key: &str) -> Result<Option<Rope>, ModelError> {
    match value {
        None | Some(Value::Null) => Ok(None),
        Some(Value::Object(rope)) => decoder::rope(rope, 10_000.0, 0).map(Some),
        Some(other) => Err(ModelError::config(key, "an object or null", shown(other), "")),
    }
}

fn flags(value: Option<&Value>, key: &str) -> Result<Vec<bool>, ModelError> {
    let Some(value) = value.filter(|value| !value.is_null()) else { return Ok(Vec::new()) };
    let list =
        value.as_array().and_then(|list| list.iter().map(Value::as_bool).collect::<Option<Vec<bool>>>());
    list.ok_or_else(|| ModelError::config(key, "a list of true and false", shown(value), ""))
}

fn biases(config: &Map<String, Value>) -> Result<LinearSet, ModelError> {
    let kind = |name: &Value| LinearKind::ALL.into_iter().find(|kind| name == kind.module());
    let list = config.get("biases").and_then(Value::as_array);
    let kinds = list.and_then(|list| list.iter().map(kind).collect::<Option<Vec<LinearKind>>>());
    let found = || config.get("biases").map_or("nothing".to_owned(), shown);
    kinds
        .map(|kinds| LinearSet::of(&kinds))
        .ok_or_else(|| ModelError::config("biases", "a list of linear layers, such as q_proj", found(), ""))
}

fn window(config: &Map<String, Value>) -> Result<Option<Window>, ModelError> {
    let window = match config.get("window") {
        None | Some(Value::Null) => return Ok(None),
        Some(Value::Object(window)) => window,
        Some(other) => return Err(ModelError::config("window", "an object or null", shown(other), "")),
    };
    Ok(Some(Window {
        size: read::size(window, "size").map_err(|error| error.inside("window"))?,
        layers: flags(window.get("layers"), "window.layers")?,
        rope: rope_of(window.get("rope"), "window.rope")?,
    }))
}
