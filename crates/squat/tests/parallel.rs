//! Several processes of the real binary, started with the variables that launchers set.
#![cfg(feature = "train")]
#![allow(clippy::unwrap_used)]

mod common;

use common::command::{RECIPE, squat, text};
use serde_json::Value;
use std::collections::BTreeMap;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

/// Two stages with everything that processes must agree on: losses, thresholds, held-out text, best checkpoints.
/// Four micro-batches a step.
fn recipe() -> String {
    RECIPE
        .replace(
            "batch_size = 4\nmicro_batch = 2",
            "batch_size = 8\nmicro_batch = 2\neval_every = 2\nlog_every = 1",
        )
        .replace("steps = 3", "steps = 4\nloss = { gamma = 0.5, entropy = 0.01, alignment = 0.1 }")
}

/// The ranks of a group, each with one thread.
fn start(dir: &Path, world: usize, args: &[&str]) -> Vec<Child> {
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    (0..world).map(|rank| start_rank(dir, (rank, world, port), args)).collect()
}

fn start_rank(dir: &Path, (rank, world, port): (usize, usize, u16), args: &[&str]) -> Child {
    squat(dir, args)
        .args(["-t", "1"])
        .envs([("MASTER_ADDR", "127.0.0.1".to_owned()), ("MASTER_PORT", port.to_string())])
        .envs([("RANK", rank.to_string()), ("WORLD_SIZE", world.to_string())])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

fn finish(children: Vec<Child>) -> Vec<Output> {
    // Pipes are read at once, so that nobody blocks on a full one.
    let threads: Vec<_> =
        children.into_iter().map(|child| std::thread::spawn(|| child.wait_with_output().unwrap())).collect();
    threads.into_iter().map(|thread| thread.join().unwrap()).collect()
}

fn all_succeed(outputs: &[Output], out: &str) {
    for (rank, output) in outputs.iter().enumerate() {
        let stderr = text(&output.stderr);
        assert_eq!(output.status.code(), Some(0), "rank {rank}: {stderr}");
        // One process speaks.
        assert_eq!(text(&output.stdout), if rank == 0 { format!("{out}\n") } else { String::new() });
        assert!(rank == 0 || stderr.is_empty(), "rank {rank}: {stderr}");
    }
}

/// Every file of a run, but for the clock's part in the metrics.
fn files(run: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let files = common::command::tree(run).into_keys().filter(|path| path.is_file());
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

fn same(one: &Path, other: &Path) {
    let (one, other) = (files(one), files(other));
    assert_eq!(one.keys().collect::<Vec<_>>(), other.keys().collect::<Vec<_>>());
    assert!(one.len() > 20 && one.contains_key(Path::new("q/last/optimizer_state.bin")), "{:?}", one.keys());
    for (path, bytes) in &one {
        assert!(*bytes == other[path], "{} differs", path.display());
    }
}

#[test]
fn any_number_of_processes_gives_the_same_run() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    std::fs::write(dir.join("recipe.toml"), recipe()).unwrap();
    common::command::ok(dir, &["train", "recipe.toml", "--out", "one"]);
    // Three processes share four micro-batches unevenly.
    for world in [2, 3] {
        let out = world.to_string();
        all_succeed(&finish(start(dir, world, &["train", "recipe.toml", "--out", &out])), &out);
        same(&dir.join("one"), &dir.join(&out));
    }
}

fn wait_for_lines(metrics: &Path, lines: usize) {
    let started = Instant::now();
    while std::fs::read_to_string(metrics).unwrap_or_default().lines().count() < lines {
        assert!(started.elapsed() < Duration::from_secs(120), "no step within two minutes");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn step_of(run: &Path) -> u64 {
    let state = std::fs::read_to_string(run.join("fp/last/trainer_state.json")).unwrap();
    serde_json::from_str::<Value>(&state).unwrap()["step"].as_u64().unwrap()
}

/// A recipe of many steps that are written down at the end alone.
fn long_recipe(dir: &Path) {
    let recipe = recipe().replacen("steps = 4", "steps = 200\nsave_every = 1000", 1);
    let recipe = recipe.replacen("eval_every = 2", "eval_every = 1000", 1);
    std::fs::write(dir.join("recipe.toml"), recipe).unwrap();
}

/// Ctrl-C on one process stops all at one step; any number of processes goes on from there.
#[cfg(unix)]
#[test]
fn interrupting_one_stops_all_and_resuming_gives_the_same_run() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    long_recipe(dir);
    let args = ["train", "recipe.toml", "--out", "run"];
    let children = start(dir, 2, &args);
    wait_for_lines(&dir.join("run/fp/metrics.jsonl"), 3);
    // The one that does not write.
    assert!(Command::new("kill").args(["-INT", &children[1].id().to_string()]).status().unwrap().success());
    let outputs = finish(children);
    for (rank, output) in outputs.iter().enumerate() {
        let stderr = text(&output.stderr);
        assert_eq!(output.status.code(), Some(130), "rank {rank}: {stderr}");
        assert_eq!(stderr.contains("checkpoint saved"), rank == 0, "rank {rank}: {stderr}");
    }
    let step = step_of(&dir.join("run"));
    assert!((3..200).contains(&step), "stopped at {step}");
    let resume = ["train", "recipe.toml", "--out", "run", "--resume"];
    all_succeed(&finish(start(dir, 4, &resume)), "run");
    common::command::ok(dir, &["train", "recipe.toml", "--out", "straight"]);
    same(&dir.join("straight"), &dir.join("run"));
}

#[cfg(unix)]
#[test]
fn a_killed_process_is_noticed_and_the_steps_are_kept() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    long_recipe(dir);
    let args = ["train", "recipe.toml", "--out", "run", "--peer-timeout", "30"];
    let mut children = start(dir, 3, &args);
    wait_for_lines(&dir.join("run/fp/metrics.jsonl"), 3);
    let started = Instant::now();
    children[2].kill().unwrap();
    let outputs = finish(children);
    assert!(started.elapsed() < Duration::from_secs(20), "{:?}", started.elapsed());
    for rank in [0, 1] {
        let stderr = text(&outputs[rank].stderr);
        assert_eq!(outputs[rank].status.code(), Some(1), "rank {rank}: {stderr}");
        let expected = format!("error: rank {rank} of 3: ");
        assert!(
            stderr.contains(&expected) && stderr.contains("lost rank 2: it closed"),
            "rank {rank}: {stderr}"
        );
        assert!(!stderr.contains("panicked"), "rank {rank}: {stderr}");
    }
    // What all of them had done is there, and goes on.
    assert!(step_of(&dir.join("run")) >= 3);
    common::command::ok(dir, &["train", "recipe.toml", "--out", "run", "--resume"]);
    common::command::ok(dir, &["train", "recipe.toml", "--out", "straight"]);
    same(&dir.join("straight"), &dir.join("run"));
}

/// A process that hangs is noticed too, after the time that was asked for.
#[cfg(unix)]
#[test]
fn a_stopped_process_is_noticed_in_time() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    long_recipe(dir);
    let args = ["train", "recipe.toml", "--out", "run", "--peer-timeout", "6"];
    let mut children = start(dir, 2, &args);
    wait_for_lines(&dir.join("run/fp/metrics.jsonl"), 3);
    assert!(Command::new("kill").args(["-STOP", &children[1].id().to_string()]).status().unwrap().success());
    let started = Instant::now();
    let zero = children.remove(0).wait_with_output().unwrap();
    let waited = started.elapsed();
    children[0].kill().unwrap();
    children[0].wait().unwrap();
    let stderr = text(&zero.stderr);
    assert_eq!(zero.status.code(), Some(1), "{stderr}");
    assert!(stderr.contains("lost rank 1: no heartbeat for 6 s"), "{stderr}");
    assert!(waited < Duration::from_secs(30), "{waited:?}");
}

