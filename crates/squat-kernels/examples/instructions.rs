//! Calls every kernel once, each from a function of its own, so that `benches/instructions` can count its instructions.
#![allow(clippy::unwrap_used)]

use squat_kernels::{ColumnsMut, Kernels, PackedMatrix, QuantizedRows, RowQuantizer};
use squat_quant::{ActBits, Granularity, WeightBits, WeightScheme};
use std::hint::black_box;

/// Inputs and outputs of the products: slightly more than a multiple of every tile.
const SHAPE: (usize, usize) = (272, 216);

fn numbers(n: usize) -> Vec<f32> {
    (0..n as u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 8) as f32 / (1 << 23) as f32 - 1.0).collect()
}

fn matrix(scheme: WeightScheme) -> PackedMatrix {
    let (k, n) = SHAPE;
    PackedMatrix::quantize(n, k, scheme, &numbers(n * k), &vec![0.1; scheme.num_scales(n, k)]).unwrap()
}

fn rows(kernels: &Kernels, m: usize) -> QuantizedRows {
    let mut rows = QuantizedRows::new();
    kernels.quantize_rows(&mut rows, &numbers(m * SHAPE.0), SHAPE.0, &[ActBits::A8], &RowQuantizer::DYNAMIC);
    rows
}

/// One product in a function of its own.
macro_rules! product {
    ($name:ident) => {
        #[inline(never)]
        fn $name(kernels: &Kernels, matrix: &PackedMatrix, rows: &QuantizedRows, y: &mut [f32]) {
            // Functions with identical bodies would be merged.
            black_box(stringify!($name));
            kernels.linear(matrix, rows.as_view(), ColumnsMut::new(black_box(y), rows.rows(), SHAPE.1));
        }
    };
}
product!(count_w8_row);
product!(count_w8_rows_33);
product!(count_w4_row);
product!(count_w4_rows_33);
product!(count_w3_row);
product!(count_w3_rows_33);
product!(count_w2_row);
product!(count_w2_rows_33);
product!(count_w4_groups_rows_33);

#[inline(never)]
fn count_quantize_rows_33(kernels: &Kernels, rows: &mut QuantizedRows, x: &[f32]) {
    kernels.quantize_rows(rows, black_box(x), SHAPE.0, &[ActBits::A8], &RowQuantizer::DYNAMIC);
}

#[inline(never)]
fn count_norm_quantize_rows_33(kernels: &Kernels, rows: &mut QuantizedRows, x: &[f32], gain: &[f32]) {
    let widths = [ActBits::A8];
    kernels.rms_norm_quantize_into(rows.as_mut(), black_box(x), gain, 1e-5, &widths, &RowQuantizer::DYNAMIC);
}

#[inline(never)]
fn count_f32_rows_33(kernels: &Kernels, x: &[f32], w: &[f32], y: &mut [f32]) {
    kernels.matmul_f32(black_box(x), w, None, SHAPE.0, ColumnsMut::new(y, 33, SHAPE.1));
}

#[inline(never)]
fn count_f16_row(kernels: &Kernels, x: &[f32], w: &[u16], y: &mut [f32]) {
    kernels.matmul_f16(black_box(x), w, None, SHAPE.0, ColumnsMut::new(y, 1, SHAPE.1));
}

fn main() {
    let kernels = Kernels::detect();
    let (k, n) = SHAPE;
    let mut y = vec![0f32; 33 * n];
    let (one, many) = (rows(kernels, 1), rows(kernels, 33));
    let per_channel = |bits| matrix(WeightScheme::per_channel(bits));
    let [w8, w4, w3, w2, _] = WeightBits::ALL.map(per_channel);
    let groups = matrix(WeightScheme { bits: WeightBits::W4, granularity: Granularity::PerGroup(64) });
    count_w8_row(kernels, &w8, &one, &mut y);
    count_w8_rows_33(kernels, &w8, &many, &mut y);
    count_w4_row(kernels, &w4, &one, &mut y);
    count_w4_rows_33(kernels, &w4, &many, &mut y);
    count_w3_row(kernels, &w3, &one, &mut y);
    count_w3_rows_33(kernels, &w3, &many, &mut y);
    count_w2_row(kernels, &w2, &one, &mut y);
    count_w2_rows_33(kernels, &w2, &many, &mut y);
    count_w4_groups_rows_33(kernels, &groups, &many, &mut y);
    let (x, w) = (numbers(33 * k), numbers(n * k));
    let mut codes = QuantizedRows::new();
    codes.reset(33, k);
    count_quantize_rows_33(kernels, &mut codes, &x);
    count_norm_quantize_rows_33(kernels, &mut codes, &x, &x[..k]);
    count_f32_rows_33(kernels, &x, &w, &mut y);
    let halves: Vec<u16> = (0..n * k).map(|i| (i as u16) & 0x3fff).collect();
    count_f16_row(kernels, &x[..k], &halves, &mut y);
    black_box(&y);
}
