//! Errors of models and their files: what was expected, what was found, what to do.

use std::io;
use std::path::{Path, PathBuf};

use squat_files::read::ReadError;
use squat_quant::spelling::{nearest, similarity};

/// Error of every fallible function of this crate.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ModelError {
    /// The operating system refused to read or write.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// What was tried, as a verb: `read`, `write`, `rename`.
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// A file that cannot be read.
    #[error(transparent)]
    Read(ReadError),
    /// Work that was asked to stop; see [`squat_files::interrupt`].
    #[error("{0}")]
    Interrupted(#[from] squat_files::interrupt::Interrupted),
    /// An output that cannot or may not be written.
    #[error(transparent)]
    Write(#[from] squat_files::write::WriteError),
    /// A folder whose files are not those that were written.
    #[error(transparent)]
    Sums(#[from] squat_files::sums::SumsError),
    /// A path that does not exist.
    #[error("{} does not exist{hint}", path.display())]
    NotFound {
        /// The path as given.
        path: PathBuf,
        /// Nearest sibling and advice, or empty.
        hint: String,
    },
    /// A folder that does not hold a model, or holds a model of an unexpected kind.
    #[error("{}: {message}", path.display())]
    Folder {
        /// The folder.
        path: PathBuf,
        /// What was expected, what was found, what to do.
        message: String,
    },
    /// A file with the wrong content: truncated, corrupt, of another format.
    #[error("{}: {message}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What was expected, what was found, what to do.
        message: String,
    },
    /// An invalid or unsupported configuration.
    #[error("{key}: expected {expected}, got {got}{hint}")]
    Config {
        /// The key of `config.json`, or the field of a plan.
        key: String,
        /// What would have been right.
        expected: String,
        /// What was found.
        got: String,
        /// Advice, or empty.
        hint: String,
    },
    /// An unknown name.
    #[error("unknown {kind} \"{got}\"{hint}; known: {known}")]
    UnknownName {
        /// What kind of name it is.
        kind: &'static str,
        /// The name.
        got: String,
        /// Nearest valid name, or empty.
        hint: String,
        /// The valid names.
        known: String,
    },
    /// A required tensor is missing.
    #[error("tensor \"{name}\" is missing from {place}{hint}")]
    MissingTensor {
        /// Name looked for.
        name: String,
        /// File, folder or memory.
        place: String,
        /// Nearest names and advice.
        hint: String,
    },
    /// A tensor of another shape or type than the configuration promises.
    #[error("tensor \"{name}\" in {place}: expected {expected}, got {got}{hint}")]
    Tensor {
        /// Name of the tensor.
        name: String,
        /// File, folder or memory.
        place: String,
        /// Shape, type or content that was expected.
        expected: String,
        /// What was found.
        got: String,
        /// Advice, or empty.
        hint: String,
    },
    /// A weight, scale or threshold that is NaN or infinite.
    #[error(
        "tensor \"{name}\" in {place}: element {index} is {value}, expected a finite number; \
         the training run diverged or the file is damaged, use an earlier checkpoint"
    )]
    NotFinite {
        /// Name of the tensor.
        name: String,
        /// File, folder or memory.
        place: String,
        /// Flat index of the first such element.
        index: usize,
        /// Its value.
        value: f32,
    },
    /// A target of packing that was not packed.
    #[error("{name} is a target of the quantization plan but was not packed: {message}")]
    NotPacked {
        /// Name of the weight.
        name: String,
        /// Why.
        message: String,
    },
    /// The tokenizer failed, or belongs to another model.
    #[error("tokenizer {place}: {message}")]
    Tokenizer {
        /// Where it came from.
        place: String,
        /// What is wrong and what to do.
        message: String,
    },
}

impl From<ReadError> for ModelError {
    fn from(error: ReadError) -> Self {
        match error {
            ReadError::Missing(path) => Self::not_found(&path),
            ReadError::Io { action, path, source } => Self::Io { action, path, source },
            error => Self::Read(error),
        }
    }
}

impl ModelError {
    pub(crate) fn io(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { action, path, source }
    }

    pub(crate) fn file(path: impl Into<PathBuf>, message: impl Into<String>) -> Self {
        Self::File { path: path.into(), message: message.into() }
    }

    pub(crate) fn folder(path: impl Into<PathBuf>, message: impl Into<String>) -> Self {
        Self::Folder { path: path.into(), message: message.into() }
    }

    pub(crate) fn config(
        key: impl Into<String>,
        expected: impl Into<String>,
        got: impl Into<String>,
        hint: impl Into<String>,
    ) -> Self {
        Self::Config { key: key.into(), expected: expected.into(), got: got.into(), hint: hint.into() }
    }

    /// The same error about a key of the object `outer`.
    pub(crate) fn inside(self, outer: &str) -> Self {
        match self {
            Self::Config { key, expected, got, hint } => {
                Self::Config { key: format!("{outer}.{key}"), expected, got, hint }
            }
            other => other,
        }
    }

    pub(crate) fn unknown_name(kind: &'static str, got: &str, known: &[&str]) -> Self {
        Self::UnknownName {
            kind,
            got: got.to_owned(),
            hint: did_you_mean(got, known.iter().copied()),
            known: known.join(", "),
        }
    }

    /// A path that does not exist, with the nearest name in its folder.
    pub(crate) fn not_found(path: &Path) -> Self {
        let parent = match path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent.to_path_buf(),
            _ => PathBuf::from("."),
        };
        let wanted = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let siblings: Vec<String> = std::fs::read_dir(&parent)
            .map(|entries| {
                entries
                    .filter_map(|entry| entry.ok().map(|e| e.file_name().to_string_lossy().into_owned()))
                    .collect()
            })
            .unwrap_or_default();
        let hint = if parent.is_dir() {
            match nearest(&wanted, siblings.iter().map(String::as_str)) {
                Some(near) => format!("; did you mean {}?", parent.join(near).display()),
                None => "; give the path of a model folder (config.json and model.safetensors)".to_owned(),
            }
        } else {
            format!("; neither does {}", parent.display())
        };
        Self::NotFound { path: path.to_path_buf(), hint }
    }
}

/// `; did you mean "..."?`, or nothing.
pub(crate) fn did_you_mean<'a>(got: &str, known: impl IntoIterator<Item = &'a str>) -> String {
    nearest(got, known).map(|name| format!("; did you mean \"{name}\"?")).unwrap_or_default()
}

/// The three names nearest to `got`, for messages about missing tensors.
pub(crate) fn nearest_names<'a>(got: &str, known: impl IntoIterator<Item = &'a str>) -> String {
    let mut scored: Vec<(f64, &str)> = known.into_iter().map(|name| (similarity(got, name), name)).collect();
    scored.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(b.1)));
    let names: Vec<&str> = scored.into_iter().take(3).map(|(_, name)| name).collect();
    if names.is_empty() {
        "; there are no tensors".to_owned()
    } else {
        format!("; nearest: {}", names.join(", "))
    }
}
