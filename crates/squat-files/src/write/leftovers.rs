//! What a killed writer left behind.

use std::fs;
use std::path::{Path, PathBuf};

use super::lock::Lock;
use super::{WriteError, file_name, io_error, parent, remove, resolve, sync_folder};

/// The output that a name in its folder is a temporary of, and whether it is a former state of it.
///
/// `.NAME.new-PROCESS-NUMBER` and `.NAME.old-PROCESS-NUMBER`.
fn temporary_of(name: &str) -> Option<(&str, bool)> {
    let (rest, number) = name.strip_prefix('.')?.rsplit_once('-')?;
    let (rest, process) = rest.rsplit_once('-')?;
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    if !is_number(number) || !is_number(process) {
        return None;
    }
    let (output, old) = match (rest.strip_suffix(".new"), rest.strip_suffix(".old")) {
        (Some(output), _) => (output, false),
        (None, Some(output)) => (output, true),
        (None, None) => return None,
    };
    (!output.is_empty()).then_some((output, old))
}

fn names(folder: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()).collect()
}

/// Removes the leftovers of an output whose lock is held, or puts its former state back where there is no other; returns
/// whether it did the latter.
pub(super) fn sweep_one(target: &Path) -> Result<bool, WriteError> {
    let (folder, own) = (parent(target), file_name(target)?);
    let mut old: Vec<PathBuf> = Vec::new();
    let mut new: Vec<PathBuf> = Vec::new();
    for name in names(&folder) {
        match temporary_of(&name) {
            Some((output, true)) if output == own => old.push(folder.join(&name)),
            Some((output, false)) if output == own => new.push(folder.join(&name)),
            _ => {}
        }
    }
    let mut adopted = false;
    if fs::symlink_metadata(target).is_err() {
        // Several are there only if several writers were killed in the same moment: the last one counts.
        old.sort_by_key(|path| fs::metadata(path).and_then(|metadata| metadata.modified()).ok());
        if let Some(last) = old.pop() {
            fs::rename(&last, target).map_err(io_error("put back", target))?;
            sync_folder(&folder);
            adopted = true;
        }
    }
    for path in old.iter().chain(&new) {
        remove(path).map_err(io_error("remove", path))?;
    }
    Ok(adopted)
}

/// Repairs an output after a writer was killed: removes temporary files, and where the output is gone puts its former
/// state back. Returns whether it did the latter.
///
/// # Errors
/// Another writer is at work on it, and the file system's.
pub fn recover(path: &Path) -> Result<bool, WriteError> {
    let target = resolve(path)?;
    if !parent(&target).is_dir() {
        return Ok(false);
    }
    let lock = Lock::beside(&target)?;
    if lock.is_exclusive() { sweep_one(&target) } else { Ok(false) }
}

/// Repairs every output directly in a folder, except those that another writer is at work on; returns those whose former
/// state was put back.
///
/// # Errors
/// The file system's.
pub fn sweep(folder: &Path) -> Result<Vec<PathBuf>, WriteError> {
    let mut outputs: Vec<String> = Vec::new();
    for name in names(folder) {
        let lock = name.strip_prefix('.').and_then(|name| name.strip_suffix(".lock"));
        let output = temporary_of(&name).map(|(output, _)| output).or(lock);
        outputs.extend(output.filter(|output| !output.is_empty()).map(str::to_owned));
    }
    outputs.sort();
    outputs.dedup();
    let mut adopted = Vec::new();
    for output in outputs {
        let path = folder.join(output);
        match Lock::beside(&path) {
            Ok(lock) if lock.is_exclusive() => {
                if sweep_one(&path)? {
                    adopted.push(path);
                }
            }
            Ok(_) | Err(WriteError::Held { .. }) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(adopted)
}

#[cfg(test)]
mod tests {
    use super::temporary_of;

    #[test]
    fn only_names_of_this_program_are_temporary() {
        assert_eq!(temporary_of(".packed.new-12-0"), Some(("packed", false)));
        assert_eq!(temporary_of(".a.b-c.old-7-31"), Some(("a.b-c", true)));
        for name in
            ["packed.new-1-0", ".new-1-0", ".packed.new-1", ".packed.new-a-0", ".packed.new-1-", ".x-1-2", ""]
        {
            assert_eq!(temporary_of(name), None, "{name}");
        }
    }
}
