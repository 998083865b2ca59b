//! GGUF, the file format of llama.cpp: metadata and tensors, many of them in blocks of few bits.
//!
//! Layout (version 3, little-endian): the bytes `GGUF`, u32 version, u64 number of tensors, u64 number of metadata
//! entries; the entries (key, u32 type, value); for each tensor its name, u32 number of dimensions, u64 dimensions with
//! the fastest first, u32 type, u64 offset; then, on the next multiple of `general.alignment`, the data. Strings are a
//! u64 length and bytes. Version 2 has the same layout.
//!
//! | file | holds |
//! |---|---|
//! | [`mod@self`] | [`GgufFile`]: metadata and tensors as they stand |
//! | [`value`] | [`Value`]: metadata |
//! | [`blocks`] | [`BlockType`]: how elements are stored, and their values |
//! | [`model`] | [`GgufModel`]: a LLaMA with the names and the RoPE convention of Hugging Face |
//! | [`tokenizer`](mod@tokenizer) | the tokenizer in the metadata as `tokenizer.json` |

pub mod blocks;
pub mod model;
pub mod tokenizer;
pub mod value;

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};

use memmap2::Mmap;

use crate::error::{ModelError, nearest_names};
pub use blocks::BlockType;
pub use model::GgufModel;
use value::Cursor;
pub use value::Value;

/// First bytes of a file.
const MAGIC: &[u8] = b"GGUF";
/// Alignment of the data where the metadata names none.
const DEFAULT_ALIGNMENT: u64 = 32;
/// Most dimensions of a tensor.
const MAX_DIMENSIONS: u32 = 4;

/// Type, shape and place of a tensor.
#[derive(Clone, Debug)]
struct Entry {
    kind: u32,
    /// Slowest dimension first, as everywhere else here.
    shape: Vec<usize>,
    elements: usize,
    /// Offset from the beginning of the data.
    offset: u64,
}

/// A GGUF file, mapped into memory.
#[derive(Debug)]
pub struct GgufFile {
    path: PathBuf,
    map: Mmap,
    metadata: BTreeMap<String, Value>,
    entries: BTreeMap<String, Entry>,
    /// Where the data begin.
    data: u64,
}

/// Whether a path is a GGUF file by its name.
pub fn is_gguf(path: &Path) -> bool {
    path.is_file() && path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("gguf"))
}

impl GgufFile {
    /// Maps a file and reads its header: metadata, and tensors that all lie inside the file.
    ///
    /// The file must not be changed or cut by other processes while it is mapped.
    ///
    /// # Errors
    /// No such file; one that is no GGUF of version 2 or 3, truncated or damaged.
    pub fn open(path: &Path) -> Result<Self, ModelError> {
        if !path.exists() {
            return Err(ModelError::not_found(path));
        }
        let file = File::open(path).map_err(ModelError::io("open", path))?;
        // SAFETY: the mapping is read-only; as documented, nobody may shorten the file while it is mapped.
        let map = unsafe { Mmap::map(&file) }.map_err(ModelError::io("map", path))?;
        let bad = |message: String| {
            ModelError::file(path, format!("no valid GGUF file: {message}; copy or convert it again"))
        };
        let mut cursor = Cursor::new(&map);
        let (metadata, entries) = read_header(&mut cursor).map_err(bad)?;
        let alignment = metadata.get("general.alignment").map_or(Some(DEFAULT_ALIGNMENT), Value::as_u64);
        let alignment = alignment
            .filter(|alignment| alignment.is_power_of_two())
            .ok_or_else(|| bad("general.alignment: expected a power of two".to_owned()))?;
        let data = (cursor.position() as u64)
            .checked_next_multiple_of(alignment)
            .ok_or_else(|| bad(format!("general.alignment is {alignment}")))?;
        let file = Self { path: path.to_path_buf(), map, metadata, entries, data };
        for (name, entry) in &file.entries {
            if BlockType::of_id(entry.kind).is_some() {
                file.bytes(name, entry).map_err(bad)?;
            }
        }
        Ok(file)
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Bytes of the file.
    pub fn file_bytes(&self) -> u64 {
        self.map.len() as u64
    }

    /// A metadata entry.
    pub fn metadata(&self, key: &str) -> Option<&Value> {
        self.metadata.get(key)
    }

    /// Names of the tensors, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.entries.keys().map(String::as_str)
    }

    /// Shape of a tensor, slowest dimension first.
    pub fn shape(&self, name: &str) -> Option<&[usize]> {
        self.entries.get(name).map(|entry| entry.shape.as_slice())
    }

