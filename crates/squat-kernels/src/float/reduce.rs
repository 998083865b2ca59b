//! Sums, products and maxima over slices, in the 16-lane order.

use crate::lanes::{LANES, max_abs_of, padded, reduce};
use crate::portable::Portable;
use crate::simd::FloatSimd;
use squat_quant::math;

/// `sum_k f(a[k], b[k])` in the 16-lane order; each term is rounded before it is added.
#[inline(always)]
fn lane_sum(a: &[f32], b: &[f32], f: impl Fn(f32, f32) -> f32) -> f32 {
    let mut lanes = [0f32; LANES];
    let (a, a_tail) = a.as_chunks::<LANES>();
    let (b, b_tail) = b.as_chunks::<LANES>();
    for (a, b) in a.iter().zip(b) {
        for l in 0..LANES {
            lanes[l] += f(a[l], b[l]);
        }
    }
    for (lane, (&a, &b)) in lanes.iter_mut().zip(a_tail.iter().zip(b_tail)) {
        *lane += f(a, b);
    }
    reduce(lanes)
}

/// `sum_k a[k] * b[k]` by fused multiply-add. Slow in this portable instance, which may have to emulate the instruction:
/// use [`crate::Kernels::dot`].
///
/// # Panics
/// If the lengths differ.
pub fn dot(a: &[f32], b: &[f32]) -> f32 {
    dot_with(Portable, a, b)
}

/// [`dot`] by the instructions of `s`.
#[inline(always)]
pub(crate) fn dot_with<S: FloatSimd>(s: S, a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len(), "lengths of a dot product");
    let mut sums = s.zero();
    let (a, a_tail) = a.as_chunks::<LANES>();
    let (b, b_tail) = b.as_chunks::<LANES>();
    for (a, b) in a.iter().zip(b) {
        sums = s.mul_add(sums, s.load(a), s.load(b));
    }
    if !a_tail.is_empty() {
        sums = s.mul_add(sums, s.load(&padded(a_tail)), s.load(&padded(b_tail)));
    }
    reduce(s.store(sums))
}

/// `sum_k x[k]^2`.
#[inline(always)]
pub fn sum_squares(x: &[f32]) -> f32 {
    lane_sum(x, x, |a, b| a * b)
}

/// `sum_k x[k]`.
#[inline(always)]
pub(crate) fn sum(x: &[f32]) -> f32 {
    lane_sum(x, x, |a, _| a)
}

/// `sum_k (x[k] - mean)^2`.
#[inline(always)]
pub(crate) fn sum_squared_distances(x: &[f32], mean: f32) -> f32 {
    lane_sum(x, x, |a, _| (a - mean) * (a - mean))
}

/// Largest value; NaNs are ignored, an empty slice gives negative infinity.
#[inline(always)]
pub(crate) fn max(x: &[f32]) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let (chunks, tail) = x.as_chunks::<LANES>();
    for chunk in chunks {
        for l in 0..LANES {
            // Not f32::max: this form is one instruction and ignores NaN too, because NaN compares false.
            lanes[l] = if chunk[l] > lanes[l] { chunk[l] } else { lanes[l] };
        }
    }
    tail.iter().chain(&lanes).fold(f32::NEG_INFINITY, |a, &b| if b > a { b } else { a })
}

/// Largest magnitude; NaNs are ignored, an empty slice gives 0. The value of [`squat_quant::affine::max_abs`].
#[inline(always)]
pub fn max_abs(x: &[f32]) -> f32 {
    max_abs_of(x, x, |x, _| x)
}

/// Index of the first largest value; NaNs are ignored. `None` if there are no other values.
#[inline(always)]
pub fn argmax(x: &[f32]) -> Option<usize> {
    let largest = max(x);
    let (chunks, tail) = x.as_chunks::<64>();
    for (index, chunk) in chunks.iter().enumerate() {
        // Without an early exit the loop vectorises.
        let mut found = false;
        for &v in chunk {
            found |= v == largest;
        }
        if found {
            return chunk.iter().position(|&v| v == largest).map(|i| 64 * index + i);
        }
    }
    tail.iter().position(|&v| v == largest).map(|i| 64 * chunks.len() + i)
}

