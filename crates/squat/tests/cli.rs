//! What programs rely on: data alone on stdout, JSON with the promised keys, plain text under a pipe, Ctrl-C that
//! saves, a full disk that destroys nothing.
#![cfg(feature = "train")]
#![allow(clippy::unwrap_used)]

mod common;

use common::command::{RECIPE, check_refusal, models, ok, output, squat, text, tree};
use serde_json::Value;
use squat_train::Recipe;
use squat_train::execution::Execution;
use squat_train::run::{RunEvent, RunOptions, run_recipe};
use squat_train::stage::{Event, Outcome};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// A value that must be JSON on one line, as a program reads it.
fn json(dir: &Path, args: &[&str]) -> Value {
    let stdout = ok(dir, args);
    assert_eq!(stdout.lines().count(), 1, "squat {}: {stdout}", args.join(" "));
    serde_json::from_str(&stdout).unwrap()
}

fn has(value: &Value, keys: &[&str]) {
    for key in keys {
        assert!(value.get(key).is_some_and(|v| !v.is_null()), "no {key} in {value}");
    }
}

#[test]
fn json_has_the_promised_keys() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    models(dir);
    let bench = json(dir, &["bench", "packed", "-p", "16", "-n", "8", "-t", "1", "-r", "1", "--json"]);
    let tests: Vec<&str> = bench.as_array().unwrap().iter().map(|t| t["test"].as_str().unwrap()).collect();
    assert_eq!(tests, ["pp16", "tg8"]);
    for test in bench.as_array().unwrap() {
        has(test, &["test", "threads", "tokens_per_second", "kernel", "model_bytes"]);
        assert!(test["tokens_per_second"].as_f64().unwrap() > 0.0 && test["threads"] == 1, "{test}");
        assert!(test["kernel"].as_str().unwrap().ends_with("-w4a8a4"), "{test}");
    }
    let float = json(dir, &["bench", "fp", "-p", "0", "-n", "4", "-t", "2", "-r", "1", "--json"]);
    assert!(float[0]["kernel"].as_str().unwrap().ends_with("-f32") && float[0]["threads"] == 2, "{float}");
    let bytes = |value: &Value| value[0]["model_bytes"].as_u64().unwrap();
    assert!(bytes(&bench) * 2 < bytes(&float), "{bench} {float}");

    for (model, form) in [("fp", "fp"), ("qat", "fp"), ("qat", "fake"), ("packed", "packed")] {
        let args = ["eval", model, "--task", "pairs", "--data", "pairs", "--form", form, "--json"];
        let result = json(dir, &args);
        has(&result, &["task", "form", "average", "groups", "n", "ties"]);
        assert_eq!((result["task"].as_str(), result["form"].as_str()), (Some("pairs"), Some(form)));
        let groups = result["groups"].as_object().unwrap();
        assert!(groups.len() >= 10, "at least ten phenomena: {groups:?}");
        assert_eq!(result["n"].as_u64().unwrap() as usize, 2 * tree(&dir.join("pairs")).len());
        assert!((0.0..=100.0).contains(&result["average"].as_f64().unwrap()));
        // Without --form it is what the folder holds.
        if form != "fp" || model == "fp" {
            let by_itself = json(dir, &["eval", model, "--task", "pairs", "--data", "pairs", "--json"]);
            assert_eq!(by_itself, result);
        }
        let args = ["eval", model, "--task", "perplexity", "--data", "text", "--form", form, "--json"];
        let result = json(dir, &args);
        has(&result, &["task", "form", "perplexity", "standard_error", "n_tokens", "bits_per_byte"]);
        assert!(result["perplexity"].as_f64().unwrap() > 1.0, "{result}");
    }
    // The two quantized forms are one model.
    let perplexity = |model| {
        json(dir, &["eval", model, "--task", "perplexity", "--data", "text", "--json"])["perplexity"].clone()
    };
    assert_eq!(perplexity("qat"), perplexity("packed"));
    assert_ne!(perplexity("qat"), perplexity("fp"));
    // Windows of 16 tokens, disjoint and overlapping, score the same tokens in other contexts.
    let windows = |options: &[&'static str]| {
        let eval = ["eval", "packed", "--task", "perplexity", "--data", "text", "--json", "--context", "16"];
        json(dir, &[&eval[..], options].concat())
    };
    let (apart, sliding) = (windows(&[]), windows(&["--stride", "4"]));
    assert_eq!((apart["context"].as_u64(), apart["stride"].as_u64()), (Some(16), Some(15)));
    assert_eq!((sliding["context"].as_u64(), sliding["stride"].as_u64()), (Some(16), Some(4)));
    assert_eq!(apart["n_tokens"], sliding["n_tokens"]);
    assert_ne!(apart["perplexity"], sliding["perplexity"]);

    for (model, kind) in [("fp", "full_precision"), ("qat", "checkpoint"), ("packed", "packed")] {
        let summary = json(dir, &["inspect", model, "--json"]);
        has(
            &summary,
            &["kind", "architecture", "config", "num_parameters", "weight_bytes", "layers", "outside"],
        );
        assert_eq!(summary["kind"], kind);
        assert_eq!(summary["layers"].as_array().unwrap().len(), 3);
        if kind != "full_precision" {
            has(&summary, &["plan", "points", "policy", "rho"]);
            assert_eq!(summary["points"].as_array().unwrap().len(), 9);
            has(&summary["layers"][2], &["threshold", "bytes", "tensors"]);
        }
    }
    let report = json(dir, &["pack", "qat", "--out", "again", "--json"]);
    has(&report, &["entries", "bytes_before", "bytes_after", "learned_scales"]);
    assert_eq!(report["learned_scales"], true);
    let same = |name: &str| {
        let read = |folder: &str| std::fs::read(dir.join(folder).join(name)).unwrap();
        assert!(read("again") == read("packed"), "{name}");
    };
    same("model.safetensors");
    same("config.json");
    let nearest = json(dir, &["pack", "fp", "--plan", "w8a8", "--out", "nearest", "--json"]);
    assert_eq!(nearest["learned_scales"], false);
    has(
        &json(dir, &["doctor", "--json"]),
        &["version", "kernels", "kernels_available", "threads", "features"],
    );
    let shards = [
        "data",
        "prepare",
        "text",
        "--tokenizer",
        "tokenizer",
        "--out",
        "shards",
        "--split",
        "all",
        "--json",
    ];
    let shards = json(dir, &shards);
    has(&shards, &["words", "tokens", "documents", "identity", "reused"]);
}

