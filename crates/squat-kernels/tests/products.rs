//! Integer products: every kernel set of this CPU equals the plain loops, bit for bit.

#![allow(clippy::unwrap_used)]

mod common;

use common::{Random, bits, kernels};
use proptest::prelude::*;
use squat_kernels::{ColumnsMut, PackedMatrix, QuantizedRows, RowQuantizer, reference};
use squat_quant::{ActBits, Affine, CodeRange, Granularity, Transform, WeightBits, WeightScheme, affine};

fn schemes() -> impl Strategy<Value = WeightScheme> {
    let granularity = prop_oneof![
        Just(Granularity::PerTensor),
        Just(Granularity::PerChannel),
        prop_oneof![Just(16usize), Just(32), Just(64), 1usize..50].prop_map(Granularity::PerGroup),
    ];
    (0..WeightBits::ALL.len(), granularity)
        .prop_map(|(bits, granularity)| WeightScheme { bits: WeightBits::ALL[bits], granularity })
}

struct Case {
    matrix: PackedMatrix,
    rows: QuantizedRows,
}

fn case(
    scheme: WeightScheme,
    (m, n, k): (usize, usize, usize),
    modes: (u8, u8),
    bias: bool,
    seed: u64,
) -> Case {
    let mut random = Random(seed);
    let range = scheme.bits.range();
    let codes = random.codes(n * k, range.min, range.max, modes.0);
    let scales: Vec<f32> = (0..scheme.num_scales(n, k)).map(|_| random.float(1.0).abs() + 1e-3).collect();
    let mut matrix = PackedMatrix::from_codes(n, k, scheme, &codes, &scales).unwrap();
    if bias {
        matrix = matrix.with_bias(&random.floats(n, 3.0)).unwrap();
    }
    let mut rows = QuantizedRows::new();
    // Stale codes in the padding, which the kernels must not read as codes.
    rows.reset(m, k + 70);
    for i in 0..m {
        let codes = random.codes(k + 70, -128, 127, 0);
        rows.as_mut().set(i, &codes, 1.0, 0, ActBits::A8);
    }
    rows.reset(m, k);
    // Kernels have a fast path for rows without zero points.
    let symmetric = random.next().is_multiple_of(2);
    for i in 0..m {
        let act = ActBits::ALL[random.next() as usize % 2];
        let range = act.range();
        let codes = random.codes(k, range.min, range.max, modes.1);
        let zero = match random.next() % 4 {
            _ if symmetric => 0,
            0 => -128,
            1 => 127,
            2 => 0,
            _ => random.between(-128, 127),
        };
        let scale = random.float(1.0).abs() + 1e-3;
        rows.as_mut().set(i, &codes, scale, zero, act);
    }
    Case { matrix, rows }
}

fn check(case: &Case, cut: usize) -> Result<(), TestCaseError> {
    let (m, n) = (case.rows.rows(), case.matrix.rows());
    let mut want = vec![f32::NAN; m * n];
    reference::linear(&case.matrix, case.rows.as_view(), &mut ColumnsMut::new(&mut want, m, n));
    for kernels in kernels() {
        let mut got = vec![f32::NAN; m * n];
        kernels.linear(&case.matrix, case.rows.as_view(), ColumnsMut::new(&mut got, m, n));
        prop_assert_eq!(bits(&got), bits(&want), "{} {:?}", kernels.name(), case.matrix.scheme());
        // Split at any column, and one row at a time.
        let mut got = vec![f32::NAN; m * n];
        let (left, right) = ColumnsMut::new(&mut got, m, n).split_at(cut);
        kernels.linear(&case.matrix, case.rows.as_view(), right);
        kernels.linear(&case.matrix, case.rows.as_view(), left);
        prop_assert_eq!(bits(&got), bits(&want), "{} split at {}", kernels.name(), cut);
        let mut got = vec![f32::NAN; m * n];
        for (i, row) in got.chunks_mut(n).enumerate() {
            kernels.linear(&case.matrix, case.rows.view(i..i + 1), ColumnsMut::new(row, 1, n));
        }
        prop_assert_eq!(bits(&got), bits(&want), "{} by rows", kernels.name());
    }
    Ok(())
}

