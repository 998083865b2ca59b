//! Float functions: every instruction set equals the portable one, bit for bit.

#![allow(clippy::unwrap_used)]

mod common;

use common::{Random, bits, kernels};
use proptest::prelude::*;
use squat_kernels::{ColumnsMut, float};
use squat_quant::{ActBits, Affine, CodeRange, Transform, dynamic_scale};

proptest! {
    #[test]
    fn functions_of_rows(n in 1usize..200, seed: u64, largest in prop_oneof![Just(1.0f32), Just(30.0), Just(1e10)]) {
        let mut random = Random(seed);
        let (x, y) = (random.floats(n, largest), random.floats(n, 2.0));
        for kernels in kernels() {
            let name = kernels.name();
            prop_assert_eq!(kernels.dot(&x, &y).to_bits(), float::dot(&x, &y).to_bits(), "{}", name);
            prop_assert_eq!(kernels.sum_squares(&x).to_bits(), float::sum_squares(&x).to_bits(), "{}", name);
            prop_assert_eq!(kernels.max_abs(&x).to_bits(), float::max_abs(&x).to_bits(), "{}", name);
            prop_assert_eq!(kernels.argmax(&x), float::argmax(&x));
            prop_assert_eq!(kernels.log_softmax_at(&x, n / 2).to_bits(), float::log_softmax_at(&x, n / 2).to_bits());
            let (mut got, mut want) = (vec![0f32; n], vec![0f32; n]);
            kernels.rms_norm(&x, &y, 1e-5, &mut got);
            float::rms_norm(&x, &y, 1e-5, &mut want);
            prop_assert_eq!(bits(&got), bits(&want), "rms_norm {}", name);
            kernels.silu_mul(&x, &y, &mut got);
            float::silu_mul(&x, &y, &mut want);
            prop_assert_eq!(bits(&got), bits(&want), "silu_mul {}", name);
            kernels.gelu_mul(&x, &y, &mut got);
            float::gelu(&x, &mut want);
            want.iter_mut().zip(&y).for_each(|(want, y)| *want *= y);
            prop_assert_eq!(bits(&got), bits(&want), "gelu_mul {}", name);
            kernels.layer_norm(&x, &y, &x, 1e-5, &mut got);
            float::layer_norm(&x, &y, &x, 1e-5, &mut want);
            prop_assert_eq!(bits(&got), bits(&want), "layer_norm {}", name);
            kernels.gelu(&x, &mut got);
            float::gelu(&x, &mut want);
            prop_assert_eq!(bits(&got), bits(&want), "gelu {}", name);
            kernels.add(&mut got, &x);
            float::add(&mut want, &x);
            prop_assert_eq!(bits(&got), bits(&want), "add {}", name);
            (got, want) = (x.clone(), x.clone());
            kernels.softmax(&mut got);
            float::softmax(&mut want);
            prop_assert_eq!(bits(&got), bits(&want), "softmax {}", name);
            (got, want) = (x.clone(), x.clone());
            kernels.scaled_softmax(&mut got, 0.125, &y);
            float::scaled_softmax(&mut want, 0.125, &y);
            prop_assert_eq!(bits(&got), bits(&want), "scaled_softmax {}", name);
            (got, want) = (x.clone(), x.clone());
            let widths: Vec<ActBits> = y.iter().map(|&y| ActBits::ALL[usize::from(y > 0.5)]).collect();
            let range = CodeRange::unsigned(8);
            let scales = kernels.quantize_probabilities(&mut got, &y, &widths, range);
            for (width, scale) in ActBits::ALL.into_iter().zip(scales) {
                let of_width = |j: &usize| widths[*j] == width;
                let products = (0..n).filter(of_width).map(|j| want[j] * y[j]);
                let largest = products.fold(None, |m: Option<f32>, u| Some(m.unwrap_or(0.0).max(u)));
                prop_assert_eq!(scale, largest.map(|u| dynamic_scale(u, range)), "quantize_probabilities {}", name);
                for j in (0..n).filter(of_width) {
                    want[j] = Affine::symmetric(scale.unwrap(), range).centered(want[j] * y[j]);
                }
            }
            prop_assert_eq!(bits(&got), bits(&want), "quantize_probabilities {}", name);
            (got, want) = (x.clone(), x.clone());
            kernels.exp(&mut got);
            float::exp(&mut want);
            prop_assert_eq!(bits(&got), bits(&want), "exp {}", name);
            let half = n / 2;
            (got, want) = (x[..2 * half].to_vec(), x[..2 * half].to_vec());
            kernels.rope(&mut got, &y[..half], &y[half..2 * half]);
            float::rope(&mut want, &y[..half], &y[half..2 * half]);
            prop_assert_eq!(bits(&got), bits(&want), "rope {}", name);
        }
    }

    #[test]
    fn transforms(
        size in prop::sample::select(vec![2usize, 8, 12, 16, 20, 28, 32, 36, 64, 96, 144, 576, 640, 1536]),
        rows in 1usize..4, blocks in 1usize..3, seed: u64
    ) {
        let cols = size * blocks;
        let x = Random(seed).floats(rows * cols, 3.0);
        for transform in [Transform::hadamard(size).unwrap(), Transform::interleaved(size).unwrap()] {
            let mut want = x.clone();
            transform.apply_rows(&mut want, cols);
            for kernels in kernels() {
                let mut got = x.clone();
                kernels.transform(&mut got, cols, transform);
                prop_assert_eq!(bits(&got), bits(&want), "{} {}", transform, kernels.name());
            }
        }
    }

    #[test]
    fn every_element_of_a_product_is_a_dot(m in 1usize..12, n in 1usize..20, k in 0usize..100, seed: u64, with_bias: bool, cut in 0usize..20) {
        let mut random = Random(seed);
        let x = random.floats(m * k, 2.0);
        let w = random.floats(n * k, 2.0);
        // Any half-precision number except infinities and NaNs.
        let halves: Vec<u16> = (0..n * k).map(|_| (random.next() as u16) & 0xbfff).collect();
        let wide: Vec<f32> = halves.iter().map(|&h| float::f16_to_f32(h)).collect();
        let bias = with_bias.then(|| random.floats(n, 1.0));
        for (w, halves) in [(&w, None), (&wide, Some(&halves))] {
            let mut want = vec![0f32; m * n];
            for i in 0..m {
                for j in 0..n {
                    let y = float::dot(&x[i * k..(i + 1) * k], &w[j * k..(j + 1) * k]);
                    want[i * n + j] = bias.as_ref().map_or(y, |b| y + b[j]);
                }
            }
            for kernels in kernels() {
                let mut got = vec![f32::NAN; m * n];
                let (left, right) = ColumnsMut::new(&mut got, m, n).split_at(cut);
                for part in [right, left] {
                    match halves {
                        Some(halves) => kernels.matmul_f16(&x, halves, bias.as_deref(), k, part),
                        None => kernels.matmul_f32(&x, w, bias.as_deref(), k, part),
                    }
                }
                prop_assert_eq!(bits(&got), bits(&want), "{}", kernels.name());
            }
        }
    }
}

#[test]
fn special_values_agree() {
    let x = [f32::INFINITY, -1.0, f32::NEG_INFINITY, 0.0, -0.0, f32::NAN, 1e-40, 3e38, -3e38];
    for kernels in kernels() {
        let (mut got, mut want) = (x, x);
        kernels.exp(&mut got);
        float::exp(&mut want);
        assert_eq!(bits(&got), bits(&want), "{}", kernels.name());
        assert_eq!(kernels.argmax(&x), Some(0));
        assert_eq!(kernels.max_abs(&x), f32::INFINITY);
    }
}
