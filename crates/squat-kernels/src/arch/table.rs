//! The table of functions of an instruction set, and the macro that compiles it.

use crate::attention::{FloatSteps, Steps};
use crate::matrix::{Block, PANEL, PackedMatrix};
use crate::output::ColumnsMut;
use crate::paired::PairedMatrix;
use crate::panels::PanelSource;
use crate::rows::{Grid, RowQuantizer, RowsMut, RowsView};
use core::mem::MaybeUninit;
use squat_quant::ActBits;

/// Plain function pointers. A table is only handed out once the CPU is known to have its instructions.
pub(crate) struct Table {
    pub dot: fn(&[f32], &[f32]) -> f32,
    pub sum_squares: fn(&[f32]) -> f32,
    pub max_abs: fn(&[f32]) -> f32,
    pub argmax: fn(&[f32]) -> Option<usize>,
    pub rms_norm: fn(&[f32], &[f32], f32, &mut [f32]),
    pub layer_norm: fn(&[f32], &[f32], &[f32], f32, &mut [f32]),
    pub softmax: fn(&mut [f32]),
    pub exp: fn(&mut [f32]),
    pub silu_mul: fn(&[f32], &[f32], &mut [f32]),
    pub gelu: fn(&[f32], &mut [f32]),
    pub rope: fn(&mut [f32], &[f32], &[f32]),
    pub add: fn(&mut [f32], &[f32]),
    pub log_softmax_at: fn(&[f32], usize) -> f64,
    pub matmul_f32: fn(&[f32], &[f32], Option<&[f32]>, usize, &mut ColumnsMut<'_>),
    pub matmul_f16: fn(&[f32], &[u16], Option<&[f32]>, usize, &mut ColumnsMut<'_>),
    pub quantize: fn(&[f32], Grid, &mut [i8]) -> (f32, i32),
    pub quantize_rows: fn(&mut RowsMut<'_>, &[f32], &[ActBits], &RowQuantizer),
    pub rms_norm_quantize: fn(&[f32], &[f32], f32, Grid, &mut [i8]) -> (f32, i32),
    pub silu_mul_quantize: fn(&[f32], &[f32], &mut [f32], Grid, &mut [i8]) -> (f32, i32),
    /// By [`crate::Storage`].
    pub linear: [fn(&PackedMatrix, RowsView<'_>, &mut ColumnsMut<'_>); 4],
    pub paired: fn(&PairedMatrix, &[i8], &mut [i32]),
    /// See [`crate::probe`].
    #[cfg(feature = "std")]
    pub integer_peak: fn(&[[i8; 4]; crate::probe::OPERANDS]) -> crate::probe::Work,
    #[cfg(feature = "std")]
    pub float_peak: fn(&[[f32; 16]; crate::probe::OPERANDS]) -> crate::probe::Work,
    #[cfg(feature = "std")]
    pub read: fn(&[crate::probe::Line]) -> u64,
    pub fill_panel: fn(&PanelSource<'_>, &mut [MaybeUninit<Block>], &mut [[i32; PANEL]]) -> bool,
    pub attention: Steps,
    pub float_attention: FloatSteps,
    /// Whether [`Self::attention`] takes 8 rows at a time, or 4.
    pub large: bool,
}

/// Compiles every function for one instruction set.
///
/// `features` are the target features (none for the portable table), `token` an expression of the token type, `float`
/// the tile of float products (rows of x, rows of w), `int` the tile of integer products (rows, panels, blocks in
/// flight for a single row), `large` whether attention may keep many sums in registers.
macro_rules! kernel_table {
    ($(#[$doc:meta])* $vis:vis static $table:ident = [$($features:literal)?], token: $token:expr, float: ($fm:literal, $fn:literal),
     int: ($im:literal, $in:literal, $unroll:literal), large: $large:literal) => {
        mod instances {
            #[allow(unused_imports)]
            use super::*;
            use crate::attention::{self, Ahead, KvHead, Narrow, Places, RowCodes, Wide};
            use crate::float;
            use crate::matrix::{Block, PANEL, PackedMatrix};
            use crate::output::ColumnsMut;
            use crate::panels::{self, PanelSource};
            use crate::paired::{self, PairedMatrix};
            use crate::product;
            use crate::rows::{self, Grid, RowQuantizer, RowsMut, RowsView};
            use core::mem::MaybeUninit;
            use squat_quant::ActBits;

            $(#[target_feature(enable = $features)])?
            pub fn dot(a: &[f32], b: &[f32]) -> f32 {
                float::dot_with($token, a, b)
            }
            $(#[target_feature(enable = $features)])?
            pub fn sum_squares(x: &[f32]) -> f32 {
                float::sum_squares(x)
            }
            $(#[target_feature(enable = $features)])?
            pub fn max_abs(x: &[f32]) -> f32 {
                float::max_abs(x)
            }
            $(#[target_feature(enable = $features)])?
            pub fn argmax(x: &[f32]) -> Option<usize> {
                float::argmax(x)
            }
            $(#[target_feature(enable = $features)])?
            pub fn rms_norm(x: &[f32], gain: &[f32], eps: f32, out: &mut [f32]) {
                float::rms_norm(x, gain, eps, out)
            }
            $(#[target_feature(enable = $features)])?
            pub fn layer_norm(x: &[f32], gain: &[f32], bias: &[f32], eps: f32, out: &mut [f32]) {
                float::layer_norm(x, gain, bias, eps, out)
            }
            $(#[target_feature(enable = $features)])?
            pub fn softmax(row: &mut [f32]) {
                float::softmax(row)
            }
            $(#[target_feature(enable = $features)])?
            pub fn exp(x: &mut [f32]) {
                float::exp(x)
            }
            $(#[target_feature(enable = $features)])?
            pub fn silu_mul(gate: &[f32], up: &[f32], out: &mut [f32]) {
                float::silu_mul(gate, up, out)
            }
            $(#[target_feature(enable = $features)])?
            pub fn gelu(x: &[f32], out: &mut [f32]) {
                float::gelu(x, out)
            }
            $(#[target_feature(enable = $features)])?
            pub fn rope(row: &mut [f32], cos: &[f32], sin: &[f32]) {
                float::rope(row, cos, sin)
            }
            $(#[target_feature(enable = $features)])?
            pub fn add(x: &mut [f32], y: &[f32]) {
                float::add(x, y)
            }
            $(#[target_feature(enable = $features)])?
            pub fn log_softmax_at(logits: &[f32], index: usize) -> f64 {
                float::log_softmax_at(logits, index)
            }
            $(#[target_feature(enable = $features)])?
            pub fn matmul_f32(x: &[f32], w: &[f32], bias: Option<&[f32]>, k: usize, out: &mut ColumnsMut<'_>) {
                float::matmul::<_, f32, $fm, $fn>($token, x, w, bias, k, out)
            }
            $(#[target_feature(enable = $features)])?
            pub fn matmul_f16(x: &[f32], w: &[u16], bias: Option<&[f32]>, k: usize, out: &mut ColumnsMut<'_>) {
                float::matmul::<_, u16, $fm, $fn>($token, x, w, bias, k, out)
            }
            $(#[target_feature(enable = $features)])?
            pub fn quantize(row: &[f32], grid: Grid, codes: &mut [i8]) -> (f32, i32) {
                rows::quantize_row($token, row, grid, codes)
            }
            $(#[target_feature(enable = $features)])?
            pub fn quantize_rows(rows: &mut RowsMut<'_>, x: &[f32], bits: &[ActBits], quantizer: &RowQuantizer) {
                rows::quantize_rows($token, rows, x, bits, quantizer)
            }
            $(#[target_feature(enable = $features)])?
            pub fn rms_norm_quantize(x: &[f32], gain: &[f32], eps: f32, grid: Grid, codes: &mut [i8]) -> (f32, i32) {
                rows::rms_norm_quantize(x, gain, eps, grid, codes)
            }
            $(#[target_feature(enable = $features)])?
            pub fn silu_mul_quantize(gate: &[f32], up: &[f32], scratch: &mut [f32], grid: Grid, codes: &mut [i8]) -> (f32, i32) {
                rows::silu_mul_quantize($token, gate, up, scratch, grid, codes)
            }
            $(#[target_feature(enable = $features)])?
            pub fn linear_bytes(matrix: &PackedMatrix, rows: RowsView<'_>, out: &mut ColumnsMut<'_>) {
                product::linear::<_, product::Bytes, $im, $in, $unroll>($token, matrix, rows, out)
            }
            $(#[target_feature(enable = $features)])?
            pub fn linear_nibbles(matrix: &PackedMatrix, rows: RowsView<'_>, out: &mut ColumnsMut<'_>) {
                product::linear::<_, product::Nibbles, $im, $in, $unroll>($token, matrix, rows, out)
            }
            $(#[target_feature(enable = $features)])?
            pub fn linear_octals(matrix: &PackedMatrix, rows: RowsView<'_>, out: &mut ColumnsMut<'_>) {
                product::linear::<_, product::Octals, $im, $in, $unroll>($token, matrix, rows, out)
            }
            $(#[target_feature(enable = $features)])?
            pub fn linear_crumbs(matrix: &PackedMatrix, rows: RowsView<'_>, out: &mut ColumnsMut<'_>) {
                product::linear::<_, product::Crumbs, $im, $in, $unroll>($token, matrix, rows, out)
            }
            $(#[target_feature(enable = $features)])?
            pub fn paired(matrix: &PairedMatrix, codes: &[i8], out: &mut [i32]) {
                paired::product(matrix, codes, out)
            }
            #[cfg(feature = "std")]
            $(#[target_feature(enable = $features)])?
            pub fn integer_peak(a: &[[i8; 4]; crate::probe::OPERANDS]) -> crate::probe::Work {
                let w = core::hint::black_box([[crate::matrix::Block([7; 64]), crate::matrix::Block([9; 64])]; $in]);
                crate::probe::integer_dots::<_, $im, $in>($token, &w, a)
            }
            #[cfg(feature = "std")]
            $(#[target_feature(enable = $features)])?
            pub fn float_peak(a: &[[f32; 16]; crate::probe::OPERANDS]) -> crate::probe::Work {
                let w = core::hint::black_box([[0.5; 16]; $fn]);
                crate::probe::float_products::<_, $fm, $fn>($token, &w, a)
            }
            #[cfg(feature = "std")]
            $(#[target_feature(enable = $features)])?
            pub fn read(lines: &[crate::probe::Line]) -> u64 {
                crate::probe::read($token, lines)
            }
            $(#[target_feature(enable = $features)])?
            pub fn fill_panel(source: &PanelSource<'_>, blocks: &mut [MaybeUninit<Block>], sums: &mut [[i32; PANEL]]) -> bool {
                panels::fill_panel(source, blocks, sums)
            }
            $(#[target_feature(enable = $features)])?
            pub fn score_narrow(head: &KvHead, queries: RowsView<'_>, places: Places, scores: &mut [f32]) {
                attention::score::<_, Narrow, $large>($token, head, queries, places, scores)
            }
            $(#[target_feature(enable = $features)])?
            pub fn score_wide(head: &KvHead, queries: RowsView<'_>, places: Places, scores: &mut [f32]) {
                attention::score::<_, Wide, $large>($token, head, queries, places, scores)
            }
            $(#[target_feature(enable = $features)])?
            pub fn weights(head: &KvHead, len: usize, places: Places, ahead: &mut Ahead<'_>, scores: &mut [f32], codes: &mut [u8]) -> RowCodes {
                attention::weights($token, head, len, places, ahead, scores, codes)
            }
            $(#[target_feature(enable = $features)])?
            pub fn weigh_narrow(head: &KvHead, places: Places, codes: &[u8], sums: &mut [i32]) {
                attention::weigh::<_, Narrow, $large>($token, head, places, codes, sums)
            }
            $(#[target_feature(enable = $features)])?
            pub fn weigh_wide(head: &KvHead, places: Places, codes: &[u8], sums: &mut [i32]) {
                attention::weigh::<_, Wide, $large>($token, head, places, codes, sums)
            }
            $(#[target_feature(enable = $features)])?
            pub fn weigh_float(p: &[f32], lens: &[usize], values: &[f32], dim: usize, out: &mut [f32]) {
                attention::weigh_float::<_, $large>($token, p, lens, values, dim, out)
            }
        }

        $(#[$doc])*
        // SAFETY (of every entry): the table is reached only through `dispatch`, which hands it out when the CPU has
        // the target features; the functions have no other condition.
        #[allow(unused_unsafe, clippy::undocumented_unsafe_blocks)]
        $vis static $table: crate::arch::Table = crate::arch::Table {
            dot: |a, b| unsafe { instances::dot(a, b) },
            sum_squares: |x| unsafe { instances::sum_squares(x) },
            max_abs: |x| unsafe { instances::max_abs(x) },
            argmax: |x| unsafe { instances::argmax(x) },
            rms_norm: |x, gain, eps, out| unsafe { instances::rms_norm(x, gain, eps, out) },
            layer_norm: |x, gain, bias, eps, out| unsafe { instances::layer_norm(x, gain, bias, eps, out) },
            softmax: |row| unsafe { instances::softmax(row) },
            exp: |x| unsafe { instances::exp(x) },
            silu_mul: |gate, up, out| unsafe { instances::silu_mul(gate, up, out) },
            gelu: |x, out| unsafe { instances::gelu(x, out) },
            rope: |row, cos, sin| unsafe { instances::rope(row, cos, sin) },
            add: |x, y| unsafe { instances::add(x, y) },
            log_softmax_at: |logits, index| unsafe { instances::log_softmax_at(logits, index) },
            matmul_f32: |x, w, bias, k, out| unsafe { instances::matmul_f32(x, w, bias, k, out) },
            matmul_f16: |x, w, bias, k, out| unsafe { instances::matmul_f16(x, w, bias, k, out) },
            quantize: |row, grid, codes| unsafe { instances::quantize(row, grid, codes) },
            quantize_rows: |rows, x, bits, quantizer| unsafe { instances::quantize_rows(rows, x, bits, quantizer) },
            rms_norm_quantize: |x, gain, eps, grid, codes| unsafe {
                instances::rms_norm_quantize(x, gain, eps, grid, codes)
            },
            silu_mul_quantize: |gate, up, scratch, grid, codes| unsafe {
                instances::silu_mul_quantize(gate, up, scratch, grid, codes)
            },
            linear: [
                |matrix, rows, out| unsafe { instances::linear_bytes(matrix, rows, out) },
                |matrix, rows, out| unsafe { instances::linear_nibbles(matrix, rows, out) },
                |matrix, rows, out| unsafe { instances::linear_octals(matrix, rows, out) },
                |matrix, rows, out| unsafe { instances::linear_crumbs(matrix, rows, out) },
            ],
            paired: |matrix, codes, out| unsafe { instances::paired(matrix, codes, out) },
            #[cfg(feature = "std")]
            integer_peak: |a| unsafe { instances::integer_peak(a) },
            #[cfg(feature = "std")]
            float_peak: |a| unsafe { instances::float_peak(a) },
            #[cfg(feature = "std")]
            read: |lines| unsafe { instances::read(lines) },
            fill_panel: |source, blocks, sums| unsafe { instances::fill_panel(source, blocks, sums) },
            attention: crate::attention::Steps {
                score: [
                    |head, queries, places, scores| unsafe { instances::score_narrow(head, queries, places, scores) },
                    |head, queries, places, scores| unsafe { instances::score_wide(head, queries, places, scores) },
                ],
                weights: |head, len, places, ahead, scores, codes| unsafe {
                    instances::weights(head, len, places, ahead, scores, codes)
                },
                weigh: [
                    |head, places, codes, sums| unsafe { instances::weigh_narrow(head, places, codes, sums) },
                    |head, places, codes, sums| unsafe { instances::weigh_wide(head, places, codes, sums) },
                ],
            },
            float_attention: crate::attention::FloatSteps {
                matmul: |x, w, bias, k, out| unsafe { instances::matmul_f32(x, w, bias, k, out) },
                softmax: |row| unsafe { instances::softmax(row) },
                weigh: |p, lens, values, dim, out| unsafe { instances::weigh_float(p, lens, values, dim, out) },
            },
            large: $large,
        };
    };
}

pub(crate) use kernel_table;