#[test]
fn what_does_not_fit_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    std::fs::write(dir.join("recipe.toml"), recipe()).unwrap();
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let args = ["train", "recipe.toml", "--out", "run"];
    let other = ["train", "recipe.toml", "--out", "run", "--set", "seed=9"];
    let fail = |outputs: &[Output], words: &[&str]| {
        for (rank, output) in outputs.iter().enumerate() {
            let stderr = text(&output.stderr);
            assert_eq!(output.status.code(), Some(1), "rank {rank}: {stderr}");
            assert_eq!(stderr.matches("error: ").count(), 1, "rank {rank}: {stderr}");
            for word in words {
                assert!(stderr.contains(word), "rank {rank}: expected `{word}` from {stderr}");
            }
        }
        assert!(!dir.join("run/fp").exists());
    };
    let children = vec![start_rank(dir, (0, 2, port), &args), start_rank(dir, (1, 2, port), &other)];
    fail(&finish(children), &["rank 1", "recipe", "same program"]);
    // More processes than micro-batches; an error of one is told by all.
    fail(&finish(start(dir, 5, &args)), &["micro_batch"]);
    std::fs::remove_dir_all(dir.join("run")).unwrap();
    std::fs::create_dir(dir.join("run")).unwrap();
    std::fs::write(dir.join("run/recipe.toml"), "").unwrap();
    fail(&finish(start(dir, 2, &args)), &["recipe.toml", "not a training run"]);
    // Half of a launcher's variables.
    let output = squat(dir, &args).env("RANK", "0").env_remove("WORLD_SIZE").output().unwrap();
    fail(&[output], &["only one of the two"]);
}

/// A job array prepares a corpus: the shards are those of one process.
#[test]
fn parts_of_a_corpus_give_the_same_shards() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    common::command::models(dir);
    for (name, words) in [("text/b.txt", "The dog sleeps. "), ("text/c.txt", "A cat ran. ")] {
        std::fs::write(dir.join(name), words.repeat(50)).unwrap();
    }
    let prepare = ["data", "prepare", "text", "--split", "all", "--tokenizer", "tokenizer", "--out"];
    let with = |rest: &[&'static str]| [&prepare[..], rest].concat();
    let whole = common::command::ok(dir, &with(&["whole"]));
    for part in ["1/2", "0/2"] {
        common::command::ok(dir, &with(&["parts", "--shard", part]));
    }
    let merged = common::command::ok(dir, &["data", "merge", "parts"]);
    let counts = |line: &str| line.split(" in ").next().unwrap().to_owned();
    assert_eq!(counts(&whole), counts(&merged));
    std::fs::remove_dir_all(dir.join("parts/parts-of-2")).unwrap();
    assert!(files(&dir.join("whole")) == files(&dir.join("parts")));
    common::command::refused(dir, &with(&["parts", "--shard", "2/2"]), &["shard is 2/2", "3/16"]);
}
