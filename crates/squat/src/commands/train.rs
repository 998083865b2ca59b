//! `squat train`.

use crate::args::Train;
use crate::progress::Progress;
use crate::{forms, printer, signals};
use anyhow::{Context, Result};
use serde_json::json;
use squat_train::Recipe;
use squat_train::execution::Execution;
use squat_train::parallel::{Group, Launch};
use squat_train::run::{RunEvent, RunOptions, group_key, run_recipe};
use squat_train::stage::{Event, Outcome};
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

pub fn run(args: &Train) -> Result<ExitCode> {
    let recipe = Recipe::load(&args.recipe, &args.settings)?;
    match Launch::from_environment()? {
        None => train(args, &recipe, None),
        Some(launch) => train(args, &recipe, Some(&launch))
            .with_context(|| format!("rank {} of {}", launch.rank, launch.world)),
    }
}

fn train(args: &Train, recipe: &Recipe, launch: Option<&Launch>) -> Result<ExitCode> {
    let folder = args.out.clone().unwrap_or_else(|| Path::new("runs").join(&recipe.name));
    let device = squat_train::device::nth(&args.device, launch.map_or(0, |launch| launch.local_rank))?;
    signals::tidy_up();
    let (mut threads, mut group) = (forms::threads(args.threads), Group::alone());
    if let Some(launch) = launch {
        if args.threads == 0 {
            threads = (threads / launch.local_world).max(1);
        }
        let patience = Duration::try_from_secs_f64(args.peer_timeout)
            .ok()
            .filter(|patience| *patience >= Duration::from_millis(100))
            .with_context(|| {
                format!("--peer-timeout {}: expected at least 0.1 seconds", args.peer_timeout)
            })?;
        let key = group_key(recipe, args.resume)?;
        group = signals::while_waiting(|| Group::join(launch, &key, patience))?;
        if group.is_rank0() {
            let carrier = if launch.mpi { ", MPI carries their data" } else { "" };
            printer::note(&format!("{} processes{carrier}", group.world()));
        }
    }
    let is_rank0 = group.is_rank0();
    let execution = Execution { threads, device, group, resume: args.resume, ..Execution::on_cpu(threads) };
    let options = RunOptions { folder: folder.clone(), execution, force: args.force };
    let mut progress = Progress::new();
    let mut steps = 0;
    if args.profile {
        squat_train::profile::start();
    }
    // All processes do the same, and only one of them reports.
    let outcome = run_recipe(recipe, &options, &mut |event| {
        if let RunEvent::Training(Event::Step { .. }) = event {
            steps += 1;
        }
        if is_rank0 {
            progress.event(&event);
        }
    })?;
    if args.profile && is_rank0 {
        let table = crate::bench::train::profile_table(&squat_train::profile::finish(), steps);
        printer::note(&format!("time and memory by phase, average of {steps} steps:\n{table}"));
    }
    match outcome {
        Outcome::Finished { best } => {
            if is_rank0 && args.json {
                let stages: Vec<_> = recipe.stages.iter().map(|stage| &stage.name).collect();
                let best = best.is_finite().then_some(best);
                printer::json(&json!({"out": folder, "stages": stages, "held_out_cross_entropy": best}));
            } else if is_rank0 {
                printer::line(&folder.display().to_string());
            }
            Ok(ExitCode::SUCCESS)
        }
        Outcome::Interrupted { step } => {
            if is_rank0 {
                printer::note(&format!(
                    "stopped at step {step}, checkpoint saved; continue with: squat train {} --out {} --resume",
                    args.recipe.display(),
                    folder.display()
                ));
            }
            Ok(ExitCode::from(signals::INTERRUPTED))
        }
    }
}
