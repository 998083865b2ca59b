//! The traits of [`crate::simd`] in plain Rust, for every CPU.

use crate::block::PANEL;
use crate::half::f16_to_f32;
use crate::lanes::LANES;
use crate::simd::{CodeSimd, FloatSimd, IntSimd};
use squat_quant::math::mul_add;

/// Token of the portable implementations: needs no instructions beyond the compiler's baseline.
#[derive(Clone, Copy)]
pub(crate) struct Portable;

impl Portable {
    pub(crate) fn new() -> Self {
        Self
    }
}

impl IntSimd for Portable {
    type V = [i32; PANEL];
    type Partial = Self::V;

    #[inline(always)]
    fn zero(self) -> Self::V {
        [0; PANEL]
    }

    #[inline(always)]
    fn zero_partial(self) -> Self::Partial {
        IntSimd::zero(self)
    }

    #[inline(always)]
    fn load(self, block: &[u8; 64]) -> Self::V {
        let (quads, _) = block.as_chunks::<4>();
        core::array::from_fn(|c| i32::from_le_bytes(quads[c]))
    }

    #[inline(always)]
    fn unpack4(self, v: Self::V) -> [Self::V; 2] {
        [0, 4].map(|shift| v.map(|word| (word >> shift) & 0x0f0f_0f0f))
    }

    #[inline(always)]
    fn unpack2(self, v: Self::V) -> [Self::V; 4] {
        [0, 2, 4, 6].map(|shift| v.map(|word| (word >> shift) & 0x0303_0303))
    }

    #[inline(always)]
    fn unpack3(self, v: Self::V) -> [Self::V; 2] {
        [0, 3].map(|shift| v.map(|word| (word >> shift) & 0x0707_0707))
    }

    #[inline(always)]
    fn unpack3_high(self, mut a: Self::V, mut b: Self::V, c: Self::V) -> [Self::V; 2] {
        for lane in 0..PANEL {
            a[lane] = (a[lane] >> 6) & 0x0303_0303 | (c[lane] >> 4) & 0x0404_0404;
            b[lane] = (b[lane] >> 6) & 0x0303_0303 | (c[lane] >> 5) & 0x0404_0404;
        }
        [a, b]
    }

    #[inline(always)]
    fn dot4<const NP: usize>(self, acc: &mut [Self::V; NP], w: &[Self::V; NP], a: &[i8; 4]) {
        for (acc, w) in acc.iter_mut().zip(w) {
            for (i, &a) in a.iter().enumerate() {
                for c in 0..PANEL {
                    acc[c] += ((w[c] >> (8 * i)) & 0xff) * i32::from(a);
                }
            }
        }
    }

    #[inline(always)]
    fn dot4_partial<const NP: usize>(self, sums: &mut [Self::Partial; NP], w: &[Self::V; NP], a: &[i8; 4]) {
        self.dot4(sums, w, a);
    }

    #[inline(always)]
    fn add(self, mut a: Self::V, b: Self::V) -> Self::V {
        for c in 0..PANEL {
            a[c] = a[c].wrapping_add(b[c]);
        }
        a
    }

    #[inline(always)]
    fn flush<const NP: usize>(self, acc: &mut [Self::V; NP], sums: &[Self::Partial; NP]) {
        for (acc, sums) in acc.iter_mut().zip(sums) {
            for c in 0..PANEL {
                acc[c] += sums[c];
            }
        }
    }

    #[inline(always)]
    fn store(self, v: Self::V) -> [i32; PANEL] {
        v
    }
}

impl CodeSimd for Portable {}

impl FloatSimd for Portable {
    type V = [f32; LANES];
    #[inline(always)]
    fn zero(self) -> Self::V {
        [0.0; LANES]
    }
    #[inline(always)]
    fn load(self, x: &[f32; LANES]) -> Self::V {
        *x
    }
    #[inline(always)]
    fn load_f16(self, x: &[u16; LANES]) -> Self::V {
        x.map(f16_to_f32)
    }
    #[inline(always)]
    fn splat(self, x: f32) -> Self::V {
        [x; LANES]
    }
    #[inline(always)]
    fn mul_add(self, mut acc: Self::V, a: Self::V, b: Self::V) -> Self::V {
        for l in 0..LANES {
            acc[l] = mul_add(a[l], b[l], acc[l]);
        }
        acc
    }
    #[inline(always)]
    fn store(self, v: Self::V) -> [f32; LANES] {
        v
    }
}
