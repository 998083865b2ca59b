//! Parts of a `tokenizer.json` that would hang, fill the memory or change from call to call.

use std::collections::HashMap;

use serde::Deserialize;
use serde_json::{Value, json};
use squat_files::contain::contain;
use tokenizers::AddedToken;
use tokenizers::models::ModelWrapper;
use tokenizers::models::bpe::{BPE, Vocab};

/// Most times that the rules of a tokenizer may lengthen a text, all together.
const MOST_GROWTH: f64 = 1000.0;

/// Builds a tokenizer, checks its parts, and switches off what only training uses.
pub(crate) fn build(bytes: &[u8]) -> Result<tokenizers::Tokenizer, String> {
    let built = contain(|| match quick(bytes) {
        Some(tokenizer) => Ok(tokenizer),
        None => tokenizers::Tokenizer::from_bytes(bytes).map_err(|error| error.to_string()),
    });
    let mut tokenizer = built.map_err(|panic| format!("the library failed on it: {panic}"))??;
    // Lengths are the caller's business: a tokenizer that cuts or fills would change the model's input silently.
    tokenizer.with_truncation(None).map_err(|error| error.to_string())?;
    tokenizer.with_padding(None);
    // With dropout a text has other ids each time.
    if let ModelWrapper::BPE(bpe) = tokenizer.get_model()
        && bpe.dropout.is_some()
    {
        let mut bpe = bpe.clone();
        bpe.dropout = None;
        tokenizer.with_model(bpe);
    }
    let part = |value: Result<Value, serde_json::Error>| value.map_err(|error| error.to_string());
    let parts = [
        ("normalizer", part(serde_json::to_value(tokenizer.get_normalizer()))?),
        ("pre_tokenizer", part(serde_json::to_value(tokenizer.get_pre_tokenizer()))?),
        ("decoder", part(serde_json::to_value(tokenizer.get_decoder()))?),
    ];
    for (name, value) in parts {
        let growth = growth(&value).map_err(|problem| format!("{name}: {problem}"))?;
        if growth > MOST_GROWTH {
            return Err(format!(
                "{name}: its rules lengthen a text {growth:.0} times, expected at most {MOST_GROWTH}"
            ));
        }
    }
    Ok(tokenizer)
}

/// A `tokenizer.json` with the usual kind of BPE.
#[derive(Deserialize)]
struct File {
    version: String,
    added_tokens: Vec<AddedToken>,
    normalizer: Value,
    pre_tokenizer: Value,
    post_processor: Value,
    decoder: Value,
    model: Bpe,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Bpe {
    r#type: String,
    dropout: (),
    unk_token: Option<String>,
    #[serde(default)]
    continuing_subword_prefix: Option<String>,
    #[serde(default)]
    end_of_word_suffix: Option<String>,
    #[serde(default)]
    fuse_unk: bool,
    #[serde(default)]
    byte_fallback: bool,
    #[serde(default)]
    ignore_merges: bool,
    vocab: HashMap<String, u32>,
    merges: Vec<(String, String)>,
}

/// The same as the library's reader, which turns a model into a tree of values several times over (0.23: seconds for a
/// vocabulary of 262,000 tokens). Nothing for what is not of the usual kind, or wrong: the library's reader has the word.
fn quick(bytes: &[u8]) -> Option<tokenizers::Tokenizer> {
    let File { version, added_tokens, normalizer, pre_tokenizer, post_processor, decoder, model } =
        serde_json::from_slice(bytes).ok()?;
    let affixes = [&model.continuing_subword_prefix, &model.end_of_word_suffix];
    if version != "1.0" || model.r#type != "BPE" || affixes.into_iter().any(Option::is_some) {
        return None;
    }
    let () = model.dropout;
    let vocab: Vocab = model.vocab.into_iter().collect();
    let mut bpe = BPE::builder()
        .vocab_and_merges(vocab, model.merges)
        .fuse_unk(model.fuse_unk)
        .byte_fallback(model.byte_fallback)
        .ignore_merges(model.ignore_merges);
    if let Some(token) = model.unk_token {
        bpe = bpe.unk_token(token);
    }
    let bpe = bpe.build().ok()?;
    let rest = json!({
        "version": version, "normalizer": normalizer, "pre_tokenizer": pre_tokenizer,
        "post_processor": post_processor, "decoder": decoder, "model": {"type": "BPE", "vocab": {}, "merges": []},
    });
    let mut tokenizer = tokenizers::Tokenizer::from_bytes(rest.to_string()).ok()?;
    tokenizer.with_model(bpe);
    tokenizer.add_tokens(added_tokens).ok()?;
    Some(tokenizer)
}

