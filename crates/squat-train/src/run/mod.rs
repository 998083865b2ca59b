//! A whole recipe: data, tokenizer, every stage in order, in one resumable folder.
//!
//! ```text
//! runs/NAME/recipe.toml      the recipe with every default written out
//! runs/NAME/provenance.json  version, hashes of recipe, data and tokenizer, seed
//! runs/NAME/tokenizer/       tokenizer.json and its companions
//! runs/NAME/data/            token shards with their manifests
//! runs/NAME/STAGE/           metrics.jsonl, best/ and last/ checkpoints
//! ```

mod assemble;
mod data;
mod fingerprint;
mod validate;

pub use data::{GENERATED, RunData, prepare_data};

use crate::error::TrainError;
use crate::execution::Execution;
use crate::recipe::Recipe;
use crate::stage::{self, Event, Outcome};
use assemble::Assembly;
use data::open_data;
use fingerprint::{fingerprint, hex};
use serde_json::json;
use sha2::{Digest, Sha256};
use std::path::{Path, PathBuf};
use validate::{check_models, refuse_another, refuse_other_data};

/// How to run a recipe.
#[derive(Clone, Debug)]
pub struct RunOptions {
    /// Folder of the run.
    pub folder: PathBuf,
    /// Where and with whom; all processes of the group must see the same folder.
    pub execution: Execution,
}

/// Progress of a run.
#[derive(Clone, Debug)]
pub enum RunEvent {
    /// A step before training: a line for the log.
    Note(String),
    /// A stage begins; `skipped` when it was finished before.
    Stage {
        /// Name in the recipe.
        name: String,
        /// Position, from 1.
        index: usize,
        /// Stages in all.
        count: usize,
        /// It was finished in an earlier call.
        skipped: bool,
    },
    /// Something within the stage.
    Training(Event),
}

/// Runs every stage of a recipe that is not finished yet.
///
/// # Errors
/// Whatever data, files or training meet. A folder that holds a run already is refused without `resume`.
pub fn run_recipe(
    recipe: &Recipe,
    options: &RunOptions,
    report: &mut dyn FnMut(RunEvent),
) -> Result<Outcome, TrainError> {
    crate::memory::keep_freed();
    let outcome = run_together(recipe, options, report);
    match &outcome {
        Ok(_) => options.execution.group.barrier()?,
        Err(error) => options.execution.group.stop(&error.to_string()),
    }
    outcome
}

/// The key that all processes of a group must share, for [`crate::parallel::Group::join`].
///
/// # Errors
/// Never for a recipe that was read.
pub fn group_key(recipe: &Recipe, resume: bool) -> Result<String, TrainError> {
    let recipe = hex(&Sha256::digest(recipe.to_toml()?.as_bytes()));
    let resume = if resume { ", --resume" } else { "" };
    Ok(format!("version {}, recipe {}{resume}", env!("CARGO_PKG_VERSION"), &recipe[..12]))
}

fn run_together(
    recipe: &Recipe,
    options: &RunOptions,
    report: &mut dyn FnMut(RunEvent),
) -> Result<Outcome, TrainError> {
    let (group, folder) = (&options.execution.group, &options.folder);
    let data = if group.is_rank0() {
        let data = begin(recipe, options, report)?;
        group.broadcast(data.identities().join(" ").into_bytes())?;
        data
    } else {
        let expected = group.broadcast(Vec::new())?;
        let data = open_data(recipe, folder)?;
        if data.identities().join(" ").as_bytes() != expected {
            return Err(TrainError::Input(format!(
                "{} holds other data here than where rank 0 sees it; all processes need the same folder, on a file \
                 system that they share",
                folder.display()
            )));
        }
        data
    };
    run_stages(recipe, options, &data, report)
}

