//! A whole recipe: data, tokenizer, every stage in order, in one resumable folder.
//!
//! ```text
//! runs/NAME/recipe.toml      the recipe with every default written out
//! runs/NAME/provenance.json  version, hashes of recipe, data and tokenizer, seed
//! runs/NAME/tokenizer/       tokenizer.json and its companions
//! runs/NAME/data/            token shards with their manifests
//! runs/NAME/STAGE/           metrics.jsonl, best/ and last/ checkpoints
//! ```

use crate::checkpoint::{self, Loaded};
use crate::device::is_cpu;
use crate::error::TrainError;
use crate::model::{check_trainable, initial_parameters};
use crate::parallel::Group;
use crate::recipe::{MixedPrecision, Recipe, StageConfig, StageKind, expand};
use crate::stage::{self, Event, Outcome, StageData, StageInput};
use crate::step::Teacher;
use serde_json::json;
use sha2::{Digest, Sha256};
use squat_data::batch::Start;
use squat_data::shards::{PrepareOptions, Prepared, prepare};
use squat_data::tokenizer::{
    TokenizerOptions, locate as locate_tokenizer, save as save_tokenizer, train_tokenizer,
};
use squat_data::{Chunks, Corpus, Manifest, Sequential, Split, TokenShards};
use squat_model::TokenizerFiles;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

/// Word in a recipe's `data.train` that stands for the built-in English.
pub const GENERATED: &str = "generated";

/// How to run a recipe.
#[derive(Clone, Debug)]
pub struct RunOptions {
    /// Folder of the run.
    pub folder: PathBuf,
    /// Threads.
    pub threads: usize,
    /// Where forward and backward run.
    pub device: burn::tensor::Device,
    /// Continue a run that is there.
    pub resume: bool,
    /// The processes that train together; all of them must see the same folder.
    pub group: Group,
    /// Set from outside to stop after the current step.
    pub stop: Arc<AtomicBool>,
}

/// What happens in a run.
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
pub fn run(
    recipe: &Recipe,
    options: &RunOptions,
    report: &mut dyn FnMut(RunEvent),
) -> Result<Outcome, TrainError> {
    crate::memory::keep_freed();
    let outcome = run_together(recipe, options, report);
    match &outcome {
        Ok(_) => options.group.barrier()?,
        Err(error) => options.group.stop(&error.to_string()),
    }
    outcome
}

/// What all processes of a group must have in common, for [`Group::join`].
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
    let (group, folder) = (&options.group, &options.folder);
    let data = if group.leads() {
        let data = begin(recipe, options, report)?;
        group.from_leader(data.identities().into_bytes())?;
        data
    } else {
        let expected = group.from_leader(Vec::new())?;
        let data = open_data(recipe, folder)?;
        if data.identities().as_bytes() != expected {
            return Err(TrainError::Input(format!(
                "{} holds other data here than where rank 0 sees it; all processes need the same folder, on a file \
                 system that they share",
                folder.display()
            )));
        }
        data
    };
    let mut outcome = Outcome::Finished { best: f64::NAN };
    for (index, config) in recipe.stages.iter().enumerate() {
        let finished = folder.join(&config.name).join("finished");
        let fingerprint = fingerprint(recipe, config, &data, folder);
        let skipped =
            options.resume && std::fs::read_to_string(&finished).is_ok_and(|text| text == fingerprint);
        // Files that rank 0 has just written may show late elsewhere: it decides for all.
        let decided = group.from_leader(format!("{}{fingerprint}", u8::from(skipped)).into_bytes())?;
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
        let input = stage_input(recipe, config, &data, options, fingerprint.clone())?;
        outcome = stage::train(input, &mut |event| report(RunEvent::Training(event)))?;
        if matches!(outcome, Outcome::Interrupted { .. }) {
            return Ok(outcome);
        }
        if group.leads() {
            write(&finished, fingerprint.as_bytes())?;
        }
    }
    Ok(outcome)
}

/// What only the process that writes does: the checks, the data, and the run's own papers.
fn begin(
    recipe: &Recipe,
    options: &RunOptions,
    report: &mut dyn FnMut(RunEvent),
) -> Result<RunData, TrainError> {
    let folder = &options.folder;
    let recipe_path = folder.join("recipe.toml");
    if recipe_path.exists() && !options.resume {
        return Err(TrainError::Recipe(format!(
            "{} holds a run already: continue it with --resume, or choose another --out",
            folder.display()
        )));
    }
    check_models(recipe)?;
    refuse_other_data(recipe, folder, &recipe_path)?;
    let existed = folder.exists();
    std::fs::create_dir_all(folder).map_err(TrainError::io("cannot create", folder))?;
    let data = prepare_data(recipe, folder, report).inspect_err(|_| {
        if !existed {
            // Whatever was made before the data turned out to be unusable.
            let _ = std::fs::remove_dir_all(folder);
        }
    })?;
    refuse_another(recipe, &data, folder)?;
    write(&recipe_path, recipe.to_toml()?.as_bytes())?;
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
    )?;
    Ok(data)
}

