//! The real model `stories260K`: loaders, tokenizer and reference forward pass against its known continuation.
#![allow(clippy::unwrap_used)]

use squat_model::format::llama2c::{Llama2cTokenizer, load_checkpoint};
use squat_model::reference;
use squat_test::data::{KNOWN_STORY, stories};

#[test]
fn greedy_continuation_is_the_known_one() {
    let Some(path) = stories() else { return };
    let (spec, tensors) = load_checkpoint(path.join("stories260K.bin")).unwrap();
    assert_eq!((spec.hidden_size, spec.intermediate_size, spec.num_hidden_layers), (64, 172, 5));
    assert_eq!((spec.num_attention_heads, spec.num_key_value_heads, spec.vocab_size), (8, 4, 512));
    assert!(spec.tie_word_embeddings);
    let tokenizer = Llama2cTokenizer::load(path.join("tok512.bin"), spec.vocab_size).unwrap();
    let ids = reference::generate_greedy(&spec, &tensors, &[1], 90).unwrap();
    let text = tokenizer.decode(&ids);
    assert!(text.starts_with(KNOWN_STORY), "{text}");
    // The tokenizer encodes the text to the very tokens that the model chose.
    let prompt = tokenizer.encode(KNOWN_STORY);
    assert_eq!(&ids[1..=prompt.len()], prompt);
    assert_eq!(tokenizer.decode(&tokenizer.encode("Tom & Zoë\n")), "Tom & Zoë\n");
}
