//! From a checkpoint, or a plain model, to a packed folder.

use std::path::{Path, PathBuf};

use serde::Serialize;
use squat_files::write::{FolderKind, NewFolder, WriteError};
use squat_quant::calibrate::weight_scales;
use squat_quant::{Affine, Granularity, WeightBits, WeightScheme};

use super::open::PackedModel;
use super::schema;
use super::words::{pack_row, words_per_row};
use crate::arch;
use crate::error::ModelError;
use crate::format::safetensors::{Declaration, Writer, file_bytes};
use crate::generation::GenerationConfig;
use crate::hf::{
    CONFIG, MODEL_FILES, ModelFolder, declare_static, has_learned_scales, static_declarations,
    write_side_files,
};
use crate::json::read_object;
use crate::plan::{QuantPlan, describe};
use crate::scales::LearnedScales;
use crate::spec::{ModelSpec, ParamInfo};
use crate::squat_config;
use crate::tensors::{Dtype, TensorSource, check_shape, read_finite, wrong};
use crate::tokenizer_files::TokenizerFiles;
use crate::weights::WEIGHTS;

/// What is packed.
pub struct PackSource<'a> {
    /// Sizes.
    pub spec: &'a ModelSpec,
    /// Schemes; frozen.
    pub plan: &'a QuantPlan,
    /// Parameters; learned scales and static quantizers of a checkpoint.
    pub tensors: &'a dyn TensorSource,
    /// Tokenizer to write next to the weights.
    pub tokenizer: &'a TokenizerFiles,
    /// Generation defaults.
    pub generation: Option<&'a GenerationConfig>,
}

/// Where a packed model goes.
#[derive(Clone, Debug)]
pub struct Output {
    path: PathBuf,
    force: bool,
    card: Option<String>,
}

impl Output {
    /// With `force` the folder may hold files of others: those with the names of a packed model's are replaced.
    pub fn new(path: impl AsRef<Path>, force: bool) -> Self {
        Self { path: path.as_ref().to_path_buf(), force, card: None }
    }

    /// With a text about the model, `README.md`, unless the folder has one by somebody else.
    pub fn with_card(self, card: String) -> Self {
        Self { card: Some(card), ..self }
    }

    /// Learns before long work whether a packed model may and can be written there.
    ///
    /// # Errors
    /// Those that [`pack`] would return when it begins to write.
    pub fn check(&self) -> Result<(), ModelError> {
        NewFolder::create(&self.path, &PACKED, self.force)?;
        Ok(())
    }
}

/// A folder that does not exist, is empty or holds a packed model.
impl<P: AsRef<Path>> From<P> for Output {
    fn from(path: P) -> Self {
        Self::new(path, false)
    }
}

/// Name of the text about a model, as hubs show it.
const CARD: &str = "README.md";

/// A packed model. One without checksums is known by its configuration.
const PACKED: FolderKind = FolderKind {
    name: "packed model",
    files: MODEL_FILES,
    recognize: |folder| {
        read_object(&folder.join(CONFIG))
            .is_ok_and(|config| config.contains_key(schema::KEY) && config.contains_key(squat_config::KEY))
    },
};

/// What packing did to one parameter.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PackedEntry {
    /// Name of the parameter.
    pub name: String,
    /// Scheme in words.
    pub scheme: String,
    /// Whether integers are stored.
    pub quantized: bool,
    /// Bytes of the parameter in the source.
    pub bytes_before: u64,
    /// Bytes on disk: codes, scales and shape.
    pub bytes_after: u64,
    /// Root of the mean squared error of the stored weight, relative to the root mean square of the source's.
    pub relative_error: f64,
}

/// What packing did.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PackReport {
    /// Each parameter, in the order of the forward pass.
    pub entries: Vec<PackedEntry>,
    /// Whether scales were learned; otherwise weights were rounded to the nearest code of a calibrated scale.
    pub learned_scales: bool,
    /// Bytes of the parameters in the source.
    pub bytes_before: u64,
    /// Bytes of the weight file.
    pub bytes_after: u64,
}

impl ModelFolder {
    /// Packs the folder into `out`, by `plan` or, without one, by the checkpoint's own.
    ///
    /// # Errors
    /// No plan at all, and as [`pack`].
    pub fn pack(&self, plan: Option<&QuantPlan>, out: impl Into<Output>) -> Result<PackReport, ModelError> {
        let plan = plan.or(self.plan()).ok_or_else(|| {
            ModelError::folder(
                self.path(),
                "the model has no quantization plan; give one, such as w4a8, or train one with quantization",
            )
        })?;
        let stored = self.plan().map_or_else(QuantPlan::full_precision, QuantPlan::without_quantizers);
        if !plan.same_transforms(&stored) {
            return Err(ModelError::folder(
                self.path(),
                format!(
                    "expected a plan with the transforms of the stored weights ({}), got a plan with {}; a qat stage \
                     changes them",
                    stored.describe_transforms(),
                    plan.describe_transforms()
                ),
            ));
        }
        let out = out.into();
        let same = |a: &Path, b: &Path| {
            a.canonicalize().ok().zip(b.canonicalize().ok()).is_some_and(|(a, b)| a == b)
        };
        if same(self.path(), &out.path) {
            return Err(ModelError::folder(
                &out.path,
                "packing a model into its own folder would replace its full-precision weights; choose another folder",
            ));
        }
        let tokenizer = self.tokenizer_files()?;
        let generation = Some(self.generation());
        pack(&PackSource { spec: self.spec(), plan, tensors: self, tokenizer: &tokenizer, generation }, out)
    }
}

