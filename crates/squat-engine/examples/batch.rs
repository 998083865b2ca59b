//! Continues several prompts at once. Each gets the text that it would get alone, and together they take less time:
//!
//! `cargo run --release -p squat-engine --example batch -- MODEL [PROMPT]...`
#![allow(clippy::print_stdout)]

use squat_engine::{Engine, EngineOptions, Event, GenerateOptions, RequestId, SchedulerOptions};
use std::collections::BTreeMap;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let path = arguments.next().ok_or("usage: batch MODEL [PROMPT]...")?;
    let mut prompts: Vec<String> = arguments.collect();
    if prompts.is_empty() {
        prompts = ["", "The", "One day"].map(str::to_owned).to_vec();
    }

    let model = squat_model::open(path)?;
    let tokenizer = model.tokenizer()?;
    let engine = Engine::from_model(&model, EngineOptions::default())?;

    let mut scheduler = engine.scheduler(SchedulerOptions::default())?;
    let options =
        GenerateOptions { max_tokens: 32, stop_ids: tokenizer.eos_ids().to_vec(), ..Default::default() };
    let mut tokens: BTreeMap<RequestId, Vec<u32>> = BTreeMap::new();
    for prompt in &prompts {
        let ids = tokenizer.encode_prompt(prompt)?;
        let request = scheduler.submit(ids.clone(), options.clone())?;
        tokens.insert(request, ids);
    }
    // A server would submit further requests between the steps.
    while scheduler.step(|request, event| match event {
        Event::Token(token) => tokens.entry(request).or_default().push(token),
        Event::Finished(reason) => eprintln!("{request:?}: {reason:?}"),
        Event::Failed(error) => eprintln!("{request:?}: {error}"),
    }) {}
    for ids in tokens.values() {
        println!("{}", tokenizer.decode(ids)?);
    }
    Ok(())
}
