//! How likely each text is to the model, the likeliest first:
//!
//! `cargo run --release -p squat-engine --example score -- MODEL TEXT...`
#![allow(clippy::print_stdout)]

use squat_engine::{Engine, EngineOptions};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let path = arguments.next().ok_or("usage: score MODEL TEXT...")?;
    let texts: Vec<String> = arguments.collect();

    let model = squat_model::open(path)?;
    let tokenizer = model.tokenizer()?;
    let engine = Engine::from_model(&model, EngineOptions::default())?;

    let ids = texts.iter().map(|text| tokenizer.encode_prompt(text)).collect::<Result<Vec<_>, _>>()?;
    let sequences: Vec<&[u32]> = ids.iter().map(Vec::as_slice).collect();
    // Of each text the logarithms of the probabilities of its tokens, each after all tokens before it.
    let mut scored: Vec<(f32, &String)> =
        engine.log_likelihoods(&sequences)?.iter().map(|values| values.iter().sum()).zip(&texts).collect();
    scored.sort_by(|a, b| b.0.total_cmp(&a.0));
    for (log_likelihood, text) in scored {
        println!("{log_likelihood:9.3}  {text}");
    }
    Ok(())
}
