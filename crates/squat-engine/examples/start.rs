//! From process start to the first token, and the memory of it.
//!
//! `start make FOLDER [SHAPE [PLAN [TOKENIZER.JSON]]]` writes a packed random model; `start time FOLDER [THREADS
//! [REPEATS]]` starts processes that load it and print their first token; `start once FOLDER [THREADS [CONTEXT]]` is one
//! of them.

#![allow(clippy::print_stdout)]

use squat_engine::{Engine, EngineOptions, SessionOptions};
use squat_model::{PackSource, QuantPlan, TokenizerFiles, pack, shapes};
use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

type Outcome = Result<(), Box<dyn std::error::Error>>;

fn make(folder: &Path, words: &[String]) -> Outcome {
    let word = |index: usize, default: &str| words.get(index).cloned().unwrap_or_else(|| default.to_owned());
    let spec = shapes::shape(&word(0, "llama-58m"))?;
    let mut plan = QuantPlan::named(&word(1, "w4a8"))?;
    if plan.needs_thresholds() {
        plan.thresholds = vec![1.0; spec.num_hidden_layers];
    }
    let tensors = shapes::tensors(&spec, &plan, 1)?;
    let tokenizer = match words.get(2) {
        Some(path) => TokenizerFiles::from_tokenizer_json(std::fs::read(path)?),
        None => TokenizerFiles::none(),
    };
    let source =
        PackSource { spec: &spec, plan: &plan, tensors: &tensors, tokenizer: &tokenizer, generation: None };
    let report = pack(&source, folder)?;
    eprintln!("weight file of {:.1} MB", report.bytes_after as f64 / 1e6);
    Ok(())
}

/// A field of `/proc/self/status` in MB.
fn status(field: &str) -> f64 {
    let text = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = text.lines().find(|line| line.starts_with(field)).unwrap_or_default();
    line.split_whitespace().nth(1).and_then(|kb| kb.parse().ok()).unwrap_or(0.0) * 1024.0 / 1e6
}

fn once(folder: &Path, threads: usize, context: usize) -> Outcome {
    let start = Instant::now();
    let mut last = 0.0;
    let mut lap = |what: &str| {
        let now = start.elapsed().as_secs_f64() * 1e3;
        let line = format!("{what} {:.1} ms, {:.1} MB; ", now - last, status("VmRSS"));
        last = now;
        line
    };
    let before = lap("start");
    let model = squat_model::open(folder)?;
    // At the same time, as `squat generate` does.
    let (engine, tokenizer) = std::thread::scope(|scope| {
        let engine = scope.spawn(|| Engine::from_model(&model, EngineOptions::threads(threads)));
        let tokenizer = folder.join("tokenizer.json").exists().then(|| model.tokenizer());
        (engine.join().expect("the engine's thread"), tokenizer)
    });
    let (engine, tokenizer) = (engine?, tokenizer.transpose()?);
    let ids = match &tokenizer {
        Some(tokenizer) => tokenizer.encode("The")?,
        None => Vec::new(),
    };
    let loaded = lap("weights and tokenizer");
    let mut session = engine.session_with(SessionOptions::default())?;
    let opened = lap("session");
    let ids: Vec<u32> = std::iter::once(1).chain(ids).collect();
    let logits = session.prefill(&ids)?;
    let first = logits.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1)).map_or(0, |(index, _)| index);
    println!("{first}");
    std::io::stdout().flush()?;
    let done = lap("first token");
    let peak = status("VmHWM");
    for id in
        (session.position()..context).map(|i| (i * 7919 % 16_000) as u32).collect::<Vec<_>>().chunks(256)
    {
        session.prefill(id)?;
    }
    let memory = engine.memory(Some(&session));
    let [weights, cache, scratch] =
        [memory.weights, memory.cache, memory.scratch].map(|bytes| bytes as f64 / 1e6);
    let [anonymous, file] = [status("RssAnon"), status("RssFile")];
    println!(
        "{before}{loaded}{opened}{done}peak {peak:.1} MB; at {} tokens: weights {weights:.1}, cache \
         {cache:.1}, buffers {scratch:.1}; resident {:.1} (anonymous {anonymous:.1}, file {file:.1}), peak {:.1} MB",
        session.position(),
        status("VmRSS"),
        status("VmHWM"),
    );
    Ok(())
}

fn time(folder: &Path, threads: usize, repeats: usize) -> Outcome {
    let size = std::fs::metadata(folder.join("model.safetensors"))?.len() as f64 / 1e6;
    let mut times = Vec::new();
    for index in 0..repeats {
        let start = Instant::now();
        let mut child = Command::new(std::env::current_exe()?)
            .args([
                "once".as_ref(),
                folder.as_os_str(),
                threads.to_string().as_ref(),
                if index == 0 { "2048" } else { "1" }.as_ref(),
            ])
            .stdout(Stdio::piped())
            .spawn()?;
        let mut output = BufReader::new(child.stdout.take().ok_or("no output")?);
        let mut line = String::new();
        output.read_line(&mut line)?;
        times.push(start.elapsed().as_secs_f64() * 1e3);
        let mut rest = String::new();
        output.read_to_string(&mut rest)?;
        if index < 2 {
            eprint!("{rest}");
        }
        if !child.wait()?.success() {
            return Err("the child failed".into());
        }
    }
    times.sort_by(f64::total_cmp);
    eprintln!(
        "weight file {size:.1} MB, {threads} threads: process start to first token {:.1} ms best, {:.1} ms median",
        times[0],
        times[times.len() / 2]
    );
    Ok(())
}

fn main() -> Outcome {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let number =
        |index: usize, default: usize| words.get(index).and_then(|n| n.parse().ok()).unwrap_or(default);
    match words.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["make", folder, ..] => make(folder.as_ref(), &words[2..]),
        ["time", folder, ..] => time(folder.as_ref(), number(2, 2), number(3, 11)),
        ["once", folder, ..] => once(folder.as_ref(), number(2, 2), number(3, 0)),
        _ => Err("expected make, time or once, and a folder".into()),
    }
}
