//! Opening a model: what a path holds is decided here, once, by content.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

use serde::Serialize;
use squat_files::read::{self, Limit};

use crate::error::ModelError;
use crate::format::gguf::{self, GgufModel};
use crate::format::llama2c::{self, Llama2cModel};
use crate::generation::GenerationConfig;
use crate::hf::{CONFIG, ModelFolder, open_config};
use crate::json::{optional_bool, read_object};
use crate::packed::{Output, PackReport, PackSource, PackedModel, pack, schema};
use crate::plan::QuantPlan;
use crate::spec::{ModelSpec, ParamInfo};
use crate::tensors::TensorSource;
use crate::tokenizer::Tokenizer;
use crate::tokenizer_files::TokenizerFiles;

/// The kind of model that a path holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ModelKind {
    /// Full precision, no plan: a Hugging Face folder, a GGUF file or a llama2.c checkpoint.
    FullPrecision,
    /// Full-precision weights with a plan: a quantization-aware training checkpoint.
    Checkpoint,
    /// Integers on disk.
    Packed,
}

/// Bytes of a file that are enough to tell what it is.
const HEAD: u64 = 64;

/// A model of any kind, opened: configuration read, weights mapped, shapes checked. Each file is opened once.
#[derive(Debug)]
pub struct OpenedModel {
    path: PathBuf,
    files: Files,
}

#[derive(Debug)]
enum Files {
    /// Low-bit tensors of a GGUF file are widened when they are read.
    Gguf(GgufModel),
    Llama2c(Llama2cModel),
    /// Full precision, or a checkpoint.
    Folder(ModelFolder),
    Packed(PackedModel),
}

/// Opens whatever model a path holds: a Hugging Face folder (also one of the hub's cache), a packed folder, a training
/// run, one of its stages or checkpoints, a GGUF file with its parts (or a folder that holds just one), a llama2.c
/// checkpoint.
///
/// # Errors
/// A path that does not exist or does not hold a model (the error says what it holds instead and what to do), and as [`ModelFolder::open`],
/// [`PackedModel::open`], [`GgufModel::open`] and [`llama2c::load_checkpoint`].
pub fn open(path: impl AsRef<Path>) -> Result<OpenedModel, ModelError> {
    let path = locate(path.as_ref())?;
    if path.is_dir() {
        let config = open_config(&path)?;
        let files = match config.get(schema::KEY).is_some_and(|value| !value.is_null()) {
            true => Files::Packed(PackedModel::from_config(&path, config)?),
            false => Files::Folder(ModelFolder::from_config(&path, config)?),
        };
        return Ok(OpenedModel { path, files });
    }
    let mut file = read::open(&path)?;
    let mut head = Vec::new();
    (&mut file).take(HEAD).read_to_end(&mut head).map_err(ModelError::io("read", &path))?;
    let length = file.metadata().map_err(ModelError::io("read", &path))?.len();
    let files = if head.starts_with(gguf::MAGIC) {
        Files::Gguf(GgufModel::from_file(&path, &file)?)
    } else if llama2c::is_checkpoint(&head, length) || has_extension(&path, "bin") {
        Files::Llama2c(Llama2cModel::from_file(&path, file)?)
    } else {
        return Err(ModelError::file(&path, what_is(&path, &head)));
    };
    Ok(OpenedModel { path, files })
}

impl OpenedModel {
    /// Where the model lies: the folder or file that was opened, which may be inside the path that was given.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Features and sizes.
    pub fn spec(&self) -> &ModelSpec {
        match &self.files {
            Files::Gguf(model) => model.spec(),
            Files::Llama2c(model) => model.spec(),
            Files::Folder(model) => model.spec(),
            Files::Packed(model) => model.spec(),
        }
    }

    /// The plan of a checkpoint or a packed model.
    pub fn plan(&self) -> Option<&QuantPlan> {
        match &self.files {
            Files::Gguf(_) | Files::Llama2c(_) => None,
            Files::Folder(model) => model.plan(),
            Files::Packed(model) => Some(model.plan()),
        }
    }

    /// Defaults of text generation; special tokens are those of [`OpenedModel::spec`].
    pub fn generation(&self) -> GenerationConfig {
        match &self.files {
            Files::Gguf(model) => model.generation().clone(),
            Files::Llama2c(_) => GenerationConfig::of_spec(self.spec()),
            Files::Folder(model) => model.generation().clone(),
            Files::Packed(model) => model.generation().clone(),
        }
    }

    /// Notes for the user on how the files were read, one sentence each: if two files disagree, which one takes
    /// precedence.
    pub fn notes(&self) -> &[String] {
        match &self.files {
            Files::Gguf(model) => model.notes(),
            Files::Llama2c(_) => &[],
            Files::Folder(model) => model.notes(),
            Files::Packed(model) => model.notes(),
        }
    }

