//! Fake quantizers on the CPU's memory: codes as exact integers in `f32`, with their scales.
//!
//! The training forward multiplies integer codes and applies the scales to the sum, as the deployed integer product
//! does (METHOD.md section 2): `y[m,n] = (sum_k qa[m,k] * qw[n,k] as f32 * s_a[m]) * s_w[n]`. Sums of integers below
//! 2^24 are exact in `f32` in any order, so the fake-quantized model and the packed one agree bit for bit.
//!
//! | file | holds |
//! |---|---|
//! | `loops` | the inner loops, compiled for several instruction sets |
//! | `rows` | activations: static or dynamic, bits by token |
//! | `weights` | weights with given scales; where scales come from is [`crate::quantizer`] |

mod loops;
mod rows;
mod weights;

pub use loops::scale_rows;
pub use rows::{
    ActQuant, Rows, STATIC_PARAMETERS, TokenBits, fake_quantize_rows, pack_rows, quantize_rows,
    quantize_rows_backward, row_affine, static_affine,
};
pub use weights::{QuantizedWeight, Weight};
