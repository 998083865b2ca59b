//! Attention of rows of queries over a cache of integers (or floats), one key-value head at a time.
//!
//! The cache is read once for all rows that are given together: the query heads that share a key-value head, and some
//! tokens of a prompt.

mod attend;
mod cache;
mod float;
mod products;
mod softmax;

pub use attend::AttentionScratch;
pub use cache::{AttentionScheme, Causal, KvHead, MAX_CONTEXT};
pub use float::FloatKvHead;

pub(crate) use attend::{Places, RowCodes, Steps, attend, score, weigh, weights};
pub(crate) use float::{FloatSteps, attend_float, weigh_float};
pub(crate) use products::{CodeSimd, Narrow, Wide};
pub(crate) use softmax::Ahead;
