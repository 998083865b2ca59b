//! Registers as the algorithms see them. An instruction set is a token type that implements these traits; a value of the
//! token proves that the CPU has its instructions.
//!
//! All functions are inlined into a function compiled with the target features of the set. Closures over registers must
//! be avoided everywhere: a closure is a function of its own without those features, and a vector that passes through one
//! goes through memory.

use crate::block::{Block, PANEL};
use crate::lanes::{LANES, max_abs_of, reduce, reduce_max};
use crate::storage::Storage;
use squat_quant::Affine;

/// Four consecutive codes.
pub(crate) type Quad = [i8; 4];

/// Bytes between the block in use and the one to prefetch when a single row streams through the weights. The hardware
/// prefetcher does not cross the page of 4096 bytes.
#[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))]
pub(crate) const PREFETCH_DISTANCE: usize = 4096;

/// [`IntSimd::PARTIAL_LIMIT`] where a step adds two products to a sum of 16 bits: `2 * 128 * 127 < 2^15`.
#[cfg_attr(not(any(target_arch = "x86_64", target_arch = "aarch64")), allow(dead_code))]
pub(crate) const PAIRS_IN_16_BITS: usize = 127;

/// Outputs of a panel, aligned to a cache line: a vector load that crosses a line takes twice as long.
#[derive(Clone, Copy)]
#[repr(align(64))]
pub(crate) struct PanelOutputs(pub [f32; PANEL]);

/// The constants of a row of activations in the epilogue of a product.
#[derive(Clone, Copy)]
pub(crate) struct RowScale {
    /// By how much the kernel's sums exceed the true ones: offset of the stored weights times sum of the row's codes.
    pub shift: i32,
    /// Zero point of the row's codes.
    pub zero: i32,
    /// Scale of the row.
    pub scale: f32,
}

/// Removes from an accumulator the offset of the stored weights (`shift`) and the zero point of the activations.
///
/// Intermediate sums may wrap; the result is exact because it fits (see [`crate::MAX_COLS`]).
#[inline(always)]
pub(crate) fn correct(acc: i32, shift: i32, zero: i32, weight_sum: i32) -> i32 {
    acc.wrapping_sub(shift).wrapping_sub(zero.wrapping_mul(weight_sum))
}

/// Sixteen i32 accumulators and the dot products that feed them.
pub(crate) trait IntSimd: Copy {
    /// 16 channels: an i32 accumulator each, or 4 unsigned bytes each.
    type V: Copy;
    /// Partial sums of products with weights of at most 15: 16 bits wide where the instructions add in 16 bits, else the
    /// same as [`Self::V`].
    type Partial: Copy;
    /// Upper bound on the sum of the largest |w| that a partial sum can absorb before it must be flushed.
    const PARTIAL_LIMIT: usize = usize::MAX;
    /// Offset that remains in 8-bit weights after [`Self::unpack8`].
    const BYTE_OFFSET: i32 = Storage::Bits8.offset();
    fn zero(self) -> Self::V;
    fn zero_partial(self) -> Self::Partial;
    /// 4 stored codes of each channel.
    fn load(self, block: &[u8; 64]) -> Self::V;
    /// Full bytes in the form that [`Self::dot4`] takes: as stored, or signed.
    #[inline(always)]
    fn unpack8(self, v: Self::V) -> Self::V {
        v
    }
    /// The two 4-bit fields of every byte, low field first.
    fn unpack4(self, v: Self::V) -> [Self::V; 2];
    /// The two 3-bit fields in the low six bits of every byte, low field first.
    fn unpack3(self, v: Self::V) -> [Self::V; 2];
    /// The two 3-bit fields in the high bits of three bytes; [`Storage`] shows the layout.
    fn unpack3_high(self, a: Self::V, b: Self::V, c: Self::V) -> [Self::V; 2];
    /// The four 2-bit fields of every byte, low field first.
    fn unpack2(self, v: Self::V) -> [Self::V; 4];
    /// `acc[c] += sum_i w[c][i] * a[i]` for any [`Self::unpack8`], or w <= 15.
    fn dot4<const NP: usize>(self, acc: &mut [Self::V; NP], w: &[Self::V; NP], a: &Quad);
    /// [`Self::dot4`] over eight inputs with w <= 15: `low` times `a`, `high` times `b`.
    #[inline(always)]
    fn dot8_4bit<const NP: usize>(
        self,
        acc: &mut [Self::V; NP],
        low: &[Self::V; NP],
        high: &[Self::V; NP],
        a: &Quad,
        b: &Quad,
    ) {
        if Self::PARTIAL_LIMIT < usize::MAX {
            let mut sums = [self.zero_partial(); NP];
            self.dot4_partial(&mut sums, low, a);
            self.dot4_partial(&mut sums, high, b);
            self.flush(acc, &sums);
        } else {
            self.dot4(acc, low, a);
            self.dot4(acc, high, b);
        }
    }
    /// `sums[c] += sum_i w[c][i] * a[i]` for w <= 15, as often as [`Self::PARTIAL_LIMIT`] allows.
    fn dot4_partial<const NP: usize>(self, sums: &mut [Self::Partial; NP], w: &[Self::V; NP], a: &Quad);
    /// `sums[m][c] += sum_f sum_i fields[f][c][i] * a[m][f][i]` for `MR` rows and fields <= 15; `F` is even. Instructions
    /// that serve several rows at once may keep the sums interleaved: only [`Self::flush_rows`] may read them.
    #[inline(always)]
    fn dot_rows<const F: usize, const MR: usize, const NP: usize>(
        self,
        sums: &mut [[Self::Partial; NP]; MR],
        fields: &[[Self::V; NP]; F],
        a: &[&[Quad; F]; MR],
    ) {
        for m in 0..MR {
            for f in 0..F {
                self.dot4_partial(&mut sums[m], &fields[f], &a[m][f]);
            }
        }
    }
    /// `acc += sums` of [`Self::dot_rows`].
    #[inline(always)]
    fn flush_rows<const MR: usize, const NP: usize>(
        self,
        acc: &mut [[Self::V; NP]; MR],
        sums: &[[Self::Partial; NP]; MR],
    ) {
        for m in 0..MR {
            self.flush(&mut acc[m], &sums[m]);
        }
    }
    /// `acc += sums`
    fn flush<const NP: usize>(self, acc: &mut [Self::V; NP], sums: &[Self::Partial; NP]);
    /// `a + b` of accumulators.
    fn add(self, a: Self::V, b: Self::V) -> Self::V;
    fn store(self, v: Self::V) -> [i32; PANEL];
    /// `((v - shift - zero * sums) as f32 * scale) * scales`, the epilogue of a product; see [`crate::product`].
    #[inline(always)]
    fn scaled(self, v: Self::V, row: RowScale, sums: &[i32; PANEL], scales: &[f32; PANEL]) -> [f32; PANEL] {
        let acc = self.store(v);
        let mut y = [0f32; PANEL];
        for c in 0..PANEL {
            y[c] = (correct(acc[c], row.shift, row.zero, sums[c]) as f32 * row.scale) * scales[c];
        }
        y
    }
    /// `y += ((v - shift) as f32) * scales`
    #[inline(always)]
    fn add_scaled(self, y: &mut PanelOutputs, v: Self::V, shift: i32, scales: &[f32; PANEL]) {
        let acc = self.store(v);
        for c in 0..PANEL {
            y.0[c] += acc[c].wrapping_sub(shift) as f32 * scales[c];
        }
    }
    /// Prefetches the cache line `distance` bytes after `block`, which may be outside any allocation.
    #[inline(always)]
    fn prefetch_ahead(self, block: &Block, distance: usize) {
        let _ = (block, distance);
    }
}

