//! SHA-256 of bytes and files, as lower-case hexadecimal.

use crate::{DataError, Result};
use sha2::{Digest, Sha256};
use std::io::Read;
use std::path::Path;

pub(crate) fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    bytes
        .iter()
        .flat_map(|b| [DIGITS[(b >> 4) as usize] as char, DIGITS[(b & 15) as usize] as char])
        .collect()
}

pub(crate) fn sha256(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

/// SHA-256 of a file, as bytes.
///
/// # Errors
/// Reading; work that was asked to stop.
pub fn file_digest(path: &Path) -> Result<[u8; 32]> {
    Ok(digest_file(path)?.0)
}

/// Hash and length of a file, read in blocks.
pub(crate) fn sha256_file(path: &Path) -> Result<(String, u64)> {
    let (digest, length) = digest_file(path)?;
    Ok((hex(&digest), length))
}

fn digest_file(path: &Path) -> Result<([u8; 32], u64)> {
    let mut file = squat_files::read::open(path)?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0u8; 1 << 18];
    let mut length = 0u64;
    loop {
        squat_files::interrupt::check()?;
        let n = file.read(&mut buffer).map_err(DataError::io("read", path))?;
        if n == 0 {
            return Ok((hasher.finalize().into(), length));
        }
        hasher.update(&buffer[..n]);
        length += n as u64;
    }
}
