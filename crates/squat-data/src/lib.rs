//! Corpora for Squat: read, clean, tokenize, shard, batch; and a small generated English that needs no download.
//!
//! [`source`] finds the files, [`clean`] turns raw lines into clean sentences, [`tokenizer`] trains byte-level BPE on
//! them, [`shards`] writes token ids to memory-mapped files with a manifest that makes stale caches impossible, and
//! [`batch`] forms reproducible random chunks of those. [`english`] generates a corpus and held-out minimal pairs from
//! a seed.

pub mod batch;
pub mod clean;
pub mod english;
mod error;
mod hash;
pub mod permutation;
pub mod shards;
pub mod source;
pub mod tokenizer;

pub use batch::{Chunks, Sequential};
pub use clean::{CLEANING_VERSION, CleanOptions, Cleaner, Domain};
pub use error::{DataError, Result};
pub use hash::file_digest;
pub use shards::{Manifest, Part, PrepareOptions, Prepared, TokenShards, merge_parts, prepare, prepare_part};
pub use source::{Corpus, Split};
pub use tokenizer::{SpecialTokens, TokenizerOptions, train_tokenizer};
