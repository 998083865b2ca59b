//! Streaming decoding gives what decoding at once gives; prompts begin with BOS once.
#![allow(clippy::unwrap_used)]

mod common;

use proptest::prelude::*;
use serde_json::{Value, json};
use squat_model::Tokenizer;

fn added(id: usize, content: &str, special: bool) -> Value {
    json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
           "normalized": false, "special": special})
}

fn tokenizer(tokens: &[String], merges: &[(&str, &str)], added: &[Value], parts: &Value) -> Tokenizer {
    let vocab: serde_json::Map<String, Value> =
        tokens.iter().enumerate().map(|(id, token)| (token.clone(), id.into())).collect();
    let merges: Vec<String> = merges.iter().map(|(a, b)| format!("{a} {b}")).collect();
    let json = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": added,
        "normalizer": parts["normalizer"], "pre_tokenizer": parts["pre_tokenizer"], "post_processor": null,
        "decoder": parts["decoder"],
        "model": {"type": "BPE", "vocab": vocab, "merges": merges, "unk_token": parts["unk_token"],
                  "byte_fallback": parts["byte_fallback"], "fuse_unk": true},
    });
    let extra = added.iter().filter(|token| token["id"].as_u64().unwrap() >= tokens.len() as u64).count();
    let mut spec = common::spec(true);
    spec.vocab_size = tokens.len() + extra;
    Tokenizer::from_json(json.to_string().as_bytes(), "the test", &spec).unwrap()
}

/// All bytes, some words, BOS and EOS, an added token that is not special.
fn byte_level() -> Tokenizer {
    let mut others = 0x100u32..;
    let characters = (0..=255u32).map(|byte| match byte {
        0x21..=0x7E | 0xA1..=0xAC | 0xAE..=0xFF => char::from_u32(byte).unwrap(),
        _ => char::from_u32(others.next().unwrap()).unwrap(),
    });
    let mut tokens = vec!["<pad>".to_owned(), "<s>".to_owned(), "</s>".to_owned()];
    tokens.extend(characters.map(String::from));
    tokens.extend(["Ġt", "he", "Ġthe", "âĤ", "âĤ¬", "¬ÿ"].map(str::to_owned));
    let count = tokens.len();
    let parts = json!({
        "normalizer": null, "unk_token": null, "byte_fallback": false,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
        "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
    });
    let added = [
        added(0, "<pad>", true),
        added(1, "<s>", true),
        added(2, "</s>", true),
        added(count, "<tool call>é", false),
    ];
    tokenizer(&tokens, &[("Ġ", "t"), ("h", "e"), ("Ġt", "he")], &added, &parts)
}

