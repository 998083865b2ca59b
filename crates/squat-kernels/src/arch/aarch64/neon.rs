//! NEON: 128-bit vectors, four to a panel; [`Dots`] abstracts over the instructions that multiply bytes.
//!
//! Plain NEON multiplies signed bytes by signed bytes into 16 bits. Stored codes of at most 4 bits are small, so they are
//! valid signed bytes; full bytes get their top bit flipped, which removes their offset. Codes of probabilities are
//! unsigned, so values are made unsigned for the product with them. `smlal` adds a product to each of two vectors of
//! 16-bit sums: two sums of a channel cover four of its inputs, so they are added in pairs, still in 16 bits, before they
//! are widened.

use crate::arch::table::kernel_table;
use crate::block::PANEL;
use crate::simd::{CodeSimd, FloatSimd, IntSimd, PAIRS_IN_16_BITS, Quad};
use core::arch::aarch64::*;
use core::arch::asm;

/// Dot products of 16 bytes, four bytes of each of four channels. A value of an implementing type proves that the CPU has
/// NEON and the instructions of the type.
pub(crate) trait Dots: Copy {
    /// See [`IntSimd::Partial`].
    type Partial: Copy;
    /// See [`IntSimd::PARTIAL_LIMIT`].
    const PARTIAL_LIMIT: usize;
    /// Whether unsigned bytes can be multiplied by signed ones. If not, full bytes are converted to the other operand's
    /// sign.
    const MIXED: bool;
    fn zero_partial(self) -> Self::Partial;
    /// `acc + w . a`; w is unsigned if [`Self::MIXED`], else signed.
    fn dot(self, acc: int32x4_t, w: uint8x16_t, a: int8x16_t) -> int32x4_t;
    /// `sums + w . a` for w <= 15.
    fn dot_partial(self, sums: Self::Partial, w: uint8x16_t, a: int8x16_t) -> Self::Partial;
    fn flush(self, acc: int32x4_t, sums: Self::Partial) -> int32x4_t;
    /// Whether [`Self::dot_pair`] is used, which multiplies two rows at once.
    const PAIRS: bool = false;
    /// Adds `low . a[r][0] + high . a[r][1]` to the sums of two rows, for w <= 15. The sums may be interleaved until
    /// [`Self::split_pair`].
    #[inline(always)]
    fn dot_pair(
        self,
        mut sums: [Self::Partial; 2],
        [low, high]: [uint8x16_t; 2],
        a: [&[Quad; 2]; 2],
    ) -> [Self::Partial; 2] {
        for r in 0..2 {
            // SAFETY: the token proves NEON.
            let (first, second) = unsafe { (splat(&a[r][0]), splat(&a[r][1])) };
            sums[r] = self.dot_partial(self.dot_partial(sums[r], low, first), high, second);
        }
        sums
    }
    /// The sums of the first and of the second row, from those of [`Self::dot_pair`].
    #[inline(always)]
    fn split_pair(self, sums: [Self::Partial; 2]) -> [Self::Partial; 2] {
        sums
    }
    /// `acc + c . v`, c unsigned; v is signed if [`Self::MIXED`], else unsigned.
    fn weigh(self, acc: int32x4_t, c: uint8x16_t, v: uint8x16_t) -> int32x4_t;
}

/// Token: the CPU has NEON and the instructions of `D`.
#[derive(Clone, Copy)]
pub(crate) struct Neon<D: Dots>(pub(super) D);

impl<D: Dots> IntSimd for Neon<D> {
    type V = [int32x4_t; 4];
    type Partial = [D::Partial; 4];
    const PARTIAL_LIMIT: usize = D::PARTIAL_LIMIT;
    const BYTE_OFFSET: i32 = if D::MIXED { 128 } else { 0 };

    #[inline(always)]
    fn zero(self) -> Self::V {
        // SAFETY: the token proves NEON.
        unsafe { [vdupq_n_s32(0); 4] }
    }

    #[inline(always)]
    fn zero_partial(self) -> Self::Partial {
        [self.0.zero_partial(); 4]
    }

    #[inline(always)]
    fn load(self, block: &[u8; 64]) -> Self::V {
        let (quarters, _) = block.as_chunks::<16>();
        let mut v = IntSimd::zero(self);
        for i in 0..4 {
            // SAFETY: the token proves NEON; the load is as long as the array and needs no alignment.
            v[i] = unsafe { vreinterpretq_s32_u8(vld1q_u8(quarters[i].as_ptr())) };
        }
        v
    }

