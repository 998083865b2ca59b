//! The exponential and the integer of a float, in forms that vectorise.
//!
//! A cast from float to integer saturates in Rust, and compilers take it apart lane by lane. Adding 1.5 * 2^23 leaves
//! the integer in the low bits instead.

use squat_quant::math::round_ties_even;

/// 1.5 * 2^23.
const MAGIC: f32 = 12_582_912.0;

/// The integer that `x` is; `x` must be one, with |x| < 2^22.
#[inline(always)]
pub(crate) fn integer(x: f32) -> i32 {
    (x + MAGIC).to_bits() as i32 - MAGIC.to_bits() as i32
}

/// e^x: the same bits as [`squat_quant::math::exp`], which see, at the speed of vectors.
#[inline(always)]
pub fn exp_value(x: f32) -> f32 {
    const LN2_HI: f32 = 0.693_359_4;
    const LN2_LO: f32 = -2.121_944_4e-4;
    let x = x.max(-87.3).min(88.7);
    let n = round_ties_even(x * core::f32::consts::LOG2_E);
    let r = (x - n * LN2_HI) - n * LN2_LO;
    let mut p = 1.0 / 5040.0;
    p = p * r + 1.0 / 720.0;
    p = p * r + 1.0 / 120.0;
    p = p * r + 1.0 / 24.0;
    p = p * r + 1.0 / 6.0;
    p = p * r + 0.5;
    let y = (p * r) * r + r + 1.0;
    let n = integer(n);
    let half = n >> 1;
    y * pow2(half) * pow2(n - half)
}

/// 2^n for -126 <= n <= 127.
#[inline(always)]
fn pow2(n: i32) -> f32 {
    f32::from_bits(((n + 127) << 23) as u32)
}

#[cfg(test)]
mod tests {
    use super::*;
    use squat_quant::math;

    #[test]
    fn the_same_bits_as_the_definition() {
        // Every 97th float of all 2^32, and all of those around the ends of the clamp.
        let near = [-87.3f32, 88.7, 0.0, -0.0, 1.0, f32::MAX, f32::MIN, f32::INFINITY, f32::NAN];
        let around =
            near.iter().flat_map(|x| x.to_bits().saturating_sub(500)..=x.to_bits().saturating_add(500));
        for bits in (0..=u32::MAX).step_by(97).chain(around) {
            let x = f32::from_bits(bits);
            assert_eq!(exp_value(x).to_bits(), math::exp(x).to_bits(), "{x:e}");
        }
    }

    #[test]
    fn integers() {
        for n in (-4_194_303..4_194_304).step_by(3) {
            assert_eq!(integer(n as f32), n);
        }
    }
}
