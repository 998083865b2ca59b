//! Reading a packed folder.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};
use squat_quant::{ActBits, ActPoint, Affine, WeightBits, WeightScheme};

use super::pack::scale_shape;
use super::schema;
use super::words::{unpack_row, words_per_row};
use crate::arch;
use crate::error::{ModelError, nearest_names};
use crate::generation::GenerationConfig;
use crate::hf::{declare_static, open_config, open_generation};
use crate::plan::QuantPlan;
use crate::spec::ModelSpec;
use crate::squat_config;
use crate::tensors::{
    Dtype, TensorSource, check_finite, check_scale, check_shape, missing, read_shaped, read_static_affine,
    wrong,
};
use crate::tokenizer_files::TokenizerFiles;
use crate::weights::Weights;

/// A packed folder, mapped into memory and checked.
#[derive(Debug)]
pub struct PackedModel {
    path: PathBuf,
    spec: ModelSpec,
    plan: QuantPlan,
    generation: GenerationConfig,
    weights: Weights,
    /// By name of the parameter.
    tensors: BTreeMap<String, PackedEntry>,
    notes: Vec<String>,
}

/// A packed matrix, apart from its mapped words.
#[derive(Debug)]
struct PackedEntry {
    scheme: WeightScheme,
    rows: usize,
    cols: usize,
    scales: Vec<f32>,
    /// Words of a file whose data is not aligned for i32, copied.
    copy: Option<Vec<i32>>,
}

/// A packed matrix `[rows, cols]`.
#[derive(Clone, Copy, Debug)]
pub struct PackedTensor<'a> {
    /// Name of the parameter, with `.weight`.
    pub name: &'a str,
    /// Width and granularity.
    pub scheme: WeightScheme,
    /// Output channels.
    pub rows: usize,
    /// Inputs.
    pub cols: usize,
    /// `[rows, words_per_row]`, see [`super::words`].
    pub words: &'a [i32],
    /// `[scheme.num_scales(rows, cols)]`, by [`WeightScheme::scale_index`]; positive and finite.
    pub scales: &'a [f32],
}

impl<'a> PackedTensor<'a> {
    /// 32-bit words of one row.
    pub const fn words_per_row(&self) -> usize {
        words_per_row(self.cols, self.scheme.bits.storage_bits())
    }

    /// Words of a row.
    ///
    /// # Panics
    /// When `row` is not below `rows`.
    pub fn row_words(&self, row: usize) -> &'a [i32] {
        let n = self.words_per_row();
        &self.words[row * n..(row + 1) * n]
    }

    /// Scale of an element.
    ///
    /// # Panics
    /// When the element is outside the matrix.
    pub fn scale(&self, row: usize, col: usize) -> f32 {
        self.scales[self.scheme.scale_index(row, col, self.cols)]
    }

    /// Codes of one row; `codes` has `cols` entries.
    ///
    /// # Errors
    /// A buffer of another length, a stored code outside the range of the width.
    ///
    /// # Panics
    /// When `row` is not below `rows`.
    pub fn unpack_row(&self, row: usize, codes: &mut [i8]) -> Result<(), ModelError> {
        let wrong = |expected: String, got: String| ModelError::Tensor {
            name: self.name.to_owned(),
            place: "the packed model".to_owned(),
            expected,
            got,
            hint: "; the file is damaged, pack the model again".to_owned(),
        };
        unpack_row(self.row_words(row), self.scheme.bits.storage_bits(), codes)
            .map_err(|error| wrong("a whole row of codes".to_owned(), error.to_string()))?;
        let range = self.scheme.bits.range();
        // Only ternary codes use less than their storage can hold.
        if self.scheme.bits == WeightBits::Ternary
            && let Some(col) = codes.iter().position(|&code| !range.contains(i32::from(code)))
        {
            let expected = format!("codes in {}..={}", range.min, range.max);
            return Err(wrong(expected, format!("{} at row {row}, column {col}", codes[col])));
        }
        Ok(())
    }

    /// Every code, `[rows, cols]`.
    ///
    /// # Errors
    /// A stored code outside the range of the width.
    pub fn codes(&self) -> Result<Vec<i8>, ModelError> {
        let mut codes = vec![0i8; self.rows * self.cols];
        for (row, out) in codes.chunks_exact_mut(self.cols).enumerate() {
            self.unpack_row(row, out)?;
        }
        Ok(codes)
    }

    /// The values the codes stand for, `[rows, cols]`: bit for bit the fake-quantized weight.
    ///
    /// # Errors
    /// A stored code outside the range of the width.
    pub fn dequantize(&self) -> Result<Vec<f32>, ModelError> {
        let range = self.scheme.bits.range();
        let codes = self.codes()?;
        let value = |(index, &code): (usize, &i8)| {
            let scale = self.scale(index / self.cols, index % self.cols);
            Affine::symmetric(scale, range).dequantize(i32::from(code))
        };
        Ok(codes.iter().enumerate().map(value).collect())
    }
}

