//! File formats: one file each.

pub mod safetensors;
