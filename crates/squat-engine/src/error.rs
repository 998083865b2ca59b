//! Errors of loading and running models. Messages say what was expected, what was found and what to do.

use squat_files::write::WriteError;
use squat_kernels::{CacheError, MatrixError, UnknownIsa};
use squat_model::ModelError;
use std::path::PathBuf;

/// Error of every fallible function of this crate.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EngineError {
    /// The model's files or data are wrong.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// An option outside its range.
    #[error("{option}: expected {expected}, got {got}")]
    Option {
        /// Name of the option.
        option: &'static str,
        /// Allowed values.
        expected: String,
        /// The value given.
        got: String,
    },
    /// A token id that is not in the vocabulary.
    #[error(
        "token id {id} at position {position} is out of range: expected an id below vocab_size = {vocab_size}; \
         was the text encoded with this model's own tokenizer?"
    )]
    TokenOutOfRange {
        /// The id.
        id: u32,
        /// Its index in the tokens that were passed.
        position: usize,
        /// Size of the vocabulary.
        vocab_size: usize,
    },
    /// No tokens where at least one is needed.
    #[error("{what} is empty: expected at least {expected}; begin every sequence with the BOS token")]
    Empty {
        /// Name of the empty input.
        what: &'static str,
        /// How many tokens are needed.
        expected: &'static str,
    },
    /// More tokens than the session or the model can hold.
    #[error(
        "{asked} tokens do not fit: this session holds {capacity} (the model's max_position_embeddings is \
         {max_positions}); shorten the input, generate fewer tokens, or open a larger session"
    )]
    TooLong {
        /// Tokens held plus tokens to be fed.
        asked: usize,
        /// Capacity of the session.
        capacity: usize,
        /// Longest sequence of the model.
        max_positions: usize,
    },
    /// A position that the session has not reached.
    #[error("cannot truncate to {asked} tokens: the session holds {held}")]
    Truncate {
        /// Requested length.
        asked: usize,
        /// Length held.
        held: usize,
    },
    /// A saved prefix that cannot be used.
    #[error("cannot load the prefix {}: {problem}", path.display())]
    Prefix {
        /// The file.
        path: PathBuf,
        /// What was expected, what was found, what to do.
        problem: String,
    },
    /// A saved prefix that cannot be read or written.
    #[error("cannot {verb} the prefix {}: {source}", path.display())]
    PrefixFile {
        /// `read` or `write`.
        verb: &'static str,
        /// The file.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// An output that may not be written.
    #[error(transparent)]
    Write(WriteError),
    /// Something made for another model.
    #[error("{what} belongs to another model than the one that runs: expected one of the same engine")]
    OtherModel {
        /// Name of the object.
        what: &'static str,
    },
    /// Logits that are NaN or infinite.
    #[error(
        "the logits after position {position} are not finite (index {index} is {value}); the model's weights or \
         scales are damaged or its training diverged, use an earlier checkpoint"
    )]
    NotFinite {
        /// Position of the token that was fed.
        position: usize,
        /// Vocabulary index of the first such logit.
        index: usize,
        /// Its value.
        value: f32,
    },
    /// An instruction set that is unknown, or that this CPU lacks.
    #[error(transparent)]
    Kernel(#[from] UnknownIsa),
    /// A parameter that the spec lists and the engine does not know.
    #[error("the engine has no place for the parameter \"{name}\": this architecture cannot be run yet")]
    NoPlace {
        /// Name of the parameter.
        name: String,
    },
    /// A weight that cannot be laid out for the kernels.
    #[error("cannot lay out \"{name}\": {source}")]
    Matrix {
        /// Name of the tensor, or of the first of several joined ones.
        name: String,
        /// The cause.
        source: MatrixError,
    },
    /// A static quantizer whose codes do not fit a byte.
    #[error("static quantizer of {point} in layer {layer:?}: {source}")]
    StaticQuantizer {
        /// The activation point.
        point: &'static str,
        /// The layer; none for the head's input.
        layer: Option<usize>,
        /// The cause.
        source: CacheError,
    },
    /// The key-value cache refused a row.
    #[error("key-value cache: {0}")]
    Cache(#[from] CacheError),
    /// The operating system refused a thread.
    #[error("cannot start thread {index}: {source}; use fewer threads")]
    Thread {
        /// Number of the thread.
        index: usize,
        /// The cause.
        source: std::io::Error,
    },
}

/// Result of this crate.
pub type Result<T> = std::result::Result<T, EngineError>;

impl EngineError {
    /// A saved prefix that could not be written.
    pub(crate) fn prefix(error: WriteError) -> Self {
        match error {
            WriteError::Io { path, source, .. } => Self::PrefixFile { verb: "write", path, source },
            other => Self::Write(other),
        }
    }
}