/// How much longer a text can become by a part and the parts within it; a part that never ends is an error.
fn growth(part: &Value) -> Result<f64, String> {
    match part {
        Value::Array(parts) => parts.iter().try_fold(1.0, |product, part| Ok(product * growth(part)?)),
        Value::Object(map) => {
            let text = |key: &str| map.get(key).and_then(Value::as_str);
            let own = match text("type") {
                Some("FixedLength") if map.get("length").and_then(Value::as_u64) == Some(0) => {
                    return Err("FixedLength with the length 0".to_owned());
                }
                Some("Replace") => {
                    let content = text("content").unwrap_or_default().len() as f64;
                    let pattern = &map["pattern"];
                    let found = match pattern.get("String").and_then(Value::as_str) {
                        Some("") => return Err("Replace of the empty text".to_owned()),
                        Some(pattern) => pattern.len() as f64,
                        // A pattern may match as little as one byte.
                        None => 1.0,
                    };
                    (content / found).max(1.0)
                }
                Some("Prepend") => 1.0 + text("prepend").unwrap_or_default().len() as f64,
                _ => 1.0,
            };
            let nested = ["normalizers", "pretokenizers", "decoders"].iter().filter_map(|key| map.get(*key));
            nested.map(growth).try_fold(own, |product, growth| Ok(product * growth?))
        }
        _ => Ok(1.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Both ways to read a file give one tokenizer.
    #[test]
    fn the_quick_way_is_the_librarys() {
        let mut file = json!({
            "version": "1.0", "truncation": null, "padding": null, "normalizer": {"type": "NFC"}, "decoder": null,
            "added_tokens": [{"id": 1, "content": "<s>", "single_word": false, "lstrip": false, "rstrip": true,
                "normalized": false, "special": true}, {"id": 6, "content": "later", "single_word": false,
                "lstrip": false, "rstrip": false, "normalized": true, "special": false}],
            "pre_tokenizer": {"type": "WhitespaceSplit"}, "post_processor": null,
            "model": {"type": "BPE", "dropout": null, "unk_token": "<unk>", "continuing_subword_prefix": null,
                "end_of_word_suffix": null, "fuse_unk": true, "byte_fallback": true, "ignore_merges": true,
                "vocab": {"<unk>": 0, "<s>": 1, "a": 2, "b": 3, "ab": 4, "aba": 5}, "merges": [["a", "b"]]},
        });
        let text = file.to_string();
        let (quickly, slowly) =
            (quick(text.as_bytes()).unwrap(), tokenizers::Tokenizer::from_bytes(&text).unwrap());
        assert_eq!(serde_json::to_value(&quickly).unwrap(), serde_json::to_value(&slowly).unwrap());
        for text in ["<s> ab aba abab later c", "", "cc a"] {
            let ids =
                |tokenizer: &tokenizers::Tokenizer| tokenizer.encode(text, false).unwrap().get_ids().to_vec();
            assert_eq!(ids(&quickly), ids(&slowly));
        }
        file["model"]["end_of_word_suffix"] = json!("</w>");
        assert!(quick(file.to_string().as_bytes()).is_none());
        file["model"]["end_of_word_suffix"] = Value::Null;
        file["model"]["merges"] = json!(["a b"]);
        assert!(quick(file.to_string().as_bytes()).is_none());
    }
}
