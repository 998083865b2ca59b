//! Reads plain or gzipped text.

use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom};
use std::path::Path;

use flate2::read::MultiGzDecoder;

use crate::error::EvalError;

/// First bytes of every gzip stream.
pub(crate) const GZIP_MAGIC: [u8; 2] = [0x1f, 0x8b];

/// A reader of a file, decompressed if its first two bytes are those of gzip, whatever its name.
pub(crate) fn open(path: &Path) -> io::Result<Box<dyn Read>> {
    let mut file = File::open(path)?;
    let mut magic = Vec::with_capacity(GZIP_MAGIC.len());
    (&mut file).take(GZIP_MAGIC.len() as u64).read_to_end(&mut magic)?;
    file.seek(SeekFrom::Start(0))?;
    let reader = BufReader::new(file);
    Ok(if magic == GZIP_MAGIC { Box::new(MultiGzDecoder::new(reader)) } else { Box::new(reader) })
}

/// Text of a plain or gzipped UTF-8 file, without a byte order mark.
pub(crate) fn read_text(path: &Path) -> Result<String, EvalError> {
    let mut bytes = Vec::new();
    open(path)
        .and_then(|mut reader| reader.read_to_end(&mut bytes))
        .map_err(|source| EvalError::io("read", path, source))?;
    into_text(bytes, &path.to_string_lossy())
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
