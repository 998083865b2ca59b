//! Runs of several processes, and what they leave.

use super::command::{RECIPE, tree};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Two stages with everything that processes must agree on: losses, thresholds, held-out text, best checkpoints.
/// Four micro-batches a step.
pub fn recipe() -> String {
    RECIPE
        .replace(
            "batch_size = 4\nmicro_batch = 2",
            "batch_size = 8\nmicro_batch = 2\neval_every = 2\nlog_every = 1",
        )
        .replace("steps = 3", "steps = 4\nloss = { gamma = 0.5, entropy = 0.01, alignment = 0.1 }")
}

/// Every file of a run, but for the clock's part in the metrics.
pub fn files(run: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let files = tree(run).into_keys().filter(|path| path.is_file());
    files
        .map(|path| {
            let mut bytes = std::fs::read(&path).unwrap();
            if path.ends_with("metrics.jsonl") {
                let lines = String::from_utf8(bytes).unwrap();
                let lines = lines.lines().map(|line| {
                    let mut line: Value = serde_json::from_str(line).unwrap();
                    line.as_object_mut().unwrap().remove("tokens_per_second");
                    line.to_string() + "\n"
                });
                bytes = lines.collect::<String>().into_bytes();
            }
            (path.strip_prefix(run).unwrap().to_path_buf(), bytes)
        })
        .collect()
}

pub fn same(one: &Path, other: &Path) {
    let (one, other) = (files(one), files(other));
    assert_eq!(one.keys().collect::<Vec<_>>(), other.keys().collect::<Vec<_>>());
    assert!(one.len() > 20 && one.contains_key(Path::new("q/last/optimizer_state.bin")), "{:?}", one.keys());
    for (path, bytes) in &one {
        assert!(*bytes == other[path], "{} differs", path.display());
    }
}

/// Waits until a run has reported that many steps.
pub fn wait_for_lines(metrics: &Path, lines: usize) {
    let started = Instant::now();
    while std::fs::read_to_string(metrics).unwrap_or_default().lines().count() < lines {
        assert!(started.elapsed() < Duration::from_secs(120), "no step within two minutes");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// The step of the newest checkpoint.
pub fn step_of(run: &Path) -> u64 {
    let state = std::fs::read_to_string(run.join("fp/last/trainer_state.json")).unwrap();
    serde_json::from_str::<Value>(&state).unwrap()["step"].as_u64().unwrap()
}

/// A recipe of many steps that are written down at the end alone.
pub fn long_recipe(dir: &Path) {
    let recipe = recipe().replacen("steps = 4", "steps = 200\nsave_every = 1000", 1);
    let recipe = recipe.replacen("eval_every = 2", "eval_every = 1000", 1);
    std::fs::write(dir.join("recipe.toml"), recipe).unwrap();
}
