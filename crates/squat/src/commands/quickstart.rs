//! `squat quickstart`: the whole workflow on generated data, from nothing to a packed model that generates text.

use crate::args::Quickstart;
use crate::bench::measure::{Test, alternate};
use crate::forms::{self, ModelTokenizer};
use crate::machine::cpu_name;
use crate::progress::Progress;
use crate::{printer, signals};
use anyhow::{Context, Result, bail};
use serde_json::json;
use squat_engine::{Engine, EngineOptions, GenerateOptions, Sampling};
use squat_eval::report::{
    FormValue, LossPoint, Parity, QuickstartReport, RunInfo, Sample, Setting, TokenBits, write_html,
};
use squat_eval::{
    Form, PairSet, PerplexityResult, ScoringOptions, TaskResult, Windows, evaluate, perplexity, task,
};
use squat_files::write::OutputFolder;
use squat_model::ModelFolder;
use squat_train::Recipe;
use squat_train::evaluate::Evaluator;
use squat_train::execution::Execution;
use squat_train::run::{RunOptions, run_recipe};
use squat_train::stage::Outcome;
use std::collections::BTreeMap;
use std::path::Path;
use std::process::ExitCode;
use std::time::Instant;

const RECIPE: &str = include_str!("../../../../recipes/quickstart.toml");

/// What the folder is taken for.
const KIND: &str = "quickstart";

/// The last file of a quickstart.
const REPORT: &str = "report.html";

/// Held-out pairs of each phenomenon.
const PAIRS: usize = 100;

/// Prompts of the samples.
const PROMPTS: [&str; 4] = ["", "The", "One day", "Every"];

pub fn run(args: &Quickstart) -> Result<ExitCode> {
    let started = Instant::now();
    let threads = forms::threads(args.threads);
    let mut changes = vec![format!("seed={}", args.seed)];
    changes.extend(args.settings.iter().cloned());
    let mut recipe = Recipe::parse(RECIPE, &changes)?;
    let seed = recipe.seed;
    let folder = args.out.join("run");
    let packed_folder = args.out.join("packed");
    let is_finished = args.out.join(REPORT).exists();
    let is_ours = |out: &Path| out.join("run").join("provenance.json").is_file();
    if is_finished && !args.force && (OutputFolder::is_marked(&args.out, KIND) || is_ours(&args.out)) {
        bail!(
            "{} already contains a quickstart; choose another folder with --out, or replace it with --force",
            args.out.display()
        );
    }
    let names = ["run", "packed", REPORT];
    let output = OutputFolder::claim(&args.out, KIND, &names, is_ours, args.force)?;
    if args.force {
        names.iter().try_for_each(|name| output.remove(name))?;
    }
    recipe.data.generated_words = recipe.data.generated_words.max(1);
    signals::tidy_up();
    let execution = Execution { resume: true, ..Execution::on_cpu(threads) };
    let options = RunOptions { folder: folder.clone(), execution, force: false };
    let mut progress = Progress::new();
    if let Outcome::Interrupted { .. } = run_recipe(&recipe, &options, &mut |event| progress.event(&event))? {
        printer::note("stopped; the same command continues the quickstart, with --force it begins anew");
        return Ok(ExitCode::from(signals::INTERRUPTED));
    }
    let pairs_folder = folder.join("data").join("pairs");
    squat_data::english::write_pairs(&pairs_folder, seed, PAIRS)?;
    let fp = squat_train::checkpoint::locate_stage(&folder, "student");
    let fake = squat_train::checkpoint::locate_stage(&folder, "qat");
    let packed_report = ModelFolder::open(&fake)?.pack(None, &packed_folder)?;
    printer::note(&format!("packed: {} -> {} bytes", packed_report.bytes_before, packed_report.bytes_after));

    let set = PairSet::read(task("pairs")?, &pairs_folder, None)?;
    let held_out = folder.join("data").join("valid");
    let (mut accuracy, mut perplexities): (Vec<TaskResult>, Vec<PerplexityResult>) = (Vec::new(), Vec::new());
    for (form, path) in [(Form::Fp, &fp), (Form::Fake, &fake), (Form::Packed, &packed_folder)] {
        printer::note(&format!("evaluating: {}", form.title()));
        let mut subject = forms::open(path, Some(form), threads)?;
        let mut scoring = ScoringOptions::default();
        accuracy.push(evaluate(subject.model.as_mut(), &subject.tokenizer, &set, &mut scoring)?);
        let texts = super::eval::texts(&held_out, &subject.tokenizer)?;
        let bos = squat_eval::Tokenize::bos_id(&subject.tokenizer);
        let windows = Windows { context: Some(recipe.data.seq_len), stride: None };
        perplexities.push(perplexity(subject.model.as_mut(), bos, &texts, windows, &mut scoring)?);
    }
    let opened = squat_model::open(&packed_folder)?;
    let packed = Engine::from_model(&opened, EngineOptions::threads(threads))?;
    let float = Engine::load(&fp, threads)?;
    let tokenizer = ModelTokenizer::open(&opened)?;
    let parity = parity(&packed, &fake, &tokenizer, &set)?;
    let samples = samples(&packed, &tokenizer, seed)?;
    let speed = |engine: &Engine| -> Result<f64> {
        let tests = Test::list(0, 128, 0, &[1]);
        let measured = alternate(std::slice::from_ref(engine), &tests, 5)?;
        Ok(measured.into_iter().flatten().next().context("the generation test was requested")?.median())
    };
    let (fp_speed, packed_speed) = (speed(&float)?, speed(&packed)?);
    let bytes = |path: &Path| -> Result<f64> {
        Ok(std::fs::metadata(path.join("model.safetensors"))
            .with_context(|| format!("{}", path.display()))?
            .len() as f64)
    };
    let (fp_bytes, packed_bytes) = (bytes(&fp)?, bytes(&packed_folder)?);
    let report = QuickstartReport {
        title: "Squat quickstart".into(),
        run: RunInfo {
            version: env!("CARGO_PKG_VERSION").into(),
            seed,
            seconds: started.elapsed().as_secs_f64(),
            threads,
            cpu: cpu_name(),
            kernel: packed.kernel_name(),
        },
        settings: settings(&recipe),
        losses: losses(&recipe, &folder)?,
        accuracy,
        perplexity: perplexities,
        bytes: vec![
            FormValue { form: Form::Fp, value: fp_bytes },
            FormValue { form: Form::Packed, value: packed_bytes },
        ],
        decode_tokens_per_second: vec![
            FormValue { form: Form::Fp, value: fp_speed },
            FormValue { form: Form::Packed, value: packed_speed },
        ],
        parity: Some(parity),
        token_bits: token_bits(&packed, &tokenizer, &set)?,
        samples,
    };
    write_html(&report, &args.out.join(REPORT))?;
    print(args, &report)?;
    Ok(ExitCode::SUCCESS)
}

