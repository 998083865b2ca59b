//! Damaged files give errors, never panics, and never a model that reads outside its file.
#![allow(clippy::unwrap_used)]

mod common;

use std::fs;

use common::{spec, tensors, tokenizer_files};
use proptest::prelude::*;
use squat_model::format::llama2c::{Llama2cTokenizer, load_checkpoint};
use squat_model::{ModelFolder, ModelSummary, PackSource, PackedModel, QuantPlan, Tokenizer, pack};

/// Bytes to change: where, as a share of the range, and to what.
fn edits() -> impl Strategy<Value = Vec<(f64, u8)>> {
    prop::collection::vec((0.0f64..1.0, any::<u8>()), 1..6)
}

fn damaged(bytes: &[u8], edits: &[(f64, u8)], range: usize) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    for &(at, value) in edits {
        bytes[(at * range as f64) as usize] = value;
    }
    bytes
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]

    #[test]
    fn folders(edits in edits(), which in 0usize..3, cut in prop::option::of(0.0f64..1.0)) {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("m");
        let (spec, plan) = (spec(false), QuantPlan::w4a8());
        let (tensors, tokenizer) = (tensors(&spec), tokenizer_files());
        let source = PackSource { spec: &spec, plan: &plan, tensors: &tensors, tokenizer: &tokenizer, generation: None };
        pack(&source, &out).unwrap();
        let path = out.join(["config.json", "model.safetensors", "tokenizer.json"][which]);
        let bytes = fs::read(&path).unwrap();
        // Headers are where a change does harm.
        let mut bytes = damaged(&bytes, &edits, bytes.len().min(4000));
        if let Some(cut) = cut {
            bytes.truncate((cut * bytes.len() as f64) as usize);
        }
        fs::write(&path, bytes).unwrap();
        let _ = Tokenizer::open(&out, &spec).and_then(|t| t.encode("w1 w2 <s>"));
        let _ = ModelFolder::open(&out);
        let _ = ModelSummary::open(&out);
        if let Ok(model) = PackedModel::open(&out) {
            let _ = model.check_codes();
        }
    }

    #[test]
    fn llama2c_checkpoints(edits in edits(), header in any::<[i32; 7]>(), small in prop::bool::ANY) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("m.bin");
        let mut bytes: Vec<u8> = header.iter().flat_map(|n| if small { n % 20 } else { *n }.to_le_bytes()).collect();
        bytes.resize(3000, 0);
        fs::write(&path, damaged(&bytes, &edits, 28)).unwrap();
        let _ = load_checkpoint(&path);
        fs::write(&path, damaged(&bytes, &edits, 3000)).unwrap();
        let _ = Llama2cTokenizer::load(&path, 40).map(|t| t.encode("abc"));
    }
}

/// The library that reads tokenizers panics on some of these.
#[test]
fn tokenizers_that_are_no_json() {
    let files = tokenizer_files();
    let (_, bytes) = files.iter().next().unwrap();
    for at in 0..bytes.len() {
        let mut zero = bytes.to_vec();
        zero[at] = 0;
        for bytes in [&zero[..], &bytes[..at]] {
            let error = Tokenizer::from_json(bytes, "here", &spec(false)).unwrap_err().to_string();
            assert!(error.contains("here: invalid tokenizer.json"), "{error}");
        }
    }
}

#[test]
fn llama2c_files_of_the_wrong_length_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.bin");
    let write = |header: [i32; 7], floats: usize| {
        let mut bytes: Vec<u8> = header.iter().flat_map(|n| n.to_le_bytes()).collect();
        bytes.resize(28 + 4 * floats, 0);
        fs::write(&path, bytes).unwrap();
        load_checkpoint(&path)
    };
    // dim, hidden, layers, heads, kv heads, vocabulary (negative: untied head), sequence.
    let layer = 8 * 8 + 2 * 4 * 8 + 8 * 8 + 3 * 8 * 12 + 2 * 8;
    let tied = 10 * 8 + 2 * layer + 8 + 16 * 4;
    let (spec, _) = write([8, 12, 2, 2, 1, 10, 16], tied).unwrap();
    assert!(spec.tie_word_embeddings && spec.num_parameters() == tied - 16 * 4);
    let (spec, tensors) = write([8, 12, 2, 2, 1, -10, 16], tied + 80).unwrap();
    assert!(!spec.tie_word_embeddings && tensors.get("lm_head.weight").is_some());
    let error = write([8, 12, 2, 2, 1, -10, 16], tied).unwrap_err().to_string();
    assert!(error.contains("expected") && error.contains("copy the file again"), "{error}");
    assert!(write([8, 12, 2, 3, 1, 10, 16], tied).unwrap_err().to_string().contains("n_heads"));
    assert!(write([8, 12, 2, 2, 1, i32::MIN, i32::MAX], tied).is_err());
    assert!(write([-8, 12, 2, 2, 1, 10, 16], tied).unwrap_err().to_string().contains("dim"));
    assert!(load_checkpoint(dir.path().join("x.bin")).unwrap_err().to_string().contains("did you mean"));
}

/// A tokenizer of letters with one part exchanged.
fn with_part(key: &str, part: serde_json::Value) -> Vec<u8> {
    let mut json: serde_json::Value = serde_json::from_str(&squat_test::tokenizer::sentencepiece()).unwrap();
    json[key] = part;
    json.to_string().into_bytes()
}

#[test]
fn parts_that_hang_or_fill_the_memory_are_named() {
    use serde_json::json;
    let doubling = json!({"type": "Replace", "pattern": {"String": "a"}, "content": "aa"});
    for (key, part, words) in [
        (
            "pre_tokenizer",
            json!({"type": "FixedLength", "length": 0}),
            "pre_tokenizer: FixedLength with the length 0",
        ),
        (
            "normalizer",
            json!({"type": "Replace", "pattern": {"String": ""}, "content": "x"}),
            "the empty text",
        ),
        (
            "normalizer",
            json!({"type": "Sequence", "normalizers": vec![doubling; 30]}),
            "normalizer: its rules lengthen",
        ),
    ] {
        let error =
            Tokenizer::from_json(&with_part(key, part), "here", &spec(false)).unwrap_err().to_string();
        assert!(error.contains("here: ") && error.contains(words), "{error}");
    }
    // What the library panics on is an error of ours, when it is built or when it is used.
    let mut json: serde_json::Value = serde_json::from_str(&squat_test::tokenizer::sentencepiece()).unwrap();
    json["model"]["continuing_subword_prefix"] = "a long prefix".into();
    let built = Tokenizer::from_json(json.to_string().as_bytes(), "here", &spec(false));
    let error = built.and_then(|tokenizer| tokenizer.encode("ab ab")).unwrap_err().to_string();
    assert!(error.contains("here: "), "{error}");
}

#[test]
fn dropout_is_for_training_alone() {
    let mut json: serde_json::Value = serde_json::from_str(&squat_test::tokenizer::sentencepiece()).unwrap();
    let plain = Tokenizer::from_json(json.to_string().as_bytes(), "here", &spec(false)).unwrap();
    json["model"]["dropout"] = 0.9.into();
    let dropping = Tokenizer::from_json(json.to_string().as_bytes(), "here", &spec(false)).unwrap();
    let text = "ab a ab b".repeat(50);
    assert_eq!(dropping.encode(&text).unwrap(), plain.encode(&text).unwrap());
}
