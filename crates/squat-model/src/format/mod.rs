//! File formats: one file each.

pub mod llama2c;
pub mod safetensors;
