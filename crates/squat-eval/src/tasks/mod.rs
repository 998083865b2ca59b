//! Tasks: their definitions, the files of minimal pairs, and their scoring.
//!
//! A task is data: `tasks/NAME.toml`, registered in its table of sources (`definition.rs`).

mod definition;
mod pairs;
mod result;
mod source;

pub use definition::{TaskDefinition, TaskKind, task, task_names};
pub use pairs::{MinimalPair, PairSet, Paradigm};
pub use result::{
    Outcome, PairScore, ParadigmResult, TaskResult, average_of_groups, evaluate, score_pairs, summarise,
};
