//! AArch64: plain NEON, the dot products of `dotprod`, the matrix products of `i8mm`.

mod dotprod;
mod i8mm;
mod neon;

pub(crate) use dotprod::DOTPROD;
pub(crate) use i8mm::I8MM;
pub(crate) use neon::NEON;

/// Run-time detection with `std`; without it, the target features that the compiler was given.
macro_rules! detected {
    ($($feature:tt),*) => {{
        #[cfg(feature = "std")]
        { true $(&& std::arch::is_aarch64_feature_detected!($feature))* }
        #[cfg(not(feature = "std"))]
        { cfg!(all($(target_feature = $feature),*)) }
    }};
}

/// Whether the CPU has the features of [`NEON`]; nearly all have.
pub(crate) fn has_neon() -> bool {
    detected!("neon")
}

/// Whether the CPU has the features of [`DOTPROD`]: Cortex-A55, A75, A76 (Raspberry Pi 5), Neoverse N1, Apple A11 and later.
pub(crate) fn has_dotprod() -> bool {
    has_neon() && detected!("dotprod")
}

/// Whether the CPU has the features of [`I8MM`]: Cortex-A510, A710, Neoverse V1 and N2, Apple M2 and later.
pub(crate) fn has_i8mm() -> bool {
    has_dotprod() && detected!("i8mm")
}
