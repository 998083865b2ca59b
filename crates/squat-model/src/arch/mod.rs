//! The known architectures: one file each, one line each in `REGISTRY`.

pub mod gpt2;
pub mod llama;

use serde_json::{Map, Value};

use crate::error::ModelError;
use crate::spec::{ModelSpec, ParamInfo};
use crate::weights::Stored;

/// A known architecture.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Architecture {
    /// RMSNorm, RoPE, grouped-query attention, SwiGLU; no biases.
    Llama,
    /// LayerNorm, learned positions, GELU, biases everywhere.
    Gpt2,
}

/// What brings a row of the residual stream to size before a linear layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Norm {
    /// By its root mean square, times a gain.
    RootMeanSquare,
    /// Its mean taken off, by its standard deviation, times a gain, plus a bias.
    Layer,
}

/// What stands between attention and attention.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mlp {
    /// `down(silu(gate(x)) * up(x))`
    SwiGlu,
    /// `down(gelu(up(x)))`, GELU in its form with tanh.
    Gelu,
}

/// What an architecture file provides.
pub(crate) struct Definition {
    architecture: Architecture,
    /// Entry of `architectures` in `config.json`.
    class: &'static str,
    /// `model_type` in `config.json`.
    model_type: &'static str,
    norm: Norm,
    mlp: Mlp,
    /// Whether linear layers have biases (the head never has).
    biases: bool,
    from_config: fn(&Map<String, Value>) -> Result<ModelSpec, ModelError>,
    to_config: fn(&ModelSpec) -> Map<String, Value>,
    /// Where a parameter stands in a Hugging Face folder; none where names and shapes are those of the spec.
    stored: Option<fn(&ParamInfo) -> Stored>,
}

/// One line for each architecture.
const REGISTRY: [Definition; 2] = [llama::DEFINITION, gpt2::DEFINITION];

impl Architecture {
    fn definition(self) -> &'static Definition {
        static DEFINITIONS: [Definition; 2] = REGISTRY;
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

    /// Its norm.
    pub fn norm(self) -> Norm {
        self.definition().norm
    }

    /// Its MLP.
    pub fn mlp(self) -> Mlp {
        self.definition().mlp
    }

    /// Whether its linear layers have biases (the head never has).
    pub fn biases(self) -> bool {
        self.definition().biases
    }

    pub(crate) fn read_config(self, config: &Map<String, Value>) -> Result<ModelSpec, ModelError> {
        (self.definition().from_config)(config)
    }

    pub(crate) fn to_config(self, spec: &ModelSpec) -> Map<String, Value> {
        (self.definition().to_config)(spec)
    }

    pub(crate) fn stored(self) -> Option<fn(&ParamInfo) -> Stored> {
        self.definition().stored
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
