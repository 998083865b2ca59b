//! A folder that grows, file by file.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

use super::file::{NewFile, Replace};
use super::folder::remove_output;
use super::leftovers::sweep;
use super::lock::Lock;
use super::{WriteError, create_folder, io_error, resolve};

/// Name of the file that says what an [`OutputFolder`] is, and that its writer locks.
pub const MARKER: &str = ".squat";

/// A folder that this process is the only one to write, as long as this value lives.
#[derive(Debug)]
pub struct OutputFolder {
    path: PathBuf,
    is_new: bool,
    adopted: Vec<PathBuf>,
    lock: Lock,
}

impl OutputFolder {
    /// Takes a folder for output of the kind `kind`, such as `training run`: creates it if it does not exist, locks it, and
    /// removes what killed writers left in it.
    ///
    /// A folder is taken that was taken for the same kind before, or that `recognize` knows, or that holds none of `names`,
    /// the files and folders that will be written. With `force` every folder is.
    ///
    /// # Errors
    /// A folder that may not be taken, a file; another writer; the file system's.
    pub fn claim(
        path: &Path,
        kind: &str,
        names: &[&str],
        recognize: impl FnOnce(&Path) -> bool,
        force: bool,
    ) -> Result<Self, WriteError> {
        let path = resolve(path)?;
        let found = fs::metadata(&path);
        if found.as_ref().is_ok_and(|metadata| !metadata.is_dir()) {
            let problem = "expected a folder to write, got a file; choose another name".to_owned();
            return Err(WriteError::Unfit { path, problem });
        }
        if found.is_ok() && !force {
            let foreign = |found: String| WriteError::Foreign { path: path.clone(), found };
            match marked(&path) {
                Some(other) if other != kind => {
                    return Err(foreign(format!("the folder holds something else: a {other}")));
                }
                Some(_) => {}
                None => {
                    let taken = names.iter().find(|name| fs::symlink_metadata(path.join(name)).is_ok());
                    if let Some(name) = taken
                        && !recognize(&path)
                    {
                        return Err(foreign(format!(
                            "the folder holds {name:?} and is not a {kind} that squat wrote"
                        )));
                    }
                }
            }
        }
        let is_new = create_folder(&path)?;
        let lock = Lock::inside(&path, MARKER, first_line(kind)).inspect_err(|error| {
            // A full disk: the new folder goes again, unless somebody else has it.
            if is_new && matches!(error, WriteError::Io { .. }) {
                let _ = fs::remove_file(path.join(MARKER)).and_then(|()| fs::remove_dir(&path));
            }
        })?;
        let adopted = if lock.is_exclusive() { sweep(&path)? } else { Vec::new() };
        Ok(Self { path, is_new, adopted, lock })
    }

    /// Whether a folder was taken for output of a kind before.
    pub fn is_marked(folder: &Path, kind: &str) -> bool {
        marked(folder).as_deref() == Some(kind)
    }

    /// The folder, with links followed.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Outputs directly in the folder whose former state was put back, because their writer had been killed.
    pub fn adopted(&self) -> &[PathBuf] {
        &self.adopted
    }

    /// Whether other writers are kept out: false on a file system without locks.
    pub fn is_exclusive(&self) -> bool {
        self.lock.is_exclusive()
    }

    /// Begins a file of the folder; it may replace one of the same name.
    ///
    /// # Errors
    /// The file system's.
    pub fn file(&self, name: &str) -> Result<NewFile, WriteError> {
        NewFile::temporary_for(self.path.join(name), None)
    }

    /// Writes a whole file of the folder.
    ///
    /// # Errors
    /// The file system's.
    pub fn write(&self, name: &str, bytes: &[u8]) -> Result<(), WriteError> {
        NewFile::write(&self.path.join(name), Replace::Any, bytes)
    }

    /// Removes a file or a folder of the folder, if it is there.
    ///
    /// # Errors
    /// The file system's.
    pub fn remove(&self, name: &str) -> Result<(), WriteError> {
        remove_output(&self.path.join(name))
    }

    /// Removes the folder with everything in it: what it was for is done.
    ///
    /// # Errors
    /// The file system's.
    pub fn finish(self) -> Result<(), WriteError> {
        // The mark goes last: what a kill leaves is still known as ours.
        for entry in fs::read_dir(&self.path).map_err(io_error("remove", &self.path))? {
            let entry = entry.map_err(io_error("remove", &self.path))?;
            if entry.file_name() != MARKER {
                remove_output(&entry.path())?;
            }
        }
        remove_output(&self.path)
    }

    /// Gives the folder up after a failure: one that did not exist before is removed with everything in it.
    pub fn abandon(self) {
        if self.is_new {
            // The failure itself is the one to report.
            let _ = self.finish();
        }
    }
}

fn first_line(kind: &str) -> String {
    format!("squat: {kind}")
}

/// What a folder was taken for.
fn marked(folder: &Path) -> Option<String> {
    let file = fs::File::open(folder.join(MARKER)).ok()?;
    if !file.metadata().ok()?.is_file() {
        return None;
    }
    let mut bytes = Vec::new();
    file.take(4096).read_to_end(&mut bytes).ok()?;
    let text = String::from_utf8_lossy(&bytes);
    let kind = text.lines().next()?.strip_prefix("squat: ")?;
    Some(kind.chars().filter(|c| !c.is_control()).collect())
}
