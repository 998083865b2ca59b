//! The supported model families: one file each, one line each in `architectures!`.
//!
//! A file says which features a family has ([`ModelSpec`] with sizes of zero), how its `config.json` is read and written,
//! where its parameters are stored when a file uses other names, and what it is called in GGUF files.

mod decoder;

use serde_json::{Map, Value};

use crate::error::ModelError;
use crate::plan::QuantPlan;
use crate::spec::{Architecture, ModelSpec, ParamInfo};
use crate::weights::TensorLocation;

/// What an architecture file provides.
pub(crate) struct Definition {
    pub architecture: Architecture,
    pub from_config: fn(&Map<String, Value>) -> Result<ModelSpec, ModelError>,
    /// What `from_config` reads back to an equal spec.
    pub to_config: fn(&ModelSpec) -> Map<String, Value>,
    /// Location of a parameter in a Hugging Face folder; `None` if names and shapes match the spec.
    pub location: Option<fn(&ParamInfo) -> TensorLocation>,
    /// The family in GGUF files; none where it is not read from them.
    pub gguf: Option<Gguf>,
}

/// A family in GGUF files.
pub(crate) struct Gguf {
    /// `general.architecture`, and the prefix of its metadata.
    pub name: &'static str,
    pub base: fn() -> ModelSpec,
    /// Whether rows of queries and keys are reordered for RoPE on neighbouring pairs.
    pub interleaved_rope: bool,
}

/// Declares the modules and collects their definitions.
macro_rules! architectures {
    ($($name:ident)*) => {
        $(pub mod $name;)*
        pub(crate) static REGISTRY: [Definition; [$(stringify!($name)),*].len()] = [$($name::DEFINITION),*];
    };
}

// One line for each architecture.
architectures! {
    llama
    qwen2
    qwen3
    gpt2
}

/// The definition of a family.
pub(crate) fn definition(architecture: Architecture) -> &'static Definition {
    REGISTRY
        .iter()
        .find(|definition| definition.architecture == architecture)
        .expect("specs get their architecture from a file of the registry, a test reads them")
}

/// Reads a Hugging Face `config.json` object.
///
/// Keys that do not change the forward pass are ignored.
///
/// # Errors
/// An unknown architecture, a missing or mistyped key, a feature that is not implemented, sizes that do not fit
/// together: each names the key, what was expected and what was found.
pub fn spec_of_config(config: &Map<String, Value>) -> Result<ModelSpec, ModelError> {
    let spec = (of_config(config)?.from_config)(config)?;
    spec.validate()?;
    Ok(spec)
}

/// The Hugging Face `config.json` object of a spec; [`spec_of_config`] reads it back to an equal spec.
pub fn config_of_spec(spec: &ModelSpec) -> Map<String, Value> {
    (definition(spec.architecture).to_config)(spec)
}

/// [`config_of_spec`] for a file that is written.
///
/// # Errors
/// Features that the family's configuration cannot express, so that another model would be read back.
///
/// Weights that were rewritten for the transforms of a plan are another model to whoever does not know these, so `model_type`
/// is then one that others refuse; `architectures` stays.
pub(crate) fn checked_config(
    spec: &ModelSpec,
    plan: Option<&QuantPlan>,
) -> Result<Map<String, Value>, ModelError> {
    let mut config = config_of_spec(spec);
    if spec_of_config(&config)? == *spec {
        if plan.is_some_and(QuantPlan::is_own) {
            let own = format!("{OWN_TYPE}{}", spec.architecture.model_type);
            config.insert("model_type".to_owned(), own.into());
        }
        return Ok(config);
    }
    let hint = "; the model can be run as it is, but not written";
    let expected = format!("features that a config.json of {} can express", spec.architecture.class);
    Err(ModelError::config(
        "architecture",
        expected,
        "others, such as biases of some linear layers only",
        hint,
    ))
}

/// Prefix of the `model_type` of models that only this program can run ([`QuantPlan::is_own`]).
const OWN_TYPE: &str = "squat_";

/// The architecture that a `config.json` names in `architectures` or, without it, in `model_type`.
fn of_config(config: &Map<String, Value>) -> Result<&'static Definition, ModelError> {
    let class = config.get("architectures").and_then(|list| list.get(0)).and_then(Value::as_str);
    let model_type = config.get("model_type").and_then(Value::as_str);
    let model_type = model_type.map(|name| name.strip_prefix(OWN_TYPE).unwrap_or(name));
    let found = match (class, model_type) {
        (Some(class), _) => REGISTRY.iter().find(|d| d.architecture.class == class),
        (None, Some(model_type)) => REGISTRY.iter().find(|d| d.architecture.model_type == model_type),
        (None, None) => {
            return Err(ModelError::config(
                "architectures",
                format!("[\"{}\"]", REGISTRY[0].architecture.class),
                "nothing",
                "; is this the config.json of a language model?",
            ));
        }
    };
    found.ok_or_else(|| match class {
        Some(class) => {
            let known = REGISTRY.each_ref().map(|d| d.architecture.class);
            ModelError::unknown_name("architecture", class, &known)
        }
        None => {
            let known = REGISTRY.each_ref().map(|d| d.architecture.model_type);
            ModelError::unknown_name("model_type", model_type.unwrap_or_default(), &known)
        }
    })
}
