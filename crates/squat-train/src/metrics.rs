//! `metrics.jsonl`: a line for each step that is reported.

use crate::checkpoint::State;
use crate::error::TrainError;
use crate::stage::StageInput;
use sha2::{Digest, Sha256};
use squat_files::write::{NewFile, Replace, append};
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

const FILE_NAME: &str = "metrics.jsonl";

/// The file, and a hash of its content so far.
pub(crate) struct Metrics {
    file: File,
    path: PathBuf,
    hasher: Sha256,
    bytes: u64,
}

impl Metrics {
    /// Begins the file of a stage, or keeps the lines that it had in `state`. Only one process writes it.
    ///
    /// # Errors
    /// Lines that are not those the state knows, and the file system's.
    pub fn open(input: &StageInput<'_>, state: Option<&State>) -> Result<Option<Self>, TrainError> {
        if !input.execution.group.is_rank0() {
            return Ok(None);
        }
        let path = input.folder.join(FILE_NAME);
        let kept = match state {
            Some(state) => kept(&path, state)?,
            None => Vec::new(),
        };
        // The kept lines go to a new file first: a full disk must not destroy the old one.
        NewFile::write(&path, Replace::Any, &kept)?;
        let file = append(&path)?;
        let hasher = Sha256::new_with_prefix(&kept);
        Ok(Some(Self { file, path, hasher, bytes: kept.len() as u64 }))
    }

    /// Adds a line.
    pub fn add(&mut self, line: &serde_json::Value) -> Result<(), TrainError> {
        let text = format!("{line}\n");
        self.file.write_all(text.as_bytes()).map_err(TrainError::io("cannot write", &self.path))?;
        self.hasher.update(&text);
        self.bytes += text.len() as u64;
        Ok(())
    }

    /// Bytes and SHA-256 of the file, which is on disk then.
    pub fn position(&self) -> Result<(u64, String), TrainError> {
        self.file.sync_data().map_err(TrainError::io("cannot write", &self.path))?;
        Ok((self.bytes, crate::run::hex(&self.hasher.clone().finalize())))
    }
}

/// The lines of a file up to a state.
fn kept(path: &Path, state: &State) -> Result<Vec<u8>, TrainError> {
    let mut text = match std::fs::read(path) {
        Ok(text) => text,
        // Whoever moved it away does not want it.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(TrainError::io("cannot read", path)(error)),
    };
    if let Some((bytes, sha256)) = &state.metrics {
        let length = usize::try_from(*bytes).unwrap_or(usize::MAX);
        if text.get(..length).is_some_and(|text| squat_files::sums::sha256(text) == *sha256) {
            text.truncate(length);
            return Ok(text);
        }
        return Err(TrainError::Checkpoint {
            path: path.to_path_buf(),
            message: format!(
                "the lines up to step {} are not those that were written (their SHA-256 is another): the file is damaged or \
                 was changed; put it back, or move it away to continue without these lines",
                state.step
            ),
        });
    }
    let is_kept = |line: &&[u8]| {
        let at = serde_json::from_slice::<serde_json::Value>(line).ok().and_then(|v| v["step"].as_u64());
        at.is_some_and(|at| at <= state.step)
    };
    Ok(text.split_inclusive(|&b| b == b'\n').filter(is_kept).flatten().copied().collect())
}
