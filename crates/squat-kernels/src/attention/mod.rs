//! Attention of one query row over a cache of integers (or floats), one key-value head at a time.

mod attend;
mod cache;
mod float;
#[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))]
mod sums;

pub use attend::AttentionScratch;
pub use cache::{AttentionScheme, CodeStore, KvHead, MAX_CONTEXT};
pub use float::FloatKvHead;

pub(crate) use attend::{Primitives, attend, primitives};
pub(crate) use float::attend_float;
#[cfg(target_arch = "x86_64")]
pub(crate) use {
    attend::StoredRows,
    sums::{CodeSimd, dots, weigh},
};
