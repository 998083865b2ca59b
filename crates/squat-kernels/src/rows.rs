//! Quantized activation rows: the left side of every integer product.

use crate::error::CacheError;
use crate::float::{rms_norm_factor, silu_mul};
use crate::lanes::max_abs_of;
use crate::simd::{FloatSimd, write_codes};
use alloc::vec::Vec;
use core::ops::Range;
use squat_quant::{ActBits, Affine, Clip};

/// Rows are padded with zero codes to a multiple of this many.
pub const ROW_ALIGN: usize = 64;

/// The source of a row's scale and zero point.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum RowQuantizer {
    /// Symmetric, scale from the row's largest magnitude, or from a share of it.
    Dynamic(Clip),
    /// Learned scale and zero point, one pair per width.
    Static(StaticAffines),
}

impl RowQuantizer {
    /// Dynamic rows of which nothing is clipped.
    pub const DYNAMIC: Self = Self::Dynamic(Clip::NONE);
}

/// Learned quantizers, indexed by width ([`ActBits::index`]), whose codes fit a signed byte.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StaticAffines([Affine; 2]);

impl StaticAffines {
    /// Quantizers for 4 and 8 bits, in the order of [`ActBits::ALL`].
    ///
    /// # Errors
    /// [`CacheError::Range`] if codes or zero point exceed -128..=127, [`CacheError::Scale`] if a scale is not positive and
    /// finite.
    pub fn new(affines: [Affine; 2]) -> Result<Self, CacheError> {
        for Affine { range, zero_point, scale } in affines {
            if !(scale > 0.0 && scale.is_finite()) {
                return Err(CacheError::Scale(scale));
            }
            let fits = range.min >= -128 && range.max <= 127 && (-128..=127).contains(&zero_point);
            if !fits || range.min > range.max {
                return Err(CacheError::Range(range.min, range.max, zero_point));
            }
        }
        Ok(Self(affines))
    }

    /// The quantizer of a width.
    #[inline]
    pub fn get(&self, bits: ActBits) -> Affine {
        self.0[bits.index()]
    }
}

impl RowQuantizer {
    /// [`RowQuantizer::Static`] from plain quantizers; [`StaticAffines::new`] documents order and errors.
    pub fn fixed(affines: [Affine; 2]) -> Result<Self, CacheError> {
        StaticAffines::new(affines).map(Self::Static)
    }
}

/// One quantized row: `x^[k] = scale * (codes[k] - zero_point)`.
#[derive(Clone, Copy, Debug)]
pub struct CodeRow<'a> {
    /// The codes, without padding.
    pub codes: &'a [i8],
    /// Step between codes.
    pub scale: f32,
    /// Code of zero.
    pub zero_point: i32,
    /// Sum of the codes.
    pub sum: i32,
    /// Width at which the row was quantized.
    pub bits: ActBits,
}

/// Quantized rows `[rows, cols]` with their scales; buffers are reused from call to call.
#[derive(Clone, Debug, Default)]
pub struct QuantizedRows {
    rows: usize,
    cols: usize,
    stride: usize,
    codes: Vec<i8>,
    scales: Vec<f32>,
    zero_points: Vec<i32>,
    sums: Vec<i32>,
    bits: Vec<ActBits>,
}

impl QuantizedRows {
    /// No rows.
    pub fn new() -> Self {
        Self::default()
    }

    /// Resizes to `rows` rows of `cols` values and discards the contents. Allocates only to grow.
    pub fn reset(&mut self, rows: usize, cols: usize) {
        (self.rows, self.cols, self.stride) = (rows, cols, cols.next_multiple_of(ROW_ALIGN));
        let needed = rows * self.stride;
        if self.codes.len() < needed {
            self.codes.resize(needed, 0);
        }
        if self.scales.len() < rows {
            self.scales.resize(rows, 0.0);
            self.zero_points.resize(rows, 0);
            self.sums.resize(rows, 0);
            self.bits.resize(rows, ActBits::A8);
        }
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Values in a row, without padding.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// One row.
    ///
    /// # Panics
    /// If `row` is not below [`Self::rows`].
    #[inline(always)]
    pub fn row(&self, row: usize) -> CodeRow<'_> {
        self.view(row..row + 1).row(0)
    }

