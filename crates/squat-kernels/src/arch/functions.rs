//! The list of functions that every instruction set compiles.

/// Types of the signatures in [`kernel_functions`].
pub(crate) mod types {
    pub(crate) use crate::attention::{KvHead, RowCodes, ScoreLayout, ValuePrefetch};
    pub(crate) use crate::block::{Block, PANEL};
    pub(crate) use crate::matrix::PackedMatrix;
    pub(crate) use crate::output::ColumnsMut;
    pub(crate) use crate::paired::PairedMatrix;
    pub(crate) use crate::panels::PanelSource;
    pub(crate) use crate::probe_loops::{Line, OPERANDS, Work};
    pub(crate) use crate::rows::{Grid, RowQuantizer, RowsMut, RowsView};
    pub(crate) use core::mem::MaybeUninit;
    pub(crate) use squat_quant::{ActBits, CodeRange, Transform};
}

/// Calls `$with!` with the functions of a table. Of each line are made: a field of [`super::Table`], an instance compiled
/// with the target features of each set, the entry of each table, and a method of [`crate::Kernels`] with its
/// documentation.
///
/// A body is an expression over the arguments, `token()` and `kernel()` of the set, and the constants that
/// [`super::table::kernel_table`] lists.
macro_rules! kernel_functions {
    ($with:path, $context:tt) => { $with! { $context

        // Float functions.

        /// See [`crate::float::dot`].
        pub fn dot(a: &[f32], b: &[f32]) -> f32 = float::dot_with(token(), a, b);
        /// See [`crate::float::sum_squares`].
        pub fn sum_squares(x: &[f32]) -> f32 = float::sum_squares(x);
        /// See [`crate::float::max_abs`].
        pub fn max_abs(x: &[f32]) -> f32 = float::max_abs(x);
        /// See [`crate::float::argmax`].
        pub fn argmax(x: &[f32]) -> Option<usize> = float::argmax(x);
        /// See [`crate::float::rms_norm`].
        pub fn rms_norm(x: &[f32], gain: &[f32], eps: f32, out: &mut [f32]) = float::rms_norm(x, gain, eps, out);
        /// See [`crate::float::layer_norm`].
        pub fn layer_norm(x: &[f32], gain: &[f32], bias: &[f32], eps: f32, out: &mut [f32]) =
            float::layer_norm(x, gain, bias, eps, out);
        /// See [`crate::float::softmax`].
        pub fn softmax(row: &mut [f32]) = float::softmax(row);
        /// See [`crate::float::scaled_softmax`].
        pub fn scaled_softmax(x: &mut [f32], factor: f32, scales: &[f32]) = float::scaled_softmax(x, factor, scales);
        /// See [`crate::float::exp`].
        pub fn exp(x: &mut [f32]) = float::exp(x);
        /// See [`crate::float::silu_mul`].
        pub fn silu_mul(gate: &[f32], up: &[f32], out: &mut [f32]) = float::silu_mul(gate, up, out);
        /// See [`crate::float::gelu`].
        pub fn gelu(x: &[f32], out: &mut [f32]) = float::gelu(x, out);
        /// See [`crate::float::gelu_mul`].
        pub fn gelu_mul(gate: &[f32], up: &[f32], out: &mut [f32]) = float::gelu_mul(gate, up, out);
        /// See [`crate::float::rope`].
        pub fn rope(row: &mut [f32], cos: &[f32], sin: &[f32]) = float::rope(row, cos, sin);
        /// See [`crate::float::add`].
        pub fn add(x: &mut [f32], y: &[f32]) = float::add(x, y);
        /// See [`crate::float::log_softmax_at`].
        pub fn log_softmax_at(logits: &[f32], index: usize) -> f64 = float::log_softmax_at(logits, index);
        /// `y[m, n] = dot(x[m], w[n]) (+ bias[n])` for the columns of `out`: x `[m, k]`, w `[n, k]`, row major.
        ///
        /// Each element is summed in the order of [`crate::float::dot`], whatever `m` is, so a prefill equals decoding
        /// token by token.
        ///
        /// # Panics
        /// If the shapes do not match.
        pub fn matmul_f32(x: &[f32], w: &[f32], bias: Option<&[f32]>, k: usize, out: ColumnsMut<'_>) =
            float::matmul::<_, f32, FLOAT_ROWS, FLOAT_COLUMNS>(token(), x, w, bias, k, out);
        /// [`Self::matmul_f32`] with weights given as the bits of half-precision numbers.
        ///
        /// # Panics
        /// If the shapes do not match.
        pub fn matmul_f16(x: &[f32], w: &[u16], bias: Option<&[f32]>, k: usize, out: ColumnsMut<'_>) =
            float::matmul::<_, u16, FLOAT_ROWS, FLOAT_COLUMNS>(token(), x, w, bias, k, out);

        /// Transforms rows of `cols` values, in place; see [`squat_quant::Transform::apply`].
        ///
        /// # Panics
        /// If the transform does not fit the rows.
        pub fn transform(x: &mut [f32], cols: usize, transform: Transform) =
            transform.apply_rows_with(x, cols, |x| crate::simd::near_butterflies(token(), x));

        // Rows of codes.

        pub(crate) fn quantize_row(row: &[f32], grid: Grid, codes: &mut [i8]) -> (f32, i32) =
            rows::quantize_row(token(), row, grid, codes);
        pub(crate) fn quantize_each_row(
            rows: &mut RowsMut<'_>, x: &[f32], bits: &[ActBits], quantizer: &RowQuantizer
        ) = rows::quantize_rows(token(), rows, x, bits, quantizer);
        pub(crate) fn rms_norm_quantize(
            x: &[f32], gain: &[f32], eps: f32, grid: Grid, codes: &mut [i8]
        ) -> (f32, i32) = rows::rms_norm_quantize(x, gain, eps, grid, codes);
        pub(crate) fn silu_mul_quantize(
            gate: &[f32], up: &[f32], scratch: &mut [f32], grid: Grid, codes: &mut [i8]
        ) -> (f32, i32) = rows::silu_mul_quantize(token(), gate, up, scratch, grid, codes);

        // Integer products, by `Storage`.

        pub(crate) fn linear_bits8(matrix: &PackedMatrix, rows: RowsView<'_>, out: &mut ColumnsMut<'_>) =
            product::linear::<_, product::Bits8>(kernel(), matrix, rows, out);
        pub(crate) fn linear_bits4(matrix: &PackedMatrix, rows: RowsView<'_>, out: &mut ColumnsMut<'_>) =
            product::linear::<_, product::Bits4>(kernel(), matrix, rows, out);
        pub(crate) fn linear_bits3(matrix: &PackedMatrix, rows: RowsView<'_>, out: &mut ColumnsMut<'_>) =
            product::linear::<_, product::Bits3>(kernel(), matrix, rows, out);
        pub(crate) fn linear_bits2(matrix: &PackedMatrix, rows: RowsView<'_>, out: &mut ColumnsMut<'_>) =
            product::linear::<_, product::Bits2>(kernel(), matrix, rows, out);
        /// See [`crate::paired::product`].
        ///
        /// # Panics
        /// If shapes or codes do not match.
        pub fn paired_product(matrix: &PairedMatrix, codes: &[i8], out: &mut [i32]) =
            paired::product(matrix, codes, out);
        pub(crate) fn fill_panel(
            source: &PanelSource<'_>, blocks: &mut [MaybeUninit<Block>], sums: &mut [[i32; PANEL]]
        ) -> bool = panels::fill_panel(source, blocks, sums);

        // Steps of attention.

        /// See [`crate::attention::quantize_probabilities`].
        pub fn quantize_probabilities(
            p: &mut [f32], value_scales: &[f32], bits: &[ActBits], range: CodeRange
        ) -> [Option<f32>; 2] = attention::quantize_probabilities(p, value_scales, bits, range);
        pub(crate) fn score_narrow(
            head: &KvHead, queries: RowsView<'_>, layout: ScoreLayout, scores: &mut [f32]
        ) = attention::score::<_, attention::Narrow, WIDE_TILES>(token(), head, queries, layout, scores);
        pub(crate) fn score_wide(
            head: &KvHead, queries: RowsView<'_>, layout: ScoreLayout, scores: &mut [f32]
        ) = attention::score::<_, attention::Wide, WIDE_TILES>(token(), head, queries, layout, scores);
        pub(crate) fn probability_codes(
            head: &KvHead, len: usize, layout: ScoreLayout, prefetch: &mut ValuePrefetch<'_>, scores: &mut [f32],
            codes: &mut [u8]
        ) -> RowCodes = attention::probability_codes(token(), head, len, layout, prefetch, scores, codes);
        pub(crate) fn weigh_narrow(head: &KvHead, layout: ScoreLayout, codes: &[u8], sums: &mut [i32]) =
            attention::weigh::<_, attention::Narrow, WIDE_TILES>(token(), head, layout, codes, sums);
        pub(crate) fn weigh_wide(head: &KvHead, layout: ScoreLayout, codes: &[u8], sums: &mut [i32]) =
            attention::weigh::<_, attention::Wide, WIDE_TILES>(token(), head, layout, codes, sums);
        pub(crate) fn weigh_float(p: &[f32], lens: &[usize], values: &[f32], dim: usize, out: &mut [f32]) =
            attention::weigh_float::<_, WIDE_TILES>(token(), p, lens, values, dim, out);

        // Loops that measure the CPU, see `crate::probe`.

        pub(crate) fn integer_dots(a: &[[i8; 4]; OPERANDS]) -> Work =
            probe_loops::integer_dots::<_, INT_ROWS, INT_PANELS>(token(), a);
        pub(crate) fn float_products(a: &[[f32; 16]; OPERANDS]) -> Work =
            probe_loops::float_products::<_, FLOAT_ROWS, FLOAT_COLUMNS>(token(), a);
        pub(crate) fn read_lines(lines: &[Line]) -> u64 = probe_loops::read(token(), lines);
    } };
}

pub(crate) use kernel_functions;
