//! Safetensors files: reading by mmap, writing as a stream.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use half::{bf16, f16};
use safetensors::SafeTensors;
use serde_json::{Map, Value, json};
use squat_files::read;
use squat_files::write::{NewFile, Replace};

use crate::error::{ModelError, nearest_names};
use crate::tensors::Dtype;

/// Bytes of the length field that begins a file.
const LENGTH_FIELD: usize = 8;

/// Bytes that a writer collects before it passes them on.
const BLOCK: usize = 1 << 16;

/// Type, shape and place of a tensor in its file.
#[derive(Clone, Debug)]
struct Entry {
    dtype: String,
    known: Option<Dtype>,
    shape: Vec<usize>,
    start: usize,
    end: usize,
}

/// A safetensors file, mapped into memory.
#[derive(Debug)]
pub struct SafetensorsFile {
    path: PathBuf,
    map: read::Map,
    entries: BTreeMap<String, Entry>,
}

impl SafetensorsFile {
    /// Maps a file and checks its header: every tensor is within the file, without gaps.
    ///
    /// The file must not be changed or cut by other processes while it is mapped.
    ///
    /// # Errors
    /// No such file, or one that is truncated or corrupt.
    pub fn open(path: &Path) -> Result<Self, ModelError> {
        let map = read::map(path)?;
        let size = map.len();
        if size < LENGTH_FIELD {
            return Err(ModelError::file(
                path,
                format!(
                    "the file is truncated: expected a safetensors header, got {size} bytes; copy it again"
                ),
            ));
        }
        if let Some(message) = crate::open::not_downloaded(&map) {
            return Err(ModelError::file(path, message));
        }
        let (header, metadata) = SafeTensors::read_metadata(&map).map_err(|error| {
            ModelError::file(
                path,
                format!(
                    "the file is truncated or corrupt, or not safetensors ({error}; {size} bytes); \
                     copy or write it again"
                ),
            )
        })?;
        let base = LENGTH_FIELD + header;
        let entries = metadata
            .tensors()
            .into_iter()
            .map(|(name, info)| {
                let known = match info.dtype {
                    safetensors::Dtype::F32 => Some(Dtype::F32),
                    safetensors::Dtype::F64 => Some(Dtype::F64),
                    safetensors::Dtype::F16 => Some(Dtype::F16),
                    safetensors::Dtype::BF16 => Some(Dtype::Bf16),
                    safetensors::Dtype::I32 => Some(Dtype::I32),
                    safetensors::Dtype::I64 => Some(Dtype::I64),
                    _ => None,
                };
                let entry = Entry {
                    dtype: format!("{:?}", info.dtype),
                    known,
                    shape: info.shape.clone(),
                    start: base + info.data_offsets.0,
                    end: base + info.data_offsets.1,
                };
                (name, entry)
            })
            .collect();
        Ok(Self { path: path.to_path_buf(), map, entries })
    }

