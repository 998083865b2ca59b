//! Quantize, dequantize, fake-quantize, and the gradients of fake quantization (METHOD.md section 2).

use crate::math::{round_ties_even, to_integer};
use crate::range::CodeRange;
use crate::scheme::ActBits;

/// Scale and zero point of a quantizer: `x^ = scale * (q - zero_point)`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Affine {
    /// Distance of neighbouring codes, in units of x; positive.
    pub scale: f32,
    /// Code of x = 0, in integer units.
    pub zero_point: i32,
    /// Valid codes.
    pub range: CodeRange,
}

impl Affine {
    /// A quantizer whose zero point is 0.
    pub const fn symmetric(scale: f32, range: CodeRange) -> Self {
        Self { scale, zero_point: 0, range }
    }

    /// Attention probabilities of `bits` bits: unsigned, zero point 0, scale `1 / (2^b - 1)`.
    pub const fn probability(bits: u32) -> Self {
        let range = CodeRange::unsigned(bits);
        Self { scale: 1.0 / range.max as f32, zero_point: 0, range }
    }

    /// The value to be rounded, before the zero point is added: `clamp(x * (1/s), q_min - z, q_max - z)`.
    ///
    /// Clamping before or after rounding gives the same integer, because the bounds are integers.
    #[inline(always)]
    fn clamped(&self, x: f32, inv_scale: f32) -> f32 {
        let (low, high) =
            ((self.range.min - self.zero_point) as f32, (self.range.max - self.zero_point) as f32);
        let v = x * inv_scale;
        // Unlike f32::max and f32::min these are one instruction each; NaN compares false and becomes `low`.
        let v = if v > low { v } else { low };
        if v < high { v } else { high }
    }

    /// Integer code of `x`. NaN becomes the smallest code.
    #[inline(always)]
    pub fn quantize(&self, x: f32) -> i32 {
        to_integer(self.clamped(x, 1.0 / self.scale)) + self.zero_point
    }

    /// Value of `code`.
    #[inline(always)]
    pub fn dequantize(&self, code: i32) -> f32 {
        self.scale * (code - self.zero_point) as f32
    }

    /// `dequantize(quantize(x))`, bit for bit, computed in floats.
    #[inline(always)]
    pub fn fake_quantize(&self, x: f32) -> f32 {
        // + 0.0 turns -0.0 into 0.0, because integer zero has no sign.
        self.scale * (round_ties_even(self.clamped(x, 1.0 / self.scale)) + 0.0)
    }

    /// `quantize(x) - zero_point` as a float: an exact integer, an operand of an integer product.
    #[inline(always)]
    pub fn centered(&self, x: f32) -> f32 {
        round_ties_even(self.clamped(x, 1.0 / self.scale)) + 0.0
    }

    /// Gradients of `fake_quantize` at `x`, straight-through for x and LSQ (Esser et al. 2020) for the scale:
    /// `(dx, dscale, dzero_point)`, each to be multiplied by the upstream gradient.
    ///
    /// With v = x/s + z: inside the range dx = 1, ds = round(v) - v, dz = 0; outside dx = 0, ds = q_limit - z,
    /// dz = -s.
    #[inline(always)]
    pub fn gradient(&self, x: f32) -> (f32, f32, f32) {
        let (low, high) =
            ((self.range.min - self.zero_point) as f32, (self.range.max - self.zero_point) as f32);
        let v = x * (1.0 / self.scale);
        if v < low {
            (0.0, low, -self.scale)
        } else if v > high {
            (0.0, high, -self.scale)
        } else {
            (1.0, round_ties_even(v) - v, 0.0)
        }
    }
}

/// Scale of a dynamic symmetric row: `max_abs / q_max`, never zero or subnormal.
#[inline(always)]
pub fn dynamic_scale(max_abs: f32, range: CodeRange) -> f32 {
    (max_abs / range.max as f32).max(f32::MIN_POSITIVE)
}

