//! What can go wrong between processes.

/// Errors of a group of processes.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum ParallelError {
    /// The launcher's environment variables do not fit together.
    #[error("launched by {launcher}: {problem}")]
    Launch {
        /// Whose variables were found.
        launcher: &'static str,
        /// The problem, and what to do.
        problem: String,
    },
    /// Processes did not find each other.
    #[error("{0}")]
    Rendezvous(String),
    /// A process does not belong to the group.
    #[error("{0}")]
    Refused(String),
    /// A process is gone.
    #[error("lost rank {rank}: {reason}")]
    Lost {
        /// Which.
        rank: usize,
        /// How it was noticed.
        reason: String,
    },
    /// A process failed and said so.
    #[error("rank {rank} stopped: {message}")]
    Stopped {
        /// Which.
        rank: usize,
        /// Its own error.
        message: String,
    },
    /// Processes came to different results or are at different places.
    #[error(
        "rank {rank} has other {what} than rank {own}; every process needs the same program, files and kind of CPU"
    )]
    Disagree {
        /// What differs.
        what: &'static str,
        /// The other.
        rank: usize,
        /// This process.
        own: usize,
    },
}