    /// The file's path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Names of the tensors, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.entries.keys().map(String::as_str)
    }

    /// Whether a tensor is there.
    pub fn contains(&self, name: &str) -> bool {
        self.entries.contains_key(name)
    }

    /// Type and shape of a tensor; none if it is missing or of a type this project does not use.
    pub fn info(&self, name: &str) -> Option<(Dtype, &[usize])> {
        let entry = self.entries.get(name)?;
        Some((entry.known?, &entry.shape))
    }

    /// Name of a tensor's type, whatever it is.
    pub fn type_name(&self, name: &str) -> Option<&str> {
        self.entries.get(name).map(|entry| entry.dtype.as_str())
    }

    /// Shape of a tensor, whatever its type.
    pub fn shape(&self, name: &str) -> Option<&[usize]> {
        self.entries.get(name).map(|entry| entry.shape.as_slice())
    }

    fn entry(&self, name: &str) -> Result<&Entry, ModelError> {
        self.entries.get(name).ok_or_else(|| ModelError::MissingTensor {
            name: name.to_owned(),
            place: self.path.display().to_string(),
            hint: nearest_names(name, self.names()),
        })
    }

    fn wrong_type(&self, name: &str, expected: &str, entry: &Entry) -> ModelError {
        ModelError::Tensor {
            name: name.to_owned(),
            place: self.path.display().to_string(),
            expected: expected.to_owned(),
            got: entry.dtype.clone(),
            hint: String::new(),
        }
    }

    /// Raw little-endian bytes of a tensor, in the mapping.
    ///
    /// # Errors
    /// No such tensor.
    pub fn bytes(&self, name: &str) -> Result<&[u8], ModelError> {
        let entry = self.entry(name)?;
        Ok(&self.map[entry.start..entry.end])
    }

    /// Lets the system take the pages of a tensor out of this process; they come back from the file when they are read
    /// again. A hint, which some systems do not know.
    pub fn release(&self, name: &str) {
        if let Some(entry) = self.entries.get(name) {
            self.map.release(entry.start..entry.end);
        }
    }

    /// Elements of a float tensor, in f32: half precision is widened, F64 is rounded to nearest.
    ///
    /// # Errors
    /// No such tensor, or not floats.
    pub fn read_f32(&self, name: &str) -> Result<Vec<f32>, ModelError> {
        let entry = self.entry(name)?;
        let bytes = &self.map[entry.start..entry.end];
        let pairs = || bytes.chunks_exact(2).map(|b| [b[0], b[1]]);
        match entry.known {
            Some(Dtype::F32) => Ok(quads(bytes).map(f32::from_le_bytes).collect()),
            Some(Dtype::F16) => Ok(pairs().map(|b| f16::from_le_bytes(b).to_f32()).collect()),
            Some(Dtype::Bf16) => Ok(pairs().map(|b| bf16::from_le_bytes(b).to_f32()).collect()),
            Some(Dtype::F64) => {
                let octet = |b: &[u8]| [b[0], b[1], b[2], b[3], b[4], b[5], b[6], b[7]];
                Ok(bytes.chunks_exact(8).map(|b| f64::from_le_bytes(octet(b)) as f32).collect())
            }
            _ => Err(self.wrong_type(name, "floats (F32, F16, BF16 or F64)", entry)),
        }
    }

    /// Elements of an I32 tensor.
    ///
    /// # Errors
    /// No such tensor, or of another type.
    pub fn read_i32(&self, name: &str) -> Result<Vec<i32>, ModelError> {
        let entry = self.entry(name)?;
        match entry.known {
            Some(Dtype::I32) => {
                Ok(quads(&self.map[entry.start..entry.end]).map(i32::from_le_bytes).collect())
            }
            _ => Err(self.wrong_type(name, "I32", entry)),
        }
    }

    /// Elements of an I64 tensor.
    ///
    /// # Errors
    /// No such tensor, or of another type.
    pub fn read_i64(&self, name: &str) -> Result<Vec<i64>, ModelError> {
        let entry = self.entry(name)?;
        if entry.known != Some(Dtype::I64) {
            return Err(self.wrong_type(name, "I64", entry));
        }
        let bytes = &self.map[entry.start..entry.end];
        Ok(bytes
            .chunks_exact(8)
            .map(|b| i64::from_le_bytes([b[0], b[1], b[2], b[3], b[4], b[5], b[6], b[7]]))
            .collect())
    }
}

fn quads(bytes: &[u8]) -> impl Iterator<Item = [u8; 4]> + '_ {
    bytes.chunks_exact(4).map(|b| [b[0], b[1], b[2], b[3]])
}

/// Name, type and shape of a tensor to be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Declaration {
    /// Name in the header.
    pub name: String,
    /// Element type.
    pub dtype: Dtype,
    /// Shape, row-major.
    pub shape: Vec<usize>,
}

impl Declaration {
    /// Bytes it will take.
    pub fn bytes(&self) -> usize {
        self.shape.iter().product::<usize>() * self.dtype.size()
    }
}

/// The tensors in the order of the file, and its header; the name of a tensor that is declared twice as an error.
fn layout(mut order: Vec<Declaration>) -> Result<(Vec<Declaration>, Vec<u8>), String> {
    order.sort_by_key(|declaration| std::cmp::Reverse(declaration.dtype.size()));
    let mut header = Map::new();
    header.insert("__metadata__".to_owned(), json!({"format": "pt"}));
    let mut offset = 0usize;
    for declaration in &order {
        let end = offset + declaration.bytes();
        let entry = json!({
            "dtype": declaration.dtype.name(), "shape": declaration.shape, "data_offsets": [offset, end],
        });
        if header.insert(declaration.name.clone(), entry).is_some() {
            return Err(declaration.name.clone());
        }
        offset = end;
    }
    let mut text = Value::Object(header).to_string().into_bytes();
    // Spaces up to a multiple of 8 keep the data aligned, as the format requires.
    text.resize(text.len().next_multiple_of(8), b' ');
    Ok((order, text))
}

/// Bytes of a file of these tensors; nothing where one is declared twice.
pub(crate) fn file_bytes(declarations: Vec<Declaration>) -> u64 {
    layout(declarations).map_or(0, |(order, text)| {
        (8 + text.len() + order.iter().map(Declaration::bytes).sum::<usize>()) as u64
    })
}

/// Writes a safetensors file tensor by tensor, so that memory holds one at a time.
///
/// Tensors are laid out by falling element size, in the order of declaration within a size, so that every tensor is
/// aligned for its type. [`Writer::order`] is the order in which they must be given.
pub struct Writer {
    path: PathBuf,
    file: NewFile,
    order: Vec<Declaration>,
    next: usize,
}

