//! `squat quantize`.

use crate::args::Quantize;
use crate::fidelity::Fidelity;
use crate::forms::{self, ModelTokenizer};
use crate::{printer, signals};
use anyhow::{Result, bail};
use serde_json::json;
use squat_engine::{BatchEntry, Engine, EngineOptions, Sampler, Sampling, SessionOptions};
use squat_eval::table::Table;
use squat_eval::{Tokenize, TokenizedText};
use squat_files::write::ScratchFolder;
use squat_model::{ModelKind, OpenedModel, Output, QuantPlan};
use squat_quant::random::SplitMix64;
use squat_train::checkpoint;
use squat_train::start::start;
use std::path::Path;
use std::process::ExitCode;
use std::time::Instant;

/// Tokens of a window, BOS included, for models that take as many.
const WINDOW: usize = 512;

/// Sequences that the model writes together.
const WRITERS: usize = 16;

/// Token ids to calibrate on and to measure on, in windows that begin with BOS.
struct Text {
    calibration: Vec<Vec<u32>>,
    held_out: Vec<Vec<u32>>,
}

pub fn run(args: &Quantize) -> Result<ExitCode> {
    let began = Instant::now();
    let threads = forms::threads(args.threads);
    let model = forms::open_model(&args.model)?;
    if model.kind() != ModelKind::FullPrecision {
        bail!(
            "{} has quantizers already; give the model in full precision that it was made from",
            model.path().display()
        );
    }
    let mut plan = QuantPlan::named(&args.plan)?;
    if model.spec().tie_word_embeddings {
        plan.head = plan.embedding;
    }
    plan.validate_frozen(model.spec())?;
    if plan.weight.is_none() {
        bail!("the plan {} quantizes no weights; choose another, such as w4a8", args.plan);
    }
    // Minutes later would be late to learn that nothing can be written there. The lock is held to the end.
    let output = Output::new(&args.out, args.force);
    output.check()?;
    let steps = ScratchFolder::beside(&args.out)?;
    // First, so that a model that cannot be quantized is refused before text is written.
    let loaded = checkpoint::load(model.path())?;
    let original = Engine::from_model(&model, EngineOptions::threads(threads))?;
    let text = text(args, &model, &original)?;
    let started = start(&loaded, &plan, &text.calibration, &args.methods, threads, &mut |progress| {
        let (done, all) = (progress.layers, progress.of);
        if done == all || done % 5 == 0 {
            printer::note(&format!("layer {done} of {all}, {:.0} s", began.elapsed().as_secs_f64()));
        }
    })?;
    drop(loaded);
    let found = started.loaded;
    let checkpoint_folder = steps.path().join("checkpoint");
    let quantized = (found.plan.as_ref(), found.quantizer);
    let tokenizer = model.tokenizer_files()?;
    checkpoint::save(&checkpoint_folder, &found.spec, quantized, &found.parameters, &tokenizer, None)?;
    drop(found);
    let report = squat_model::open(&checkpoint_folder)?.pack(None, output)?;
    drop(steps);
    let fidelity = signals::while_waiting(|| {
        Fidelity::measure(&original, &Engine::load(&args.out, threads)?, &text.held_out, threads)
    })?;
    let seconds = began.elapsed().as_secs_f64();
    if args.json {
        let mut all = fidelity.to_json();
        all["plan"] = json!(args.plan);
        all["bytes_before"] = json!(model.weight_bytes());
        all["bytes_after"] = json!(report.bytes_after);
        all["seconds"] = json!(seconds);
        printer::json(&all);
        return Ok(ExitCode::SUCCESS);
    }
    let [before, after] = fidelity.perplexities();
    let mut table = Table::new(["", "original", &args.plan]);
    let bytes = [model.weight_bytes(), report.bytes_after];
    table.push(["perplexity".to_owned(), format!("{before:.2}"), format!("{after:.2}")]);
    table.push(["over the original".to_owned(), "1".to_owned(), format!("{:.3}", fidelity.ratio())]);
    table.push([
        "equal next tokens".to_owned(),
        "100 %".to_owned(),
        format!("{:.1} %", 100.0 * fidelity.agreement()),
    ]);
    table.push([
        "KL divergence, nats".to_owned(),
        "0".to_owned(),
        format!("{:.4}", fidelity.mean_divergence()),
    ]);
    table.push(["bytes".to_owned(), bytes[0].to_string(), bytes[1].to_string()]);
    printer::data(&table.to_markdown());
    printer::note(&format!(
        "{} tokens measured; {seconds:.0} s in all: {}",
        fidelity.tokens,
        args.out.display()
    ));
    Ok(ExitCode::SUCCESS)
}

