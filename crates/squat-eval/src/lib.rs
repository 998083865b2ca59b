//! Tasks and metrics over one trait, [`LanguageModel`]; reports.
//!
//! The training model, its fake-quantized form and the packed integer model implement the trait, so one task runs on
//! all three and the report prints the difference.
//!
//! * [`model`]: the trait, [`Form`], [`Tokenize`].
//! * [`tasks`]: minimal pairs (BLiMP, its supplement, any other), by paradigm, group and on the whole.

pub mod error;
pub mod model;
pub mod scoring;
pub mod tasks;

pub use error::EvalError;
pub use model::{FnTokenizer, Form, LanguageModel, Tokenize};
pub use scoring::ScoringOptions;
pub use tasks::{PairSet, TaskResult, evaluate, task};
