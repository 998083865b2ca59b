//! Tiny runs on generated English, through the same door as `squat train`.
#![allow(dead_code, clippy::unwrap_used)]

use serde_json::Value;
use squat_test::files::copy;
use squat_train::execution::Execution;
use squat_train::run::{RunEvent, RunOptions, run_recipe};
use squat_train::stage::{Event, Outcome};
use squat_train::{Recipe, TrainError};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Data and sizes of every recipe here.
pub const HEAD: &str = r#"
name = "tiny"
seed = 3
[data]
train = ["generated"]
valid = ["generated"]
generated_words = 12000
vocab_size = 300
seq_len = 24
[model]
hidden_size = 32
intermediate_size = 56
num_hidden_layers = 2
num_attention_heads = 4
num_key_value_heads = 2
max_position_embeddings = 64
"#;

/// Ten steps of pretraining.
pub const FP: &str = r#"
[[stage]]
name = "fp"
kind = "pretrain"
steps = 10
batch_size = 4
micro_batch = 2
learning_rate = 4e-3
warmup = 3
eval_every = 5
eval_sequences = 8
save_every = 4
log_every = 1
"#;

/// Ten steps of quantization-aware training with everything switched on.
pub const QAT: &str = r#"
[[stage]]
name = "q"
kind = "qat"
init = "fp"
teachers = ["fp"]
steps = 10
batch_size = 4
micro_batch = 2
learning_rate = 2e-3
scale_learning_rate = 5e-3
warmup = 2
eval_every = 5
eval_sequences = 8
save_every = 4
log_every = 1
quant = { plan = "rho50", activations = "static" }
loss = { gamma = 0.5, temperature = 2.0, entropy = 0.01, alignment = 0.1 }
"#;

/// How to run a recipe.
#[derive(Clone)]
pub struct Run<'a> {
    pub folder: &'a Path,
    pub settings: &'a [&'a str],
    pub threads: usize,
    pub resume: bool,
    /// Stage and step after which the stop flag is set.
    pub stop: Option<(&'a str, u64)>,
    /// Stage and step after which the run folder is copied, as a crash would leave it.
    pub snapshot: Option<(&'a str, u64, &'a Path)>,
}

impl<'a> Run<'a> {
    pub fn new(folder: &'a Path) -> Self {
        Self { folder, settings: &[], threads: 1, resume: false, stop: None, snapshot: None }
    }

    /// Runs `HEAD` and these stages.
    pub fn run(&self, stages: &[&str]) -> Result<Outcome, TrainError> {
        let settings: Vec<String> = self.settings.iter().map(|&s| s.to_owned()).collect();
        let recipe = Recipe::parse(&format!("{HEAD}{}", stages.concat()), &settings)?;
        let stop = Arc::new(AtomicBool::new(false));
        let execution =
            Execution { resume: self.resume, stop: stop.clone(), ..Execution::on_cpu(self.threads) };
        let options = RunOptions { folder: self.folder.to_path_buf(), execution, force: false };
        let mut stage = String::new();
        run_recipe(&recipe, &options, &mut |event| match event {
            RunEvent::Stage { name, .. } => stage = name,
            RunEvent::Training(Event::Step { step, .. }) => {
                if self.stop == Some((&stage, step)) {
                    stop.store(true, Ordering::Relaxed);
                }
                if let Some((name, at, to)) = self.snapshot
                    && (name, at) == (&stage, step)
                {
                    copy(self.folder, to);
                }
            }
            _ => {}
        })
    }
}

/// Lines of a stage's metrics, without what depends on the clock.
pub fn metrics(run: &Path, stage: &str) -> Vec<Value> {
    let text = std::fs::read_to_string(run.join(stage).join("metrics.jsonl")).unwrap();
    text.lines()
        .map(|line| {
            let mut value: Value = serde_json::from_str(line).unwrap();
            value.as_object_mut().unwrap().remove("tokens_per_second");
            value
        })
        .collect()
}

/// Lines of steps, without those of evaluations.
pub fn steps(run: &Path, stage: &str) -> Vec<Value> {
    metrics(run, stage).into_iter().filter(|line| line.get("loss").is_some()).collect()
}

/// All files of a stage's checkpoints, as bytes.
pub fn results(run: &Path, stage: &str) -> Vec<(PathBuf, Vec<u8>)> {
    let mut found = Vec::new();
    for checkpoint in ["best", "last"] {
        let folder = run.join(stage).join(checkpoint);
        if !folder.exists() {
            continue;
        }
        let mut names: Vec<_> = std::fs::read_dir(&folder).unwrap().map(|e| e.unwrap().file_name()).collect();
        names.sort();
        for name in names {
            let path = Path::new(stage).join(checkpoint).join(&name);
            found.push((path, std::fs::read(folder.join(&name)).unwrap()));
        }
    }
    found
}

/// Fails with the name of the first file that differs.
pub fn assert_same(a: &Path, b: &Path, stage: &str) {
    let (left, right) = (results(a, stage), results(b, stage));
    let names = |list: &[(PathBuf, Vec<u8>)]| list.iter().map(|(p, _)| p.clone()).collect::<Vec<_>>();
    assert_eq!(names(&left), names(&right));
    for ((path, left), (_, right)) in left.iter().zip(&right) {
        assert!(left == right, "{} differs", path.display());
    }
    for (left, right) in metrics(a, stage).iter().zip(&metrics(b, stage)) {
        assert_eq!(left, right, "metrics of {stage}");
    }
    assert_eq!(metrics(a, stage).len(), metrics(b, stage).len(), "lines of metrics of {stage}");
}

/// A number of a line of metrics.
pub fn number(line: &Value, key: &str) -> f64 {
    line[key].as_f64().unwrap_or_else(|| panic!("no {key} in {line}"))
}
