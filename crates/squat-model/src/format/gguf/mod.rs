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
//! | [`model`] | [`GgufModel`]: a model under the names and with the RoPE convention of Hugging Face |
//! | `sampling` | defaults of text generation in the metadata |
//! | `splitting` | how texts are split before byte-level BPE, by name |
//! | [`tokenizer`](mod@tokenizer) | the tokenizer in the metadata as `tokenizer.json` |

pub mod blocks;
pub mod model;
mod sampling;
mod splitting;
pub mod tokenizer;
pub mod value;

use std::collections::BTreeMap;
use std::io::Read;
use std::path::{Path, PathBuf};

use squat_files::read::{self, Map};

use crate::error::{ModelError, nearest_names};
pub use blocks::BlockType;
pub use model::GgufModel;
pub(crate) use model::Metadata;
use value::Cursor;
pub use value::Value;

/// First bytes of a file.
pub(crate) const MAGIC: &[u8] = b"GGUF";
/// Alignment of the data where the metadata names none.
const DEFAULT_ALIGNMENT: u64 = 32;
/// Most dimensions of a tensor.
const MAX_DIMENSIONS: u32 = 4;
/// Most parts of a split file.
const MAX_PARTS: u64 = 10_000;

/// Type, shape and place of a tensor.
#[derive(Clone, Debug)]
struct Entry {
    /// Index of the part that holds it.
    part: usize,
    kind: u32,
    /// Slowest dimension first, as everywhere else here.
    shape: Vec<usize>,
    elements: usize,
    /// Offset from the beginning of the part's data.
    offset: u64,
}

/// One file, mapped into memory.
#[derive(Debug)]
struct Part {
    path: PathBuf,
    map: Map,
    /// Where the data begin.
    data: u64,
}

/// A GGUF file, or all parts of one that was split, mapped into memory.
#[derive(Debug)]
pub struct GgufFile {
    path: PathBuf,
    parts: Vec<Part>,
    /// Of the first part, which has everything but tensors.
    metadata: BTreeMap<String, Value>,
    /// Of all parts.
    entries: BTreeMap<String, Entry>,
}

/// Whether a regular file begins as GGUF files do.
pub fn is_gguf(path: &Path) -> bool {
    let mut magic = [0; MAGIC.len()];
    read::open(path).is_ok_and(|mut file| file.read_exact(&mut magic).is_ok()) && magic == MAGIC
}

impl GgufFile {
    /// Maps a file and reads its header: metadata, and tensors, all within the file. The parts of a split file
    /// are opened together, whichever of them `path` names.
    ///
    /// The files must not be changed or cut by other processes while they are mapped.
    ///
    /// # Errors
    /// A missing file; one that is not GGUF version 2 or 3, truncated or damaged; a part that is missing or belongs to
    /// another model.
    pub fn open(path: &Path) -> Result<Self, ModelError> {
        Self::from_map(path, read::map(path)?)
    }

    /// [`GgufFile::open`] of a file that is mapped already.
    pub(crate) fn from_map(path: &Path, map: Map) -> Result<Self, ModelError> {
        let (part, metadata, mut entries) = read_part(path, map)?;
        let Some(split) = Split::of(path, &metadata)? else {
            return Ok(Self { path: path.to_path_buf(), parts: vec![part], metadata, entries });
        };
        let mut first = (split.number == 0).then_some(metadata);
        let mut opened = Some(part);
        let mut parts = Vec::with_capacity(split.count);
        entries.values_mut().for_each(|entry| entry.part = split.number);
        for number in 0..split.count {
            if number == split.number {
                parts.extend(opened.take());
                continue;
            }
            let sibling = split.path(number);
            if !sibling.exists() {
                let message = format!(
                    "part {} of {} of this GGUF file is missing: expected {}; put all parts into one folder",
                    number + 1,
                    split.count,
                    sibling.display()
                );
                return Err(ModelError::file(path, message));
            }
            let (part, metadata, more) = read_part(&sibling, read::map(&sibling)?)?;
            if Split::of(&sibling, &metadata)?.is_none_or(|found| found.count != split.count) {
                let message = format!("expected part {} of {} of one model", number + 1, split.count);
                return Err(ModelError::file(&sibling, message + "; copy the parts again"));
            }
            for (name, mut entry) in more {
                entry.part = number;
                if entries.insert(name.clone(), entry).is_some() {
                    let message = format!("tensor \"{name}\" occurs in two parts; copy the parts again");
                    return Err(ModelError::file(&sibling, message));
                }
            }
            if number == 0 {
                first = Some(metadata);
            }
            parts.push(part);
        }
        if let Some(expected) = split.tensors.filter(|&expected| expected != entries.len() as u64) {
            let message =
                format!("split.tensors.count promises {expected} tensors, the parts hold {}", entries.len());
            return Err(ModelError::file(path, message + "; copy the parts again"));
        }
        Ok(Self { path: path.to_path_buf(), parts, metadata: first.unwrap_or_default(), entries })
    }

