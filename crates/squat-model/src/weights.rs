//! The weight files of a folder: one, or shards with an index.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::error::ModelError;
use crate::format::safetensors::SafetensorsFile;
use crate::json::{read_object, shown};
use crate::plan::present_quantizer_name;
use crate::rope::half_rotation;
use crate::tensors::{Dtype, TensorSource, missing};

/// Name of the weights in one file.
pub(crate) const WEIGHTS: &str = "model.safetensors";
/// Name of the list of shards.
const INDEX: &str = "model.safetensors.index.json";

/// Location of a parameter in a file whose names and shapes differ from those of a [`crate::ModelSpec`].
#[derive(Clone, Debug)]
pub(crate) struct TensorLocation {
    /// Name of the tensor.
    pub name: String,
    /// Whether the file has `[in, out]` for our `[out, in]`.
    pub transposed: bool,
    /// Which of `parts` equal parts of its outputs: several parameters can be one tensor.
    pub part: usize,
    pub parts: usize,
    /// Width of the heads whose rows are reordered from pairs of neighbours for RoPE; 0: none are.
    pub neighbours: usize,
    /// What is added to each element, and by what the sum is multiplied.
    pub change: (f32, f32),
}

impl TensorLocation {
    /// A tensor that is the parameter.
    pub(crate) fn plain(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            transposed: false,
            part: 0,
            parts: 1,
            neighbours: 0,
            change: (0.0, 1.0),
        }
    }

    /// Type and shape of the parameter; of the whole tensor, where it cannot be taken apart in this way.
    pub(crate) fn info(&self, weights: &Weights) -> Option<(Dtype, Vec<usize>)> {
        let (dtype, mut shape) = weights.info(&self.name)?;
        if self.transposed {
            shape.reverse();
        }
        if let Some(out) = shape.first_mut().filter(|out| out.is_multiple_of(self.parts)) {
            *out /= self.parts;
        }
        Some((dtype, shape))
    }

    /// Elements of the parameter, `[out, in]`.
    pub(crate) fn read_f32(&self, weights: &Weights) -> Result<Vec<f32>, ModelError> {
        let rows = self.info(weights).and_then(|(_, shape)| shape.first().copied()).unwrap_or(1);
        Ok(self.finished(self.read_part(weights)?, rows))
    }

    /// Elements of the parameter, which has `rows` outputs, from those of the file.
    pub(crate) fn finished(&self, mut values: Vec<f32>, rows: usize) -> Vec<f32> {
        if self.neighbours > 0 {
            values = half_rotation(&values, self.neighbours, values.len() / rows.max(1));
        }
        let (added, factor) = self.change;
        if self.change != (0.0, 1.0) {
            values.iter_mut().for_each(|x| *x = (*x + added) * factor);
        }
        values
    }

    fn read_part(&self, weights: &Weights) -> Result<Vec<f32>, ModelError> {
        let mut values = weights.read_f32(&self.name)?;
        let len = values.len() / self.parts;
        if !self.transposed {
            values.drain(..self.part * len);
            values.truncate(len);
            return Ok(values);
        }
        let inputs =
            weights.info(&self.name).and_then(|(_, shape)| shape.first().copied()).unwrap_or(1).max(1);
        let (outputs, width) = (len / inputs, values.len() / inputs);
        let column = |out| values.iter().skip(self.part * outputs + out).step_by(width).copied();
        Ok((0..outputs).flat_map(column).collect())
    }
}

/// Mapped weight files, and which holds which tensor.
#[derive(Debug)]
pub(crate) struct Weights {
    folder: PathBuf,
    files: Vec<SafetensorsFile>,
    /// File of each tensor. A quantizer that the file has under a former name stands here under its present one.
    index: BTreeMap<String, usize>,
    /// Names in the files where they differ from those of `index`.
    former: BTreeMap<String, String>,
}

impl Weights {
    /// Opens `model.safetensors`, or the shards of its index.
    pub(crate) fn open(folder: &Path) -> Result<Self, ModelError> {
        let mut weights = Self::open_files(folder)?;
        weights.rename_quantizers();
        Ok(weights)
    }

