//! JSON-lines files from a file, a folder or an archive, gzipped or not. Nothing is extracted to disk.

use std::path::{Path, PathBuf};

use flate2::read::MultiGzDecoder;

use crate::error::EvalError;
use crate::file::{GZIP_MAGIC, bounded, into_text, open, read_text};

/// One JSON-lines file as text.
#[derive(Debug)]
pub(super) struct SourceFile {
    /// Path inside the folder or archive, `/` between its parts.
    pub name: String,
    pub text: String,
}

impl SourceFile {
    /// File name without folder and extension: the name of the paradigm in BLiMP and its supplement.
    pub fn stem(&self) -> &str {
        let file = self.name.rsplit('/').next().unwrap_or(&self.name);
        jsonl_stem(file).unwrap_or(file)
    }
}

/// `passive_1.jsonl`, `passive_1.jsonl.gz` -> `passive_1`; none for other extensions.
fn jsonl_stem(file: &str) -> Option<&str> {
    // macOS adds "._x.jsonl" metadata files to archives.
    let file = file.strip_suffix(".gz").unwrap_or(file);
    file.strip_suffix(".jsonl").filter(|stem| !stem.starts_with("._"))
}

fn is_archive(path: &Path) -> bool {
    let name = path.to_string_lossy();
    [".tar.gz", ".tgz", ".tar"].iter().any(|suffix| name.ends_with(suffix))
}

/// Every JSON-lines file at `path`, sorted by name: `path` is a `.jsonl` file, a `.tar`, `.tar.gz` or `.tgz`
/// archive, or a folder of `.jsonl` files at any depth or, if it has none, of archives.
pub(super) fn read_jsonl_files(path: &Path) -> Result<Vec<SourceFile>, EvalError> {
    let metadata = std::fs::metadata(path).map_err(|source| EvalError::io("read", path, source))?;
    let mut files = Vec::new();
    if metadata.is_dir() {
        let mut found = Vec::new();
        walk(path, &mut found)?;
        let (archives, plain): (Vec<_>, Vec<_>) = found.into_iter().partition(|file| is_archive(file));
        for file in &plain {
            files.push(SourceFile { name: relative(path, file), text: read_text(file)? });
        }
        if files.is_empty() {
            for archive in &archives {
                read_archive(archive, &format!("{}/", relative(path, archive)), &mut files)?;
            }
        }
    } else if is_archive(path) {
        read_archive(path, "", &mut files)?;
    } else {
        let name = path.file_name().map_or_else(|| path.to_string_lossy(), |name| name.to_string_lossy());
        files.push(SourceFile { name: name.into_owned(), text: read_text(path)? });
    }
    files.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(files)
}

fn relative(folder: &Path, file: &Path) -> String {
    let inner = file.strip_prefix(folder).unwrap_or(file);
    inner.iter().map(|part| part.to_string_lossy()).collect::<Vec<_>>().join("/")
}

fn walk(folder: &Path, found: &mut Vec<PathBuf>) -> Result<(), EvalError> {
    let entries = std::fs::read_dir(folder).map_err(|source| EvalError::io("read", folder, source))?;
    for entry in entries {
        let entry = entry.map_err(|source| EvalError::io("read", folder, source))?;
        let (path, name) = (entry.path(), entry.file_name());
        // Links to folders are not followed, so the walk is finite.
        let kind = entry.file_type().map_err(|source| EvalError::io("read", &path, source))?;
        if kind.is_dir() {
            walk(&path, found)?;
        } else if is_archive(&path) || jsonl_stem(&name.to_string_lossy()).is_some() {
            found.push(path);
        }
    }
    Ok(())
}

fn read_archive(path: &Path, prefix: &str, files: &mut Vec<SourceFile>) -> Result<(), EvalError> {
    let damaged = |source| EvalError::io("read the archive", path, source);
    let mut archive = tar::Archive::new(open(path)?);
    for entry in archive.entries().map_err(damaged)? {
        let entry = entry.map_err(damaged)?;
        if !entry.header().entry_type().is_file() {
            continue;
        }
        let name = entry.path().map_err(damaged)?.to_string_lossy().replace('\\', "/");
        if jsonl_stem(name.rsplit('/').next().unwrap_or(&name)).is_none() {
            continue;
        }
        let mut bytes = bounded(entry, path)?;
        if bytes.starts_with(&GZIP_MAGIC) {
            bytes = bounded(MultiGzDecoder::new(bytes.as_slice()), path)?;
        }
        files.push(SourceFile { text: into_text(bytes, &name)?, name: format!("{prefix}{name}") });
    }
    Ok(())
}
