//! `squat train`.

use crate::args::Train;
use crate::progress::Progress;
use crate::{forms, printer};
use anyhow::{Context, Result};
use squat_train::Recipe;
use squat_train::run::{RunEvent, RunOptions, run as run_recipe};
use squat_train::stage::{Event, Outcome};
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Exit code after Ctrl-C.
const INTERRUPTED: u8 = 130;

/// A flag that Ctrl-C sets; the second time ends the program at once.
pub fn stop_flag() -> Result<Arc<AtomicBool>> {
    let stop = Arc::new(AtomicBool::new(false));
    let flag = stop.clone();
    ctrlc::set_handler(move || {
        if flag.swap(true, Ordering::Relaxed) {
            std::process::exit(i32::from(INTERRUPTED));
        }
        printer::note("stopping after this step; once more to stop at once");
    })
    .context("cannot watch for Ctrl-C")?;
    Ok(stop)
}

pub fn run(args: &Train) -> Result<ExitCode> {
    let recipe = Recipe::load(&args.recipe, &args.settings)?;
    let folder = args.out.clone().unwrap_or_else(|| Path::new("runs").join(&recipe.name));
    let options = RunOptions {
        folder: folder.clone(),
        threads: forms::threads(args.threads),
        resume: args.resume,
        device: squat_train::device::device(&args.device)?,
        stop: stop_flag()?,
    };
    let mut progress = Progress::new();
    let mut steps = 0;
    if args.profile {
        squat_train::profile::start();
    }
    let outcome = run_recipe(&recipe, &options, &mut |event| {
        if let RunEvent::Training(Event::Step { .. }) = event {
            steps += 1;
        }
        progress.event(&event);
    })?;
    if args.profile {
        let table = super::bench_train::profile_table(&squat_train::profile::finish(), steps);
        printer::note(&format!("where the time of {steps} steps went, for one step:\n{table}"));
    }
    match outcome {
        Outcome::Finished { .. } => {
            printer::line(&folder.display().to_string());
            Ok(ExitCode::SUCCESS)
        }
        Outcome::Interrupted { step } => {
            printer::note(&format!(
                "stopped at step {step}, checkpoint saved; continue with: squat train {} --out {} --resume",
                args.recipe.display(),
                folder.display()
            ));
            Ok(ExitCode::from(INTERRUPTED))
        }
    }
}
