//! The definition of quantization, written once.
//!
//! Trainer, packer, evaluator and kernels call these functions or are tested against them, so a model sees the same
//! integers while it is trained, packed and run (METHOD.md section 2):
//!
//! ```text
//! q = clamp( round(x / s) + z, q_min, q_max )          x^ = s * (q - z)
//! ```
//!
//! `round` is to nearest, ties to even; every crate evaluates `x / s` as `x * (1 / s)`, with the reciprocal computed once.
//!
//! | module | contents |
//! |---|---|
//! | [`range`] | integer ranges of signed, unsigned and ternary codes |
//! | [`scheme`] | bit widths and granularities of weights and activations, and their names |
//! | [`affine`] | quantize, dequantize, fake-quantize, straight-through and LSQ gradients |
//! | [`calibrate`] | initial scales and zero points |
//! | [`pack`] | dense bit packing |
//! | [`plan`] | the activation points of a transformer |
//! | [`token_policy`] | which tokens get 8-bit activations |
//! | [`random`], [`spelling`] | what every crate needs: a seeded generator, hints for misspelled names |
//! | [`transform`] | orthogonal transforms of rows before they are quantized |
//! | [`math`] | exponential, square root and rounding with the same bits on every CPU |
#![no_std]
#![warn(missing_docs)]

extern crate alloc;

pub mod affine;
pub mod calibrate;
pub mod math;
pub mod pack;
pub mod plan;
pub mod random;
pub mod range;
pub mod scheme;
pub mod spelling;
pub mod token_policy;
pub mod transform;

pub use affine::{Affine, Clip, dynamic_scale};
pub use plan::ActPoint;
pub use range::CodeRange;
pub use scheme::{ActBits, ActScheme, Granularity, WeightBits, WeightScheme};
pub use transform::Transform;
