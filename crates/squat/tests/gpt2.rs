//! A GPT-2 through the binary, in every build: packed, run, evaluated, measured; not trained.
#![allow(clippy::unwrap_used)]

use serde_json::{Value, json};
use squat_model::{FolderContents, ModelSpec, QuantPlan, TokenizerFiles, WeightDtype, shapes, write_folder};
use std::path::Path;
use std::process::{Command, Output};

/// Words of the vocabulary.
const WORDS: usize = 40;

/// Writes a small model with a tokenizer of whole words to `DIR/gpt2`, and a text of such words.
fn model(dir: &Path) {
    let spec = ModelSpec {
        vocab_size: WORDS,
        hidden_size: 48,
        intermediate_size: 100,
        num_hidden_layers: 2,
        num_attention_heads: 4,
        num_key_value_heads: 4,
        head_dim: 12,
        max_position_embeddings: 32,
        ..shapes::shape("gpt2-97m").unwrap()
    };
    let vocab: serde_json::Map<String, Value> = (0..WORDS).map(|id| (format!("w{id}"), id.into())).collect();
    let tokenizer = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
        "pre_tokenizer": {"type": "WhitespaceSplit"}, "post_processor": null, "decoder": null,
        "model": {"type": "WordLevel", "vocab": vocab, "unk_token": "w0"},
    });
    let tensors = shapes::tensors(&spec, &QuantPlan::full_precision(), 4).unwrap();
    let contents = FolderContents {
        spec: &spec,
        plan: None,
        tensors: &tensors,
        dtype: WeightDtype::F32,
        tokenizer: &TokenizerFiles::from_tokenizer_json(tokenizer.to_string()),
        generation: None,
        extra_files: &[],
    };
    write_folder(dir.join("gpt2"), &contents).unwrap();
    let text: Vec<String> = (0..200).map(|i| format!("w{}", i * i % WORDS)).collect();
    std::fs::write(dir.join("text.txt"), text.join(" ")).unwrap();
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

#[test]
fn packed_run_evaluated_and_measured() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    model(dir);
    for plan in ["w8a8", "w4a8", "w4a4", "w2a8"] {
        let report = stdout(dir, &["pack", "gpt2", "--plan", plan, "--out", plan]);
        assert!(report.contains("self_attn.q_proj.bias") && report.contains("embed_positions"), "{report}");
    }
    assert!(stdout(dir, &["inspect", "w4a8"]).contains("model.embed_positions.weight"));
    let perplexity = |model: &str| {
        let words =
            ["eval", model, "--task", "perplexity", "--data", "text.txt", "--context", "32", "--json"];
        let found: Value = serde_json::from_str(&stdout(dir, &words)).unwrap();
        found["perplexity"].as_f64().unwrap_or_else(|| panic!("{found}"))
    };
    let (exact, eight) = (perplexity("gpt2"), perplexity("w8a8"));
    assert!((exact / eight - 1.0).abs() < 0.02, "{exact} {eight}");
    let words = ["generate", "w4a8", "--prompt", "w3 w5", "--max-tokens", "6", "--temperature", "0"];
    let [one, two] = ["1", "2"].map(|threads| stdout(dir, &[&words[..], &["-t", threads]].concat()));
    assert_eq!(one, two);
    let words = ["bench", "gpt2", "--scheme", "w4a8-t4", "--compare", "w4a4", "f16", "w4", "rho50", "w4a8"];
    let sizes = ["-p", "8", "-n", "4", "-b", "1,3", "-t", "2", "-r", "1", "--json"];
    let found: Value = serde_json::from_str(&stdout(dir, &[&words[..], &sizes].concat())).unwrap();
    let rows = found.as_array().unwrap();
    assert_eq!(rows.len(), 6 * 3);
    assert!(rows.iter().all(|row| row["tokens_per_second"].as_f64().unwrap() > 0.0), "{found}");
}

#[cfg(feature = "train")]
#[test]
fn it_is_not_trained() {
    let dir = tempfile::tempdir().unwrap();
    model(dir.path());
    let recipe = r#"
        name = "tuned"
        [data]
        train = ["text.txt"]
        valid = ["text.txt"]
        tokenizer = "gpt2"
        [model]
        hidden_size = 48
        intermediate_size = 100
        num_hidden_layers = 2
        num_attention_heads = 4
        [[stage]]
        name = "qat"
        kind = "qat"
        init = "gpt2"
        steps = 1
        learning_rate = 1e-3
        quant = { plan = "w4a8" }
    "#;
    std::fs::write(dir.path().join("recipe.toml"), recipe).unwrap();
    for words in [&["train", "recipe.toml"][..], &["bench", "--train", "gpt2-97m"]] {
        let output = squat(dir.path(), words);
        let message = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success(), "{words:?}");
        for expected in ["GPT2LMHeadModel", "cannot be trained", "LlamaForCausalLM"] {
            assert!(message.contains(expected), "{words:?}: {message} should say {expected}");
        }
    }
}