    /// Name of a tensor's type, and the bytes it takes.
    ///
    /// # Errors
    /// No such tensor, or one of a type that is not read here.
    pub fn stored_as(&self, name: &str) -> Result<(&'static str, u64), ModelError> {
        let (entry, kind) = self.known(name)?;
        Ok((kind.name(), kind.bytes(entry.elements).unwrap_or_default() as u64))
    }

    /// Elements of a tensor as f32, row-major.
    ///
    /// # Errors
    /// No such tensor (nearest names listed), or one of a type that is not read here.
    pub fn read_f32(&self, name: &str) -> Result<Vec<f32>, ModelError> {
        let (entry, kind) = self.known(name)?;
        let bytes = self.bytes(name, entry).map_err(|message| ModelError::file(&self.path, message))?;
        let mut values = vec![0f32; entry.elements];
        kind.dequantize(bytes, &mut values);
        Ok(values)
    }

    fn known(&self, name: &str) -> Result<(&Entry, BlockType), ModelError> {
        let place = || self.path.display().to_string();
        let entry = self.entries.get(name).ok_or_else(|| ModelError::MissingTensor {
            name: name.to_owned(),
            place: place(),
            hint: nearest_names(name, self.names()),
        })?;
        let kind = BlockType::of_id(entry.kind).ok_or_else(|| ModelError::Tensor {
            name: name.to_owned(),
            place: place(),
            expected: format!("one of the types {}", BlockType::names()),
            got: format!("GGUF type number {}", entry.kind),
            hint: "; convert the model to F16 or Q8_0".to_owned(),
        })?;
        Ok((entry, kind))
    }

    /// The bytes of a tensor of a known type.
    fn bytes(&self, name: &str, entry: &Entry) -> Result<&[u8], String> {
        let kind =
            BlockType::of_id(entry.kind).ok_or_else(|| format!("type {} of \"{name}\"", entry.kind))?;
        let columns = entry.shape.last().copied().unwrap_or(1);
        let length =
            kind.bytes(entry.elements).filter(|_| columns.is_multiple_of(kind.block())).ok_or_else(|| {
                format!(
                    "tensor \"{name}\": {columns} columns are no multiple of the {} of {}",
                    kind.block(),
                    kind.name()
                )
            })?;
        let begin = self.data.checked_add(entry.offset).and_then(|begin| usize::try_from(begin).ok());
        let range = begin.and_then(|begin| Some(begin..begin.checked_add(length)?));
        range.and_then(|range| self.map.get(range)).ok_or_else(|| {
            format!(
                "the file is truncated or damaged: tensor \"{name}\" takes {length} bytes at {} of the data, the file \
                 has {} bytes",
                entry.offset,
                self.map.len()
            )
        })
    }
}

type Header = (BTreeMap<String, Value>, BTreeMap<String, Entry>);

fn read_header(cursor: &mut Cursor<'_>) -> Result<Header, String> {
    if cursor.take(MAGIC.len()).is_ok_and(|magic| magic != MAGIC) {
        return Err("the first bytes are not \"GGUF\"".to_owned());
    }
    let version = cursor.u32()?;
    if !(2..=3).contains(&version) {
        let order = if version.swap_bytes() <= 3 { " (big-endian)" } else { "" };
        return Err(format!("expected version 2 or 3, got {version}{order}"));
    }
    let (tensors, entries) = (cursor.u64()?, cursor.u64()?);
    let mut metadata = BTreeMap::new();
    for _ in 0..entries {
        let key = cursor.string()?;
        let value = cursor.value().map_err(|message| format!("metadata \"{key}\": {message}"))?;
        metadata.insert(key, value);
    }
    let mut found = BTreeMap::new();
    for _ in 0..tensors {
        let name = cursor.string()?;
        let dimensions = cursor.u32()?;
        if dimensions > MAX_DIMENSIONS {
            return Err(format!(
                "tensor \"{name}\" has {dimensions} dimensions, expected {MAX_DIMENSIONS} at most"
            ));
        }
        let mut shape = Vec::with_capacity(dimensions as usize);
        for _ in 0..dimensions {
            let size =
                usize::try_from(cursor.u64()?).map_err(|_| format!("tensor \"{name}\" is too large"))?;
            shape.insert(0, size);
        }
        let elements = shape.iter().try_fold(1usize, |product, &size| product.checked_mul(size));
        let elements = elements.ok_or_else(|| format!("tensor \"{name}\" is too large: {shape:?}"))?;
        let entry = Entry { kind: cursor.u32()?, shape, elements, offset: cursor.u64()? };
        if found.insert(name.clone(), entry).is_some() {
            return Err(format!("tensor \"{name}\" occurs twice"));
        }
    }
    Ok((metadata, found))
}
