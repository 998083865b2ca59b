//! The known architectures: one file each, one line each in `REGISTRY`.

pub mod llama;

use serde_json::{Map, Value};

use crate::error::ModelError;
use crate::spec::{ModelSpec, ParamInfo};

/// A known architecture.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Architecture {
    /// RMSNorm, RoPE, grouped-query attention, SwiGLU; no biases.
    Llama,
}

/// What an architecture file provides.
pub(crate) struct Definition {
    architecture: Architecture,
    /// Entry of `architectures` in `config.json`.
    class: &'static str,
    /// `model_type` in `config.json`.
    model_type: &'static str,
    from_config: fn(&Map<String, Value>) -> Result<ModelSpec, ModelError>,
    to_config: fn(&ModelSpec) -> Map<String, Value>,
    parameters: fn(&ModelSpec) -> Vec<ParamInfo>,
}

/// One line for each architecture.
const REGISTRY: [Definition; 1] = [llama::DEFINITION];

impl Architecture {
    fn definition(self) -> &'static Definition {
        static DEFINITIONS: [Definition; 1] = REGISTRY;
        DEFINITIONS
            .iter()
            .find(|definition| definition.architecture == self)
            .expect("every architecture has a line in the registry, a test reads them")
    }

    /// Name of the Hugging Face class: `LlamaForCausalLM`.
    pub fn class(self) -> &'static str {
        self.definition().class
    }

    /// Hugging Face `model_type`: `llama`.
    pub fn model_type(self) -> &'static str {
        self.definition().model_type
    }

    pub(crate) fn read_config(self, config: &Map<String, Value>) -> Result<ModelSpec, ModelError> {
        (self.definition().from_config)(config)
    }

    pub(crate) fn to_config(self, spec: &ModelSpec) -> Map<String, Value> {
        (self.definition().to_config)(spec)
    }

    pub(crate) fn parameters(self, spec: &ModelSpec) -> Vec<ParamInfo> {
        (self.definition().parameters)(spec)
    }
}

/// The architecture that a `config.json` names in `architectures` or, without it, in `model_type`.
pub(crate) fn of_config(config: &Map<String, Value>) -> Result<Architecture, ModelError> {
    let class = config.get("architectures").and_then(|list| list.get(0)).and_then(Value::as_str);
    let model_type = config.get("model_type").and_then(Value::as_str);
    let found = match (class, model_type) {
        (Some(class), _) => REGISTRY.iter().find(|d| d.class == class),
        (None, Some(model_type)) => REGISTRY.iter().find(|d| d.model_type == model_type),
        (None, None) => {
            return Err(ModelError::config(
                "architectures",
                format!("[\"{}\"]", REGISTRY[0].class),
                "nothing",
                "; is this the config.json of a language model?",
            ));
        }
    };
    found.map(|definition| definition.architecture).ok_or_else(|| match class {
        Some(class) => ModelError::unknown_name("architecture", class, &REGISTRY.each_ref().map(|d| d.class)),
        None => {
            let names = REGISTRY.each_ref().map(|d| d.model_type);
            ModelError::unknown_name("model_type", model_type.unwrap_or_default(), &names)
        }
    })
}
