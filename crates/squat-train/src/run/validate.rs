//! Checks before anything is written.

use super::RunEvent;
use super::data::RunData;
use super::fingerprint::fingerprint;
use crate::checkpoint;
use crate::error::TrainError;
use crate::recipe::{Recipe, expand};
use std::path::Path;

/// Opens every model that the recipe names, before anything is made.
pub(super) fn check_models(recipe: &Recipe, report: &mut dyn FnMut(RunEvent)) -> Result<(), TrainError> {
    for name in recipe.stages.iter().flat_map(|stage| stage.init.iter().chain(&stage.teachers)) {
        if !recipe.stages.iter().any(|stage| &stage.name == name) {
            let model = checkpoint::open_trainable(&expand(name)?)?;
            let path = model.path().display();
            model.notes().iter().for_each(|note| report(RunEvent::Note(format!("{path}: {note}"))));
        }
    }
    Ok(())
}

/// Refuses to continue a stage that began with another recipe, before the run's own recipe is written over.
pub(super) fn refuse_another(recipe: &Recipe, data: &RunData, folder: &Path) -> Result<(), TrainError> {
    for config in &recipe.stages {
        let stage = folder.join(&config.name);
        let wanted = fingerprint(recipe, config, data.identities(), folder);
        if squat_files::read::text(&stage.join("finished"), squat_files::read::Limit::Config)
            .is_ok_and(|text| text == wanted)
        {
            continue;
        }
        if let Some(found) = checkpoint::fingerprint(&stage.join("last"))?
            && found != wanted
        {
            return Err(checkpoint::made_with_another(&stage.join("last")));
        }
        // Later stages depend on the result of this one.
        break;
    }
    Ok(())
}

/// Refuses data other than that of the stages already trained, before any of it is replaced.
pub(super) fn refuse_other_data(recipe: &Recipe, folder: &Path, held: &Path) -> Result<(), TrainError> {
    let held = squat_files::read::text(held, squat_files::read::Limit::Config)
        .ok()
        .and_then(|text| Recipe::parse_resolved(&text).ok());
    let Some(held) = held.filter(|held| held.seed != recipe.seed || held.data != recipe.data) else {
        return Ok(());
    };
    let trained =
        held.stages.iter().map(|stage| folder.join(&stage.name).join("last")).find(|last| last.exists());
    trained.map_or(Ok(()), |last| Err(checkpoint::made_with_another(&last)))
}