/// The same words for people: a table, and nothing that a pipe should not see.
#[test]
fn a_pipe_gets_plain_text() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    models(dir);
    for args in [
        &["train", "recipe.toml", "--out", "run"][..],
        &["inspect", "packed"],
        &["pack", "qat", "--out", "again"],
        &["eval", "packed", "--task", "pairs", "--data", "pairs"],
        &["eval", "qat", "--task", "perplexity", "--data", "text"],
        &["generate", "packed", "--prompt", "The dog", "--max-tokens", "8"],
        &["bench", "packed", "-p", "4", "-n", "4", "-r", "1"],
        &["doctor"],
        &["pack", "fp", "--out", "again"],
        &["--help"],
    ] {
        // Even where somebody asks for colours by habit.
        let output = squat(dir, args).env("TERM", "xterm-256color").env("COLORTERM", "truecolor").output();
        let output = output.unwrap();
        for (name, bytes) in [("stdout", &output.stdout), ("stderr", &output.stderr)] {
            let bad = bytes.iter().position(|&b| b == 0x1B || b == b'\r' || b == 8);
            assert_eq!(bad, None, "{name} of squat {}: {}", args.join(" "), String::from_utf8_lossy(bytes));
        }
        if output.status.success() {
            assert!(!output.stdout.is_empty(), "squat {}", args.join(" "));
        }
    }
}

#[test]
fn generation_repeats_itself() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    models(dir);
    let generate = |rest: &[&'static str]| {
        let args = ["generate", "packed", "--prompt", "The dog", "--max-tokens", "20"];
        let args: Vec<&str> = args.into_iter().chain(rest.iter().copied()).collect();
        ok(dir, &args)
    };
    let first = generate(&["--seed", "4"]);
    assert!(first.starts_with("The dog") && first.ends_with('\n'), "{first:?}");
    assert_eq!(first, generate(&["--seed", "4", "-t", "1"]));
    assert_ne!(first, generate(&["--seed", "5"]));
    let greedy = generate(&["--temperature", "0"]);
    assert_eq!(greedy, generate(&["--temperature", "0", "--seed", "9"]));
    assert_eq!(greedy, generate(&["--top-k", "1"]));
    assert_eq!(ok(dir, &["generate", "packed", "--prompt", "The dog", "--max-tokens", "0"]), "The dog\n");
    // The kernels are named where a person sees them, on stderr; every instruction set gives the same text.
    let named = output(dir, &["generate", "packed", "--prompt", "The dog"]);
    assert!(text(&named.stderr).starts_with("kernels: "), "{named:?}");
    let scalar =
        squat(dir, &["generate", "packed", "--prompt", "The dog", "--max-tokens", "20", "--seed", "4"])
            .env("SQUAT_ISA", "scalar")
            .output()
            .unwrap();
    assert!(text(&scalar.stderr).contains("scalar-"), "{scalar:?}");
    assert_eq!(text(&scalar.stdout), first);
}

