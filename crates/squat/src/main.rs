//! The command line of Squat: data on stdout, everything else on stderr; exit code 1 and one message on failure, 2 where the
//! command itself is wrong, 130 after a signal.

mod args;
mod bench;
mod built_in;
mod commands;
mod fidelity;
mod forms;
mod machine;
mod printer;
#[cfg(feature = "train")]
mod progress;
#[cfg(feature = "train")]
mod sensitivity;
mod signals;

use clap::Parser;
use squat_files::interrupt::Interrupted;
use std::process::ExitCode;

/// A command that contradicts itself, though every word of it is known.
#[derive(Debug)]
pub struct Usage(pub String);

impl std::fmt::Display for Usage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Usage {}

/// Exit code of a command that is wrong.
const MISUSED: u8 = 2;

fn main() -> ExitCode {
    squat_files::read::report_cut_maps();
    squat_files::contain::quiet(|panic| {
        printer::note(&format!("error: a file that is no valid input: {panic}"));
        std::process::exit(i32::from(printer::FAILED));
    });
    let cli = match args::Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version go to stdout with exit code 0; everything else is a wrong command.
            if let Err(failure) = error.print() {
                printer::not_written(&failure);
            }
            return ExitCode::from(if error.use_stderr() { MISUSED } else { 0 });
        }
    };
    match signals::install().and_then(|()| commands::run(cli.command)) {
        Ok(code) => code,
        Err(error) if error.chain().any(|cause| cause.is::<Interrupted>()) => {
            printer::note("stopped; nothing half-made is left");
            ExitCode::from(signals::INTERRUPTED)
        }
        Err(error) => {
            printer::error(&error);
            if error.is::<Usage>() {
                printer::note("\nFor more information, try '--help'.");
                return ExitCode::from(MISUSED);
            }
            ExitCode::from(printer::FAILED)
        }
    }
}