    fn open_files(folder: &Path) -> Result<Self, ModelError> {
        let mut weights = Self {
            folder: folder.to_path_buf(),
            files: Vec::new(),
            index: BTreeMap::new(),
            former: BTreeMap::new(),
        };
        let single = folder.join(WEIGHTS);
        // A dangling link is reported when the file is opened, not as a missing file.
        if fs::symlink_metadata(&single).is_ok() {
            let file = SafetensorsFile::open(&single)?;
            weights.index = file.names().map(|name| (name.to_owned(), 0)).collect();
            weights.files.push(file);
            return Ok(weights);
        }
        let path = folder.join(INDEX);
        if !path.exists() {
            return Err(ModelError::folder(
                folder,
                match crate::open::instead(folder).as_str() {
                    "" => format!("the weights are missing: expected {WEIGHTS} or {INDEX}; copy them here"),
                    instead => format!("the weights are missing: expected {WEIGHTS} or {INDEX}{instead}"),
                },
            ));
        }
        let index = read_object(&path)?;
        let map = index.get("weight_map").and_then(Value::as_object).ok_or_else(|| {
            ModelError::file(&path, "expected an object under the key weight_map; copy the file again")
        })?;
        let mut names: BTreeSet<&str> = BTreeSet::new();
        for (tensor, file) in map {
            // A shard is a plain file name: a path could lead out of the folder.
            let name = file.as_str().filter(|name| !name.contains(['/', '\\']) && *name != "..").ok_or_else(
                || {
                    ModelError::file(
                        &path,
                        format!("weight_map of \"{tensor}\": expected a file name, got {}", shown(file)),
                    )
                },
            )?;
            names.insert(name);
        }
        // The shards say what they hold: an index may promise too much, or forget some.
        for name in names {
            let file = SafetensorsFile::open(&folder.join(name))?;
            for tensor in file.names() {
                let promised = map.get(tensor).and_then(Value::as_str);
                if promised.is_none_or(|promised| promised == name) {
                    weights.index.insert(tensor.to_owned(), weights.files.len());
                }
            }
            weights.files.push(file);
        }
        Ok(weights)
    }

    /// Gives quantizers of older files their present names. A file with both keeps the old one, which is then refused as
    /// a tensor that belongs to no plan.
    fn rename_quantizers(&mut self) {
        let renamed: Vec<(String, String)> = self
            .index
            .keys()
            .filter_map(|name| present_quantizer_name(name).map(|present| (name.clone(), present)))
            .filter(|(_, present)| !self.index.contains_key(present))
            .collect();
        for (name, present) in renamed {
            if let Some(number) = self.index.remove(&name) {
                self.index.insert(present.clone(), number);
                self.former.insert(present, name);
            }
        }
    }

    /// The name that a tensor has in its file.
    fn name_in_file<'a>(&'a self, name: &'a str) -> &'a str {
        self.former.get(name).map_or(name, String::as_str)
    }

    /// The file that holds a tensor.
    pub(crate) fn file(&self, name: &str) -> Result<&SafetensorsFile, ModelError> {
        self.index.get(name).map(|&number| &self.files[number]).ok_or_else(|| missing(self, name))
    }

    /// Says that a folder has both forms of weights, of which one is read.
    pub(crate) fn note(&self) -> Option<String> {
        let both = self.folder.join(WEIGHTS).exists() && self.folder.join(INDEX).exists();
        both.then(|| format!("the folder has {WEIGHTS} and {INDEX}: the former is used, as in transformers"))
    }

    /// Bytes of all weight files together.
    pub(crate) fn file_bytes(&self) -> u64 {
        self.files.iter().filter_map(|file| fs::metadata(file.path()).ok()).map(|meta| meta.len()).sum()
    }
}

impl TensorSource for Weights {
    fn place(&self) -> String {
        self.folder.display().to_string()
    }

    fn names(&self) -> Vec<String> {
        self.index.keys().cloned().collect()
    }

    fn info(&self, name: &str) -> Option<(Dtype, Vec<usize>)> {
        let (dtype, shape) = self.files[*self.index.get(name)?].info(self.name_in_file(name))?;
        Some((dtype, shape.to_vec()))
    }

    fn read_f32(&self, name: &str) -> Result<Vec<f32>, ModelError> {
        self.file(name)?.read_f32(self.name_in_file(name))
    }

    fn read_i32(&self, name: &str) -> Result<Vec<i32>, ModelError> {
        self.file(name)?.read_i32(self.name_in_file(name))
    }

    fn unknown_type(&self, name: &str) -> Option<String> {
        let file = &self.files[*self.index.get(name)?];
        let name = self.name_in_file(name);
        file.type_name(name).filter(|_| file.info(name).is_none()).map(str::to_owned)
    }

    fn release(&self, name: &str) {
        if let Ok(file) = self.file(name) {
            file.release(self.name_in_file(name));
        }
    }
}