/// `squat inspect MODEL | head -1`: a reader that goes away is not an error.
#[test]
fn a_closed_pipe_is_no_error() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    models(dir);
    for args in [&["inspect", "packed"][..], &["generate", "packed", "--max-tokens", "50"]] {
        let mut child = squat(dir, args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        drop(child.stdout.take());
        let output = child.wait_with_output().unwrap();
        let stderr = text(&output.stderr);
        assert_eq!(output.status.code(), Some(0), "{stderr}");
        assert!(!stderr.contains("panicked") && !stderr.contains("error"), "{stderr}");
    }
}

/// From a recipe to text, each verb on what the one before has left.
#[test]
fn from_recipe_to_text() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    std::fs::write(dir.join("recipe.toml"), RECIPE).unwrap();
    assert_eq!(ok(dir, &["train", "recipe.toml"]), "runs/tiny\n");
    // A run, a stage and a checkpoint are all models.
    for path in ["runs/tiny", "runs/tiny/q", "runs/tiny/q/best"] {
        assert_eq!(json(dir, &["inspect", path, "--json"])["kind"], "checkpoint", "{path}");
    }
    assert_eq!(json(dir, &["inspect", "runs/tiny/fp", "--json"])["kind"], "full_precision");
    ok(dir, &["pack", "runs/tiny", "--out", "packed"]);
    let perplexity = |model: &str, form: &str| {
        let data = "runs/tiny/data/valid";
        let args = ["eval", model, "--task", "perplexity", "--data", data, "--form", form, "--json"];
        json(dir, &args)["perplexity"].as_f64().unwrap()
    };
    let (fake, packed) = (perplexity("runs/tiny", "fake"), perplexity("packed", "packed"));
    assert_eq!(fake, packed);
    let full = perplexity("runs/tiny/fp", "fp");
    assert!((full / packed - 1.0).abs() < 0.1, "{full} {packed}");
    assert!(
        ok(dir, &["generate", "packed", "--prompt", "The dog", "--max-tokens", "8"]).starts_with("The dog")
    );
    // What the run says of itself.
    let provenance = std::fs::read_to_string(dir.join("runs/tiny/provenance.json")).unwrap();
    let provenance: Value = serde_json::from_str(&provenance).unwrap();
    has(&provenance, &["version", "recipe_sha256", "tokenizer_sha256", "train_identity", "seed"]);
    let written = std::fs::read_to_string(dir.join("runs/tiny/recipe.toml")).unwrap();
    let recipe = squat_train::Recipe::parse(&written, &[]).unwrap();
    assert_eq!(recipe.to_toml().unwrap(), written);
}

#[cfg(unix)]
#[test]
fn interrupting_saves_and_resuming_finishes() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let recipe = RECIPE.replacen("steps = 4", "steps = 300\nlog_every = 1\nsave_every = 1000", 1);
    std::fs::write(dir.join("recipe.toml"), recipe).unwrap();
    let args = ["train", "recipe.toml", "--out", "run", "-t", "1"];
    let mut command = squat(dir, &args);
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let metrics = dir.join("run/fp/metrics.jsonl");
    let started = Instant::now();
    while std::fs::read_to_string(&metrics).unwrap_or_default().lines().count() < 5 {
        assert!(started.elapsed() < Duration::from_secs(60), "no step within a minute");
        std::thread::sleep(Duration::from_millis(5));
    }
    let killed = Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    assert!(killed.success());
    let output = child.wait_with_output().unwrap();
    let stderr = text(&output.stderr);
    assert_eq!(output.status.code(), Some(130), "{stderr}");
    assert_eq!(text(&output.stdout), "");
    assert!(stderr.contains("checkpoint saved") && !stderr.contains("error"), "{stderr}");
    // The line says how to go on, word for word.
    let next = stderr.lines().find_map(|line| line.split("continue with: squat ").nth(1)).unwrap();
    let next: Vec<&str> = next.split(' ').collect();
    assert!(next.starts_with(&args[..2]) && next.contains(&"--resume"), "{next:?}");
    let state = std::fs::read_to_string(dir.join("run/fp/last/trainer_state.json")).unwrap();
    let step = serde_json::from_str::<Value>(&state).unwrap()["step"].as_u64().unwrap();
    assert!((5..300).contains(&step), "stopped at step {step}");
    assert!(stderr.contains(&format!("stopped at step {step}")), "{stderr}");
    let resumed = common::command::output(dir, &next);
    let stderr = text(&resumed.stderr);
    assert_eq!((resumed.status.code(), text(&resumed.stdout).as_str()), (Some(0), "run\n"), "{stderr}");
    assert!(stderr.contains(&format!("from step {step}")), "{stderr}");
    let lines = std::fs::read_to_string(&metrics).unwrap();
    let steps: Vec<u64> = lines
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap())
        .filter(|line| line.get("loss").is_some())
        .map(|line| line["step"].as_u64().unwrap())
        .collect();
    assert_eq!(steps, (1..=300).collect::<Vec<_>>());
}

