//! Packing and reading back.

extern crate std;
use super::*;
use crate::Kernels;
use proptest::prelude::*;
use squat_quant::WeightBits;
use std::vec::Vec;

fn granularities() -> impl Strategy<Value = Granularity> {
    prop_oneof![
        Just(Granularity::PerTensor),
        Just(Granularity::PerChannel),
        (1usize..40).prop_map(Granularity::PerGroup),
    ]
}

proptest! {
    #[test]
    fn codes_come_back(rows in 1usize..40, cols in 1usize..70, granularity in granularities(), bits in 0usize..5, seed: u64) {
        let scheme = WeightScheme { bits: WeightBits::ALL[bits], granularity };
        let range = scheme.bits.range();
        let mut state = seed;
        let mut next = || { state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407); (state >> 33) as u32 };
        let codes: Vec<i8> = (0..rows * cols).map(|_| (range.min + (next() % (range.max - range.min + 1) as u32) as i32) as i8).collect();
        let scales: Vec<f32> = (0..scheme.num_scales(rows, cols)).map(|_| next() as f32 / 1e9 + 0.01).collect();
        let matrix = PackedMatrix::from_codes(rows, cols, scheme, &codes, &scales).unwrap();
        let mut row_values = vec![0f32; cols];
        for row in 0..rows {
            matrix.dequantize_row(row, &mut row_values);
            for col in 0..cols {
                let code = codes[row * cols + col];
                prop_assert_eq!(matrix.code(row, col), code);
                let scale = scales[scheme.scale_index(row, col, cols)];
                prop_assert_eq!(matrix.scale(row, col), scale);
                prop_assert_eq!(row_values[col].to_bits(), (scale * f32::from(code)).to_bits());
            }
        }
    }
}

/// Rows of words as files hold them, with `junk` in the bits after the last code.
fn file_words(codes: &[i8], cols: usize, bits: u32, junk: u32) -> Vec<Vec<i32>> {
    let row = |codes: &[i8]| {
        let words = (cols * bits as usize).div_ceil(32);
        let mut bytes = vec![0u8; words * 4];
        pack_bits(codes, bits, &mut bytes[..packed_len(cols, bits)]).unwrap();
        let mut words: Vec<i32> = bytes.as_chunks().0.iter().map(|quad| i32::from_le_bytes(*quad)).collect();
        let used = cols * bits as usize % 32;
        if used > 0 {
            *words.last_mut().unwrap() |= (junk << used) as i32;
        }
        words
    };
    codes.chunks_exact(cols).map(row).collect()
}

proptest! {
    #[test]
    fn words_and_codes_give_the_same_matrix(
        rows in 1usize..40, cols in 1usize..700, granularity in granularities(), aligned: bool, bits in 0usize..5,
        seed: u64
    ) {
        let granularity = match granularity {
            Granularity::PerGroup(n) if aligned => Granularity::PerGroup(n * 16),
            other => other,
        };
        let scheme = WeightScheme { bits: WeightBits::ALL[bits], granularity };
        let range = scheme.bits.range();
        let mut state = seed;
        let mut next = || { state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407); (state >> 33) as u32 };
        let codes: Vec<i8> = (0..rows * cols).map(|_| (range.min + (next() % (range.max - range.min + 1) as u32) as i32) as i8).collect();
        let scales: Vec<f32> = (0..scheme.num_scales(rows, cols)).map(|_| next() as f32 / 1e9 + 0.01).collect();
        let want = PackedMatrix::from_codes(rows, cols, scheme, &codes, &scales).unwrap();
        let mut words = file_words(&codes, cols, scheme.bits.storage_bits(), next());
        for kernels in Kernels::available() {
            let got = kernels.matrix_from_words(None, rows, cols, scheme, &scales, |row| &words[row]).unwrap();
            prop_assert!(got.blocks == want.blocks, "{}: blocks", kernels.name());
            prop_assert_eq!(&got.sums, &want.sums, "{}: sums", kernels.name());
            prop_assert_eq!(&got.scales, &want.scales);
        }
        if scheme.bits == WeightBits::Ternary {
            // A field of 0 is the code -2, which is not ternary.
            let (row, col) = (next() as usize % rows, next() as usize % cols);
            words[row][col / 16] &= !(3 << (col % 16 * 2));
            let first = Kernels::detect().matrix_from_words(None, rows, cols, scheme, &scales, |row| &words[row]);
            prop_assert_eq!(first.unwrap_err(), MatrixError::Code(row, col, -2, scheme.bits));
        }
    }
}