    /// All rows.
    pub fn as_view(&self) -> RowsView<'_> {
        self.view(0..self.rows)
    }

    /// Rows `range`.
    ///
    /// # Panics
    /// If the range ends beyond [`Self::rows`].
    pub fn view(&self, range: Range<usize>) -> RowsView<'_> {
        assert!(range.end <= self.rows, "rows {range:?} of {}", self.rows);
        RowsView {
            cols: self.cols,
            stride: self.stride,
            codes: &self.codes[range.start * self.stride..range.end * self.stride],
            scales: &self.scales[range.clone()],
            zero_points: &self.zero_points[range.clone()],
            sums: &self.sums[range.clone()],
            bits: &self.bits[range],
        }
    }

    /// All rows, writable and divisible among threads.
    pub fn as_mut(&mut self) -> RowsMut<'_> {
        RowsMut {
            cols: self.cols,
            stride: self.stride,
            codes: &mut self.codes[..self.rows * self.stride],
            scales: &mut self.scales[..self.rows],
            zero_points: &mut self.zero_points[..self.rows],
            sums: &mut self.sums[..self.rows],
            bits: &mut self.bits[..self.rows],
        }
    }

    /// Bytes of codes and scales in use.
    pub fn bytes(&self) -> usize {
        self.rows * (self.stride + 13)
    }
}

/// Some consecutive rows of a [`QuantizedRows`].
#[derive(Clone, Copy, Debug)]
pub struct RowsView<'a> {
    pub(crate) cols: usize,
    pub(crate) stride: usize,
    pub(crate) codes: &'a [i8],
    pub(crate) scales: &'a [f32],
    pub(crate) zero_points: &'a [i32],
    pub(crate) sums: &'a [i32],
    pub(crate) bits: &'a [ActBits],
}

impl<'a> RowsView<'a> {
    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.scales.len()
    }

    /// Values in a row, without padding.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// One row.
    ///
    /// # Panics
    /// If `row` is not below [`Self::rows`].
    #[inline(always)]
    pub fn row(&self, row: usize) -> CodeRow<'a> {
        CodeRow {
            codes: &self.codes[row * self.stride..][..self.cols],
            scale: self.scales[row],
            zero_point: self.zero_points[row],
            sum: self.sums[row],
            bits: self.bits[row],
        }
    }

    /// Rows `range`.
    ///
    /// # Panics
    /// If the range ends beyond [`Self::rows`].
    pub fn part(&self, range: Range<usize>) -> Self {
        Self {
            codes: &self.codes[range.start * self.stride..range.end * self.stride],
            scales: &self.scales[range.clone()],
            zero_points: &self.zero_points[range.clone()],
            sums: &self.sums[range.clone()],
            bits: &self.bits[range],
            ..*self
        }
    }

    /// The codes of a row, including the padding of zeros.
    #[inline(always)]
    pub(crate) fn padded(&self, row: usize) -> &'a [i8] {
        &self.codes[row * self.stride..(row + 1) * self.stride]
    }
}

/// Some consecutive rows of a [`QuantizedRows`], writable.
#[derive(Debug)]
pub struct RowsMut<'a> {
    cols: usize,
    stride: usize,
    codes: &'a mut [i8],
    scales: &'a mut [f32],
    zero_points: &'a mut [i32],
    sums: &'a mut [i32],
    bits: &'a mut [ActBits],
}

impl<'a> RowsMut<'a> {
    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.scales.len()
    }

    /// Values in a row, without padding.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Splits into the first `row` rows and the rest.
    ///
    /// # Panics
    /// If `row` is beyond [`Self::rows`].
    pub fn split_at(self, row: usize) -> (Self, Self) {
        let (codes, codes_rest) = self.codes.split_at_mut(row * self.stride);
        let (scales, scales_rest) = self.scales.split_at_mut(row);
        let (zero_points, zero_points_rest) = self.zero_points.split_at_mut(row);
        let (sums, sums_rest) = self.sums.split_at_mut(row);
        let (bits, bits_rest) = self.bits.split_at_mut(row);
        let (cols, stride) = (self.cols, self.stride);
        (
            Self { cols, stride, codes, scales, zero_points, sums, bits },
            Self {
                cols,
                stride,
                codes: codes_rest,
                scales: scales_rest,
                zero_points: zero_points_rest,
                sums: sums_rest,
                bits: bits_rest,
            },
        )
    }

    /// Writes a row from given codes.
    ///
    /// # Panics
    /// If `row` is out of range or the length of `codes` is not [`Self::cols`].
    pub fn set(&mut self, row: usize, codes: &[i8], scale: f32, zero_point: i32, bits: ActBits) {
        self.write(row, bits, |out| {
            out.copy_from_slice(codes);
            let sum = codes.iter().map(|&c| i32::from(c)).sum();
            (scale, zero_point, sum)
        });
    }

    /// Has `write` write the codes of a row on the grid of its width and return scale and sum of codes. `bits` holds one
    /// width per row, or one for all.
    #[inline(always)]
    pub(crate) fn fill(
        &mut self,
        row: usize,
        bits: &[ActBits],
        quantizer: &RowQuantizer,
        write: impl FnOnce(Grid, &mut [i8]) -> (f32, i32),
    ) {
        let bits = bits[if bits.len() == 1 { 0 } else { row }];
        let (grid, zero) = match quantizer {
            RowQuantizer::Dynamic(clip) => (Grid::Dynamic(*clip, bits), 0),
            RowQuantizer::Static(affines) => (Grid::Fixed(affines.get(bits)), affines.get(bits).zero_point),
        };
        self.write(row, bits, |codes| {
            let (scale, sum) = write(grid, codes);
            (scale, zero, sum)
        });
    }

    /// Has `fill` write the codes of a row and return (scale, zero point, sum of codes); clears the padding.
    #[inline(always)]
    pub(crate) fn write(
        &mut self,
        row: usize,
        bits: ActBits,
        fill: impl FnOnce(&mut [i8]) -> (f32, i32, i32),
    ) {
        let (codes, padding) = self.codes[row * self.stride..(row + 1) * self.stride].split_at_mut(self.cols);
        let (scale, zero_point, sum) = fill(codes);
        padding.fill(0);
        self.scales[row] = scale;
        self.zero_points[row] = zero_point;
        self.sums[row] = sum;
        self.bits[row] = bits;
    }
}

