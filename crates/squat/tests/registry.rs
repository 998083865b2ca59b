//! A new thing is one file and one line: a file that no table names is found here.
#![cfg(feature = "train")]
#![allow(clippy::unwrap_used)]

use squat_train::Recipe;
use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn read(path: &str) -> String {
    std::fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// Names without extension of the files of a folder with that extension, sorted; folders count as modules.
fn names(folder: &str, extension: &str) -> Vec<String> {
    let mut found: Vec<String> = std::fs::read_dir(root().join(folder))
        .unwrap_or_else(|error| panic!("{folder}: {error}"))
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|e| e == extension) || path.join("mod.rs").is_file())
        .map(|path| path.file_stem().unwrap().to_string_lossy().into_owned())
        .filter(|name| name != "mod" && name != "lib" && name != "main")
        .collect();
    found.sort();
    assert!(!found.is_empty(), "{folder} is empty");
    found
}

/// Whether a table of contents declares a module.
fn declares(table: &str, name: &str) -> bool {
    table.lines().map(str::trim).any(|line| {
        let line = line.trim_start_matches("pub(crate) ").trim_start_matches("pub(super) ");
        line.trim_start_matches("pub ") == format!("mod {name};")
    })
}

/// Every file of these folders is a module of the table beside it.
#[test]
fn every_source_file_is_a_module() {
    for (folder, table) in [
        ("crates/squat/src", "main.rs"),
        ("crates/squat/src/commands", "mod.rs"),
        ("crates/squat-train/src", "lib.rs"),
        ("crates/squat-train/src/ops", "mod.rs"),
        ("crates/squat-model/src", "lib.rs"),
        ("crates/squat-model/src/format", "mod.rs"),
        ("crates/squat-eval/src", "lib.rs"),
        ("crates/squat-data/src", "lib.rs"),
        ("crates/squat-engine/src", "lib.rs"),
        ("crates/squat-kernels/src", "lib.rs"),
        ("crates/squat-quant/src", "lib.rs"),
        ("crates/squat-test/src", "lib.rs"),
    ] {
        let text = read(&format!("{folder}/{table}"));
        for name in names(folder, "rs") {
            assert!(declares(&text, &name), "{folder}/{name}.rs is not declared in {folder}/{table}");
        }
    }
}

/// Every verb has a variant of the command line, and its file is what runs it.
#[test]
fn every_verb_is_on_the_command_line() {
    let (table, args) = (read("crates/squat/src/commands/mod.rs"), read("crates/squat/src/args.rs"));
    for verb in names("crates/squat/src/commands", "rs") {
        let variant: String = verb.split('_').map(|word| word[..1].to_uppercase() + &word[1..]).collect();
        let runs = format!("Command::{variant}(args) => {verb}::run(");
        assert!(table.contains(&runs), "commands/{verb}.rs: no `{runs}` in commands/mod.rs");
        assert!(args.contains(&format!("    {variant}({variant})")), "no {variant} in args.rs");
        let output = std::process::Command::new(env!("CARGO_BIN_EXE_squat")).arg("--help").output().unwrap();
        let help = String::from_utf8(output.stdout).unwrap();
        let listed = help.lines().any(|line| line.split_whitespace().next() == Some(&verb));
        assert!(listed, "squat --help does not list {verb}");
    }
}

#[test]
fn every_task_is_registered() {
    let mut registered: Vec<String> =
        squat_eval::tasks::task_names().into_iter().map(str::to_owned).collect();
    registered.sort();
    assert_eq!(names("crates/squat-eval/tasks", "toml"), registered);
    for name in registered {
        assert_eq!(squat_eval::task(&name).unwrap().name, name);
    }
}

/// Each operation with a hand-written backward is used by the model and has its gradient checked.
#[test]
fn every_operation_is_checked() {
    let used = read("crates/squat-train/src/model/forward.rs") + &read("crates/squat-train/src/step.rs");
    for name in names("crates/squat-train/src/ops", "rs").iter().filter(|&name| name != "gradient_check") {
        assert!(used.contains(&format!("ops::{name}::")), "operation {name} is not used");
        let operation = format!("crates/squat-train/src/ops/{name}");
        let own_tests = format!("{operation}/tests.rs");
        let file = if root().join(&own_tests).is_file() { own_tests } else { format!("{operation}.rs") };
        let text = read(&file);
        assert!(text.contains("#[test]") && text.contains("gradient"), "{file} checks no gradient");
    }
}

