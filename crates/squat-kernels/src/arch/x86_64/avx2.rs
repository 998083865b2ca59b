//! AVX2 and F16C: 256-bit vectors, two to a panel; products widen through 16 bits.
//!
//! `vpmaddubsw` adds pairs of u8 * s8 products in 16 bits and saturates, so it serves operands up to 15 only
//! (2 * 15 * 128 = 3840); full bytes are split into even and odd ones, widened, and go through `vpmaddwd`.

use super::word;
use crate::arch::table::kernel_table;
use crate::attention::{CodeSimd, Primitives, StoredRows, dots, weigh};
use crate::float::FloatSimd;
use crate::matrix::PANEL;
use crate::product::IntSimd;
use core::arch::x86_64::*;

/// Token: the CPU has AVX2 and F16C.
#[derive(Clone, Copy)]
pub(crate) struct Avx2(());

impl Avx2 {
    /// For functions compiled with these target features, which only run where the CPU has them.
    #[inline]
    #[target_feature(enable = "avx2,f16c")]
    fn new() -> Self {
        Self(())
    }
}

/// `acc + u . s` in quads, for u or s at most 15 everywhere.
#[inline]
#[target_feature(enable = "avx2")]
fn quads_small(acc: __m256i, u: __m256i, s: __m256i) -> __m256i {
    _mm256_add_epi32(acc, _mm256_madd_epi16(_mm256_maddubs_epi16(u, s), _mm256_set1_epi16(1)))
}

/// Even and odd signed bytes, widened.
#[inline]
#[target_feature(enable = "avx2")]
fn widen_signed(s: __m256i) -> [__m256i; 2] {
    [_mm256_srai_epi16::<8>(_mm256_slli_epi16::<8>(s)), _mm256_srai_epi16::<8>(s)]
}

/// `acc + u . s` in quads, for any bytes; s is widened already.
#[inline]
#[target_feature(enable = "avx2")]
fn quads(acc: __m256i, u: __m256i, s: [__m256i; 2]) -> __m256i {
    let even = _mm256_and_si256(u, _mm256_set1_epi16(0xff));
    let odd = _mm256_srli_epi16::<8>(u);
    let sum = _mm256_add_epi32(_mm256_madd_epi16(even, s[0]), _mm256_madd_epi16(odd, s[1]));
    _mm256_add_epi32(acc, sum)
}

/// `(v >> SHIFT) & mask` of bytes.
#[inline]
#[target_feature(enable = "avx2")]
fn field<const SHIFT: i32>(v: __m256i, mask: i8) -> __m256i {
    _mm256_and_si256(_mm256_srli_epi16::<SHIFT>(v), _mm256_set1_epi8(mask))
}

/// Four codes in every lane.
#[inline]
#[target_feature(enable = "avx2")]
fn splat(quad: &[i8; 4]) -> __m256i {
    _mm256_set1_epi32(word(quad))
}

impl IntSimd for Avx2 {
    type V = [__m256i; 2];

    #[inline(always)]
    fn zero(self) -> Self::V {
        // SAFETY: the token proves AVX2.
        unsafe { [_mm256_setzero_si256(); 2] }
    }

    #[inline(always)]
    fn load(self, block: &[u8; 64]) -> Self::V {
        // SAFETY: the token proves AVX2; both halves lie inside the array, and the loads need no alignment.
        unsafe {
            [_mm256_loadu_si256(block.as_ptr().cast()), _mm256_loadu_si256(block.as_ptr().add(32).cast())]
        }
    }

    #[inline(always)]
    fn nibbles(self, v: Self::V) -> [Self::V; 2] {
        // SAFETY: the token proves AVX2.
        unsafe {
            [[field::<0>(v[0], 15), field::<0>(v[1], 15)], [field::<4>(v[0], 15), field::<4>(v[1], 15)]]
        }
    }

    #[inline(always)]
    fn crumbs(self, v: Self::V) -> [Self::V; 4] {
        // SAFETY: the token proves AVX2.
        unsafe {
            [
                [field::<0>(v[0], 3), field::<0>(v[1], 3)],
                [field::<2>(v[0], 3), field::<2>(v[1], 3)],
                [field::<4>(v[0], 3), field::<4>(v[1], 3)],
                [field::<6>(v[0], 3), field::<6>(v[1], 3)],
            ]
        }
    }

    #[inline(always)]
    fn dot4<const NP: usize>(self, acc: &mut [Self::V; NP], w: &[Self::V; NP], a: &[i8; 4]) {
        // SAFETY: the token proves AVX2.
        unsafe {
            let a = widen_signed(splat(a));
            for p in 0..NP {
                for i in 0..2 {
                    acc[p][i] = quads(acc[p][i], w[p][i], a);
                }
            }
        }
    }

