//! `squat bench`: tokens per second of prefill and generation, and their share of the limit of the machine.

use crate::args::Bench;
use crate::bench::contestant::Contestant;
use crate::bench::limits::Limits;
use crate::bench::measure::{Test, alternate};
use crate::bench::report::{self, Row};
use crate::bench::work::Work;
use crate::{Usage, forms, printer};
use anyhow::{Context, Result, bail};
use squat_engine::Engine;
use squat_kernels::Kernels;
use std::path::Path;
use std::process::ExitCode;

pub fn run(args: &Bench) -> Result<ExitCode> {
    #[cfg(feature = "train")]
    if let Some(shape) = &args.training.train {
        return crate::bench::train::run(args, shape);
    }
    let contestants = contestants(args)?;
    let kernels = Kernels::from_environment()?.unwrap_or_else(Kernels::detect);
    let tests = Test::list(args.prompt, args.generate, args.depth, &args.batch);
    if tests.is_empty() {
        return Err(Usage("both tests are skipped; give -p or -n a number of tokens".to_owned()).into());
    }
    if args.batch.contains(&0) {
        return Err(
            Usage("-b counts sequences that are decoded together: at least 1, got 0".to_owned()).into()
        );
    }
    let mut rows = Vec::new();
    for &threads in &args.threads {
        let threads = forms::threads(threads);
        let engines: Vec<Engine> = contestants
            .iter()
            .map(|contestant| contestant.engine.with_threads(threads))
            .collect::<Result<_, _>>()?;
        let samples = alternate(&engines, &tests, args.repeat)?;
        let limits: Vec<Limits> = contestants
            .iter()
            .map(|c| Limits::measure(kernels, threads, Work::of(c, &tests[0]).working_set))
            .collect();
        for (index, test) in tests.iter().enumerate() {
            for ((contestant, found), limits) in contestants.iter().zip(&samples).zip(&limits) {
                let ratio = (contestants.len() > 1).then(|| found[index].ratio_to(&samples[0][index]));
                let samples = found[index].clone();
                rows.push(Row::new(contestant, *test, threads, samples, ratio, *limits));
            }
        }
    }
    if args.json {
        printer::json(&report::json(&rows));
    } else if args.csv {
        printer::data(&report::csv(&rows));
    } else {
        printer::data(&report::markdown(&rows));
    }
    Ok(ExitCode::SUCCESS)
}

/// The requested model, then those to compare it with: other files, or other schemes of the same model.
fn contestants(args: &Bench) -> Result<Vec<Contestant>> {
    let scheme = args.scheme.as_deref();
    let mut found = vec![match (&args.model, &args.random) {
        (Some(path), None) => Contestant::file(path, scheme)?,
        (None, Some(name)) => Contestant::random(name, scheme)?,
        _ => bail!("give a model, or --random with the name of a shape"),
    }];
    for other in &args.compare {
        found.push(if Path::new(other).exists() {
            Contestant::file(Path::new(other), None)?
        } else {
            let of_model = match (&args.model, &args.random) {
                (Some(path), _) => Contestant::file(path, Some(other)),
                (None, name) => Contestant::random(name.as_deref().unwrap_or_default(), Some(other)),
            };
            of_model.with_context(|| {
                format!("--compare {other}: neither a model that exists nor a scheme to run")
            })?
        });
    }
    Ok(found)
}
