//! Hugging Face folders in full precision: plain models and quantization-aware training checkpoints.
//!
//! A checkpoint is a plain folder with the plan in `config.json` (key `squat`) and extra tensors: the learned scales
//! of weights ([`crate::scales`]) and the static activation quantizers
//! ([`crate::plan::static_scale_name`], [`crate::plan::static_zero_point_name`]).
//!
//! Folders are written with the names of a [`ModelSpec`]. Those of an architecture that Hugging Face names or lays out in
//! another way (GPT-2) are read in both.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};
use squat_files::write::{FolderKind, NewFolder};

use crate::arch;
use crate::error::{ModelError, did_you_mean};
use crate::format::safetensors::{Declaration, Writer};
use crate::generation::GenerationConfig;
use crate::json::read_object;
use crate::plan::{QuantPlan, static_scale_name, static_zero_point_name};
use crate::scales::{is_scale_name, stored_scales};
use crate::spec::ModelSpec;
use crate::squat_config;
use crate::tensors::{Dtype, TensorSource, check_shape, missing, read_finite, read_shaped, wrong};
pub use crate::tokenizer_files::TokenizerFiles;
use crate::weights::{TensorLocation, WEIGHTS, Weights};

/// Name of the configuration.
pub(crate) const CONFIG: &str = "config.json";
/// Name of the generation defaults.
const GENERATION: &str = "generation_config.json";

/// Files of a model folder of this program, besides those of training states.
pub(crate) const MODEL_FILES: &[&str] = &[
    CONFIG,
    GENERATION,
    WEIGHTS,
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "tokenizer.bin",
    "trainer_state.json",
    "optimizer_state.bin",
    "quantizer_state.bin",
];

/// A model or checkpoint in full precision.
const FULL_PRECISION: FolderKind =
    FolderKind { name: "model in full precision", files: MODEL_FILES, recognize: is_checkpoint };

/// Whether a folder without checksums is a checkpoint: it has a training state, or lies in a run.
fn is_checkpoint(folder: &Path) -> bool {
    let run = folder.join("../..");
    folder.join("trainer_state.json").is_file()
        || (run.join("recipe.toml").is_file() && run.join("provenance.json").is_file())
}

/// A model folder in full precision, opened: configuration read, weights mapped, shapes checked.
#[derive(Debug)]
pub struct ModelFolder {
    path: PathBuf,
    config: Map<String, Value>,
    spec: ModelSpec,
    plan: Option<QuantPlan>,
    generation: GenerationConfig,
    weights: Weights,
    /// Location of each parameter that is not stored under its own name.
    locations: BTreeMap<String, TensorLocation>,
    notes: Vec<String>,
}

/// Path and `config.json` of a model folder, whatever its kind.
pub(crate) fn open_config(path: &Path) -> Result<Map<String, Value>, ModelError> {
    if !path.exists() {
        return Err(ModelError::not_found(path));
    }
    if !path.is_dir() {
        return Err(ModelError::folder(
            path,
            "expected a model folder with config.json and model.safetensors, got a file",
        ));
    }
    let config = path.join(CONFIG);
    if !config.exists() {
        let names: Vec<String> = fs::read_dir(path)
            .map_err(ModelError::io("read", path))?
            .filter_map(|entry| entry.ok().map(|entry| entry.file_name().to_string_lossy().into_owned()))
            .collect();
        let hint = did_you_mean(CONFIG, names.iter().map(String::as_str));
        let hint = hint + &crate::open::instead(path);
        return Err(ModelError::folder(path, format!("not a model folder: {CONFIG} is missing{hint}")));
    }
    read_object(&config)
}

/// Reads `generation_config.json`; without one, the model's special tokens are used. If both files name such tokens,
/// those of `generation_config.json` take precedence, as in transformers: they are written to the spec, and a note
/// reports it.
pub(crate) fn open_generation(
    path: &Path,
    spec: &mut ModelSpec,
    notes: &mut Vec<String>,
) -> Result<GenerationConfig, ModelError> {
    let file = path.join(GENERATION);
    if !file.exists() {
        return Ok(GenerationConfig::of_spec(spec));
    }
    let object = read_object(&file)?;
    let mut generation = GenerationConfig::from_json(&object).map_err(|error| error.inside(GENERATION))?;
    notes.extend(GenerationConfig::unsupported(&object));
    notes.extend(generation.merge_special_tokens(spec));
    spec.validate().map_err(|error| error.inside(GENERATION))?;
    Ok(generation)
}

