//! What can go wrong while training.

use std::path::PathBuf;

/// Errors of this crate.
#[derive(Debug, thiserror::Error)]
pub enum TrainError {
    /// A recipe that cannot be used; the message says where and what to do.
    #[error("recipe: {0}")]
    Recipe(String),
    /// Training produced a value that is not finite.
    #[error(
        "step {step}: {term} is not finite; {checkpoint}. Lower the learning rate (`--set stage.{stage}.learning_rate=...`) \
         or check the data, then continue with --resume"
    )]
    NonFinite {
        /// Stage that failed.
        stage: String,
        /// Step that failed.
        step: u64,
        /// Loss term or quantity that failed.
        term: String,
        /// Where the last good checkpoint is.
        checkpoint: String,
    },
    /// A checkpoint that cannot be read or does not fit.
    #[error("checkpoint {path}: {message}")]
    Checkpoint {
        /// The folder or file.
        path: PathBuf,
        /// The problem, and what to do.
        message: String,
    },
    /// A file operation failed.
    #[error("{action} {path}: {source}")]
    Io {
        /// What was tried: `cannot write`, `cannot read`.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// The system's answer.
        source: std::io::Error,
    },
    /// A file that cannot be read.
    #[error(transparent)]
    Read(#[from] squat_files::read::ReadError),
    /// Work that was asked to stop; see [`squat_files::interrupt`].
    #[error("{0}")]
    Interrupted(#[from] squat_files::interrupt::Interrupted),
    /// An output that cannot or may not be written.
    #[error(transparent)]
    Write(#[from] squat_files::write::WriteError),
    /// A checkpoint whose files are not those that were written.
    #[error(transparent)]
    Sums(#[from] squat_files::sums::SumsError),
    /// From the data.
    #[error(transparent)]
    Data(#[from] squat_data::DataError),
    /// From model files.
    #[error(transparent)]
    Model(#[from] squat_model::ModelError),
    /// From the other processes of the group.
    #[error(transparent)]
    Parallel(#[from] crate::parallel::ParallelError),
    /// A token id, length or other argument that the model cannot take.
    #[error("{0}")]
    Input(String),
}

impl TrainError {
    /// Wraps an I/O error.
    pub fn io(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { action, path, source }
    }
}
