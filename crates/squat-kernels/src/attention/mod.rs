//! Attention of one query row over a cache of integers (or floats), one key-value head at a time.

mod attend;
mod cache;
mod float;

pub use attend::AttentionScratch;
pub use cache::{AttentionScheme, CodeStore, KvHead, MAX_CONTEXT};
pub use float::FloatKvHead;

pub(crate) use attend::{CHUNK, Primitives, StoredRows, attend, primitives};
pub(crate) use float::attend_float;