/// How one row is quantized.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Grid {
    /// Symmetric codes of a width, scale from the row's largest magnitude.
    Dynamic(Clip, ActBits),
    /// A given quantizer.
    Fixed(Affine),
}

impl Grid {
    /// The quantizer of a row; `max_abs` computes its largest magnitude if it is needed.
    #[inline(always)]
    fn affine(self, max_abs: impl FnOnce() -> f32) -> Affine {
        match self {
            Self::Dynamic(clip, bits) => clip.affine(max_abs(), bits),
            Self::Fixed(affine) => affine,
        }
    }
}

/// Writes the codes of [`squat_quant::affine::quantize_row`] or [`squat_quant::affine::quantize_row_dynamic`], in a form
/// that vectorises; returns scale and sum of codes.
#[inline(always)]
pub(crate) fn quantize_row<S: FloatSimd>(s: S, row: &[f32], grid: Grid, codes: &mut [i8]) -> (f32, i32) {
    let affine = grid.affine(|| s.max_abs(row));
    (affine.scale, s.quantize(row, affine, &mut codes[..row.len()]))
}

/// [`quantize_row`] of each row of x `[m, k]`, row `i` at `bits[i]`, or all rows at the only width.
#[inline(always)]
pub(crate) fn quantize_rows<S: FloatSimd>(
    s: S,
    rows: &mut RowsMut<'_>,
    x: &[f32],
    bits: &[ActBits],
    quantizer: &RowQuantizer,
) {
    match rows.cols {
        // A common `head_dim`: a length known at compile time halves the instructions of a row.
        64 => quantize_rows_of::<S, 64>(s, rows, x, bits, quantizer),
        cols => {
            for (i, row) in x.chunks_exact(cols.max(1)).enumerate() {
                rows.fill(i, bits, quantizer, |grid, codes| quantize_row(s, row, grid, codes));
            }
        }
    }
}

/// [`quantize_rows`] of rows of `K` values.
#[inline(always)]
fn quantize_rows_of<S: FloatSimd, const K: usize>(
    s: S,
    rows: &mut RowsMut<'_>,
    x: &[f32],
    bits: &[ActBits],
    quantizer: &RowQuantizer,
) {
    for (i, row) in x.as_chunks::<K>().0.iter().enumerate() {
        rows.fill(i, bits, quantizer, |grid, codes| quantize_row(s, row, grid, codes));
    }
}

/// [`crate::float::rms_norm`] and [`quantize_row`] of the result, which is computed twice rather than stored.
#[inline(always)]
pub(crate) fn rms_norm_quantize(
    x: &[f32],
    gain: &[f32],
    eps: f32,
    grid: Grid,
    codes: &mut [i8],
) -> (f32, i32) {
    let r = rms_norm_factor(x, eps);
    let affine = grid.affine(|| max_abs_of(x, gain, |x, gain| (x * r) * gain));
    let values = x.iter().zip(gain).map(|(&x, &gain)| (x * r) * gain);
    (affine.scale, write_codes(values, affine, &mut codes[..x.len()]))
}

/// [`crate::float::silu_mul`] into `scratch`, and [`quantize_row`] of it.
#[inline(always)]
pub(crate) fn silu_mul_quantize<S: FloatSimd>(
    s: S,
    gate: &[f32],
    up: &[f32],
    scratch: &mut [f32],
    grid: Grid,
    codes: &mut [i8],
) -> (f32, i32) {
    silu_mul(gate, up, scratch);
    quantize_row(s, scratch, grid, codes)
}