/// The stages in order, those that are finished left out.
fn run_stages(
    recipe: &Recipe,
    options: &RunOptions,
    data: &RunData,
    report: &mut dyn FnMut(RunEvent),
) -> Result<Outcome, TrainError> {
    let (group, folder) = (&options.execution.group, &options.folder);
    let mut outcome = Outcome::Finished { best: f64::NAN };
    for (index, config) in recipe.stages.iter().enumerate() {
        let finished = folder.join(&config.name).join("finished");
        let fingerprint = fingerprint(recipe, config, data.identities(), folder);
        let skipped = options.execution.resume
            && squat_files::read::text(&finished, squat_files::read::Limit::Config)
                .is_ok_and(|text| text == fingerprint);
        // Files that rank 0 has just written may show late elsewhere: it decides for all.
        let decided = group.broadcast(format!("{}{fingerprint}", u8::from(skipped)).into_bytes())?;
        let decided = String::from_utf8_lossy(&decided);
        let (skipped, fingerprint) =
            (decided.starts_with('1'), decided.get(1..).unwrap_or_default().to_owned());
        report(RunEvent::Stage {
            name: config.name.clone(),
            index: index + 1,
            count: recipe.stages.len(),
            skipped,
        });
        if skipped {
            continue;
        }
        let assembly = Assembly { recipe, config, data, options };
        let input = assembly.stage_input(fingerprint.clone())?;
        outcome = stage::train(input, &mut |event| report(RunEvent::Training(event)))?;
        if matches!(outcome, Outcome::Interrupted { .. }) {
            return Ok(outcome);
        }
        if group.is_rank0() {
            write(&finished, fingerprint.as_bytes())?;
        }
    }
    Ok(outcome)
}

/// The work of rank 0 alone: checks, data, and the files that describe the run.
fn begin(
    recipe: &Recipe,
    options: &RunOptions,
    report: &mut dyn FnMut(RunEvent),
) -> Result<RunData, TrainError> {
    let folder = &options.folder;
    let recipe_path = folder.join("recipe.toml");
    if recipe_path.exists() && !options.execution.resume {
        return Err(TrainError::Recipe(format!(
            "{} holds a run already: continue it with --resume, or choose another --out",
            folder.display()
        )));
    }
    check_models(recipe, report)?;
    refuse_other_data(recipe, folder, &recipe_path)?;
    let existed = folder.exists();
    std::fs::create_dir_all(folder).map_err(TrainError::io("cannot create", folder))?;
    let data = prepare_data(recipe, folder, report).inspect_err(|_| {
        if !existed {
            // The data turned out to be unusable: nothing that was written so far is worth keeping.
            let _ = std::fs::remove_dir_all(folder);
        }
    })?;
    refuse_another(recipe, &data, folder)?;
    write_description(recipe, &data, folder)?;
    Ok(data)
}

/// The resolved recipe, and where its results come from.
fn write_description(recipe: &Recipe, data: &RunData, folder: &Path) -> Result<(), TrainError> {
    write(&folder.join("recipe.toml"), recipe.to_toml()?.as_bytes())?;
    let provenance = json!({
        "version": env!("CARGO_PKG_VERSION"),
        "recipe_sha256": hex(&Sha256::digest(recipe.to_toml()?.as_bytes())),
        "train_identity": data.train.manifest.identity,
        "valid_identity": data.valid.manifest.identity,
        "tokenizer_sha256": data.train.manifest.tokenizer_sha256,
        "train_tokens": data.train.manifest.tokens,
        "train_words": data.train.manifest.words,
        "seed": recipe.seed,
        "kernels": squat_kernels::Kernels::detect().name(),
    });
    write(
        &folder.join("provenance.json"),
        serde_json::to_string_pretty(&provenance).unwrap_or_default().as_bytes(),
    )
}

fn write(path: &Path, bytes: &[u8]) -> Result<(), TrainError> {
    let parent = path.parent().unwrap_or(Path::new("."));
    let error = |source| TrainError::Io { action: "cannot write", path: path.to_path_buf(), source };
    let mut file = tempfile::NamedTempFile::new_in(parent).map_err(error)?;
    std::io::Write::write_all(&mut file, bytes).map_err(error)?;
    file.persist(path).map_err(|e| error(e.error))?;
    Ok(())
}
