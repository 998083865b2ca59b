//! NEON with `i8mm`: `usdot` adds four products of unsigned and signed bytes in 32 bits, so everything stays as stored.

use super::neon::{Dots, Neon};
use crate::arch::table::kernel_table;
use core::arch::aarch64::*;
use core::arch::asm;

/// Token: the CPU has NEON, `dotprod` and `i8mm`.
#[derive(Clone, Copy)]
pub(crate) struct I8mm(());

impl Neon<I8mm> {
    /// For functions compiled with these target features, which only run where the CPU has them.
    #[inline]
    #[target_feature(enable = "neon,dotprod,i8mm")]
    fn new() -> Self {
        Self(I8mm(()))
    }
}

/// `acc + u . s` in quads. The intrinsic is not in Rust 1.95.
#[inline]
#[target_feature(enable = "neon,dotprod,i8mm")]
fn usdot(mut acc: int32x4_t, u: uint8x16_t, s: int8x16_t) -> int32x4_t {
    // SAFETY: an instruction of `i8mm` between registers.
    unsafe {
        asm!(
            "usdot {acc:v}.4s, {u:v}.16b, {s:v}.16b",
            acc = inout(vreg) acc, u = in(vreg) u, s = in(vreg) s,
            options(pure, nomem, nostack, preserves_flags)
        );
    }
    acc
}

impl Dots for I8mm {
    type Small = int32x4_t;
    const SMALL_ROOM: usize = usize::MAX;
    const MIXED: bool = true;

    #[inline(always)]
    fn zero_small(self) -> Self::Small {
        // SAFETY: the token proves NEON.
        unsafe { vdupq_n_s32(0) }
    }

    #[inline(always)]
    fn dot(self, acc: int32x4_t, w: uint8x16_t, a: int8x16_t) -> int32x4_t {
        // SAFETY: the token proves `i8mm`.
        unsafe { usdot(acc, w, a) }
    }

    #[inline(always)]
    fn dot_small(self, sums: Self::Small, w: uint8x16_t, a: int8x16_t) -> Self::Small {
        self.dot(sums, w, a)
    }

    #[inline(always)]
    fn flush(self, acc: int32x4_t, sums: Self::Small) -> int32x4_t {
        // SAFETY: the token proves NEON.
        unsafe { vaddq_s32(acc, sums) }
    }

    #[inline(always)]
    fn weigh(self, acc: int32x4_t, c: uint8x16_t, v: uint8x16_t) -> int32x4_t {
        // SAFETY: the token proves `i8mm`.
        unsafe { usdot(acc, c, vreinterpretq_s8_u8(v)) }
    }
}

kernel_table! {
    /// Kernels for NEON with `i8mm`.
    pub(crate) static I8MM = ["neon,dotprod,i8mm"], token: Neon::<I8mm>::new(), float: (2, 2), int: (4, 1, 2), large: false
}