    /// The file, as it was given; one of the parts of a split file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Number of files.
    pub fn num_parts(&self) -> usize {
        self.parts.len()
    }

    /// Bytes of the file, or of all parts.
    pub fn file_bytes(&self) -> u64 {
        self.parts.iter().map(|part| part.map.len() as u64).sum()
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
        let part = &self.parts[entry.part];
        let bytes = part.bytes(name, entry).map_err(|message| ModelError::file(&part.path, message))?;
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
            got: blocks::type_name(entry.kind),
            hint: "; convert the model to F16 or Q8_0".to_owned(),
        })?;
        Ok((entry, kind))
    }
}

impl Part {
    /// The bytes of a tensor of a supported type.
    fn bytes(&self, name: &str, entry: &Entry) -> Result<&[u8], String> {
        let kind =
            BlockType::of_id(entry.kind).ok_or_else(|| format!("type {} of \"{name}\"", entry.kind))?;
        let columns = entry.shape.last().copied().unwrap_or(1);
        let length =
            kind.bytes(entry.elements).filter(|_| columns.is_multiple_of(kind.block())).ok_or_else(|| {
                format!(
                    "tensor \"{name}\": {columns} columns are not a multiple of the block size {} of {}",
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

/// Which part of a split file a file is.
struct Split {
    number: usize,
    count: usize,
    /// Tensors of all parts.
    tensors: Option<u64>,
    /// Path up to the number, such as `folder/model-`.
    stem: PathBuf,
}

impl Split {
    /// Reads `split.no`, `split.count` and the number in the name; none for a file that is whole.
    fn of(path: &Path, metadata: &BTreeMap<String, Value>) -> Result<Option<Self>, ModelError> {
        let number = |key: &str| metadata.get(key).and_then(Value::as_u64);
        let count = number("split.count").unwrap_or(0);
        if count <= 1 {
            return Ok(None);
        }
        if count > MAX_PARTS {
            let message =
                format!("metadata \"split.count\": expected at most {MAX_PARTS} parts, got {count}");
            return Err(ModelError::file(path, message));
        }
        let (count, found) = (count as usize, number("split.no"));
        let wrong = |expected: String| {
            let number = found.map_or("missing".to_owned(), |number| number.to_string());
            let message =
                format!("a GGUF file split into {count} parts, split.no is {number} (from 0): {expected}");
            Err(ModelError::file(path, message))
        };
        let Some(part) = found.and_then(|found| usize::try_from(found).ok()).filter(|&part| part < count)
        else {
            return wrong(format!("expected a part from 0 to {}; copy the file again", count - 1));
        };
        let suffix = part_suffix(part, count);
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        match name.strip_suffix(&suffix) {
            Some(stem) => {
                let stem = path.with_file_name(stem);
                Ok(Some(Self { number: part, count, tensors: number("split.tensors.count"), stem }))
            }
            None => {
                wrong(format!("expected a name that ends with {suffix}; give the parts their names back"))
            }
        }
    }

    fn path(&self, number: usize) -> PathBuf {
        let mut path = self.stem.clone().into_os_string();
        path.push(part_suffix(number, self.count));
        path.into()
    }
}

/// End of the name of part `number`, from 0.
fn part_suffix(number: usize, count: usize) -> String {
    format!("-{:05}-of-{count:05}.gguf", number + 1)
}

/// Reads the header of one mapped file and checks that its tensors are within it.
fn read_part(
    path: &Path,
    map: Map,
) -> Result<(Part, BTreeMap<String, Value>, BTreeMap<String, Entry>), ModelError> {
    let bad = |message: String| {
        ModelError::file(path, format!("invalid GGUF file: {message}; copy or convert it again"))
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
    let part = Part { path: path.to_path_buf(), map, data };
    for (name, entry) in &entries {
        if BlockType::of_id(entry.kind).is_some() {
            part.bytes(name, entry).map_err(bad)?;
        }
    }
    Ok((part, metadata, entries))
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
        let entry = Entry { part: 0, kind: cursor.u32()?, shape, elements, offset: cursor.u64()? };
        if found.insert(name.clone(), entry).is_some() {
            return Err(format!("tensor \"{name}\" occurs twice"));
        }
    }
    Ok((metadata, found))
}
