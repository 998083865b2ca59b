//! AVX2 and F16C: 256-bit vectors, two to a panel; products widen through 16 bits.
//!
//! `vpmaddubsw` adds pairs of u8 * s8 products in 16 bits and saturates, so it is used for weights up to 15 only: a pair
//! is at most 2 * 15 * 128 = 3840, and eight pairs fit before they must be widened. Full bytes are split into even and odd
//! ones, widened, and multiplied by `vpmaddwd`.
//!
//! With AVX-VNNI (`VNNI`, see [`super::avxvnni`]) `vpdpbusd` replaces both.

use super::word;
use crate::arch::table::kernel_table;
use crate::block::{Block, PANEL};
use crate::prefetch::prefetch_line;
use crate::simd::{CodeSimd, FloatSimd, IntSimd, PAIRS_IN_16_BITS, PanelOutputs, RowScale};
use core::arch::x86_64::*;

/// Token: the CPU has AVX2 and F16C, and AVX-VNNI if `VNNI`.
#[derive(Clone, Copy)]
pub(crate) struct Avx2<const VNNI: bool>(pub(super) ());

impl Avx2<false> {
    /// For functions compiled with these target features, which only run where the CPU has them.
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    fn new() -> Self {
        Self(())
    }
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

impl<const VNNI: bool> IntSimd for Avx2<VNNI> {
    type V = [__m256i; 2];
    type Partial = [__m256i; 2];
    const PARTIAL_LIMIT: usize = if VNNI { usize::MAX } else { PAIRS_IN_16_BITS };

    #[inline(always)]
    fn zero(self) -> Self::V {
        // SAFETY: the token proves AVX2.
        unsafe { [_mm256_setzero_si256(); 2] }
    }

    #[inline(always)]
    fn zero_partial(self) -> Self::Partial {
        IntSimd::zero(self)
    }

    #[inline(always)]
    fn load(self, block: &[u8; 64]) -> Self::V {
        // SAFETY: the token proves AVX2; both halves lie inside the array, and the loads need no alignment.
        unsafe {
            [_mm256_loadu_si256(block.as_ptr().cast()), _mm256_loadu_si256(block.as_ptr().add(32).cast())]
        }
    }

    #[inline(always)]
    fn unpack4(self, v: Self::V) -> [Self::V; 2] {
        // SAFETY: the token proves AVX2.
        unsafe {
            [[field::<0>(v[0], 15), field::<0>(v[1], 15)], [field::<4>(v[0], 15), field::<4>(v[1], 15)]]
        }
    }