#[test]
fn misfits_are_refused() {
    let w4 = WeightScheme::per_channel(WeightBits::W4);
    assert_eq!(
        PackedMatrix::from_codes(1, 2, w4, &[1, 8], &[1.0]).unwrap_err(),
        MatrixError::Code(0, 1, 8, WeightBits::W4)
    );
    assert_eq!(PackedMatrix::from_codes(2, 1, w4, &[1], &[1.0, 1.0]).unwrap_err(), MatrixError::Codes(2, 1));
    assert_eq!(PackedMatrix::from_codes(2, 1, w4, &[1, 1], &[1.0]).unwrap_err(), MatrixError::Scales(2, 1));
    assert!(matches!(
        PackedMatrix::from_codes(1, 1, w4, &[1], &[f32::NAN]).unwrap_err(),
        MatrixError::Scale(0, _)
    ));
    let wide = MAX_COLS + 1;
    assert_eq!(
        PackedMatrix::from_codes(0, wide, w4, &[], &[]).unwrap_err(),
        MatrixError::Columns(MAX_COLS, wide)
    );
    let short = Kernels::scalar().matrix_from_words(None, 1, 9, w4, &[1.0], |_| &[0]);
    assert_eq!(short.unwrap_err(), MatrixError::Words(0, 2, 1));
    let one = PackedMatrix::from_codes(1, 1, w4, &[1], &[1.0]).unwrap();
    assert_eq!(one.with_bias(&[]).unwrap_err(), MatrixError::Bias(1, 0));
}

#[test]
fn every_instruction_set_packs_the_same() {
    for bits in WeightBits::ALL {
        let scheme = WeightScheme { bits, granularity: Granularity::PerGroup(24) };
        let (rows, cols) = (21, 77);
        let weight: Vec<f32> = (0..rows * cols).map(|i| ((i * 37 % 101) as f32 - 50.0) * 0.11).collect();
        let scales: Vec<f32> = (0..scheme.num_scales(rows, cols)).map(|i| 0.2 + 0.01 * i as f32).collect();
        let plain = PackedMatrix::quantize(rows, cols, scheme, &weight, &scales).unwrap();
        for kernels in crate::Kernels::available() {
            let fast = kernels.quantize_matrix(rows, cols, scheme, &weight, &scales).unwrap();
            assert_eq!(fast.blocks, plain.blocks, "{kernels:?} {bits:?}");
            assert_eq!((fast.sums, fast.scales), (plain.sums.clone(), plain.scales.clone()));
        }
    }
}

#[test]
fn four_bit_weights_take_half_a_byte() {
    let scheme = WeightScheme::per_channel(WeightBits::W4);
    let matrix = PackedMatrix::from_codes(64, 128, scheme, &[1; 64 * 128], &[1.0; 64]).unwrap();
    assert_eq!(matrix.bytes(), 64 * 128 / 2 + 64 * 8);
}

#[test]
fn three_bit_weights_take_three_bits() {
    for (granularity, storage) in [
        (Granularity::PerChannel, Storage::Bits3),
        (Granularity::PerGroup(64), Storage::Bits3),
        (Granularity::PerGroup(48), Storage::Bits4),
    ] {
        let scheme = WeightScheme { bits: WeightBits::W3, granularity };
        let scales = vec![1.0; scheme.num_scales(64, 192)];
        let matrix = PackedMatrix::from_codes(64, 192, scheme, &[1; 64 * 192], &scales).unwrap();
        assert_eq!(matrix.storage(), storage);
        assert_eq!(matrix.bytes(), 64 * 192 * storage.bits() / 8 + scales.len() * 8);
    }
}
