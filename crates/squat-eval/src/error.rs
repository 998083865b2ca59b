//! What can go wrong, in words that say what to do about it.

use std::io;
use std::path::{Path, PathBuf};

/// Error of every fallible function of this crate.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EvalError {
    /// A file or folder could not be read or written.
    #[error("cannot {action} {}: {source}", path.display())]
    Io { action: &'static str, path: PathBuf, source: io::Error },

    /// A path that does not exist.
    #[error("{} does not exist{hint}", path.display())]
    Missing { path: PathBuf, hint: String },

    /// A text file holds bytes that are no UTF-8.
    #[error("{file} is not UTF-8 text: first bad byte at offset {offset}; convert it to UTF-8 first")]
    NotUtf8 { file: String, offset: usize },

    /// A line of a JSON-lines file is no JSON object.
    #[error("{file}, line {line}: expected one JSON object per line, got {message}")]
    Json { file: String, line: usize, message: String },

    /// A record lacks a field, or has it with another type.
    #[error("{file}, line {line}: expected a text field \"{field}\", got the fields {found}{hint}")]
    MissingField { file: String, line: usize, field: String, found: String, hint: String },

    /// No file at the path belongs to the task.
    #[error("no pairs for task {task} at {path}: {reason}")]
    NoPairs { task: String, path: String, reason: String },

    /// A paradigm occurs in two files, so it would be counted twice.
    #[error(
        "paradigm {paradigm} occurs in both {first} and {second}; \
         give the path of one data set (one archive or one folder), not of several"
    )]
    DuplicateParadigm { paradigm: String, first: String, second: String },

    /// A name that is none of the known ones.
    #[error("unknown {kind} \"{got}\", expected one of {expected}{hint}")]
    UnknownName { kind: &'static str, got: String, expected: String, hint: String },

    /// The tokenizer refused a text.
    #[error("cannot tokenize {location}: {message}")]
    Tokenize { location: String, message: String },

    /// A sentence without tokens has no probability that could be compared.
    #[error(
        "{location}: the tokenizer gives no token, so there is nothing to score; remove the pair or use another tokenizer"
    )]
    Empty { location: String },

    /// The tokenizer and the model do not belong together.
    #[error(
        "{location}: token id {token} at position {position}, but the model's vocabulary has {vocab_size} ids; \
         use the tokenizer that the model was trained with"
    )]
    TokenOutOfRange { location: String, token: u32, position: usize, vocab_size: usize },

    /// A sequence does not fit into the model's context.
    #[error(
        "{location}: {got} tokens with BOS, but the model takes at most {max}; \
         use a model with a longer context or a tokenizer with a larger vocabulary"
    )]
    TooLong { location: String, got: usize, max: usize },

    /// The model itself failed; the message is its own.
    #[error("the model failed: {0}")]
    Model(String),

    /// The model broke the contract of [`crate::LanguageModel::log_likelihoods`].
    #[error("{model} returned {got} where {expected} were expected; this is a fault of the model's code")]
    Output { model: String, expected: String, got: String },

    /// A log-probability is NaN or infinite: the run fails, no score is reported.
    #[error(
        "{model} gives the log-probability {value} to token {position} of {location}; \
         a model with non-finite scores is not evaluated: look for NaN or infinite weights, scales or activations"
    )]
    NonFinite { model: String, value: f32, position: usize, location: String },

    /// A value above 0 cannot be a log-probability.
    #[error(
        "{model} gives the log-probability {value} to token {position} of {location}; \
         a log-probability is at most 0: has the log-softmax been left out?"
    )]
    NotLogProbability { model: String, value: f32, position: usize, location: String },

    /// A text gives no token to score.
    #[error("nothing to score in {0}: the text is empty")]
    EmptyText(String),

    /// An option has a value that makes no sense.
    #[error("{option} is {got}, expected {expected}")]
    Option { option: &'static str, got: String, expected: String },

    /// Two things that are compared do not have the same shape or origin.
    #[error("cannot compare: {what} is {left} on one side and {right} on the other")]
    Mismatch { what: String, left: String, right: String },

    /// The report page could not be made.
    #[error("cannot make the report page: {0}")]
    Report(String),
}

impl EvalError {
    /// Wraps a model's own error, for use in implementations of [`crate::LanguageModel`].
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
            hint: nearest(got, known.iter().copied()),
        }
    }
}

/// The nearest name in the folder of a path that does not exist, as a hint.
fn nearest_sibling(path: &Path) -> String {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let Ok(entries) = std::fs::read_dir(folder) else {
        return format!("; neither does {}", folder.display());
    };
    let names: Vec<String> =
        entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    let wanted = path.file_name().unwrap_or_default().to_string_lossy();
    nearest(&wanted, names.iter().map(String::as_str))
}

/// `; did you mean "x"?`, or nothing when no name is near.
pub(crate) fn nearest<'a>(got: &str, known: impl Iterator<Item = &'a str>) -> String {
    known
        .map(|name| (strsim::damerau_levenshtein(&got.to_lowercase(), &name.to_lowercase()), name))
        .min()
        .filter(|&(distance, name)| distance <= 1.max(name.chars().count() / 3))
        .map_or_else(String::new, |(_, name)| format!("; did you mean \"{name}\"?"))
}
