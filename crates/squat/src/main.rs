//! The command line of Squat: data on stdout, everything else on stderr, exit code 1 and one clear message on failure.

mod args;
mod commands;
mod forms;
mod printer;
#[cfg(feature = "train")]
mod progress;

use clap::Parser;
use std::process::ExitCode;

fn main() -> ExitCode {
    let cli = args::Cli::parse();
    match commands::run(cli.command) {
        Ok(code) => code,
        Err(error) => {
            printer::error(&error);
            ExitCode::from(1)
        }
    }
}
