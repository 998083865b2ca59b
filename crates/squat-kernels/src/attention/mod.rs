//! Attention of rows of queries over a cache of integers (or floats), one key-value head at a time.
//!
//! The cache is read once for all rows of a call: the query heads that share a key-value head, and several tokens of a
//! prompt.

mod attend;
mod cache;
mod causal;
mod definition;
mod float;
mod products;
mod softmax;

pub use attend::AttentionScratch;
pub use cache::{AttentionScheme, KvHead, MAX_CONTEXT};
pub use causal::Causal;
pub use definition::{quantize_probabilities, query_factor};
pub use float::FloatKvHead;

pub(crate) use attend::{RowCodes, ScoreLayout, Steps, attend, probability_codes, score, weigh};
pub(crate) use float::{FloatSteps, attend_float, weigh_float};
pub(crate) use products::{Narrow, Wide};
pub(crate) use softmax::ValuePrefetch;
