//! AVX-512 with VNNI: a panel is one 512-bit vector, `vpdpbusd` adds four products in 32 bits without saturation.

use super::word;
use crate::arch::table::kernel_table;
use crate::attention::{CodeSimd, Primitives, StoredRows, dots, weigh};
use crate::float::FloatSimd;
use crate::matrix::PANEL;
use crate::product::IntSimd;
use core::arch::x86_64::*;

/// Token: the CPU has AVX-512 F, BW, VL, DQ and VNNI.
#[derive(Clone, Copy)]
pub(crate) struct Avx512(());

impl Avx512 {
    /// For functions compiled with these target features, which only run where the CPU has them.
    #[inline]
    #[target_feature(enable = "avx2,f16c,avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
    fn new() -> Self {
        Self(())
    }
}

/// `(v >> SHIFT) & mask` of bytes.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn field<const SHIFT: u32>(v: __m512i, mask: i8) -> __m512i {
    _mm512_and_si512(_mm512_srli_epi16::<SHIFT>(v), _mm512_set1_epi8(mask))
}

impl IntSimd for Avx512 {
    type V = __m512i;

    #[inline(always)]
    fn zero(self) -> Self::V {
        // SAFETY: the token proves AVX-512.
        unsafe { _mm512_setzero_si512() }
    }

    #[inline(always)]
    fn load(self, block: &[u8; 64]) -> Self::V {
        // SAFETY: the token proves AVX-512; the load is as long as the array and needs no alignment.
        unsafe { _mm512_loadu_si512(block.as_ptr().cast()) }
    }

    #[inline(always)]
    fn nibbles(self, v: Self::V) -> [Self::V; 2] {
        // SAFETY: the token proves AVX-512.
        unsafe { [field::<0>(v, 15), field::<4>(v, 15)] }
    }

    #[inline(always)]
    fn crumbs(self, v: Self::V) -> [Self::V; 4] {
        // SAFETY: the token proves AVX-512.
        unsafe { [field::<0>(v, 3), field::<2>(v, 3), field::<4>(v, 3), field::<6>(v, 3)] }
    }

    #[inline(always)]
    fn dot4<const NP: usize>(self, acc: &mut [Self::V; NP], w: &[Self::V; NP], a: &[i8; 4]) {
        // SAFETY: the token proves AVX-512 and VNNI.
        unsafe {
            let a = _mm512_set1_epi32(word(a));
            for p in 0..NP {
                acc[p] = _mm512_dpbusd_epi32(acc[p], w[p], a);
            }
        }
    }

    #[inline(always)]
    fn store(self, v: Self::V) -> [i32; PANEL] {
        let mut out = [0; PANEL];
        // SAFETY: the token proves AVX-512; the store is as long as the array and needs no alignment.
        unsafe { _mm512_storeu_si512(out.as_mut_ptr().cast(), v) }
        out
    }
}

impl CodeSimd for Avx512 {
    #[inline(always)]
    fn load_codes(self, codes: &[i8; 64]) -> Self::V {
        // SAFETY: the token proves AVX-512; the load is as long as the array and needs no alignment.
        unsafe { _mm512_loadu_si512(codes.as_ptr().cast()) }
    }

    #[inline(always)]
    fn load_halves(self, bytes: &[u8; 32]) -> Self::V {
        // SAFETY: the token proves AVX-512 and AVX2; the load is as long as the array and needs no alignment.
        unsafe {
            let v = _mm256_loadu_si256(bytes.as_ptr().cast());
            let high = _mm256_srli_epi16::<4>(v);
            let both = _mm512_inserti64x4::<1>(_mm512_castsi256_si512(v), high);
            _mm512_and_si512(both, _mm512_set1_epi8(15))
        }
    }

    #[inline(always)]
    fn splat(self, quad: &[i8; 4]) -> Self::V {
        // SAFETY: the token proves AVX-512.
        unsafe { _mm512_set1_epi32(word(quad)) }
    }

    #[inline(always)]
    fn flip(self, v: Self::V) -> Self::V {
        // SAFETY: the token proves AVX-512.
        unsafe { _mm512_xor_si512(v, _mm512_set1_epi8(-128)) }
    }

    #[inline(always)]
    fn dot(self, acc: Self::V, u: Self::V, s: Self::V) -> Self::V {
        // SAFETY: the token proves AVX-512 and VNNI.
        unsafe { _mm512_dpbusd_epi32(acc, u, s) }
    }

    #[inline(always)]
    fn dot_small(self, acc: Self::V, u: Self::V, s: Self::V) -> Self::V {
        self.dot(acc, u, s)
    }

    #[inline(always)]
    fn interleave(self, [a, b, c, d]: [Self::V; 4]) -> [Self::V; 4] {
        // SAFETY: the token proves AVX-512 with BW.
        unsafe {
            let (ab, cd) = (_mm512_unpacklo_epi8(a, b), _mm512_unpacklo_epi8(c, d));
            let (ab_high, cd_high) = (_mm512_unpackhi_epi8(a, b), _mm512_unpackhi_epi8(c, d));
            [
                _mm512_unpacklo_epi16(ab, cd),
                _mm512_unpackhi_epi16(ab, cd),
                _mm512_unpacklo_epi16(ab_high, cd_high),
                _mm512_unpackhi_epi16(ab_high, cd_high),
            ]
        }
    }

