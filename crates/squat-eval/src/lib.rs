//! Tasks, metrics and reports over one trait, [`LanguageModel`].
//!
//! The training model, its fake-quantized form and the packed integer model implement the trait, so that a task runs on
//! all three and reports show the difference.
//!
//! * [`model`]: the trait, [`Form`], [`Tokenize`].
//! * [`tasks`]: minimal pairs (BLiMP, its supplement, any other), by paradigm, by group and overall.
//! * [`mod@perplexity`]: running text, per token, word and byte, with standard error.
//! * [`scoring`]: the basis of both: ordering, batching, and checks of the model's output.
//! * [`parity`]: differences between two forms of one model.
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
mod text;

pub use error::EvalError;
pub use model::{FnTokenizer, Form, LanguageModel, Tokenize};
pub use perplexity::{PerplexityResult, Windows, perplexity};
pub use scoring::ScoringOptions;
pub use tasks::{PairSet, TaskResult, evaluate, task};
pub use text::TokenizedText;
