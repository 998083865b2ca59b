//! `squat bench` and `squat doctor` through the binary, in every build.
#![allow(clippy::unwrap_used)]

use serde_json::Value;
use squat_model::{
    FolderContents, ModelFolder, ModelSpec, QuantPlan, TokenizerFiles, WeightDtype, shapes, write_folder,
};
use std::path::Path;
use std::process::{Command, Output};

/// A small model in full precision, and packed.
fn models(dir: &Path) {
    let spec = ModelSpec {
        vocab_size: 96,
        hidden_size: 64,
        intermediate_size: 96,
        num_hidden_layers: 2,
        num_attention_heads: 2,
        num_key_value_heads: 1,
        head_dim: 32,
        max_position_embeddings: 64,
        ..shapes::shape("smollm2-135m").unwrap()
    };
    let tensors = shapes::tensors(&spec, &QuantPlan::full_precision(), 3).unwrap();
    let contents = FolderContents {
        spec: &spec,
        plan: None,
        tensors: &tensors,
        dtype: WeightDtype::F32,
        tokenizer: &TokenizerFiles::none(),
        generation: None,
        extra_files: &[],
    };
    write_folder(dir.join("fp"), &contents).unwrap();
    ModelFolder::open(dir.join("fp")).unwrap().pack(Some(&QuantPlan::w4a8()), dir.join("packed")).unwrap();
}

fn squat(dir: &Path, words: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_squat"));
    command.current_dir(dir).env_remove("SQUAT_ISA").args(words).output().unwrap()
}

