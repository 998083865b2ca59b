//! `squat quantize`.

use crate::args::Quantize;
use crate::fidelity::Fidelity;
use crate::forms::{self, ModelTokenizer};
use crate::{printer, signals};
use anyhow::{Context, Result, bail};
use serde_json::json;
use squat_engine::{BatchEntry, Engine, EngineOptions, Sampler, Sampling, SessionOptions};
use squat_eval::table::Table;
use squat_eval::{Tokenize, TokenizedText};
use squat_files::write::OutputFolder;
use squat_model::{ModelKind, OpenedModel, Output, QuantPlan};
use squat_quant::random::SplitMix64;
use squat_train::TrainError;
use squat_train::checkpoint::{self, Loaded};
use squat_train::execution::Execution;
use squat_train::stage::{Event, Outcome, UNDECIDED};
use squat_train::start::start;
use squat_train::tune::{Settings, Tuning, tune};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// Tokens of a window, BOS included, for models that take as many.
const WINDOW: usize = 512;

/// Sequences that the model writes together.
const WRITERS: usize = 16;

/// Share of the minutes that is kept for packing and measuring.
const RESERVE: f64 = 0.08;

/// Seconds that are kept for it whatever the minutes are.
const LEAST_RESERVE: f64 = 15.0;

/// Tokens that the model writes to train on, for each minute.
const WRITTEN_PER_MINUTE: f64 = 3000.0;

/// Most tokens to train on that are held in memory.
const MOST_TRAINING: usize = 1 << 22;

/// Windows that the best checkpoint is chosen by.
const CHOOSING: usize = 8;

/// What the working folder is taken for.
const KIND: &str = "quantization in progress";

/// Token ids in windows that begin with BOS.
struct Text {
    /// To calibrate on.
    calibration: Vec<Vec<u32>>,
    /// To train on, those of calibration included.
    training: Vec<Vec<u32>>,
    /// To choose the best checkpoint by.
    choosing: Vec<Vec<u32>>,
    /// To measure on.
    held_out: Vec<Vec<u32>>,
}

