//! README.md and the pages of docs/ tell the truth: the command line accepts every `squat` command in them, quick ones run,
//! recipes are valid, links lead somewhere. (The program in README.md is a documentation test of `squat-engine`.)
#![cfg(feature = "train")]
#![allow(clippy::unwrap_used)]

mod common;

use common::command::{RECIPE, models, ok, output, text};
use squat_train::Recipe;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// Pages whose code is checked, in the order in which a reader meets them.
const PAGES: [&str; 3] = ["README.md", "docs/GUIDE.md", "docs/TRAINING.md"];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn page(name: &str) -> String {
    std::fs::read_to_string(root().join(name)).unwrap()
}

/// A fenced block: its language and its lines, with the number of the first.
struct Block {
    language: String,
    first_line: usize,
    lines: Vec<String>,
}

fn blocks(page: &str) -> Vec<Block> {
    let mut found: Vec<Block> = Vec::new();
    let mut open = false;
    for (index, line) in page.lines().enumerate() {
        match (line.strip_prefix("```"), open) {
            (Some(language), false) => {
                found.push(Block { language: language.to_owned(), first_line: index + 2, lines: Vec::new() });
                open = true;
            }
            (Some(_), true) => open = false,
            (None, true) => found.last_mut().unwrap().lines.push(line.to_owned()),
            (None, false) => {}
        }
    }
    assert!(!open, "a code block is not closed");
    found
}

/// A `squat` command of a page.
struct Command {
    /// Where it stands, for messages.
    place: String,
    args: Vec<String>,
    /// Lines of output that the page shows below it.
    shown: Vec<String>,
}

impl Command {
    /// Whether the page says that it fails.
    fn is_refused(&self) -> bool {
        self.shown.iter().any(|line| line.starts_with("error: "))
    }
}

/// The words of a shell line, without its comment, redirections and pipes.
fn words(line: &str) -> Vec<String> {
    let (mut words, mut word, mut quoted, mut any) = (Vec::new(), String::new(), false, false);
    for c in line.chars() {
        match c {
            '"' => (quoted, any) = (!quoted, true),
            '#' if !quoted && !any => break,
            '|' | '>' if !quoted => break,
            c if c.is_whitespace() && !quoted => {
                if any {
                    words.push(std::mem::take(&mut word));
                }
                any = false;
            }
            c => {
                word.push(c);
                any = true;
            }
        }
    }
    assert!(!quoted, "an open quote: {line}");
    if any {
        words.push(word);
    }
    words
}

/// What follows `squat` in a line, whatever launcher or variable stands before it.
fn squat_args(line: &str) -> Option<Vec<String>> {
    let mut words = words(line);
    // `cargo run -p squat -- ARGS` is `squat ARGS`, and other lines of cargo are not ours.
    let at = match words.first()?.as_str() {
        "cargo" => words
            .iter()
            .position(|word| word == "--")
            .filter(|at| words[..*at].ends_with(&["squat".into()]))?,
        _ => words.iter().position(|word| word == "squat")?,
    };
    Some(words.split_off(at + 1))
}

fn commands(name: &str) -> Vec<Command> {
    let mut found: Vec<Command> = Vec::new();
    for block in blocks(&page(name)) {
        let console = block.language == "console";
        if !console && block.language != "sh" {
            continue;
        }
        let mut of_squat = false;
        for (index, line) in block.lines.iter().enumerate() {
            let command = match (console, line.strip_prefix("$ ")) {
                (true, None) => {
                    if of_squat {
                        found.last_mut().unwrap().shown.push(line.clone());
                    }
                    continue;
                }
                (true, Some(command)) => command,
                (false, _) => line,
            };
            let args = squat_args(command);
            of_squat = args.is_some();
            found.extend(args.map(|args| Command {
                place: format!("{name}:{}: {command}", block.first_line + index),
                args,
                shown: Vec::new(),
            }));
        }
    }
    found
}

/// Whether the command line accepts these words: with `--help` at the end it reads them all and then does nothing.
fn accepted(args: &[String]) -> Result<(), String> {
    let mut args: Vec<&str> = args.iter().map(String::as_str).collect();
    args.push("--help");
    let output = output(Path::new("."), &args);
    if output.status.success() { Ok(()) } else { Err(text(&output.stderr)) }
}