/// One step of writing: in the order of the forward pass, one parameter in memory at a time.
enum Job {
    Packed(ParamInfo, WeightScheme),
    Plain(ParamInfo),
}

/// Writes a packed folder atomically and returns what was done.
///
/// Scales are the learned ones ([`crate::scales`]); without any, each is the one of smallest squared error
/// ([`squat_quant::calibrate::weight_scales`]). Before the folder takes its place it is opened again and compared with
/// the plan.
///
/// # Errors
/// A plan that does not fit the model, is not frozen, or quantizes no weight; missing, misshaped or non-finite
/// tensors; a target that was left out; and the file system's. Nothing half-written stays.
pub fn pack(source: &PackSource<'_>, out: impl Into<Output>) -> Result<PackReport, ModelError> {
    let PackSource { spec, plan, tensors, .. } = source;
    spec.validate()?;
    plan.validate_frozen(spec)?;
    let jobs = jobs(spec, plan);
    if !jobs.iter().any(|job| matches!(job, Job::Packed(..))) {
        return Err(ModelError::config(
            "plan",
            "a scheme for weight, embedding or head",
            "full precision everywhere",
            "; there is nothing to pack",
        ));
    }
    let learned = has_learned_scales(*tensors, spec, plan)?;
    let statics = declare_static(*tensors, spec, plan)?;
    for job in &jobs {
        let (Job::Packed(param, _) | Job::Plain(param)) = job;
        check_shape(*tensors, &param.name, &param.shape)?;
    }
    let declarations = declarations(&jobs, statics.clone());
    let mut config = arch::config_to_write(spec, Some(plan), true);
    config.insert("torch_dtype".to_owned(), "float32".into());
    config.insert(schema::KEY.to_owned(), schema::quantization_config(spec, plan));
    config.insert(squat_config::KEY.to_owned(), squat_config::to_json(plan));
    let Output { path, force, card } = out.into();
    let mut folder = NewFolder::create(&path, &PACKED, force)?;
    write_side_files(&mut folder, &config, spec, source.tokenizer, source.generation)?;
    if let Some(card) = card {
        match folder.write(CARD, card.as_bytes()) {
            // Somebody's own text about the model is worth more.
            Ok(()) | Err(WriteError::Foreign { .. }) => {}
            Err(error) => return Err(error.into()),
        }
    }
    let mut writer = Writer::new(folder.file(WEIGHTS)?, declarations)?;
    // The 8-byte shapes come first in the file.
    for job in &jobs {
        if let Job::Packed(param, _) = job {
            let shape: Vec<i64> = param.shape.iter().map(|&n| n as i64).collect();
            writer.write_i64(&format!("{}.weight_shape", param.module()), &shape)?;
        }
    }
    let mut entries = Vec::with_capacity(jobs.len());
    for job in &jobs {
        squat_files::interrupt::check()?;
        entries.push(match job {
            Job::Packed(param, scheme) => write_packed(&mut writer, source, param, *scheme)?,
            Job::Plain(param) => write_plain(&mut writer, source, param)?,
        });
    }
    for declaration in &statics {
        if declaration.dtype == Dtype::I32 {
            writer.write_i32(&declaration.name, &tensors.read_i32(&declaration.name)?)?;
        } else {
            writer.write_f32(&declaration.name, &tensors.read_f32(&declaration.name)?)?;
        }
    }
    folder.add(writer.into_file()?)?;
    let written = PackedModel::open(folder.path())?;
    for param in spec.parameters() {
        let target = plan.scheme_of(&param).is_some();
        let entry = entries.iter().find(|entry: &&PackedEntry| entry.name == param.name);
        let done = entry.is_some_and(|entry| entry.quantized) && written.tensor(&param.name).is_ok();
        if target && !done {
            let message = "the written folder does not hold its codes".to_owned();
            return Err(ModelError::NotPacked { name: param.name, message });
        }
    }
    let report = PackReport {
        learned_scales: learned,
        bytes_before: entries.iter().map(|entry| entry.bytes_before).sum(),
        bytes_after: written.weight_bytes(),
        entries,
    };
    folder.place()?;
    Ok(report)
}

/// Parameters in the order of the forward pass.
fn jobs(spec: &ModelSpec, plan: &QuantPlan) -> Vec<Job> {
    let job = |param| match plan.scheme_of(&param) {
        Some(scheme) => Job::Packed(param, scheme),
        None => Job::Plain(param),
    };
    spec.parameters().into_iter().map(job).collect()
}

