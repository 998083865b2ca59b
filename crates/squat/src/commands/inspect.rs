//! `squat inspect`.

use crate::args::Inspect;
use crate::{forms, printer};
use anyhow::{Context, Result};
use squat_eval::table::Table;
use squat_model::ModelSummary;
use std::process::ExitCode;

pub fn run(args: &Inspect) -> Result<ExitCode> {
    let model = forms::open_model(&args.model)?;
    let proven = match args.verify {
        true => Some(model.verify()?.with_context(|| {
            format!(
                "{}: nothing to verify against: SHA256SUMS is missing, which pack and train write; write the model again",
                model.path().display()
            )
        })?),
        false => None,
    };
    let summary = ModelSummary::of(&model)?;
    for (name, index) in model.not_finite()? {
        printer::note(&format!(
            "warning: {name} has NaN or infinite weights, the first at element {index}: the training run diverged or the \
             file is damaged"
        ));
    }
    if args.json {
        let mut value = serde_json::to_value(&summary)?;
        if let Some(files) = proven {
            value["verified_files"] = files.into();
        }
        printer::json(&value);
        return Ok(ExitCode::SUCCESS);
    }
    printer::line(&format!(
        "{}: {} parameters, {} bytes of weights, {:.2} bits per parameter",
        model.path().display(),
        summary.num_parameters,
        summary.weight_bytes,
        summary.bits_per_parameter
    ));
    if let Some(files) = proven {
        printer::line(&format!("verified: {files} files are as they were written"));
    }
    let mut table = Table::new(["tensor", "shape", "scheme", "stored as", "bytes", "threshold"]);
    let layers = summary.layers.iter().flat_map(|layer| {
        layer
            .tensors
            .iter()
            .enumerate()
            .map(|(i, tensor)| (tensor, if i == 0 { layer.threshold } else { None }))
    });
    for (tensor, threshold) in summary.outside.iter().map(|t| (t, None)).chain(layers) {
        table.push([
            tensor.name.clone(),
            format!("{:?}", tensor.shape),
            tensor.scheme.clone(),
            tensor.stored_as.clone(),
            tensor.bytes.to_string(),
            threshold.map(|t| format!("{t:.4}")).unwrap_or_default(),
        ]);
    }
    printer::data(&table.to_markdown());
    if summary.plan.is_some() {
        let mut points = Table::new(["activation point", "scheme", "bits"]);
        for point in &summary.points {
            let bits: Vec<String> = point.bits.iter().map(u32::to_string).collect();
            points.push([
                point.point.to_owned(),
                point.scheme.unwrap_or("full precision").to_owned(),
                bits.join(", "),
            ]);
        }
        printer::line("");
        printer::data(&points.to_markdown());
        if let Some(plan) = summary.plan.as_ref().filter(|plan| plan.has_transforms()) {
            printer::line(&format!("\ntransforms: {}", plan.describe_transforms()));
        }
        if let Some(clip) = summary.plan.as_ref().map(|plan| plan.clip.share()).filter(|&share| share < 1.0) {
            printer::line(&format!("\n4-bit codes reach {clip} of the largest value of a row"));
        }
        if let Some(policy) = summary.policy {
            let rho = summary.rho.map(|rho| format!(", rho {rho}")).unwrap_or_default();
            printer::line(&format!("\ntoken policy: {policy}{rho}"));
        }
    }
    Ok(ExitCode::SUCCESS)
}
