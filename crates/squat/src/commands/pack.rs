//! `squat pack`.

use crate::args::Pack;
use crate::{forms, printer};
use anyhow::Result;
use squat_eval::table::Table;
use squat_model::{Output, QuantPlan};
use std::process::ExitCode;

pub fn run(args: &Pack) -> Result<ExitCode> {
    let model = forms::open_model(&args.run)?;
    let plan = args.plan.as_deref().map(QuantPlan::named).transpose()?;
    let plan = plan.map(|mut plan| {
        if model.spec().tie_word_embeddings {
            plan.head = plan.embedding;
        }
        plan
    });
    let output = if args.force { Output::forced(&args.out) } else { Output::from(&args.out) };
    let report = model.pack(plan.as_ref(), output)?;
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
