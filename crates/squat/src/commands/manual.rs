//! `squat completions` and `squat man`: what a package installs beside the program.

use crate::args::{Cli, Completions, Man};
use crate::{Usage, printer};
use anyhow::Result;
use clap::CommandFactory;
use std::process::ExitCode;

/// Prints the completions of a shell.
pub fn completions(args: &Completions) -> Result<ExitCode> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "squat", &mut script);
    printer::raw(&String::from_utf8(script)?);
    Ok(ExitCode::SUCCESS)
}

/// Prints a page in roff: of the program, or of one of its verbs.
pub fn man(args: &Man) -> Result<ExitCode> {
    let mut command = Cli::command();
    command.build();
    for verb in &args.verb {
        command = command
            .find_subcommand(verb)
            .ok_or_else(|| Usage(format!("no verb \"{verb}\"; see squat --help")))?
            .clone();
    }
    let mut page = Vec::new();
    clap_mangen::Man::new(command).render(&mut page)?;
    printer::raw(&String::from_utf8(page)?);
    Ok(ExitCode::SUCCESS)
}