fn print(args: &Quickstart, report: &QuickstartReport) -> Result<()> {
    let by_form = |get: &dyn Fn(Form) -> Option<f64>| -> serde_json::Value {
        let found: BTreeMap<&str, f64> =
            Form::ALL.into_iter().filter_map(|form| get(form).map(|value| (form.as_str(), value))).collect();
        json!(found)
    };
    let value = |list: &[FormValue], form: Form| list.iter().find(|v| v.form == form).map(|v| v.value);
    if args.json {
        let parity = report.parity.context("parity was measured")?;
        let texts: Vec<String> = report.samples.iter().map(|s| format!("{}{}", s.prompt, s.text)).collect();
        printer::json(&json!({
            "seconds": report.run.seconds,
            "seed": report.run.seed,
            "accuracy": by_form(&|form| report.accuracy.iter().find(|r| r.form == form).map(|r| r.average)),
            "perplexity": by_form(&|form| report.perplexity.iter().find(|r| r.form == form).map(|r| r.perplexity)),
            "bytes": by_form(&|form| value(&report.bytes, form)),
            "parity": {"max_abs_logit_diff": parity.max_abs_logit_diff,
                "prefill_decode_max_abs_diff": parity.prefill_decode_max_abs_diff},
            "decode_tokens_per_second": by_form(&|form| value(&report.decode_tokens_per_second, form)),
            "samples": texts,
            "kernel": report.run.kernel,
            "threads": report.run.threads,
            "report": args.out.join(REPORT),
        }));
        return Ok(());
    }
    printer::data(&report.summary_table().to_markdown());
    if let Some(parity) = report.parity {
        printer::line(&format!(
            "\nlargest difference of logits, packed against fake-quantized: {:e}; prefill against decoding: {:e}",
            parity.max_abs_logit_diff, parity.prefill_decode_max_abs_diff
        ));
    }
    printer::line("");
    for sample in &report.samples {
        printer::line(&format!("> {}{}", sample.prompt, sample.text.trim_end()));
    }
    printer::line(&format!(
        "\n{:.0} s on {} threads, {}; everything is in {}: report.html, packed/, run/",
        report.run.seconds,
        report.run.threads,
        report.run.kernel,
        args.out.display()
    ));
    Ok(())
}

/// Sentences of the held-out pairs, for parity and pictures.
fn sentences(tokenizer: &ModelTokenizer, set: &PairSet, count: usize) -> Result<Vec<Vec<u32>>> {
    let stride = (set.pairs.len() / count.max(1)).max(1);
    set.pairs
        .iter()
        .step_by(stride)
        .take(count)
        .map(|pair| Ok(tokenizer.inner().encode_prompt(&pair.good)?))
        .collect()
}

