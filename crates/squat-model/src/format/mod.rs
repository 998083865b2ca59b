//! File formats: one file each.

pub mod gguf;
pub mod llama2c;
pub mod safetensors;
pub mod sentencepiece;
