//! Packed models: integers on disk in the `pack-quantized` layout of compressed-tensors.
//!
//! For each quantized matrix `X.weight` of shape `[out, in]` the folder has
//!
//! * `X.weight_packed`, I32 `[out, ceil(in * bits / 32)]`: codes plus `2^(bits-1)`, lowest bits first, rows begun on a
//!   new word ([`words`]);
//! * `X.weight_scale`, F32: `[1]` per tensor, `[out, 1]` per channel, `[out, ceil(in / group_size)]` per group;
//! * `X.weight_shape`, I64 `[2]`: `out, in`.
//!
//! A shorter last group is our extension: compressed-tensors rejects inputs that are not a multiple of `group_size`.
//!
//! The token table (`model.embed_tokens`) and an untied head (`lm_head`) are stored in the same way, a tied table
//! once. Norms, biases, learned positions and everything that the plan leaves in full precision are F32. Static activation quantizers keep their names.
//! `config.json` has compressed-tensors' `quantization_config` ([`schema`]), and the plan under the key `squat`, which
//! takes precedence.

mod open;
mod pack;
pub mod schema;
pub mod words;

pub use open::{PackedModel, PackedTensor};
pub use pack::{Output, PackReport, PackSource, PackedEntry, pack, packed_bytes};
