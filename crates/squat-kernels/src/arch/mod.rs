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

/// Asks for the cache lines of some values to be brought near; reads nothing. Nothing happens on CPUs other than x86.
#[inline(always)]
pub fn prefetch<T>(values: &[T]) {
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    for offset in (0..size_of_val(values) + values.as_ptr().addr() % 64).step_by(64) {
        x86_64::prefetch::<{ core::arch::x86_64::_MM_HINT_T0 }>(
            values.as_ptr().wrapping_byte_add(offset).cast(),
        );
    }
    #[cfg(not(all(target_arch = "x86_64", not(miri))))]
    let _ = values;
}
