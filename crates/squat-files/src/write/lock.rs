//! One writer of an output at a time.
//!
//! A lock is an advisory lock of the system on a small file, so that the kernel drops it with the process, however that
//! ends. The file names its holder: process, time, command.

use std::fs::{self, File, TryLockError};
use std::io::{self, Read, Seek, Write};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use super::{WriteError, file_name, io_error, parent};

/// Bytes of a lock file that are read: more than a holder ever writes.
const HOLDER_BYTES: u64 = 4096;

/// A lock that is held until it is dropped.
#[derive(Debug)]
pub struct Lock {
    file: File,
    path: PathBuf,
    /// First line of a file that stays; a file without it is removed.
    kept: Option<String>,
    /// False on a file system that has no locks.
    exclusive: bool,
}

impl Lock {
    /// Locks the output `path`, which need not exist, through the file `.NAME.lock` beside it.
    ///
    /// # Errors
    /// [`WriteError::Held`] when another writer has it, and the file system's.
    pub fn beside(path: &Path) -> Result<Self, WriteError> {
        let name = file_name(path)?;
        Self::take(parent(path).join(format!(".{name}.lock")), path, None)
    }

    /// Locks an existing folder through a file in it, which stays there, with `first_line` and the last holder.
    pub(crate) fn inside(folder: &Path, file: &str, first_line: String) -> Result<Self, WriteError> {
        Self::take(folder.join(file), folder, Some(first_line))
    }

    fn take(path: PathBuf, output: &Path, kept: Option<String>) -> Result<Self, WriteError> {
        loop {
            let mut options = File::options();
            options.read(true).write(true).create(true).truncate(false);
            // A link that somebody put there is not followed.
            #[cfg(unix)]
            std::os::unix::fs::OpenOptionsExt::custom_flags(
                &mut options,
                libc::O_NOFOLLOW | libc::O_NONBLOCK,
            );
            let file = options.open(&path).map_err(io_error("lock", output))?;
            let exclusive = match file.try_lock() {
                Ok(()) => true,
                Err(TryLockError::WouldBlock) => {
                    return Err(WriteError::Held { path: output.to_path_buf(), holder: holder(file) });
                }
                Err(TryLockError::Error(_)) => false,
            };
            // Otherwise the former holder removed the file between our opening and locking it.
            if is_current(&file, &path) {
                let mut lock = Self { file, path, kept, exclusive };
                lock.sign().map_err(io_error("lock", output))?;
                return Ok(lock);
            }
        }
    }

    /// Whether others are kept out: false on a file system without locks.
    pub fn is_exclusive(&self) -> bool {
        self.exclusive
    }

    /// Writes who holds the lock, from now on. The first line of a file that stays is left alone where it stands already,
    /// so that a full disk cannot take it away.
    fn sign(&mut self) -> io::Result<()> {
        let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs());
        let command: Vec<String> =
            std::env::args_os().map(|word| word.to_string_lossy().into_owned()).collect();
        let mut command = command.join(" ");
        let cut = (0..=1000.min(command.len())).rev().find(|&at| command.is_char_boundary(at)).unwrap_or(0);
        command.truncate(cut);
        let first = self.kept.as_deref().map(|line| format!("{line}\n")).unwrap_or_default();
        let mut found = vec![0; first.len()];
        let is_there = self.file.read_exact(&mut found).is_ok() && found == first.as_bytes();
        if !is_there {
            self.file.rewind()?;
            self.file.write_all(first.as_bytes())?;
        }
        self.file.set_len(first.len() as u64)?;
        let holder =
            format!("process {} since {}: {}\n", std::process::id(), utc(seconds), command.escape_debug());
        // A courtesy to others, which is no reason to fail.
        let _ = self.file.write_all(holder.as_bytes());
        Ok(())
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        // Both are courtesies: the lock itself ends when the file is closed.
        match &self.kept {
            None => {
                let _ = fs::remove_file(&self.path);
            }
            Some(line) => {
                let _ = self.file.set_len(line.len() as u64 + 1);
            }
        }
    }
}

/// Whether a locked file is still the one under its name.
fn is_current(file: &File, path: &Path) -> bool {
    #[cfg(unix)]
    {
        use std::os::unix::fs::MetadataExt;
        let id = |metadata: fs::Metadata| (metadata.dev(), metadata.ino());
        let (held, named) = (file.metadata().map(id), fs::symlink_metadata(path).map(id));
        matches!((held, named), (Ok(held), Ok(named)) if held == named)
    }
    #[cfg(not(unix))]
    {
        let _ = (file, path);
        true
    }
}

/// The last line of a lock file, which its holder wrote.
fn holder(file: File) -> String {
    let mut bytes = Vec::new();
    let _ = file.take(HOLDER_BYTES).read_to_end(&mut bytes);
    let text = String::from_utf8_lossy(&bytes);
    match text.lines().rev().find(|line| line.starts_with("process ")) {
        Some(line) => line.chars().filter(|c| !c.is_control()).collect(),
        None => "another process".to_owned(),
    }
}

/// Seconds since 1970 as `2026-11-27 08:38:06 UTC`.
fn utc(seconds: u64) -> String {
    let (days, rest) = (seconds / 86_400, seconds % 86_400);
    // Days are counted from 1 March of the year 0, so that the leap day ends a year; an era has 400 years.
    let days = days + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    format!("{year}-{month:02}-{day:02} {:02}:{:02}:{:02} UTC", rest / 3600, rest / 60 % 60, rest % 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_is_told_who_holds_it_and_a_lock_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let output = dir.path().join("packed");
        let lock = Lock::beside(&output).unwrap();
        assert!(lock.is_exclusive());
        let error = Lock::beside(&output).unwrap_err();
        let text = error.to_string();
        assert!(matches!(error, WriteError::Held { .. }), "{text}");
        let pid = format!("process {} since 2", std::process::id());
        assert!(text.contains("packed") && text.contains(&pid) && text.contains(" UTC: "), "{text}");
        // Another output is another lock.
        drop(Lock::beside(&dir.path().join("other")).unwrap());
        drop(lock);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
        Lock::beside(&output).unwrap();
    }

    #[test]
    fn the_file_of_a_dead_process_is_no_lock() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(".packed.lock"), "process 1 since 2026-01-01 00:00:00 UTC: squat pack\n")
            .unwrap();
        drop(Lock::beside(&dir.path().join("packed")).unwrap());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_lock_inside_a_folder_keeps_its_first_line() {
        let dir = tempfile::tempdir().unwrap();
        let lock = Lock::inside(dir.path(), ".squat", "a run".to_owned()).unwrap();
        let held = Lock::inside(dir.path(), ".squat", "a run".to_owned()).unwrap_err().to_string();
        assert!(held.contains("process ") && !held.contains("a run"), "{held}");
        drop(lock);
        assert_eq!(fs::read_to_string(dir.path().join(".squat")).unwrap(), "a run\n");
    }

    /// Against dates of the calendar, leap years among them.
    #[test]
    fn times_are_those_of_the_calendar() {
        for (seconds, text) in [
            (0, "1970-01-01 00:00:00 UTC"),
            (951_782_399, "2000-02-28 23:59:59 UTC"),
            (951_782_400, "2000-02-29 00:00:00 UTC"),
            (1_709_251_199, "2024-02-29 23:59:59 UTC"),
            (1_735_689_600, "2025-01-01 00:00:00 UTC"),
            (4_107_542_400, "2100-03-01 00:00:00 UTC"),
        ] {
            assert_eq!(utc(seconds), text);
        }
    }
}
