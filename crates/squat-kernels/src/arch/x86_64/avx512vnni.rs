//! AVX-512 with VNNI: a panel is one 512-bit vector, `vpdpbusd` adds four products in 32 bits without saturation.

use super::word;
use crate::arch::table::kernel_table;
use crate::block::{Block, PANEL};
use crate::lanes::padded;
use crate::prefetch::prefetch_line;
use crate::simd::{Code, CodeSimd, FloatSimd, IntSimd, PanelOutputs, RowScale};
use core::arch::x86_64::*;
use squat_quant::Affine;

/// Token: the CPU has AVX-512 F, BW, VL, DQ and VNNI.
#[derive(Clone, Copy)]
pub(crate) struct Avx512(());

impl Avx512 {
    /// For functions compiled with these target features, which only run where the CPU has them.
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
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
    type Partial = __m512i;

    #[inline(always)]
    fn zero(self) -> Self::V {
        // SAFETY: the token proves AVX-512.
        unsafe { _mm512_setzero_si512() }
    }

    #[inline(always)]
    fn zero_partial(self) -> Self::Partial {
        IntSimd::zero(self)
    }

    #[inline(always)]
    fn load(self, block: &[u8; 64]) -> Self::V {
        // SAFETY: the token proves AVX-512; the load is as long as the array and needs no alignment.
        unsafe { _mm512_loadu_si512(block.as_ptr().cast()) }
    }

    #[inline(always)]
    fn unpack4(self, v: Self::V) -> [Self::V; 2] {
        // SAFETY: the token proves AVX-512.
        unsafe { [field::<0>(v, 15), field::<4>(v, 15)] }
    }

    #[inline(always)]
    fn unpack2(self, v: Self::V) -> [Self::V; 4] {
        // SAFETY: the token proves AVX-512.
        unsafe { [field::<0>(v, 3), field::<2>(v, 3), field::<4>(v, 3), field::<6>(v, 3)] }
    }

    #[inline(always)]
    fn unpack3(self, v: Self::V) -> [Self::V; 2] {
        // SAFETY: the token proves AVX-512.
        unsafe { [field::<0>(v, 7), field::<3>(v, 7)] }
    }

    #[inline(always)]
    fn unpack3_high(self, a: Self::V, b: Self::V, c: Self::V) -> [Self::V; 2] {
        // SAFETY: the token proves AVX-512.
        unsafe {
            [
                _mm512_or_si512(field::<6>(a, 3), field::<4>(c, 4)),
                _mm512_or_si512(field::<6>(b, 3), field::<5>(c, 4)),
            ]
        }
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
    fn dot4_partial<const NP: usize>(self, sums: &mut [Self::Partial; NP], w: &[Self::V; NP], a: &[i8; 4]) {
        self.dot4(sums, w, a);
    }

    #[inline(always)]
    fn add(self, a: Self::V, b: Self::V) -> Self::V {
        // SAFETY: the token proves AVX-512.
        unsafe { _mm512_add_epi32(a, b) }
    }

    #[inline(always)]
    fn scaled(self, v: Self::V, row: RowScale, sums: &[i32; PANEL], scales: &[f32; PANEL]) -> [f32; PANEL] {
        let mut y = [0f32; PANEL];
        // SAFETY: the token proves AVX-512; loads and store are as long as their arrays and need no alignment.
        unsafe {
            let sums = _mm512_loadu_si512(sums.as_ptr().cast());
            let zeros = _mm512_mullo_epi32(_mm512_set1_epi32(row.zero), sums);
            let acc = _mm512_sub_epi32(_mm512_sub_epi32(v, _mm512_set1_epi32(row.shift)), zeros);
            let scaled = _mm512_mul_ps(_mm512_cvtepi32_ps(acc), _mm512_set1_ps(row.scale));
            _mm512_storeu_ps(y.as_mut_ptr(), _mm512_mul_ps(scaled, _mm512_loadu_ps(scales.as_ptr())));
        }
        y
    }

    #[inline(always)]
    fn add_scaled(self, y: &mut PanelOutputs, v: Self::V, shift: i32, scales: &[f32; PANEL]) {
        // SAFETY: the token proves AVX-512; loads and store are as long as their arrays, and that of `y` is aligned.
        unsafe {
            let sums = _mm512_cvtepi32_ps(_mm512_sub_epi32(v, _mm512_set1_epi32(shift)));
            let scaled = _mm512_mul_ps(sums, _mm512_loadu_ps(scales.as_ptr()));
            _mm512_store_ps(y.0.as_mut_ptr(), _mm512_add_ps(_mm512_load_ps(y.0.as_ptr()), scaled));
        }
    }

    #[inline(always)]
    fn flush<const NP: usize>(self, acc: &mut [Self::V; NP], sums: &[Self::Partial; NP]) {
        for p in 0..NP {
            // SAFETY: the token proves AVX-512.
            acc[p] = unsafe { _mm512_add_epi32(acc[p], sums[p]) };
        }
    }

    #[inline(always)]
    fn store(self, v: Self::V) -> [i32; PANEL] {
        let mut out = [0; PANEL];
        // SAFETY: the token proves AVX-512; the store is as long as the array and needs no alignment.
        unsafe { _mm512_storeu_si512(out.as_mut_ptr().cast(), v) }
        out
    }

    #[inline(always)]
    fn prefetch_ahead(self, block: &Block, distance: usize) {
        prefetch_line(core::ptr::from_ref(block).wrapping_byte_add(distance));
    }
}

impl CodeSimd for Avx512 {
    #[inline(always)]
    fn weigh4<const NP: usize>(self, acc: &mut [Self::V; NP], v: &[Self::V; NP], c: &[u8; 4]) {
        // SAFETY: the token proves AVX-512 and VNNI.
        unsafe {
            let c = _mm512_set1_epi32(i32::from_le_bytes(*c));
            for p in 0..NP {
                acc[p] = _mm512_dpbusd_epi32(acc[p], c, v[p]);
            }
        }
    }