/// Files cannot grow beyond a few kilobytes, which is what a full disk looks like to a program.
#[cfg(unix)]
#[test]
fn a_full_disk_destroys_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    models(dir);
    let limited = |blocks: u32, args: &[&str]| {
        // The signal that comes with the limit is ignored, so that writing fails as it does on a full disk.
        let script = format!("ulimit -f {blocks}; trap '' XFSZ; exec \"$0\" \"$@\"");
        Command::new("sh")
            .args(["-c", &script, env!("CARGO_BIN_EXE_squat")])
            .args(args)
            .current_dir(dir)
            .output()
            .unwrap()
    };
    let before = tree(dir);
    for args in [
        &["pack", "qat", "--out", "new"][..],
        &["pack", "qat", "--out", "packed"],
        &["train", "recipe.toml", "--out", "run"],
        &["tokenizer", "train", "text", "--split", "all", "--vocab-size", "300", "--out", "t"],
        &["data", "prepare", "text", "--split", "all", "--tokenizer", "tokenizer", "--out", "shards"],
    ] {
        // Prepared text of a few lines fits into a few kilobytes.
        for blocks in if args[0] == "data" { 0..1 } else { 0..9 }.step_by(8) {
            check_refusal(&limited(blocks, args), args, &["cannot ", "make room"]);
            assert_eq!(before, tree(dir), "squat {}", args.join(" "));
        }
    }
    // A run in progress keeps its last good checkpoint, and goes on when there is room.
    let recipe = RECIPE.replacen("steps = 4", "steps = 8\nsave_every = 2\nlog_every = 1", 1);
    std::fs::write(dir.join("recipe.toml"), &recipe).unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let execution = Execution { stop: stop.clone(), ..Execution::on_cpu(1) };
    let options = RunOptions { folder: dir.join("run"), execution, force: false };
    let outcome = run_recipe(&Recipe::parse(&recipe, &[]).unwrap(), &options, &mut |event| {
        if let RunEvent::Training(Event::Step { step: 5, .. }) = event {
            stop.store(true, Ordering::Relaxed);
        }
    });
    assert_eq!(outcome.unwrap(), Outcome::Interrupted { step: 5 });
    let resume = ["train", "recipe.toml", "--out", "run", "-t", "1", "--resume"];
    let contents = || -> Vec<(PathBuf, Vec<u8>)> {
        let files = tree(&dir.join("run")).into_keys().filter(|path| path.is_file());
        files.map(|path| (path.clone(), std::fs::read(&path).unwrap())).collect()
    };
    let before = contents();
    check_refusal(&limited(0, &resume), &resume, &["cannot ", "make room"]);
    assert!(before == contents(), "nothing can be written, nothing may be lost");
    // Metrics still fit, the next checkpoint does not.
    check_refusal(&limited(8, &resume), &resume, &["cannot write", "make room"]);
    let metrics = dir.join("run/fp/metrics.jsonl");
    for ((path, old), (again, new)) in before.iter().zip(&contents()) {
        assert_eq!(path, again);
        assert!(old == new || *path == metrics, "{}", path.display());
    }
    ok(dir, &resume);
    let lines = std::fs::read_to_string(&metrics).unwrap();
    let steps = lines.lines().filter(|line| line.contains("\"loss\"")).count();
    assert_eq!(steps, 8, "{lines}");
}