/// Prepared data of a run.
pub struct RunData {
    /// Training shards.
    pub train: Prepared,
    /// Held-out shards.
    pub valid: Prepared,
    /// Tokenizer folder.
    pub tokenizer: PathBuf,
}

impl RunData {
    /// What the shards were made from.
    fn identities(&self) -> String {
        format!("{} {}", self.train.manifest.identity, self.valid.manifest.identity)
    }
}

/// Tokenizer and shards of a recipe, reused where nothing changed.
///
/// # Errors
/// Missing or empty corpora, a tokenizer that cannot be read.
pub fn prepare_data(
    recipe: &Recipe,
    folder: &Path,
    report: &mut dyn FnMut(RunEvent),
) -> Result<RunData, TrainError> {
    let config = &recipe.data;
    let data = folder.join("data");
    let open = |names: &[String], split: &str| -> Result<Corpus, TrainError> {
        if names.len() == 1 && names[0] == GENERATED {
            let text = data.join("generated");
            let words = config.generated_words as u64;
            let path = match split {
                "train" => squat_data::english::write_corpus(&text.join(split), recipe.seed, words)?,
                _ => squat_data::english::write_held_out(
                    &text.join(split),
                    recipe.seed,
                    (words / 20).max(2_000),
                )?,
            };
            return Ok(Corpus::open(&[path], &Split::All)?);
        }
        let paths = names.iter().map(|name| expand(name)).collect::<Result<Vec<_>, _>>()?;
        Ok(Corpus::open(&paths, &split.parse::<Split>()?)?)
    };
    let train = open(&config.train, "train")?;
    let valid = open(&config.valid, "dev")?;
    let tokenizer = match &config.tokenizer {
        Some(path) => expand(path)?,
        None => {
            let place = folder.join("tokenizer");
            let key = tokenizer_key(recipe, &train)?;
            let key_file = place.join("made_from.txt");
            if std::fs::read_to_string(&key_file).is_ok_and(|text| text == key)
                && locate_tokenizer(&place).is_ok()
            {
                report(RunEvent::Note(format!("tokenizer: {} (unchanged)", place.display())));
            } else {
                report(RunEvent::Note(format!("tokenizer: training, vocabulary {}", config.vocab_size)));
                let options = TokenizerOptions {
                    vocab_size: config.vocab_size,
                    max_length: recipe.model.max_position_embeddings,
                    ..TokenizerOptions::default()
                };
                let trained = train_tokenizer(&train, &options)?;
                save_tokenizer(&trained, &place, options.max_length)?;
                write(&key_file, key.as_bytes())?;
            }
            place
        }
    };
    let options = PrepareOptions::default();
    let train = prepare(&train, &tokenizer, &data.join("train"), &options)?;
    let valid = prepare(&valid, &tokenizer, &data.join("valid"), &options)?;
    // Too little text is found out here, where nothing has been trained yet.
    Chunks::new(&train.shards, recipe.data.seq_len, recipe.seed)?;
    Sequential::new(&valid.shards, recipe.data.seq_len)?;
    report(RunEvent::Note(format!(
        "data: {} words, {} tokens to train on; {} tokens held out{}",
        train.manifest.words,
        train.manifest.tokens,
        valid.manifest.tokens,
        if train.reused { " (unchanged)" } else { "" }
    )));
    Ok(RunData { train, valid, tokenizer })
}

/// What [`prepare_data`] has left, for a process that writes nothing.
fn open_data(recipe: &Recipe, folder: &Path) -> Result<RunData, TrainError> {
    let tokenizer = match &recipe.data.tokenizer {
        Some(path) => expand(path)?,
        None => folder.join("tokenizer"),
    };
    let open = |name: &str| -> Result<Prepared, TrainError> {
        let folder = folder.join("data").join(name);
        Ok(Prepared { manifest: Manifest::read(&folder)?, reused: true, shards: TokenShards::open(&folder)? })
    };
    Ok(RunData { train: open("train")?, valid: open("valid")?, tokenizer })
}

