//! Norms, softmax, activation functions, rotary embedding: one output per input.

use super::reduce;
use squat_quant::math;

/// Root-mean-square norm: `out = (x * r) * gain` with `r = 1 / sqrt(sum(x^2) / n + eps)`.
///
/// # Panics
/// If the lengths differ.
#[inline(always)]
pub fn rms_norm(x: &[f32], gain: &[f32], eps: f32, out: &mut [f32]) {
    assert!(gain.len() == x.len() && out.len() == x.len(), "lengths of a norm");
    let r = rms_norm_factor(x, eps);
    for ((out, &x), &gain) in out.iter_mut().zip(x).zip(gain) {
        *out = (x * r) * gain;
    }
}

/// The factor of [`rms_norm`]: `1 / sqrt(sum(x^2) / n + eps)`.
#[inline(always)]
pub(crate) fn rms_norm_factor(x: &[f32], eps: f32) -> f32 {
    1.0 / math::sqrt(reduce::sum_squares(x) / x.len() as f32 + eps)
}

/// Layer norm: `out = ((x - mean) * r) * gain + bias` with `mean = sum(x) / n`, `r = 1 / sqrt(sum((x - mean)^2) / n + eps)`.
///
/// # Panics
/// If the lengths differ.
#[inline(always)]
pub fn layer_norm(x: &[f32], gain: &[f32], bias: &[f32], eps: f32, out: &mut [f32]) {
    let n = x.len();
    assert!(gain.len() == n && bias.len() == n && out.len() == n, "lengths of a norm");
    let mean = reduce::sum(x) / n as f32;
    let r = 1.0 / math::sqrt(reduce::sum_squared_distances(x, mean) / n as f32 + eps);
    for (((out, &x), &gain), &bias) in out.iter_mut().zip(x).zip(gain).zip(bias) {
        *out = ((x - mean) * r) * gain + bias;
    }
}

/// `x = e^x`, see [`squat_quant::math::exp`].
#[inline(always)]
pub fn exp(x: &mut [f32]) {
    for x in x {
        *x = math::exp(*x);
    }
}

/// Softmax of a row in place: `e = exp(x - max)`, times `1 / sum(e)`.
#[inline(always)]
pub fn softmax(row: &mut [f32]) {
    let largest = reduce::max(row);
    for x in row.iter_mut() {
        *x = math::exp_nonpositive(*x - largest);
    }
    let inv = 1.0 / reduce::sum(row);
    for x in row {
        *x *= inv;
    }
}

/// Attention probabilities: [`softmax`] of `(x[j] * factor) * scales[j]`, where `x` holds the sums of a query with the keys,
/// `factor` is [`crate::attention::query_factor`], and `scales` are the scales of the keys.
///
/// # Panics
/// If the lengths differ.
#[inline(always)]
pub fn scaled_softmax(x: &mut [f32], factor: f32, scales: &[f32]) {
    assert_eq!(x.len(), scales.len(), "lengths of a softmax");
    for (x, &scale) in x.iter_mut().zip(scales) {
        *x = (*x * factor) * scale;
    }
    softmax(x);
}

/// SwiGLU's product: `out = (g * (1 / (1 + e^-g))) * up`.
///
/// # Panics
/// If the lengths differ.
#[inline(always)]
pub fn silu_mul(gate: &[f32], up: &[f32], out: &mut [f32]) {
    assert!(up.len() == gate.len() && out.len() == gate.len(), "lengths of a gated product");
    for ((out, &g), &u) in out.iter_mut().zip(gate).zip(up) {
        *out = (g * (1.0 / (1.0 + math::exp(-g)))) * u;
    }
}

/// GeGLU's product: `out = gelu(gate) * up`, see [`gelu`].
///
/// # Panics
/// If the lengths differ.
#[inline(always)]
pub fn gelu_mul(gate: &[f32], up: &[f32], out: &mut [f32]) {
    assert_eq!(up.len(), gate.len(), "lengths of a gated product");
    gelu(gate, out);
    for (out, &u) in out.iter_mut().zip(up) {
        *out *= u;
    }
}

/// GELU, tanh approximation: `x / 2 * (1 + tanh(u))` with `u = sqrt(2 / pi) * (x + 0.044715 x^3)`, which is
/// `x * (1 / (1 + e^(-2 u)))`.
///
/// # Panics
/// If the lengths differ.
#[inline(always)]
pub fn gelu(x: &[f32], out: &mut [f32]) {
    assert_eq!(x.len(), out.len(), "lengths of an activation function");
    // -2 sqrt(2 / pi), and the same times 0.044715.
    const LINEAR: f32 = -1.595_769_2;
    const CUBIC: f32 = -0.071_354_814;
    for (out, &x) in out.iter_mut().zip(x) {
        *out = x * (1.0 / (1.0 + math::exp(x * (LINEAR + CUBIC * (x * x)))));
    }
}

