//! Errors of matrices, cache rows and the choice of kernels.

use alloc::string::String;
use squat_quant::WeightBits;

/// Why weights could not be packed.
#[derive(Clone, Debug, PartialEq)]
pub enum MatrixError {
    /// The number of codes is not `rows * cols`: expected, got.
    Codes(usize, usize),
    /// The wrong number of packed words in a row: row, expected, got.
    Words(usize, usize, usize),
    /// The number of scales does not follow from the scheme: expected, got.
    Scales(usize, usize),
    /// The number of bias values is not the number of rows: expected, got.
    Bias(usize, usize),
    /// More columns than exact 32-bit sums allow: limit, got.
    Columns(usize, usize),
    /// A code outside the range of its width: row, column, code, width.
    Code(usize, usize, i8, WeightBits),
    /// A scale that is negative, infinite or NaN: index, value.
    Scale(usize, f32),
}

impl core::fmt::Display for MatrixError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::Codes(expected, got) => {
                write!(
                    f,
                    "expected {expected} weight codes (rows * columns), got {got}: check the tensor's shape"
                )
            }
            Self::Words(row, expected, got) => {
                write!(
                    f,
                    "expected {expected} words of packed codes in row {row}, got {got}: pack the model again"
                )
            }
            Self::Scales(expected, got) => {
                write!(f, "expected {expected} weight scales, got {got}: check the granularity of the scheme")
            }
            Self::Bias(expected, got) => {
                write!(f, "expected {expected} bias values (one per row), got {got}")
            }
            Self::Columns(limit, got) => write!(
                f,
                "expected at most {limit} inputs (the limit of exact 32-bit sums), got {got}: split the matrix"
            ),
            Self::Code(row, col, code, bits) => write!(
                f,
                "weight code {code} at [{row}, {col}] is outside {}..={} of {}-bit weights: the file and its scheme disagree",
                bits.range().min,
                bits.range().max,
                bits.name()
            ),
            Self::Scale(index, value) => {
                write!(f, "weight scale {index} is {value}: expected a finite value of at least 0")
            }
        }
    }
}

impl core::error::Error for MatrixError {}

/// Why a row could not be appended to a key-value cache, or a static quantizer is invalid.
#[derive(Clone, Debug, PartialEq)]
pub enum CacheError {
    /// The length of a row is not `head_dim`: expected, got.
    Dim(usize, usize),
    /// Different numbers of keys and values: keys, values.
    Count(usize, usize),
    /// Key and value of one position have different widths: bits of the key, bits of the value.
    Widths(u32, u32),
    /// The cache is full: the limit of exact 32-bit sums over positions.
    Full(usize),
    /// A code outside the range of its width: index in the row, code, bits.
    Code(usize, i8, u32),
    /// An activation range that a signed byte cannot hold: smallest and largest code, zero point.
    Range(i32, i32, i32),
    /// The scale of a static quantizer is not positive and finite.
    Scale(f32),
}

impl core::fmt::Display for CacheError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::Dim(expected, got) => {
                write!(f, "expected a row of {expected} values (head_dim), got {got}")
            }
            Self::Count(keys, values) => {
                write!(f, "expected one key and one value per position, got {keys} keys and {values} values")
            }
            Self::Widths(key, value) => write!(
                f,
                "expected the same width for key and value of a position, got {key} and {value} bits: quantize both at the token's width"
            ),
            Self::Full(limit) => write!(
                f,
                "expected at most {limit} positions (the limit of exact 32-bit sums), and the cache is full: shorten the context"
            ),
            Self::Code(index, code, bits) => {
                write!(
                    f,
                    "code {code} at {index} does not fit {bits} bits: quantize the row at the width it is stored in"
                )
            }
            Self::Scale(scale) => {
                write!(
                    f,
                    "activation scale is {scale}: expected a positive, finite number; the file is damaged"
                )
            }
            Self::Range(min, max, zero) => write!(
                f,
                "codes {min}..={max} with zero point {zero} do not fit a signed byte: expected a range and a zero point in -128..=127"
            ),
        }
    }
}

impl core::error::Error for CacheError {}

/// A kernel set that does not exist, or that this CPU cannot run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnknownIsa {
    /// The requested name.
    pub name: String,
    /// Names of the sets that this CPU can run.
    pub available: alloc::vec::Vec<&'static str>,
    /// Whether such a set exists, so that only this CPU or this build lacks its instructions.
    pub exists: bool,
}

impl core::fmt::Display for UnknownIsa {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        if self.exists {
            write!(f, "this CPU cannot run the kernels `{}`; it can run: ", self.name)?;
        } else {
            write!(f, "unknown kernels `{}`; this CPU can run: ", self.name)?;
        }
        for (i, name) in self.available.iter().enumerate() {
            write!(f, "{}{name}", if i == 0 { "" } else { ", " })?;
        }
        match squat_quant::spelling::nearest(&self.name, self.available.iter().copied()) {
            Some(near) if !self.exists => write!(f, " (did you mean `{near}`?)"),
            _ => Ok(()),
        }
    }
}

impl core::error::Error for UnknownIsa {}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use std::string::ToString;
    use std::vec;

    #[test]
    fn names_are_suggested() {
        let error = UnknownIsa { name: "avx3".into(), available: vec!["scalar", "avx2"], exists: false };
        assert_eq!(
            error.to_string(),
            "unknown kernels `avx3`; this CPU can run: scalar, avx2 (did you mean `avx2`?)"
        );
    }
}
