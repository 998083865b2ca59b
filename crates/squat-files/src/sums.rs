//! `SHA256SUMS`: which files of a folder this program wrote, and their checksums.
//!
//! The format is that of `sha256sum`, so `sha256sum -c SHA256SUMS` checks a folder too. A comment in the first line says
//! what the folder is.

use crate::interrupt;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

/// Name of the file.
pub const SUMS: &str = "SHA256SUMS";

/// Longest such file that is read, in bytes.
const MAX_BYTES: u64 = 1 << 20;

/// Why a folder is not what was written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SumsError {
    /// A file that cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// Work that was asked to stop.
    #[error("{0}")]
    Interrupted(#[from] interrupt::Interrupted),
    /// A list that is not one.
    #[error("{}: expected lines of `sha256sum`, got {got}; write the folder again", path.display())]
    Malformed {
        /// The list.
        path: PathBuf,
        /// The line, or what is wrong with it.
        got: String,
    },
    /// A file that was changed, truncated or removed.
    #[error(
        "{}: {got} (its SHA-256 is not that of {SUMS}): the file is damaged or was changed after it was written; copy or \
         write it again, or remove {SUMS} to accept it as it is",
        path.display()
    )]
    Changed {
        /// The file.
        path: PathBuf,
        /// What was found.
        got: String,
    },
}

/// The content of a [`SUMS`] file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sums {
    /// What the folder is, such as `packed model`.
    pub kind: String,
    /// SHA-256 of each file by its name, in lower-case hexadecimal.
    pub files: BTreeMap<String, String>,
}

impl Sums {
    /// The list of a folder; none if it has no such file.
    ///
    /// # Errors
    /// A file that cannot be read, or is not such a list.
    pub fn read(folder: &Path) -> Result<Option<Self>, SumsError> {
        let path = folder.join(SUMS);
        let malformed = |got: &str| SumsError::Malformed { path: path.clone(), got: got.to_owned() };
        let mut text = String::new();
        match std::fs::metadata(&path) {
            Ok(metadata) if metadata.is_file() && metadata.len() <= MAX_BYTES => {}
            Ok(_) => return Err(malformed("no regular file of at most a megabyte")),
            // A model that is a single file has none either.
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
                return Ok(None);
            }
            Err(source) => return Err(SumsError::Io { path, source }),
        }
        match File::open(&path).and_then(|file| file.take(MAX_BYTES).read_to_string(&mut text)) {
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                return Err(malformed("bytes that are no text"));
            }
            Err(source) => return Err(SumsError::Io { path, source }),
        }
        Self::parse(&text)
            .map(Some)
            .map_err(|line| malformed(&format!("{:?}", line.chars().take(80).collect::<String>())))
    }

    /// The list in a text, or the first line that is wrong.
    fn parse(text: &str) -> Result<Self, &str> {
        let mut lines = text.lines();
        let first = lines.next().unwrap_or_default();
        let kind = first.strip_prefix("# ").and_then(|line| line.split_once(": ")).ok_or(first)?.1;
        let mut files = BTreeMap::new();
        for line in lines {
            let (sum, name) = line.split_once("  ").ok_or(line)?;
            let is_sum = sum.len() == 64 && sum.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
            // A plain name of this folder: a path could lead out of it.
            if !is_sum || !is_plain(name) || files.insert(name.to_owned(), sum.to_owned()).is_some() {
                return Err(line);
            }
        }
        Ok(Self { kind: kind.to_owned(), files })
    }

    /// The text of the file.
    pub(crate) fn to_text(&self) -> String {
        let mut text = format!("# squat {}: {}\n", env!("CARGO_PKG_VERSION"), self.kind);
        for (name, sum) in &self.files {
            text += &format!("{sum}  {name}\n");
        }
        text
    }

    /// Reads every file of `folder` that is listed; returns their number of bytes.
    ///
    /// # Errors
    /// The first one, by name, that is missing or has another checksum.
    pub fn verify(&self, folder: &Path) -> Result<u64, SumsError> {
        let mut bytes = 0;
        for (name, sum) in &self.files {
            let path = folder.join(name);
            let (digest, length) = match digest_file(&path) {
                Err(SumsError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                    return Err(SumsError::Changed { path, got: "the file is missing".to_owned() });
                }
                found => found?,
            };
            if hex(&digest) != *sum {
                return Err(SumsError::Changed {
                    path,
                    got: format!("{length} bytes that are not those written"),
                });
            }
            bytes += length;
        }
        Ok(bytes)
    }
}

