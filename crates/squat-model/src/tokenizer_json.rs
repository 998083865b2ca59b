//! A `tokenizer.json` made from vocabularies in other formats, written without a tree of values: those of today's models
//! have a quarter of a million tokens and half a million merges.

use std::collections::HashMap;

use serde::ser::{Serialize, Serializer};
use serde_json::{Value, json};

/// Mark of a space in SentencePiece vocabularies.
pub(crate) const SPACE: char = '\u{2581}';

/// What a piece is; numbers are those of SentencePiece, which GGUF has taken over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PieceKind {
    /// A piece of text.
    Normal,
    /// Stands for what no piece covers.
    Unknown,
    /// Never a piece of text.
    Control,
    /// Found in a text before anything else.
    UserDefined,
    /// Not to be used.
    Unused,
    /// A byte, written `<0x0A>`.
    Byte,
}

impl PieceKind {
    /// Of a number in a file; numbers that are not known count as normal pieces, as in the format's own reader.
    pub(crate) fn of_number(number: u64) -> Self {
        match number {
            2 => Self::Unknown,
            3 => Self::Control,
            4 => Self::UserDefined,
            5 => Self::Unused,
            6 => Self::Byte,
            _ => Self::Normal,
        }
    }

    /// Whether it is found in a text before anything else, as special tokens are.
    fn is_added(self) -> bool {
        matches!(self, Self::Unknown | Self::Control | Self::UserDefined)
    }
}

/// A token by its text, and what it is.
pub(crate) type Token<'a> = (&'a str, PieceKind);

/// Parts of a `tokenizer.json` that are small.
#[derive(Clone, Debug, Default)]
pub(crate) struct Steps {
    /// Changes of the text.
    pub normalizer: Value,
    /// Splitting of the text.
    pub pre_tokenizer: Value,
    /// After the model.
    pub post_processor: Value,
    /// Back to text.
    pub decoder: Value,
}

#[derive(serde::Serialize)]
struct File<'a> {
    version: &'static str,
    truncation: (),
    padding: (),
    added_tokens: Vec<Value>,
    normalizer: Value,
    pre_tokenizer: Value,
    post_processor: Value,
    decoder: Value,
    model: Model<'a>,
}

/// The model of a `tokenizer.json`.
#[derive(serde::Serialize)]
#[serde(tag = "type")]
enum Model<'a> {
    #[serde(rename = "BPE")]
    Bpe {
        dropout: (),
        unk_token: Option<&'a str>,
        continuing_subword_prefix: (),
        end_of_word_suffix: (),
        fuse_unk: bool,
        byte_fallback: bool,
        ignore_merges: bool,
        vocab: Ids<'a>,
        merges: &'a [(&'a str, &'a str)],
    },
    Unigram {
        unk_id: Option<usize>,
        byte_fallback: bool,
        vocab: &'a [(&'a str, f32)],
    },
}

/// Texts of tokens with their places as ids.
struct Ids<'a>(&'a [Token<'a>]);

impl Serialize for Ids<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().enumerate().map(|(id, (text, _))| (text, id)))
    }
}

/// Ids by text. No two tokens have the same text: the later one would hide the first.
fn ids<'a>(tokens: &[Token<'a>]) -> Result<HashMap<&'a str, usize>, String> {
    let mut ids = HashMap::with_capacity(tokens.len());
    for (id, (text, _)) in tokens.iter().enumerate() {
        if ids.insert(*text, id).is_some() {
            return Err(format!("the token {text:?} occurs twice"));
        }
    }
    Ok(ids)
}