    #[inline(always)]
    fn prefetch(self, block: &Block) {
        prefetch_line(block);
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
    fn mul_add(self, acc: Self::V, a: Self::V, b: Self::V) -> Self::V {
        // SAFETY: the token proves AVX-512.
        unsafe { _mm512_fmadd_ps(a, b, acc) }
    }

    #[inline(always)]
    fn store(self, v: Self::V) -> [f32; 16] {
        let mut out = [0.0; 16];
        // SAFETY: the token proves AVX-512; the store is as long as the array and needs no alignment.
        unsafe { _mm512_storeu_ps(out.as_mut_ptr(), v) }
        out
    }

    #[inline(always)]
    fn exchange<const STRIDE: usize>(self, v: Self::V) -> Self::V {
        // SAFETY: the token proves AVX-512.
        unsafe {
            match STRIDE {
                1 => _mm512_permute_ps::<0b10_11_00_01>(v),
                2 => _mm512_permute_ps::<0b01_00_11_10>(v),
                4 => _mm512_shuffle_f32x4::<0b10_11_00_01>(v, v),
                _ => _mm512_shuffle_f32x4::<0b01_00_11_10>(v, v),
            }
        }
    }

    #[inline(always)]
    fn add(self, a: Self::V, b: Self::V) -> Self::V {
        // SAFETY: the token proves AVX-512.
        unsafe { _mm512_add_ps(a, b) }
    }

    #[inline(always)]
    fn mul(self, a: Self::V, b: Self::V) -> Self::V {
        // SAFETY: the token proves AVX-512.
        unsafe { _mm512_mul_ps(a, b) }
    }

    #[inline(always)]
    fn max(self, a: Self::V, b: Self::V) -> Self::V {
        // SAFETY: the token proves AVX-512. The instruction returns its second operand unless the first is greater.
        unsafe { _mm512_max_ps(b, a) }
    }

    #[inline(always)]
    fn merge(self, from_b: u16, a: &[f32; 16], b: &[f32; 16]) -> Self::V {
        // SAFETY: the token proves AVX-512; the loads are as long as the arrays and need no alignment.
        unsafe {
            let a = _mm512_maskz_expand_ps(!from_b, _mm512_loadu_ps(a.as_ptr()));
            _mm512_mask_expand_ps(a, from_b, _mm512_loadu_ps(b.as_ptr()))
        }
    }

    #[inline(always)]
    fn max_abs(self, x: &[f32]) -> f32 {
        let (chunks, tail) = x.as_chunks();
        let (pairs, rest) = chunks.as_chunks::<2>();
        // SAFETY: the token proves AVX-512. The instruction returns its second operand if the first is NaN.
        unsafe {
            let mut largest = [_mm512_setzero_ps(); 2];
            for pair in pairs {
                for i in 0..2 {
                    largest[i] = _mm512_max_ps(_mm512_abs_ps(FloatSimd::load(self, &pair[i])), largest[i]);
                }
            }
            for chunk in rest {
                largest[0] = _mm512_max_ps(_mm512_abs_ps(FloatSimd::load(self, chunk)), largest[0]);
            }
            if !tail.is_empty() {
                largest[1] = _mm512_max_ps(_mm512_abs_ps(FloatSimd::load(self, &padded(tail))), largest[1]);
            }
            _mm512_reduce_max_ps(_mm512_max_ps(largest[0], largest[1]))
        }
    }

    #[inline(always)]
    fn reduce_max(self, v: Self::V) -> f32 {
        // SAFETY: the token proves AVX-512.
        unsafe { _mm512_reduce_max_ps(v) }
    }

    #[inline(always)]
    fn quantize<C: Code>(self, x: &[f32], affine: Affine, codes: &mut [C]) -> i32 {
        let (whole, tail) = x.as_chunks();
        let (to, to_tail) = codes[..x.len()].as_chunks_mut::<16>();
        // SAFETY: the token proves AVX-512; loads and stores are as long as their arrays and need no alignment; every byte
        // is a valid code. As in `Affine::quantize`, NaN becomes the smallest code, and ties round to even.
        unsafe {
            let inv = _mm512_set1_ps(1.0 / affine.scale);
            let low = _mm512_set1_ps((affine.range.min - affine.zero_point) as f32);
            let high = _mm512_set1_ps((affine.range.max - affine.zero_point) as f32);
            let zero = _mm512_set1_epi32(affine.zero_point);
            let mut sums = _mm512_setzero_si512();
            let mut last = [C::new(0); 16];
            let padded = [padded(tail)];
            let ends = padded.iter().zip([&mut last]).take(usize::from(!tail.is_empty()));
            for (x, to) in whole.iter().zip(to).chain(ends) {
                let v = _mm512_mul_ps(FloatSimd::load(self, x), inv);
                let v = _mm512_min_ps(_mm512_max_ps(v, low), high);
                let code = _mm512_add_epi32(_mm512_cvtps_epi32(v), zero);
                sums = _mm512_add_epi32(sums, code);
                _mm_storeu_si128(to.as_mut_ptr().cast(), _mm512_cvtepi32_epi8(code));
            }
            to_tail.copy_from_slice(&last[..tail.len()]);
            // The padding was quantized too: its codes are not part of the sum.
            let beyond = if tail.is_empty() { 0 } else { 16 - tail.len() as i32 };
            _mm512_reduce_add_epi32(sums) - beyond * affine.quantize(0.0)
        }
    }

    #[inline(always)]
    fn reduce4(self, v: [Self::V; 4]) -> [f32; 4] {
        let mut out = [0.0; 4];
        // SAFETY: the token proves AVX-512; the destination has four f32, and the store needs no alignment.
        unsafe {
            // Lanes i and i + 8 of two vectors side by side; then i and i + 4 of four.
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
            // Within 128 bits: i and i + 2, then i and i + 1; the sums end up in every fourth lane.
            let pairs = _mm512_add_ps(abcd, _mm512_permute_ps::<0b0100_1110>(abcd));
            let sums = _mm512_add_ps(pairs, _mm512_permute_ps::<0b1011_0001>(pairs));
            let sums = _mm512_maskz_compress_ps(0b0001_0001_0001_0001, sums);
            _mm_storeu_ps(out.as_mut_ptr(), _mm512_castps512_ps128(sums));
        }
        out
    }
}

kernel_table! {
    /// Kernels for AVX-512 with VNNI.
    pub(crate) static AVX512VNNI = ["avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512dq,avx512vnni"], token: Avx512,
    float: (4, 4), int: (8, 3, 4), wide_tiles: true
}