    /// What it is.
    pub fn kind(&self) -> ModelKind {
        match &self.files {
            Files::Folder(model) if model.plan().is_some() => ModelKind::Checkpoint,
            Files::Folder(_) | Files::Gguf(_) | Files::Llama2c(_) => ModelKind::FullPrecision,
            Files::Packed(_) => ModelKind::Packed,
        }
    }

    /// The integers of a packed model.
    pub fn packed(&self) -> Option<&PackedModel> {
        match &self.files {
            Files::Packed(model) => Some(model),
            _ => None,
        }
    }

    /// Every parameter as f32 under its name in [`ModelSpec::parameters`], and the quantizers of a checkpoint.
    pub fn tensors(&self) -> &(dyn TensorSource + Sync) {
        match &self.files {
            Files::Gguf(model) => model,
            Files::Llama2c(model) => model.tensors(),
            Files::Folder(model) => model,
            Files::Packed(model) => model,
        }
    }

    /// Bytes of the weight files.
    pub fn weight_bytes(&self) -> u64 {
        match &self.files {
            Files::Gguf(model) => model.file().file_bytes(),
            Files::Llama2c(model) => model.file_bytes(),
            Files::Folder(model) => model.weight_bytes(),
            Files::Packed(model) => model.weight_bytes(),
        }
    }

    /// Type and bytes of a parameter on disk.
    pub fn stored_as(&self, param: &ParamInfo) -> (String, u64) {
        let found = match &self.files {
            Files::Packed(packed) => packed.tensor(&param.name).ok().map(|tensor| {
                let bits = tensor.scheme.bits.storage_bits();
                let bytes = 4 * (tensor.words.len() + tensor.scales.len()) + 16;
                (format!("int{bits}"), bytes as u64)
            }),
            Files::Gguf(model) => model.stored_as(param).ok().map(|(name, bytes)| (name.to_owned(), bytes)),
            Files::Folder(_) | Files::Llama2c(_) => None,
        };
        found.unwrap_or_else(|| match self.tensors().info(&param.name) {
            Some((dtype, _)) => (dtype.name().to_owned(), (param.len() * dtype.size()) as u64),
            None => ("missing".to_owned(), 0),
        })
    }

    /// The model's tokenizer.
    ///
    /// # Errors
    /// None there, one of a kind that is not read here, or one with another vocabulary than the model.
    pub fn tokenizer(&self) -> Result<Tokenizer, ModelError> {
        let place = self.path.display().to_string();
        match &self.files {
            Files::Gguf(model) => {
                let files = model.tokenizer_files()?;
                let json = files.get(TokenizerFiles::NAMES[0]).ok_or_else(|| ModelError::Tokenizer {
                    place: place.clone(),
                    message: "the file contains no tokenizer: the model can be benchmarked but cannot generate text"
                        .to_owned(),
                })?;
                Tokenizer::from_json(json, &place, self.spec())
            }
            Files::Llama2c(model) => Tokenizer::open_llama2c(model.tokenizer_path()?, self.spec()),
            Files::Folder(_) | Files::Packed(_) => Tokenizer::open(&self.path, self.spec()),
        }
    }

    /// Whether the tokenizer's files say that BOS begins a text (`add_bos_token`); `None` if they say nothing.
    ///
    /// # Errors
    /// A file that cannot be read.
    pub fn adds_bos(&self) -> Result<Option<bool>, ModelError> {
        match &self.files {
            Files::Gguf(model) => {
                Ok(model.file().metadata("tokenizer.ggml.add_bos_token").and_then(gguf::Value::as_bool))
            }
            Files::Llama2c(_) => Ok(None),
            Files::Folder(_) | Files::Packed(_) => {
                let file = self.path.join(TokenizerFiles::NAMES[1]);
                if !file.exists() {
                    return Ok(None);
                }
                optional_bool(&read_object(&file)?, "add_bos_token")
                    .map_err(|error| error.inside(TokenizerFiles::NAMES[1]))
            }
        }
    }

    /// The files of the tokenizer, to be written beside another form of the model; none where the model has none.
    ///
    /// # Errors
    /// A file that cannot be read, a tokenizer in a GGUF file of a kind that is not read here.
    pub fn tokenizer_files(&self) -> Result<TokenizerFiles, ModelError> {
        match &self.files {
            Files::Gguf(model) => model.tokenizer_files(),
            Files::Llama2c(model) => model.tokenizer_files(),
            Files::Folder(_) | Files::Packed(_) => TokenizerFiles::read(&self.path),
        }
    }