#[test]
fn every_command_is_one_that_the_command_line_accepts() {
    let mut count = 0;
    for command in PAGES.iter().flat_map(|name| commands(name)) {
        // A mistake that a page shows on purpose.
        if !command.is_refused() {
            accepted(&command.args).unwrap_or_else(|error| panic!("{}\n{error}", command.place));
        }
        count += 1;
    }
    assert!(count >= 30, "only {count} commands found");
    // The check itself: a wrong option, a wrong value and a wrong verb are noticed.
    for wrong in ["generate m --promt x", "bench m -t two", "evaluate m", "pack m --out o --bits 4"] {
        assert!(accepted(&wrong.split(' ').map(str::to_owned).collect::<Vec<_>>()).is_err(), "{wrong}");
    }
}

/// Options in running text belong to some verb, or to cargo.
#[test]
fn every_option_that_a_page_names_exists() {
    const OF_CARGO: [&str; 5] = ["--workspace", "--doc", "--release", "--test", "--features"];
    let mut known = BTreeSet::new();
    for verb in
        ["quickstart", "data prepare", "data merge", "tokenizer train", "train", "quantize", "pack", "eval"]
            .into_iter()
            .chain(["sensitivity", "generate", "bench", "inspect", "doctor"])
    {
        let args: Vec<&str> = verb.split(' ').chain(["--help"]).collect();
        let help = ok(Path::new("."), &args);
        known.extend(
            help.split(|c: char| !(c.is_alphanumeric() || c == '-'))
                .filter(|word| word.starts_with("--"))
                .map(str::to_owned),
        );
    }
    for name in PAGES {
        let text = page(name);
        let inside: String = text.split("```").step_by(2).collect();
        for span in inside.split('`').skip(1).step_by(2) {
            for word in span.split(|c: char| !(c.is_alphanumeric() || c == '-')) {
                if word.starts_with("--") && word.len() > 2 {
                    assert!(known.contains(word) || OF_CARGO.contains(&word), "{name}: {word} in `{span}`");
                }
            }
        }
    }
}

#[test]
fn the_two_commands_of_a_newcomer_stand_in_the_readme() {
    let readme = page("README.md");
    for command in ["cargo run --release -p squat -- quickstart", "cargo test --workspace"] {
        assert!(
            readme.lines().any(|line| line.split('#').next().unwrap().trim_end() == command),
            "{command}"
        );
    }
    assert!(readme.lines().count() <= 180, "README.md is a page: at most 180 lines");
}

#[test]
fn recipes_are_valid() {
    let mut count = 0;
    for name in PAGES {
        for block in blocks(&page(name)).iter().filter(|block| block.language == "toml") {
            let recipe = block.lines.join("\n");
            Recipe::parse(&recipe, &[])
                .unwrap_or_else(|error| panic!("{name}:{}: {error}", block.first_line));
            count += 1;
        }
    }
    for file in std::fs::read_dir(root().join("recipes")).unwrap() {
        Recipe::load(&file.unwrap().path(), &[]).unwrap();
        count += 1;
    }
    assert!(count >= 4);
}

/// Everything that the pages take for granted, as small as it can be.
fn surroundings(dir: &Path) {
    models(dir);
    let rename = |from: &str, to: &str| {
        std::fs::create_dir_all(dir.join(to).parent().unwrap()).unwrap();
        std::fs::rename(dir.join(from), dir.join(to)).unwrap();
    };
    let copy = |from: &str, to: &str| {
        std::fs::create_dir_all(dir.join(to).parent().unwrap()).unwrap();
        std::fs::copy(dir.join(from), dir.join(to)).unwrap();
    };
    copy("text/a.txt", "text.txt");
    for index in 0..20 {
        let line = format!("Text {index} says that the dog sleeps and that {index} cats see it.\n");
        std::fs::create_dir_all(dir.join("texts")).unwrap();
        std::fs::write(dir.join(format!("texts/my{index}.train.txt")), line.repeat(40)).unwrap();
    }
    copy("text/a.txt", "texts/my.dev.txt");
    rename("fp", "my-model");
    // A run with the stages of the quickstart, and one of a reader.
    let stages = RECIPE.replace("\"fp\"", "\"student\"").replace("embeddings = 64", "embeddings = 512");
    std::fs::write(dir.join("tiny.toml"), stages.replace("name = \"q\"", "name = \"qat\"")).unwrap();
    ok(dir, &["train", "tiny.toml", "--out", "quickstart/run"]);
    ok(dir, &["pack", "quickstart/run", "--out", "quickstart/packed"]);
    rename("pairs", "quickstart/run/data/pairs");
    ok(dir, &["train", "recipe.toml", "--out", "runs/my-model"]);
    std::fs::create_dir(dir.join("recipes")).unwrap();
    for file in std::fs::read_dir(root().join("recipes")).unwrap() {
        let path = file.unwrap().path();
        std::fs::copy(&path, dir.join("recipes").join(path.file_name().unwrap())).unwrap();
    }
}

