//! Attention of one key-value head: which cache a plan needs, and one step over it.
//!
//! | module | holds |
//! |---|---|
//! | [`head`] | the cache of one head in the form that the plan allows, append and attend |
//! | [`store`] | the rows of a cache as bytes |
//! | [`general`] | any combination of quantized and unquantized points, in floats |

mod general;
pub(crate) mod head;
mod store;

pub(crate) use general::AttentionPoints;
pub(crate) use head::{AttentionPlan, HeadCache, HeadScratch};