pub fn run(args: &Quantize) -> Result<ExitCode> {
    let began = Instant::now();
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
    // Minutes later would be late to learn that nothing can be written there. The working folder is locked to the end.
    let output = Output::new(&args.out, args.force);
    output.check()?;
    let work = working_folder(args)?;
    match quantize(args, &model, &plan, output, &work, began) {
        Ok(code) if code == ExitCode::SUCCESS => work.finish()?,
        Ok(code) => return Ok(code),
        Err(error) => {
            // Codes that were found are worth keeping for the next try.
            if !work.path().join(FINGERPRINT).is_file() {
                work.finish()?;
            }
            return Err(error);
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Everything between the checks and the end. An interruption keeps what there is, and says so with its exit code.
fn quantize(
    args: &Quantize,
    model: &OpenedModel,
    plan: &QuantPlan,
    output: Output,
    work: &OutputFolder,
    began: Instant,
) -> Result<ExitCode> {
    let threads = forms::threads(args.threads);
    // First, so that a model that cannot be quantized is refused before text is written.
    let loaded = checkpoint::load(model.path())?;
    let original = Engine::from_model(model, EngineOptions::threads(threads))?;
    signals::tidy_up();
    let text = text(args, model, &original)?;
    let fingerprint = fingerprint(args, &loaded, plan, &text);
    let started = started(args, work, &fingerprint, (model, &loaded), plan, &text, began)?;
    let until = args.minutes.map(|minutes| {
        let seconds = 60.0 * minutes;
        let reserve = (RESERVE * seconds).max(LEAST_RESERVE);
        began + Duration::from_secs_f64((seconds - reserve).max(0.0))
    });
    if until.is_some_and(|until| Instant::now() >= until) {
        printer::note("no time is left to train; give more --minutes, or fewer --tokens");
    }
    let checkpoint_folder = match until.filter(|&until| Instant::now() < until) {
        None => {
            drop((loaded, started));
            work.path().join(START)
        }
        Some(until) => {
            let tuning = Tuning {
                original: loaded,
                started,
                text: [&text.training, &text.choosing].map(|windows| joined(windows)),
                bos: ModelTokenizer::open(model)?.bos_id(),
                tokenizer: model.tokenizer_files()?,
                folder: &work.path().join("tune"),
                fingerprint,
                until,
                seed: args.seed,
                settings: Settings::default(),
                execution: Execution::on_cpu(threads),
            };
            match tuned(tuning)? {
                (false, best) => best,
                (true, best) => {
                    // What there is, is kept; a second signal ends that too.
                    squat_files::interrupt::forget();
                    squat_model::open(&best)?.pack(None, output)?;
                    printer::note(&format!(
                        "stopped; the best so far is in {}, and the same command goes on from here",
                        args.out.display()
                    ));
                    return Ok(ExitCode::from(signals::INTERRUPTED));
                }
            }
        }
    };
    let report = squat_model::open(&checkpoint_folder)?.pack(None, output)?;
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

/// Name of the checkpoint before training.
const START: &str = "start";

/// Name of the file that says what the working folder was made from; written once codes are there.
const FINGERPRINT: &str = "fingerprint";

/// The folder that an interrupted command goes on from, beside the output.
fn working_folder(args: &Quantize) -> Result<OutputFolder> {
    let out = &args.out;
    let name =
        out.file_name().with_context(|| format!("{}: expected a path that ends in a name", out.display()))?;
    let path = out.with_file_name(format!(".{}.quantize", name.to_string_lossy()));
    Ok(OutputFolder::claim(&path, KIND, &[START, "tune"], |_| false, args.force)?)
}

/// What the result depends on, in one number.
fn fingerprint(args: &Quantize, loaded: &Loaded, plan: &QuantPlan, text: &Text) -> String {
    let mut bytes = loaded.parameters.digest();
    bytes.extend(format!("{plan:?} {:?} {} {:?}", args.methods, args.seed, Settings::default()).into_bytes());
    for windows in [&text.calibration, &text.training, &text.choosing] {
        bytes.extend(windows.iter().flatten().flat_map(|id| id.to_le_bytes()));
    }
    squat_files::sums::sha256(&bytes)
}

/// First codes and scales; those of an interrupted command where they are there.
fn started(
    args: &Quantize,
    work: &OutputFolder,
    fingerprint: &str,
    (model, loaded): (&OpenedModel, &Loaded),
    plan: &QuantPlan,
    text: &Text,
    began: Instant,
) -> Result<Loaded> {
    let folder = work.path().join(START);
    let known = squat_files::read::text(&work.path().join(FINGERPRINT), squat_files::read::Limit::Config);
    if known.is_ok_and(|known| known == fingerprint) {
        printer::note("continuing an interrupted quantization");
        squat_files::sums::verify(&folder)?;
        return Ok(checkpoint::load(&folder)?);
    }
    [FINGERPRINT, "tune", START].iter().try_for_each(|name| work.remove(name))?;
    let threads = forms::threads(args.threads);
    let found = start(loaded, plan, &text.calibration, &args.methods, threads, &mut |progress| {
        let (done, all) = (progress.layers, progress.of);
        if done == all || done % 5 == 0 {
            printer::note(&format!("layer {done} of {all}, {:.0} s", began.elapsed().as_secs_f64()));
        }
    })?
    .loaded;
    let tokenizer = model.tokenizer_files()?;
    let quantized = (found.plan.as_ref(), found.quantizer);
    checkpoint::save(&folder, &found.spec, quantized, &found.parameters, &tokenizer, None)?;
    work.write(FINGERPRINT, fingerprint.as_bytes())?;
    Ok(found)
}

/// Trains; returns whether it was interrupted, and the folder of the best checkpoint.
fn tuned(tuning: Tuning<'_>) -> Result<(bool, PathBuf)> {
    let folder = tuning.folder.to_path_buf();
    let mut said = 0;
    let result = tune(tuning, &mut |event| match event {
        Event::Step { step, steps, loss, .. } if steps != UNDECIDED && (said == 0 || step >= said) => {
            said = step + steps.div_ceil(10).max(1);
            printer::note(&format!("step {step} of {steps}, divergence from the original {:.4}", loss.total));
        }
        Event::Evaluated { step, cross_entropy, best } => {
            let best = if best { ", the best so far" } else { "" };
            printer::note(&format!("step {step}: held-out perplexity {:.3}{best}", cross_entropy.exp()));
        }
        _ => {}
    });
    match result {
        Ok((Outcome::Interrupted { .. }, best)) => Ok((true, best)),
        Ok((Outcome::Finished { .. }, best)) => Ok((false, best)),
        // Training that ran away costs what came after the best point, and no more.
        Err(error @ TrainError::NonFinite { .. }) => {
            let best = folder.join("best");
            if !best.join("config.json").is_file() {
                return Err(error.into());
            }
            printer::note(&format!("{error}; the best point before that is taken"));
            Ok((false, best))
        }
        Err(error) => Err(error.into()),
    }
}

/// Windows as one text, without their BOS.
fn joined(windows: &[Vec<u32>]) -> Vec<u32> {
    windows.iter().flat_map(|window| &window[1..]).copied().collect()
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
            args.tokens
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