    #[inline(always)]
    fn unpack4(self, v: Self::V) -> [Self::V; 2] {
        let mut parts = [v; 2];
        for i in 0..4 {
            // SAFETY: the token proves NEON.
            unsafe {
                let bytes = vreinterpretq_u8_s32(v[i]);
                parts[0][i] = vreinterpretq_s32_u8(vandq_u8(bytes, vdupq_n_u8(15)));
                parts[1][i] = vreinterpretq_s32_u8(vshrq_n_u8::<4>(bytes));
            }
        }
        parts
    }

    #[inline(always)]
    fn unpack2(self, v: Self::V) -> [Self::V; 4] {
        let mut parts = [v; 4];
        for i in 0..4 {
            // SAFETY: the token proves NEON.
            unsafe {
                let (bytes, mask) = (vreinterpretq_u8_s32(v[i]), vdupq_n_u8(3));
                parts[0][i] = vreinterpretq_s32_u8(vandq_u8(bytes, mask));
                parts[1][i] = vreinterpretq_s32_u8(vandq_u8(vshrq_n_u8::<2>(bytes), mask));
                parts[2][i] = vreinterpretq_s32_u8(vandq_u8(vshrq_n_u8::<4>(bytes), mask));
                parts[3][i] = vreinterpretq_s32_u8(vshrq_n_u8::<6>(bytes));
            }
        }
        parts
    }

    #[inline(always)]
    fn unpack3(self, v: Self::V) -> [Self::V; 2] {
        let mut parts = [v; 2];
        for i in 0..4 {
            // SAFETY: the token proves NEON.
            unsafe {
                let (bytes, mask) = (vreinterpretq_u8_s32(v[i]), vdupq_n_u8(7));
                parts[0][i] = vreinterpretq_s32_u8(vandq_u8(bytes, mask));
                parts[1][i] = vreinterpretq_s32_u8(vandq_u8(vshrq_n_u8::<3>(bytes), mask));
            }
        }
        parts
    }

    #[inline(always)]
    fn unpack3_high(self, mut a: Self::V, mut b: Self::V, c: Self::V) -> [Self::V; 2] {
        for i in 0..4 {
            // SAFETY: the token proves NEON.
            unsafe {
                let (tops, four) = (vreinterpretq_u8_s32(c[i]), vdupq_n_u8(4));
                let (first, second) = (vreinterpretq_u8_s32(a[i]), vreinterpretq_u8_s32(b[i]));
                // One instruction shifts and adds.
                a[i] = vreinterpretq_s32_u8(vsraq_n_u8::<6>(vandq_u8(vshrq_n_u8::<4>(tops), four), first));
                b[i] = vreinterpretq_s32_u8(vsraq_n_u8::<6>(vandq_u8(vshrq_n_u8::<5>(tops), four), second));
            }
        }
        [a, b]
    }

    #[inline(always)]
    fn unpack8(self, v: Self::V) -> Self::V {
        if D::MIXED { v } else { flip(self, v) }
    }

    #[inline(always)]
    fn dot4<const NP: usize>(self, acc: &mut [Self::V; NP], w: &[Self::V; NP], a: &[i8; 4]) {
        // SAFETY: the token proves NEON.
        unsafe {
            let a = splat(a);
            for p in 0..NP {
                for i in 0..4 {
                    acc[p][i] = self.0.dot(acc[p][i], vreinterpretq_u8_s32(w[p][i]), a);
                }
            }
        }
    }

    #[inline(always)]
    fn dot4_partial<const NP: usize>(self, sums: &mut [Self::Partial; NP], w: &[Self::V; NP], a: &[i8; 4]) {
        // SAFETY: the token proves NEON.
        unsafe {
            let a = splat(a);
            for p in 0..NP {
                for i in 0..4 {
                    sums[p][i] = self.0.dot_partial(sums[p][i], vreinterpretq_u8_s32(w[p][i]), a);
                }
            }
        }
    }

