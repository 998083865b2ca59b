//! Tasks and metrics over one trait, [`LanguageModel`]; reports.
//!
//! The training model, its fake-quantized form and the packed integer model implement the trait, so one task runs on
//! all three and the report prints the difference.
//!
//! * [`model`]: the trait, [`Form`], [`Tokenize`].
//! * [`tasks`]: minimal pairs (BLiMP, its supplement, any other), by paradigm, group and on the whole.
//! * [`mod@perplexity`]: running text, per token, word and byte, with standard error.
//! * [`scoring`]: what both stand on: ordering, batching, and the checks of a model's answers.
//! * [`parity`]: how far two forms of one model are apart.
//! * [`table`]: results in Markdown. [`report`]: the page of a run.

pub mod error;
mod file;
pub mod model;
pub mod parity;
pub mod perplexity;
pub mod report;
pub mod scoring;
pub mod table;
pub mod tasks;

pub use error::EvalError;
pub use model::{FnTokenizer, Form, LanguageModel, Tokenize};
pub use perplexity::{PerplexityResult, TextOptions, TokenizedText, perplexity};
pub use scoring::ScoringOptions;
pub use tasks::{PairSet, TaskResult, evaluate, task};