impl PackedModel {
    /// Opens and checks a packed folder: configuration, plan, every tensor's shape and length, every scale.
    ///
    /// # Errors
    /// A path that is not a packed folder, a `quantization_config` of another tool or one that contradicts the plan,
    /// truncated or corrupt weights, missing tensors (nearest names listed), wrong shapes, scales that are not positive
    /// and finite.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, ModelError> {
        let path = path.as_ref();
        Self::from_config(path, open_config(path)?)
    }

    /// [`PackedModel::open`] with the content of `config.json`.
    pub(crate) fn from_config(path: &Path, config: Map<String, Value>) -> Result<Self, ModelError> {
        let mut spec = arch::spec_of_config(&config)?;
        let Some(quantization) = config.get(schema::KEY) else {
            return Err(ModelError::folder(
                path,
                "expected a packed model, got one in full precision (no quantization_config in config.json); \
                 pack it first",
            ));
        };
        let plan = squat_config::plan_of(&config, &spec)?.ok_or_else(|| {
            ModelError::folder(
                path,
                "the model was quantized by another program (config.json has no key squat); \
                 only models packed by this program can be run",
            )
        })?;
        plan.validate_frozen(&spec)?;
        schema::check(quantization, &spec, &plan)?;
        let mut notes = Vec::new();
        let generation = open_generation(path, &mut spec, &mut notes)?;
        let weights = Weights::open(path)?;
        notes.extend(weights.note());
        let mut tensors = BTreeMap::new();
        for param in spec.parameters() {
            match (plan.scheme_of(&param), param.shape.as_slice()) {
                (Some(scheme), &[rows, cols]) => {
                    let stored = read_stored(&weights, param.module(), scheme, rows, cols)?;
                    tensors.insert(param.name, stored);
                }
                _ => {
                    check_shape(&weights, &param.name, &param.shape)?;
                    // Gains and biases are small and are read at once; matrices in full precision when they are used.
                    if param.shape.len() == 1 {
                        check_finite(&weights.read_f32(&param.name)?, &param.name, || weights.place())?;
                    }
                }
            }
        }
        declare_static(&weights, &spec, &plan)?;
        Ok(Self { path: path.to_path_buf(), spec, plan, generation, weights, tensors, notes })
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Sizes.
    pub fn spec(&self) -> &ModelSpec {
        &self.spec
    }

    /// What is quantized and how; frozen.
    pub fn plan(&self) -> &QuantPlan {
        &self.plan
    }

    /// Defaults of text generation.
    pub fn generation(&self) -> &GenerationConfig {
        &self.generation
    }

    /// Notes for the user on how the files were read, one sentence each.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// Bytes of the weight files.
    pub fn weight_bytes(&self) -> u64 {
        self.weights.file_bytes()
    }

    /// Tokenizer files of the folder.
    ///
    /// # Errors
    /// A file that cannot be read.
    pub fn tokenizer_files(&self) -> Result<TokenizerFiles, ModelError> {
        TokenizerFiles::read(&self.path)
    }

    /// Whether a parameter is stored as integers.
    pub fn is_packed(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// A packed matrix by the name of its parameter, e.g. `model.layers.0.mlp.up_proj.weight`.
    ///
    /// # Errors
    /// No such parameter, or one in full precision (nearest names listed).
    pub fn tensor(&self, name: &str) -> Result<PackedTensor<'_>, ModelError> {
        let (name, stored) = self.tensors.get_key_value(name).ok_or_else(|| ModelError::MissingTensor {
            name: name.to_owned(),
            place: format!("the packed tensors of {}", self.path.display()),
            hint: nearest_names(name, self.tensors.keys().map(String::as_str)),
        })?;
        let words = match &stored.copy {
            Some(words) => Cow::Borrowed(words.as_slice()),
            None => mapped_words(&self.weights, &packed_name(module(name)))?,
        };
        let Cow::Borrowed(words) = words else {
            return Err(missing(&self.weights, name));
        };
        Ok(PackedTensor {
            name,
            scheme: stored.scheme,
            rows: stored.rows,
            cols: stored.cols,
            words,
            scales: &stored.scales,
        })
    }

    /// Codes of a packed matrix, `[rows, cols]`.
    ///
    /// # Errors
    /// As [`PackedModel::tensor`], or a stored code outside its range.
    pub fn codes(&self, name: &str) -> Result<Vec<i8>, ModelError> {
        self.tensor(name)?.codes()
    }

    /// A parameter as f32: dequantized if it is packed, else as stored.
    ///
    /// # Errors
    /// No such parameter.
    pub fn tensor_f32(&self, name: &str) -> Result<Vec<f32>, ModelError> {
        if self.is_packed(name) {
            return self.tensor(name)?.dequantize();
        }
        match self.spec.parameters().iter().find(|param| param.name == name) {
            Some(param) => {
                let values = read_shaped(&self.weights, name, &param.shape)?;
                check_finite(&values, name, || self.weights.place())?;
                Ok(values)
            }
            None => Err(missing(&self.weights, name)),
        }
    }

    /// The static quantizer of a point; `layer` is `None` for the head's input.
    ///
    /// # Errors
    /// The plan has no static quantizer there.
    pub fn static_affine(
        &self,
        point: ActPoint,
        layer: Option<usize>,
        bits: ActBits,
    ) -> Result<Affine, ModelError> {
        read_static_affine(&self.weights, point, layer, bits)
    }

    /// Reads every code and every weight in full precision, one tensor at a time.
    ///
    /// # Errors
    /// The first code outside its range, or weight that is not finite.
    pub fn check_codes(&self) -> Result<(), ModelError> {
        for param in self.spec.parameters() {
            if self.is_packed(&param.name) {
                self.codes(&param.name)?;
            } else {
                self.tensor_f32(&param.name)?;
            }
        }
        Ok(())
    }
}

