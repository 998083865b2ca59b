//! `squat bench --train`: the speed of a training step on random data; and the table of a profile.

use crate::args::Bench;
use crate::{forms, printer};
use anyhow::{Result, bail};
use serde_json::json;
use squat_eval::table::Table;
use squat_train::bench::StepBench;
use squat_train::profile::{Entry, Phase};
use squat_train::recipe::TeacherDtype;
use std::process::ExitCode;

pub fn run(args: &Bench, shape: &str) -> Result<ExitCode> {
    let training = &args.training;
    let scheme = args.scheme.as_deref().unwrap_or("fp");
    let &[batch] = &args.batch[..] else {
        bail!("a training step has one batch size, got {}; give -b one number", args.batch.len());
    };
    let bench = StepBench {
        threads: forms::threads(args.threads.first().copied().unwrap_or(0)),
        batch,
        seq: training.seq,
        steps: args.repeat.max(1) as u64,
        activation_checkpointing: training.activation_checkpointing,
        teacher_top_k: training.teacher_top_k,
        teacher_dtype: if training.teacher_dtype == "bf16" { TeacherDtype::Bf16 } else { TeacherDtype::F32 },
        ..StepBench::named(shape, scheme)?
    };
    let speed = bench.run()?;
    let peak = speed.peak_resident_bytes;
    let forward = speed.phase(Phase::Forward);
    let backward = speed.phase(Phase::Backward);
    let optimizer = speed.phase(Phase::Optimizer) + speed.phase(Phase::Parameters);
    let teacher = speed.phase(Phase::Teacher);
    if args.json {
        printer::json(&json!({
            "model": shape, "scheme": scheme, "threads": bench.threads,
            "batch": bench.batch, "seq": bench.seq,
            "cpu_seconds_per_step": speed.cpu_seconds, "wall_seconds_per_step": speed.wall_seconds,
            "tokens_per_second": speed.tokens_per_second, "peak_rss_bytes": peak, "loss": speed.loss,
            "teacher": teacher, "forward": forward, "backward": backward, "optimizer": optimizer,
            "profile": profile_json(&speed.profile),
        }));
        return Ok(ExitCode::SUCCESS);
    }
    let mut table = Table::new([
        "scheme",
        "threads",
        "CPU s/step",
        "wall s/step",
        "tokens/s",
        "peak MB",
        "teacher",
        "forward",
        "backward",
        "optimizer",
    ]);
    let seconds = |x: f64| format!("{x:.3}");
    table.push([
        scheme.to_owned(),
        bench.threads.to_string(),
        seconds(speed.cpu_seconds),
        seconds(speed.wall_seconds),
        format!("{:.0}", speed.tokens_per_second),
        peak.map_or_else(|| "?".to_owned(), |bytes| (bytes / 1_000_000).to_string()),
        seconds(teacher),
        seconds(forward),
        seconds(backward),
        seconds(optimizer),
    ]);
    printer::data(&table.to_markdown());
    if training.profile {
        printer::data(&format!("\n{}", profile_table(&speed.profile, 1)));
    }
    Ok(ExitCode::SUCCESS)
}

/// A profile as a list of objects.
pub fn profile_json(entries: &[Entry]) -> serde_json::Value {
    entries
        .iter()
        .map(|Entry { phase, operation, row }| {
            json!({"phase": phase.name(), "operation": operation, "calls": row.calls, "seconds": row.seconds,
                "bytes": row.bytes, "resident_bytes": row.resident})
        })
        .collect()
}

/// A profile as a table, per step of `steps` steps; shares are of the total of all phases.
pub fn profile_table(entries: &[Entry], steps: u64) -> String {
    let steps = steps.max(1) as f64;
    let whole: f64 = entries.iter().filter(|e| e.operation.is_empty()).map(|e| e.row.seconds).sum();
    let mut table = Table::new(["phase", "operation", "calls", "ms", "%", "made MB", "resident MB"]);
    for Entry { phase, operation, row } in entries {
        let megabytes = |bytes: f64| if bytes > 0.0 { format!("{:.1}", bytes / 1e6) } else { String::new() };
        table.push([
            if operation.is_empty() { phase.name().to_owned() } else { String::new() },
            (*operation).to_owned(),
            format!("{:.0}", row.calls as f64 / steps),
            format!("{:.1}", row.seconds / steps * 1e3),
            format!("{:.1}", row.seconds / whole.max(1e-12) * 100.0),
            megabytes(row.bytes as f64 / steps),
            megabytes(row.resident as f64),
        ]);
    }
    table.to_markdown()
}
