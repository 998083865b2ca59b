//! Text to calibrate, train and measure on: of a file, or written by the model.

use super::budget::Budget;
use crate::args::Quantize;
use crate::forms::ModelTokenizer;
use crate::printer;
use anyhow::{Result, bail};
use squat_engine::{BatchEntry, Engine, Sampler, Sampling, SessionOptions};
use squat_eval::{Tokenize, TokenizedText};
use squat_model::{ModelSpec, OpenedModel};
use squat_quant::random::SplitMix64;
use std::path::Path;

/// Tokens of a window, BOS included, for models that take as many.
const WINDOW: usize = 512;

/// Sequences that the model writes together.
const WRITERS: usize = 16;

/// Tokens that the model writes to train on, for each minute.
const WRITTEN_PER_MINUTE: f64 = 3000.0;

/// Most tokens to train on that are held in memory.
const MOST_TRAINING: usize = 1 << 22;

/// Windows that the best checkpoint is chosen by.
const CHOOSING: usize = 8;

/// Token ids in windows that begin with BOS.
pub(super) struct Text {
    /// To calibrate on.
    pub calibration: Vec<Vec<u32>>,
    /// To train on, those of calibration included.
    pub training: Vec<Vec<u32>>,
    /// To choose the best checkpoint by.
    pub choosing: Vec<Vec<u32>>,
    /// To measure on.
    pub held_out: Vec<Vec<u32>>,
}

/// Tokens of a window, BOS included, for a model.
pub(super) fn window_of(spec: &ModelSpec) -> usize {
    WINDOW.min(spec.max_position_embeddings)
}

/// The text of the arguments, or text that the model writes.
pub(super) fn text(args: &Quantize, budget: &Budget, model: &OpenedModel, engine: &Engine) -> Result<Text> {
    let tokenizer = ModelTokenizer::open(model)?;
    let bos = tokenizer.bos_id();
    let length = window_of(model.spec());
    if length < 2 {
        bail!("the model has a context of {length} tokens; expected at least 2");
    }
    let wanted = |tokens: usize| tokens.div_ceil(length - 1);
    let (calibration, held_out) = (wanted(budget.tokens).max(1), wanted(budget.eval_tokens).max(1));
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
        let training = args.minutes.map_or(0, |minutes| {
            let tokens = (minutes * WRITTEN_PER_MINUTE) as usize;
            CHOOSING + wanted(tokens.min(MOST_TRAINING)).max(CHOOSING)
        });
        let mut all = written(engine, bos, length, calibration + more + training, args.seed)?;
        let rest = all.split_off(calibration);
        let (training, own) = rest.split_at(training);
        let held_out = first(separate.unwrap_or_else(|| own.to_vec()), held_out);
        let (choosing, training) = training.split_at(CHOOSING.min(training.len()));
        let training = [&all, training].concat();
        return Ok(Text { calibration: all, training, choosing: choosing.to_vec(), held_out });
    };
    let mut all = read(data)?;
    let place = data.display();
    let (separate, end) = match separate {
        Some(separate) => (separate, Vec::new()),
        // The end is held out: at most a third.
        None => (Vec::new(), all.split_off(all.len() - held_out.min(all.len() / 3))),
    };
    let held_out = first(if end.is_empty() { separate } else { end }, held_out);
    let choosing = match args.minutes {
        Some(_) => all.split_off(all.len() - CHOOSING.min(all.len() / 4)),
        None => Vec::new(),
    };
    if held_out.is_empty() || all.is_empty() || (args.minutes.is_some() && choosing.is_empty()) {
        bail!(
            "{place} is too short: expected text of at least {} tokens, to calibrate on and to measure on; give more, or \
             leave --data out, so that the model writes the text itself",
            if args.minutes.is_some() { 8 } else { 3 } * (length - 1)
        );
    }
    if all.len() < calibration {
        printer::note(&format!(
            "{place} has {} tokens to calibrate on where {} were asked for; the result may fit other text less well",
            all.len() * (length - 1),
            budget.tokens
        ));
    }
    let mut rng = SplitMix64::new(args.seed);
    for i in 0..all.len() - 1 {
        let other = i + rng.below((all.len() - i) as u64) as usize;
        all.swap(i, other);
    }
    all.truncate(calibration.max(if args.minutes.is_some() { wanted(MOST_TRAINING) } else { 0 }));
    let calibration = all[..calibration.min(all.len())].to_vec();
    warn_of_foreign_text(engine, &calibration, &place.to_string())?;
    Ok(Text { calibration, training: all, choosing, held_out })
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
            squat_files::interrupt::check()?;
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