/// Whether a command ends within seconds on the tiny models here.
fn is_quick(args: &[String]) -> bool {
    let has = |word: &str| args.iter().any(|arg| arg == word);
    match args[0].as_str() {
        "quickstart" => false,
        // Only to be refused.
        "train" => has("--set"),
        "bench" => has("tiny") || !(has("--random") || has("--train")),
        "doctor" => !cfg!(debug_assertions),
        _ => !has("help"),
    }
}

/// A line of a table, without the spaces and dashes that depend on the width of the figures.
fn collapsed(line: &str) -> String {
    line.split('|').map(str::trim).collect::<Vec<_>>().join("|")
}

#[test]
fn quick_commands_run_and_print_what_the_pages_show() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    surroundings(dir);
    let (mut ran, mut compared) = (0, 0);
    for command in PAGES.iter().flat_map(|name| commands(name)) {
        if !is_quick(&command.args) {
            continue;
        }
        ran += 1;
        // A job array: every part in turn.
        let parts = if command.args.iter().any(|arg| arg.contains("$SLURM_ARRAY_TASK_ID")) { 16 } else { 1 };
        for part in 0..parts {
            let args: Vec<String> = command
                .args
                .iter()
                .map(|arg| arg.replace("$SLURM_ARRAY_TASK_ID", &part.to_string()))
                .collect();
            let mut args: Vec<&str> = args.iter().map(String::as_str).collect();
            // A tiny model needs no half hours.
            if let Some(minutes) = args.iter().position(|&arg| arg == "--minutes") {
                args[minutes + 1] = "0.3";
            }
            let output = output(dir, &args);
            let (stdout, stderr) = (text(&output.stdout), text(&output.stderr));
            // 1: refused, 2: a wrong command.
            let expected: &[i32] = if command.is_refused() { &[1, 2] } else { &[0] };
            let code = output.status.code().unwrap_or(-1);
            assert!(expected.contains(&code), "{}: exit code {code}\n{stderr}", command.place);
            // Figures differ: this is another model. Heads of tables and messages do not.
            let printed: Vec<String> = stdout.lines().chain(stderr.lines()).map(collapsed).collect();
            for (index, line) in command.shown.iter().enumerate() {
                let is_head = command.shown.get(index + 1).is_some_and(|next| next.starts_with("|:--"));
                if is_head || ["error: ", "hint: "].iter().any(|word| line.starts_with(word)) {
                    // A long line may be shown in part.
                    let shown = collapsed(line);
                    let found = printed.iter().any(|printed| match shown.strip_suffix("...") {
                        Some(beginning) => printed.starts_with(beginning),
                        None => *printed == shown,
                    });
                    assert!(found, "{}\n{line}\n{stdout}{stderr}", command.place);
                    compared += 1;
                }
            }
        }
    }
    assert!(ran >= 20 && compared >= 8, "{ran} commands ran, {compared} lines were compared");
}

/// The anchor that a heading gets on a code host.
fn anchor(heading: &str) -> String {
    heading
        .trim()
        .to_lowercase()
        .chars()
        .filter_map(|c| match c {
            ' ' => Some('-'),
            c if c.is_alphanumeric() || c == '-' || c == '_' => Some(c),
            _ => None,
        })
        .collect()
}

#[test]
fn links_lead_somewhere() {
    let mut pages = vec!["README.md".to_owned(), "ARCHITECTURE.md".into(), "benches/README.md".into()];
    for file in std::fs::read_dir(root().join("docs")).unwrap() {
        pages.push(format!("docs/{}", file.unwrap().file_name().into_string().unwrap()));
    }
    let mut count = 0;
    for name in &pages {
        let text = page(name);
        let outside: String = text.split("```").step_by(2).collect();
        for target in outside.split("](").skip(1).map(|rest| rest.split(')').next().unwrap()) {
            if target.contains("://") {
                continue;
            }
            let (file, wanted) = target.split_once('#').unwrap_or((target, ""));
            let path = match file {
                "" => root().join(name),
                file => root().join(name).parent().unwrap().join(file),
            };
            assert!(path.exists(), "{name}: {target}");
            if !wanted.is_empty() {
                let linked = std::fs::read_to_string(&path).unwrap();
                let mut headings = linked.lines().filter_map(|line| line.strip_prefix('#'));
                let found = headings.any(|line| anchor(line.trim_start_matches('#')) == wanted);
                assert!(found, "{name}: {target}");
            }
            count += 1;
        }
    }
    assert!(count >= 30, "only {count} links found");
}