impl Writer {
    /// Begins a file of its own, which appears at `path` when it is complete.
    ///
    /// # Errors
    /// A tensor declared twice, and those of [`NewFile::create`].
    pub fn create(path: &Path, declarations: Vec<Declaration>) -> Result<Self, ModelError> {
        Self::new(NewFile::create(path, Replace::Any)?, declarations)
    }

    /// Writes the header of a file that has begun.
    ///
    /// # Errors
    /// A tensor declared twice, and the file system's.
    pub fn new(file: NewFile, declarations: Vec<Declaration>) -> Result<Self, ModelError> {
        let path = file.path().to_path_buf();
        let (order, text) = layout(declarations)
            .map_err(|name| ModelError::file(&path, format!("tensor \"{name}\" declared twice")))?;
        let mut writer = Self { path, file, order, next: 0 };
        writer.put(&(text.len() as u64).to_le_bytes())?;
        writer.put(&text)?;
        Ok(writer)
    }

    /// The tensors in the order of the file.
    pub fn order(&self) -> &[Declaration] {
        &self.order
    }

    fn put(&mut self, bytes: &[u8]) -> Result<(), ModelError> {
        Ok(self.file.put(bytes)?)
    }

    /// Writes values of N bytes each, many at a time.
    fn put_all<const N: usize>(&mut self, values: impl Iterator<Item = [u8; N]>) -> Result<(), ModelError> {
        let mut bytes = Vec::with_capacity(BLOCK + N);
        for value in values {
            bytes.extend(value);
            if bytes.len() >= BLOCK {
                self.put(&bytes)?;
                bytes.clear();
            }
        }
        self.put(&bytes)
    }

    /// The next declaration, which must have this name, type and number of elements.
    fn begin(&mut self, name: &str, dtypes: &[Dtype], len: usize) -> Result<Dtype, ModelError> {
        let declared = self.order.get(self.next);
        let fits = declared.filter(|declared| {
            declared.name == name
                && dtypes.contains(&declared.dtype)
                && declared.shape.iter().product::<usize>() == len
        });
        match fits {
            Some(declared) => {
                self.next += 1;
                Ok(declared.dtype)
            }
            None => Err(ModelError::file(
                &self.path,
                format!(
                    "expected {declared:?} as the next tensor to write, got \"{name}\" with {len} elements"
                ),
            )),
        }
    }

    /// Writes the next tensor, which is F32 or F16.
    ///
    /// # Errors
    /// Another tensor is next, a value does not fit F16, or the file system's.
    pub fn write_f32(&mut self, name: &str, values: &[f32]) -> Result<(), ModelError> {
        match self.begin(name, &[Dtype::F32, Dtype::F16], values.len())? {
            Dtype::F16 => {
                let narrow: Vec<f16> = values.iter().map(|&x| f16::from_f32(x)).collect();
                if let Some(index) =
                    narrow.iter().zip(values).position(|(h, x)| x.is_finite() && !h.is_finite())
                {
                    return Err(ModelError::Tensor {
                        name: name.to_owned(),
                        place: self.path.display().to_string(),
                        expected: "values that fit half precision".to_owned(),
                        got: format!("{} at element {index}", values[index]),
                        hint: "; write the model in f32".to_owned(),
                    });
                }
                self.put_all(narrow.iter().map(|h| h.to_le_bytes()))
            }
            _ => self.put_all(values.iter().map(|x| x.to_le_bytes())),
        }
    }

    /// Writes the next tensor, which is I32.
    ///
    /// # Errors
    /// Another tensor is next, or the file system's.
    pub fn write_i32(&mut self, name: &str, values: &[i32]) -> Result<(), ModelError> {
        self.begin(name, &[Dtype::I32], values.len())?;
        self.put_all(values.iter().map(|x| x.to_le_bytes()))
    }

    /// Writes the next tensor, which is I64.
    ///
    /// # Errors
    /// Another tensor is next, or the file system's.
    pub fn write_i64(&mut self, name: &str, values: &[i64]) -> Result<(), ModelError> {
        self.begin(name, &[Dtype::I64], values.len())?;
        self.put_all(values.iter().map(|x| x.to_le_bytes()))
    }

    /// Completes the file; every declared tensor must have been written.
    ///
    /// # Errors
    /// A tensor that was left out, or the file system's.
    pub fn finish(self) -> Result<(), ModelError> {
        Ok(self.into_file()?.finish()?.place()?)
    }

    /// The file, to be added to a folder; every declared tensor must have been written.
    ///
    /// # Errors
    /// A tensor that was left out.
    pub fn into_file(self) -> Result<NewFile, ModelError> {
        match self.order.get(self.next) {
            Some(left) => {
                Err(ModelError::file(&self.path, format!("tensor \"{}\" was never written", left.name)))
            }
            None => Ok(self.file),
        }
    }
}