/// How far the codes of a dynamic row reach: at 4 bits to a share of its largest magnitude, at 8 bits to all of it.
///
/// Of 576 values as a Hadamard transform leaves them, near to a normal distribution, one is 3.2 standard deviations large, and
/// 15 codes lose least when they end at 2.7.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Clip(f32);

impl Clip {
    /// Nothing is clipped.
    pub const NONE: Self = Self(1.0);

    /// Clipping at this share, above 0 and at most 1; `None` for other numbers.
    pub const fn new(share: f32) -> Option<Self> {
        if share > 0.0 && share <= 1.0 { Some(Self(share)) } else { None }
    }

    /// The share at 4 bits.
    pub const fn share(self) -> f32 {
        self.0
    }

    /// The share of the largest magnitude that codes of this width reach.
    #[inline(always)]
    pub const fn at(self, bits: ActBits) -> f32 {
        match bits {
            ActBits::A4 => self.0,
            ActBits::A8 => 1.0,
        }
    }

    /// The quantizer of a row with this largest magnitude.
    #[inline(always)]
    pub fn affine(self, max_abs: f32, bits: ActBits) -> Affine {
        Affine::symmetric(dynamic_scale(max_abs * self.at(bits), bits.range()), bits.range())
    }
}

impl Default for Clip {
    fn default() -> Self {
        Self::NONE
    }
}

/// Largest magnitude of a row; NaNs are ignored (callers that must reject them check beforehand).
#[inline(always)]
pub fn max_abs(row: &[f32]) -> f32 {
    let mut lanes = [0f32; 16];
    let chunks = row.chunks_exact(16);
    let rest = chunks.remainder();
    for chunk in chunks {
        for (lane, x) in lanes.iter_mut().zip(chunk) {
            let x = x.abs();
            // Unlike f32::max this is one instruction; it ignores NaN, which compares false.
            *lane = if x > *lane { x } else { *lane };
        }
    }
    rest.iter().chain(&[0.0]).fold(lanes.iter().fold(0f32, |a, &b| a.max(b)), |a, x| a.max(x.abs()))
}

/// Quantizes a row symmetrically with the scale of its largest magnitude; returns the scale.
///
/// # Panics
/// If `codes` is shorter than `row`.
#[inline(always)]
pub fn quantize_row_dynamic(row: &[f32], range: CodeRange, codes: &mut [i8]) -> f32 {
    let affine = Affine::symmetric(dynamic_scale(max_abs(row), range), range);
    quantize_row(row, affine, codes);
    affine.scale
}

