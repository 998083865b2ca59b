//! One file.

use sha2::{Digest, Sha256};
use std::fs::{self, File};
use std::io::{self, BufWriter, Read, Write};
use std::path::{Path, PathBuf};

use super::leftovers::sweep_one;
use super::lock::Lock;
use super::{Scratch, WriteError, io_error, parent, resolve, sync_folder, temporary};
use crate::sums::hex;

/// Which existing file a [`NewFile`] may replace. An empty file is always replaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Replace<'a> {
    /// Any regular file: the folder around it is ours.
    Any,
    /// One that begins with these bytes.
    StartingWith(&'a [u8]),
}

/// A file that is written under a temporary name, and removed if it is dropped before it is placed. SHA-256 is computed on
/// the way.
#[derive(Debug)]
pub struct NewFile {
    writer: BufWriter<File>,
    hasher: Sha256,
    bytes: u64,
    written: WrittenFile,
}

/// A file that is complete and on disk, under its temporary name until [`WrittenFile::place`].
#[derive(Debug)]
pub struct WrittenFile {
    /// Removed on drop.
    scratch: Scratch,
    /// The name that it gets, if it does not have it already.
    target: PathBuf,
    sha256: String,
    bytes: u64,
    _lock: Option<Lock>,
}

impl NewFile {
    /// Begins a file that will be called `path`, and locks it against other writers. Its folder must exist.
    ///
    /// # Errors
    /// A file that may not be replaced, or is no regular file; another writer; the file system's.
    pub fn create(path: &Path, replace: Replace<'_>) -> Result<Self, WriteError> {
        let target = resolve(path)?;
        check_replaceable(&target, replace)?;
        let lock = Lock::beside(&target)?;
        if lock.is_exclusive() {
            sweep_one(&target)?;
        }
        Self::temporary_for(target, Some(lock))
    }

    /// Begins a file of a folder whose lock the caller holds.
    pub(super) fn temporary_for(target: PathBuf, lock: Option<Lock>) -> Result<Self, WriteError> {
        let path = temporary(&target, "new")?;
        Self::open(path, target, lock)
    }

    /// Begins a file of a folder that is itself temporary: it has its own name from the beginning.
    pub(super) fn directly(path: PathBuf, shown: PathBuf) -> Result<Self, WriteError> {
        Self::open(path, shown, None)
    }

    fn open(path: PathBuf, target: PathBuf, lock: Option<Lock>) -> Result<Self, WriteError> {
        let file = File::create_new(&path).map_err(io_error("create", &target))?;
        let scratch = Scratch(Some(path));
        let written = WrittenFile { scratch, target, sha256: String::new(), bytes: 0, _lock: lock };
        Ok(Self { writer: BufWriter::with_capacity(1 << 18, file), hasher: Sha256::new(), bytes: 0, written })
    }

    /// The path that the file will have.
    pub fn path(&self) -> &Path {
        &self.written.target
    }

    /// Appends bytes.
    ///
    /// # Errors
    /// The file system's.
    pub fn put(&mut self, bytes: &[u8]) -> Result<(), WriteError> {
        self.write_all(bytes).map_err(io_error("write", &self.written.target))
    }

    /// Completes the content and brings it to disk.
    ///
    /// # Errors
    /// The file system's.
    pub fn finish(self) -> Result<WrittenFile, WriteError> {
        let Self { writer, hasher, bytes, mut written } = self;
        let failed = |error| io_error("write", &written.target)(error);
        let file = writer.into_inner().map_err(|error| failed(error.into_error()))?;
        file.sync_all().map_err(failed)?;
        written.sha256 = hex(&hasher.finalize());
        written.bytes = bytes;
        Ok(written)
    }

    /// Writes a whole file.
    ///
    /// # Errors
    /// As [`NewFile::create`], [`NewFile::put`], [`NewFile::finish`] and [`WrittenFile::place`].
    pub fn write(path: &Path, replace: Replace<'_>, bytes: &[u8]) -> Result<(), WriteError> {
        let mut file = Self::create(path, replace)?;
        file.put(bytes)?;
        file.finish()?.place()
    }
}

impl Write for NewFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.writer.write(bytes)?;
        self.hasher.update(&bytes[..count]);
        self.bytes += count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.writer.flush()
    }
}

impl WrittenFile {
    /// SHA-256 of the content, in lower-case hexadecimal.
    pub fn sha256(&self) -> &str {
        &self.sha256
    }

    /// Bytes of the content.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Gives the file its name, in one step.
    ///
    /// # Errors
    /// The file system's.
    pub fn place(mut self) -> Result<(), WriteError> {
        if let Some(path) = &self.scratch.0 {
            fs::rename(path, &self.target).map_err(io_error("write", &self.target))?;
        }
        self.scratch.keep();
        sync_folder(&parent(&self.target));
        Ok(())
    }

    /// The file has had its name from the beginning.
    pub(super) fn keep(mut self) {
        self.scratch.keep();
    }
}

/// Refuses a target that is no file, or holds something else.
fn check_replaceable(target: &Path, replace: Replace<'_>) -> Result<(), WriteError> {
    let metadata = match fs::metadata(target) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(io_error("write", target)(error)),
    };
    if !metadata.is_file() {
        return Err(WriteError::Unfit {
            path: target.to_path_buf(),
            problem:
                "expected a regular file to write, got a folder, pipe, socket or device; choose another name"
                    .to_owned(),
        });
    }
    let Replace::StartingWith(wanted) = replace else { return Ok(()) };
    let mut found = Vec::new();
    File::open(target)
        .and_then(|file| file.take(wanted.len() as u64).read_to_end(&mut found))
        .map_err(io_error("read", target))?;
    if !found.is_empty() && found != wanted {
        return Err(WriteError::Foreign {
            path: target.to_path_buf(),
            found: "the file exists and is of another kind than the one to write".to_owned(),
        });
    }
    Ok(())
}

/// Opens a file of an [`OutputFolder`](super::OutputFolder) to add lines at its end; creates it if it does not exist.
///
/// # Errors
/// The file system's.
pub fn append(path: &Path) -> Result<File, WriteError> {
    File::options().append(true).create(true).open(path).map_err(io_error("write", path))
}
