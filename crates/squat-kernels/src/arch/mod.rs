//! Instruction sets. Everything unsafe that touches registers lives here; an instruction set is a token type that
//! implements the small traits of the algorithms, and one table of functions compiled for it.

#[cfg(all(target_arch = "aarch64", target_endian = "little"))]
pub(crate) mod aarch64;
mod portable;
mod table;
#[cfg(all(target_arch = "wasm32", target_feature = "simd128"))]
pub(crate) mod wasm32;
#[cfg(target_arch = "x86_64")]
pub(crate) mod x86_64;

pub(crate) use portable::{Portable, SCALAR};
pub(crate) use table::Table;