impl ModelFolder {
    /// Opens a folder: reads `config.json`, maps the weights, checks that every parameter exists with its shape.
    ///
    /// Elements are not read; see [`ModelFolder::check_finite`].
    ///
    /// # Errors
    /// A path that is not a model folder (nearest sibling named), a configuration that is not supported, truncated or
    /// corrupt weights, missing tensors (nearest names listed), shapes other than the configuration's, a folder that
    /// is packed.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, ModelError> {
        let path = path.as_ref();
        Self::from_config(path, open_config(path)?)
    }

    /// [`ModelFolder::open`] with the content of `config.json`.
    pub(crate) fn from_config(path: &Path, config: Map<String, Value>) -> Result<Self, ModelError> {
        let mut spec = arch::spec_of_config(&config)?;
        if config.get("quantization_config").is_some_and(|value| !value.is_null()) {
            return Err(ModelError::folder(
                path,
                "expected weights in full precision, got a packed model (quantization_config in config.json); \
                 open it as a packed model, or give the folder it was packed from",
            ));
        }
        let plan = squat_config::plan_of(&config, &spec)?;
        let mut notes = Vec::new();
        let generation = open_generation(path, &mut spec, &mut notes)?;
        let weights = Weights::open(path)?;
        notes.extend(weights.note());
        let locations = locate(&config, &spec, &weights)?;
        let mut folder =
            Self { path: path.to_path_buf(), config, spec, plan, generation, weights, locations, notes };
        folder.compare_head()?;
        for param in folder.spec.parameters() {
            check_shape(&folder, &param.name, &param.shape)?;
        }
        Ok(folder)
    }

    /// If a tied model stores a head that differs from the token table, the head is used, as in transformers 5.
    fn compare_head(&mut self) -> Result<(), ModelError> {
        let weights = &self.weights;
        if !self.spec.tie_word_embeddings || weights.info(ModelSpec::HEAD).is_none() {
            return Ok(());
        }
        let table =
            self.locations.get(ModelSpec::EMBEDDING).map_or(ModelSpec::EMBEDDING, |location| &location.name);
        let equal = weights.info(ModelSpec::HEAD) == weights.info(table)
            && weights.file(ModelSpec::HEAD)?.bytes(ModelSpec::HEAD)? == weights.file(table)?.bytes(table)?;
        weights.release(ModelSpec::HEAD);
        weights.release(table);
        if !equal {
            self.spec.tie_word_embeddings = false;
            self.locations = locate(&self.config, &self.spec, &self.weights)?;
            self.notes.push(format!(
                "config.json says tie_word_embeddings, but {} differs from the token table: the stored head is used",
                ModelSpec::HEAD
            ));
        }
        Ok(())
    }

    /// Notes for the user on how the files were read, one sentence each.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// `config.json`, unmodified.
    pub fn config(&self) -> &Map<String, Value> {
        &self.config
    }

    /// Sizes.
    pub fn spec(&self) -> &ModelSpec {
        &self.spec
    }

    /// The plan of a quantization-aware training checkpoint; none for a plain model.
    pub fn plan(&self) -> Option<&QuantPlan> {
        self.plan.as_ref()
    }

    /// Defaults of text generation.
    pub fn generation(&self) -> &GenerationConfig {
        &self.generation
    }

    /// Bytes of the weight files.
    pub fn weight_bytes(&self) -> u64 {
        self.weights.file_bytes()
    }

    /// A parameter of the model, widened to f32, its shape checked against the configuration.
    ///
    /// # Errors
    /// No such parameter (nearest names listed).
    pub fn tensor_f32(&self, name: &str) -> Result<Vec<f32>, ModelError> {
        match self.spec.parameters().iter().find(|param| param.name == name) {
            Some(param) => read_shaped(self, name, &param.shape),
            // Learned scales and other extra tensors have no shape in the configuration.
            None => self.read_f32(name),
        }
    }

    /// Reads every parameter and extra float tensor and looks for NaN and infinities; one tensor in memory at a time.
    ///
    /// # Errors
    /// The first such element, with tensor and index.
    pub fn check_finite(&self) -> Result<(), ModelError> {
        for name in self.names() {
            if let Some((dtype, shape)) = self.info(&name)
                && dtype.is_float()
            {
                read_finite(self, &name, &shape)?;
            }
        }
        Ok(())
    }

    /// Tokenizer files of the folder, to be written next to another form of the model.
    ///
    /// # Errors
    /// A file that cannot be read.
    pub fn tokenizer_files(&self) -> Result<TokenizerFiles, ModelError> {
        TokenizerFiles::read(&self.path)
    }
}

