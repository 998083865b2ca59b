//! `cargo xtask drills`: what is left when processes are killed, disks fill up, files shrink and clocks jump.
#![allow(clippy::print_stdout, reason = "a program of its own, whose output is its result")]

mod drills;
mod program;

use anyhow::{Context, Result, bail};
use std::path::PathBuf;
use std::process::ExitCode;

const USAGE: &str = "usage: cargo xtask drills [--short] [--squat PROGRAM]\n\n  --short    every seventh place of each kind, for a \
                     quick check\n  --squat    the program to test; default: target/debug/squat, made by cargo build";

fn main() -> Result<ExitCode> {
    let mut words = std::env::args().skip(1);
    if words.next().as_deref() != Some("drills") {
        bail!("{USAGE}");
    }
    let mut every = 1;
    let mut squat = PathBuf::from("target/debug/squat");
    while let Some(word) = words.next() {
        match word.as_str() {
            "--short" => every = 7,
            "--squat" => squat = words.next().context(USAGE)?.into(),
            _ => bail!("unexpected {word}\n{USAGE}"),
        }
    }
    if !squat.is_file() {
        bail!("{} is missing; make it with: cargo build -p squat", squat.display());
    }
    let failures = drills::run(&std::fs::canonicalize(squat)?, every)?;
    for failure in &failures {
        println!("FAILED: {failure}");
    }
    Ok(if failures.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