/// The same on a real small disk, where one may be mounted.
#[cfg(target_os = "linux")]
#[test]
fn a_small_disk_destroys_nothing() {
    struct Mounted<'a>(&'a Path);
    impl Drop for Mounted<'_> {
        fn drop(&mut self) {
            let _ = Command::new("umount").arg(self.0).status();
        }
    }
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let disk = dir.join("disk");
    std::fs::create_dir(&disk).unwrap();
    let mount = Command::new("mount")
        .args(["-t", "tmpfs", "-o", "size=96k", "squat-test"])
        .arg(&disk)
        .stderr(Stdio::null())
        .status();
    if !mount.is_ok_and(|status| status.success()) {
        eprintln!("SKIPPED: mounting a small disk is not permitted here");
        return;
    }
    let _mounted = Mounted(&disk);
    models(dir);
    let pack = ["pack", "qat", "--out", "disk/model"];
    ok(dir, &pack);
    let whole = tree(&disk);
    // Replacing needs room for both.
    check_refusal(&output(dir, &pack), &pack, &["No space left", "make room"]);
    assert_eq!(whole, tree(&disk));
    assert!(
        ok(dir, &["generate", "disk/model", "--prompt", "The dog", "--max-tokens", "3"])
            .starts_with("The dog")
    );
}

/// Results that cannot be written are an error in every form of output.
#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_behind_stdout_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    models(dir);
    for args in [
        &["--help"][..],
        &["--version"],
        &["inspect", "packed"],
        &["inspect", "packed", "--json"],
        &["pack", "qat", "--out", "again"],
        &["pack", "qat", "--out", "again", "--json"],
        &["eval", "packed", "--task", "pairs", "--data", "pairs", "--json"],
        &["eval", "packed", "--task", "perplexity", "--data", "text"],
        &["generate", "packed", "--max-tokens", "3"],
        &["generate", "packed", "--max-tokens", "3", "--json"],
        &["bench", "packed", "-p", "4", "-n", "0", "-r", "1", "--csv"],
        &["doctor", "--json"],
        &[
            "data",
            "prepare",
            "text",
            "--split",
            "all",
            "--tokenizer",
            "tokenizer",
            "--out",
            "shards",
            "--json",
        ],
        &["tokenizer", "train", "text", "--split", "all", "--vocab-size", "300", "--out", "tok"],
        &["train", "recipe.toml", "--out", "run", "--json"],
    ] {
        let full = std::fs::File::options().write(true).open("/dev/full").unwrap();
        let output = squat(dir, args).stdout(full).output().unwrap();
        let stderr = text(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "squat {}: {stderr}", args.join(" "));
        assert!(stderr.contains("error: cannot write the result") && stderr.contains("No space"), "{stderr}");
    }
}

#[test]
fn prompts_from_anywhere() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    models(dir);
    let greedy = ["--temperature", "0", "--max-tokens", "4"];
    let generate = |args: &[&str]| ok(dir, &[&["generate", "packed"], args, &greedy].concat());
    let want = generate(&["--prompt", "The dog"]);
    std::fs::write(dir.join("prompt.txt"), "The dog\n").unwrap();
    assert_eq!(generate(&["--prompt-file", "prompt.txt"]), want);
    let stdin = std::fs::File::open(dir.join("prompt.txt")).unwrap();
    let args = [&["generate", "packed", "--prompt", "-"][..], &greedy].concat();
    let piped = squat(dir, &args).stdin(stdin).output().unwrap();
    assert_eq!(text(&piped.stdout), want);
    assert!(generate(&["--prompt", "-x"]).starts_with("-x"));
    // Longer than an argument can be on Linux; the model takes less, which is said.
    std::fs::write(dir.join("long.txt"), "dog ".repeat(50_000)).unwrap();
    let long = output(dir, &["generate", "packed", "--prompt-file", "long.txt"]);
    check_refusal(&long, &["generate"], &["do not fit", "128"]);
    let value = json(dir, &[&["generate", "packed", "--prompt", "The dog", "--json"][..], &greedy].concat());
    assert_eq!(value["text"].as_str().unwrap(), want.trim_end_matches('\n'));
    assert_eq!((value["tokens"].as_array().unwrap().len(), value["finish"].as_str()), (4, Some("length")));
    let tok =
        ["tokenizer", "train", "text", "--split", "all", "--vocab-size", "300", "--out", "tok", "--json"];
    let value = json(dir, &tok);
    assert_eq!(value["out"], "tok");
    assert!(value["ids"].as_u64().unwrap() >= 259, "{value}");
}

