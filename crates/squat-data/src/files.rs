//! Atomic writes: a file appears complete or not at all.

use crate::{DataError, Result};
use std::io::Write;
use std::path::Path;

/// Creates a folder and its parents.
pub(crate) fn create_folder(path: &Path) -> Result<()> {
    std::fs::create_dir_all(path).map_err(DataError::io("create the folder", path))
}

/// Writes a temporary file next to the target, flushes it to disk and renames it: a reader sees the old file or the
/// new one, and an error (a full disk) leaves nothing behind.
pub(crate) fn write_atomic(path: &Path, bytes: &[u8]) -> Result<()> {
    let folder = match path.parent() {
        Some(p) if !p.as_os_str().is_empty() => p,
        _ => Path::new("."),
    };
    let mut file = temp_in(folder)?;
    file.write_all(bytes).map_err(DataError::io("write", path))?;
    persist(file, path)
}

/// A temporary file in `folder`, removed when dropped before [`persist`].
pub(crate) fn temp_in(folder: &Path) -> Result<tempfile::NamedTempFile> {
    let mut builder = tempfile::Builder::new();
    builder.prefix(".squat-").suffix(".tmp");
    // The default mode of temporary files (0600) would make shared corpora unreadable to others.
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o644));
    builder.tempfile_in(folder).map_err(DataError::io("create a temporary file in", folder))
}

/// Renames a finished temporary file into place.
pub(crate) fn persist(file: tempfile::NamedTempFile, path: &Path) -> Result<()> {
    file.as_file().sync_all().map_err(DataError::io("flush", path))?;
    file.persist(path).map(drop).map_err(|e| DataError::io("rename into place", path)(e.error))
}
