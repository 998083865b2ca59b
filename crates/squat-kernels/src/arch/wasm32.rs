//! WebAssembly with `simd128`, a choice at compile time: 128-bit vectors, four to a panel. Bytes are split into even and
//! odd ones, widened, and multiplied by the dot product of 16-bit pairs.

use super::table::kernel_table;
use crate::block::PANEL;
use crate::half::f16_to_f32;
use crate::simd::{CodeSimd, FloatSimd, IntSimd};
use core::arch::wasm32::*;

/// Token: the module is compiled with `simd128`.
#[derive(Clone, Copy)]
pub(crate) struct Simd128;

impl Simd128 {
    fn new() -> Self {
        Self
    }
}

/// 16 bytes from `at` on.
#[inline(always)]
fn load16(bytes: &[u8; 64], at: usize) -> v128 {
    let mut lanes = [0; 16];
    lanes.copy_from_slice(&bytes[at..at + 16]);
    // A constructor instead of a load through a pointer: no `unsafe`, and it compiles to one load.
    let (words, _) = lanes.as_chunks::<8>();
    u64x2(u64::from_le_bytes(words[0]), u64::from_le_bytes(words[1]))
}

/// `acc + u . s` in quads: u unsigned bytes, s even and odd signed bytes, already widened.
#[inline(always)]
fn quads(acc: v128, u: v128, s: [v128; 2]) -> v128 {
    let even = v128_and(u, u16x8_splat(0xff));
    let odd = u16x8_shr(u, 8);
    i32x4_add(acc, i32x4_add(i32x4_dot_i16x8(even, s[0]), i32x4_dot_i16x8(odd, s[1])))
}

/// Even and odd signed bytes, widened.
#[inline(always)]
fn widen_signed(s: v128) -> [v128; 2] {
    [i16x8_shr(i16x8_shl(s, 8), 8), i16x8_shr(s, 8)]
}

impl IntSimd for Simd128 {
    type V = [v128; 4];
    type Partial = [v128; 4];

    #[inline(always)]
    fn zero(self) -> Self::V {
        [i32x4_splat(0); 4]
    }

    #[inline(always)]
    fn zero_partial(self) -> Self::Partial {
        IntSimd::zero(self)
    }

    #[inline(always)]
    fn load(self, block: &[u8; 64]) -> Self::V {
        [load16(block, 0), load16(block, 16), load16(block, 32), load16(block, 48)]
    }

    #[inline(always)]
    fn unpack4(self, v: Self::V) -> [Self::V; 2] {
        let mut parts = [v; 2];
        for i in 0..4 {
            parts[0][i] = v128_and(v[i], u8x16_splat(15));
            parts[1][i] = u8x16_shr(v[i], 4);
        }
        parts
    }

    #[inline(always)]
    fn unpack2(self, v: Self::V) -> [Self::V; 4] {
        let mut parts = [v; 4];
        for (field, part) in parts.iter_mut().enumerate() {
            for i in 0..4 {
                part[i] = v128_and(u8x16_shr(v[i], 2 * field as u32), u8x16_splat(3));
            }
        }
        parts
    }

    #[inline(always)]
    fn unpack3(self, v: Self::V) -> [Self::V; 2] {
        let mut parts = [v; 2];
        for i in 0..4 {
            parts[0][i] = v128_and(v[i], u8x16_splat(7));
            parts[1][i] = v128_and(u8x16_shr(v[i], 3), u8x16_splat(7));
        }
        parts
    }

    #[inline(always)]
    fn unpack3_high(self, mut a: Self::V, mut b: Self::V, c: Self::V) -> [Self::V; 2] {
        for i in 0..4 {
            a[i] = v128_or(u8x16_shr(a[i], 6), v128_and(u8x16_shr(c[i], 4), u8x16_splat(4)));
            b[i] = v128_or(u8x16_shr(b[i], 6), v128_and(u8x16_shr(c[i], 5), u8x16_splat(4)));
        }
        [a, b]
    }

    #[inline(always)]
    fn dot4<const NP: usize>(self, acc: &mut [Self::V; NP], w: &[Self::V; NP], a: &[i8; 4]) {
        let a = widen_signed(i32x4_splat(i32::from_le_bytes(a.map(|code| code as u8))));
        for p in 0..NP {
            for i in 0..4 {
                acc[p][i] = quads(acc[p][i], w[p][i], a);
            }
        }
    }

    #[inline(always)]
    fn dot4_partial<const NP: usize>(self, sums: &mut [Self::Partial; NP], w: &[Self::V; NP], a: &[i8; 4]) {
        self.dot4(sums, w, a);
    }

    #[inline(always)]
    fn add(self, mut a: Self::V, b: Self::V) -> Self::V {
        for i in 0..4 {
            a[i] = i32x4_add(a[i], b[i]);
        }
        a
    }

    #[inline(always)]
    fn flush<const NP: usize>(self, acc: &mut [Self::V; NP], sums: &[Self::Partial; NP]) {
        for p in 0..NP {
            for i in 0..4 {
                acc[p][i] = i32x4_add(acc[p][i], sums[p][i]);
            }
        }
    }

