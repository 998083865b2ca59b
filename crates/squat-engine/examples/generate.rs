//! Continues a prompt, word by word:
//!
//! `cargo run --release -p squat-engine --example generate -- MODEL ["Once upon a time"]`
//!
//! `MODEL` is any path that [`squat_model::open`] takes.
#![allow(clippy::print_stdout)]

use squat_engine::{Engine, EngineOptions, GenerateOptions, Sampling};
use std::io::Write;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let path = arguments.next().ok_or("usage: generate MODEL [PROMPT]")?;
    let prompt = arguments.next().unwrap_or_default();

    let model = squat_model::open(path)?;
    let tokenizer = model.tokenizer()?;
    let engine = Engine::from_model(&model, EngineOptions::default())?;

    let options = GenerateOptions {
        max_tokens: 64,
        sampling: Sampling { temperature: 0.8, top_k: 0, top_p: 0.95, seed: 1 },
        stop_ids: tokenizer.eos_ids().to_vec(),
        vocabulary: Some(tokenizer.vocab_size()),
    };
    // A token may end within a character: the stream gives text as soon as it is certain.
    let mut stream = tokenizer.stream();
    let mut error = None;
    print!("{prompt}");
    engine.generate(&tokenizer.encode_prompt(&prompt)?, &options, |token| {
        match stream.push(token) {
            Ok(text) => print!("{text}"),
            Err(failed) => error = Some(failed),
        }
        std::io::stdout().flush().is_ok() && error.is_none()
    })?;
    error.map_or(Ok(()), Err)?;
    println!("{}", stream.finish()?);
    Ok(())
}
