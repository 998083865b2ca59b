//! NEON with `i8mm`: `usdot` adds four products of unsigned by signed bytes in 32 bits, so operands are used as stored.
//!
//! `usmmla` adds eight products to each of four sums, of two channels and two rows: twice as many as `usdot`. A lane of a
//! block has four inputs of a channel in its low bits and the next four in the bits above, so one `zip` of unpacked
//! quarters yields eight inputs of two channels for all rows of a tile. Full bytes have four inputs in a block and use
//! `usdot`, as do single rows.

use super::neon::{Dots, Neon};
use crate::arch::table::kernel_table;
use crate::simd::Quad;
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

/// `acc + u . s` in quads. Rust 1.95 has no stable intrinsic for it.
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

/// `[acc0 + u0 . s0, acc1 + u0 . s1, acc2 + u1 . s0, acc3 + u1 . s1]`, where u0, u1, s0, s1 are halves. Rust 1.95 has no
/// stable intrinsic for it.
#[inline]
#[target_feature(enable = "neon,dotprod,i8mm")]
fn usmmla(mut acc: int32x4_t, u: uint8x16_t, s: int8x16_t) -> int32x4_t {
    // SAFETY: an instruction of `i8mm` between registers.
    unsafe {
        asm!(
            "usmmla {acc:v}.4s, {u:v}.16b, {s:v}.16b",
            acc = inout(vreg) acc, u = in(vreg) u, s = in(vreg) s,
            options(pure, nomem, nostack, preserves_flags)
        );
    }
    acc
}

impl Dots for I8mm {
    type Partial = int32x4_t;
    const PARTIAL_LIMIT: usize = usize::MAX;
    const MIXED: bool = true;

    #[inline(always)]
    fn zero_partial(self) -> Self::Partial {
        // SAFETY: the token proves NEON.
        unsafe { vdupq_n_s32(0) }
    }

    #[inline(always)]
    fn dot(self, acc: int32x4_t, w: uint8x16_t, a: int8x16_t) -> int32x4_t {
        // SAFETY: the token proves `i8mm`.
        unsafe { usdot(acc, w, a) }
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

    const PAIRS: bool = true;

    /// The sums are `[c0 r0, c0 r1, c1 r0, c1 r1]` and the same of channels 2 and 3.
    #[inline(always)]
    fn dot_pair(
        self,
        sums: [Self::Partial; 2],
        [low, high]: [uint8x16_t; 2],
        a: [&[Quad; 2]; 2],
    ) -> [Self::Partial; 2] {
        let [first, second] = a.map(|row| row.as_flattened().as_ptr());
        // SAFETY: the token proves `i8mm`; the loads are as long as the arrays and need no alignment.
        unsafe {
            let a = vcombine_s8(vld1_s8(first), vld1_s8(second));
            let (low, high) = (vreinterpretq_u32_u8(low), vreinterpretq_u32_u8(high));
            let [left, right] = [vzip1q_u32(low, high), vzip2q_u32(low, high)];
            [usmmla(sums[0], vreinterpretq_u8_u32(left), a), usmmla(sums[1], vreinterpretq_u8_u32(right), a)]
        }
    }

    #[inline(always)]
    fn split_pair(self, [left, right]: [Self::Partial; 2]) -> [Self::Partial; 2] {
        // SAFETY: the token proves NEON.
        unsafe { [vuzp1q_s32(left, right), vuzp2q_s32(left, right)] }
    }

    #[inline(always)]
    fn weigh(self, acc: int32x4_t, c: uint8x16_t, v: uint8x16_t) -> int32x4_t {
        // SAFETY: the token proves `i8mm`.
        unsafe { usdot(acc, c, vreinterpretq_s8_u8(v)) }
    }
}

kernel_table! {
    /// Kernels for NEON with `i8mm`.
    pub(crate) static I8MM = ["neon,dotprod,i8mm"], token: Neon<I8mm>, float: (2, 2), int: (4, 1, 2), wide_tiles: false
}
