//! Which kind of model a path holds.

use crate::engine::{Engine, EngineOptions};
use crate::error::Result;
use squat_model::format::gguf::{GgufModel, is_gguf};
use squat_model::format::llama2c;
use squat_model::{ModelError, ModelFolder, PackedModel, QuantPlan};
use std::path::Path;

/// Whether a path is a llama2.c checkpoint by its name.
pub fn is_llama2c(path: &Path) -> bool {
    path.is_file() && path.extension().is_some_and(|extension| extension == "bin")
}

/// Loads a packed folder, a full-precision or training folder (run as its plan says), a GGUF or a llama2.c file.
pub(crate) fn load(path: &Path, options: EngineOptions) -> Result<Engine> {
    if is_llama2c(path) {
        let (spec, tensors) = llama2c::load_checkpoint(path)?;
        return Engine::from_parts(&spec, &QuantPlan::full_precision(), &tensors, options);
    }
    if is_gguf(path) {
        let model = GgufModel::open(path)?;
        return Engine::from_parts(model.spec(), &QuantPlan::full_precision(), &model, options);
    }
    if is_packed(path) {
        return Engine::from_packed(&PackedModel::open(path)?, options);
    }
    let folder = ModelFolder::open(path)?;
    let full_precision = QuantPlan::full_precision();
    Engine::from_parts(folder.spec(), folder.plan().unwrap_or(&full_precision), &folder, options)
}

/// Loads a model in full precision and quantizes it to nearest as `plan` says.
pub(crate) fn load_as(path: &Path, plan: &QuantPlan, options: EngineOptions) -> Result<Engine> {
    if is_llama2c(path) {
        let (spec, tensors) = llama2c::load_checkpoint(path)?;
        return Engine::from_parts(&spec, plan, &tensors, options);
    }
    if is_gguf(path) {
        let model = GgufModel::open(path)?;
        return Engine::from_parts(model.spec(), plan, &model, options);
    }
    let refuse = |what: &str| {
        let message = format!("expected weights in full precision, to be run by another plan, got {what}");
        Err(ModelError::Folder { path: path.to_path_buf(), message }.into())
    };
    if is_packed(path) {
        return refuse("a packed model; run it as it is, or give the model it was packed from");
    }
    let folder = ModelFolder::open(path)?;
    if folder.plan().is_some() {
        return refuse(
            "a checkpoint with a plan of its own; run it as it is, or give the model it was trained from",
        );
    }
    Engine::from_parts(folder.spec(), plan, &folder, options)
}

/// Whether the folder's configuration says that its weights are packed. Anything unreadable is left to the reader of
/// full-precision folders, which says what is wrong.
fn is_packed(path: &Path) -> bool {
    let text = std::fs::read(path.join("config.json")).unwrap_or_default();
    serde_json::from_slice::<serde_json::Value>(&text)
        .is_ok_and(|config| config.get("quantization_config").is_some_and(|value| !value.is_null()))
}
