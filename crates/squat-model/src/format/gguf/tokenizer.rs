//! The tokenizer in the metadata of a GGUF file, as the files that Hugging Face programs read.

use serde_json::{Value as Json, json};

use super::{GgufFile, Value};
use crate::error::ModelError;
use crate::tokenizer_files::TokenizerFiles;

/// Names of the byte-level splitting of GPT-2.
const GPT2: [&str; 2] = ["gpt-2", "default"];
/// Names of the same with single digits.
const GPT2_SINGLE_DIGITS: [&str; 4] = ["smollm", "starcoder", "refact", "command-r"];

/// Name of the splitting of Qwen2 and Qwen3.
const QWEN2: &str = "qwen2";
/// Contractions, words with one leading character, single digits, punctuation, line ends, spaces.
const QWEN2_PATTERN: &str = "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+";

/// Kinds of tokens in `tokenizer.ggml.token_type`.
const CONTROL: u64 = 3;
const USER_DEFINED: u64 = 4;

/// `tokenizer.json`, and the chat template if there is one; empty if the metadata states that the file has no tokenizer.
///
/// Byte-level BPE with the splitting of GPT-2, SmolLM or Qwen2 is read.
///
/// # Errors
/// Metadata without a tokenizer, one of another kind, or one that is damaged.
pub fn files(file: &GgufFile) -> Result<TokenizerFiles, ModelError> {
    // Files for measuring speed say that they have none.
    if file.metadata("tokenizer.ggml.model").and_then(Value::as_str) == Some("none") {
        return Ok(TokenizerFiles::none());
    }
    let json = tokenizer_json(file).map_err(|message| ModelError::Tokenizer {
        place: file.path().display().to_string(),
        message: format!("{message}; pack the model with a tokenizer.json beside it, or convert it again"),
    })?;
    let files = TokenizerFiles::from_tokenizer_json(json.to_string());
    let template = file.metadata("tokenizer.chat_template").and_then(Value::as_str);
    Ok(match template {
        Some(template) => files.with_chat_template(template),
        None => files,
    })
}

fn tokenizer_json(file: &GgufFile) -> Result<Json, String> {
    let text = |key: &str| file.metadata(key).and_then(Value::as_str);
    let model = text("tokenizer.ggml.model");
    if model != Some("gpt2") {
        let got = model.map_or("none".to_owned(), |model| format!("\"{model}\""));
        return Err(format!("expected a tokenizer of the kind \"gpt2\" (byte-level BPE), got {got}"));
    }
    let splitting = text("tokenizer.ggml.pre").unwrap_or("default");
    let byte_level =
        json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
    let pre_tokenizer = if GPT2.contains(&splitting) {
        byte_level.clone()
    } else if GPT2_SINGLE_DIGITS.contains(&splitting) {
        let digits = json!({"type": "Digits", "individual_digits": true});
        json!({"type": "Sequence", "pretokenizers": [digits, byte_level]})
    } else if splitting == QWEN2 {
        let split = json!({"type": "Split", "pattern": {"Regex": QWEN2_PATTERN}, "behavior": "Isolated", "invert": false});
        let mut bytes = byte_level.clone();
        bytes["use_regex"] = json!(false);
        json!({"type": "Sequence", "pretokenizers": [split, bytes]})
    } else {
        let known = [&GPT2[..], &GPT2_SINGLE_DIGITS, &[QWEN2]].concat().join(", ");
        return Err(format!("unsupported pre-tokenizer \"{splitting}\" (supported: {known})"));
    };
    let normalizer = if splitting == QWEN2 { json!({"type": "NFC"}) } else { Json::Null };
    let strings = |key: &str| {
        let list = file.metadata(key).and_then(Value::as_array).ok_or_else(|| format!("{key} is missing"))?;
        let list: Option<Vec<&str>> = list.iter().map(Value::as_str).collect();
        list.ok_or_else(|| format!("{key}: expected texts"))
    };
    let tokens = strings("tokenizer.ggml.tokens")?;
    let kinds = file.metadata("tokenizer.ggml.token_type").and_then(Value::as_array).unwrap_or_default();
    let mut vocabulary = serde_json::Map::with_capacity(tokens.len());
    let mut added = Vec::new();
    for (id, token) in tokens.iter().enumerate() {
        if vocabulary.insert((*token).to_owned(), Json::from(id)).is_some() {
            return Err(format!("the token {token:?} occurs twice"));
        }
        let kind = kinds.get(id).and_then(Value::as_u64).unwrap_or_default();
        if kind == CONTROL || kind == USER_DEFINED {
            added.push(json!({"id": id, "content": token, "special": kind == CONTROL, "single_word": false,
                "lstrip": false, "rstrip": false, "normalized": false}));
        }
    }
    let merges = strings("tokenizer.ggml.merges")?;
    let merges: Option<Vec<Json>> =
        merges.iter().map(|merge| merge.split_once(' ').map(|(a, b)| json!([a, b]))).collect();
    let merges = merges.ok_or("tokenizer.ggml.merges: expected pairs of tokens")?;
    Ok(json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": added, "normalizer": normalizer,
        "pre_tokenizer": pre_tokenizer, "post_processor": byte_level, "decoder": byte_level,
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
            "vocab": vocabulary, "merges": merges},
    }))
}