/// What a tokenizer trained here depends on.
fn tokenizer_key(recipe: &Recipe, corpus: &Corpus) -> Result<String, TrainError> {
    let mut hasher = Sha256::new();
    hasher.update(squat_data::clean::CLEANING_VERSION.to_le_bytes());
    hasher.update((recipe.data.vocab_size as u64).to_le_bytes());
    hasher.update((recipe.model.max_position_embeddings as u64).to_le_bytes());
    for file in corpus.files() {
        hasher.update(file.name.as_bytes());
        let bytes = std::fs::read(&file.path).map_err(TrainError::io("cannot read", &file.path))?;
        hasher.update(Sha256::digest(&bytes));
    }
    Ok(hex(&hasher.finalize()))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

fn write(path: &Path, bytes: &[u8]) -> Result<(), TrainError> {
    let parent = path.parent().unwrap_or(Path::new("."));
    let error = |source| TrainError::Io { action: "cannot write", path: path.to_path_buf(), source };
    let mut file = tempfile::NamedTempFile::new_in(parent).map_err(error)?;
    std::io::Write::write_all(&mut file, bytes).map_err(error)?;
    file.persist(path).map_err(|e| error(e.error))?;
    Ok(())
}

/// Hash of whatever a stage's result depends on, beside the number of threads.
fn fingerprint(recipe: &Recipe, config: &StageConfig, data: &RunData, folder: &Path) -> String {
    let mut hasher = Sha256::new();
    let mut add = |text: &str| {
        hasher.update((text.len() as u64).to_le_bytes());
        hasher.update(text.as_bytes());
    };
    let mut config = config.clone();
    // How often something is written changes nothing, nor does what is kept in memory.
    (config.save_every, config.log_every, config.activation_checkpointing) = (1, 1, false);
    // Switches that came later are left out where they are off, so that runs from before them can be resumed.
    let text = serde_json::to_string(&config).unwrap_or_default();
    let text = text.replace(",\"activation_checkpointing\":false", "");
    let text = text.replace(",\"teacher_dtype\":\"f32\"", "");
    let text = text.replace(",\"mixed_precision\":\"no\"", "");
    add(&text.replace(",\"teacher_top_k\":0", ""));
    add(&serde_json::to_string(&recipe.model).unwrap_or_default());
    add(&format!("{} {} {}", recipe.seed, recipe.data.seq_len, recipe.data.start_at_line));
    add(&data.train.manifest.identity);
    add(&data.valid.manifest.identity);
    for name in config.init.iter().chain(&config.teachers) {
        // A stage of this run stands for its own fingerprint.
        add(&std::fs::read_to_string(folder.join(name).join("finished")).unwrap_or_else(|_| name.clone()));
    }
    hex(&hasher.finalize())
}

/// Opens every model folder that the recipe names, before anything is made.
fn check_models(recipe: &Recipe) -> Result<(), TrainError> {
    for name in recipe.stages.iter().flat_map(|stage| stage.init.iter().chain(&stage.teachers)) {
        if !recipe.stages.iter().any(|stage| &stage.name == name) {
            check_trainable(
                squat_model::ModelFolder::open(squat_model::open::locate(&expand(name)?)?)?.spec(),
            )?;
        }
    }
    Ok(())
}

/// Refuses to continue a stage that began with another recipe, before the run's own recipe is written over.
fn refuse_another(recipe: &Recipe, data: &RunData, folder: &Path) -> Result<(), TrainError> {
    for config in &recipe.stages {
        let stage = folder.join(&config.name);
        let wanted = fingerprint(recipe, config, data, folder);
        if std::fs::read_to_string(stage.join("finished")).is_ok_and(|text| text == wanted) {
            continue;
        }
        if let Some(found) = checkpoint::fingerprint(&stage.join("last"))?
            && found != wanted
        {
            return Err(checkpoint::made_with_another(&stage.join("last")));
        }
        // Later stages depend on what this one will give.
        break;
    }
    Ok(())
}

/// Refuses other data than the stages of this run were trained on, before any of it is written anew.
fn refuse_other_data(recipe: &Recipe, folder: &Path, held: &Path) -> Result<(), TrainError> {
    let held = std::fs::read_to_string(held).ok().and_then(|text| Recipe::parse(&text, &[]).ok());
    let Some(held) = held.filter(|held| held.seed != recipe.seed || held.data != recipe.data) else {
        return Ok(());
    };
    let trained =
        held.stages.iter().map(|stage| folder.join(&stage.name).join("last")).find(|last| last.exists());
    trained.map_or(Ok(()), |last| Err(checkpoint::made_with_another(&last)))
}

/// The folder of a model that a stage names: an earlier stage, or a path.
fn named_model(recipe: &Recipe, run: &Path, name: &str) -> Result<PathBuf, TrainError> {
    if recipe.stages.iter().any(|stage| stage.name == name) {
        let found = checkpoint::locate_stage(run, name);
        if found.join("config.json").is_file() {
            return Ok(found);
        }
        return Err(TrainError::Recipe(format!(
            "stage `{name}` has no checkpoint yet; it must come before the stages that use it"
        )));
    }
    Ok(squat_model::open::locate(&expand(name)?)?)
}

fn stage_input<'a>(
    recipe: &Recipe,
    config: &'a StageConfig,
    data: &RunData,
    options: &RunOptions,
    fingerprint: String,
) -> Result<StageInput<'a>, TrainError> {
    let run = &options.folder;
    let vocab_size = data.train.manifest.vocab_size;
    let seq_len = recipe.data.seq_len;
    let sizes = config.model.as_ref().unwrap_or(&recipe.model);
    let mut student = match &config.init {
        Some(name) => checkpoint::load(&named_model(recipe, run, name)?)?,
        None => {
            let spec = sizes.spec(vocab_size)?;
            let parameters = initial_parameters(&spec, config.init_std, recipe.seed);
            Loaded { spec, plan: None, parameters }
        }
    };
    if student.spec.vocab_size < vocab_size {
        return Err(TrainError::Recipe(format!(
            "stage `{}`: its model has a vocabulary of {}, the tokenizer {vocab_size}; give data.tokenizer the model's \
             own tokenizer",
            config.name, student.spec.vocab_size
        )));
    }
    if student.spec.max_position_embeddings < seq_len {
        return Err(TrainError::Recipe(format!(
            "data.seq_len {seq_len} is longer than the model's max_position_embeddings {}",
            student.spec.max_position_embeddings
        )));
    }
    let device = &options.device;
    if config.mixed_precision == MixedPrecision::Bf16
        && !is_cpu(device)
        && !device.supports_dtype(burn::tensor::FloatDType::BF16)
    {
        return Err(TrainError::Recipe(format!(
            "stage `{}`: mixed_precision bf16: this device has no bf16; use mixed_precision = \"no\"",
            config.name
        )));
    }
    let mut plan = None;
    if config.kind == StageKind::Qat {
        if let Some(quant) = &config.quant {
            let mut wanted = quant.plan(seq_len, recipe.seed)?;
            if student.spec.tie_word_embeddings {
                wanted.head = wanted.embedding;
            }
            wanted.validate(&student.spec)?;
            plan = Some(wanted);
        }
        if student.plan.is_some() {
            // A quantized model starts a new quantized stage from its weights.
            let weights: Vec<_> = student.spec.parameters().into_iter().map(|info| info.name).collect();
            let mut kept = crate::Parameters::default();
            for p in student.parameters.iter().filter(|p| weights.contains(&p.name)) {
                kept.push(p.name.clone(), p.shape, p.values.clone(), p.group);
            }
            student.parameters = kept;
        }
    } else if student.plan.is_some() {
        return Err(TrainError::Recipe(format!(
            "stage `{}` trains in full precision but starts from a quantized checkpoint",
            config.name
        )));
    }
    student.plan = None;
    let mut teachers = Vec::new();
    for name in &config.teachers {
        let loaded = checkpoint::load(&named_model(recipe, run, name)?)?;
        if loaded.spec.vocab_size != student.spec.vocab_size {
            return Err(TrainError::Recipe(format!(
                "stage `{}`: teacher `{name}` has a vocabulary of {}, the student {}; they must share a tokenizer",
                config.name, loaded.spec.vocab_size, student.spec.vocab_size
            )));
        }
        let (s, t) = (&student.spec, &loaded.spec);
        if teachers.is_empty()
            && config.loss.alignment != 0.0
            && (s.num_hidden_layers, s.num_attention_heads) != (t.num_hidden_layers, t.num_attention_heads)
        {
            return Err(TrainError::Recipe(format!(
                "stage `{}`: loss.alignment compares attention maps layer by layer and head by head, but the first \
                 teacher has {} layers of {} heads and the student {} of {}",
                config.name,
                t.num_hidden_layers,
                t.num_attention_heads,
                s.num_hidden_layers,
                s.num_attention_heads
            )));
        }
        if options.group.world() > 1 {
            options.group.agree("teachers", &loaded.parameters.digest())?;
        }
        let mut teacher =
            Teacher::new(loaded, config.teacher_dtype, seq_len, &options.device, options.threads).map_err(
                |error| TrainError::Recipe(format!("stage `{}`: teacher `{name}`: {error}", config.name)),
            )?;
        teacher.model.mixed_precision = config.mixed_precision;
        teachers.push(teacher);
    }
    let start = if recipe.data.start_at_line { Start::Line } else { Start::Anywhere };
    let train = Chunks::new(&data.train.shards, seq_len, recipe.seed)?.starting(start);
    let valid = Sequential::new(&data.valid.shards, seq_len)?;
    Ok(StageInput {
        config,
        student,
        plan,
        teachers,
        data: StageData { train, valid },
        seq_len,
        tokenizer: TokenizerFiles::read(&data.tokenizer)?,
        folder: run.join(&config.name),
        fingerprint,
        // Another device does its own scheduling.
        threads: if is_cpu(&options.device) { options.threads } else { 1 },
        device: options.device.clone(),
        resume: options.resume,
        group: options.group.clone(),
        stop: options.stop.clone(),
    })
}
