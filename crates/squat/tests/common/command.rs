//! The built binary, and tiny models and texts on disk for it.

use super::{quantize, spec, weights};
use squat_data::english::{write_corpus, write_pairs};
use squat_data::tokenizer::{TokenizerOptions, save, train_on_lines};
use squat_model::{ModelFolder, ModelSpec, QuantPlan, TokenizerFiles};
use squat_train::checkpoint;
use squat_train::quantizer::default_quantizer;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

pub use squat_test::files::tree;
pub use squat_test::recipe::RECIPE;

/// Vocabulary of the tokenizer here.
pub const VOCABULARY: usize = 300;

/// The binary in a folder, with a backtrace if it panics, and data nowhere.
pub fn squat(dir: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_squat"));
    command.args(args).current_dir(dir).env("RUST_BACKTRACE", "1").env_remove("SQUAT_DATA");
    command.stdin(Stdio::null());
    command
}

/// Output of a command that ends by itself.
pub fn output(dir: &Path, args: &[&str]) -> Output {
    squat(dir, args).output().unwrap()
}

pub fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// Standard output of a command that must succeed.
pub fn ok(dir: &Path, args: &[&str]) -> String {
    let output = output(dir, args);
    let stderr = text(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "squat {}: {stderr}", args.join(" "));
    assert!(!stderr.contains("error:"), "squat {}: {stderr}", args.join(" "));
    text(&output.stdout)
}

/// Bad input: exit code 1, or 2 for a wrong command, nothing on stdout, one error that has all of `words`, no panic, nothing written.
pub fn refused(dir: &Path, args: &[&str], words: &[&str]) -> String {
    let before = tree(dir);
    let output = output(dir, args);
    check_refusal(&output, args, words);
    assert_eq!(before, tree(dir), "squat {} wrote something", args.join(" "));
    text(&output.stderr)
}

/// What a refusal looks like.
pub fn check_refusal(output: &Output, args: &[&str], words: &[&str]) {
    let (stdout, stderr) = (text(&output.stdout), text(&output.stderr));
    let what = format!("squat {}\n{stderr}", args.join(" "));
    // A wrong command has another exit code than wrong input.
    let code = if stderr.contains("For more information, try '--help'.") { 2 } else { 1 };
    assert_eq!(output.status.code(), Some(code), "{what}");
    assert_eq!(stdout, "", "{what}");
    assert_eq!(stderr.lines().filter(|line| line.starts_with("error: ")).count(), 1, "{what}");
    assert_eq!(stderr.matches("error: ").count(), 1, "{what}");
    assert!(!stderr.contains("panicked") && !stderr.contains("backtrace"), "{what}");
    for word in words {
        assert!(stderr.contains(word), "expected `{word}` from {what}");
    }
}

/// `DIR/fp`, `DIR/qat`, `DIR/packed`, `DIR/text/a.txt`, `DIR/pairs`: a plain model, a checkpoint, its packed form, and
/// something to evaluate them on.
pub fn models(dir: &Path) -> ModelSpec {
    let spec = ModelSpec { vocab_size: VOCABULARY, max_position_embeddings: 128, ..spec(true) };
    std::fs::create_dir_all(dir.join("text")).unwrap();
    let corpus = write_corpus(&dir.join("corpus"), 1, 3000).unwrap();
    let lines = std::fs::read_to_string(corpus).unwrap();
    let options = TokenizerOptions { vocab_size: VOCABULARY, ..TokenizerOptions::default() };
    let tokenizer = train_on_lines(lines.lines().map(str::to_owned), &options).unwrap();
    assert_eq!(tokenizer.get_vocab_size(true), VOCABULARY);
    save(&tokenizer, &dir.join("tokenizer"), 128, false).unwrap();
    let files = TokenizerFiles::read(&dir.join("tokenizer")).unwrap();
    let mut parameters = weights(&spec, 7);
    checkpoint::save(&dir.join("fp"), &spec, (None, default_quantizer()), &parameters, &files, None).unwrap();
    let mut plan = QuantPlan::with_rho(0.5);
    quantize(&mut parameters, &spec, &mut plan, 7);
    checkpoint::save(&dir.join("qat"), &spec, (Some(&plan), default_quantizer()), &parameters, &files, None)
        .unwrap();
    ModelFolder::open(dir.join("qat")).unwrap().pack(None, dir.join("packed")).unwrap();
    let sentences: Vec<&str> = lines.lines().take(2).collect();
    std::fs::write(dir.join("text/a.txt"), sentences.join("\n") + "\n").unwrap();
    write_pairs(&dir.join("pairs"), 1, 2).unwrap();
    std::fs::remove_dir_all(dir.join("corpus")).unwrap();
    std::fs::write(dir.join("recipe.toml"), RECIPE).unwrap();
    spec
}
