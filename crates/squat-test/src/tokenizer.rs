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

/// A `tokenizer.model` of SentencePiece: its type (1 Unigram, 2 BPE), whether a space comes in front of a text, and pieces
/// with scores and kinds (1 normal, 2 unknown, 3 control, 4 user-defined, 6 byte).
pub fn sentencepiece_model(kind: u8, add_prefix: bool, pieces: &[(&str, f32, u8)]) -> Vec<u8> {
    let field =
        |number: u8, bytes: &[u8]| [&[number << 3 | 2, u8::try_from(bytes.len()).unwrap()], bytes].concat();
    let mut out = Vec::new();
    for (text, score, kind) in pieces {
        let mut piece = field(1, text.as_bytes());
        piece.push(2 << 3 | 5);
        piece.extend(score.to_le_bytes());
        piece.extend([3 << 3, *kind]);
        out.extend(field(1, &piece));
    }
    out.extend(field(2, &[3 << 3, kind]));
    out.extend(field(3, &[3 << 3, u8::from(add_prefix), 4 << 3, 0]));
    out
}

/// Pieces for [`sentencepiece_model`]: special tokens, letters, words, two bytes.
pub const PIECES: [(&str, f32, u8); 13] = [
    ("<unk>", 0.0, 2),
    ("<s>", 0.0, 3),
    ("</s>", 0.0, 3),
    ("<0xC3>", 0.0, 6),
    ("<0xA9>", 0.0, 6),
    ("\u{2581}", -1.0, 1),
    ("a", -2.0, 1),
    ("b", -3.0, 1),
    ("\u{2581}a", -1.5, 1),
    ("ab", -2.5, 1),
    ("\u{2581}ab", -7.0, 1),
    ("\u{2581}\u{2581}", 0.0, 4),
    ("bb", -2.25, 1),
];