proptest! {
    #[test]
    fn every_kernel_equals_the_reference(
        scheme in schemes(),
        m in prop_oneof![1usize..10, 10usize..18],
        n in 1usize..71,
        k in 1usize..301,
        modes in (0u8..4, 0u8..4),
        bias: bool,
        seed: u64,
        cut in 0usize..70,
    ) {
        check(&case(scheme, (m, n, k), modes, bias, seed), cut)?;
    }

    /// Sums of codes of groups are computed for up to 2048 groups at a time; rows with more groups take the plain loops.
    #[test]
    fn many_groups_equal_the_reference(m in 17usize..22, k in 2000usize..2030, seed: u64, bits in 0..WeightBits::ALL.len()) {
        // Groups that cut a step are computed by the reference itself.
        let len = if WeightBits::ALL[bits].storage_bits() == 2 { 16 } else { 8 };
        let scheme = WeightScheme { bits: WeightBits::ALL[bits], granularity: Granularity::PerGroup(len) };
        check(&case(scheme, (m, 17, k), (0, 0), false, seed), 9)?;
    }

    #[test]
    fn rows_get_the_codes_of_the_definition(
        m in 1usize..5,
        k in 1usize..200,
        seed: u64,
        fixed: bool,
        scale in 1e-3f32..0.5,
        zero in -128i32..128,
    ) {
        let mut random = Random(seed);
        let x = random.floats(m * k, 4.0);
        let widths: Vec<ActBits> = (0..m).map(|_| ActBits::ALL[random.next() as usize % 2]).collect();
        let affine = |bits: ActBits| Affine { scale, zero_point: zero, range: bits.range() };
        let quantizer = if fixed { RowQuantizer::fixed(ActBits::ALL.map(affine)).unwrap() } else { RowQuantizer::DYNAMIC };
        for kernels in kernels() {
            let mut rows = QuantizedRows::new();
            kernels.quantize_rows(&mut rows, &x, k, &widths, &quantizer);
            for i in 0..m {
                let (row, mut want) = (rows.row(i), vec![0i8; k]);
                let x = &x[i * k..(i + 1) * k];
                let (want_scale, want_zero) = if fixed {
                    affine::quantize_row(x, affine(widths[i]), &mut want);
                    (scale, zero)
                } else {
                    (affine::quantize_row_dynamic(x, widths[i].range(), &mut want), 0)
                };
                prop_assert_eq!(row.codes, &want[..]);
                prop_assert_eq!((row.scale, row.zero_point, row.bits), (want_scale, want_zero, widths[i]));
                prop_assert_eq!(row.sum, want.iter().map(|&c| i32::from(c)).sum::<i32>());
            }
        }
    }
}

#[test]
fn more_groups_than_are_summed_together() {
    let scheme = WeightScheme { bits: WeightBits::W4, granularity: Granularity::PerGroup(8) };
    // 2048 groups, the maximum of the kernels, and 2050, which the plain loops compute.
    check(&case(scheme, (3, 19, 16384), (0, 0), true, 5), 7).unwrap();
    check(&case(scheme, (3, 19, 16400), (0, 0), true, 5), 7).unwrap();
}