    #[inline(always)]
    fn dot_rows<const F: usize, const MR: usize, const NP: usize>(
        self,
        sums: &mut [[Self::Partial; NP]; MR],
        fields: &[[Self::V; NP]; F],
        a: &[&[Quad; F]; MR],
    ) {
        const { assert!(F.is_multiple_of(2)) }
        if const { !paired::<D>(MR) } {
            for m in 0..MR {
                for f in 0..F {
                    self.dot4_partial(&mut sums[m], &fields[f], &a[m][f]);
                }
            }
            return;
        }
        let (fields, _) = fields.as_chunks::<2>();
        for p in 0..NP {
            // One quarter for all rows, then the next: each is unpacked once, and few registers hold weights.
            for i in 0..4 {
                for (f, [low, high]) in fields.iter().enumerate() {
                    // SAFETY: the token proves NEON.
                    let w = unsafe { [vreinterpretq_u8_s32(low[p][i]), vreinterpretq_u8_s32(high[p][i])] };
                    for m in (0..MR).step_by(2) {
                        let a = [&a[m].as_chunks().0[f], &a[m + 1].as_chunks().0[f]];
                        let pair = self.0.dot_pair([sums[m][p][i], sums[m + 1][p][i]], w, a);
                        [sums[m][p][i], sums[m + 1][p][i]] = pair;
                    }
                }
            }
        }
    }

    #[inline(always)]
    fn flush_rows<const MR: usize, const NP: usize>(
        self,
        acc: &mut [[Self::V; NP]; MR],
        sums: &[[Self::Partial; NP]; MR],
    ) {
        let mut sums = *sums;
        if const { paired::<D>(MR) } {
            for m in (0..MR).step_by(2) {
                for p in 0..NP {
                    for i in 0..4 {
                        let pair = self.0.split_pair([sums[m][p][i], sums[m + 1][p][i]]);
                        [sums[m][p][i], sums[m + 1][p][i]] = pair;
                    }
                }
            }
        }
        for m in 0..MR {
            self.flush(&mut acc[m], &sums[m]);
        }
    }

    #[inline(always)]
    fn add(self, mut a: Self::V, b: Self::V) -> Self::V {
        for i in 0..4 {
            // SAFETY: the token proves NEON.
            a[i] = unsafe { vaddq_s32(a[i], b[i]) };
        }
        a
    }

    #[inline(always)]
    fn flush<const NP: usize>(self, acc: &mut [Self::V; NP], sums: &[Self::Partial; NP]) {
        for p in 0..NP {
            for i in 0..4 {
                acc[p][i] = self.0.flush(acc[p][i], sums[p][i]);
            }
        }
    }

    #[inline(always)]
    fn store(self, v: Self::V) -> [i32; PANEL] {
        let mut out = [0; PANEL];
        for (v, out) in v.into_iter().zip(out.as_chunks_mut::<4>().0) {
            // SAFETY: the token proves NEON; the destination has four i32, and the store needs no alignment.
            unsafe { vst1q_s32(out.as_mut_ptr(), v) }
        }
        out
    }
}

/// Whether a tile of `rows` rows is multiplied in pairs of rows.
const fn paired<D: Dots>(rows: usize) -> bool {
    D::PAIRS && rows.is_multiple_of(2)
}

/// Flips the top bit of every byte: subtracts 128 from unsigned bytes, giving signed ones, or the reverse.
#[inline(always)]
fn flip<D: Dots>(_: Neon<D>, mut v: [int32x4_t; 4]) -> [int32x4_t; 4] {
    for i in 0..4 {
        // SAFETY: the token proves NEON.
        v[i] = unsafe { veorq_s32(v[i], vreinterpretq_s32_u8(vdupq_n_u8(0x80))) };
    }
    v
}

impl<D: Dots> CodeSimd for Neon<D> {
    const VALUE_OFFSET: i32 = if D::MIXED { 0 } else { 128 };

    #[inline(always)]
    fn values(self, v: Self::V) -> Self::V {
        if D::MIXED { v } else { flip(self, v) }
    }

    #[inline(always)]
    fn weigh4<const NP: usize>(self, acc: &mut [Self::V; NP], v: &[Self::V; NP], c: &[u8; 4]) {
        // SAFETY: the token proves NEON.
        unsafe {
            let c = vreinterpretq_u8_u32(vdupq_n_u32(u32::from_le_bytes(*c)));
            for p in 0..NP {
                for i in 0..4 {
                    acc[p][i] = self.0.weigh(acc[p][i], c, vreinterpretq_u8_s32(v[p][i]));
                }
            }
        }
    }
}

