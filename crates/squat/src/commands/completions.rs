//! `squat completions`: what a package installs beside the program.

use crate::args::{Cli, Completions};
use crate::printer;
use anyhow::Result;
use clap::CommandFactory;
use std::process::ExitCode;

pub fn run(args: &Completions) -> Result<ExitCode> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "squat", &mut script);
    printer::raw(&String::from_utf8(script)?);
    Ok(ExitCode::SUCCESS)
}
