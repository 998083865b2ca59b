//! Errors between a corpus on disk and a batch of token ids.

use squat_files::read::ReadError;
use squat_quant::spelling::nearest;
use std::path::{Path, PathBuf};

/// Result of this crate.
pub type Result<T> = std::result::Result<T, DataError>;

/// Each message names what was expected, what was found and what to do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DataError {
    /// A file that cannot be read.
    #[error(transparent)]
    Read(ReadError),

    /// Work that was asked to stop; see [`squat_files::interrupt`].
    #[error("{0}")]
    Interrupted(#[from] squat_files::interrupt::Interrupted),

    /// A path that does not exist, with the nearest name in its folder.
    #[error("no such file or folder: {}{hint}", path.display())]
    Missing { path: PathBuf, hint: String },

    /// Any failure of the operating system, with the path and what was being done.
    #[error("cannot {action} {}: {source}", path.display())]
    Io { action: &'static str, path: PathBuf, source: std::io::Error },

    /// An output that cannot or may not be written.
    #[error(transparent)]
    Write(#[from] squat_files::write::WriteError),

    /// A file with an unsupported extension.
    #[error(
        "{}: expected a folder or a file ending in .txt, .jsonl, .gz, .txt.gz or .jsonl.gz; convert or rename it",
        path.display()
    )]
    UnknownFormat { path: PathBuf },

    /// A folder (or list of paths) without any readable text.
    #[error(
        "no text found in {searched}: expected files ending in .txt, .jsonl, .gz, .txt.gz or .jsonl.gz{hint}"
    )]
    NoFiles { searched: String, hint: String },

    /// Files whose text is empty after cleaning.
    #[error(
        "the corpus is empty: {searched} hold no text after cleaning; check the files or the cleaning domain"
    )]
    EmptyCorpus { searched: String },

    /// Training and held-out files in one input: refused, so that nobody trains on held-out text by accident.
    #[error(
        "{} is mixed with files of the split `{other}`: choose one split (for example `train`)",
        path.display()
    )]
    MixedSplits { path: PathBuf, other: String },

    /// A truncated gzip file.
    #[error("{}: the gzip stream is truncated after {read} bytes of text; copy or download the file again", path.display())]
    TruncatedGzip { path: PathBuf, read: u64 },

    /// A file that is not gzip, or whose checksum is wrong.
    #[error("{}: not a valid gzip stream ({reason}); copy or download the file again", path.display())]
    CorruptGzip { path: PathBuf, reason: String },

    /// A line of a .jsonl file that is not a JSON object with the text field.
    #[error("{} line {line}: expected a JSON object with a string field `text`, got {got}", path.display())]
    BadJson { path: PathBuf, line: u64, got: String },

    /// A single JSON record larger than the reader accepts.
    #[error("{} line {line}: longer than {limit} bytes; split the record", path.display())]
    LineTooLong { path: PathBuf, line: u64, limit: usize },

    /// A name outside a list.
    #[error("unknown {what} `{got}`; expected one of {expected}{hint}")]
    UnknownName { what: &'static str, got: String, expected: String, hint: String },

    /// An option outside its range.
    #[error("{what} is {got}, expected {expected}")]
    BadOption { what: &'static str, got: String, expected: String },

    /// An error of the tokenizer library.
    #[error("tokenizer{}: {reason}; copy it again, or delete it where a run made it", at(path))]
    Tokenizer { path: Option<PathBuf>, reason: String },

    /// A tokenizer without a special token that sequences need.
    #[error("{}: the tokenizer has no {role} token; expected one of {expected}; add it or train a tokenizer", path.display())]
    NoSpecialToken { path: PathBuf, role: &'static str, expected: String },

    /// Token files that do not match their manifest.
    #[error("{}: {problem}; delete the folder or prepare the corpus again", path.display())]
    DamagedShards { path: PathBuf, problem: String },

    /// A part of a corpus that cannot be joined with the others.
    #[error("{} {problem}; prepare that part again", path.display())]
    BadPart { path: PathBuf, problem: String },

    /// Too few tokens for one chunk.
    #[error("the corpus has {tokens} tokens, one chunk needs {needed}; use more text or a shorter sequence")]
    TooShort { tokens: u64, needed: u64 },
}

impl From<ReadError> for DataError {
    fn from(error: ReadError) -> Self {
        match error {
            ReadError::Missing(path) => Self::missing(&path),
            ReadError::Io { action, path, source } => Self::Io { action, path, source },
            error => Self::Read(error),
        }
    }
}

fn at(path: &Option<PathBuf>) -> String {
    path.as_ref().map(|p| format!(" {}", p.display())).unwrap_or_default()
}

impl DataError {
    /// For `map_err`: an operating-system error with its path.
    pub(crate) fn io(action: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_path_buf();
        move |source| Self::Io { action, path, source }
    }

    /// A missing path, with the name in the same folder that is nearest to it.
    pub fn missing(path: &Path) -> Self {
        let folder = match path.parent() {
            Some(p) if !p.as_os_str().is_empty() => p.to_path_buf(),
            _ => PathBuf::from("."),
        };
        let wanted = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
        let names: Vec<String> = std::fs::read_dir(&folder)
            .map(|d| d.flatten().map(|e| e.file_name().to_string_lossy().into_owned()).collect())
            .unwrap_or_default();
        let hint = match nearest(&wanted, names.iter().map(String::as_str)) {
            Some(name) => format!("; did you mean `{}`?", folder.join(name).display()),
            None if folder.is_dir() => String::new(),
            None => format!("; the folder {} does not exist either", folder.display()),
        };
        Self::Missing { path: path.to_path_buf(), hint }
    }

    /// A name outside a list, with the nearest one in it.
    pub(crate) fn unknown_name(what: &'static str, got: &str, expected: &[&str]) -> Self {
        let hint = nearest(got, expected.iter().copied())
            .map(|n| format!("; did you mean `{n}`?"))
            .unwrap_or_default();
        Self::UnknownName { what, got: got.to_owned(), expected: expected.join(", "), hint }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_the_nearest_path() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("childes.train.gz"), b"").unwrap();
        let message = DataError::missing(&dir.path().join("childs.train.gz")).to_string();
        assert!(message.contains("did you mean") && message.contains("childes.train.gz"), "{message}");
        let message = DataError::missing(&dir.path().join("nowhere/x.txt")).to_string();
        assert!(message.contains("does not exist either"), "{message}");
    }
}
