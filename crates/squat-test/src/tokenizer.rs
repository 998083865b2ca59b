//! Tiny `tokenizer.json` files.

use serde_json::{Map, Value, json};

/// Whole words between white space: `<pad>` (also for unknown words), `<s>`, `</s>`, then `w3`, `w4`, ... up to `size`
/// ids. It requests truncation to two ids, which loaders must ignore.
pub fn word_level(size: usize) -> String {
    let special = ["<pad>", "<s>", "</s>"];
    let vocab: Map<String, Value> = (0..size)
        .map(|i| (special.get(i).map_or_else(|| format!("w{i}"), |s| (*s).to_owned()), i.into()))
        .collect();
    let added: Vec<Value> = special
        .iter()
        .enumerate()
        .map(|(id, content)| {
            json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false, "special": true})
        })
        .collect();
    json!({
        "version": "1.0", "truncation": {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0},
        "padding": null, "added_tokens": added, "normalizer": null,
        "pre_tokenizer": {"type": "WhitespaceSplit"}, "post_processor": null, "decoder": null,
        "model": {"type": "WordLevel", "vocab": vocab, "unk_token": "<pad>"},
    })
    .to_string()
}

/// BPE like the `tokenizer.json` of Llama 2, which is converted from SentencePiece: a text gets the prefix `▁`, spaces
/// become `▁`, and there is no pre-tokenizer, so merges may cross words. Letters `a` and `b`, spaces, line ends.
pub fn sentencepiece() -> String {
    json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [],
        "normalizer": {"type": "Sequence", "normalizers": [
            {"type": "Prepend", "prepend": "▁"}, {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]},
        "pre_tokenizer": null, "post_processor": null, "decoder": null,
        "model": {"type": "BPE", "dropout": null, "unk_token": "<unk>", "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": true, "byte_fallback": false,
            "vocab": {"<unk>": 0, "▁": 1, "a": 2, "b": 3, "\n": 4, "▁a": 5, "ab": 6, "b\n": 7, "\n\n": 8},
            "merges": ["▁ a", "a b", "b \n", "\n \n"]},
    })
    .to_string()
}
