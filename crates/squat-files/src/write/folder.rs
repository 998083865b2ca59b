//! A folder that is written in one go.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::file::{NewFile, WrittenFile};
use super::leftovers::sweep_one;
use super::lock::Lock;
use super::{Scratch, WriteError, file_name, io_error, parent, remove, resolve, sync_folder, temporary};
use crate::sums::{SUMS, Sums, is_plain};

/// What a folder is.
#[derive(Clone, Copy, Debug)]
pub struct FolderKind {
    /// In words, such as `packed model`; stands in the folder's [`SUMS`].
    pub name: &'static str,
    /// Names of the files of such folders.
    pub files: &'static [&'static str],
    /// Whether a folder without [`SUMS`], from before there were any, is of this kind and was written by this program.
    pub recognize: fn(&Path) -> bool,
}

/// A folder that is written as a temporary sibling of its place, and removed if it is dropped before it is placed.
#[derive(Debug)]
pub struct NewFolder {
    scratch: Scratch,
    path: PathBuf,
    target: PathBuf,
    kind: &'static str,
    force: bool,
    /// Files that this program wrote into the folder that is there.
    owned: BTreeSet<String>,
    sums: Sums,
    _lock: Lock,
}

impl NewFolder {
    /// Begins a folder that will be called `target`, and locks it against other writers. Parents are created.
    ///
    /// A folder of the same kind that this program wrote is replaced. Files in it that are somebody else's stay. With `force`
    /// that is so for every folder, and files with the names that are written are replaced, whosesoever they are.
    ///
    /// # Errors
    /// A target that may not be replaced, or is no folder; another writer; the file system's.
    pub fn create(target: &Path, kind: &FolderKind, force: bool) -> Result<Self, WriteError> {
        let target = resolve(target)?;
        let folder = parent(&target);
        file_name(&target)?;
        owned_files(&target, kind, force)?;
        fs::create_dir_all(&folder).map_err(io_error("create the folder", &folder))?;
        let lock = Lock::beside(&target)?;
        if lock.is_exclusive() {
            sweep_one(&target)?;
        }
        // Once more, because another writer may have been at work.
        let owned = owned_files(&target, kind, force)?;
        let path = temporary(&target, "new")?;
        fs::create_dir(&path).map_err(io_error("create", &target))?;
        let scratch = Scratch(Some(path.clone()));
        let sums = Sums { kind: kind.name.to_owned(), ..Sums::default() };
        Ok(Self { scratch, path, target, kind: kind.name, force, owned, sums, _lock: lock })
    }

    /// The temporary folder, to read what was written.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Begins a file; [`NewFolder::add`] ends it.
    ///
    /// # Errors
    /// A name that is taken, or not a plain one; the file system's.
    pub fn file(&self, name: &str) -> Result<NewFile, WriteError> {
        let (path, shown) = (self.path.join(name), self.target.join(name));
        if !is_plain(name) || name == SUMS || path.exists() {
            let problem = "expected a plain file name that is not in use by the folder itself".to_owned();
            return Err(WriteError::Unfit { path: shown, problem });
        }
        if !self.force && !self.owned.contains(name) && fs::symlink_metadata(&shown).is_ok() {
            let found = format!("the file exists, and is no part of the {} in the folder", self.kind);
            return Err(WriteError::Foreign { path: shown, found });
        }
        NewFile::directly(path, shown)
    }

    /// Takes a file in.
    ///
    /// # Errors
    /// The file system's.
    pub fn add(&mut self, file: NewFile) -> Result<(), WriteError> {
        let name = file_name(file.path())?;
        let written: WrittenFile = file.finish()?;
        self.sums.files.insert(name, written.sha256().to_owned());
        written.keep();
        Ok(())
    }

    /// Writes a whole file.
    ///
    /// # Errors
    /// As [`NewFolder::file`] and [`NewFolder::add`].
    pub fn write(&mut self, name: &str, bytes: &[u8]) -> Result<(), WriteError> {
        let mut file = self.file(name)?;
        file.put(bytes)?;
        self.add(file)
    }

    /// Puts the folder in its place, in one step.
    ///
    /// # Errors
    /// The file system's; the folder that was there is as it was.
    pub fn place(mut self) -> Result<(), WriteError> {
        let text = self.sums.to_text();
        let mut file = NewFile::directly(self.path.join(SUMS), self.target.join(SUMS))?;
        file.put(text.as_bytes())?;
        file.finish()?.keep();
        let exists = fs::symlink_metadata(&self.target).is_ok();
        if exists {
            self.carry_over()?;
        }
        sync_folder(&self.path);
        if exists {
            self.exchange()?;
        } else {
            fs::rename(&self.path, &self.target).map_err(io_error("write", &self.target))?;
            self.scratch.keep();
        }
        sync_folder(&parent(&self.target));
        // The former folder, if there was one, is now in the temporary place and goes with it.
        Ok(())
    }

    /// Links what others put into the old folder into the new one.
    fn carry_over(&self) -> Result<(), WriteError> {
        let failed = || io_error("keep the files of", &self.target);
        for entry in fs::read_dir(&self.target).map_err(failed())? {
            let entry = entry.map_err(failed())?;
            let name = entry.file_name();
            let is_ours = name.to_str().is_some_and(|name| self.owned.contains(name) || name == SUMS);
            let to = self.path.join(&name);
            if !is_ours && fs::symlink_metadata(&to).is_err() {
                link_tree(&entry.path(), &to).map_err(io_error("keep", &entry.path()))?;
            }
        }
        let permissions = fs::metadata(&self.target).map_err(failed())?.permissions();
        fs::set_permissions(&self.path, permissions).map_err(failed())
    }