impl TensorSource for ModelFolder {
    fn place(&self) -> String {
        self.weights.place()
    }

    /// Of the parameters alone, where the file has other names for them.
    fn names(&self) -> Vec<String> {
        match self.locations.is_empty() {
            true => self.weights.names(),
            false => self.locations.keys().cloned().collect(),
        }
    }

    fn info(&self, name: &str) -> Option<(Dtype, Vec<usize>)> {
        match self.locations.get(name) {
            Some(location) => location.info(&self.weights),
            None => self.weights.info(name),
        }
    }

    fn read_f32(&self, name: &str) -> Result<Vec<f32>, ModelError> {
        match self.locations.get(name) {
            Some(location) => location.read_f32(&self.weights),
            None => self.weights.read_f32(name),
        }
    }

    fn read_i32(&self, name: &str) -> Result<Vec<i32>, ModelError> {
        self.weights.read_i32(name)
    }

    fn unknown_type(&self, name: &str) -> Option<String> {
        self.weights.unknown_type(self.locations.get(name).map_or(name, |location| &location.name))
    }

    fn release(&self, name: &str) {
        self.weights.release(self.locations.get(name).map_or(name, |location| &location.name));
    }
}

/// Location of each parameter in files that store them otherwise than the spec; empty if they do not.
fn locate(
    config: &Map<String, Value>,
    spec: &ModelSpec,
    weights: &Weights,
) -> Result<BTreeMap<String, TensorLocation>, ModelError> {
    let mut map = BTreeMap::new();
    let Some(stored) = arch::stored_of_config(config)? else { return Ok(map) };
    for param in spec.parameters() {
        let mut location = stored.locate(spec, &param);
        if weights.info(&location.name).is_none() {
            // Models saved without their head lack the prefix of the base model.
            if let Some(bare) = location.name.strip_prefix("transformer.") {
                location.name = bare.to_owned();
            }
            weights.info(&location.name).ok_or_else(|| missing(weights, &location.name))?;
        }
        map.insert(param.name, location);
    }
    Ok(map)
}

/// Type of the weights on disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum WeightDtype {
    /// 32-bit floats.
    #[default]
    F32,
    /// Half precision; learned scales and quantizer parameters stay F32.
    F16,
}

/// Everything that goes into a folder in full precision.
pub struct FolderContents<'a> {
    /// Sizes.
    pub spec: &'a ModelSpec,
    /// Plan of a quantization-aware training checkpoint.
    pub plan: Option<&'a QuantPlan>,
    /// Parameters, and the extra tensors of a checkpoint.
    pub tensors: &'a dyn TensorSource,
    /// Type of the parameters on disk.
    pub dtype: WeightDtype,
    /// Tokenizer to write next to the weights.
    pub tokenizer: &'a TokenizerFiles,
    /// Generation defaults; the model's special tokens where none are given.
    pub generation: Option<&'a GenerationConfig>,
    /// Further files by plain name, such as the state of an optimizer.
    pub extra_files: &'a [(String, Vec<u8>)],
}

/// Writes a folder atomically: on any failure nothing half-written remains and an existing folder is kept.
///
/// # Errors
/// An inconsistent spec or plan, missing, foreign or non-finite tensors, a `path` that may not be
/// replaced (see [`NewFolder::create`]), and the file system's.
pub fn write_folder(path: impl AsRef<Path>, contents: &FolderContents<'_>) -> Result<(), ModelError> {
    let declarations = declare(contents)?;
    let mut config = arch::config_to_write(contents.spec, contents.plan, false);
    let dtype = match contents.dtype {
        WeightDtype::F32 => "float32",
        WeightDtype::F16 => "float16",
    };
    config.insert("torch_dtype".to_owned(), Value::from(dtype));
    if let Some(plan) = contents.plan {
        config.insert(squat_config::KEY.to_owned(), squat_config::to_json(plan));
    }
    let mut folder = NewFolder::create(path.as_ref(), &FULL_PRECISION, false)?;
    write_side_files(&mut folder, &config, contents.spec, contents.tokenizer, contents.generation)?;
    for (name, bytes) in contents.extra_files {
        folder.write(name, bytes)?;
    }
    let mut writer = Writer::new(folder.file(WEIGHTS)?, declarations)?;
    for declaration in writer.order().to_vec() {
        let Declaration { name, dtype, shape } = &declaration;
        if *dtype == Dtype::I32 {
            writer.write_i32(name, &contents.tensors.read_i32(name)?)?;
        } else {
            writer.write_f32(name, &read_finite(contents.tensors, name, shape)?)?;
        }
    }
    folder.add(writer.into_file()?)?;
    Ok(folder.place()?)
}

