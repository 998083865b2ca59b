//! NEON with `dotprod`: `sdot` and `udot` add four products of bytes of the same sign in 32 bits.

use super::neon::{Dots, Neon};
use crate::arch::table::kernel_table;
use core::arch::aarch64::*;
use core::arch::asm;

/// Token: the CPU has NEON and `dotprod`.
#[derive(Clone, Copy)]
pub(crate) struct Dotprod(());

impl Neon<Dotprod> {
    /// For functions compiled with these target features, which only run where the CPU has them.
    #[inline]
    #[target_feature(enable = "neon,dotprod")]
    fn new() -> Self {
        Self(Dotprod(()))
    }
}

/// A dot product of quads. Rust 1.95 has no stable intrinsics for it.
macro_rules! dot {
    ($name:ident, $instruction:literal) => {
        #[inline]
        #[target_feature(enable = "neon,dotprod")]
        fn $name(mut acc: int32x4_t, a: uint8x16_t, b: uint8x16_t) -> int32x4_t {
            // SAFETY: an instruction of `dotprod` between registers.
            unsafe {
                asm!(
                    concat!($instruction, " {acc:v}.4s, {a:v}.16b, {b:v}.16b"),
                    acc = inout(vreg) acc, a = in(vreg) a, b = in(vreg) b,
                    options(pure, nomem, nostack, preserves_flags)
                );
            }
            acc
        }
    };
}

dot!(sdot, "sdot");
dot!(udot, "udot");

impl Dots for Dotprod {
    type Partial = int32x4_t;
    const PARTIAL_LIMIT: usize = usize::MAX;
    const MIXED: bool = false;

    #[inline(always)]
    fn zero_partial(self) -> Self::Partial {
        // SAFETY: the token proves NEON.
        unsafe { vdupq_n_s32(0) }
    }

    #[inline(always)]
    fn dot(self, acc: int32x4_t, w: uint8x16_t, a: int8x16_t) -> int32x4_t {
        // SAFETY: the token proves `dotprod`.
        unsafe { sdot(acc, w, vreinterpretq_u8_s8(a)) }
    }

    #[inline(always)]
    fn dot_partial(self, sums: Self::Partial, w: uint8x16_t, a: int8x16_t) -> Self::Partial {
        self.dot(sums, w, a)
    }

    #[inline(always)]
    fn flush(self, acc: int32x4_t, sums: Self::Partial) -> int32x4_t {
        // SAFETY: the token proves NEON.
        unsafe { vaddq_s32(acc, sums) }
    }

    #[inline(always)]
    fn weigh(self, acc: int32x4_t, c: uint8x16_t, v: uint8x16_t) -> int32x4_t {
        // SAFETY: the token proves `dotprod`.
        unsafe { udot(acc, c, v) }
    }
}

kernel_table! {
    /// Kernels for NEON with `dotprod`.
    pub(crate) static DOTPROD = ["neon,dotprod"], token: Neon<Dotprod>, float: (2, 2), int: (4, 1, 2), wide_tiles: false
}