/// Products of unsigned codes of probabilities with values.
///
/// The default implementations are correct for every set, but slow: they go through memory.
pub(crate) trait CodeSimd: IntSimd {
    /// The offset that [`Self::values`] adds to full bytes.
    const VALUE_OFFSET: i32 = 0;
    /// Full bytes of values in the form that [`Self::weigh4`] takes: signed as stored, or with 128 added.
    #[inline(always)]
    fn values(self, v: Self::V) -> Self::V {
        v
    }
    /// `acc[l] += sum_i c[i] * v[l][i]`: c any unsigned bytes, v any [`Self::values`] or at most 15.
    #[inline(always)]
    fn weigh4<const NP: usize>(self, acc: &mut [Self::V; NP], v: &[Self::V; NP], c: &[u8; 4]) {
        for (acc, v) in acc.iter_mut().zip(v) {
            let (mut sums, words) = (self.store(*acc), self.store(*v));
            for (sum, word) in sums.iter_mut().zip(words) {
                for (&c, v) in c.iter().zip(word.to_le_bytes()) {
                    *sum += i32::from(v as i8) * i32::from(c);
                }
            }
            *acc = self.load(&Block::from_lanes(sums.map(|sum| sum as u32)).0);
        }
    }
    /// [`Self::weigh4`] over eight rows with v in 0..=15: `low` times `a`, `high` times `b`.
    #[inline(always)]
    fn weigh8_4bit<const NP: usize>(
        self,
        acc: &mut [Self::V; NP],
        low: &[Self::V; NP],
        high: &[Self::V; NP],
        a: &[u8; 4],
        b: &[u8; 4],
    ) {
        self.weigh4(acc, low, a);
        self.weigh4(acc, high, b);
    }
    /// Prefetches a block that is needed soon.
    #[inline(always)]
    fn prefetch(self, block: &Block) {
        let _ = block;
    }
}