/// Verifies a folder against its list, if it has one; returns the list.
///
/// # Errors
/// As [`Sums::read`] and [`Sums::verify`].
pub fn verify(folder: &Path) -> Result<Option<Sums>, SumsError> {
    let sums = Sums::read(folder)?;
    if let Some(sums) = &sums {
        sums.verify(folder)?;
    }
    Ok(sums)
}

/// Whether a name is one of a file directly in a folder.
pub(crate) fn is_plain(name: &str) -> bool {
    !name.is_empty() && !matches!(name, "." | "..") && !name.contains(['/', '\\', '\n', '\r'])
}

/// SHA-256 of bytes, in lower-case hexadecimal.
pub fn sha256(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

/// Bytes in lower-case hexadecimal.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// SHA-256 and length of a regular file, read in blocks.
///
/// # Errors
/// [`SumsError::Io`], [`SumsError::Interrupted`].
pub fn digest_file(path: &Path) -> Result<([u8; 32], u64), SumsError> {
    let failed = |source| SumsError::Io { path: path.to_path_buf(), source };
    if !std::fs::metadata(path).map_err(failed)?.is_file() {
        return Err(failed(io::Error::other("not a regular file")));
    }
    let mut file = File::open(path).map_err(failed)?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0u8; 1 << 18];
    let mut length = 0;
    loop {
        interrupt::check()?;
        match file.read(&mut buffer).map_err(failed)? {
            0 => return Ok((hasher.finalize().into(), length)),
            count => {
                hasher.update(&buffer[..count]);
                length += count as u64;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    /// The SHA-256 of "abc" in FIPS 180-2, appendix B.1.
    const ABC: &str = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

    #[test]
    fn a_change_is_named() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(verify(dir.path()).unwrap(), None);
        fs::write(dir.path().join("a.bin"), "abc").unwrap();
        // A model that is one file.
        assert_eq!(verify(&dir.path().join("a.bin")).unwrap(), None);
        fs::write(dir.path().join(SUMS), format!("# squat 0.1.0: packed model\n{ABC}  a.bin\n")).unwrap();
        let sums = verify(dir.path()).unwrap().unwrap();
        assert_eq!((sums.kind.as_str(), sums.files["a.bin"].as_str()), ("packed model", ABC));
        assert_eq!(sums.verify(dir.path()).unwrap(), 3);
        for content in ["abd", "ab", "abc ", ""] {
            fs::write(dir.path().join("a.bin"), content).unwrap();
            let error = verify(dir.path()).unwrap_err().to_string();
            assert!(error.contains("a.bin") && error.contains("changed"), "{error}");
        }
        fs::remove_file(dir.path().join("a.bin")).unwrap();
        assert!(verify(dir.path()).unwrap_err().to_string().contains("missing"));
    }

    #[test]
    fn what_is_no_list_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        for text in [
            "",
            "packed model\n",
            "# squat 0.1.0: x\nabc  a.bin\n",
            &format!("# squat 0.1.0: x\n{ABC}  ../a.bin\n"),
            &format!("# squat 0.1.0: x\n{ABC}  a\n{ABC}  a\n"),
        ] {
            fs::write(dir.path().join(SUMS), text).unwrap();
            assert!(matches!(Sums::read(dir.path()), Err(SumsError::Malformed { .. })), "{text}");
        }
    }
}