    #[inline(always)]
    fn dot8_small<const NP: usize>(
        self,
        acc: &mut [Self::V; NP],
        low: &[Self::V; NP],
        high: &[Self::V; NP],
        a: &[i8; 4],
        b: &[i8; 4],
    ) {
        // SAFETY: the token proves AVX2.
        unsafe {
            let (a, b) = (splat(a), splat(b));
            let ones = _mm256_set1_epi16(1);
            for p in 0..NP {
                for i in 0..2 {
                    // Four products of at most 15 * 128 in 16 bits.
                    let pairs = _mm256_add_epi16(
                        _mm256_maddubs_epi16(low[p][i], a),
                        _mm256_maddubs_epi16(high[p][i], b),
                    );
                    acc[p][i] = _mm256_add_epi32(acc[p][i], _mm256_madd_epi16(pairs, ones));
                }
            }
        }
    }

    #[inline(always)]
    fn store(self, v: Self::V) -> [i32; PANEL] {
        let mut out = [0; PANEL];
        for (half, out) in v.into_iter().zip(out.as_chunks_mut::<8>().0) {
            // SAFETY: the token proves AVX2; the destination has eight i32, and the store needs no alignment.
            unsafe { _mm256_storeu_si256(out.as_mut_ptr().cast(), half) }
        }
        out
    }
}

impl CodeSimd for Avx2 {
    #[inline(always)]
    fn load_codes(self, codes: &[i8; 64]) -> Self::V {
        // SAFETY: the token proves AVX2; both halves lie inside the array, and the loads need no alignment.
        unsafe {
            [_mm256_loadu_si256(codes.as_ptr().cast()), _mm256_loadu_si256(codes.as_ptr().add(32).cast())]
        }
    }

    #[inline(always)]
    fn load_halves(self, bytes: &[u8; 32]) -> Self::V {
        // SAFETY: the token proves AVX2; the load is as long as the array and needs no alignment.
        unsafe {
            let v = _mm256_loadu_si256(bytes.as_ptr().cast());
            [field::<0>(v, 15), field::<4>(v, 15)]
        }
    }

    #[inline(always)]
    fn splat(self, quad: &[i8; 4]) -> Self::V {
        // SAFETY: the token proves AVX2.
        unsafe { [splat(quad); 2] }
    }

    #[inline(always)]
    fn flip(self, v: Self::V) -> Self::V {
        // SAFETY: the token proves AVX2.
        unsafe {
            let top = _mm256_set1_epi8(-128);
            [_mm256_xor_si256(v[0], top), _mm256_xor_si256(v[1], top)]
        }
    }

    #[inline(always)]
    fn dot(self, acc: Self::V, u: Self::V, s: Self::V) -> Self::V {
        // SAFETY: the token proves AVX2.
        unsafe { [quads(acc[0], u[0], widen_signed(s[0])), quads(acc[1], u[1], widen_signed(s[1]))] }
    }

    #[inline(always)]
    fn dot_small(self, acc: Self::V, u: Self::V, s: Self::V) -> Self::V {
        // SAFETY: the token proves AVX2.
        unsafe { [quads_small(acc[0], u[0], s[0]), quads_small(acc[1], u[1], s[1])] }
    }

    #[inline(always)]
    fn interleave(self, [a, b, c, d]: [Self::V; 4]) -> [Self::V; 4] {
        let mut out = [[a[0]; 2]; 4];
        for i in 0..2 {
            // SAFETY: the token proves AVX2.
            unsafe {
                let (ab, cd) = (_mm256_unpacklo_epi8(a[i], b[i]), _mm256_unpacklo_epi8(c[i], d[i]));
                out[0][i] = _mm256_unpacklo_epi16(ab, cd);
                out[1][i] = _mm256_unpackhi_epi16(ab, cd);
                let (ab, cd) = (_mm256_unpackhi_epi8(a[i], b[i]), _mm256_unpackhi_epi8(c[i], d[i]));
                out[2][i] = _mm256_unpacklo_epi16(ab, cd);
                out[3][i] = _mm256_unpackhi_epi16(ab, cd);
            }
        }
        out
    }

    #[inline(always)]
    fn reduce(self, acc: [Self::V; 4]) -> [i32; 4] {
        let mut out = [0; 4];
        // SAFETY: the token proves AVX2; the destination has four i32, and the store needs no alignment.
        unsafe {
            let a = _mm256_add_epi32(acc[0][0], acc[0][1]);
            let b = _mm256_add_epi32(acc[1][0], acc[1][1]);
            let c = _mm256_add_epi32(acc[2][0], acc[2][1]);
            let d = _mm256_add_epi32(acc[3][0], acc[3][1]);
            let ab = _mm256_add_epi32(_mm256_unpacklo_epi32(a, b), _mm256_unpackhi_epi32(a, b));
            let cd = _mm256_add_epi32(_mm256_unpacklo_epi32(c, d), _mm256_unpackhi_epi32(c, d));
            let sums = _mm256_add_epi32(_mm256_unpacklo_epi64(ab, cd), _mm256_unpackhi_epi64(ab, cd));
            let sums = _mm_add_epi32(_mm256_castsi256_si128(sums), _mm256_extracti128_si256::<1>(sums));
            _mm_storeu_si128(out.as_mut_ptr().cast(), sums);
        }
        out
    }
}