/// As the tokenizer of Llama 2: characters, a space in front, bytes for the rest.
fn sentence_piece(decoder: &Value) -> Tokenizer {
    let mut tokens = vec!["<unk>".to_owned(), "<s>".to_owned(), "</s>".to_owned()];
    tokens.extend((0..256).map(|byte| format!("<0x{byte:02X}>")));
    tokens.extend(["▁▁", "▁t", "he", "▁the", "▁", "t", "h", "e", ".", "é", "▁é"].map(str::to_owned));
    let parts = json!({
        "normalizer": {"type": "Sequence", "normalizers": [
            {"type": "Prepend", "prepend": "▁"},
            {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]},
        "pre_tokenizer": null, "unk_token": "<unk>", "byte_fallback": true, "decoder": decoder,
    });
    let added = [added(0, "<unk>", true), added(1, "<s>", true), added(2, "</s>", true)];
    tokenizer(&tokens, &[("▁", "t"), ("h", "e"), ("▁t", "he")], &added, &parts)
}

fn llama2() -> Tokenizer {
    sentence_piece(&json!({"type": "Sequence", "decoders": [
        {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
        {"type": "ByteFallback"}, {"type": "Fuse"},
        {"type": "Strip", "content": " ", "start": 1, "stop": 0}]}))
}

fn all() -> Vec<Tokenizer> {
    let metaspace =
        json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": true});
    let gemma = json!({"type": "Sequence", "decoders": [
        {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}, {"type": "ByteFallback"}, {"type": "Fuse"}]});
    let unknown = json!({"type": "CTC", "pad_token": "<pad>", "word_delimiter_token": "|", "cleanup": true});
    let piece = json!({"type": "WordPiece", "prefix": "▁", "cleanup": true});
    let decoders = [metaspace, gemma, unknown, piece, Value::Null];
    [byte_level(), llama2()].into_iter().chain(decoders.iter().map(sentence_piece)).collect()
}

/// The texts of the stream, and the rest.
fn stream(tokenizer: &Tokenizer, ids: &[u32]) -> (Vec<String>, String) {
    let mut stream = tokenizer.stream();
    let texts = ids.iter().map(|&id| stream.push(id).unwrap()).collect();
    (texts, stream.finish().unwrap())
}

proptest! {
    #[test]
    fn streamed_text_joined_is_the_text_decoded_at_once(
        seeds in proptest::collection::vec((0u32..3, 0u32..100_000), 0..40)
    ) {
        for tokenizer in all() {
            let size = tokenizer.vocab_size() as u32;
            let ids: Vec<u32> = seeds.iter().map(|&(kind, x)| match kind {
                // Parts of a euro sign, bytes that never occur, a space: in both vocabularies byte b is token b + 3.
                0 => 3 + [0xE2, 0x82, 0xAC, 0xFF, 0x20, 0xC3, 0xF0][x as usize % 7],
                1 => 259 + x % (size - 259),
                _ => x % size,
            }).collect();
            let (texts, rest) = stream(&tokenizer, &ids);
            prop_assert_eq!(texts.concat() + &rest, tokenizer.decode(&ids).unwrap(), "{:?}", ids);
        }
    }
}

#[test]
fn bytes_that_are_no_text_become_replacement_characters_and_the_text_goes_on() {
    let tokenizer = llama2();
    let byte = |byte: u32| byte + 3;
    let id = |token: &str| tokenizer.id(token).unwrap();
    let ids = [byte(0xE2), byte(0x82), byte(0xAC), byte(0xFF), id("▁the"), id("."), byte(0xC3)];
    let (texts, rest) = stream(&tokenizer, &ids);
    assert_eq!(texts, ["", "", "", "", "\u{FFFD}\u{FFFD}\u{FFFD}\u{FFFD} the", ".", ""]);
    assert_eq!(rest, "\u{FFFD}");
    // A run that is text shows when it ends.
    let (texts, rest) = stream(&tokenizer, &[id("▁"), byte(0xE2), byte(0x82), byte(0xAC), 2, id("▁t")]);
    assert_eq!((texts.concat().as_str(), rest.as_str()), ("€ t", ""));
    // Byte-level BPE shows a character with its last byte.
    let (texts, _) = stream(&byte_level(), &[byte(0xE2), byte(0x82), byte(0xAC), byte(0xFF), byte(0x61)]);
    assert_eq!(texts, ["", "", "€", "\u{FFFD}", "a"]);
}

#[test]
fn a_stream_holds_back_little_and_can_be_used_again() {
    for tokenizer in [byte_level(), llama2()] {
        let ids = tokenizer.encode("the he the").unwrap();
        let mut stream = tokenizer.stream();
        for _ in 0..2 {
            let mut text = String::new();
            for (count, &id) in ids.iter().enumerate() {
                text += &stream.push(id).unwrap();
                assert_eq!(text, tokenizer.decode(&ids[..=count]).unwrap());
            }
            assert_eq!(stream.finish().unwrap(), "");
        }
        assert!(stream.push(10_000).unwrap_err().to_string().contains("got 10000"));
    }
}

#[test]
fn a_prompt_begins_with_bos_once() {
    for tokenizer in [byte_level(), llama2()] {
        assert_eq!(tokenizer.encode_prompt("").unwrap(), [1]);
        let ids = tokenizer.encode("the").unwrap();
        assert_eq!(tokenizer.encode_prompt("the").unwrap(), [&[1], &ids[..]].concat());
        let spelled = tokenizer.encode_prompt("<s>the").unwrap();
        assert_eq!(spelled, tokenizer.encode("<s>the").unwrap());
        assert_eq!(spelled.iter().filter(|&&id| id == 1).count(), 1);
    }
    let mut spec = common::spec(true);
    spec.bos_token_id = None;
    let json = common::tokenizer_json(19);
    let tokenizer = Tokenizer::from_json(json.as_bytes(), "the test", &spec).unwrap();
    assert!(tokenizer.encode_prompt("w4").unwrap_err().to_string().contains("bos_token_id"));
}
