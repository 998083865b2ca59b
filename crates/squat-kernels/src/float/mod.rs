//! Float functions used by trainer and engine alike, with the same bits on every CPU.
//!
//! Every sum runs over exactly 16 lanes: lane `l` adds elements `l`, `l + 16`, ... in order, the tail goes to the
//! first lanes, and the lanes are folded in halves (lane `i` + lane `i + 8`, then `+ 4`, `+ 2`, `+ 1`). Dot products
//! and matrix products add by fused multiply-add, which CPUs without the instruction get from f64
//! ([`squat_quant::math::multiply_add`]); everything else is rounded operation by operation. Nothing is reassociated, so
//! scalar code and every vector width agree bit for bit.
//!
//! The functions here are the portable instances; [`crate::Kernels`] has the same ones compiled for an instruction set.

mod convert;
mod elementwise;
mod matmul;
mod reduce;

pub use convert::f16_to_f32;
pub use elementwise::{add, exp, gelu, layer_norm, rms_norm, rope, silu_mul, softmax};
pub use reduce::{argmax, dot, ln, log_softmax_at, max_abs, sum_squares};

pub(crate) use elementwise::rms_norm_factor;
pub(crate) use matmul::{FloatSimd, matmul};
#[cfg(target_arch = "x86_64")]
pub(crate) use reduce::padded;
pub(crate) use reduce::{LANES, dot_with, fold, max_abs_of};
