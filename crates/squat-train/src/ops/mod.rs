//! The fused operations of a transformer, each with its own backward on the CPU's memory.

pub mod alignment;
pub mod attention;
pub mod embedding;
pub mod entropy;
pub mod linear;
pub mod lm_loss;
pub mod rms_norm;
pub mod swiglu;
pub mod teacher_logits;
pub mod transform;

#[cfg(test)]
pub(crate) mod gradient_check;