    /// Compares every file of the folder with the checksums written beside them; returns how many files that are, or none
    /// where there are no checksums.
    ///
    /// # Errors
    /// The first file that was changed, truncated or removed.
    pub fn verify(&self) -> Result<Option<usize>, ModelError> {
        Ok(squat_files::sums::verify(&self.path)?.map(|sums| sums.files.len()))
    }

    /// Parameters with weights that are NaN or infinite, and the flat index of the first one. Reads every parameter that
    /// is not stored as integers.
    ///
    /// # Errors
    /// A tensor that cannot be read.
    pub fn not_finite(&self) -> Result<Vec<(String, usize)>, ModelError> {
        let mut found = Vec::new();
        for param in self.spec().parameters() {
            if self.packed().is_some_and(|packed| packed.is_packed(&param.name)) {
                continue;
            }
            let values = self.tensors().read_f32(&param.name)?;
            if let Some(index) = values.iter().position(|value| !value.is_finite()) {
                found.push((param.name.clone(), index));
            }
            self.tensors().release(&param.name);
        }
        Ok(found)
    }

    /// Packs the model into `out`, by `plan` or, without one, by the checkpoint's own.
    ///
    /// # Errors
    /// A model that is packed already, no plan at all, and as [`crate::pack`].
    pub fn pack(&self, plan: Option<&QuantPlan>, out: impl Into<Output>) -> Result<PackReport, ModelError> {
        match &self.files {
            Files::Folder(model) => return model.pack(plan, out),
            Files::Packed(_) => {
                return Err(ModelError::folder(
                    &self.path,
                    "expected weights in full precision, got a packed model; give the one it was packed from",
                ));
            }
            Files::Gguf(_) | Files::Llama2c(_) => {}
        }
        let plan = plan.ok_or_else(|| {
            ModelError::file(&self.path, "the model has no quantization plan; give one, such as w4a8")
        })?;
        let (tokenizer, generation) = (self.tokenizer_files()?, self.generation());
        let source = PackSource {
            spec: self.spec(),
            plan,
            tensors: self.tensors(),
            tokenizer: &tokenizer,
            generation: Some(&generation),
        };
        pack(&source, out)
    }
}

/// The folder or file that a path means: itself, the snapshot of a folder of the hub's cache, the best (else last)
/// checkpoint of a stage or of the last stage of a run, the only GGUF file of a folder.
///
/// # Errors
/// A path that does not exist, is neither a folder nor a regular file, or holds nothing of the kind.
pub fn locate(path: &Path) -> Result<PathBuf, ModelError> {
    if !fs::metadata(path).is_ok_and(|metadata| metadata.is_dir()) {
        read::check_regular(path)?;
        return Ok(path.to_path_buf());
    }
    let is_model = |folder: &Path| folder.join(CONFIG).exists();
    if is_model(path) {
        return Ok(path.to_path_buf());
    }
    if let Some(folder) = snapshot(path)? {
        return locate(&folder);
    }
    let stages = read::text(&path.join("recipe.toml"), Limit::Config)
        .map(|text| stage_names(&text))
        .unwrap_or_default();
    let folders = stages.iter().rev().map(|stage| path.join(stage));
    for folder in std::iter::once(path.to_path_buf()).chain(folders) {
        if let Some(found) = ["best", "last"].map(|name| folder.join(name)).into_iter().find(|f| is_model(f))
        {
            return Ok(found);
        }
    }
    if let Some(file) = only_gguf(path)? {
        return Ok(file);
    }
    // The error for a folder without config.json depends on its other contents.
    Ok(path.to_path_buf())
}

/// The snapshot of a folder `models--OWNER--NAME` of the Hugging Face cache: the one of the branch main, else the only
/// one.
fn snapshot(path: &Path) -> Result<Option<PathBuf>, ModelError> {
    let snapshots = path.join("snapshots");
    if !snapshots.is_dir() {
        return Ok(None);
    }
    if let Ok(commit) = read::text(&path.join("refs").join("main"), Limit::Config) {
        let commit = commit.trim();
        // A commit is a plain name: a path could lead out of the folder.
        if !commit.is_empty() && commit.chars().all(|c| c.is_ascii_alphanumeric()) {
            let folder = snapshots.join(commit);
            return match folder.is_dir() {
                true => Ok(Some(folder)),
                false => Err(ModelError::folder(
                    path,
                    format!("the branch main is at {commit}, which is not in snapshots; finish the download"),
                )),
            };
        }
    }
    let folders: Vec<PathBuf> = names(&snapshots)?.into_iter().map(|name| snapshots.join(name)).collect();
    match folders.as_slice() {
        [folder] => Ok(Some(folder.clone())),
        folders => Err(ModelError::folder(
            path,
            format!("{} snapshots and no refs/main; give the folder of one snapshot", folders.len()),
        )),
    }
}

