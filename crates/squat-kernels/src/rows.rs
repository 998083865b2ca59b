//! Quantized activation rows: the left side of every integer product.

use crate::error::CacheError;
use crate::float::{FloatSimd, max_abs_of, rms_norm_factor, silu_mul};
use alloc::vec::Vec;
use core::ops::Range;
use squat_quant::{ActBits, Affine, CodeRange, dynamic_scale};

/// Rows are padded with zero codes to a multiple of this many.
pub const ROW_ALIGN: usize = 64;

/// How rows get their scale and zero point.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum RowQuantizer {
    /// Symmetric, scale from the row's largest magnitude.
    Dynamic,
    /// Learned scale and zero point, one pair for each width.
    Static(StaticAffines),
}

/// Learned quantizers by width ([`ActBits::index`]), checked to fit a signed byte.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StaticAffines([Affine; 2]);

impl StaticAffines {
    /// Quantizers for 4 and 8 bits, in the order of [`ActBits::ALL`].
    ///
    /// # Errors
    /// [`CacheError::Range`] when codes or zero point leave -128..=127, [`CacheError::Scale`] for a scale that is not
    /// positive and finite.
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

    /// The quantizer of that width.
    #[inline]
    pub fn get(&self, bits: ActBits) -> Affine {
        self.0[bits.index()]
    }
}

impl RowQuantizer {
    /// [`RowQuantizer::Static`] from plain quantizers; see [`StaticAffines::new`] for order and errors.
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
    /// Width the row was quantized at.
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

    /// Makes room for `rows` rows of `cols` values; what was held is lost. Allocates only when it grows.
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
    /// When `row` is not below [`Self::rows`].
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
    /// When the range ends beyond [`Self::rows`].
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

    /// All rows, writable and divisible over threads.
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
    /// When `row` is not below [`Self::rows`].
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
    /// When the range ends beyond [`Self::rows`].
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

    /// One row with its padding of zero codes.
    #[inline(always)]
    pub(crate) fn padded(&self, row: usize) -> &'a [i8] {
        &self.codes[row * self.stride..(row + 1) * self.stride]
    }
}

/// Some consecutive rows of a [`QuantizedRows`], to be written.
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

    /// The first `row` rows and the rest.
    ///
    /// # Panics
    /// When `row` is beyond [`Self::rows`].
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
    /// When `row` is out of range or `codes` has another length than [`Self::cols`].
    pub fn set(&mut self, row: usize, codes: &[i8], scale: f32, zero_point: i32, bits: ActBits) {
        self.write(row, bits, |out| {
            out.copy_from_slice(codes);
            let sum = codes.iter().map(|&c| i32::from(c)).sum();
            (scale, zero_point, sum)
        });
    }

    /// Lets `write` make the codes of a row on the grid of its width; it returns scale and sum of codes. `bits` holds the
    /// width of each row, or of all.
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
            RowQuantizer::Dynamic => (Grid::Dynamic(bits.range()), 0),
            RowQuantizer::Static(affines) => (Grid::Fixed(affines.get(bits)), affines.get(bits).zero_point),
        };
        self.write(row, bits, |codes| {
            let (scale, sum) = write(grid, codes);
            (scale, zero, sum)
        });
    }

    /// Lets `fill` write the codes of a row and return (scale, zero point, sum of codes); clears the padding.
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
    /// Symmetric codes of that range, scale from the row's largest magnitude.
    Dynamic(CodeRange),
    /// As given.
    Fixed(Affine),
}

impl Grid {
    /// The quantizer of a row with that largest magnitude, which is asked for only if it is needed.
    #[inline(always)]
    fn affine(self, max_abs: impl FnOnce() -> f32) -> Affine {
        match self {
            Self::Dynamic(range) => Affine::symmetric(dynamic_scale(max_abs(), range), range),
            Self::Fixed(affine) => affine,
        }
    }
}

/// A byte that holds codes: signed ones of activations, unsigned ones of probabilities.
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
/// A flat loop, and the sum in a pass of its own: compilers turn one over chunks of lanes into gathers.
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

/// The codes of [`squat_quant::affine::quantize_row`] or [`squat_quant::affine::quantize_row_dynamic`], in a form that
/// vectorises; returns scale and sum of codes.
#[inline(always)]
pub(crate) fn quantize_row<S: FloatSimd>(s: S, row: &[f32], grid: Grid, codes: &mut [i8]) -> (f32, i32) {
    let affine = grid.affine(|| s.max_abs(row));
    (affine.scale, s.quantize(row, affine, &mut codes[..row.len()]))
}

/// [`quantize_row`] of each row of x `[m, k]`, row `i` at `bits[i]`, or all at the only width given.
#[inline(always)]
pub(crate) fn quantize_rows<S: FloatSimd>(
    s: S,
    rows: &mut RowsMut<'_>,
    x: &[f32],
    bits: &[ActBits],
    quantizer: &RowQuantizer,
) {
    match rows.cols {
        // Heads have few sizes: with a length that the compiler knows, a row is half the instructions.
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

/// [`crate::float::rms_norm`] and [`quantize_row`] of its result, which is computed twice and kept nowhere.
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