    /// Lets new and old folder change places. Afterwards the old one is the temporary.
    fn exchange(&mut self) -> Result<(), WriteError> {
        if exchange(&self.path, &self.target).is_ok() {
            return Ok(());
        }
        // A folder cannot be renamed over a full one: the old one steps aside, and back if the second step fails.
        let old = temporary(&self.target, "old")?;
        let failed = |error: io::Error| match error.kind() {
            io::ErrorKind::ResourceBusy | io::ErrorKind::CrossesDevices => WriteError::Unfit {
                path: self.target.clone(),
                problem: format!("a mount point cannot be replaced ({error}); give a folder inside it"),
            },
            _ => io_error("write", &self.target)(error),
        };
        fs::rename(&self.target, &old).map_err(failed)?;
        if let Err(error) = fs::rename(&self.path, &self.target) {
            let _ = fs::rename(&old, &self.target);
            return Err(failed(error));
        }
        self.scratch = Scratch(Some(old));
        Ok(())
    }
}

/// Files of a target that this program wrote, its list included; nothing if there is no target.
fn owned_files(target: &Path, kind: &FolderKind, force: bool) -> Result<BTreeSet<String>, WriteError> {
    match fs::metadata(target) {
        Ok(metadata) if metadata.is_dir() => {}
        Ok(_) => {
            let problem = "expected a folder to write, got a file; choose another name".to_owned();
            return Err(WriteError::Unfit { path: target.to_path_buf(), problem });
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(BTreeSet::new()),
        Err(error) if error.kind() == io::ErrorKind::NotADirectory => {
            let problem = "a folder of this path is a file; choose another output".to_owned();
            return Err(WriteError::Unfit { path: target.to_path_buf(), problem });
        }
        Err(error) => return Err(io_error("open", target)(error)),
    }
    let foreign = |found: String| WriteError::Foreign { path: target.to_path_buf(), found };
    let sums = Sums::read(target);
    if let Ok(Some(sums)) = &sums
        && sums.kind == kind.name
    {
        return Ok(sums.files.keys().cloned().chain([SUMS.to_owned()]).collect());
    }
    let present = || kind.files.iter().filter(|name| target.join(name).exists()).map(|&name| name.to_owned());
    if matches!(sums, Ok(None)) && (kind.recognize)(target) {
        return Ok(present().collect());
    }
    let mut names = Vec::new();
    let mut folder = None;
    for entry in fs::read_dir(target).map_err(io_error("read", target))?.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            folder = Some(name.clone());
        }
        names.push(name);
    }
    if force {
        return match folder {
            // Whatever it is, it is no folder of files that are replaced.
            Some(name) => Err(WriteError::Unfit {
                path: target.to_path_buf(),
                problem: format!(
                    "the folder was not written by squat and holds the folder {name:?}, so it is not replaced even with \
                     --force; choose another output"
                ),
            }),
            None => Ok(present().chain([SUMS.to_owned()]).collect()),
        };
    }
    names.sort();
    match (sums, names.first()) {
        (_, None) => Ok(BTreeSet::new()),
        (Ok(Some(sums)), _) => Err(foreign(format!("the folder holds something else: a {}", sums.kind))),
        (_, Some(name)) => {
            Err(foreign(format!("the folder holds {name:?} and is not a {} that squat wrote", kind.name)))
        }
    }
}

/// Gives a file a second name, or a folder's files second names in a second folder; copies where that is not possible.
fn link_tree(from: &Path, to: &Path) -> io::Result<()> {
    let metadata = fs::symlink_metadata(from)?;
    if metadata.is_dir() {
        fs::create_dir(to)?;
        for entry in fs::read_dir(from)? {
            let entry = entry?;
            link_tree(&entry.path(), &to.join(entry.file_name()))?;
        }
        return fs::set_permissions(to, metadata.permissions());
    }
    match fs::hard_link(from, to) {
        Ok(()) => Ok(()),
        Err(_) if metadata.is_file() => {
            fs::copy(from, to)?;
            fs::File::open(to)?.sync_all()
        }
        Err(error) => Err(error),
    }
}

/// Lets two paths change places in one step, where the system and the file system can do that.
#[cfg(target_os = "linux")]
fn exchange(a: &Path, b: &Path) -> io::Result<()> {
    use std::ffi::CString;
    use std::os::unix::ffi::OsStrExt;
    let name = |path: &Path| CString::new(path.as_os_str().as_bytes()).map_err(io::Error::from);
    let (a, b) = (name(a)?, name(b)?);
    // SAFETY: both names end in a zero byte and live until the call returns, which only reads them. As a system call
    // and not as a function, because older C libraries lack the latter.
    let result = unsafe {
        libc::syscall(
            libc::SYS_renameat2,
            libc::AT_FDCWD,
            a.as_ptr(),
            libc::AT_FDCWD,
            b.as_ptr(),
            libc::RENAME_EXCHANGE,
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(not(target_os = "linux"))]
fn exchange(_: &Path, _: &Path) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

/// Removes a path of an output folder that this program wrote.
pub(super) fn remove_output(path: &Path) -> Result<(), WriteError> {
    remove(path).map_err(io_error("remove", path))
}
