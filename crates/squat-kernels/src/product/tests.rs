//! Products of every instruction set of this CPU, on shapes small enough for an interpreter; `tests/products.rs` has the
//! rest.

use crate::{ColumnsMut, PackedMatrix, reference};
use crate::{Kernels, QuantizedRows, RowQuantizer};
use alloc::vec;
use squat_quant::{ActBits, Granularity, WeightBits, WeightScheme};

/// Partial enough for an interpreter; `tests/products.rs` has all shapes.
#[test]
fn storages_and_groups_on_a_small_odd_shape() {
    let (m, k, n) = (3, 37, 19);
    let x: vec::Vec<f32> = (0..m * k).map(|i| (i * 37 % 101) as f32 / 50.0 - 1.0).collect();
    for bits in [WeightBits::W8, WeightBits::W4, WeightBits::W3, WeightBits::W2] {
        for granularity in [16, 32].map(Granularity::PerGroup).into_iter().chain([Granularity::PerChannel]) {
            let scheme = WeightScheme { bits, granularity };
            let span = (bits.range().max - bits.range().min + 1) as usize;
            let codes: vec::Vec<i8> =
                (0..n * k).map(|i| (bits.range().min + (i * 7 % span) as i32) as i8).collect();
            let scales = vec![0.25; scheme.num_scales(n, k)];
            let matrix = PackedMatrix::from_codes(n, k, scheme, &codes, &scales).unwrap();
            for kernels in Kernels::available() {
                let mut rows = QuantizedRows::new();
                let widths = [ActBits::A8, ActBits::A4, ActBits::A8];
                kernels.quantize_rows(&mut rows, &x, k, &widths, &RowQuantizer::DYNAMIC);
                let (mut got, mut expected) = (vec![0.0; m * n], vec![0.0; m * n]);
                kernels.linear(&matrix, rows.as_view(), ColumnsMut::new(&mut got, m, n));
                reference::linear(&matrix, rows.as_view(), &mut ColumnsMut::new(&mut expected, m, n));
                assert_eq!(got, expected, "{} {scheme:?}", kernels.name());
            }
        }
    }
}
