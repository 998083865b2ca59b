//! Instruction sets. Everything unsafe that touches registers lives here. An instruction set is a token type that
//! implements the traits of [`crate::simd`], and one table of functions compiled for it.

#[cfg(all(target_arch = "aarch64", target_endian = "little"))]
pub(crate) mod aarch64;
pub(crate) mod functions;
mod scalar;
mod table;
#[cfg(test)]
mod tile_emulation;
#[cfg(all(target_arch = "wasm32", target_feature = "simd128"))]
pub(crate) mod wasm32;
#[cfg(target_arch = "x86_64")]
pub(crate) mod x86_64;

pub(crate) use scalar::SCALAR;
pub(crate) use table::Table;
