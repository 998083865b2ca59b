//! Token ids on disk: memory-mapped shards and the manifest that records what they were made from.
//!
//! A prepared folder holds `manifest.json`, `tokens-<id>-00000.bin` and so on (ids in corpus order, little endian,
//! u16 if the vocabulary allows it) and `lines-<id>.bin` (u64 token positions at which lines start). `<id>` is the
//! start of the manifest's identity: the hash of every input file, the cleaning rules and the tokenizer. The
//! manifest is renamed into place last, so a folder is always either entirely old or entirely new.

mod manifest;
mod parts;
mod prepare;
mod tokens;

pub use manifest::{InputRecord, Manifest, ShardRecord, TokenType};
pub use parts::{Part, merge_parts, prepare_part};
pub use prepare::{PrepareOptions, Prepared, prepare};
pub use tokens::TokenShards;

#[cfg(test)]
mod tests;
