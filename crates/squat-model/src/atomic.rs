//! Folders that are written atomically: complete or not at all.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use crate::error::ModelError;

/// Files that belong to a model folder and may be replaced with it.
const MODEL_FILES: [&str; 14] = [
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "model.safetensors.index.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "README.md",
    ".gitattributes",
];

/// Removes the temporary folder unless it was renamed.
struct Scratch {
    path: PathBuf,
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // After the rename the path is gone and this does nothing.
        let _ = fs::remove_dir_all(&self.path);
    }
}

/// Writes a folder atomically: `write` fills a temporary sibling of `target`, which is synced to disk and renamed.
///
/// When `write` fails, or the disk is full, or the process is interrupted by a panic, `target` is as it was. An
/// existing `target` is replaced if it is empty or a model folder without foreign files; its parents are created.
///
/// # Errors
/// A `target` that may not be replaced, what `write` returns, and failures of the file system.
pub fn write_folder_atomically<T>(
    target: &Path,
    write: impl FnOnce(&Path) -> Result<T, ModelError>,
) -> Result<T, ModelError> {
    static COUNTER: AtomicU64 = AtomicU64::new(0);
    let name = target
        .file_name()
        .ok_or_else(|| ModelError::folder(target, "expected the name of a folder to write, got none"))?;
    let parent = match target.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_path_buf(),
        _ => PathBuf::from("."),
    };
    let replaced = may_replace(target)?;
    fs::create_dir_all(&parent).map_err(ModelError::io("create", &parent))?;
    let unique = format!("{}-{}", std::process::id(), COUNTER.fetch_add(1, Ordering::Relaxed));
    let name = name.to_string_lossy();
    let scratch = Scratch { path: parent.join(format!(".{name}.new-{unique}")) };
    fs::create_dir(&scratch.path).map_err(ModelError::io("create", &scratch.path))?;
    let result = write(&scratch.path)?;
    sync_tree(&scratch.path)?;
    if replaced {
        refuse_foreign_files(target, &scratch.path)?;
        // A directory cannot be renamed over a full one: move the old one aside, and back if the second step fails.
        let old = Scratch { path: parent.join(format!(".{name}.old-{unique}")) };
        fs::rename(target, &old.path).map_err(ModelError::io("rename", target))?;
        if let Err(error) = fs::rename(&scratch.path, target) {
            let _ = fs::rename(&old.path, target);
            return Err(ModelError::io("rename", target)(error));
        }
    } else {
        fs::rename(&scratch.path, target).map_err(ModelError::io("rename", target))?;
    }
    sync_folder(&parent);
    Ok(result)
}

/// Whether `target` exists and may be replaced.
fn may_replace(target: &Path) -> Result<bool, ModelError> {
    if fs::symlink_metadata(target).is_err() {
        return Ok(false);
    }
    if !target.is_dir() {
        return Err(ModelError::folder(
            target,
            "expected a folder to write, got a file; choose another name",
        ));
    }
    let mut entries = fs::read_dir(target).map_err(ModelError::io("read", target))?;
    if entries.next().is_none() || target.join("config.json").is_file() {
        return Ok(true);
    }
    Err(ModelError::folder(
        target,
        "the folder exists and is not a model folder (it has no config.json), so it is not replaced; \
         choose another folder or empty this one",
    ))
}

/// Refuses to delete what neither belongs to a model nor is written anew.
fn refuse_foreign_files(target: &Path, new: &Path) -> Result<(), ModelError> {
    for entry in fs::read_dir(target).map_err(ModelError::io("read", target))? {
        let entry = entry.map_err(ModelError::io("read", target))?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let shard = name.starts_with("model-") && name.ends_with(".safetensors");
        if !(MODEL_FILES.contains(&name.as_str()) || shard || new.join(&name).exists()) {
            return Err(ModelError::folder(
                target,
                format!(
                    "the folder holds \"{name}\", which is not part of the model to be replaced; \
                     move it away or choose another folder"
                ),
            ));
        }
    }
    Ok(())
}

fn sync_tree(folder: &Path) -> Result<(), ModelError> {
    for entry in fs::read_dir(folder).map_err(ModelError::io("read", folder))? {
        let path = entry.map_err(ModelError::io("read", folder))?.path();
        if path.is_dir() {
            sync_tree(&path)?;
        } else {
            let file = File::options().write(true).open(&path).map_err(ModelError::io("open", &path))?;
            file.sync_all().map_err(ModelError::io("write", &path))?;
        }
    }
    sync_folder(folder);
    Ok(())
}

/// Makes renames durable where a directory can be opened; elsewhere the system does it by itself.
fn sync_folder(folder: &Path) {
    if let Ok(handle) = File::open(folder) {
        let _ = handle.sync_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(text: &str) -> impl FnOnce(&Path) -> Result<(), ModelError> + '_ {
        move |folder| {
            let path = folder.join("config.json");
            fs::write(&path, text).map_err(ModelError::io("write", path))
        }
    }

    fn entries(folder: &Path) -> Vec<String> {
        let mut names: Vec<String> = fs::read_dir(folder)
            .unwrap()
            .map(|e| e.unwrap().file_name().to_string_lossy().into_owned())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn appears_whole_or_not_at_all() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("a/model");
        write_folder_atomically(&target, write("one")).unwrap();
        write_folder_atomically(&target, write("two")).unwrap();
        let failed: Result<(), _> = write_folder_atomically(&target, |folder| {
            write("three")(folder)?;
            Err(ModelError::file("x", "disk full"))
        });
        assert!(failed.is_err());
        assert_eq!(fs::read_to_string(target.join("config.json")).unwrap(), "two");
        assert_eq!(entries(&dir.path().join("a")), ["model"]);
    }

    #[test]
    fn foreign_folders_are_kept() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("photos");
        fs::create_dir(&target).unwrap();
        fs::write(target.join("cat.png"), "").unwrap();
        let error = write_folder_atomically(&target, write("x")).unwrap_err().to_string();
        assert!(error.contains("not a model folder"), "{error}");
        fs::write(target.join("config.json"), "{}").unwrap();
        let error = write_folder_atomically(&target, write("x")).unwrap_err().to_string();
        assert!(error.contains("cat.png"), "{error}");
        assert_eq!(entries(&target), ["cat.png", "config.json"]);
        let file = target.join("cat.png");
        assert!(write_folder_atomically(&file, write("x")).unwrap_err().to_string().contains("got a file"));
        let empty = dir.path().join("empty");
        fs::create_dir(&empty).unwrap();
        write_folder_atomically(&empty, write("x")).unwrap();
        assert_eq!(entries(dir.path()), ["empty", "photos"]);
    }
}
