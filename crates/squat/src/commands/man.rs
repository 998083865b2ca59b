//! `squat man`: a page in roff, of the program or of one of its verbs.

use crate::args::{Cli, Man};
use crate::{Usage, printer};
use anyhow::Result;
use clap::CommandFactory;
use std::process::ExitCode;

pub fn run(args: &Man) -> Result<ExitCode> {
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