/// Every tensor of a packed file.
fn declarations(jobs: &[Job], statics: Vec<Declaration>) -> Vec<Declaration> {
    let mut declarations = Vec::new();
    for job in jobs {
        match job {
            Job::Packed(param, scheme) => declarations.extend(declare(param, *scheme)),
            Job::Plain(param) => declarations.push(Declaration {
                name: param.name.clone(),
                dtype: Dtype::F32,
                shape: param.shape.clone(),
            }),
        }
    }
    declarations.extend(statics);
    declarations
}

/// Bytes of the weights' file of a packed model.
pub fn packed_bytes(spec: &ModelSpec, plan: &QuantPlan) -> u64 {
    file_bytes(declarations(&jobs(spec, plan), static_declarations(spec, plan)))
}

/// Shape of `weight_scale` on disk.
pub(super) fn scale_shape(scheme: WeightScheme, rows: usize, cols: usize) -> Vec<usize> {
    match scheme.granularity {
        Granularity::PerTensor => vec![1],
        Granularity::PerChannel => vec![rows, 1],
        Granularity::PerGroup(_) => vec![rows, scheme.scales_per_row(cols)],
    }
}

/// The three tensors of a packed matrix.
fn declare(param: &ParamInfo, scheme: WeightScheme) -> [Declaration; 3] {
    let (rows, cols) = matrix(param);
    let named = |suffix: &str, dtype, shape| Declaration {
        name: format!("{}.{suffix}", param.module()),
        dtype,
        shape,
    };
    let words = words_per_row(cols, scheme.bits.storage_bits());
    [
        named("weight_packed", Dtype::I32, vec![rows, words]),
        named("weight_scale", Dtype::F32, scale_shape(scheme, rows, cols)),
        named("weight_shape", Dtype::I64, vec![2]),
    ]
}

/// Rows and columns; gains and biases count as one row.
fn matrix(param: &ParamInfo) -> (usize, usize) {
    match param.shape.as_slice() {
        &[rows, cols] => (rows, cols),
        _ => (1, param.len()),
    }
}

fn source_bytes(source: &PackSource<'_>, param: &ParamInfo) -> u64 {
    let size = source.tensors.info(&param.name).map_or(4, |(dtype, _)| dtype.size());
    (param.len() * size) as u64
}

fn write_plain(
    writer: &mut Writer,
    source: &PackSource<'_>,
    param: &ParamInfo,
) -> Result<PackedEntry, ModelError> {
    writer.write_f32(&param.name, &read_finite(source.tensors, &param.name, &param.shape)?)?;
    Ok(PackedEntry {
        name: param.name.clone(),
        scheme: describe(None),
        quantized: false,
        bytes_before: source_bytes(source, param),
        bytes_after: 4 * param.len() as u64,
        relative_error: 0.0,
    })
}

fn write_packed(
    writer: &mut Writer,
    source: &PackSource<'_>,
    param: &ParamInfo,
    scheme: WeightScheme,
) -> Result<PackedEntry, ModelError> {
    let (rows, cols) = matrix(param);
    let weight = read_finite(source.tensors, &param.name, &param.shape)?;
    let num_scales = scheme.num_scales(rows, cols);
    let scales = match LearnedScales::read(source.tensors, param, num_scales)? {
        Some(scales) => scales.into_scales(),
        None => {
            let mut scales = vec![0f32; num_scales];
            weight_scales(&weight, rows, cols, scheme, &mut scales);
            scales
        }
    };
    let bits = scheme.bits.storage_bits();
    let per_row = words_per_row(cols, bits);
    let mut words = vec![0i32; rows * per_row];
    let mut codes = vec![0i8; cols];
    let (mut squared_error, mut squared) = (0f64, 0f64);
    for (row, out) in words.chunks_exact_mut(per_row).enumerate() {
        for (col, code) in codes.iter_mut().enumerate() {
            let x = weight[row * cols + col];
            let scale = scales[scheme.scale_index(row, col, cols)];
            let affine = Affine::symmetric(scale, scheme.bits.range());
            let q = affine.quantize(x);
            *code = q as i8;
            squared_error += f64::from(affine.dequantize(q) - x).powi(2);
            squared += f64::from(x).powi(2);
        }
        pack_row(&codes, bits, out).map_err(|error| {
            wrong(source.tensors, &param.name, "codes that fit their width", &error.to_string(), "")
        })?;
    }
    let module = param.module();
    writer.write_i32(&format!("{module}.weight_packed"), &words)?;
    writer.write_f32(&format!("{module}.weight_scale"), &scales)?;
    Ok(PackedEntry {
        name: param.name.clone(),
        scheme: describe(Some(scheme)),
        quantized: true,
        bytes_before: source_bytes(source, param),
        bytes_after: declare(param, scheme).iter().map(|declaration| declaration.bytes() as u64).sum(),
        relative_error: if squared > 0.0 { (squared_error / squared).sqrt() } else { 0.0 },
    })
}

// A packed matrix's codes fit an i8 at every width.
const _: () = assert!(WeightBits::W8.range().max <= i8::MAX as i32);