/// Names of the stages in a run's `recipe.toml`, in order.
fn stage_names(recipe: &str) -> Vec<String> {
    let mut names = Vec::new();
    let mut inside = false;
    for line in recipe.lines().map(str::trim) {
        if line.starts_with('[') {
            inside = line == "[[stage]]";
        } else if let Some(("name", value)) =
            line.split_once('=').map(|(key, value)| (key.trim(), value)).filter(|_| inside)
        {
            names.extend(serde_json::from_str::<String>(value.trim()).ok());
        }
    }
    names
}

/// The GGUF file of a folder that has just one, or the first part of just one that was split.
fn only_gguf(folder: &Path) -> Result<Option<PathBuf>, ModelError> {
    let mut files: Vec<String> =
        names(folder)?.into_iter().filter(|name| has_extension(Path::new(name), "gguf")).collect();
    let is_later_part = |name: &String| match name.rsplit_once("-of-") {
        Some((stem, _)) => {
            stem.len() > 5 && stem.is_char_boundary(stem.len() - 5) && {
                let number = &stem[stem.len() - 5..];
                number != "00001" && number.bytes().all(|byte| byte.is_ascii_digit())
            }
        }
        None => false,
    };
    files.retain(|name| !is_later_part(name));
    match files.as_slice() {
        [] => Ok(None),
        [file] => Ok(Some(folder.join(file))),
        files => {
            let message = format!(
                "the folder holds {} GGUF files; give one of them: {}",
                files.len(),
                files.join(", ")
            );
            Err(ModelError::folder(folder, message))
        }
    }
}

/// Names in a folder, sorted.
fn names(folder: &Path) -> Result<Vec<String>, ModelError> {
    let mut names: Vec<String> = fs::read_dir(folder)
        .map_err(ModelError::io("read", folder))?
        .filter_map(|entry| entry.ok().map(|entry| entry.file_name().to_string_lossy().into_owned()))
        .collect();
    names.sort();
    Ok(names)
}

fn has_extension(path: &Path, extension: &str) -> bool {
    path.extension().is_some_and(|found| found.eq_ignore_ascii_case(extension))
}

/// Describes a file that is not a model, and what to do.
fn what_is(path: &Path, head: &[u8]) -> String {
    let folder = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    if let Some(message) = not_downloaded(head) {
        return message.to_owned();
    }
    if folder.join(CONFIG).is_file() {
        return format!("a file of a model; give its folder, {}", folder.display());
    }
    "expected a model: a folder with config.json and model.safetensors, a GGUF file or a llama2.c checkpoint"
        .to_owned()
}

/// Recognizes a placeholder by its first bytes.
pub(crate) fn not_downloaded(head: &[u8]) -> Option<&'static str> {
    head.starts_with(b"version https://git-lfs").then_some(
        "a placeholder of git-lfs, not the file itself; fetch it with `git lfs pull` in the folder it came from",
    )
}

/// What to do about a SentencePiece model that is not read here, without its `tokenizer.json`.
pub(crate) fn lone_sentencepiece(folder: &Path) -> String {
    format!(
        "copy tokenizer.model again, or, if it is whole, convert it: python -c \"from transformers import AutoTokenizer as T; \
         T.from_pretrained('{0}').save_pretrained('{0}')\"",
        folder.display()
    )
}

/// Describes the contents of a folder without `config.json` or weights, as the end of a message.
pub(crate) fn instead(folder: &Path) -> String {
    let names = names(folder).unwrap_or_default();
    let has = |wanted: &str| names.iter().any(|name| name == wanted);
    if has("adapter_config.json") {
        return "; it holds a LoRA adapter: merge it into its base model first (merge_and_unload of peft, then \
                save_pretrained)"
            .to_owned();
    }
    if let Some(name) = names.iter().find(|name| name.starts_with("pytorch_model") && name.ends_with(".bin"))
    {
        return format!(
            "; it holds {name}, which can run code when it is read; convert it: python -c \"from transformers import \
             AutoModelForCausalLM as M; M.from_pretrained('{0}').save_pretrained('{0}-safetensors')\"",
            folder.display()
        );
    }
    if let Some(name) = names.iter().find(|name| has_extension(Path::new(name), "safetensors")) {
        return format!("; there is {name}");
    }
    String::new()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stages_of_a_recipe() {
        let recipe = "name = \"run\"\nseed = 1\n\n[model]\nname = \"x\"\n\n[[stage]]\nname = \"fp\"\nkind = \"pretrain\"\n\n\
                      [stage.quant]\nname = \"y\"\n\n[[stage]]\nsteps = 3\nname = \"q\\\"at\"\n";
        assert_eq!(stage_names(recipe), ["fp", "q\"at"]);
        assert!(stage_names("[[stage]]\nname = 3\n").is_empty());
    }
}