/// Foreign names cannot move the cursor, and a megabyte of a name is cut.
#[test]
fn names_from_files_are_shown_without_control_characters() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    models(dir);
    let pair = |name: &str| {
        serde_json::json!({"sentence_good": "a b", "sentence_bad": "b a", "UID": name, "linguistics_term": name}).to_string()
    };
    let evil = "\u{1b}[2J\u{9b}x\u{202e}";
    std::fs::write(dir.join("evil.jsonl"), pair(evil) + "\n" + &pair("plain")).unwrap();
    let eval = ["eval", "packed", "--task", "pairs", "--data", "evil.jsonl"];
    let table = ok(dir, &eval);
    assert!(table.contains("\\u{1b}[2J\\u{9b}x\\u{202e}") && !table.contains('\u{1b}'), "{table}");
    let value = json(dir, &[&eval[..], &["--json"]].concat());
    assert!(value["groups"].get(evil).is_some(), "programs get the name itself: {value}");
    // A name of a megabyte and control characters in the name of an architecture, and in the path of a file.
    let config = std::fs::read_to_string(dir.join("fp/config.json")).unwrap();
    for name in ["\\u001b[31m".to_owned(), "A".repeat(1 << 20)] {
        std::fs::write(dir.join("fp/config.json"), config.replace("LlamaForCausalLM", &name)).unwrap();
        let stderr = text(&output(dir, &["inspect", "fp"]).stderr);
        assert!(
            stderr.starts_with("error: ") && stderr.len() < 10_000 && !stderr.contains('\u{1b}'),
            "{stderr}"
        );
    }
    let stderr = text(&output(dir, &["inspect", "no\u{1b}[31msuch"]).stderr);
    assert!(stderr.contains("no\\u{1b}[31msuch does not exist"), "{stderr}");
}

/// Signals while data and tokenizers are made: exit code 130 soon, and nothing half-made is left.
#[cfg(unix)]
#[test]
fn a_signal_ends_long_work_and_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    models(dir);
    let line = std::fs::read_to_string(dir.join("text/a.txt")).unwrap();
    std::fs::create_dir(dir.join("long")).unwrap();
    std::fs::write(dir.join("long/a.train.txt"), line.repeat(400_000)).unwrap();
    for (signal, args) in [
        ("-TERM", &["data", "prepare", "long", "--tokenizer", "tokenizer", "--out", "shards"][..]),
        ("-HUP", &["tokenizer", "train", "long", "--out", "tok"]),
        ("-INT", &["eval", "packed", "--task", "perplexity", "--data", "long/a.train.txt"]),
    ] {
        let before = tree(dir);
        let child = squat(dir, args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        std::thread::sleep(Duration::from_millis(1500));
        assert!(Command::new("kill").args([signal, &child.id().to_string()]).status().unwrap().success());
        let asked = Instant::now();
        let output = child.wait_with_output().unwrap();
        let stderr = text(&output.stderr);
        assert_eq!(output.status.code(), Some(130), "squat {}: {stderr}", args.join(" "));
        assert!(asked.elapsed() < Duration::from_secs(10), "{:?}", asked.elapsed());
        assert!(output.stdout.is_empty() && !stderr.contains("error"), "{stderr}");
        assert_eq!(before, tree(dir), "squat {}", args.join(" "));
    }
}

/// A model that is one file, with its tokenizer beside it, serves every verb like a folder.
#[test]
fn a_single_file_is_a_model_for_every_verb() {
    use squat_test::llama2c::{VOCABULARY, checkpoint, tokenizer};
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    std::fs::write(dir.join("m.bin"), checkpoint(VOCABULARY)).unwrap();
    std::fs::write(dir.join("tokenizer.bin"), tokenizer()).unwrap();
    std::fs::write(dir.join("text.txt"), "abab a baba ab ".repeat(40)).unwrap();
    let sizes = ["--tokens", "60", "--eval-tokens", "30"];
    for args in [
        &["inspect", "m.bin"][..],
        &["generate", "m.bin", "--prompt", "ab", "--max-tokens", "3"],
        &["eval", "m.bin", "--task", "perplexity", "--data", "text.txt"],
        &["bench", "m.bin", "-p", "4", "-n", "4", "-r", "1"],
        &["pack", "m.bin", "--plan", "w8a8", "--out", "packed"],
        &[&["quantize", "m.bin", "--data", "text.txt", "--out", "quantized"], &sizes[..]].concat(),
        &["eval", "quantized", "--task", "perplexity", "--data", "text.txt"],
    ] {
        let found = output(dir, args);
        assert!(found.status.success(), "{}: {}", args.join(" "), text(&found.stderr));
    }
    check_refusal(
        &output(dir, &["inspect", "m.bin", "--verify"]),
        &["inspect"],
        &["m.bin", "SHA256SUMS is missing"],
    );
}