impl FloatSimd for Avx2 {
    type V = [__m256; 2];

    #[inline(always)]
    fn zero(self) -> Self::V {
        // SAFETY: the token proves AVX2.
        unsafe { [_mm256_setzero_ps(); 2] }
    }

    #[inline(always)]
    fn load(self, x: &[f32; 16]) -> Self::V {
        // SAFETY: the token proves AVX2; both halves lie inside the array, and the loads need no alignment.
        unsafe { [_mm256_loadu_ps(x.as_ptr()), _mm256_loadu_ps(x.as_ptr().add(8))] }
    }

    #[inline(always)]
    fn load_f16(self, x: &[u16; 16]) -> Self::V {
        // SAFETY: the token proves AVX2 and F16C; both halves lie inside the array, and the loads need no alignment.
        unsafe {
            [
                _mm256_cvtph_ps(_mm_loadu_si128(x.as_ptr().cast())),
                _mm256_cvtph_ps(_mm_loadu_si128(x.as_ptr().add(8).cast())),
            ]
        }
    }

    #[inline(always)]
    fn splat(self, x: f32) -> Self::V {
        // SAFETY: the token proves AVX2.
        unsafe { [_mm256_set1_ps(x); 2] }
    }

    #[inline(always)]
    fn multiply_add(self, acc: Self::V, a: Self::V, b: Self::V) -> Self::V {
        // SAFETY: the token proves AVX2.
        unsafe {
            [
                _mm256_add_ps(acc[0], _mm256_mul_ps(a[0], b[0])),
                _mm256_add_ps(acc[1], _mm256_mul_ps(a[1], b[1])),
            ]
        }
    }

    #[inline(always)]
    fn store(self, v: Self::V) -> [f32; 16] {
        let mut out = [0.0; 16];
        // SAFETY: the token proves AVX2; both halves lie inside the array, and the stores need no alignment.
        unsafe {
            _mm256_storeu_ps(out.as_mut_ptr(), v[0]);
            _mm256_storeu_ps(out.as_mut_ptr().add(8), v[1]);
        }
        out
    }

    #[inline(always)]
    fn fold4(self, v: [Self::V; 4]) -> [f32; 4] {
        let mut out = [0.0; 4];
        // SAFETY: the token proves AVX2; the destination has four f32, and the store needs no alignment.
        unsafe {
            // Lanes i and i + 8; then i and i + 4 of two vectors, side by side.
            let a = _mm256_add_ps(v[0][0], v[0][1]);
            let b = _mm256_add_ps(v[1][0], v[1][1]);
            let c = _mm256_add_ps(v[2][0], v[2][1]);
            let d = _mm256_add_ps(v[3][0], v[3][1]);
            let ac =
                _mm256_add_ps(_mm256_permute2f128_ps::<0x20>(a, c), _mm256_permute2f128_ps::<0x31>(a, c));
            let bd =
                _mm256_add_ps(_mm256_permute2f128_ps::<0x20>(b, d), _mm256_permute2f128_ps::<0x31>(b, d));
            // i and i + 2: two sums of a and two of b in the low half, of c and d in the high half; then neighbours.
            let pairs = _mm256_add_ps(
                _mm256_shuffle_ps::<0b0100_0100>(ac, bd),
                _mm256_shuffle_ps::<0b1110_1110>(ac, bd),
            );
            let sums = _mm256_hadd_ps(pairs, pairs);
            let (low, high) = (_mm256_castps256_ps128(sums), _mm256_extractf128_ps::<1>(sums));
            _mm_storeu_ps(out.as_mut_ptr(), _mm_movelh_ps(low, high));
        }
        out
    }
}

#[target_feature(enable = "avx2,f16c")]
fn dots_narrow(q: &[i8], q_sum: i32, rows: StoredRows<'_>, out: &mut [i32]) {
    dots::<_, true>(Avx2::new(), q, q_sum, rows, out);
}

#[target_feature(enable = "avx2,f16c")]
fn dots_wide(q: &[i8], q_sum: i32, rows: StoredRows<'_>, out: &mut [i32]) {
    dots::<_, false>(Avx2::new(), q, q_sum, rows, out);
}

#[target_feature(enable = "avx2,f16c")]
fn weigh_narrow(codes: &[u8], rows: StoredRows<'_>, out: &mut [i32]) {
    weigh::<_, true>(Avx2::new(), codes, rows, out);
}

#[target_feature(enable = "avx2,f16c")]
fn weigh_wide(codes: &[u8], rows: StoredRows<'_>, out: &mut [i32]) {
    weigh::<_, false>(Avx2::new(), codes, rows, out);
}

/// Reached only through [`AVX2`].
static PRIMITIVES: Primitives = Primitives {
    dots: [
        // SAFETY: the table is handed out only where the CPU has AVX2 and F16C.
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
    /// Kernels for AVX2 and F16C.
    pub(crate) static AVX2 = ["avx2,f16c"], token: Avx2::new(), float: (2, 2), int: (4, 1, 2), attention: PRIMITIVES
}
