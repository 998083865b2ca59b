use super::factor::{cholesky, solve_rows};
use super::gram::Gram;
use super::solve::Moments;
use super::*;
use crate::ops::gradient_check::noise;
use squat_quant::{Affine, Granularity, WeightBits, WeightScheme};

const ROWS: usize = 5;
const COLS: usize = 40;

/// Correlated inputs of which some columns are much larger than others.
fn inputs(count: usize, seed: u64) -> Vec<f32> {
    let x = noise(count * COLS, seed);
    let mut out = vec![0f32; x.len()];
    for (row, out) in x.chunks_exact(COLS).zip(out.chunks_exact_mut(COLS)) {
        for (i, out) in out.iter_mut().enumerate() {
            *out = (row[i] + 1.5 * row[(i + 1) % COLS] + row[0]) * (1.0 + (i % 7) as f32);
        }
    }
    out
}

fn gram(x: &[f32], t: &[f32], damping: f32) -> Gram {
    let mut gram = Gram::new(COLS, !t.is_empty());
    gram.add(&x[..x.len() / 2], t.get(..x.len() / 2).unwrap_or_default());
    let mut rest = Gram::new(COLS, !t.is_empty());
    rest.add(&x[x.len() / 2..], t.get(x.len() / 2..).unwrap_or_default());
    gram.merge(&rest);
    gram.finish(damping);
    gram
}

/// Squared error of the outputs, in f64.
fn output_error(x: &[f32], t: &[f32], weight: &[f32], values: &[f32]) -> f64 {
    let mut sum = 0.0;
    for (x, t) in x.chunks_exact(COLS).zip(t.chunks_exact(COLS)) {
        for (w, v) in weight.chunks_exact(COLS).zip(values.chunks_exact(COLS)) {
            let dot = |a: &[f32], b: &[f32]| -> f64 {
                a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
            };
            sum += (dot(t, w) - dot(x, v)).powi(2);
        }
    }
    sum
}

#[test]
fn sums_of_products_are_those_of_the_definition() {
    let (x, t) = (inputs(24, 1), inputs(24, 2));
    let found = gram(&x, &t, 0.0);
    for i in 0..COLS {
        for j in 0..COLS {
            let sum = |a: &[f32]| -> f64 {
                (0..24).map(|r| f64::from(a[r * COLS + i]) * f64::from(x[r * COLS + j])).sum()
            };
            let near = |a: f32, b: f64| (f64::from(a) - b).abs() < 1e-3 * b.abs().max(10.0);
            assert!(near(found.own[i * COLS + j], sum(&x)), "{i} {j}");
            assert!(near(found.cross[i * COLS + j], sum(&t)), "{i} {j}");
        }
    }
}

#[test]
fn factors_multiply_to_the_matrix_and_solve_it() {
    // More columns than a block has.
    let n = 150;
    let x = noise(400 * n, 3);
    let mut sums = Gram::new(n, false);
    sums.add(&x, &[]);
    sums.finish(0.01);
    let order: Vec<usize> = (0..n).map(|i| i * 7 % n).collect();
    let factor = cholesky(&sums.own, &order).unwrap();
    let u = &factor.transposed;
    for i in 0..n {
        for j in 0..n {
            let sum: f64 = (0..n).map(|k| f64::from(u[k * n + i]) * f64::from(u[k * n + j])).sum();
            let want = f64::from(sums.own[order[i] * n + order[j]]);
            assert!((sum - want).abs() < 1e-3 * sums.own[0] as f64, "{i} {j}: {sum} {want}");
        }
    }
    let want = noise(2 * n, 4);
    let mut b = vec![0f32; 2 * n];
    for (row, b) in want.chunks_exact(n).zip(b.chunks_exact_mut(n)) {
        for j in 0..n {
            b[j] = (0..n).map(|i| row[i] * sums.own[order[i] * n + order[j]]).sum();
        }
    }
    solve_rows(&factor, &mut b, n);
    assert!(b.iter().zip(&want).all(|(a, b)| (a - b).abs() < 1e-3));
    assert!(cholesky(&[1.0, 2.0, 2.0, 1.0], &[0, 1]).is_none(), "not positive definite");
}

/// Every method lowers the error of the output, and values are codes of their scales, exactly.
#[test]
fn each_method_lowers_the_error_of_the_output() {
    let (x, weight) = (inputs(300, 5), noise(ROWS * COLS, 6));
    let sums = gram(&x, &[], 0.001);
    let moments = Moments::new(&sums);
    for granularity in [Granularity::PerTensor, Granularity::PerChannel, Granularity::PerGroup(16)] {
        for bits in WeightBits::ALL {
            let scheme = WeightScheme { bits, granularity };
            let mut errors = Vec::new();
            for names in ["none", "compensate", "compensate,refine", "scales,compensate,refine"] {
                let methods: Methods = names.parse().unwrap();
                let solved = moments.solve(&weight, scheme, &methods, 2);
                for (i, &v) in solved.values.iter().enumerate() {
                    let scale = solved.scales[scheme.scale_index(i / COLS, i % COLS, COLS)];
                    let affine = Affine::symmetric(scale, bits.range());
                    let code = affine.quantize(v);
                    assert_eq!(
                        affine.dequantize(code).to_bits(),
                        (v + 0.0).to_bits(),
                        "{scheme:?} {names} {i}"
                    );
                }
                assert_eq!(solved, moments.solve(&weight, scheme, &methods, 1), "threads change nothing");
                errors.push(output_error(&x, &x, &weight, &solved.values));
            }
            let context = format!("{scheme:?}: {errors:?}");
            assert!(errors[1] < 0.8 * errors[0], "compensation, {context}");
            assert!(errors[2] <= 1.001 * errors[1], "descent, {context}");
            assert!(errors[3] < 0.8 * errors[0], "all, {context}");
        }
    }
}

/// Where the quantized model's inputs are a linear map of the original's, the weight can make up for all of it.
#[test]
fn errors_of_layers_below_are_made_up_for() {
    let (t, weight) = (inputs(300, 7), noise(ROWS * COLS, 8));
    let x: Vec<f32> = t.iter().enumerate().map(|(i, &v)| v * (0.8 + 0.1 * (i % COLS % 5) as f32)).collect();
    let sums = gram(&x, &t, 1e-5);
    let moments = Moments::new(&sums);
    let scheme = WeightScheme::per_channel(WeightBits::W8);
    let error = |correct: f32| {
        let methods = Methods { correct, ..Methods::default() };
        output_error(&x, &t, &weight, &moments.solve(&weight, scheme, &methods, 1).values)
    };
    assert!(error(1.0) < 0.01 * error(0.0), "{} {}", error(1.0), error(0.0));
}

#[test]
fn names_of_methods() {
    assert_eq!("all".parse(), Ok(Methods::default()));
    assert_eq!("none".parse(), Ok(Methods::NONE));
    assert!(!Methods::NONE.calibrates());
    assert_eq!("scales,refine".parse(), Ok(Methods { output_error: true, refine: 2, ..Methods::NONE }));
    for names in ["none", "rotate, scales, compensate, refine, correct", "scales, correct"] {
        assert_eq!(names.replace(' ', "").parse::<Methods>().unwrap().to_string(), names);
    }
    assert!("scale".parse::<Methods>().unwrap_err().contains("rotate, migrate, clip, scales, compensate"));
}
