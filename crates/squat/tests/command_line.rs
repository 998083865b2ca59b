//! What a person at the command line sees: help, tables, messages, word for word, in `snapshots/`.
//!
//! After a wanted change: `INSTA_UPDATE=always cargo test -p squat --test command_line`, and read the difference.
#![cfg(feature = "train")]
#![allow(clippy::unwrap_used)]

mod common;

use common::command::{models, output, squat, text};
use squat_kernels::Kernels;
use std::path::Path;

/// `$ squat ARGS`, then its stdout and stderr, and its exit code unless it is 0. Lines are left out where they repeat others
/// (layers after the first) or name the kernels of this machine.
fn shown(dir: &Path, args: &[&str]) -> String {
    let output = output(dir, args);
    let words =
        args.iter().map(|arg| if arg.contains(' ') { format!("\"{arg}\"") } else { (*arg).to_owned() });
    let mut all = format!("$ squat {}\n", words.collect::<Vec<_>>().join(" "));
    for line in text(&output.stdout).lines().chain(text(&output.stderr).lines()) {
        let repeats = ["| model.layers.1.", "| model.layers.2."].iter().any(|word| line.starts_with(word));
        if !repeats && !line.starts_with("kernels: ") {
            all += &format!("{line}\n");
        }
    }
    if output.status.code() != Some(0) {
        all += &format!("[exit code {}]\n", output.status.code().unwrap());
    }
    all + "\n"
}

/// The same without what a machine measures: in tables and comma-separated lines, numbers are `#`, kernels `KERNEL`, and what
/// bounds the speed is `LIMIT`.
fn measured(dir: &Path, args: &[&str]) -> String {
    let cell = |cell: &str| {
        let cell = cell.trim();
        match cell {
            "compute" | "memory" => "LIMIT",
            cell if cell.starts_with([':', '-']) => "---",
            cell if Kernels::available().any(|set| cell.starts_with(set.name())) => "KERNEL",
            cell if cell.starts_with(|c: char| c.is_ascii_digit()) => "#",
            cell => cell,
        }
        .to_owned()
    };
    let line = |line: &str| match line.strip_prefix('|').and_then(|line| line.strip_suffix('|')) {
        Some(cells) => format!("| {} |\n", cells.split('|').map(cell).collect::<Vec<_>>().join(" | ")),
        None if line.starts_with("$ ") => format!("{line}\n"),
        None => format!("{}\n", line.split(',').map(cell).collect::<Vec<_>>().join(",")),
    };
    shown(dir, args).lines().map(line).collect()
}

#[test]
fn help() {
    let dir = tempfile::tempdir().unwrap();
    let verbs = [
        "",
        "quickstart",
        "data",
        "data prepare",
        "data merge",
        "tokenizer",
        "tokenizer train",
        "train",
        "quantize",
        "sensitivity",
        "pack",
    ];
    let verbs =
        verbs.into_iter().chain(["eval", "generate", "bench", "inspect", "doctor", "completions", "man"]);
    let all: String = verbs
        .map(|verb| {
            shown(
                dir.path(),
                &verb.split(' ').filter(|word| !word.is_empty()).chain(["--help"]).collect::<Vec<_>>(),
            )
        })
        .collect();
    insta::assert_snapshot!(all);
}

#[test]
fn tables() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    models(dir);
    let all: String = [
        &["inspect", "fp"][..],
        &["inspect", "qat"],
        &["inspect", "packed"],
        &["pack", "qat", "--out", "again"],
        &["pack", "fp", "--plan", "w4a8-g32", "--out", "nearest"],
        &["inspect", "nearest"],
        &["eval", "packed", "--task", "pairs", "--data", "pairs"],
        &["eval", "packed", "--task", "perplexity", "--data", "text"],
        &["tokenizer", "train", "text", "--split", "all", "--vocab-size", "300", "--out", "tok"],
    ]
    .iter()
    .map(|args| shown(dir, args))
    .collect();
    insta::assert_snapshot!(all);
}

#[test]
fn tables_of_measurements() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    models(dir);
    let short = ["-p", "4", "-n", "4", "-r", "2", "-t", "1"];
    let all: String = [
        &["bench", "packed"][..],
        &["bench", "packed", "--compare", "fp"],
        &["bench", "fp", "--scheme", "w8a8"],
        &["bench", "--random", "tiny", "-b", "1,2"],
        &["bench", "--random", "tiny", "--csv"],
        &["bench", "--train", "tiny", "--seq", "8"],
        &["data", "prepare", "text", "--split", "all", "--tokenizer", "tokenizer", "--out", "shards"],
        &["generate", "packed", "--prompt", "The dog", "--max-tokens", "0"],
    ]
    .iter()
    .map(|args| {
        let short = if args[0] == "bench" { &short[..] } else { &[] };
        measured(dir, &args.iter().chain(short).copied().collect::<Vec<_>>())
    })
    .collect();
    insta::assert_snapshot!(all);
}

/// What differs between machines is left out: only names of lines, and the rows that every machine has.
#[test]
fn doctor() {
    let dir = tempfile::tempdir().unwrap();
    let output = squat(dir.path(), &["doctor"]).env("SQUAT_ISA", "scalar").output().unwrap();
    let lines = text(&output.stdout);
    let names: Vec<&str> = lines
        .lines()
        .filter_map(|line| match line.strip_prefix('|') {
            Some(row) => row.split('|').next().map(str::trim).filter(|name| !name.starts_with(['r', ':'])),
            None => line.split_once(": ").map(|(name, _)| name),
        })
        .collect();
    insta::assert_snapshot!(names.join("\n"));
}