    #[inline(always)]
    fn reduce(self, [a, b, c, d]: [Self::V; 4]) -> [i32; 4] {
        let mut out = [0; 4];
        // SAFETY: the token proves AVX-512; the destination has four i32, and the store needs no alignment.
        unsafe {
            let ab = _mm512_add_epi32(_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b));
            let cd = _mm512_add_epi32(_mm512_unpacklo_epi32(c, d), _mm512_unpackhi_epi32(c, d));
            let sums = _mm512_add_epi32(_mm512_unpacklo_epi64(ab, cd), _mm512_unpackhi_epi64(ab, cd));
            let sums = _mm256_add_epi32(_mm512_castsi512_si256(sums), _mm512_extracti64x4_epi64::<1>(sums));
            let sums = _mm_add_epi32(_mm256_castsi256_si128(sums), _mm256_extracti128_si256::<1>(sums));
            _mm_storeu_si128(out.as_mut_ptr().cast(), sums);
        }
        out
    }
}

impl FloatSimd for Avx512 {
    type V = __m512;

    #[inline(always)]
    fn zero(self) -> Self::V {
        // SAFETY: the token proves AVX-512.
        unsafe { _mm512_setzero_ps() }
    }

    #[inline(always)]
    fn load(self, x: &[f32; 16]) -> Self::V {
        // SAFETY: the token proves AVX-512; the load is as long as the array and needs no alignment.
        unsafe { _mm512_loadu_ps(x.as_ptr()) }
    }

    #[inline(always)]
    fn load_f16(self, x: &[u16; 16]) -> Self::V {
        // SAFETY: the token proves AVX-512; the load is as long as the array and needs no alignment.
        unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(x.as_ptr().cast())) }
    }

    #[inline(always)]
    fn splat(self, x: f32) -> Self::V {
        // SAFETY: the token proves AVX-512.
        unsafe { _mm512_set1_ps(x) }
    }

    #[inline(always)]
    fn multiply_add(self, acc: Self::V, a: Self::V, b: Self::V) -> Self::V {
        // SAFETY: the token proves AVX-512.
        unsafe { _mm512_add_ps(acc, _mm512_mul_ps(a, b)) }
    }

    #[inline(always)]
    fn store(self, v: Self::V) -> [f32; 16] {
        let mut out = [0.0; 16];
        // SAFETY: the token proves AVX-512; the store is as long as the array and needs no alignment.
        unsafe { _mm512_storeu_ps(out.as_mut_ptr(), v) }
        out
    }

    #[inline(always)]
    fn fold4(self, v: [Self::V; 4]) -> [f32; 4] {
        let mut out = [0.0; 4];
        // SAFETY: the token proves AVX-512; the destination has four f32, and the store needs no alignment.
        unsafe {
            // Lanes i and i + 8 of two vectors, side by side; then i and i + 4 of four.
            let ab = _mm512_add_ps(
                _mm512_shuffle_f32x4::<0b0100_0100>(v[0], v[1]),
                _mm512_shuffle_f32x4::<0b1110_1110>(v[0], v[1]),
            );
            let cd = _mm512_add_ps(
                _mm512_shuffle_f32x4::<0b0100_0100>(v[2], v[3]),
                _mm512_shuffle_f32x4::<0b1110_1110>(v[2], v[3]),
            );
            let abcd = _mm512_add_ps(
                _mm512_shuffle_f32x4::<0b1000_1000>(ab, cd),
                _mm512_shuffle_f32x4::<0b1101_1101>(ab, cd),
            );
            // Within 128 bits: i and i + 2, then i and i + 1; the sums end in every fourth lane.
            let pairs = _mm512_add_ps(abcd, _mm512_permute_ps::<0b0100_1110>(abcd));
            let sums = _mm512_add_ps(pairs, _mm512_permute_ps::<0b1011_0001>(pairs));
            let sums = _mm512_maskz_compress_ps(0b0001_0001_0001_0001, sums);
            _mm_storeu_ps(out.as_mut_ptr(), _mm512_castps512_ps128(sums));
        }
        out
    }
}

#[target_feature(enable = "avx2,f16c,avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
fn dots_narrow(q: &[i8], q_sum: i32, rows: StoredRows<'_>, out: &mut [i32]) {
    dots::<_, true>(Avx512::new(), q, q_sum, rows, out);
}

#[target_feature(enable = "avx2,f16c,avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
fn dots_wide(q: &[i8], q_sum: i32, rows: StoredRows<'_>, out: &mut [i32]) {
    dots::<_, false>(Avx512::new(), q, q_sum, rows, out);
}

#[target_feature(enable = "avx2,f16c,avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
fn weigh_narrow(codes: &[u8], rows: StoredRows<'_>, out: &mut [i32]) {
    weigh::<_, true>(Avx512::new(), codes, rows, out);
}

#[target_feature(enable = "avx2,f16c,avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
fn weigh_wide(codes: &[u8], rows: StoredRows<'_>, out: &mut [i32]) {
    weigh::<_, false>(Avx512::new(), codes, rows, out);
}

/// Reached only through [`AVX512VNNI`].
static PRIMITIVES: Primitives = Primitives {
    dots: [
        // SAFETY: the table is handed out only where the CPU has these features.
        |q, q_sum, rows, out| unsafe { dots_narrow(q, q_sum, rows, out) },
        // SAFETY: as above.
        |q, q_sum, rows, out| unsafe { dots_wide(q, q_sum, rows, out) },
    ],
    weigh: [
        // SAFETY: as above.
        |codes, rows, out| unsafe { weigh_narrow(codes, rows, out) },
        // SAFETY: as above.
        |codes, rows, out| unsafe { weigh_wide(codes, rows, out) },
    ],
};

kernel_table! {
    /// Kernels for AVX-512 with VNNI.
    pub(crate) static AVX512VNNI = ["avx2,f16c,avx512f,avx512bw,avx512vl,avx512dq,avx512vnni"], token: Avx512::new(),
    float: (4, 4), int: (8, 3, 4), attention: PRIMITIVES
}
