//! The integer product, written once for all instruction sets.
//!
//! Definition, which every instruction set reproduces bit for bit (METHOD.md section 2, with the order of float
//! operations fixed):
//!
//! ```text
//! acc[m, n]   = sum_k qa[m, k] * qw[n, k]                                                    exact, i32
//! per tensor, per channel:  y = ((acc - z_a[m] * sum_w[n]) as f32 * s_a[m]) * s_w[n]
//! per group:                y = (sum over groups g in order of
//!                                ((acc_g - z_a[m] * sum_w[n, g]) as f32 * s_w[n, g])) * s_a[m]
//! bias:                     y + bias[n], last
//! ```
//!
//! Weights are stored with an offset that makes them unsigned, so a kernel computes `sum_k qa * (qw + offset)`, and the
//! epilogue subtracts `offset * sum_k qa`, one number per row.
//!
//! | module | contents |
//! |---|---|
//! | `unpack` | stored codes of each width, to bytes in registers |
//! | `kernel` | `MicroKernel`: the sums of a tile; `Vectors` makes one of any `IntSimd` |
//! | `schedule` | the order of strips, tiles and groups |
//! | `epilogue` | from sums to outputs |

mod epilogue;
mod kernel;
mod schedule;
#[cfg(test)]
mod tests;
mod unpack;

pub(crate) use kernel::Vectors;
#[cfg_attr(not(test), allow(unused_imports))] // The contract for sets with tile registers.
pub(crate) use kernel::{MicroKernel, Strips, Tiles};
pub(crate) use schedule::linear;
#[cfg_attr(not(test), allow(unused_imports))]
pub(crate) use unpack::Unpack;
pub(crate) use unpack::{Bits2, Bits3, Bits4, Bits8};
