//! Several processes of the real binary, started by `mpirun`: MPI carries the bytes.
#![cfg(all(feature = "mpi", target_os = "linux"))]
#![allow(clippy::unwrap_used)]

mod common;

use common::command::{ok, squat, text};
use common::run::{long_recipe, recipe, same, step_of, wait_for_lines};
use std::path::Path;
use std::process::{Command, Output, Stdio};

fn mpirun(dir: &Path, processes: usize, args: &[&str]) -> Command {
    let program = squat(dir, args);
    let mut command = Command::new("mpirun");
    // Tests may run as root in a container, on fewer cores than processes.
    command
        .args(["--allow-run-as-root", "--oversubscribe", "-np", &processes.to_string()])
        .arg(program.get_program())
        .args(program.get_args())
        .args(["-t", "1"])
        .current_dir(dir)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

fn run(dir: &Path, processes: usize, args: &[&str]) -> Output {
    mpirun(dir, processes, args)
        .output()
        .expect("mpirun is installed with the library that the feature needs")
}

#[test]
fn any_number_of_processes_gives_the_same_run() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    std::fs::write(dir.join("recipe.toml"), recipe()).unwrap();
    ok(dir, &["train", "recipe.toml", "--out", "one"]);
    for world in [2, 3, 4] {
        let out = world.to_string();
        let output = run(dir, world, &["train", "recipe.toml", "--out", &out]);
        let stderr = text(&output.stderr);
        assert!(output.status.success(), "{stderr}");
        assert_eq!(text(&output.stdout), format!("{out}\n"));
        assert!(stderr.contains(&format!("{world} processes, MPI carries their data")), "{stderr}");
        same(&dir.join("one"), &dir.join(&out));
    }
}

/// A signal to one process stops all at one step, with a checkpoint that another number of processes continues.
#[test]
fn a_signal_to_one_stops_all_and_resuming_gives_the_same_run() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    long_recipe(dir);
    let child = mpirun(dir, 2, &["train", "recipe.toml", "--out", "run"]).spawn().unwrap();
    wait_for_lines(&dir.join("run/fp/metrics.jsonl"), 3);
    let children = std::fs::read_to_string(format!("/proc/{0}/task/{0}/children", child.id())).unwrap();
    let last = children.split_whitespace().last().unwrap();
    assert!(Command::new("kill").args(["-TERM", last]).status().unwrap().success());
    let output = child.wait_with_output().unwrap();
    let stderr = text(&output.stderr);
    assert!(!output.status.success() && stderr.contains("checkpoint saved"), "{stderr}");
    let step = step_of(&dir.join("run"));
    assert!((3..200).contains(&step), "stopped at {step}");
    let output = run(dir, 4, &["train", "recipe.toml", "--out", "run", "--resume"]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    ok(dir, &["train", "recipe.toml", "--out", "straight"]);
    same(&dir.join("straight"), &dir.join("run"));
}

/// What one process cannot do ends all, and is said once or by each.
#[test]
fn an_error_ends_all() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    std::fs::write(dir.join("recipe.toml"), recipe()).unwrap();
    // Of rank 0 alone: a folder that is not a run.
    std::fs::create_dir(dir.join("run")).unwrap();
    std::fs::write(dir.join("run/recipe.toml"), "").unwrap();
    let output = run(dir, 2, &["train", "recipe.toml", "--out", "run"]);
    let stderr = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(stderr.contains("error: rank 0 of 2: ") && stderr.contains("not a training run"), "{stderr}");
    assert!(!stderr.contains("panicked"), "{stderr}");
}