    #[inline(always)]
    fn store(self, v: Self::V) -> [i32; PANEL] {
        let mut out = [0; PANEL];
        for (v, out) in v.into_iter().zip(out.as_chunks_mut::<4>().0) {
            *out = [
                i32x4_extract_lane::<0>(v),
                i32x4_extract_lane::<1>(v),
                i32x4_extract_lane::<2>(v),
                i32x4_extract_lane::<3>(v),
            ];
        }
        out
    }
}

impl CodeSimd for Simd128 {
    #[inline(always)]
    fn weigh4<const NP: usize>(self, acc: &mut [Self::V; NP], v: &[Self::V; NP], c: &[u8; 4]) {
        let c = u32x4_splat(u32::from_le_bytes(*c));
        for p in 0..NP {
            for i in 0..4 {
                acc[p][i] = quads(acc[p][i], c, widen_signed(v[p][i]));
            }
        }
    }
}

/// [`squat_quant::math::mul_add`] of two lanes, given in the low halves.
#[inline(always)]
fn fused_low(a: v128, b: v128, c: v128) -> v128 {
    let product = f64x2_mul(f64x2_promote_low_f32x4(a), f64x2_promote_low_f32x4(b));
    let c = f64x2_promote_low_f32x4(c);
    let sum = f64x2_add(product, c);
    let shifted = f64x2_sub(sum, product);
    let lost = f64x2_add(f64x2_sub(product, f64x2_sub(sum, shifted)), f64x2_sub(c, shifted));
    let zero = f64x2_splat(0.0);
    let even = i64x2_eq(v128_and(sum, i64x2_splat(1)), i64x2_splat(0));
    let finite = f64x2_lt(f64x2_abs(sum), f64x2_splat(f64::INFINITY));
    let inexact = v128_and(v128_and(f64x2_ne(lost, zero), finite), even);
    let away = i64x2_eq(f64x2_gt(lost, zero), f64x2_gt(sum, zero));
    let step = v128_bitselect(i64x2_splat(1), i64x2_splat(-1), away);
    f32x4_demote_f64x2_zero(i64x2_add(sum, v128_and(step, inexact)))
}

/// `a * b + c`, rounded once.
#[inline(always)]
fn fused(a: v128, b: v128, c: v128) -> v128 {
    let high = |v: v128| i64x2_shuffle::<1, 1>(v, v);
    i64x2_shuffle::<0, 2>(fused_low(a, b, c), fused_low(high(a), high(b), high(c)))
}

impl FloatSimd for Simd128 {
    type V = [v128; 4];

    #[inline(always)]
    fn zero(self) -> Self::V {
        [f32x4_splat(0.0); 4]
    }

    #[inline(always)]
    fn load(self, x: &[f32; 16]) -> Self::V {
        let (quarters, _) = x.as_chunks::<4>();
        let mut v = FloatSimd::zero(self);
        for i in 0..4 {
            let [a, b, c, d] = quarters[i];
            v[i] = f32x4(a, b, c, d);
        }
        v
    }

    #[inline(always)]
    fn load_f16(self, x: &[u16; 16]) -> Self::V {
        FloatSimd::load(self, &x.map(f16_to_f32))
    }

    #[inline(always)]
    fn splat(self, x: f32) -> Self::V {
        [f32x4_splat(x); 4]
    }

    #[inline(always)]
    fn mul_add(self, mut acc: Self::V, a: Self::V, b: Self::V) -> Self::V {
        for i in 0..4 {
            acc[i] = fused(a[i], b[i], acc[i]);
        }
        acc
    }

    #[inline(always)]
    fn add(self, mut a: Self::V, b: Self::V) -> Self::V {
        for i in 0..4 {
            a[i] = f32x4_add(a[i], b[i]);
        }
        a
    }

    #[inline(always)]
    fn mul(self, mut a: Self::V, b: Self::V) -> Self::V {
        for i in 0..4 {
            a[i] = f32x4_mul(a[i], b[i]);
        }
        a
    }

    #[inline(always)]
    fn max(self, mut a: Self::V, b: Self::V) -> Self::V {
        for i in 0..4 {
            // b where a < b, else a.
            a[i] = f32x4_pmax(a[i], b[i]);
        }
        a
    }

    #[inline(always)]
    fn store(self, v: Self::V) -> [f32; 16] {
        let mut out = [0.0; 16];
        for (v, out) in v.into_iter().zip(out.as_chunks_mut::<4>().0) {
            *out = [
                f32x4_extract_lane::<0>(v),
                f32x4_extract_lane::<1>(v),
                f32x4_extract_lane::<2>(v),
                f32x4_extract_lane::<3>(v),
            ];
        }
        out
    }
}

kernel_table! {
    /// Kernels for WebAssembly with `simd128`.
    pub(crate) static SIMD128 = ["simd128"], token: Simd128, float: (2, 2), int: (2, 1, 1), wide_tiles: false
}