/// Recipes are runnable: they parse, are called by their name, read back as written, and describe models that exist.
#[test]
fn every_recipe_parses() {
    for name in names("recipes", "toml") {
        let text = read(&format!("recipes/{name}.toml"));
        let recipe = Recipe::parse(&text, &[]).unwrap_or_else(|error| panic!("recipes/{name}.toml: {error}"));
        assert_eq!(recipe.name, name, "recipes/{name}.toml");
        let written = recipe.to_toml().unwrap();
        assert_eq!(Recipe::parse(&written, &[]).unwrap().to_toml().unwrap(), written, "{name}");
        for stage in &recipe.stages {
            let sizes = recipe.sizes(stage).unwrap();
            let spec = sizes.spec(recipe.data.vocab_size).unwrap();
            if let Some(quant) = &stage.quant {
                let mut plan = quant.plan(recipe.data.seq_len, recipe.seed).unwrap();
                if spec.tie_word_embeddings {
                    plan.head = plan.embedding;
                }
                plan.validate(&spec).unwrap_or_else(|error| panic!("{name}, stage {}: {error}", stage.name));
            }
        }
        for path in recipe.data.train.iter().chain(&recipe.data.valid).filter(|path| *path != "generated") {
            assert!(path.starts_with("$SQUAT_DATA/"), "recipes/{name}.toml: {path} is a path of one machine");
        }
    }
}

/// Code of a file without its unit tests and comments, by line.
fn code(path: &Path) -> Vec<(usize, String)> {
    let text = std::fs::read_to_string(path).unwrap();
    let text = text.split("#[cfg(test)]").next().unwrap();
    text.lines().enumerate().map(|(n, line)| (n + 1, line.split("//").next().unwrap().to_owned())).collect()
}

fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|e| e == "rs") && !path.ends_with("tests.rs") {
            found.push(path);
        }
    }
}

/// Foreign files are read by `squat_files::read`, files are written by `squat_files::write`, and output is printed by the
/// printer; whatever passes them by stands here, with its reason.
#[test]
fn reading_writing_and_printing_each_have_one_place() {
    const READING: [&str; 8] = [
        " File::open",
        "(File::open",
        "fs::File::open",
        "fs::read(",
        "fs::read_to_string",
        "Mmap",
        "OpenOptions",
        "File::options",
    ];
    const WRITING: [&str; 12] = [
        "fs::write(",
        "fs::rename(",
        "fs::remove_",
        "fs::create_dir",
        "fs::copy(",
        "fs::hard_link(",
        "fs::set_permissions(",
        "fs::symlink(",
        " File::create",
        "(File::create",
        "fs::File::create",
        "tempfile",
    ];
    const PRINTING: [&str; 5] = ["println!", "print!(", "io::stdout", "io::stderr", "dbg!"];
    const ALLOWED: [(&str, &str); 7] = [
        ("squat-files/src/read", "the one place for reading"),
        ("squat-files/src/write", "the one place for writing"),
        ("squat-files/src/sums.rs", "checks what was written there"),
        ("squat-train/src/process.rs", "asks the kernel about this process"),
        ("squat/src/machine.rs", "asks the kernel about this machine"),
        ("squat/src/printer.rs", "the one place for printing"),
        ("squat/src/progress.rs", "asks whether stderr is a terminal; its text passes the printer"),
    ];
    let crates = root().join("crates");
    let mut files = Vec::new();
    for entry in std::fs::read_dir(&crates).unwrap() {
        let path = entry.unwrap().path();
        // Programs of the tests do as they like.
        if !["squat-test", "squat-fuzz", "xtask"].iter().any(|name| path.ends_with(name)) {
            sources(&path.join("src"), &mut files);
        }
    }
    assert!(files.len() > 200, "only {} sources found", files.len());
    let mut found = Vec::new();
    for file in files {
        let name = file.strip_prefix(&crates).unwrap().to_string_lossy().replace('\\', "/");
        if ALLOWED.iter().any(|(allowed, _)| name.starts_with(allowed)) {
            continue;
        }
        for (number, line) in code(&file) {
            if READING.iter().chain(&WRITING).chain(&PRINTING).any(|word| line.contains(word)) {
                found.push(format!("{name}:{number}: {}", line.trim()));
            }
        }
    }
    assert!(
        found.is_empty(),
        "read with squat_files::read, write with squat_files::write, print with squat::printer:\n{}",
        found.join("\n")
    );
}
