//! `squat generate`.

use crate::args::Generate;
use crate::{forms, printer};
use anyhow::{Context, Result, bail};
use serde_json::json;
use squat_engine::{FinishReason, GenerateOptions, Sampling};
use squat_files::read::{self, Limit};
use squat_model::GenerationConfig;
use std::io::Read;
use std::process::ExitCode;

pub fn run(args: &Generate) -> Result<ExitCode> {
    let model = forms::open_model(&args.model)?;
    let (engine, tokenizer) = forms::engine_and_tokenizer(&model, forms::threads(args.threads))?;
    printer::note(&format!("kernels: {}", engine.kernel_name()));
    let tokenizer = tokenizer.inner();
    let prompt = tokenizer.encode_prompt(&prompt_text(args)?)?;
    let options = GenerateOptions {
        max_tokens: args.max_tokens,
        sampling: sampling(args, &model.generation()),
        stop_ids: tokenizer.eos_ids().to_vec(),
        vocabulary: Some(tokenizer.vocab_size().max(1)),
    };
    let mut stream = tokenizer.stream();
    let begin: Result<Vec<String>, _> = prompt.iter().skip(1).map(|&id| stream.push(id)).collect();
    // Shown with the first token, so that a prompt that does not fit gives an error alone.
    let mut text = begin?.concat();
    let mut failed = None;
    let generation = engine.generate(&prompt, &options, |token| {
        match stream.push(token) {
            Ok(next) if args.json => text += &next,
            Ok(next) => printer::generated(&(std::mem::take(&mut text) + &next)),
            Err(error) => failed = Some(error),
        }
        failed.is_none()
    })?;
    if let Some(error) = failed {
        return Err(error.into());
    }
    text += &stream.finish()?;
    match args.json {
        true => {
            printer::json(&json!({"text": text, "prompt_tokens": prompt.len(), "tokens": generation.tokens,
            "finish": finish_name(generation.finish), "seed": args.seed, "kernels": engine.kernel_name()}))
        }
        false => printer::generated(&(text + "\n")),
    }
    if generation.finish == FinishReason::Capacity {
        let capacity = engine.spec().max_position_embeddings;
        printer::note(&format!("the text ends because the model's context of {capacity} tokens is full"));
    }
    Ok(ExitCode::SUCCESS)
}

/// The prompt of the command line, of a file, or of standard input.
fn prompt_text(args: &Generate) -> Result<String> {
    let limit = Limit::Config;
    let mut text = match &args.prompt_file {
        Some(file) => read::text(file, limit)?,
        None if args.prompt == "-" => {
            let mut bytes = Vec::new();
            std::io::stdin()
                .take(limit.bytes() + 1)
                .read_to_end(&mut bytes)
                .context("cannot read standard input")?;
            if bytes.len() as u64 > limit.bytes() {
                bail!("the prompt on standard input has more than {} bytes", limit.bytes());
            }
            String::from_utf8(bytes).context("the prompt on standard input: expected UTF-8 text")?
        }
        None => return Ok(args.prompt.clone()),
    };
    // Editors and `echo` end a file with a line end that nobody means.
    if text.ends_with('\n') {
        text.pop();
        if text.ends_with('\r') {
            text.pop();
        }
    }
    Ok(text)
}

/// Why a text ended, as programs read it.
fn finish_name(finish: FinishReason) -> &'static str {
    match finish {
        FinishReason::Stop => "stop",
        FinishReason::Length => "length",
        FinishReason::Capacity => "capacity",
        FinishReason::Cancelled => "cancelled",
    }
}

/// Options of the command line, then what the model's files say of sampling, then the program's own defaults.
fn sampling(args: &Generate, config: &GenerationConfig) -> Sampling {
    let own = config.do_sample;
    let of_files = |value: Option<f64>| value.filter(|_| own).map(|value| value as f32);
    let (temperature, top_p) = (of_files(config.temperature), of_files(config.top_p));
    let top_k = config.top_k.filter(|_| own);
    let mut used = Vec::new();
    used.extend(temperature.filter(|_| args.temperature.is_none()).map(|t| format!("temperature {t}")));
    used.extend(top_k.filter(|_| args.top_k.is_none()).map(|k| format!("top-k {k}")));
    used.extend(top_p.filter(|_| args.top_p.is_none()).map(|p| format!("top-p {p}")));
    if !used.is_empty() {
        printer::note(&format!("sampling settings of the model: {}", used.join(", ")));
    }
    Sampling {
        temperature: args.temperature.or(temperature).unwrap_or(0.8),
        top_k: args.top_k.or(top_k).unwrap_or(0),
        top_p: args.top_p.or(top_p).unwrap_or(0.95),
        seed: args.seed,
    }
}