/// Rotary position embedding of one head in place, in the half-split convention: element `i` pairs with `i + d/2`,
/// `cos` and `sin` hold `d/2` values of the position.
///
/// # Panics
/// If the length of `cos` or `sin` is not half that of `row`.
#[inline(always)]
pub fn rope(row: &mut [f32], cos: &[f32], sin: &[f32]) {
    let half = row.len() / 2;
    assert!(row.len() == 2 * half && cos.len() == half && sin.len() == half, "lengths of a rotation");
    let (low, high) = row.split_at_mut(half);
    for (((a, b), &c), &s) in low.iter_mut().zip(high).zip(cos).zip(sin) {
        let (x, y) = (*a, *b);
        *a = x * c - y * s;
        *b = y * c + x * s;
    }
}

/// `x += y`.
///
/// # Panics
/// If the lengths differ.
#[inline(always)]
pub fn add(x: &mut [f32], y: &[f32]) {
    assert_eq!(x.len(), y.len(), "lengths of a sum");
    for (x, y) in x.iter_mut().zip(y) {
        *x += y;
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use proptest::prelude::*;
    use std::vec;
    use std::vec::Vec;

    proptest! {
        #[test]
        fn softmax_is_a_distribution(x in prop::collection::vec(-30f32..30.0, 1..100)) {
            let mut p = x.clone();
            softmax(&mut p);
            let largest = x.iter().fold(f64::MIN, |a, &b| a.max(f64::from(b)));
            let sum: f64 = x.iter().map(|&v| (f64::from(v) - largest).exp()).sum();
            for (got, &x) in p.iter().zip(&x) {
                let want = (f64::from(x) - largest).exp() / sum;
                prop_assert!((f64::from(*got) - want).abs() < 1e-6);
            }
        }

        #[test]
        fn norm_and_gate_match_f64(x in prop::collection::vec(-5f32..5.0, 1..100)) {
            let gain: Vec<f32> = (0..x.len()).map(|i| 0.5 + i as f32 * 0.01).collect();
            let mut out = vec![0f32; x.len()];
            rms_norm(&x, &gain, 1e-5, &mut out);
            let mean: f64 = x.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>() / x.len() as f64;
            for i in 0..x.len() {
                let want = f64::from(x[i]) / (mean + 1e-5).sqrt() * f64::from(gain[i]);
                prop_assert!((f64::from(out[i]) - want).abs() < 1e-5 * want.abs().max(1.0));
            }
            silu_mul(&x, &gain, &mut out);
            for i in 0..x.len() {
                let g = f64::from(x[i]);
                let want = g / (1.0 + (-g).exp()) * f64::from(gain[i]);
                prop_assert!((f64::from(out[i]) - want).abs() < 1e-5);
            }
        }

        #[test]
        fn layer_norm_and_gelu_match_f64(x in prop::collection::vec(-9f32..9.0, 1..100)) {
            let gain: Vec<f32> = (0..x.len()).map(|i| 0.5 + i as f32 * 0.01).collect();
            let bias: Vec<f32> = (0..x.len()).map(|i| 0.3 - i as f32 * 0.02).collect();
            let mut out = vec![0f32; x.len()];
            layer_norm(&x, &gain, &bias, 1e-5, &mut out);
            let mean = x.iter().map(|&v| f64::from(v)).sum::<f64>() / x.len() as f64;
            let variance = x.iter().map(|&v| (f64::from(v) - mean).powi(2)).sum::<f64>() / x.len() as f64;
            for i in 0..x.len() {
                let centered = (f64::from(x[i]) - mean) / (variance + 1e-5).sqrt();
                let want = centered * f64::from(gain[i]) + f64::from(bias[i]);
                // The rounding error of the mean weighs more the closer the values are to each other.
                let error = 1e-5 + 1e-5 / (variance + 1e-5).sqrt();
                prop_assert!((f64::from(out[i]) - want).abs() < error, "{} {}", out[i], want);
            }
            gelu(&x, &mut out);
            for i in 0..x.len() {
                let v = f64::from(x[i]);
                let u = (2.0 / std::f64::consts::PI).sqrt() * (v + 0.044715 * v.powi(3));
                let want = 0.5 * v * (1.0 + u.tanh());
                prop_assert!((f64::from(out[i]) - want).abs() < 2e-6, "{v}: {} {want}", out[i]);
            }
        }

        #[test]
        fn rotation_keeps_the_norm_of_pairs(x in prop::collection::vec(-5f32..5.0, 1..40), angle in -3f32..3.0) {
            let mut row: Vec<f32> = x.iter().chain(&x).copied().collect();
            let before = row.clone();
            let half = x.len();
            rope(&mut row, &vec![angle.cos(); half], &vec![angle.sin(); half]);
            for i in 0..half {
                let (a, b) = (before[i], before[i + half]);
                let want = (a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin());
                prop_assert_eq!((row[i], row[i + half]), want);
            }
        }
    }
}
