//! Granite 4 nano without recurrent layers and experts: `GraniteMoeHybridForCausalLM`. Granite 3 whose gate and up projections are
//! one tensor.

use serde_json::{Map, Value};

use super::{Definition, Stored, decoder, granite};
use crate::error::ModelError;
use crate::json::{self as read, shown};
use crate::spec::{Architecture, LinearKind, ModelSpec, ParamInfo, ParamKind};
use crate::weights::TensorLocation;

pub(super) const DEFINITION: Definition =
    Definition { architecture: ARCHITECTURE, from_config, to_config: None, stored: Some(stored), gguf: None };

/// Hugging Face's names of the family.
pub const ARCHITECTURE: Architecture =
    Architecture { class: "GraniteMoeHybridForCausalLM", model_type: "granitemoehybrid" };

/// The features of the family, with sizes of zero.
pub fn base() -> ModelSpec {
    ModelSpec { architecture: ARCHITECTURE, ..granite::base() }
}

fn from_config(config: &Map<String, Value>) -> Result<ModelSpec, ModelError> {
    let experts = read::optional_size(config, "num_local_experts")?.unwrap_or(0);
    if experts > 0 {
        let hint = "; mixtures of experts are not supported";
        return Err(ModelError::config("num_local_experts", "0", experts.to_string(), hint));
    }
    let positions = config.get("position_embedding_type").filter(|value| !value.is_null());
    if positions.is_none_or(|kind| kind != "rope") {
        let found = positions.map_or("nothing".to_owned(), shown);
        let hint = "; models without positions are not supported";
        return Err(ModelError::config("position_embedding_type", "\"rope\"", found, hint));
    }
    let mut spec = decoder::from_config(&dense(config), base(), &granite::DEFAULTS)?;
    if config.get("layer_types").is_none_or(Value::is_null) {
        let hint = "; layers are recurrent where the key is absent, and such layers are not supported";
        return Err(ModelError::config("layer_types", "\"attention\" everywhere", "nothing", hint));
    }
    spec.architecture = ARCHITECTURE;
    Ok(spec)
}

/// The configuration under the names of Granite 3.
fn dense(config: &Map<String, Value>) -> Map<String, Value> {
    let mut config = config.clone();
    if let Some(size) = config.get("shared_intermediate_size").cloned() {
        config.insert("intermediate_size".to_owned(), size);
    }
    config
}

fn stored(config: &Map<String, Value>) -> Result<Stored, ModelError> {
    Ok(Stored { location: Some(location), ..granite::stored(&dense(config))? })
}

fn location(param: &ParamInfo) -> TensorLocation {
    let layer = param.layer.unwrap_or_default();
    let (name, part, parts) = match param.kind {
        ParamKind::Linear(LinearKind::Gate) => ("input_linear", 0, 2),
        ParamKind::Linear(LinearKind::Up) => ("input_linear", 1, 2),
        ParamKind::Linear(LinearKind::Down) => ("output_linear", 0, 1),
        _ => return TensorLocation::plain(&param.name),
    };
    let name = format!("model.layers.{layer}.shared_mlp.{name}.weight");
    TensorLocation { part, parts, ..TensorLocation::plain(&name) }
}
