//! What quantizing means, written once.
//!
//! Trainer, exporter, evaluator and kernels call these functions or are tested against them, so a model that was
//! trained, packed and run sees the same integers everywhere (METHOD.md section 2):
//!
//! ```text
//! q = clamp( round(x / s) + z, q_min, q_max )          x^ = s * (q - z)
//! ```
//!
//! `round` is ties-to-even; `x / s` is evaluated as `x * (1 / s)` with the reciprocal taken once, in every crate.
//!
//! | module | holds |
//! |---|---|
//! | [`range`] | integer ranges of signed, unsigned and ternary codes |
//! | [`scheme`] | bit widths and granularities of weights and activations, and their names |
//! | [`affine`] | quantize, dequantize, fake-quantize, straight-through and LSQ gradients |
//! | [`calibrate`] | first guesses of scales and zero points |
//! | [`pack`] | dense bit packing |
//! | [`plan`] | the points of a transformer where it quantizes |
//! | [`token_policy`] | which tokens get 8-bit activations |
//! | [`random`], [`spelling`] | what every crate needs: a seeded generator, hints for misspelled names |
//! | [`transform`] | orthogonal transforms of rows before they are quantized |
//! | [`math`] | the exponential and the rounding that give the same bits on every CPU |
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

pub use affine::{Affine, dynamic_scale};
pub use plan::ActPoint;
pub use range::CodeRange;
pub use scheme::{ActBits, ActScheme, Granularity, WeightBits, WeightScheme};
pub use transform::Transform;
