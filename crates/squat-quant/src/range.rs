//! Integer ranges of codes (METHOD.md section 2).

/// The inclusive range of the integer codes of a quantizer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CodeRange {
    /// Smallest code, `q_min`.
    pub min: i32,
    /// Largest code, `q_max`.
    pub max: i32,
}

impl CodeRange {
    /// Ternary weights: -1, 0, 1.
    pub const TERNARY: Self = Self { min: -1, max: 1 };

    /// Signed codes of `bits` bits: `-2^(b-1) ..= 2^(b-1) - 1`.
    ///
    /// `bits` is clamped to 1..=16.
    pub const fn signed(bits: u32) -> Self {
        let bits = if bits < 1 {
            1
        } else if bits > 16 {
            16
        } else {
            bits
        };
        Self { min: -(1 << (bits - 1)), max: (1 << (bits - 1)) - 1 }
    }

    /// Unsigned codes of `bits` bits: `0 ..= 2^b - 1`.
    ///
    /// `bits` is clamped to 1..=16.
    pub const fn unsigned(bits: u32) -> Self {
        let bits = if bits < 1 {
            1
        } else if bits > 16 {
            16
        } else {
            bits
        };
        Self { min: 0, max: (1 << bits) - 1 }
    }

    /// Whether `code` is in the range.
    pub const fn contains(&self, code: i32) -> bool {
        code >= self.min && code <= self.max
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges() {
        assert_eq!(CodeRange::signed(8), CodeRange { min: -128, max: 127 });
        assert_eq!(CodeRange::signed(4), CodeRange { min: -8, max: 7 });
        assert_eq!(CodeRange::signed(2), CodeRange { min: -2, max: 1 });
        assert_eq!(CodeRange::unsigned(8), CodeRange { min: 0, max: 255 });
        assert!(CodeRange::TERNARY.contains(-1) && !CodeRange::TERNARY.contains(2));
    }
}
