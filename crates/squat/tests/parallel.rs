//! Several processes of the real binary, started with the variables that launchers set.
#![cfg(feature = "train")]
#![allow(clippy::unwrap_used)]

mod common;

use common::command::{squat, text};
use common::run::{files, long_recipe, recipe, same, step_of, wait_for_lines};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

/// The ranks of a group, each with one thread.
fn start(dir: &Path, world: usize, args: &[&str]) -> Vec<Child> {
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    (0..world).map(|rank| start_rank(dir, (rank, world, port), args, "")).collect()
}

fn start_rank(dir: &Path, (rank, world, port): (usize, usize, u16), args: &[&str], secret: &str) -> Child {
    squat(dir, args)
        .args(["-t", "1"])
        .envs([("MASTER_ADDR", "127.0.0.1".to_owned()), ("MASTER_PORT", port.to_string())])
        .env("SQUAT_SECRET", secret)
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
    let secret = "only those who know it take part";
    let children =
        vec![start_rank(dir, (0, 2, port), &args, secret), start_rank(dir, (1, 2, port), &other, secret)];
    fail(&finish(children), &["rank 1", "recipe", "same program"]);
    // More processes than micro-batches; an error of one is told by all.
    fail(&finish(start(dir, 5, &args)), &["micro_batch"]);
    std::fs::remove_dir_all(dir.join("run")).unwrap();
    std::fs::create_dir(dir.join("run")).unwrap();
    std::fs::write(dir.join("run/recipe.toml"), "").unwrap();
    fail(&finish(start(dir, 2, &args)), &["recipe.toml", "not a training run"]);
    // Without a secret nobody comes in from elsewhere, and a bad one is no secret.
    let zero = |name: &str, value: &str| {
        squat(dir, &args)
            .envs([("RANK", "0"), ("WORLD_SIZE", "2"), ("MASTER_ADDR", "0.0.0.0"), (name, value)])
            .output()
            .unwrap()
    };
    fail(&[zero("SQUAT_SECRET", "")], &["SQUAT_SECRET is not set", "openssl rand -hex 32"]);
    fail(&[zero("SQUAT_SECRET", "12345")], &["fewer than 16 characters"]);
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
