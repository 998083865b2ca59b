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
use squat_files::write::{NewFile, OutputFolder, Replace, sweep};
use std::path::{Path, PathBuf};
use validate::{check_models, refuse_another, refuse_other_data};

/// How to run a recipe.
#[derive(Clone, Debug)]
pub struct RunOptions {
    /// Folder of the run.
    pub folder: PathBuf,
    /// Where and with whom; all processes of the group must see the same folder.
    pub execution: Execution,
    /// Without `resume`: replace a run, and whatever else has its names in the folder.
    pub force: bool,
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
    // The lock of the folder, of the process that writes, until the end.
    let mut _output = None;
    let data = if group.is_rank0() {
        let (data, output) = begin(recipe, options, report)?;
        _output = Some(output);
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
            NewFile::write(&finished, Replace::Any, fingerprint.as_bytes())?;
        }
    }
    Ok(outcome)
}

/// The work of rank 0 alone: checks, data, and the files that describe the run.
fn begin(
    recipe: &Recipe,
    options: &RunOptions,
    report: &mut dyn FnMut(RunEvent),
) -> Result<(RunData, OutputFolder), TrainError> {
    let RunOptions { folder, execution, force } = options;
    let recipe_path = folder.join("recipe.toml");
    let anew = *force && !execution.resume;
    if is_run(folder) && recipe_path.exists() && !execution.resume && !anew {
        return Err(TrainError::Recipe(format!(
            "{} holds a run already: continue it with --resume, or choose another --out",
            folder.display()
        )));
    }
    check_models(recipe, report)?;
    if !anew {
        refuse_other_data(recipe, folder, &recipe_path)?;
    }
    let stages = recipe.stages.iter().map(|stage| stage.name.as_str());
    let names: Vec<&str> = OWN_NAMES.into_iter().chain(stages).collect();
    let output = OutputFolder::claim(folder, "training run", &names, is_run, *force)?;
    let result = (|| {
        if anew {
            names.iter().try_for_each(|name| output.remove(name))?;
        }
        repair(recipe, &output, report)?;
        let data = prepare_data(recipe, folder, report)?;
        refuse_another(recipe, &data, folder)?;
        write_description(recipe, &data, &output)?;
        Ok(data)
    })();
    match result {
        Ok(data) => Ok((data, output)),
        Err(error) => {
            // A new folder whose data turned out to be unusable holds nothing that is worth keeping.
            output.abandon();
            Err(error)
        }
    }
}

/// What a run writes besides its stages.
const OWN_NAMES: [&str; 4] = ["recipe.toml", "provenance.json", "tokenizer", "data"];

/// Whether a folder is a run: it was taken for one, or, from before that was written down, describes one.
fn is_run(folder: &Path) -> bool {
    OutputFolder::is_marked(folder, "training run")
        || squat_files::read::text(&folder.join("provenance.json"), squat_files::read::Limit::Config)
            .is_ok_and(|text| text.contains("recipe_sha256"))
}

/// Removes what a killed process left, and puts checkpoints back that it had moved aside.
fn repair(
    recipe: &Recipe,
    output: &OutputFolder,
    report: &mut dyn FnMut(RunEvent),
) -> Result<(), TrainError> {
    let inner = ["tokenizer", "data", "data/generated/train", "data/generated/dev"].into_iter();
    for name in inner.chain(recipe.stages.iter().map(|stage| stage.name.as_str())) {
        for path in sweep(&output.path().join(name))? {
            report(RunEvent::Note(format!(
                "{} was missing after an interruption; its former state was put back",
                path.display()
            )));
        }
    }
    Ok(())
}

/// The resolved recipe, and where its results come from.
fn write_description(recipe: &Recipe, data: &RunData, output: &OutputFolder) -> Result<(), TrainError> {
    output.write("recipe.toml", recipe.to_toml()?.as_bytes())?;
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
    Ok(output.write("provenance.json", format!("{provenance:#}").as_bytes())?)
}
