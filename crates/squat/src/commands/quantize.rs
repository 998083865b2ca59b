//! `squat quantize`.

mod budget;
mod memory;
mod report;
mod text;

use crate::args::Quantize;
use crate::commands::sensitivity;
use crate::fidelity::Fidelity;
use crate::forms::{self, ModelTokenizer};
use crate::sensitivity::{WIDTHS, check_bytes};
use crate::{machine, printer, signals};
use anyhow::{Context, Result, bail};
use budget::Budget;
use report::{Course, Report, Speed};
use squat_engine::{Engine, EngineOptions};
use squat_eval::Tokenize;
use squat_files::write::OutputFolder;
use squat_model::{ModelKind, OpenedModel, Output, ParamKind, QuantPlan};
use squat_train::TrainError;
use squat_train::checkpoint::{self, Loaded};
use squat_train::execution::Execution;
use squat_train::stage::{Event, Outcome, UNDECIDED};
use squat_train::start::start;
use squat_train::tune::{Settings, Tuning, tune};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};
use text::Text;

/// What the working folder is taken for.
const KIND: &str = "quantization in progress";

pub fn run(args: &Quantize) -> Result<ExitCode> {
    let began = Instant::now();
    // Before threads have memory of their own.
    squat_train::memory::keep_freed();
    let model = forms::open_model(&args.model)?;
    if model.kind() != ModelKind::FullPrecision {
        bail!(
            "{} has quantizers already; give the model in full precision that it was made from",
            model.path().display()
        );
    }
    let plan = args.methods.plan(QuantPlan::named(&args.plan)?, model.spec());
    plan.validate(model.spec())?;
    if plan.weight.is_none() {
        bail!("the plan {} quantizes no weights; choose another, such as w4a8", args.plan);
    }
    if let Some(bytes) = args.target_bytes {
        check_bytes(&plan, model.spec(), bytes)?;
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
    let mixed;
    let plan = match args.target_bytes {
        None => plan,
        Some(bytes) => {
            mixed = fitted(args, (model, &loaded), plan, bytes, threads)?;
            &mixed
        }
    };
    let budget = Budget::choose(args, &original, work, began)?;
    let text = text::text(args, &budget, model, &original)?;
    let needed = memory::needed(model.spec(), &text, args.minutes.is_some(), threads);
    printer::note(&memory::check(needed, machine::available_memory())?);
    let fingerprint = fingerprint(args, &loaded, plan, &text);
    let started = started(args, work, &fingerprint, (model, &loaded), plan, &text, began)?;
    let until = args
        .minutes
        .map(|minutes| began + Duration::from_secs_f64(60.0 * minutes).saturating_sub(budget.reserve));
    let left = until.map(|until| until.saturating_duration_since(Instant::now()));
    if left.is_some_and(|left| left <= budget.least_training) && !work.path().join(TUNE).exists() {
        printer::note("the time that is left is too short to train; give more --minutes, or fewer --tokens");
    }
    // Training that has begun goes on with what is left.
    let trains = |left: Duration| {
        left > budget.least_training || (left > Duration::ZERO && work.path().join(TUNE).exists())
    };
    let mut course = None;
    let checkpoint_folder = match until.filter(|_| left.is_some_and(trains)) {
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
                folder: &work.path().join(TUNE),
                fingerprint,
                until,
                seed: args.seed,
                settings: Settings::default(),
                execution: Execution::on_cpu(threads),
            };
            let (interrupted, best) = tuned(tuning, course.insert(Course::default()))?;
            match interrupted {
                false => best,
                true => {
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
    // The checkpoint runs by the bits of the packed model.
    let quantized = Engine::load(&checkpoint_folder, threads)?;
    let (fidelity, speed) = signals::while_waiting(|| {
        let fidelity = Fidelity::measure(&original, &quantized, &text.held_out, threads)?;
        anyhow::Ok((fidelity, Speed::measure(&original, &quantized)?))
    })?;
    drop(quantized);
    let sizes = squat_model::open(&checkpoint_folder)?;
    let mut report = Report {
        args,
        model: model.path(),
        transforms: plan.describe_transforms(),
        fidelity,
        speed,
        bytes: [model.weight_bytes(), squat_model::packed_bytes(sizes.spec(), plan)],
        calibrated_on: text.calibration.iter().map(|window| window.len() - 1).sum(),
        trained_on: course.as_ref().map_or(0, |course| course.tokens),
        seconds: began.elapsed().as_secs_f64(),
    };
    let packed = sizes.pack(None, output.with_card(report.card()))?;
    report.bytes[1] = packed.bytes_after;
    report.seconds = began.elapsed().as_secs_f64();
    if args.json {
        printer::json(&report.to_json());
        return Ok(ExitCode::SUCCESS);
    }
    printer::data(&report.table());
    printer::note(&report.summary());
    printer::note(&report.next(course.as_ref()));
    Ok(ExitCode::SUCCESS)
}

/// The plan with bits for each layer that fit into `bytes`.
fn fitted(
    args: &Quantize,
    (model, loaded): (&OpenedModel, &Loaded),
    plan: &QuantPlan,
    bytes: u64,
    threads: usize,
) -> Result<QuantPlan> {
    let windows = sensitivity::windows(model, args.data.as_deref(), SENSED)?;
    printer::note("measuring what each layer costs, to choose its bits");
    let found = sensitivity::of(loaded, plan, &windows, threads)?;
    let mixed = found.allocate(plan, model.spec(), bytes)?;
    let mut counts = [0usize; WIDTHS.len()];
    for param in model.spec().parameters() {
        let own = mixed.scheme_of(&param).filter(|_| matches!(param.kind, ParamKind::Linear(_)));
        if let Some(at) = own.and_then(|scheme| WIDTHS.iter().position(|&bits| bits == scheme.bits)) {
            counts[at] += 1;
        }
    }
    let words = WIDTHS.iter().zip(counts).filter(|(_, count)| *count > 0);
    let words: Vec<String> = words.map(|(bits, count)| format!("{count} of {} bits", bits.name())).collect();
    printer::note(&format!("linear layers: {}", words.join(", ")));
    Ok(mixed)
}

/// Tokens that layers are measured on.
const SENSED: usize = 512;

/// Name of the checkpoint before training.
const START: &str = "start";

/// Name of the folder of the training.
const TUNE: &str = "tune";

/// Name of the file that says what the working folder was made from; written once codes are there.
const FINGERPRINT: &str = "fingerprint";

/// The folder that an interrupted command goes on from, beside the output.
fn working_folder(args: &Quantize) -> Result<OutputFolder> {
    let out = &args.out;
    let name =
        out.file_name().with_context(|| format!("{}: expected a path that ends in a name", out.display()))?;
    let path = out.with_file_name(format!(".{}.quantize", name.to_string_lossy()));
    Ok(OutputFolder::claim(&path, KIND, &[START, TUNE], |_| false, args.force)?)
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
    [FINGERPRINT, TUNE, START].iter().try_for_each(|name| work.remove(name))?;
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
fn tuned(tuning: Tuning<'_>, course: &mut Course) -> Result<(bool, PathBuf)> {
    let folder = tuning.folder.to_path_buf();
    let step_tokens = tuning.settings.step_tokens as u64;
    let mut said = 0;
    let result = tune(tuning, &mut |event| match event {
        Event::Step { step, steps, loss, .. } => {
            course.tokens = step * step_tokens;
            if steps != UNDECIDED && (said == 0 || step >= said) {
                said = step + steps.div_ceil(10).max(1);
                printer::note(&format!(
                    "step {step} of {steps}, divergence from the original {:.4}",
                    loss.total
                ));
            }
        }
        Event::Evaluated { step, cross_entropy, best } => {
            course.held_out.push((step, cross_entropy));
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