impl TensorSource for PackedModel {
    fn place(&self) -> String {
        self.weights.place()
    }

    fn names(&self) -> Vec<String> {
        let mut names: Vec<String> = self.spec.parameters().into_iter().map(|param| param.name).collect();
        names.sort();
        names
    }

    /// Parameters as they are read: F32, in their own shape.
    fn info(&self, name: &str) -> Option<(Dtype, Vec<usize>)> {
        match self.tensors.get(name) {
            Some(stored) => Some((Dtype::F32, vec![stored.rows, stored.cols])),
            None => self.weights.info(name),
        }
    }

    fn read_f32(&self, name: &str) -> Result<Vec<f32>, ModelError> {
        if self.is_packed(name) { self.tensor(name)?.dequantize() } else { self.weights.read_f32(name) }
    }

    fn read_i32(&self, name: &str) -> Result<Vec<i32>, ModelError> {
        self.weights.read_i32(name)
    }

    fn release(&self, name: &str) {
        match self.tensors.contains_key(name) {
            true => self.weights.release(&packed_name(module(name))),
            false => self.weights.release(name),
        }
    }
}

fn module(name: &str) -> &str {
    name.strip_suffix(".weight").unwrap_or(name)
}

fn packed_name(module: &str) -> String {
    format!("{module}.weight_packed")
}

/// Words in the mapping, or copied where the file or the machine has another layout.
fn mapped_words<'a>(weights: &'a Weights, name: &str) -> Result<Cow<'a, [i32]>, ModelError> {
    let file = weights.file(name)?;
    match bytemuck::try_cast_slice::<u8, i32>(file.bytes(name)?) {
        Ok(words) if cfg!(target_endian = "little") => Ok(Cow::Borrowed(words)),
        _ => Ok(Cow::Owned(file.read_i32(name)?)),
    }
}

/// Checks the three tensors of a packed matrix and reads its scales.
fn read_stored(
    weights: &Weights,
    module: &str,
    scheme: WeightScheme,
    rows: usize,
    cols: usize,
) -> Result<PackedEntry, ModelError> {
    let name = packed_name(module);
    let expected = [rows, words_per_row(cols, scheme.bits.storage_bits())];
    match weights.info(&name) {
        Some((Dtype::I32, shape)) if shape == expected => {}
        Some((dtype, shape)) => {
            let expected = format!("I32 {expected:?} for {} codes", crate::plan::describe(Some(scheme)));
            let got = format!("{} {shape:?}", dtype.name());
            return Err(wrong(weights, &name, &expected, &got, "; pack the model again"));
        }
        None => return Err(missing(weights, &name)),
    }
    let copy = match mapped_words(weights, &name)? {
        Cow::Borrowed(_) => None,
        Cow::Owned(words) => Some(words),
    };
    let name = format!("{module}.weight_shape");
    let shape = weights.file(&name)?.read_i64(&name)?;
    if shape != [rows as i64, cols as i64] {
        let expected = format!("[{rows}, {cols}] as config.json says");
        return Err(wrong(weights, &name, &expected, &format!("{shape:?}"), "; pack the model again"));
    }
    let name = format!("{module}.weight_scale");
    let scales = read_shaped(weights, &name, &scale_shape(scheme, rows, cols))?;
    scales.iter().try_for_each(|&scale| check_scale(scale, &name, || weights.place()))?;
    Ok(PackedEntry { scheme, rows, cols, scales, copy })
}
