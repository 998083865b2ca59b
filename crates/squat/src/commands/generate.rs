//! `squat generate`.

use crate::args::Generate;
use crate::{forms, printer};
use anyhow::Result;
use squat_engine::{GenerateOptions, Sampling};
use squat_eval::Tokenize;
use std::process::ExitCode;

pub fn run(args: &Generate) -> Result<ExitCode> {
    let (engine, tokenizer) = forms::engine_and_tokenizer(&args.model, forms::threads(args.threads))?;
    printer::note(&format!("kernels: {}", engine.kernel_name()));
    let mut ids = vec![tokenizer.bos_id()];
    if !args.prompt.is_empty() {
        ids.extend(tokenizer.inner().encode(&args.prompt)?);
    }
    let options = GenerateOptions {
        max_tokens: args.max_tokens,
        sampling: Sampling {
            temperature: args.temperature,
            top_k: args.top_k,
            top_p: args.top_p,
            seed: args.seed,
        },
        stop_ids: tokenizer.inner().eos_ids().to_vec(),
    };
    // Only complete characters are printed: a token may end inside one.
    let mut written = String::new();
    let mut failed = None;
    engine.generate(&ids.clone(), &options, |token| {
        ids.push(token);
        match tokenizer.inner().decode(&ids[1..]) {
            Ok(text) => {
                if let Some(new) = text.strip_prefix(written.as_str())
                    && !new.ends_with('\u{FFFD}')
                {
                    printer::data(new);
                    written = text;
                }
                true
            }
            Err(error) => {
                failed = Some(error);
                false
            }
        }
    })?;
    if let Some(error) = failed {
        return Err(error.into());
    }
    let text = tokenizer.inner().decode(&ids[1..])?;
    printer::line(text.strip_prefix(written.as_str()).unwrap_or_default());
    Ok(ExitCode::SUCCESS)
}