/// `config.json`, `generation_config.json` and the tokenizer.
pub(crate) fn write_side_files(
    folder: &mut NewFolder,
    config: &Map<String, Value>,
    spec: &ModelSpec,
    tokenizer: &TokenizerFiles,
    generation: Option<&GenerationConfig>,
) -> Result<(), ModelError> {
    folder.write(CONFIG, format!("{:#}\n", Value::Object(config.clone())).as_bytes())?;
    let generation = generation.cloned().unwrap_or_else(|| GenerationConfig::of_spec(spec)).to_json();
    folder.write(GENERATION, format!("{generation:#}\n").as_bytes())?;
    tokenizer.iter().try_for_each(|(name, bytes)| Ok(folder.write(name, bytes)?))
}

/// Checks the contents and lists the tensors of the file.
fn declare(contents: &FolderContents<'_>) -> Result<Vec<Declaration>, ModelError> {
    let FolderContents { spec, plan, tensors, .. } = contents;
    spec.validate()?;
    let mut declarations = Vec::new();
    let dtype = match contents.dtype {
        WeightDtype::F32 => Dtype::F32,
        WeightDtype::F16 => Dtype::F16,
    };
    for param in spec.parameters() {
        check_shape(*tensors, &param.name, &param.shape)?;
        declarations.push(Declaration { name: param.name, dtype, shape: param.shape });
    }
    if let Some(plan) = plan {
        plan.validate(spec)?;
        declarations.extend(declare_quantizers(*tensors, spec, plan)?);
    }
    for name in tensors.names() {
        // Some exporters store the tied head or the RoPE frequencies, which follow from the rest.
        let derived = name.ends_with("rotary_emb.inv_freq")
            || (spec.tie_word_embeddings && name == ModelSpec::HEAD)
            || (plan.is_none() && is_scale_name(&name));
        if !derived && !declarations.iter().any(|declaration| declaration.name == name) {
            let hint = did_you_mean(&name, declarations.iter().map(|d| d.name.as_str()));
            let expected = "only tensors of the model and its plan";
            return Err(wrong(*tensors, &name, expected, "one that belongs to neither", &hint));
        }
    }
    Ok(declarations)
}

/// Learned weight scales, if present (all or none), and the static quantizers of the plan.
fn declare_quantizers(
    tensors: &dyn TensorSource,
    spec: &ModelSpec,
    plan: &QuantPlan,
) -> Result<Vec<Declaration>, ModelError> {
    let scales = stored_scales(tensors, spec, plan)?.into_iter();
    let mut declarations: Vec<_> =
        scales.map(|(name, shape)| Declaration { name, dtype: Dtype::F32, shape }).collect();
    declarations.extend(declare_static(tensors, spec, plan)?);
    Ok(declarations)
}

/// Whether a source has learned scales: of every quantized parameter, or of none.
pub(crate) fn has_learned_scales(
    tensors: &(impl TensorSource + ?Sized),
    spec: &ModelSpec,
    plan: &QuantPlan,
) -> Result<bool, ModelError> {
    Ok(!stored_scales(tensors, spec, plan)?.is_empty())
}

/// Declarations of the static quantizers of a plan, whose tensors must exist.
pub(crate) fn declare_static(
    tensors: &(impl TensorSource + ?Sized),
    spec: &ModelSpec,
    plan: &QuantPlan,
) -> Result<Vec<Declaration>, ModelError> {
    for (point, layer, bits) in plan.static_quantizers(spec) {
        crate::tensors::read_static_affine(tensors, point, layer, bits)?;
    }
    Ok(static_declarations(spec, plan))
}

/// Scale and zero point of every static quantizer of a plan.
pub(crate) fn static_declarations(spec: &ModelSpec, plan: &QuantPlan) -> Vec<Declaration> {
    let mut declarations = Vec::new();
    for (point, layer, bits) in plan.static_quantizers(spec) {
        let name = static_scale_name(point, layer, bits);
        declarations.push(Declaration { name, dtype: Dtype::F32, shape: vec![1] });
        let name = static_zero_point_name(point, layer, bits);
        declarations.push(Declaration { name, dtype: Dtype::I32, shape: vec![1] });
    }
    declarations
}