    #[inline(always)]
    fn unpack2(self, v: Self::V) -> [Self::V; 4] {
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
    fn unpack3(self, v: Self::V) -> [Self::V; 2] {
        // SAFETY: the token proves AVX2.
        unsafe { [[field::<0>(v[0], 7), field::<0>(v[1], 7)], [field::<3>(v[0], 7), field::<3>(v[1], 7)]] }
    }

    #[inline(always)]
    fn unpack3_high(self, mut a: Self::V, mut b: Self::V, c: Self::V) -> [Self::V; 2] {
        for i in 0..2 {
            // SAFETY: the token proves AVX2.
            unsafe {
                a[i] = _mm256_or_si256(field::<6>(a[i], 3), field::<4>(c[i], 4));
                b[i] = _mm256_or_si256(field::<6>(b[i], 3), field::<5>(c[i], 4));
            }
        }
        [a, b]
    }

    #[inline(always)]
    fn dot4<const NP: usize>(self, acc: &mut [Self::V; NP], w: &[Self::V; NP], a: &[i8; 4]) {
        // SAFETY: the token proves AVX2, and AVX-VNNI if `VNNI`.
        unsafe {
            if VNNI {
                let a = splat(a);
                for p in 0..NP {
                    for i in 0..2 {
                        acc[p][i] = _mm256_dpbusd_avx_epi32(acc[p][i], w[p][i], a);
                    }
                }
            } else {
                let a = widen_signed(splat(a));
                for p in 0..NP {
                    for i in 0..2 {
                        acc[p][i] = quads(acc[p][i], w[p][i], a);
                    }
                }
            }
        }
    }

    #[inline(always)]
    fn dot4_partial<const NP: usize>(self, sums: &mut [Self::Partial; NP], w: &[Self::V; NP], a: &[i8; 4]) {
        if VNNI {
            return self.dot4(sums, w, a);
        }
        // SAFETY: the token proves AVX2.
        unsafe {
            let a = splat(a);
            for p in 0..NP {
                for i in 0..2 {
                    sums[p][i] = _mm256_add_epi16(sums[p][i], _mm256_maddubs_epi16(w[p][i], a));
                }
            }
        }
    }

    #[inline(always)]
    fn add(self, a: Self::V, b: Self::V) -> Self::V {
        // SAFETY: the token proves AVX2.
        unsafe { [_mm256_add_epi32(a[0], b[0]), _mm256_add_epi32(a[1], b[1])] }
    }

    #[inline(always)]
    fn scaled(self, v: Self::V, row: RowScale, sums: &[i32; PANEL], scales: &[f32; PANEL]) -> [f32; PANEL] {
        let mut y = [0f32; PANEL];
        // SAFETY: the token proves AVX2; every load and store is half as long as its array and needs no alignment.
        unsafe {
            let (shift, zero) = (_mm256_set1_epi32(row.shift), _mm256_set1_epi32(row.zero));
            let scale = _mm256_set1_ps(row.scale);
            for i in 0..2 {
                let sums = _mm256_loadu_si256(sums.as_ptr().add(8 * i).cast());
                let acc = _mm256_sub_epi32(_mm256_sub_epi32(v[i], shift), _mm256_mullo_epi32(zero, sums));
                let scales = _mm256_loadu_ps(scales.as_ptr().add(8 * i));
                let scaled = _mm256_mul_ps(_mm256_mul_ps(_mm256_cvtepi32_ps(acc), scale), scales);
                _mm256_storeu_ps(y.as_mut_ptr().add(8 * i), scaled);
            }
        }
        y
    }

    #[inline(always)]
    fn add_scaled(self, y: &mut PanelOutputs, v: Self::V, shift: i32, scales: &[f32; PANEL]) {
        // SAFETY: the token proves AVX2; every load and store is half as long as its array, and those of `y` are aligned.
        unsafe {
            for i in 0..2 {
                let sums = _mm256_cvtepi32_ps(_mm256_sub_epi32(v[i], _mm256_set1_epi32(shift)));
                let scaled = _mm256_mul_ps(sums, _mm256_loadu_ps(scales.as_ptr().add(8 * i)));
                let y = y.0.as_mut_ptr().add(8 * i);
                _mm256_store_ps(y, _mm256_add_ps(_mm256_load_ps(y), scaled));
            }
        }
    }

    #[inline(always)]
    fn flush<const NP: usize>(self, acc: &mut [Self::V; NP], sums: &[Self::Partial; NP]) {
        // SAFETY: the token proves AVX2.
        unsafe {
            for p in 0..NP {
                for i in 0..2 {
                    let sums =
                        if VNNI { sums[p][i] } else { _mm256_madd_epi16(sums[p][i], _mm256_set1_epi16(1)) };
                    acc[p][i] = _mm256_add_epi32(acc[p][i], sums);
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

    #[inline(always)]
    fn prefetch_ahead(self, block: &Block, distance: usize) {
        prefetch_line(core::ptr::from_ref(block).wrapping_byte_add(distance));
    }
}

impl<const VNNI: bool> CodeSimd for Avx2<VNNI> {
    #[inline(always)]
    fn weigh4<const NP: usize>(self, acc: &mut [Self::V; NP], v: &[Self::V; NP], c: &[u8; 4]) {
        // SAFETY: the token proves AVX2, and AVX-VNNI if `VNNI`.
        unsafe {
            let c = _mm256_set1_epi32(i32::from_le_bytes(*c));
            for p in 0..NP {
                for i in 0..2 {
                    acc[p][i] = if VNNI {
                        _mm256_dpbusd_avx_epi32(acc[p][i], c, v[p][i])
                    } else {
                        quads(acc[p][i], c, widen_signed(v[p][i]))
                    };
                }
            }
        }
    }

    #[inline(always)]
    fn weigh8_4bit<const NP: usize>(
        self,
        acc: &mut [Self::V; NP],
        low: &[Self::V; NP],
        high: &[Self::V; NP],
        a: &[u8; 4],
        b: &[u8; 4],
    ) {
        if VNNI {
            self.weigh4(acc, low, a);
            return self.weigh4(acc, high, b);
        }
        // SAFETY: the token proves AVX2.
        unsafe {
            let a = _mm256_set1_epi32(i32::from_le_bytes(*a));
            let b = _mm256_set1_epi32(i32::from_le_bytes(*b));
            let ones = _mm256_set1_epi16(1);
            for p in 0..NP {
                for i in 0..2 {
                    // Four products of at most 255 * 15 in 16 bits.
                    let pairs = _mm256_add_epi16(
                        _mm256_maddubs_epi16(a, low[p][i]),
                        _mm256_maddubs_epi16(b, high[p][i]),
                    );
                    acc[p][i] = _mm256_add_epi32(acc[p][i], _mm256_madd_epi16(pairs, ones));
                }
            }
        }
    }

    #[inline(always)]
    fn prefetch(self, block: &Block) {
        prefetch_line(block);
    }
}

/// For each byte and lane: the number of earlier lanes with the same bit.
static RANKS: [[u8; 8]; 256] = {
    let mut ranks = [[0; 8]; 256];
    let mut byte = 0;
    while byte < 256 {
        let (mut counts, mut lane) = ([0, 0], 0);
        while lane < 8 {
            let bit = byte >> lane & 1;
            ranks[byte][lane] = counts[bit];
            counts[bit] += 1;
            lane += 1;
        }
        byte += 1;
    }
    ranks
};

/// Half of [`FloatSimd::merge`].
#[inline(always)]
fn merge_eight<const VNNI: bool>(
    _: Avx2<VNNI>,
    from_b: u8,
    a: Option<&[f32; 8]>,
    b: Option<&[f32; 8]>,
) -> __m256 {
    let (a, b) = (a.unwrap_or(&[0.0; 8]), b.unwrap_or(&[0.0; 8]));
    let ranks = &RANKS[usize::from(from_b)];
    // SAFETY: the token proves AVX2; the loads are as long as the arrays and need no alignment.
    unsafe {
        let ranks = _mm256_cvtepu8_epi32(_mm_loadl_epi64(ranks.as_ptr().cast()));
        let lanes = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
        let set = _mm256_cmpeq_epi32(_mm256_and_si256(_mm256_set1_epi32(i32::from(from_b)), lanes), lanes);
        let a = _mm256_permutevar8x32_ps(_mm256_loadu_ps(a.as_ptr()), ranks);
        let b = _mm256_permutevar8x32_ps(_mm256_loadu_ps(b.as_ptr()), ranks);
        _mm256_blendv_ps(a, b, _mm256_castsi256_ps(set))
    }
}

impl<const VNNI: bool> FloatSimd for Avx2<VNNI> {
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
    fn mul_add(self, acc: Self::V, a: Self::V, b: Self::V) -> Self::V {
        // SAFETY: the token proves AVX2.
        unsafe { [_mm256_fmadd_ps(a[0], b[0], acc[0]), _mm256_fmadd_ps(a[1], b[1], acc[1])] }
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
    fn add(self, a: Self::V, b: Self::V) -> Self::V {
        // SAFETY: the token proves AVX2.
        unsafe { [_mm256_add_ps(a[0], b[0]), _mm256_add_ps(a[1], b[1])] }
    }

    #[inline(always)]
    fn mul(self, a: Self::V, b: Self::V) -> Self::V {
        // SAFETY: the token proves AVX2.
        unsafe { [_mm256_mul_ps(a[0], b[0]), _mm256_mul_ps(a[1], b[1])] }
    }

    #[inline(always)]
    fn max(self, a: Self::V, b: Self::V) -> Self::V {
        // SAFETY: the token proves AVX2. The instruction returns its second operand unless the first is greater.
        unsafe { [_mm256_max_ps(b[0], a[0]), _mm256_max_ps(b[1], a[1])] }
    }

    #[inline(always)]
    fn exchange<const STRIDE: usize>(self, [a, b]: Self::V) -> Self::V {
        // SAFETY: the token proves AVX2.
        unsafe {
            match STRIDE {
                1 => [_mm256_permute_ps::<0b10_11_00_01>(a), _mm256_permute_ps::<0b10_11_00_01>(b)],
                2 => [_mm256_permute_ps::<0b01_00_11_10>(a), _mm256_permute_ps::<0b01_00_11_10>(b)],
                4 => [_mm256_permute2f128_ps::<1>(a, a), _mm256_permute2f128_ps::<1>(b, b)],
                _ => [b, a],
            }
        }
    }

    #[inline(always)]
    fn merge(self, from_b: u16, a: &[f32; 16], b: &[f32; 16]) -> Self::V {
        let [low, high] = from_b.to_le_bytes();
        let ones = low.count_ones() as usize;
        let (a_high, b_high) = (a[8 - ones..].first_chunk(), b[ones..].first_chunk());
        [merge_eight(self, low, a.first_chunk(), b.first_chunk()), merge_eight(self, high, a_high, b_high)]
    }

    #[inline(always)]
    fn reduce4(self, v: [Self::V; 4]) -> [f32; 4] {
        let mut out = [0.0; 4];
        // SAFETY: the token proves AVX2; the destination has four f32, and the store needs no alignment.
        unsafe {
            // Lanes i and i + 8; then i and i + 4 of two vectors side by side.
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

kernel_table! {
    /// Kernels for AVX2 and F16C.
    pub(crate) static AVX2 = ["avx2,fma,f16c"], token: Avx2<false>, float: (2, 2), int: (4, 1, 2), wide_tiles: false
}
