//! x86-64.

mod avx2;
mod avx512vnni;
mod avxvnni;

pub(crate) use avx2::AVX2;
pub(crate) use avx512vnni::AVX512VNNI;
pub(crate) use avxvnni::AVXVNNI;

/// Run-time detection with `std`; without it, the target features that the compiler was given.
macro_rules! detected {
    ($($feature:tt),*) => {{
        #[cfg(feature = "std")]
        { true $(&& std::arch::is_x86_feature_detected!($feature))* }
        #[cfg(not(feature = "std"))]
        { cfg!(all($(target_feature = $feature),*)) }
    }};
}

/// Whether the CPU has the features of [`AVX2`]: AVX2, FMA and F16C, all three since Haswell and Zen.
pub(crate) fn has_avx2() -> bool {
    detected!("avx2", "fma", "f16c")
}

/// Whether the CPU has the features of [`AVXVNNI`]: Alder Lake and later, Zen 5 and later.
pub(crate) fn has_avxvnni() -> bool {
    has_avx2() && detected!("avxvnni")
}

/// Whether the CPU has the features of [`AVX512VNNI`]: server and desktop CPUs with AVX-512 since Cascade Lake, Ice Lake
/// and Zen 4.
pub(crate) fn has_avx512vnni() -> bool {
    has_avx2() && detected!("avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512vnni")
}

/// Four bytes as a 32-bit word, in memory order.
#[inline(always)]
fn word(quad: &[i8; 4]) -> i32 {
    i32::from_le_bytes([quad[0] as u8, quad[1] as u8, quad[2] as u8, quad[3] as u8])
}
