//! `tokenizer.model` of SentencePiece, read without a `tokenizer.json`.
#![allow(clippy::unwrap_used)]

use std::fs;

use proptest::prelude::*;
use squat_model::{ModelSpec, Tokenizer, TokenizerFiles};
use squat_test::model::llama;
use squat_test::tokenizer::{PIECES, sentencepiece_model};

fn open(bytes: &[u8]) -> Result<Tokenizer, String> {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("tokenizer.model"), bytes).unwrap();
    let spec = ModelSpec { vocab_size: PIECES.len(), ..llama(true) };
    let folder = Tokenizer::open(dir.path(), &spec).map_err(|error| error.to_string());
    let file = Tokenizer::open(dir.path().join("tokenizer.model"), &spec).map_err(|error| error.to_string());
    assert_eq!(folder.as_ref().err(), file.as_ref().err());
    assert_eq!(TokenizerFiles::read(dir.path()).is_ok(), folder.is_ok());
    folder
}

/// Ids that follow from the scores: BPE takes the best merge first, Unigram the best sum.
#[test]
fn both_kinds() {
    let bpe = open(&sentencepiece_model(2, true, &PIECES)).unwrap();
    // "▁a" (-1.5) comes before "ab" (-2.5), and then "bb" cannot be "b" alone.
    assert_eq!(bpe.encode("ab").unwrap(), [10]);
    assert_eq!(bpe.encode("abb").unwrap(), [8, 12]);
    // Bytes for what has no piece, a token for two spaces, control tokens as they are written.
    assert_eq!(bpe.encode("\u{e9}").unwrap(), [5, 3, 4]);
    assert_eq!(bpe.decode(&[5, 3, 4]).unwrap(), "\u{e9}");
    assert!(bpe.encode("a  b").unwrap().contains(&11));
    assert_eq!(bpe.encode("</s>").unwrap(), [2]);

    let unigram = open(&sentencepiece_model(1, false, &PIECES)).unwrap();
    // "ab" (-2.5) and "b" (-3) are worse than "a" (-2) and "bb" (-2.25).
    assert_eq!(unigram.encode("abb").unwrap(), [6, 12]);
    // "▁a" and "b" (-4.5) are better than "▁ab" (-7), and than "▁" and "ab" (-3.5)? No: the last is the best.
    assert_eq!(unigram.encode(" ab").unwrap(), [5, 9]);
    assert_eq!(unigram.decode(&[5, 9]).unwrap(), " ab");
}

#[test]
fn what_is_not_read() {
    let whole = sentencepiece_model(2, true, &PIECES);
    for (bytes, word) in [
        (Vec::new(), "no pieces"),
        (whole[..whole.len() - 3].to_vec(), "truncated"),
        (sentencepiece_model(3, true, &PIECES), "got 3"),
        (sentencepiece_model(2, true, &[PIECES[0], PIECES[0]]), "twice"),
        (sentencepiece_model(2, true, &[PIECES[0], ("a", f32::NAN, 1)]), "NaN"),
        (sentencepiece_model(1, true, &[PIECES[0], ("a", 0.0, 5)]), "unused"),
        (vec![0x0a, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1], "truncated"),
        (vec![0x0b], "damaged"),
    ] {
        let error = open(&bytes).unwrap_err();
        assert!(error.contains(word) && error.contains("tokenizer.model"), "{error}");
    }
    for end in 0..whole.len() {
        let _ = open(&whole[..end]);
    }
}

proptest! {
    /// Damaged bytes are refused or read, and what is read encodes.
    #[test]
    fn damage(kind in 1u8..3, changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6)) {
        let mut bytes = sentencepiece_model(kind, true, &PIECES);
        for (at, byte) in &changes {
            let at = at.index(bytes.len());
            bytes[at] = *byte;
        }
        if let Ok(tokenizer) = open(&bytes) {
            let _ = tokenizer.encode("a  bab \u{e9}</s>").map(|ids| tokenizer.decode(&ids));
        }
    }
}
