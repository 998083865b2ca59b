//! Initial scales and zero points, before training adjusts them (METHOD.md section 2).

use crate::affine::{Affine, max_abs};
use crate::math::{round_ties_even, sqrt};
use crate::range::CodeRange;
use crate::scheme::WeightScheme;

/// Clip ratios tried by [`mse_scale`], as fractions of the largest magnitude.
const CLIP_STEPS: u32 = 40;

/// Symmetric scale with the smallest squared error on `x`. Candidates are a grid of clip ratios from 0.2 to 1 of the
/// largest magnitude, and LSQ's initial value `2 mean|x| / sqrt(q_max)`.
///
/// Deterministic; an all-zero or empty `x` gives the smallest normal scale.
pub fn mse_scale(x: &[f32], range: CodeRange) -> f32 {
    let largest = max_abs(x);
    if !(largest > 0.0 && largest.is_finite()) {
        return f32::MIN_POSITIVE;
    }
    let error = |scale: f32| -> f64 {
        let affine = Affine::symmetric(scale, range);
        x.iter()
            .map(|&x| f64::from(affine.fake_quantize(x) - x) * f64::from(affine.fake_quantize(x) - x))
            .sum()
    };
    // 2-bit codes extend further down than up; the grid is relative to the largest code, at least 1.
    let q_max = range.max.max(1) as f32;
    let mean = x.iter().map(|x| x.abs()).sum::<f32>() / x.len() as f32;
    let guess = (2.0 * mean / sqrt(q_max)).max(f32::MIN_POSITIVE);
    let mut best = (error(guess), guess);
    for step in 0..=CLIP_STEPS {
        let ratio = 0.2 + 0.8 * step as f32 / CLIP_STEPS as f32;
        let scale = (ratio * largest / q_max).max(f32::MIN_POSITIVE);
        let candidate = error(scale);
        if candidate < best.0 {
            best = (candidate, scale);
        }
    }
    best.1
}

/// Scales of a `[rows, cols]` weight: [`mse_scale`] of the values that share each scale.
///
/// Writes `scheme.num_scales(rows, cols)` values to `scales`.
///
/// # Panics
/// If the length of `weight` or `scales` contradicts the shape.
pub fn weight_scales(weight: &[f32], rows: usize, cols: usize, scheme: WeightScheme, scales: &mut [f32]) {
    assert_eq!(weight.len(), rows * cols, "weight length");
    assert_eq!(scales.len(), scheme.num_scales(rows, cols), "number of scales");
    let range = scheme.bits.range();
    let per_row = scheme.scales_per_row(cols);
    if per_row == 0 {
        scales[0] = mse_scale(weight, range);
        return;
    }
    let group = scheme.group_len(cols);
    for (row, out) in weight.chunks_exact(cols).zip(scales.chunks_exact_mut(per_row)) {
        for (values, scale) in row.chunks(group).zip(out) {
            *scale = mse_scale(values, range);
        }
    }
}

/// Affine quantizer that covers `min..=max`: `s = (max - min) / (q_max - q_min)`, `z = round(q_min - min / s)`.
///
/// The interval is extended to contain zero, so that zero is exact.
pub fn affine_from_range(min: f32, max: f32, range: CodeRange) -> Affine {
    let (min, max) = (min.min(0.0), max.max(0.0));
    let scale = ((max - min) / (range.max - range.min) as f32).max(f32::MIN_POSITIVE);
    let zero_point = (round_ties_even((range.min as f32 - min / scale).max(-1e6).min(1e6)) as i32)
        .clamp(range.min, range.max);
    Affine { scale, zero_point, range }
}

/// Affine quantizer with the smallest squared error on `x`, among intervals that shrink its extremes by a common factor.
pub fn mse_affine(x: &[f32], range: CodeRange) -> Affine {
    let (mut min, mut max) = (0f32, 0f32);
    for &x in x {
        min = min.min(x);
        max = max.max(x);
    }
    let error = |affine: Affine| -> f64 {
        x.iter()
            .map(|&x| f64::from(affine.fake_quantize(x) - x) * f64::from(affine.fake_quantize(x) - x))
            .sum()
    };
    let mut best = affine_from_range(min, max, range);
    let mut best_error = error(best);
    for step in 4..20 {
        let ratio = step as f32 / 20.0;
        let candidate = affine_from_range(min * ratio, max * ratio, range);
        let e = error(candidate);
        if e < best_error {
            (best, best_error) = (candidate, e);
        }
    }
    best
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use crate::scheme::{Granularity, WeightBits};
    use proptest::prelude::*;
    use std::vec;

    fn squared_error(x: &[f32], affine: Affine) -> f64 {
        x.iter().map(|&x| f64::from(affine.fake_quantize(x) - x).powi(2)).sum()
    }

    proptest! {
        #[test]
        fn never_worse_than_no_clipping(x in prop::collection::vec(-3f32..3.0, 1..80)) {
            for bits in WeightBits::ALL {
                let plain = (max_abs(&x) / bits.range().max as f32).max(f32::MIN_POSITIVE);
                let s = mse_scale(&x, bits.range());
                prop_assert!(squared_error(&x, Affine::symmetric(s, bits.range())) <= squared_error(&x, Affine::symmetric(plain, bits.range())));
            }
        }

        #[test]
        fn zero_point_covers_the_interval(min in -10f32..5.0, width in 0.01f32..20.0) {
            let range = CodeRange::signed(8);
            let affine = affine_from_range(min, min + width, range);
            prop_assert!(range.contains(affine.zero_point));
            prop_assert_eq!(affine.fake_quantize(0.0), 0.0);
            for x in [min, min + width] {
                prop_assert!((affine.fake_quantize(x) - x).abs() <= affine.scale * 1.01);
            }
        }
    }

    #[test]
    fn outliers_are_clipped() {
        let mut x = vec![0.1f32; 400];
        for (i, x) in x.iter_mut().enumerate() {
            *x *= ((i * 37 % 41) as f32 - 20.0) / 20.0;
        }
        x[7] = 0.35;
        let range = CodeRange::signed(4);
        assert!(mse_scale(&x, range) < 0.35 / 7.0 * 0.8);
    }

    #[test]
    fn group_scales_match_their_slices() {
        let x: std::vec::Vec<f32> = (0..30).map(|i| (i as f32 - 14.0) * 0.1).collect();
        let scheme = WeightScheme { bits: WeightBits::W4, granularity: Granularity::PerGroup(4) };
        let mut scales = vec![0f32; scheme.num_scales(3, 10)];
        weight_scales(&x, 3, 10, scheme, &mut scales);
        assert_eq!(scales[scheme.scale_index(1, 9, 10)], mse_scale(&x[18..20], scheme.bits.range()));
    }
}