/// Four codes in every lane.
#[inline]
#[target_feature(enable = "neon")]
fn splat(quad: &[i8; 4]) -> int8x16_t {
    vreinterpretq_s8_s32(vdupq_n_s32(i32::from_le_bytes(quad.map(|code| code as u8))))
}

/// Half-precision numbers to floats: the lower four, the upper four. The intrinsics need the unstable type `f16`.
#[inline]
#[target_feature(enable = "neon")]
fn widen_halves(x: uint16x8_t) -> [float32x4_t; 2] {
    let (low, high): (float32x4_t, float32x4_t);
    // SAFETY: instructions of NEON between registers.
    unsafe {
        asm!("fcvtl {d:v}.4s, {x:v}.4h", d = out(vreg) low, x = in(vreg) x, options(pure, nomem, nostack, preserves_flags));
        asm!("fcvtl2 {d:v}.4s, {x:v}.8h", d = out(vreg) high, x = in(vreg) x, options(pure, nomem, nostack, preserves_flags));
    }
    [low, high]
}

impl<D: Dots> FloatSimd for Neon<D> {
    type V = [float32x4_t; 4];

    #[inline(always)]
    fn zero(self) -> Self::V {
        FloatSimd::splat(self, 0.0)
    }

    #[inline(always)]
    fn load(self, x: &[f32; 16]) -> Self::V {
        let (quarters, _) = x.as_chunks::<4>();
        let mut v = FloatSimd::zero(self);
        for i in 0..4 {
            // SAFETY: the token proves NEON; the load is as long as the array and needs no more alignment.
            v[i] = unsafe { vld1q_f32(quarters[i].as_ptr()) };
        }
        v
    }

    #[inline(always)]
    fn load_f16(self, x: &[u16; 16]) -> Self::V {
        let (halves, _) = x.as_chunks::<8>();
        // SAFETY: the token proves NEON; the loads are as long as the arrays and need no more alignment.
        unsafe {
            let [a, b] = widen_halves(vld1q_u16(halves[0].as_ptr()));
            let [c, d] = widen_halves(vld1q_u16(halves[1].as_ptr()));
            [a, b, c, d]
        }
    }

    #[inline(always)]
    fn exchange<const STRIDE: usize>(self, v: Self::V) -> Self::V {
        core::array::from_fn(|i| {
            // SAFETY: the token proves NEON.
            unsafe {
                match STRIDE {
                    1 => vrev64q_f32(v[i]),
                    2 => vextq_f32::<2>(v[i], v[i]),
                    4 => v[i ^ 1],
                    _ => v[i ^ 2],
                }
            }
        })
    }

    #[inline(always)]
    fn splat(self, x: f32) -> Self::V {
        // SAFETY: the token proves NEON.
        unsafe { [vdupq_n_f32(x); 4] }
    }

    #[inline(always)]
    fn mul_add(self, mut acc: Self::V, a: Self::V, b: Self::V) -> Self::V {
        for i in 0..4 {
            // SAFETY: the token proves NEON.
            acc[i] = unsafe { vfmaq_f32(acc[i], a[i], b[i]) };
        }
        acc
    }

    #[inline(always)]
    fn add(self, mut a: Self::V, b: Self::V) -> Self::V {
        for i in 0..4 {
            // SAFETY: the token proves NEON.
            a[i] = unsafe { vaddq_f32(a[i], b[i]) };
        }
        a
    }

    #[inline(always)]
    fn mul(self, mut a: Self::V, b: Self::V) -> Self::V {
        for i in 0..4 {
            // SAFETY: the token proves NEON.
            a[i] = unsafe { vmulq_f32(a[i], b[i]) };
        }
        a
    }

    #[inline(always)]
    fn max(self, mut a: Self::V, b: Self::V) -> Self::V {
        for i in 0..4 {
            // SAFETY: the token proves NEON.
            a[i] = unsafe { vbslq_f32(vcgtq_f32(b[i], a[i]), b[i], a[i]) };
        }
        a
    }

    #[inline(always)]
    fn store(self, v: Self::V) -> [f32; 16] {
        let mut out = [0.0; 16];
        for (v, out) in v.into_iter().zip(out.as_chunks_mut::<4>().0) {
            // SAFETY: the token proves NEON; the destination has four f32, and the store needs no more alignment.
            unsafe { vst1q_f32(out.as_mut_ptr(), v) }
        }
        out
    }