/// The text of the arguments, or text that the model writes.
fn text(args: &Quantize, model: &OpenedModel, engine: &Engine) -> Result<Text> {
    let tokenizer = ModelTokenizer::open(model)?;
    let bos = tokenizer.bos_id();
    let length = WINDOW.min(model.spec().max_position_embeddings);
    if length < 2 {
        bail!("the model has a context of {length} tokens; expected at least 2");
    }
    let wanted = |tokens: usize| tokens.div_ceil(length - 1);
    let (calibration, held_out) = (wanted(args.tokens).max(1), wanted(args.eval_tokens).max(1));
    let read = |path: &Path| -> Result<Vec<Vec<u32>>> {
        let texts = TokenizedText::read(path, &tokenizer)?;
        Ok(texts.iter().flat_map(|text| windows(&text.tokens, bos, length)).collect())
    };
    let separate = args.held_out.as_deref().map(read).transpose()?;
    if let (Some(path), Some([])) = (&args.held_out, separate.as_deref()) {
        bail!(
            "{} is too short to measure on: expected text of at least {} tokens; give more, or leave --held-out out",
            path.display(),
            length - 1
        );
    }
    let Some(data) = &args.data else {
        let more = if separate.is_some() { 0 } else { held_out };
        printer::note("no --data: the model writes the text that it is calibrated on");
        let mut all = written(engine, bos, length, calibration + more, args.seed)?;
        let own = all.split_off(calibration);
        let held_out = first(separate.unwrap_or(own), held_out);
        return Ok(Text { calibration: all, held_out });
    };
    let mut all = read(data)?;
    let place = data.display();
    let (separate, end) = match separate {
        Some(separate) => (separate, Vec::new()),
        // The end is held out: at most a third.
        None => (Vec::new(), all.split_off(all.len() - held_out.min(all.len() / 3))),
    };
    let held_out = first(if end.is_empty() { separate } else { end }, held_out);
    if held_out.is_empty() || all.is_empty() {
        bail!(
            "{place} is too short: expected text of at least {} tokens, to calibrate on and to measure on; give more, or \
             leave --data out, so that the model writes the text itself",
            3 * (length - 1)
        );
    }
    if all.len() < calibration {
        printer::note(&format!(
            "{place} has {} tokens to calibrate on where {} were asked for; the result may fit other text less well",
            all.len() * (length - 1),
            args.tokens
        ));
    }
    let mut rng = SplitMix64::new(args.seed);
    for i in 0..calibration.min(all.len()) {
        let other = i + rng.below((all.len() - i) as u64) as usize;
        all.swap(i, other);
    }
    all.truncate(calibration);
    warn_of_foreign_text(engine, &all, &place.to_string())?;
    Ok(Text { calibration: all, held_out })
}

/// Says where the original predicts the text hardly better than chance.
fn warn_of_foreign_text(engine: &Engine, windows: &[Vec<u32>], place: &str) -> Result<()> {
    let some: Vec<&[u32]> = windows.iter().take(2).map(Vec::as_slice).collect();
    let scores = engine.log_likelihoods(&some)?;
    let count = scores.iter().map(Vec::len).sum::<usize>().max(1);
    let loss = -scores.iter().flatten().map(|&x| f64::from(x)).sum::<f64>() / count as f64;
    let chance = (engine.spec().vocab_size as f64).ln();
    if loss > 0.6 * chance {
        printer::note(&format!(
            "{place}: the original predicts it with a loss of {loss:.1} nats per token (chance is {chance:.1}); it may be \
             in a language or format that the model does not know"
        ));
    }
    Ok(())
}

/// Whole windows of a text, BOS first; the rest is left out.
fn windows(tokens: &[u32], bos: u32, length: usize) -> Vec<Vec<u32>> {
    tokens
        .chunks_exact(length - 1)
        .map(|chunk| std::iter::once(bos).chain(chunk.iter().copied()).collect())
        .collect()
}

fn first(mut windows: Vec<Vec<u32>>, count: usize) -> Vec<Vec<u32>> {
    windows.truncate(count);
    windows
}

/// Sequences of `length` tokens that the model writes after BOS, at temperature 1.
fn written(engine: &Engine, bos: u32, length: usize, count: usize, seed: u64) -> Result<Vec<Vec<u32>>> {
    let mut all = Vec::with_capacity(count);
    let mut batch = engine.batch(WRITERS)?;
    while all.len() < count {
        let some = WRITERS.min(count - all.len());
        let options = SessionOptions { capacity: Some(length), ..SessionOptions::default() };
        let mut sessions = (0..some).map(|_| engine.session_with(options)).collect::<Result<Vec<_>, _>>()?;
        let mut samplers = (0..some)
            .map(|i| {
                let seed = SplitMix64::stream(seed, (all.len() + i) as u64).next_u64();
                Sampler::new(Sampling { temperature: 1.0, seed, ..Sampling::default() })
            })
            .collect::<Result<Vec<_>, _>>()?;
        let mut texts = vec![vec![bos]; some];
        for _ in 1..length {
            let mut entries: Vec<BatchEntry<'_>> = sessions
                .iter_mut()
                .zip(&texts)
                .map(|(session, text)| BatchEntry::new(session, &text[text.len() - 1..]))
                .collect();
            batch.run(&mut entries)?;
            drop(entries);
            for ((session, sampler), text) in sessions.iter().zip(&mut samplers).zip(&mut texts) {
                text.push(sampler.sample(session.logits()));
            }
        }
        all.extend(texts);
    }
    Ok(all)
}
