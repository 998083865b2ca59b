//! Which kind of model a path holds.

use crate::engine::{Engine, EngineOptions};
use crate::error::Result;
use squat_model::format::llama2c;
use squat_model::{ModelFolder, PackedModel, QuantPlan};
use std::path::Path;

/// Loads a packed folder, a full-precision or training folder (run as its plan says), or a llama2.c file.
pub(crate) fn load(path: &Path, options: EngineOptions) -> Result<Engine> {
    if path.is_file() && path.extension().is_some_and(|extension| extension == "bin") {
        let (spec, tensors) = llama2c::load_checkpoint(path)?;
        return Engine::from_parts(&spec, &QuantPlan::full_precision(), &tensors, options);
    }
    if is_packed(path) {
        return Engine::from_packed(&PackedModel::open(path)?, options);
    }
    let folder = ModelFolder::open(path)?;
    let full_precision = QuantPlan::full_precision();
    Engine::from_parts(folder.spec(), folder.plan().unwrap_or(&full_precision), &folder, options)
}

/// Whether the folder's configuration says that its weights are packed. Anything unreadable is left to the reader of
/// full-precision folders, which says what is wrong.
fn is_packed(path: &Path) -> bool {
    let text = std::fs::read(path.join("config.json")).unwrap_or_default();
    serde_json::from_slice::<serde_json::Value>(&text)
        .is_ok_and(|config| config.get("quantization_config").is_some_and(|value| !value.is_null()))
}
