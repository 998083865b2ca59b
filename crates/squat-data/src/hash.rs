//! SHA-256 of bytes and files.

use crate::{DataError, Result};
use squat_files::sums::{SumsError, digest_file, hex};
use std::path::Path;

pub(crate) use squat_files::sums::sha256;

/// SHA-256 of a file, as bytes.
///
/// # Errors
/// Reading; work that was asked to stop.
pub fn file_digest(path: &Path) -> Result<[u8; 32]> {
    Ok(digest(path)?.0)
}

/// Hash, as lower-case hexadecimal, and length of a file.
pub(crate) fn sha256_file(path: &Path) -> Result<(String, u64)> {
    let (digest, length) = digest(path)?;
    Ok((hex(&digest), length))
}

fn digest(path: &Path) -> Result<([u8; 32], u64)> {
    digest_file(path).map_err(|error| match error {
        SumsError::Interrupted(stop) => stop.into(),
        SumsError::Io { path, source } => DataError::Io { action: "read", path, source },
        other => DataError::io("read", path)(std::io::Error::other(other.to_string())),
    })
}
