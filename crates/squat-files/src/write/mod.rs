//! Files and folders appear complete or not at all, and replace only what this program wrote.
//!
//! | | for | owner | lock |
//! |---|---|---|---|
//! | [`NewFile`] | one file | the caller names the first bytes, or owns the folder | beside it |
//! | [`NewFolder`] | a folder that is written in one go: a model, a tokenizer | [`sums::SUMS`](crate::sums::SUMS) lists its files | beside it |
//! | [`OutputFolder`] | a folder that grows: a run, token shards | the file [`MARKER`] | [`MARKER`] |
//!
//! Everything is written to a temporary sibling `.NAME.new-PROCESS-NUMBER`, synced to disk and renamed. An existing folder and
//! the new one are exchanged by one rename where the system can do that; elsewhere the old one is called
//! `.NAME.old-PROCESS-NUMBER` for a moment, and [`recover`] puts it back. Modes are those of the umask. Links are followed.

mod file;
mod folder;
mod leftovers;
mod lock;
mod output;

pub use file::{NewFile, Replace, WrittenFile, append};
pub use folder::{FolderKind, NewFolder};
pub use leftovers::{recover, sweep};
pub use lock::Lock;
pub use output::{MARKER, OutputFolder};

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

/// Why something was not written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WriteError {
    /// The operating system refused: a full disk, missing rights.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// What was tried, as a verb: `write`, `create`, `rename`.
        action: &'static str,
        /// The file or folder that was to be written.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// The output exists and is not what this program writes there.
    #[error("{}: {found}, so it is not replaced; choose another output, or replace it with --force", path.display())]
    Foreign {
        /// The output.
        path: PathBuf,
        /// What it holds.
        found: String,
    },
    /// The output cannot be written, with or without force.
    #[error("{}: {problem}", path.display())]
    Unfit {
        /// The output.
        path: PathBuf,
        /// What was expected, what was found, what to do.
        problem: String,
    },
    /// Another writer is at work on the output.
    #[error("{}: {holder} is writing it; wait for it to end or stop it, or choose another output", path.display())]
    Held {
        /// The output.
        path: PathBuf,
        /// Process, time and command, as far as known.
        holder: String,
    },
}

/// For `map_err`: an error of the operating system with its path.
pub(crate) fn io_error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> WriteError {
    let path = path.to_path_buf();
    move |source| WriteError::Io { action, path, source }
}

/// The folder of a path; `.` for a plain name.
pub(crate) fn parent(path: &Path) -> PathBuf {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_path_buf(),
        _ => PathBuf::from("."),
    }
}

/// The last part of a path, for the names beside it.
pub(crate) fn file_name(path: &Path) -> Result<String, WriteError> {
    let name = path.file_name().ok_or_else(|| WriteError::Unfit {
        path: path.to_path_buf(),
        problem: "expected a path that ends in a name".to_owned(),
    })?;
    Ok(name.to_string_lossy().into_owned())
}

/// Where an output lies: links are followed, also those that lead to nothing yet.
fn resolve(path: &Path) -> Result<PathBuf, WriteError> {
    let mut found = path.to_path_buf();
    // As many as Linux follows.
    for _ in 0..40 {
        if !fs::symlink_metadata(&found).is_ok_and(|metadata| metadata.is_symlink()) {
            // `.` and `..` have names only after they are resolved.
            return match found.file_name() {
                Some(_) => Ok(found),
                None => fs::canonicalize(&found).map_err(io_error("open", path)),
            };
        }
        let target = fs::read_link(&found).map_err(io_error("read the link", path))?;
        found = parent(&found).join(target);
    }
    Err(WriteError::Unfit { path: path.to_path_buf(), problem: "the link leads back to itself".to_owned() })
}

/// A temporary sibling of `path`, which nobody else uses.
fn temporary(path: &Path, word: &str) -> Result<PathBuf, WriteError> {
    use std::sync::atomic::{AtomicU64, Ordering};
    static COUNTER: AtomicU64 = AtomicU64::new(0);
    let number = COUNTER.fetch_add(1, Ordering::Relaxed);
    Ok(parent(path).join(format!(".{}.{word}-{}-{number}", file_name(path)?, std::process::id())))
}

/// Creates a folder and its parents; returns whether the folder itself is new.
///
/// # Errors
/// The file system's, and a file under that name.
pub fn create_folder(path: &Path) -> Result<bool, WriteError> {
    let failed = || io_error("create the folder", path);
    fs::create_dir_all(parent(path)).map_err(failed())?;
    match fs::create_dir(path) {
        Ok(()) => Ok(true),
        Err(_) if path.is_dir() => Ok(false),
        Err(error) => Err(failed()(error)),
    }
}

/// Makes renames in a folder durable, where the system lets a folder be opened; elsewhere it does so by itself.
fn sync_folder(folder: &Path) {
    if let Ok(handle) = File::open(folder) {
        let _ = handle.sync_all();
    }
}

/// Removes a file, a link or a folder with its content. What is not there is removed already.
fn remove(path: &Path) -> io::Result<()> {
    let removed = match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) => Err(error),
    };
    match removed {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// Removes a path when it is dropped.
#[derive(Debug)]
struct Scratch(Option<PathBuf>);

impl Scratch {
    /// The file has got its own name.
    fn keep(&mut self) {
        self.0 = None;
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Some(path) = &self.0 {
            // What cannot be removed is left to the next sweep.
            let _ = remove(path);
        }
    }
}

#[cfg(test)]
mod tests;
