//! The command line of Squat: data on stdout, everything else on stderr; exit code 1 and one message on failure.

mod args;
mod bench;
mod commands;
mod fidelity;
mod forms;
mod machine;
mod printer;
#[cfg(feature = "train")]
mod progress;

use clap::Parser;
use std::process::ExitCode;

fn main() -> ExitCode {
    let cli = match args::Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version go to stdout with exit code 0; everything else is bad input.
            let _ = error.print();
            return ExitCode::from(u8::from(error.use_stderr()));
        }
    };
    match commands::run(cli.command) {
        Ok(code) => code,
        Err(error) => {
            printer::error(&error);
            ExitCode::from(1)
        }
    }
}