/// Quantizes a row with a given quantizer (codes must fit an `i8`).
///
/// # Panics
/// If `codes` is shorter than `row`.
#[inline(always)]
pub fn quantize_row(row: &[f32], affine: Affine, codes: &mut [i8]) {
    let inv = 1.0 / affine.scale;
    for (code, &x) in codes[..row.len()].iter_mut().zip(row) {
        *code = (to_integer(affine.clamped(x, inv)) + affine.zero_point) as i8;
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use crate::scheme::WeightBits;
    use proptest::prelude::*;
    use std::vec;
    use std::vec::Vec;

    fn ranges() -> impl Strategy<Value = CodeRange> {
        prop_oneof![
            Just(CodeRange::signed(8)),
            Just(CodeRange::signed(4)),
            Just(CodeRange::signed(3)),
            Just(CodeRange::signed(2)),
            Just(CodeRange::TERNARY),
            Just(CodeRange::unsigned(8)),
            Just(CodeRange::unsigned(4)),
        ]
    }

    proptest! {
        #[test]
        fn fake_is_dequantized_quantized(x in prop::num::f32::NORMAL | prop::num::f32::ZERO, scale in 1e-6f32..1e3, z in -20i32..20, range in ranges()) {
            let affine = Affine { scale, zero_point: z, range };
            let q = affine.quantize(x);
            prop_assert!(range.contains(q));
            prop_assert_eq!(affine.fake_quantize(x).to_bits(), affine.dequantize(q).to_bits());
            prop_assert_eq!(affine.centered(x), (q - z) as f32);
        }

        #[test]
        fn matches_the_equation(x in -50f32..50.0, scale in 0.01f32..2.0, z in -20i32..20, range in ranges()) {
            // METHOD.md section 2, naively, with the reciprocal as documented.
            let want = ((x * (1.0 / scale)).round_ties_even() as i32 + z).clamp(range.min, range.max);
            let affine = Affine { scale, zero_point: z, range };
            prop_assert_eq!(affine.quantize(x), want);
        }

        #[test]
        fn codes_are_fixed_points(scale in 1e-3f32..10.0, z in -5i32..5, range in ranges()) {
            let affine = Affine { scale, zero_point: z, range };
            for code in range.min..=range.max {
                prop_assert_eq!(affine.quantize(affine.dequantize(code)), code);
            }
        }

        #[test]
        fn scale_gradient_is_the_derivative_with_rounding_held(x in -30f32..30.0, scale in 0.1f32..2.0, z in -3i32..3, range in ranges()) {
            // With the rounding residue r = round(v) - v held constant (straight-through), x^ = s * (clamp(v + r) - z),
            // whose derivative with respect to s, x and z is taken numerically here.
            let affine = Affine { scale, zero_point: z, range };
            let f = |x: f64, s: f64, z: f64, r: f64, side: i32| -> f64 {
                let (low, high) = (f64::from(range.min), f64::from(range.max));
                match side { -1 => s * (low - z), 1 => s * (high - z), _ => s * (x / s + r) }
            };
            let v = f64::from(x) / f64::from(scale) + f64::from(z);
            let near = |a: f64| (v - a).abs() < 1e-3;
            prop_assume!(!near(f64::from(range.min)) && !near(f64::from(range.max)) && ((v - v.floor()) - 0.5).abs() > 1e-3);
            let side = if v < f64::from(range.min) { -1 } else if v > f64::from(range.max) { 1 } else { 0 };
            let r = v.round() - v;
            let (x, s, zf) = (f64::from(x), f64::from(scale), f64::from(z));
            let h = 1e-5;
            let (dx, ds, dz) = affine.gradient(x as f32);
            let num = |a: f64, b: f64| (a - b) / (2.0 * h);
            let want_dx = num(f(x + h, s, zf, r, side), f(x - h, s, zf, r, side));
            let want_ds = num(f(x, s + h, zf, r, side), f(x, s - h, zf, r, side));
            let want_dz = num(f(x, s, zf + h, r, side), f(x, s, zf - h, r, side));
            prop_assert!((f64::from(dx) - want_dx).abs() < 1e-3);
            // Inside, the held residue is r, and d/ds (x + s r) = r.
            prop_assert!((f64::from(ds) - want_ds).abs() < 1e-2, "{} {}", ds, want_ds);
            prop_assert!((f64::from(dz) - want_dz).abs() < 1e-3);
        }

        #[test]
        fn rows(row in prop::collection::vec(-5f32..5.0, 1..70)) {
            for bits in WeightBits::ALL {
                let mut codes = vec![0i8; row.len()];
                let s = quantize_row_dynamic(&row, bits.range(), &mut codes);
                let want = row.iter().fold(0f32, |a, x| a.max(x.abs()));
                prop_assert_eq!(s, (want / bits.range().max as f32).max(f32::MIN_POSITIVE));
                let affine = Affine::symmetric(s, bits.range());
                let singles: Vec<i8> = row.iter().map(|&x| affine.quantize(x) as i8).collect();
                prop_assert_eq!(codes, singles);
            }
        }
    }

    #[test]
    fn zero_rows_and_probabilities() {
        let mut codes = [1i8; 3];
        let s = quantize_row_dynamic(&[0.0; 3], CodeRange::signed(8), &mut codes);
        assert!(s > 0.0 && codes == [0; 3]);
        let p = Affine::probability(8);
        assert_eq!((p.quantize(1.0), p.quantize(0.0), p.quantize(2.0)), (255, 0, 255));
        assert_eq!(Affine::symmetric(1.0, CodeRange::signed(8)).quantize(f32::NAN), -128);
    }
}
