//! Errors, with messages that name what to do.

use std::io;
use std::path::{Path, PathBuf};

use squat_files::read::ReadError;
use squat_quant::spelling::nearest;

/// Error of every fallible function of this crate.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EvalError {
    /// A file that cannot be read.
    #[error(transparent)]
    Read(ReadError),

    /// Work that was asked to stop; see [`squat_files::interrupt`].
    #[error("{0}")]
    Interrupted(#[from] squat_files::interrupt::Interrupted),

    /// A file or folder could not be read or written.
    #[error("cannot {action} {}: {source}", path.display())]
    Io { action: &'static str, path: PathBuf, source: io::Error },

    /// An output that cannot or may not be written.
    #[error(transparent)]
    Write(#[from] squat_files::write::WriteError),

    /// A path that does not exist.
    #[error("{} does not exist{hint}", path.display())]
    Missing { path: PathBuf, hint: String },

    /// A text file with bytes that are not UTF-8.
    #[error("{file} is not UTF-8 text: first bad byte at offset {offset}; convert it to UTF-8 first")]
    NotUtf8 { file: String, offset: usize },

    /// A line of a JSON-lines file that is not a JSON object.
    #[error("{file}, line {line}: expected one JSON object per line, got {message}")]
    Json { file: String, line: usize, message: String },

    /// A record without a required field, or with a field of the wrong type.
    #[error("{file}, line {line}: expected a text field \"{field}\", got the fields {found}{hint}")]
    MissingField { file: String, line: usize, field: String, found: String, hint: String },

    /// No file at the path belongs to the task.
    #[error("no pairs for task {task} at {path}: {reason}")]
    NoPairs { task: String, path: String, reason: String },

    /// A paradigm that occurs in two files, and would be counted twice.
    #[error(
        "paradigm {paradigm} occurs in both {first} and {second}; \
         give the path of one data set (one archive or one folder), not of several"
    )]
    DuplicateParadigm { paradigm: String, first: String, second: String },

    /// An unknown name.
    #[error("unknown {kind} \"{got}\", expected one of {expected}{hint}")]
    UnknownName { kind: &'static str, got: String, expected: String, hint: String },

    /// An error of the tokenizer.
    #[error("cannot tokenize {location}: {message}")]
    Tokenize { location: String, message: String },

    /// A sentence without tokens, which has no probability to compare.
    #[error(
        "{location}: the tokenizer returns no token, so there is nothing to score; remove the pair or use another tokenizer"
    )]
    Empty { location: String },

    /// A tokenizer that does not belong to the model.
    #[error(
        "{location}: token id {token} at position {position}, but the model's vocabulary has {vocab_size} ids; \
         use the tokenizer that the model was trained with"
    )]
    TokenOutOfRange { location: String, token: u32, position: usize, vocab_size: usize },

    /// A sequence longer than the context of the model.
    #[error(
        "{location}: {got} tokens with BOS, but the model takes at most {max}; \
         use a model with a longer context or a tokenizer with a larger vocabulary"
    )]
    TooLong { location: String, got: usize, max: usize },

    /// An error of the model, with its own message.
    #[error("the model failed: {0}")]
    Model(String),

    /// A violation of the contract of [`crate::LanguageModel::log_likelihoods`].
    #[error("{model} returned {got}, expected {expected}; this is a bug in the model's code")]
    Output { model: String, expected: String, got: String },

    /// A log-probability that is NaN or infinite: the run fails and reports no score.
    #[error(
        "{model} gives the log-probability {value} to token {position} of {location}; \
         models with non-finite scores are not evaluated: look for NaN or infinite weights, scales or activations"
    )]
    NonFinite { model: String, value: f32, position: usize, location: String },

    /// A value above 0, which cannot be a log-probability.
    #[error(
        "{model} gives the log-probability {value} to token {position} of {location}; \
         a log-probability is at most 0: is the log-softmax missing?"
    )]
    NotLogProbability { model: String, value: f32, position: usize, location: String },

    /// A text without tokens to score.
    #[error("nothing to score in {0}: the text is empty")]
    EmptyText(String),

    /// An option out of its range.
    #[error("{option} is {got}, expected {expected}")]
    Option { option: &'static str, got: String, expected: String },

    /// A comparison of things of different shape or origin.
    #[error("cannot compare: {what} is {left} on one side and {right} on the other")]
    Mismatch { what: String, left: String, right: String },

    /// The report page could not be made.
    #[error("cannot make the report page: {0}")]
    Report(String),
}

impl From<ReadError> for EvalError {
    fn from(error: ReadError) -> Self {
        match error {
            ReadError::Missing(path) => Self::Missing { hint: nearest_sibling(&path), path },
            ReadError::Io { action, path, source } => Self::Io { action, path, source },
            error => Self::Read(error),
        }
    }
}

impl EvalError {
    /// Wraps an error of a model, for implementations of [`crate::LanguageModel`].
    pub fn model(error: impl std::fmt::Display) -> Self {
        Self::Model(error.to_string())
    }

    pub(crate) fn io(action: &'static str, path: impl Into<PathBuf>, source: io::Error) -> Self {
        let path = path.into();
        match source.kind() {
            io::ErrorKind::NotFound if action.starts_with("read") => {
                Self::Missing { hint: nearest_sibling(&path), path }
            }
            _ => Self::Io { action, path, source },
        }
    }

    pub(crate) fn unknown_name(kind: &'static str, got: &str, known: &[&str]) -> Self {
        Self::UnknownName {
            kind,
            got: got.to_owned(),
            expected: known.join(", "),
            hint: did_you_mean(got, known.iter().copied()),
        }
    }
}

/// A hint with the nearest name in the folder of a path that does not exist.
fn nearest_sibling(path: &Path) -> String {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let Ok(entries) = std::fs::read_dir(folder) else {
        return format!("; neither does {}", folder.display());
    };
    let names: Vec<String> =
        entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    let wanted = path.file_name().unwrap_or_default().to_string_lossy();
    did_you_mean(&wanted, names.iter().map(String::as_str))
}

/// `; did you mean "x"?`, or nothing when no name is near.
pub(crate) fn did_you_mean<'a>(got: &str, known: impl IntoIterator<Item = &'a str>) -> String {
    nearest(got, known).map(|name| format!("; did you mean \"{name}\"?")).unwrap_or_default()
}