fn stdout(dir: &Path, words: &[&str]) -> String {
    let output = squat(dir, words);
    assert!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn rows(dir: &Path, words: &[&str]) -> Vec<Value> {
    serde_json::from_str(&stdout(dir, words)).unwrap()
}

#[test]
fn one_model_over_threads_and_depths() {
    let dir = tempfile::tempdir().unwrap();
    models(dir.path());
    let words = ["bench", "packed", "-p", "8", "-n", "4", "-d", "16", "-t", "1,2", "-r", "3", "--json"];
    let found = rows(dir.path(), &words);
    let tests: Vec<(&str, u64)> =
        found.iter().map(|row| (row["test"].as_str().unwrap(), row["threads"].as_u64().unwrap())).collect();
    assert_eq!(tests, [("pp8@d16", 1), ("tg4@d16", 1), ("pp8@d16", 2), ("tg4@d16", 2)]);
    for row in &found {
        assert!(row["kernel"].as_str().unwrap().ends_with("-w4a8"), "{row}");
        assert_eq!((row["samples"].as_array().unwrap().len(), &row["ratio"]), (3, &Value::Null));
        let number = |key: &str| row[key].as_f64().unwrap();
        for key in ["tokens_per_second", "gb_per_second", "gop_per_second", "share_of_limit", "model_bytes"] {
            assert!(number(key) > 0.0, "{key}: {row}");
        }
        assert!(number("min") <= number("tokens_per_second") && number("tokens_per_second") <= number("max"));
        assert!(row["limits"]["read_gb_per_second"].as_f64().unwrap() > 0.0, "{row}");
    }
}

#[test]
fn schemes_of_one_model_are_compared() {
    let dir = tempfile::tempdir().unwrap();
    models(dir.path());
    let words = ["bench", "fp", "--scheme", "w4a8-t4", "-n", "0", "-p", "8", "-t", "1", "-r", "2", "--json"];
    let found = rows(dir.path(), &[&words[..], &["--compare", "f16", "packed", "rho50"]].concat());
    let kernels: Vec<&str> =
        found.iter().map(|row| row["kernel"].as_str().unwrap().split_once('-').unwrap().1).collect();
    assert_eq!(kernels, ["w4a8", "f16", "w4a8", "w4a8a4"]);
    assert_eq!(found[0]["ratio"], 1.0);
    assert!(found.iter().all(|row| row["ratio"].as_f64().unwrap() > 0.0));
    let bytes: Vec<u64> = found.iter().map(|row| row["model_bytes"].as_u64().unwrap()).collect();
    assert!(bytes[0] < bytes[2] && bytes[2] < bytes[1], "{bytes:?}");
}

#[test]
fn several_sequences_are_decoded_together() {
    let dir = tempfile::tempdir().unwrap();
    models(dir.path());
    let words = ["bench", "packed", "-p", "8", "-n", "4", "-d", "5", "-b", "1,3,20", "-t", "2", "-r", "2"];
    let found = rows(dir.path(), &[&words[..], &["--json"]].concat());
    let tests: Vec<(&str, u64)> =
        found.iter().map(|row| (row["test"].as_str().unwrap(), row["batch"].as_u64().unwrap())).collect();
    assert_eq!(tests, [("pp8@d5", 1), ("tg4@d5", 1), ("tg4@d5", 3), ("tg4@d5", 20)]);
    let number = |row: usize, key: &str| found[row][key].as_f64().unwrap();
    for row in 1..4 {
        let (all, each) = (number(row, "tokens_per_second"), number(row, "tokens_per_second_each"));
        let batch = number(row, "batch");
        assert!((all / batch - each).abs() < 1e-9 * all, "{}", found[row]);
        // Operations are of all sequences: as many for each token, whatever the batch.
        let operations = |row: usize| number(row, "gop_per_second") / number(row, "tokens_per_second");
        assert!((operations(row) / operations(1) - 1.0).abs() < 1e-9, "{}", found[row]);
        // Weights are read once for a step.
        let bytes = number(row, "gb_per_second") / each;
        assert!(bytes > 0.9 * number(1, "gb_per_second") / number(1, "tokens_per_second"), "{bytes}");
    }
    let table = stdout(dir.path(), &words);
    assert!(table.contains("| batch |") && table.contains(" of each |"), "{table}");
    assert_eq!(table.lines().filter(|line| line.contains("| tg4@d5 |")).count(), 3, "{table}");
}

#[test]
fn tables_for_people_and_spreadsheets() {
    let dir = tempfile::tempdir().unwrap();
    models(dir.path());
    let words = ["bench", "packed", "-p", "4", "-n", "2", "-t", "1", "-r", "1"];
    let table = stdout(dir.path(), &words);
    assert!(table.starts_with("| test | threads |") && !table.contains("ratio"), "{table}");
    assert_eq!(table.lines().count(), 4);
    let text = stdout(dir.path(), &[&words[..], &["--csv"]].concat());
    let lines: Vec<Vec<&str>> = text.lines().map(|line| line.split(',').collect()).collect();
    assert_eq!((lines.len(), lines[0][0], lines[0].len()), (3, "model", 16));
    assert!(lines.iter().all(|line| line.len() == 16), "{text}");
    let compared = stdout(dir.path(), &[&words[..], &["--compare", "fp"]].concat());
    assert!(compared.starts_with("| model ") && compared.contains("ratio"), "{compared}");
}

#[test]
fn what_cannot_be_measured_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    models(dir.path());
    for (words, expected) in [
        (&["bench", "--random", "lama-58m"][..], &["did you mean", "llama-58m"][..]),
        (&["bench", "--random", "llama-58m", "--scheme", "w4a9"], &["w4a9", "did you mean"]),
        (&["bench", "--random", "llama-58m", "packed"], &["--random"]),
        (&["bench"], &["MODEL"]),
        (&["bench", "packed", "--scheme", "w8a8"], &["full precision", "packed"]),
        (&["bench", "fp", "--scheme", "w2-rho25"], &["thresholds"]),
        (&["bench", "fp", "--compare", "nosuch"], &["nosuch", "neither a model"]),
        (&["bench", "fp", "-p", "0", "-n", "0"], &["-p or -n"]),
        (&["bench", "fp", "-p", "60", "-n", "0", "-d", "10"], &["64 tokens at most"]),
        (&["bench", "fp", "-t", "1,x"], &["x"]),
        (&["bench", "fp", "-b", "0"], &["-b", "at least 1"]),
        (&["bench", "fp", "-p", "0", "-n", "4", "-b", "1,5000"], &["4096"]),
        (&["bench", "fp", "--json", "--csv"], &["--csv"]),
    ] {
        let output = squat(dir.path(), words);
        let message = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && output.stdout.is_empty(), "{words:?}");
        for expected in expected {
            assert!(message.contains(expected), "{words:?}: {message} should say {expected}");
        }
    }
}

#[test]
fn doctor_tells_caches_and_limits() {
    let dir = tempfile::tempdir().unwrap();
    let found: Value = serde_json::from_str(&stdout(dir.path(), &["doctor", "--json"])).unwrap();
    let limits = found["limits"].as_array().unwrap();
    for limit in ["integer", "float", "read"] {
        let of_kind: Vec<_> = limits.iter().filter(|row| row["limit"] == limit).collect();
        assert!(!of_kind.is_empty(), "{found}");
        assert!(of_kind.iter().all(|row| row["giga_per_second"].as_f64().unwrap() > 0.0), "{found}");
    }
    assert!(found["caches"].is_array() && found["forced"] == false, "{found}");
    let peaks = found["peaks"].as_array().unwrap();
    assert_eq!(peaks.len(), found["kernels_available"].as_array().unwrap().len());
    let text = stdout(dir.path(), &["doctor"]);
    for word in ["CPU: ", "caches: ", "kernels: ", "integer products", "from memory"] {
        assert!(text.contains(word), "{word} in {text}");
    }
}
