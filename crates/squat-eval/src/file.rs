//! Reads plain or gzipped text.

use std::io::{BufReader, Read, Seek, SeekFrom};
use std::path::Path;

use flate2::read::MultiGzDecoder;

use squat_files::read::{self, Limit, ReadError};

use crate::error::EvalError;

/// First bytes of every gzip stream.
pub(crate) const GZIP_MAGIC: [u8; 2] = [0x1f, 0x8b];

/// A reader of a file, decompressed if its first two bytes are those of gzip, whatever its name.
pub(crate) fn open(path: &Path) -> Result<Box<dyn Read>, EvalError> {
    let mut file = read::open(path)?;
    let mut magic = Vec::with_capacity(GZIP_MAGIC.len());
    (&mut file)
        .take(GZIP_MAGIC.len() as u64)
        .read_to_end(&mut magic)
        .and_then(|_| file.seek(SeekFrom::Start(0)))
        .map_err(|source| EvalError::io("read", path, source))?;
    let reader = BufReader::new(file);
    Ok(if magic == GZIP_MAGIC { Box::new(MultiGzDecoder::new(reader)) } else { Box::new(reader) })
}

/// Text of a plain or gzipped UTF-8 file, without a byte order mark.
pub(crate) fn read_text(path: &Path) -> Result<String, EvalError> {
    let bytes = bounded(open(path)?, path)?;
    into_text(bytes, &path.to_string_lossy())
}

/// All bytes of a reader, of which a few may stand for gigabytes: as many as a text that is processed as one can have.
pub(crate) fn bounded(reader: impl Read, path: &Path) -> Result<Vec<u8>, EvalError> {
    let limit = Limit::Text.bytes();
    let mut bytes = Vec::new();
    let read = reader.take(limit + 1).read_to_end(&mut bytes);
    read.map_err(|source| EvalError::io("read", path, source))?;
    match bytes.len() as u64 > limit {
        false => Ok(bytes),
        true => Err(ReadError::TooLarge { path: path.to_path_buf(), limit }.into()),
    }
}

/// `bytes` as text, without a byte order mark; `file` is for the message.
pub(crate) fn into_text(bytes: Vec<u8>, file: &str) -> Result<String, EvalError> {
    let mut text = String::from_utf8(bytes).map_err(|error| EvalError::NotUtf8 {
        file: file.to_owned(),
        offset: error.utf8_error().valid_up_to(),
    })?;
    if text.starts_with('\u{feff}') {
        text.drain(..'\u{feff}'.len_utf8());
    }
    Ok(text)
}
