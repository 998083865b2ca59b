//! `squat pack`.

use crate::args::Pack;
use crate::fidelity::Fidelity;
use crate::{built_in, forms, printer, signals};
use anyhow::Result;
use squat_engine::{Engine, EngineOptions};
use squat_eval::Tokenize;
use squat_eval::table::Table;
use squat_model::{ModelKind, OpenedModel, Output, QuantPlan};
use std::path::Path;
use std::process::ExitCode;

/// Perplexity over the original's from which a loss is said.
const TOLERATED: f64 = 1.05;

pub fn run(args: &Pack) -> Result<ExitCode> {
    let model = forms::open_model(&args.run)?;
    let plan = args.plan.as_deref().map(QuantPlan::named).transpose()?;
    let plan = plan.map(|plan| plan.for_model(model.spec()));
    signals::tidy_up();
    let report = model.pack(plan.as_ref(), Output::new(&args.out, args.force))?;
    if !report.learned_scales && model.kind() == ModelKind::FullPrecision {
        // The model is complete: neither a signal nor a failure here takes anything back.
        let said = signals::while_waiting(|| say_loss(&model, &args.out));
        if let Err(error) = said {
            printer::note(&format!("what rounding cost could not be measured: {error:#}"));
        }
    }
    if args.json {
        printer::json(&serde_json::to_value(&report)?);
        return Ok(ExitCode::SUCCESS);
    }
    let mut table = Table::new(["layer", "scheme", "bytes before", "bytes after", "relative error"]);
    for entry in &report.entries {
        table.push([
            entry.name.clone(),
            entry.scheme.clone(),
            entry.bytes_before.to_string(),
            entry.bytes_after.to_string(),
            if entry.quantized { format!("{:.4}", entry.relative_error) } else { String::new() },
        ]);
    }
    table.push([
        "all".into(),
        String::new(),
        report.bytes_before.to_string(),
        report.bytes_after.to_string(),
        String::new(),
    ]);
    printer::data(&table.to_markdown());
    let scales = if report.learned_scales {
        "learned scales"
    } else {
        "round to nearest, scales of least squared error"
    };
    printer::note(&format!("packed with {scales}: {}", args.out.display()));
    Ok(ExitCode::SUCCESS)
}

/// Says on stderr what rounding cost on the built-in text, where it is more than is tolerated.
fn say_loss(model: &OpenedModel, packed: &Path) -> Result<()> {
    // A model without a tokenizer can be packed, and its loss is not measured.
    let Ok(tokenizer) = forms::ModelTokenizer::open(model) else { return Ok(()) };
    let Ok(tokens) = tokenizer.encode(built_in::TEXT) else { return Ok(()) };
    let length = model.spec().max_position_embeddings.min(256);
    let windows: Vec<Vec<u32>> = tokens
        .chunks(length.saturating_sub(1).max(1))
        .take(4)
        .map(|chunk| std::iter::once(tokenizer.bos_id()).chain(chunk.iter().copied()).collect())
        .collect();
    let original = Engine::from_model(model, EngineOptions::default())?;
    let packed = Engine::load(packed, 0)?;
    let found = Fidelity::measure(&original, &packed, &windows, forms::threads(0))?;
    // Not a number is a loss too.
    if found.ratio().is_nan() || found.ratio() > TOLERATED {
        let [before, after] = found.perplexities();
        let way = if cfg!(feature = "train") {
            "`squat quantize` finds better codes and scales; 8 bits (w8a8) lose least"
        } else {
            "8 bits (w8a8) lose least; `squat quantize`, in the full build, finds better codes and scales"
        };
        printer::note(&format!(
            "rounding changed the perplexity of {} tokens of built-in English from {before:.1} to {after:.1}, {:.2} times; {way}",
            found.tokens,
            found.ratio()
        ));
    }
    Ok(())
}
