//! Float functions shared by trainer and engine, with the same bits on every CPU.
//!
//! Every sum has exactly 16 lanes: lane `l` adds elements `l`, `l + 16`, ... in order, the tail goes to the first lanes,
//! and the lanes are reduced in halves (lane `i` + lane `i + 8`, then `+ 4`, `+ 2`, `+ 1`). Dot products and matrix
//! products use fused multiply-add, emulated in f64 on CPUs without the instruction ([`squat_quant::math::mul_add`]);
//! everything else rounds after each operation. Nothing is reassociated, so scalar code and every vector width agree bit
//! for bit.
//!
//! The functions here are the portable instances; [`crate::Kernels`] has the same functions compiled for an instruction
//! set.

mod elementwise;
mod matmul;
mod reduce;

pub use crate::half::f16_to_f32;
pub use elementwise::{
    add, exp, gelu, gelu_mul, layer_norm, rms_norm, rope, scaled_softmax, silu_mul, softmax,
};
pub use reduce::{argmax, dot, ln, log_softmax_at, max_abs, sum_squares};

pub(crate) use elementwise::rms_norm_factor;
pub(crate) use matmul::matmul;
pub(crate) use reduce::dot_with;