    #[inline(always)]
    fn reduce4(self, v: [Self::V; 4]) -> [f32; 4] {
        let mut out = [0.0; 4];
        // SAFETY: the token proves NEON; the destination has four f32, and the store needs no more alignment.
        unsafe {
            // Lanes i and i + 8, then i and i + 4, of each.
            let mut sums = [vdupq_n_f32(0.0); 4];
            for i in 0..4 {
                sums[i] = vaddq_f32(vaddq_f32(v[i][0], v[i][2]), vaddq_f32(v[i][1], v[i][3]));
            }
            // Lanes i and i + 2 of two vectors side by side; then neighbours.
            let pairs = [fold_pair(sums[0], sums[1]), fold_pair(sums[2], sums[3])];
            vst1q_f32(out.as_mut_ptr(), vpaddq_f32(pairs[0], pairs[1]));
        }
        out
    }
}

/// `[a0 + a2, a1 + a3, b0 + b2, b1 + b3]`
#[inline]
#[target_feature(enable = "neon")]
fn fold_pair(a: float32x4_t, b: float32x4_t) -> float32x4_t {
    let (a, b) = (vreinterpretq_f64_f32(a), vreinterpretq_f64_f32(b));
    vaddq_f32(vreinterpretq_f32_f64(vtrn1q_f64(a, b)), vreinterpretq_f32_f64(vtrn2q_f64(a, b)))
}

/// Token: the CPU has NEON.
#[derive(Clone, Copy)]
pub(crate) struct Plain(());

impl Neon<Plain> {
    /// For functions compiled with these target features, which only run where the CPU has them.
    #[inline]
    #[target_feature(enable = "neon")]
    fn new() -> Self {
        Self(Plain(()))
    }
}

impl Dots for Plain {
    type Partial = [int16x8_t; 2];
    const PARTIAL_LIMIT: usize = PAIRS_IN_16_BITS;
    const MIXED: bool = false;

    #[inline(always)]
    fn zero_partial(self) -> Self::Partial {
        // SAFETY: the token proves NEON.
        unsafe { [vdupq_n_s16(0); 2] }
    }

    #[inline(always)]
    fn dot(self, acc: int32x4_t, w: uint8x16_t, a: int8x16_t) -> int32x4_t {
        // SAFETY: the token proves NEON.
        unsafe {
            let w = vreinterpretq_s8_u8(w);
            // A pair of products can reach 2 * 128 * 128 = 2^15, so products are widened before they are added.
            let low = vpaddlq_s16(vmull_s8(vget_low_s8(w), vget_low_s8(a)));
            let high = vpaddlq_s16(vmull_high_s8(w, a));
            vaddq_s32(acc, vpaddq_s32(low, high))
        }
    }

    #[inline(always)]
    fn dot_partial(self, sums: Self::Partial, w: uint8x16_t, a: int8x16_t) -> Self::Partial {
        // SAFETY: the token proves NEON.
        unsafe {
            let w = vreinterpretq_s8_u8(w);
            [vmlal_s8(sums[0], vget_low_s8(w), vget_low_s8(a)), vmlal_high_s8(sums[1], w, a)]
        }
    }

    #[inline(always)]
    fn flush(self, acc: int32x4_t, sums: Self::Partial) -> int32x4_t {
        // SAFETY: the token proves NEON.
        unsafe { vpadalq_s16(acc, vpaddq_s16(sums[0], sums[1])) }
    }

    #[inline(always)]
    fn weigh(self, acc: int32x4_t, c: uint8x16_t, v: uint8x16_t) -> int32x4_t {
        // SAFETY: the token proves NEON.
        unsafe {
            let low = vpaddlq_u16(vmull_u8(vget_low_u8(c), vget_low_u8(v)));
            let high = vpaddlq_u16(vmull_high_u8(c, v));
            vaddq_s32(acc, vreinterpretq_s32_u32(vpaddq_u32(low, high)))
        }
    }
}

kernel_table! {
    /// Kernels for NEON.
    pub(crate) static NEON = ["neon"], token: Neon<Plain>, float: (2, 2), int: (2, 1, 1), wide_tiles: false
}
