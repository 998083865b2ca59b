//! Runs a model on the CPU: packed to integers, or in full precision for comparison.
//!
//! ```no_run
//! # fn main() -> squat_engine::Result<()> {
//! let engine = squat_engine::Engine::load("model", 2)?;
//! let options = squat_engine::GenerateOptions { max_tokens: 32, ..Default::default() };
//! let generation = engine.generate(&[1], &options, |token| { println!("{token}"); true })?;
//! # Ok(()) }
//! ```
//!
//! The engine computes what the trainer's fake-quantized forward computes: the same integers at every quantized
//! point, the same float operations in the same order between them (METHOD.md sections 2, 3, 5). A token's result
//! depends only on the tokens before it: not on the block it was prefilled in, the number of threads, the instruction
//! set, or other sequences.
//!
//! | module | holds |
//! |---|---|
//! | [`engine`] | [`Engine`]: a loaded model; log-likelihoods, generation |
//! | [`session`] | [`Session`]: one sequence; prefill, decode, truncate, fork, save, load |
//! | [`batch`] | [`Batch`]: several sessions fed together |
//! | [`scheduler`] | [`Scheduler`]: requests queued, run together, cancelled |
//! | [`generate`] | [`GenerateOptions`], [`Generation`] |
//! | [`sampling`] | [`Sampler`]: greedy, temperature, top-k, top-p |
//! | [`pool`] | the parked thread pool |
//! | [`error`] | [`EngineError`] |
#![warn(missing_docs)]

mod attention;
pub mod batch;
mod builder;
pub mod engine;
pub mod error;
mod fingerprint;
pub mod generate;
mod linear;
mod model;
pub mod pool;
mod prefix;
mod row_shard;
pub mod sampling;
pub mod scheduler;
mod sequence;
pub mod session;
mod source;
mod workspace;

pub use batch::Batch;
pub use engine::{Engine, EngineOptions, Memory};
pub use error::{EngineError, Result};
pub use generate::{FinishReason, GenerateOptions, Generation};
pub use model::Weights;
pub use sampling::{Sampler, Sampling};
pub use scheduler::{Event, RequestId, Scheduler, SchedulerOptions};
pub use session::{Session, SessionOptions};
pub use workspace::BatchEntry;

/// The programs of README.md compile.
#[cfg(doctest)]
#[doc = include_str!("../../../README.md")]
struct Readme;