/// Tokens that are found before anything else. Spaces are written as such: they are looked for in the text as it is.
fn added(tokens: &[Token<'_>]) -> Vec<Value> {
    let added = tokens.iter().enumerate().filter(|(_, (text, kind))| kind.is_added() && !text.is_empty());
    added
        .map(|(id, (text, kind))| {
            json!({"id": id, "content": text, "special": *kind != PieceKind::UserDefined, "single_word": false,
                "lstrip": false, "rstrip": false, "normalized": false})
        })
        .collect()
}

fn text(steps: Steps, tokens: &[Token<'_>], model: Model<'_>) -> Result<Vec<u8>, String> {
    let Steps { normalizer, pre_tokenizer, post_processor, decoder } = steps;
    let file = File {
        version: "1.0",
        truncation: (),
        padding: (),
        added_tokens: added(tokens),
        normalizer,
        pre_tokenizer,
        post_processor,
        decoder,
        model,
    };
    serde_json::to_vec(&file).map_err(|error| error.to_string())
}

/// Byte-level BPE: tokens and merges, best first; with `ignore_merges` a word that is a token stays whole.
///
/// # Errors
/// Two tokens of the same text.
pub(crate) fn byte_level(
    steps: Steps,
    tokens: &[Token<'_>],
    merges: &[(&str, &str)],
    ignore_merges: bool,
) -> Result<Vec<u8>, String> {
    ids(tokens)?;
    let model = Model::Bpe {
        dropout: (),
        unk_token: None,
        continuing_subword_prefix: (),
        end_of_word_suffix: (),
        fuse_unk: false,
        byte_fallback: false,
        ignore_merges,
        vocab: Ids(tokens),
        merges,
    };
    text(steps, tokens, model)
}

/// How the merges of a SentencePiece vocabulary are known.
pub(crate) enum Pieces<'a> {
    /// BPE: of two merges the one whose result has the higher score comes first.
    Scores(&'a [f32]),
    /// BPE with a list of merges.
    Merges(&'a [(&'a str, &'a str)]),
    /// Unigram: the sum of the scores is the highest.
    Unigram(&'a [f32]),
}

/// What happens to a text before its pieces are looked for.
#[derive(Clone, Debug)]
pub(crate) struct Normalization {
    /// Table of replacements in SentencePiece's own format; empty for none.
    pub charsmap: Vec<u8>,
    /// Whether a space comes in front of a text.
    pub add_prefix: bool,
    /// Whether spaces at the ends are taken away, and more than one in a row are one.
    pub remove_extra_spaces: bool,
}

/// A SentencePiece vocabulary: one score a token, `unknown` the id of what no piece covers.
///
/// # Errors
/// Two tokens of the same text, an unknown token outside the vocabulary, scores that are no numbers.
pub(crate) fn sentencepiece(
    tokens: &[Token<'_>],
    pieces: &Pieces<'_>,
    unknown: Option<usize>,
    normalization: &Normalization,
) -> Result<Vec<u8>, String> {
    let ids = ids(tokens)?;
    let unk =
        unknown.map(|id| tokens.get(id).ok_or_else(|| format!("the unknown token {id} is none of them")));
    let unk = unk.transpose()?.map(|(text, _)| *text);
    if let Pieces::Scores(scores) | Pieces::Unigram(scores) = pieces {
        if scores.len() != tokens.len() {
            return Err(format!("expected {} scores, got {}", tokens.len(), scores.len()));
        }
        if let Some(at) = scores.iter().position(|score| !score.is_finite()) {
            return Err(format!("the score of {:?} is {}", tokens[at].0, scores[at]));
        }
    }
    let byte_fallback = tokens.iter().any(|(_, kind)| *kind == PieceKind::Byte);
    let steps = steps(normalization);
    let bpe = |merges: &[(&str, &str)]| {
        let model = Model::Bpe {
            dropout: (),
            unk_token: unk,
            continuing_subword_prefix: (),
            end_of_word_suffix: (),
            fuse_unk: true,
            byte_fallback,
            ignore_merges: false,
            vocab: Ids(tokens),
            merges,
        };
        text(steps.clone(), tokens, model)
    };
    match pieces {
        Pieces::Scores(scores) => bpe(&merges(tokens, scores, &ids)),
        Pieces::Merges(merges) => bpe(merges),
        Pieces::Unigram(scores) => {
            let vocab: Vec<(&str, f32)> =
                tokens.iter().zip(*scores).map(|(token, score)| (token.0, *score)).collect();
            text(steps, tokens, Model::Unigram { unk_id: unknown, byte_fallback, vocab: &vocab })
        }
    }
}

fn steps(normalization: &Normalization) -> Steps {
    let mut normalizers = Vec::new();
    if !normalization.charsmap.is_empty() {
        normalizers
            .push(json!({"type": "Precompiled", "precompiled_charsmap": base64(&normalization.charsmap)}));
    }
    if normalization.remove_extra_spaces {
        normalizers.push(json!({"type": "Strip", "strip_left": true, "strip_right": true}));
        normalizers.push(json!({"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "}));
    }
    if normalization.add_prefix {
        normalizers.push(json!({"type": "Prepend", "prepend": SPACE}));
    }
    normalizers.push(json!({"type": "Replace", "pattern": {"String": " "}, "content": SPACE}));
    let mut decoders = vec![
        json!({"type": "Replace", "pattern": {"String": SPACE}, "content": " "}),
        json!({"type": "ByteFallback"}),
        json!({"type": "Fuse"}),
    ];
    if normalization.add_prefix {
        decoders.push(json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
    }
    Steps {
        normalizer: json!({"type": "Sequence", "normalizers": normalizers}),
        decoder: json!({"type": "Sequence", "decoders": decoders}),
        ..Steps::default()
    }
}

/// Every way to make a piece of two others, by falling score of the piece; of ways to make pieces of one score, the longer
/// left part first, then the longer right part, as transformers 5.24 orders them.
fn merges<'a>(
    tokens: &[Token<'a>],
    scores: &[f32],
    ids: &HashMap<&'a str, usize>,
) -> Vec<(&'a str, &'a str)> {
    let is_text = |id: usize| tokens[id].1 == PieceKind::Normal;
    let mut found: Vec<(f32, usize, usize, &'a str, &'a str)> = Vec::with_capacity(2 * tokens.len());
    for (&(piece, kind), &score) in tokens.iter().zip(scores) {
        if kind != PieceKind::Normal {
            continue;
        }
        let first = found.len();
        for (at, _) in piece.char_indices().skip(1) {
            let (left, right) = piece.split_at(at);
            let Some(&left_id) = ids.get(left).filter(|&&id| is_text(id)) else { continue };
            let Some(&right_id) = ids.get(right).filter(|&&id| is_text(id)) else { continue };
            found.push((score, left_id, right_id, left, right));
        }
        found[first..].sort_by_key(|&(_, left, right, ..)| (left, right));
    }
    let length = |text: &str| text.chars().count();
    found.sort_by(|a, b| {
        b.0.total_cmp(&a.0).then_with(|| (length(b.3), length(b.4)).cmp(&(length(a.3), length(a.4))))
    });
    found.into_iter().map(|(.., left, right)| (left, right)).collect()
}

/// Base 64 with padding.
fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut out = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let word =
            chunk.iter().fold(0u32, |word, &byte| (word << 8) | u32::from(byte)) << (8 * (3 - chunk.len()));
        for digit in 0..4 {
            match digit <= chunk.len() {
                true => out.push(char::from(DIGITS[(word >> (18 - 6 * digit) & 63) as usize])),
                false => out.push('='),
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base_64() {
        let pairs = [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foobar", "Zm9vYmFy")];
        pairs.iter().for_each(|(text, coded)| assert_eq!(base64(text.as_bytes()), *coded));
        assert_eq!(base64(&[0xfb, 0xff]), "+/8=");
    }

    #[test]
    fn merges_by_score() {
        let normal = |text| (text, PieceKind::Normal);
        let tokens = [
            ("<s>", PieceKind::Control),
            normal("a"),
            normal("b"),
            normal("ab"),
            normal("aab"),
            normal("aa"),
        ];
        let scores = [0.0, -9.0, -9.0, -1.0, -3.0, -2.0];
        let ids = ids(&tokens).unwrap();
        let want = [("a", "b"), ("a", "a"), ("aa", "b"), ("a", "ab")];
        assert_eq!(merges(&tokens, &scores, &ids), want);
        assert!(super::ids(&[normal("a"), normal("a")]).unwrap_err().contains("twice"));
    }
}
