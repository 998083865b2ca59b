//! One file for each subcommand.

mod bench;
#[cfg(feature = "manual")]
mod completions;
#[cfg(feature = "train")]
mod data;
mod doctor;
mod eval;
mod generate;
mod inspect;
#[cfg(feature = "manual")]
mod man;
mod pack;
#[cfg(feature = "train")]
mod quantize;
#[cfg(feature = "train")]
mod quickstart;
#[cfg(feature = "train")]
mod sensitivity;
#[cfg(feature = "train")]
mod tokenizer;
#[cfg(feature = "train")]
mod train;

use crate::args::Command;
use anyhow::Result;
use std::process::ExitCode;

/// Runs a command.
pub fn run(command: Command) -> Result<ExitCode> {
    // A name in SQUAT_ISA that this CPU cannot run is refused here, so that nothing ignores it silently.
    squat_kernels::Kernels::from_environment()?;
    match command {
        #[cfg(feature = "train")]
        Command::Quickstart(args) => quickstart::run(&args),
        #[cfg(feature = "train")]
        Command::Data(args) => data::run(&args),
        #[cfg(feature = "train")]
        Command::Tokenizer(args) => tokenizer::run(&args),
        #[cfg(feature = "train")]
        Command::Train(args) => train::run(&args),
        #[cfg(feature = "train")]
        Command::Quantize(args) => quantize::run(&args),
        #[cfg(feature = "train")]
        Command::Sensitivity(args) => sensitivity::run(&args),
        Command::Pack(args) => pack::run(&args),
        Command::Eval(args) => eval::run(&args),
        Command::Generate(args) => generate::run(&args),
        Command::Bench(args) => bench::run(&args),
        Command::Inspect(args) => inspect::run(&args),
        Command::Doctor(args) => doctor::run(&args),
        #[cfg(feature = "manual")]
        Command::Completions(args) => completions::run(&args),
        #[cfg(feature = "manual")]
        Command::Man(args) => man::run(&args),
    }
}