#[test]
fn quantize_measures_on_other_text_than_it_calibrates_on() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    models(dir);
    let english = std::fs::read_to_string(dir.join("text/a.txt")).unwrap();
    std::fs::write(dir.join("long.txt"), english.repeat(60)).unwrap();
    let sizes = ["--tokens", "500", "--eval-tokens", "254", "--json", "--threads", "2"];
    let made = |words: &[&str]| json(dir, &[&["quantize", "fp"], words, &sizes[..]].concat());
    // Two windows of 127 predicted tokens; the same figure as the packed folder gets from `eval`.
    std::fs::write(dir.join("held-out.txt"), english.repeat(10)).unwrap();
    let all = made(&["--data", "long.txt", "--held-out", "held-out.txt", "--plan", "w4a8", "--out", "all"]);
    has(&all, &["perplexity_before", "perplexity_after", "equal_next_tokens", "bytes_after", "seconds"]);
    assert_eq!(all["tokens"], 254);
    assert!(all["kl_divergence"].as_f64().unwrap() > 0.0);
    let nearest = ["--methods", "none", "--out", "nearest"];
    let nearest = made(&[&["--data", "long.txt", "--held-out", "held-out.txt"], &nearest[..]].concat());
    assert!(all["kl_divergence"].as_f64() < nearest["kl_divergence"].as_f64(), "{all} {nearest}");
    // Rounding by this verb is that of `pack`, byte for byte.
    let packed = output(dir, &["pack", "fp", "--plan", "w4a8", "--out", "packed-nearest"]);
    assert!(packed.status.success(), "{}", text(&packed.stderr));
    let weights = |folder: &str| std::fs::read(dir.join(folder).join("model.safetensors")).unwrap();
    assert!(weights("nearest") == weights("packed-nearest"));
    assert!(weights("all") != weights("nearest"));
    // Text that the model writes itself, the same for the same seed.
    let free = made(&["--data-free", "--out", "free"]);
    let again = made(&["--out", "again"]);
    assert_eq!(free["tokens"], 254);
    assert_eq!(free["kl_divergence"], again["kl_divergence"]);
    assert!(weights("free") == weights("again"));

    // Bits by token: thresholds are found, and the packed model has them.
    let mixed =
        made(&["--data", "long.txt", "--held-out", "held-out.txt", "--plan", "rho50", "--out", "rho50"]);
    assert!(mixed["kl_divergence"].as_f64() > all["kl_divergence"].as_f64(), "{mixed} {all}");
    let config = std::fs::read_to_string(dir.join("rho50/config.json")).unwrap();
    let config: serde_json::Value = serde_json::from_str(&config).unwrap();
    let plan = &config["squat"]["plan"];
    let (thresholds, layers) = (plan["thresholds"].as_array(), config["num_hidden_layers"].as_u64());
    assert_eq!(thresholds.map(|list| list.len() as u64), layers, "{config}");
    assert_eq!(plan["clip"], 0.85, "{config}");

    // Training within a time. Nothing of the way is left beside the output.
    let tuned = made(&[
        "--data",
        "long.txt",
        "--held-out",
        "held-out.txt",
        "--plan",
        "w2a8",
        "--minutes",
        "0.35",
        "--out",
        "tuned",
    ]);
    let start =
        made(&["--data", "long.txt", "--held-out", "held-out.txt", "--plan", "w2a8", "--out", "untuned"]);
    assert!(tuned["perplexity_after"].as_f64() < start["perplexity_after"].as_f64(), "{tuned} {start}");
    assert!(tuned["seconds"].as_f64().unwrap() < 0.35 * 60.0 * 1.1, "{tuned}");
    // However little time there is, there is a model at the end.
    let words =
        ["quantize", "fp", "--data", "long.txt", "--plan", "w2a8", "--minutes", "0.1", "--out", "hurried"];
    let hurried = output(dir, &[&words, &sizes[..]].concat());
    assert!(hurried.status.success() && dir.join("hurried/README.md").is_file(), "{}", text(&hurried.stderr));
    assert!(!dir.join(".tuned.quantize").exists() && !dir.join(".untuned.quantize").exists());

    let refuse = |words: &[&str], expected: &[&str]| {
        check_refusal(&output(dir, words), words, expected);
    };
    refuse(&["quantize", "fp", "--data", "text", "--out", "new"], &["too short", "381 tokens"]);
    refuse(&["quantize", "fp", "--out", "fp"], &["is not replaced", "--force"]);
    std::fs::write(dir.join("word.txt"), "dog").unwrap();
    refuse(
        &["quantize", "fp", "--held-out", "word.txt", "--out", "new"],
        &["word.txt", "too short", "127 tokens"],
    );
    refuse(
        &["quantize", "fp", "--out", "word.txt/new"],
        &["word.txt/new", "is a file", "choose another output"],
    );
    for tokens in ["0", "99999999999999999999", "-1"] {
        let wrong = output(dir, &["quantize", "fp", "--tokens", tokens, "--out", "new"]);
        assert_eq!(wrong.status.code(), Some(2), "{}", text(&wrong.stderr));
    }
    refuse(&["quantize", "qat", "--out", "new"], &["has quantizers already"]);
    refuse(&["quantize", "fp", "--plan", "fp", "--out", "new"], &["quantizes no weights"]);
    assert!(!dir.join("new").exists());
}