#[test]
fn mistakes() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    models(dir);
    let whole = std::fs::read(dir.join("packed/model.safetensors")).unwrap();
    for folder in ["truncated", "other-size"] {
        std::fs::create_dir(dir.join(folder)).unwrap();
        for file in std::fs::read_dir(dir.join("packed")).unwrap() {
            let path = file.unwrap().path();
            std::fs::copy(&path, dir.join(folder).join(path.file_name().unwrap())).unwrap();
        }
    }
    std::fs::write(dir.join("truncated/model.safetensors"), &whole[..whole.len() / 2]).unwrap();
    let config = std::fs::read_to_string(dir.join("packed/config.json")).unwrap();
    let config = config.replace("\"intermediate_size\": 83", "\"intermediate_size\": 84");
    std::fs::write(dir.join("other-size/config.json"), config).unwrap();
    std::fs::write(dir.join("model.gguf"), b"GGUF, but no more").unwrap();
    std::fs::write(dir.join("empty.txt"), "").unwrap();
    let recipe = std::fs::read_to_string(dir.join("recipe.toml")).unwrap();
    std::fs::write(dir.join("bad.toml"), recipe.replacen("batch_size = 4", "batchsize = 4", 1)).unwrap();
    let all: String = [
        // Words.
        &["evaluate", "packed"][..],
        &["generate", "packed", "--promt", "x"],
        &["bench", "packed", "-t", "two"],
        &["pack"],
        // Paths.
        &["generate", "pakced"],
        &["inspect", "text"],
        &["inspect", "recipe.toml"],
        &["eval", "packed", "--task", "pairs", "--data", "pair"],
        &["train", "recipes.toml"],
        &["pack", "qat", "--out", "text"],
        // Names.
        &["pack", "fp", "--plan", "w4a9", "--out", "x"],
        &["eval", "packed", "--task", "blimb", "--data", "pairs"],
        &["eval", "packed", "--task", "pairs", "--data", "pairs", "--form", "pakced"],
        &["bench", "--random", "llama-59m"],
        &["train", "recipe.toml", "--out", "run", "--device", "cdua"],
        // Contradictions.
        &["pack", "fp", "--out", "x"],
        &["pack", "fp", "--plan", "rho50", "--out", "x"],
        &["pack", "packed", "--out", "x"],
        &["eval", "packed", "--task", "pairs", "--data", "pairs", "--form", "fp"],
        &["generate", "packed", "--temperature", "-1"],
        &["bench", "packed", "-p", "200"],
        // Files.
        &["generate", "truncated"],
        &["inspect", "other-size"],
        &["inspect", "model.gguf"],
        &["eval", "packed", "--task", "perplexity", "--data", "empty.txt"],
        // Recipes.
        &["train", "bad.toml", "--out", "run"],
        &["train", "recipe.toml", "--out", "run", "--set", "data.seq_length=3"],
        &["train", "recipe.toml", "--out", "run", "--set", "stage.q.init=nowhere"],
        &["train", "recipe.toml", "--out", "run", "--set", "stage.fp.batch_size=3"],
    ]
    .iter()
    .map(|args| shown(dir, args))
    .collect();
    insta::assert_snapshot!(all);
}

/// Every verb's help ends with examples, and they run as they stand, in the order of the help.
#[test]
fn examples_of_the_help_run() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    models(dir);
    let line = std::fs::read_to_string(dir.join("text/a.txt")).unwrap();
    std::fs::create_dir(dir.join("texts")).unwrap();
    std::fs::write(dir.join("texts/a.train.txt"), line.repeat(20)).unwrap();
    std::fs::write(dir.join("text.txt"), line.lines().next().unwrap()).unwrap();
    std::fs::write(dir.join("prompt.txt"), "The dog\n").unwrap();
    std::fs::rename(dir.join("fp"), dir.join("my-model")).unwrap();
    for verb in [
        "pack",
        "eval",
        "generate",
        "bench",
        "inspect",
        "doctor",
        "tokenizer train",
        "data prepare",
        "data merge",
        "train",
        "quantize",
        "sensitivity",
        "completions",
        "man",
        "quickstart",
    ] {
        let words: Vec<&str> = verb.split(' ').chain(["--help"]).collect();
        let help = text(&output(dir, &words).stdout);
        let (_, examples) =
            help.split_once("Examples:\n").unwrap_or_else(|| panic!("{verb} has no examples"));
        let examples: Vec<&str> = examples.lines().filter_map(|line| line.strip_prefix("  squat ")).collect();
        assert!(!examples.is_empty(), "{verb}");
        for example in examples {
            // Quoted words are one.
            let mut args: Vec<String> = Vec::new();
            for (index, part) in example.split('"').enumerate() {
                match index % 2 {
                    0 => args.extend(part.split_whitespace().map(str::to_owned)),
                    _ => args.push(part.to_owned()),
                }
            }
            if verb == "data merge" {
                // Parts that its example joins.
                std::fs::remove_dir_all(dir.join("shards")).unwrap();
                let part = [
                    "data",
                    "prepare",
                    "texts",
                    "--tokenizer",
                    "tokenizer",
                    "--out",
                    "shards",
                    "--shard",
                    "0/1",
                ];
                assert!(output(dir, &part).status.success());
            }
            if verb == "quickstart" {
                // The same with little training.
                let few = ["teacher", "student", "qat"].map(|stage| format!("stage.{stage}.steps=2"));
                let few = few.into_iter().chain(["data.generated_words=20000".to_owned()]);
                args.extend(few.flat_map(|setting| ["--set".to_owned(), setting]));
            }
            let args: Vec<&str> = args.iter().map(String::as_str).collect();
            let output = output(dir, &args);
            assert!(
                output.status.success() && !output.stdout.is_empty(),
                "squat {example}: {}",
                text(&output.stderr)
            );
        }
    }
}
