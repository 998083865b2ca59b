//! Instruction sets. Everything unsafe that touches registers lives here; an instruction set is a token type that
//! implements the small traits of the algorithms, and one table of functions compiled for it.

mod portable;
mod table;
#[cfg(target_arch = "x86_64")]
pub(crate) mod x86_64;

pub(crate) use portable::{Portable, SCALAR};
pub(crate) use table::Table;