fn number(value: &serde_json::Value) -> f64 {
    value.as_f64().unwrap()
}

/// What each layer costs, bits by that for a number of bytes, and the card beside the result.
#[test]
fn bytes_decide_the_bits_of_layers() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    models(dir);
    let english = std::fs::read_to_string(dir.join("text/a.txt")).unwrap();
    std::fs::write(dir.join("long.txt"), english.repeat(60)).unwrap();
    let sum = |plan: &str| {
        let found = json(dir, &["sensitivity", "fp", "--plan", plan, "--tokens", "100", "--json"]);
        let costs: Vec<f64> =
            found["weights"].as_array().unwrap().iter().map(|unit| number(&unit["divergence"])).collect();
        assert_eq!(costs.len() % 4, 0, "{found}");
        assert_eq!(found["activations"].as_array().unwrap().len(), 9);
        costs.iter().sum::<f64>()
    };
    let [wide, narrow] = ["w8a8", "w2a8"].map(sum);
    assert!(0.0 < wide && wide < 0.1 * narrow, "{wide} {narrow}");
    let table = output(dir, &["sensitivity", "fp", "--tokens", "60", "--methods", "none"]);
    assert!(text(&table.stdout).contains("| layer 0") && text(&table.stdout).contains("lm_head_input"));

    let sizes = ["--data", "long.txt", "--tokens", "300", "--eval-tokens", "200", "--threads", "2", "--json"];
    let made = |words: &[&str]| json(dir, &[&["quantize", "fp"], words, &sizes[..]].concat());
    let uniform = made(&["--out", "uniform"]);
    let bytes = uniform["bytes_after"].to_string();
    let mixed = made(&["--target-bytes", &bytes, "--out", "mixed"]);
    let taken = number(&mixed["bytes_after"]);
    assert!(
        taken <= number(&uniform["bytes_after"]) && taken > 0.8 * number(&uniform["bytes_after"]),
        "{mixed}"
    );
    let config = std::fs::read_to_string(dir.join("mixed/config.json")).unwrap();
    assert!(config.contains("exceptions"), "{config}");
    // The packed model says what was measured on the checkpoint, and is what it was written as.
    let generated = output(dir, &["generate", "mixed", "--prompt", "the", "--max-tokens", "5"]);
    assert!(generated.status.success(), "{}", text(&generated.stderr));
    assert!(output(dir, &["inspect", "mixed", "--verify"]).status.success());
    let card = std::fs::read_to_string(dir.join("mixed/README.md")).unwrap();
    for words in ["# fp, w4a8", "KL divergence", "`long.txt`", "residual", "Seed: 1"] {
        assert!(card.contains(words), "{words}: {card}");
    }
    assert!(!card.contains(dir.to_str().unwrap()), "no path of this machine: {card}");

    for (words, expected) in [
        (&["quantize", "fp", "--target-bytes", "1000", "--out", "x"][..], &["too few", "-t4"][..]),
        (&["sensitivity", "qat"], &["has quantizers already"]),
        (&["sensitivity", "fp", "--plan", "fp"], &["quantizes weights"]),
        (&["sensitivity", "nowhere"], &["nowhere"]),
    ] {
        check_refusal(&output(dir, words), words, expected);
    }
    let wrong = output(dir, &["quantize", "fp", "--target-bytes", "60XB", "--out", "x"]);
    assert!(
        wrong.status.code() == Some(2) && text(&wrong.stderr).contains("60MB"),
        "{}",
        text(&wrong.stderr)
    );
}
