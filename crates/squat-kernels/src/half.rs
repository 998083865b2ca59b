//! Half precision to single precision.

/// The value of an IEEE half-precision number, given its bits. Exact; NaNs become quiet.
#[inline(always)]
pub fn f16_to_f32(bits: u16) -> f32 {
    let magnitude = u32::from(bits & 0x7fff) << 13;
    let sign = u32::from(bits & 0x8000) << 16;
    // The exponent bias differs by 112, so multiplying by 2^112 is exact for normal and subnormal numbers.
    let finite = (f32::from_bits(magnitude) * f32::from_bits(0x7780_0000)).to_bits();
    let quiet = if bits & 0x3ff != 0 { 0x40_0000 } else { 0 };
    let special = magnitude | 0x7f80_0000 | quiet;
    f32::from_bits(sign | if bits & 0x7c00 == 0x7c00 { special } else { finite })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_halves() {
        for bits in 0..=u16::MAX {
            let (sign, exponent, mantissa) = (bits >> 15, (bits >> 10) & 31, bits & 0x3ff);
            let got = f16_to_f32(bits);
            assert_eq!(got.to_bits() >> 31, u32::from(sign));
            let want = match exponent {
                0 => f64::from(mantissa) * 2f64.powi(-24),
                31 if mantissa == 0 => f64::INFINITY,
                31 => f64::NAN,
                e => (1.0 + f64::from(mantissa) / 1024.0) * 2f64.powi(i32::from(e) - 15),
            };
            if want.is_nan() {
                assert!(got.is_nan());
            } else {
                assert_eq!(f64::from(got.abs()), want, "{bits:#x}");
            }
        }
    }
}