proptest! {
    #[test]
    fn fused_rows_equal_the_two_calls(m in 1usize..4, k in 1usize..150, seed: u64, fixed: bool, zero in -128i32..128) {
        let mut random = Random(seed);
        let (x, gain) = (random.floats(m * k, 4.0), random.floats(k, 2.0));
        let gate_up = random.floats(2 * m * k, 6.0);
        let widths: Vec<ActBits> = (0..m).map(|_| ActBits::ALL[random.next() as usize % 2]).collect();
        let affine = |bits: ActBits| Affine { scale: 0.07, zero_point: zero, range: bits.range() };
        let quantizer = if fixed { RowQuantizer::fixed(ActBits::ALL.map(affine)).unwrap() } else { RowQuantizer::DYNAMIC };
        for kernels in kernels() {
            let (mut want, mut got) = (QuantizedRows::new(), QuantizedRows::new());
            let mut values = vec![0f32; m * k];
            for (x, out) in x.chunks(k).zip(values.chunks_mut(k)) {
                kernels.rms_norm(x, &gain, 1e-5, out);
            }
            kernels.quantize_rows(&mut want, &values, k, &widths, &quantizer);
            got.reset(m, k);
            kernels.rms_norm_quantize_into(got.as_mut(), &x, &gain, 1e-5, &widths, &quantizer);
            for i in 0..m {
                prop_assert_eq!(format!("{:?}", got.row(i)), format!("{:?}", want.row(i)), "norm {}", kernels.name());
            }
            for (row, out) in gate_up.chunks(2 * k).zip(values.chunks_mut(k)) {
                kernels.silu_mul(&row[..k], &row[k..], out);
            }
            let transform = if k % 4 == 0 { Transform::Interleaved(4) } else { Transform::None };
            kernels.transform(&mut values, k, transform);
            kernels.quantize_rows(&mut want, &values, k, &widths, &quantizer);
            kernels.silu_mul_quantize_into(got.as_mut(), &gate_up, &mut vec![0.0; k], transform, &widths, &quantizer);
            for i in 0..m {
                prop_assert_eq!(format!("{:?}", got.row(i)), format!("{:?}", want.row(i)), "silu {}", kernels.name());
            }
        }
    }
}

#[test]
fn the_largest_sums_are_exact() {
    // 65536 inputs, all operands at their limits: 255 * 128 * 65536 is just below 2^31.
    for bits in [WeightBits::W8, WeightBits::W4, WeightBits::W3, WeightBits::W2] {
        let k = squat_kernels::MAX_COLS;
        let scheme = WeightScheme::per_channel(bits);
        let low = bits.range().min;
        let codes = vec![low as i8; k];
        let matrix = PackedMatrix::from_codes(1, k, scheme, &codes, &[1.0]).unwrap();
        for (code, zero) in [(-128i8, 127), (127, -128), (-128, 0)] {
            let mut rows = QuantizedRows::new();
            rows.reset(1, k);
            rows.as_mut().set(0, &vec![code; k], 1.0, zero, ActBits::A8);
            let want = (i64::from(low) * (i64::from(code) - i64::from(zero)) * k as i64) as f32;
            for kernels in kernels() {
                let mut y = [0f32];
                kernels.linear(&matrix, rows.as_view(), ColumnsMut::new(&mut y, 1, 1));
                assert_eq!(y[0], want, "{} {bits:?}", kernels.name());
            }
        }
    }
}

#[test]
fn rows_that_no_byte_holds_are_refused() {
    let wide = Affine { scale: 1.0, zero_point: 0, range: CodeRange::unsigned(8) };
    let error = RowQuantizer::fixed([wide, wide]).unwrap_err().to_string();
    assert!(error.contains("0..=255"), "{error}");
    let flat = Affine { scale: f32::NAN, zero_point: 0, range: CodeRange::signed(8) };
    assert!(RowQuantizer::fixed([flat, flat]).unwrap_err().to_string().contains("NaN"));
}

#[test]
fn empty_products() {
    let scheme = WeightScheme::per_channel(WeightBits::W4);
    for kernels in kernels() {
        let matrix = PackedMatrix::from_codes(3, 0, scheme, &[], &[1.0; 3]).unwrap();
        let mut rows = QuantizedRows::new();
        rows.reset(2, 0);
        kernels.quantize_into(rows.as_mut(), &[], &[ActBits::A8], &RowQuantizer::DYNAMIC);
        let mut y = [1f32; 6];
        kernels.linear(&matrix, rows.as_view(), ColumnsMut::new(&mut y, 2, 3));
        assert_eq!(y, [0.0; 6]);
        kernels.linear(&matrix, rows.view(0..0), ColumnsMut::new(&mut y, 0, 3));
    }
}
