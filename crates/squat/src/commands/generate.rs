//! `squat generate`.

use crate::args::Generate;
use crate::{forms, printer};
use anyhow::Result;
use squat_engine::{GenerateOptions, Sampling};
use std::process::ExitCode;

pub fn run(args: &Generate) -> Result<ExitCode> {
    let (engine, tokenizer) = forms::engine_and_tokenizer(&args.model, forms::threads(args.threads))?;
    printer::note(&format!("kernels: {}", engine.kernel_name()));
    let tokenizer = tokenizer.inner();
    let prompt = tokenizer.encode_prompt(&args.prompt)?;
    let options = GenerateOptions {
        max_tokens: args.max_tokens,
        sampling: Sampling {
            temperature: args.temperature,
            top_k: args.top_k,
            top_p: args.top_p,
            seed: args.seed,
        },
        stop_ids: tokenizer.eos_ids().to_vec(),
    };
    let mut stream = tokenizer.stream();
    let begin: Result<Vec<String>, _> = prompt.iter().skip(1).map(|&id| stream.push(id)).collect();
    // Shown with the first token, so that a prompt that does not fit gives an error alone.
    let mut text = begin?.concat();
    let mut failed = None;
    engine.generate(&prompt, &options, |token| {
        match stream.push(token) {
            Ok(next) => printer::data(&(std::mem::take(&mut text) + &next)),
            Err(error) => failed = Some(error),
        }
        failed.is_none()
    })?;
    if let Some(error) = failed {
        return Err(error.into());
    }
    printer::line(&(text + &stream.finish()?));
    Ok(ExitCode::SUCCESS)
}