/// Largest differences of logits: packed against fake-quantized, and one prefill against token-by-token decoding.
fn parity(packed: &Engine, fake: &Path, tokenizer: &ModelTokenizer, set: &PairSet) -> Result<Parity> {
    let evaluator = Evaluator::load(fake, true, 1)?;
    let mut parity = Parity { max_abs_logit_diff: 0.0, prefill_decode_max_abs_diff: 0.0 };
    let worst =
        |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from((a - b).abs())).fold(0.0, f64::max);
    for ids in sentences(tokenizer, set, 24)? {
        let want = evaluator.logits(&ids)?;
        let mut session = packed.session()?;
        let got = session.prefill_all(&ids)?;
        parity.max_abs_logit_diff = parity.max_abs_logit_diff.max(worst(&want, &got));
        let vocabulary = packed.spec().vocab_size;
        session.reset();
        for (t, &id) in ids.iter().enumerate() {
            let decoded = session.decode(id)?;
            let row = &got[t * vocabulary..(t + 1) * vocabulary];
            parity.prefill_decode_max_abs_diff = parity.prefill_decode_max_abs_diff.max(worst(row, decoded));
        }
    }
    Ok(parity)
}

fn samples(engine: &Engine, tokenizer: &ModelTokenizer, seed: u64) -> Result<Vec<Sample>> {
    let mut out = Vec::new();
    for (index, prompt) in PROMPTS.iter().enumerate() {
        let mut ids = tokenizer.inner().encode_prompt(prompt)?;
        let options = GenerateOptions {
            max_tokens: 40,
            sampling: Sampling {
                temperature: 0.7,
                top_k: 0,
                top_p: 0.95,
                seed: seed.wrapping_add(index as u64),
            },
            stop_ids: tokenizer.inner().eos_ids().to_vec(),
            vocabulary: None,
        };
        let generation = engine.generate(&ids, &options, |_| true)?;
        // Decoded as one text, because decoders drop the leading space of the first token.
        ids.extend(generation.tokens);
        let whole = tokenizer.inner().decode(&ids[1..])?;
        let text = whole.strip_prefix(prompt).unwrap_or(&whole).to_owned();
        out.push(Sample { form: Form::Packed, prompt: (*prompt).to_owned(), text });
    }
    Ok(out)
}

fn token_bits(engine: &Engine, tokenizer: &ModelTokenizer, set: &PairSet) -> Result<Vec<TokenBits>> {
    sentences(tokenizer, set, 4)?
        .iter()
        .map(|ids| {
            let layers = engine.token_bits(ids)?;
            let layers =
                layers.iter().map(|row| row.iter().map(|bits| bits.bits() as u8).collect()).collect();
            let tokens = ids.iter().map(|&id| tokenizer.inner().decode(&[id]).unwrap_or_default());
            let tokens =
                tokens.enumerate().map(|(i, text)| if i == 0 { "<s>".to_owned() } else { text }).collect();
            Ok(TokenBits { tokens, layers })
        })
        .collect()
}

fn settings(recipe: &Recipe) -> Vec<Setting> {
    let mut out = Vec::new();
    let mut add = |section: &str, name: &str, value: String| {
        out.push(Setting { section: section.to_owned(), name: name.to_owned(), value });
    };
    add("data", "words", recipe.data.generated_words.to_string());
    add("data", "vocabulary", recipe.data.vocab_size.to_string());
    add("data", "sequence length", recipe.data.seq_len.to_string());
    for stage in &recipe.stages {
        if let Ok(sizes) = recipe.sizes(stage) {
            let shape = format!(
                "{} layers, hidden {}, intermediate {}, {} heads",
                sizes.num_hidden_layers,
                sizes.hidden_size,
                sizes.intermediate_size,
                sizes.num_attention_heads
            );
            add(&stage.name, "model", shape);
        }
        add(&stage.name, "steps", format!("{} of {} sequences", stage.steps, stage.batch_size));
        add(&stage.name, "learning rate", stage.learning_rate.to_string());
        if let Some(quant) = &stage.quant {
            add(&stage.name, "plan", quant.plan.clone());
        }
        if !stage.teachers.is_empty() {
            add(&stage.name, "teachers", stage.teachers.join(", "));
        }
    }
    out
}

fn losses(recipe: &Recipe, folder: &Path) -> Result<Vec<LossPoint>> {
    let mut out = Vec::new();
    for stage in &recipe.stages {
        let path = folder.join(&stage.name).join("metrics.jsonl");
        let text = squat_files::read::text(&path, squat_files::read::Limit::Text)?;
        for line in text.lines() {
            let line: serde_json::Value = serde_json::from_str(line)?;
            let Some(step) = line["step"].as_u64() else { continue };
            for term in ["loss", "cross_entropy", "divergence", "entropy", "alignment", "valid_cross_entropy"]
            {
                if let Some(value) = line[term].as_f64() {
                    out.push(LossPoint { stage: stage.name.clone(), step, term: term.to_owned(), value });
                }
            }
        }
    }
    Ok(out)
}
