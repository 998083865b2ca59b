//! `squat bench`: tokens per second of prefill and of generation.

use crate::args::Bench;
use crate::{forms, printer};
use anyhow::{Result, bail};
use serde_json::json;
use squat_engine::{Engine, SessionOptions};
use squat_eval::table::Table;
use std::process::ExitCode;
use std::time::Instant;

/// Tokens per second of one repetition of each test.
pub struct Speed {
    /// Name, as llama-bench has it: `pp128`, `tg128`.
    pub test: String,
    /// Median over the repetitions.
    pub tokens_per_second: f64,
    /// Smallest and largest.
    pub spread: (f64, f64),
}

/// Measures prefill of `prompt` tokens and generation of `generate` tokens, after one warm-up.
pub fn measure(engine: &Engine, prompt: usize, generate: usize, repeat: usize) -> Result<Vec<Speed>> {
    let room = engine.spec().max_position_embeddings;
    if prompt > room || generate > room {
        bail!("the model takes {room} tokens at most; ask for fewer with -p and -n");
    }
    let vocabulary = engine.spec().vocab_size as u32;
    let ids: Vec<u32> = (0..prompt.max(1) as u32).map(|i| i.wrapping_mul(7919) % vocabulary).collect();
    let options = SessionOptions { capacity: Some(prompt.max(generate).max(1)), ..SessionOptions::default() };
    let mut session = engine.session_with(options)?;
    let mut found = Vec::new();
    let mut test = |name: String,
                    tokens: usize,
                    run: &mut dyn FnMut(&mut squat_engine::Session) -> Result<()>|
     -> Result<()> {
        let mut speeds = Vec::new();
        for round in 0..=repeat.max(1) {
            session.reset();
            let started = Instant::now();
            run(&mut session)?;
            if round > 0 {
                speeds.push(tokens as f64 / started.elapsed().as_secs_f64());
            }
        }
        speeds.sort_by(f64::total_cmp);
        let spread = (speeds[0], speeds[speeds.len() - 1]);
        found.push(Speed { test: name, tokens_per_second: speeds[speeds.len() / 2], spread });
        Ok(())
    };
    if prompt > 0 {
        test(format!("pp{prompt}"), prompt, &mut |session| {
            session.prefill(&ids)?;
            Ok(())
        })?;
    }
    if generate > 0 {
        test(format!("tg{generate}"), generate, &mut |session| {
            for i in 0..generate as u32 {
                session.decode(i.wrapping_mul(104_729) % vocabulary)?;
            }
            Ok(())
        })?;
    }
    Ok(found)
}

pub fn run(args: &Bench) -> Result<ExitCode> {
    #[cfg(feature = "train")]
    if let Some(shape) = &args.training.train {
        return super::bench_train::run(args, shape);
    }
    let Some(model) = &args.model else { bail!("expected a model; give its folder") };
    let threads = forms::threads(args.threads);
    let path = forms::locate(model);
    let engine = Engine::load(&path, threads)?;
    let speeds = measure(&engine, args.prompt, args.generate, args.repeat)?;
    let (kernel, bytes) = (engine.kernel_name(), engine.memory(None).weights);
    if args.json {
        let list: Vec<serde_json::Value> = speeds
            .iter()
            .map(|s| {
                json!({"test": s.test, "threads": threads, "tokens_per_second": s.tokens_per_second,
                    "min": s.spread.0, "max": s.spread.1, "kernel": kernel, "model_bytes": bytes})
            })
            .collect();
        printer::json(&serde_json::Value::Array(list));
        return Ok(ExitCode::SUCCESS);
    }
    let mut table = Table::new(["test", "threads", "tokens/s", "min .. max", "kernel", "model bytes"]);
    for s in speeds {
        table.push([
            s.test,
            threads.to_string(),
            format!("{:.1}", s.tokens_per_second),
            format!("{:.1} .. {:.1}", s.spread.0, s.spread.1),
            kernel.clone(),
            bytes.to_string(),
        ]);
    }
    printer::data(&table.to_markdown());
    Ok(ExitCode::SUCCESS)
}
