//! `squat sensitivity`.

use crate::forms::{self, ModelTokenizer};
use crate::sensitivity::{Sensitivity, measure};
use crate::{args, built_in, printer, signals};
use anyhow::{Result, anyhow, bail};
use serde_json::json;
use squat_eval::table::Table;
use squat_eval::{Tokenize, TokenizedText};
use squat_model::{ModelKind, OpenedModel, QuantPlan};
use squat_train::checkpoint;
use std::path::Path;
use std::process::ExitCode;

/// Tokens of a window, BOS included, for models that take as many.
const WINDOW: usize = 256;

pub fn run(args: &args::Sensitivity) -> Result<ExitCode> {
    let model = forms::open_model(&args.model)?;
    if model.kind() != ModelKind::FullPrecision {
        bail!(
            "{} has quantizers already; give the model in full precision that it was made from",
            model.path().display()
        );
    }
    let plan = args.methods.plan(QuantPlan::named(&args.plan)?, model.spec());
    plan.validate(model.spec())?;
    let windows = windows(&model, args.data.as_deref(), args.tokens)?;
    let loaded = checkpoint::load(model.path())?;
    signals::tidy_up();
    let found = of(&loaded, &plan, &windows, forms::threads(args.threads))?;
    if args.json {
        let units = found.units.iter().map(
            |unit| json!({"layer": unit.layer, "point": unit.point.name(), "divergence": unit.divergence}),
        );
        let points =
            found.points.iter().map(|(point, cost)| json!({"point": point.name(), "divergence": cost}));
        printer::json(&json!({
            "plan": args.plan,
            "tokens": windows.iter().map(|window| window.len() - 1).sum::<usize>(),
            "weights": units.collect::<Vec<_>>(),
            "tables": found.tables,
            "activations": points.collect::<Vec<_>>(),
        }));
        return Ok(ExitCode::SUCCESS);
    }
    printer::data(&table(&found));
    printer::note(
        "KL divergence from the original in thousandths of a nat per token, when these weights, or these activations in all layers, \
         alone are rounded; errors of all together are larger or smaller than the sum",
    );
    Ok(ExitCode::SUCCESS)
}

/// Measures, and says how far it is.
pub(super) fn of(
    model: &squat_train::checkpoint::Loaded,
    plan: &QuantPlan,
    windows: &[Vec<u32>],
    threads: usize,
) -> Result<Sensitivity> {
    measure(model, plan, windows, threads, &mut |done, all| {
        if done == all || done % (all / 4).max(1) == 0 {
            printer::note(&format!("{done} of {all} measured"));
        }
    })
}

/// About so many tokens of a text, or of the built-in one, in windows that begin with BOS.
pub(super) fn windows(model: &OpenedModel, data: Option<&Path>, tokens: usize) -> Result<Vec<Vec<u32>>> {
    let tokenizer = ModelTokenizer::open(model)?;
    let ids = match data {
        Some(path) => {
            TokenizedText::read(path, &tokenizer)?.into_iter().flat_map(|text| text.tokens).collect()
        }
        None => tokenizer.encode(built_in::TEXT).map_err(|error| anyhow!("{error}"))?,
    };
    let length = model.spec().max_position_embeddings.min(WINDOW);
    let windows: Vec<Vec<u32>> = ids[..ids.len().min(tokens)]
        .chunks(length.saturating_sub(1).max(1))
        .filter(|chunk| !chunk.is_empty())
        .map(|chunk| std::iter::once(tokenizer.bos_id()).chain(chunk.iter().copied()).collect())
        .collect();
    if windows.is_empty() {
        bail!("the text has no tokens; give another with --data");
    }
    Ok(windows)
}

fn table(found: &Sensitivity) -> String {
    let thousandths = |x: f64| format!("{:.2}", 1e3 * x);
    let mut names: Vec<&str> = Vec::new();
    found.units.iter().map(|unit| unit.point.name()).for_each(|name| {
        if !names.contains(&name) {
            names.push(name);
        }
    });
    let mut table = Table::new(["weights"].into_iter().chain(names.iter().copied()));
    let mut sums = vec![0.0; names.len()];
    for layer in found.units.chunks(names.len().max(1)) {
        sums.iter_mut().zip(layer).for_each(|(sum, unit)| *sum += unit.divergence);
        let cells = layer.iter().map(|unit| thousandths(unit.divergence));
        let number = layer.first().map_or(String::new(), |unit| format!("layer {}", unit.layer));
        table.push(std::iter::once(number).chain(cells));
    }
    table.push(std::iter::once("sum".to_owned()).chain(sums.into_iter().map(thousandths)));
    let mut others = Table::new(["alone", "cost"]);
    others.push(["token table and head".to_owned(), thousandths(found.tables)]);
    for (point, cost) in &found.points {
        others.push([point.name().to_owned(), thousandths(*cost)]);
    }
    format!("{}\n{}", table.to_markdown(), others.to_markdown())
}