/// Natural logarithm to about 1 unit in the last place of f64, from additions, multiplications and one division, so
/// that it is the same on every CPU. Zero gives negative infinity; negative numbers and NaN give NaN.
pub fn ln(x: f64) -> f64 {
    if x.is_nan() || x < 0.0 {
        return f64::NAN;
    }
    if x == 0.0 || x == f64::INFINITY {
        return if x == 0.0 { f64::NEG_INFINITY } else { x };
    }
    const TWO_54: f64 = 18_014_398_509_481_984.0;
    let (x, shift) = if x < f64::MIN_POSITIVE { (x * TWO_54, 54) } else { (x, 0) };
    let bits = x.to_bits();
    let mut exponent = (bits >> 52) as i32 - 1023 - shift;
    let mut mantissa = f64::from_bits((bits & 0xf_ffff_ffff_ffff) | 0x3ff0_0000_0000_0000);
    if mantissa > core::f64::consts::SQRT_2 {
        mantissa *= 0.5;
        exponent += 1;
    }
    // ln m = 2 artanh(t), t = (m - 1) / (m + 1), |t| <= 0.1716: the series ends at t^23 / 23 < 2e-19.
    let t = (mantissa - 1.0) / (mantissa + 1.0);
    let t2 = t * t;
    let mut series = 0.0;
    let mut k = 23i32;
    while k >= 3 {
        series = (series + 1.0 / f64::from(k)) * t2;
        k -= 2;
    }
    let ln_m = 2.0 * (t + t * series);
    // ln 2 in two parts, so that the product with the exponent is exact in the first.
    const LN2_HI: f64 = 6.931_471_803_691_238e-1;
    const LN2_LO: f64 = 1.908_214_929_270_587_7e-10;
    let e = f64::from(exponent);
    e * LN2_HI + (ln_m + e * LN2_LO)
}

/// Natural logarithm of `softmax(logits)[index]`.
///
/// The largest logit and the 16-lane sum of exponentials are f32; the last steps are f64:
/// `(logits[index] - max) - ln(sum)`.
///
/// # Panics
/// If `index` is out of range.
#[inline(always)]
pub fn log_softmax_at(logits: &[f32], index: usize) -> f64 {
    let largest = max(logits);
    let mut lanes = [0f32; LANES];
    let (chunks, tail) = logits.as_chunks::<LANES>();
    for chunk in chunks {
        for l in 0..LANES {
            lanes[l] += math::exp(chunk[l] - largest);
        }
    }
    for (lane, x) in lanes.iter_mut().zip(tail) {
        *lane += math::exp(x - largest);
    }
    (f64::from(logits[index]) - f64::from(largest)) - ln(f64::from(reduce(lanes)))
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use proptest::prelude::*;
    use std::vec::Vec;

    proptest! {
        #[test]
        fn sums_follow_the_written_order(a in prop::collection::vec(-3f32..3.0, 0..100)) {
            let b: Vec<f32> = a.iter().rev().copied().collect();
            // The definition, naively.
            let mut lanes = [0f32; 16];
            for (k, (x, y)) in a.iter().zip(&b).enumerate() {
                lanes[k % 16] = x.mul_add(*y, lanes[k % 16]);
            }
            let eight: Vec<f32> = (0..8).map(|i| lanes[i] + lanes[i + 8]).collect();
            let four: Vec<f32> = (0..4).map(|i| eight[i] + eight[i + 4]).collect();
            let want = (four[0] + four[2]) + (four[1] + four[3]);
            prop_assert_eq!(dot(&a, &b).to_bits(), want.to_bits());
        }

        #[test]
        fn ln_is_close(x in prop::num::f64::POSITIVE | prop::num::f64::SUBNORMAL) {
            let x = x.abs();
            let (got, want) = (ln(x), x.ln());
            prop_assert!(got == want || (got - want).abs() <= 4e-16 * want.abs().max(1e-3), "{x:e}: {got} {want}");
        }

        #[test]
        fn log_softmax_matches_f64(x in prop::collection::vec(-20f32..20.0, 1..200), pick: prop::sample::Index) {
            let index = pick.index(x.len());
            let largest = x.iter().fold(f64::MIN, |a, &b| a.max(f64::from(b)));
            let sum: f64 = x.iter().map(|&v| (f64::from(v) - largest).exp()).sum();
            let want = f64::from(x[index]) - largest - sum.ln();
            prop_assert!((log_softmax_at(&x, index) - want).abs() < 2e-6);
        }

        #[test]
        fn maxima(x in prop::collection::vec(-20f32..20.0, 1..70)) {
            let largest = x.iter().copied().fold(f32::MIN, f32::max);
            prop_assert_eq!(max(&x), largest);
            prop_assert_eq!(argmax(&x), x.iter().position(|&v| v == largest));
        }
    }

    #[test]
    fn odd_inputs() {
        assert_eq!(argmax(&[]), None);
        assert_eq!(argmax(&[f32::NAN]), None);
        assert_eq!(argmax(&[f32::NAN, 1.0, 1.0]), Some(1));
        assert_eq!(argmax(&[f32::NEG_INFINITY]), Some(0));
        assert_eq!(ln(1.0), 0.0);
        assert_eq!(ln(0.0), f64::NEG_INFINITY);
        assert!(ln(-1.0).is_nan());
    }
}
