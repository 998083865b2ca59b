//! `metrics.jsonl`: a line for each step that is reported.

use crate::error::TrainError;
use crate::stage::StageInput;
use squat_files::read::{self, Limit, ReadError};
use squat_files::write::{NewFile, Replace, append};
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

/// The file, open for more lines.
pub(crate) struct Metrics {
    file: File,
    path: PathBuf,
}

impl Metrics {
    /// Begins the file of a stage, or keeps its lines up to `step`. Only one process writes it.
    ///
    /// # Errors
    /// A line that is damaged, and the file system's.
    pub fn open(input: &StageInput<'_>, step: Option<u64>) -> Result<Option<Self>, TrainError> {
        if !input.execution.group.is_rank0() {
            return Ok(None);
        }
        let path = input.folder.join("metrics.jsonl");
        let lines = match step {
            Some(step) => kept(&path, step)?,
            None => Vec::new(),
        };
        // The kept lines go to a new file first: a full disk must not destroy the old one.
        NewFile::write(&path, Replace::Any, &lines)?;
        Ok(Some(Self { file: append(&path)?, path }))
    }

    /// Adds a line.
    pub fn add(&mut self, line: &serde_json::Value) -> Result<(), TrainError> {
        self.file
            .write_all(format!("{line}\n").as_bytes())
            .map_err(TrainError::io("cannot write", &self.path))
    }
}

/// The lines of a file up to a step. The last line may be incomplete, if its writer was killed, and is left out then.
fn kept(path: &Path, step: u64) -> Result<Vec<u8>, TrainError> {
    let text = match read::whole(path, Limit::Text) {
        Ok(text) => text,
        // Whoever moved it away does not want it.
        Err(ReadError::Missing(_)) => return Ok(Vec::new()),
        Err(error) => return Err(error.into()),
    };
    // A file of lines ends with one: anything else at its end is incomplete, but not the whole file.
    if !text.is_empty() && !text.contains(&b'\n') {
        return Err(damaged(path, 1));
    }
    let mut kept = Vec::new();
    for (index, line) in text.split_inclusive(|&byte| byte == b'\n').enumerate() {
        if !line.ends_with(b"\n") {
            break;
        }
        let value = serde_json::from_slice::<serde_json::Value>(line).ok();
        let at = value.and_then(|value| value["step"].as_u64()).ok_or_else(|| damaged(path, index + 1))?;
        if at <= step {
            kept.extend(line);
        }
    }
    Ok(kept)
}

fn damaged(path: &Path, line: usize) -> TrainError {
    TrainError::Checkpoint {
        path: path.to_path_buf(),
        message: format!(
            "line {line} is damaged: expected a JSON object with a number `step`; put the file back, or move it away to \
             continue without the lines of earlier steps"
        ),
    }
}