/// [`squat_quant::transform::near_butterflies`] in registers: what is exchanged, plus the lane itself or minus it.
#[inline(always)]
pub(crate) fn near_butterflies<S: FloatSimd>(s: S, x: &mut [f32; LANES]) {
    #[inline(always)]
    fn stage<const STRIDE: usize, S: FloatSimd>(s: S, v: S::V) -> S::V {
        let signs = const {
            let mut signs = [1.0; LANES];
            let mut lane = 0;
            while lane < LANES {
                if lane & STRIDE != 0 {
                    signs[lane] = -1.0;
                }
                lane += 1;
            }
            signs
        };
        s.add(s.exchange::<STRIDE>(v), s.mul(v, s.load(&signs)))
    }
    let v = stage::<2, S>(s, stage::<1, S>(s, s.load(x)));
    *x = s.store(stage::<8, S>(s, stage::<4, S>(s, v)));
}

/// Sixteen f32 lanes.
pub(crate) trait FloatSimd: Copy {
    /// 16 lanes.
    type V: Copy;
    fn zero(self) -> Self::V;
    fn load(self, x: &[f32; LANES]) -> Self::V;
    fn load_f16(self, x: &[u16; LANES]) -> Self::V;
    /// The same value in every lane.
    fn splat(self, x: f32) -> Self::V;
    /// `acc + a * b`, rounded once.
    fn mul_add(self, acc: Self::V, a: Self::V, b: Self::V) -> Self::V;
    fn store(self, v: Self::V) -> [f32; LANES];
    /// `a + b`.
    #[inline(always)]
    fn add(self, a: Self::V, b: Self::V) -> Self::V {
        let (a, b) = (self.store(a), self.store(b));
        self.load(&core::array::from_fn(|l| a[l] + b[l]))
    }
    /// `a * b`.
    #[inline(always)]
    fn mul(self, a: Self::V, b: Self::V) -> Self::V {
        let (a, b) = (self.store(a), self.store(b));
        self.load(&core::array::from_fn(|l| a[l] * b[l]))
    }
    /// `b` where it is greater, else `a`: NaNs in `b` are ignored.
    #[inline(always)]
    fn max(self, a: Self::V, b: Self::V) -> Self::V {
        let (a, b) = (self.store(a), self.store(b));
        self.load(&core::array::from_fn(|l| if b[l] > a[l] { b[l] } else { a[l] }))
    }
    /// Lanes `l` and `l ^ STRIDE` exchanged; the stride is 1, 2, 4 or 8.
    #[inline(always)]
    fn exchange<const STRIDE: usize>(self, v: Self::V) -> Self::V {
        let v = self.store(v);
        self.load(&core::array::from_fn(|l| v[l ^ STRIDE]))
    }
    /// Interleaves two streams: lane `l` gets the next value of `b` where bit `l` of `from_b` is set, else the next of
    /// `a`.
    #[inline(always)]
    fn merge(self, from_b: u16, a: &[f32; LANES], b: &[f32; LANES]) -> Self::V {
        let (mut i, mut j) = (0, 0);
        let mut out = [0.0; LANES];
        for (lane, out) in out.iter_mut().enumerate() {
            let is_b = usize::from(from_b >> lane & 1);
            *out = if is_b == 1 { b[j % LANES] } else { a[i % LANES] };
            (i, j) = (i + 1 - is_b, j + is_b);
        }
        self.load(&out)
    }
    /// [`crate::float::max_abs`].
    #[inline(always)]
    fn max_abs(self, x: &[f32]) -> f32 {
        max_abs_of(x, x, |x, _| x)
    }
    /// Writes [`Affine::quantize`] of each value and returns the sum of the codes.
    #[inline(always)]
    fn quantize<C: Code>(self, x: &[f32], affine: Affine, codes: &mut [C]) -> i32 {
        write_codes(x.iter().copied(), affine, codes)
    }
    /// [`reduce_max`] of a vector.
    #[inline(always)]
    fn reduce_max(self, v: Self::V) -> f32 {
        reduce_max(self.store(v))
    }
    /// [`reduce`] of four vectors.
    #[inline(always)]
    fn reduce4(self, v: [Self::V; 4]) -> [f32; 4] {
        let mut sums = [0.0; 4];
        for i in 0..4 {
            sums[i] = reduce(self.store(v[i]));
        }
        sums
    }
}

/// A byte that holds codes: signed for activations, unsigned for probabilities.
pub(crate) trait Code: Copy {
    fn new(code: i32) -> Self;
    fn get(self) -> i32;
}

impl Code for i8 {
    #[inline(always)]
    fn new(code: i32) -> Self {
        code as Self
    }
    #[inline(always)]
    fn get(self) -> i32 {
        self.into()
    }
}

impl Code for u8 {
    #[inline(always)]
    fn new(code: i32) -> Self {
        code as Self
    }
    #[inline(always)]
    fn get(self) -> i32 {
        self.into()
    }
}

/// Writes the codes of values and returns their sum.
///
/// A flat loop, and the sum in a second pass: compilers turn a single loop over chunks of lanes into gathers.
#[inline(always)]
pub(crate) fn write_codes<C: Code>(
    values: impl Iterator<Item = f32>,
    affine: Affine,
    codes: &mut [C],
) -> i32 {
    for (code, value) in codes.iter_mut().zip(values) {
        *code = C::new(affine.quantize(value));
    }
    codes.iter().map(|code| code.get()).sum()
}
