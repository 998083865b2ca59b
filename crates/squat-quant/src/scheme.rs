//! Bit widths and granularities, and their names in recipes and files.

use crate::range::CodeRange;

/// Width of a weight code.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum WeightBits {
    /// 8 bits, -128..=127.
    W8,
    /// 4 bits, -8..=7.
    W4,
    /// 3 bits, -4..=3.
    W3,
    /// 2 bits, -2..=1.
    W2,
    /// -1, 0, 1, stored in 2 bits.
    Ternary,
}

impl WeightBits {
    /// Every width, widest first.
    pub const ALL: [Self; 5] = [Self::W8, Self::W4, Self::W3, Self::W2, Self::Ternary];

    /// Codes of this width.
    pub const fn range(self) -> CodeRange {
        match self {
            Self::W8 => CodeRange::signed(8),
            Self::W4 => CodeRange::signed(4),
            Self::W3 => CodeRange::signed(3),
            Self::W2 => CodeRange::signed(2),
            Self::Ternary => CodeRange::TERNARY,
        }
    }

    /// Bits of a code on disk.
    pub const fn storage_bits(self) -> u32 {
        match self {
            Self::W8 => 8,
            Self::W4 => 4,
            Self::W3 => 3,
            Self::W2 | Self::Ternary => 2,
        }
    }

    /// Name in recipes: `8`, `4`, `3`, `2`, `ternary`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::W8 => "8",
            Self::W4 => "4",
            Self::W3 => "3",
            Self::W2 => "2",
            Self::Ternary => "ternary",
        }
    }

    /// The width with a given name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|bits| bits.name() == name)
    }
}

/// How many values share one scale.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Granularity {
    /// One scale for the whole tensor.
    PerTensor,
    /// One scale per output channel (row of a `[out, in]` weight).
    PerChannel,
    /// One scale per group of this many consecutive inputs of a row; the last group may be shorter.
    PerGroup(usize),
}

/// Width and granularity of a weight tensor. Weights are symmetric: their zero point is 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct WeightScheme {
    /// Width of a code.
    pub bits: WeightBits,
    /// How many weights share a scale.
    pub granularity: Granularity,
}

impl WeightScheme {
    /// `bits` with one scale per output channel, the default of the project.
    pub const fn per_channel(bits: WeightBits) -> Self {
        Self { bits, granularity: Granularity::PerChannel }
    }

    /// Scales of a row of `cols` inputs; 0 if all rows share one.
    pub const fn scales_per_row(&self, cols: usize) -> usize {
        match self.granularity {
            Granularity::PerTensor => 0,
            Granularity::PerChannel => 1,
            Granularity::PerGroup(group) => cols.div_ceil(if group == 0 { 1 } else { group }),
        }
    }

    /// Number of scales of a `[rows, cols]` weight.
    pub const fn num_scales(&self, rows: usize, cols: usize) -> usize {
        match self.scales_per_row(cols) {
            0 => 1,
            n => rows * n,
        }
    }

    /// Consecutive inputs that share one scale within a row.
    pub const fn group_len(&self, cols: usize) -> usize {
        match self.granularity {
            Granularity::PerGroup(group) if group > 0 && group < cols => group,
            _ => cols,
        }
    }

    /// Index of the scale of element `(row, col)` of a weight with `cols` inputs.
    pub const fn scale_index(&self, row: usize, col: usize, cols: usize) -> usize {
        match self.scales_per_row(cols) {
            0 => 0,
            n => row * n + col / self.group_len(cols),
        }
    }
}

/// Width of an activation code.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ActBits {
    /// 4 bits.
    A4,
    /// 8 bits.
    A8,
}

impl ActBits {
    /// Both widths, narrow first: the order of per-width tables such as `scales[bits.index()]`.
    pub const ALL: [Self; 2] = [Self::A4, Self::A8];

    /// 4 or 8.
    pub const fn bits(self) -> u32 {
        match self {
            Self::A4 => 4,
            Self::A8 => 8,
        }
    }

    /// 0 for 4 bits, 1 for 8 bits.
    pub const fn index(self) -> usize {
        match self {
            Self::A4 => 0,
            Self::A8 => 1,
        }
    }

    /// The width with a given number of bits.
    pub const fn from_bits(bits: u32) -> Option<Self> {
        match bits {
            4 => Some(Self::A4),
            8 => Some(Self::A8),
            _ => None,
        }
    }

    /// Signed codes of this width.
    pub const fn range(self) -> CodeRange {
        CodeRange::signed(self.bits())
    }
}

/// The source of the scale of an activation point.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ActScheme {
    /// Learned scale and zero point for the whole tensor, one pair per bit width [paper's code].
    Static,
    /// Symmetric, scale from the largest magnitude of the row (of the row of a head, for queries, keys and values).
    Dynamic,
}

impl ActScheme {
    /// Name in recipes and files: `static` or `dynamic`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Static => "static",
            Self::Dynamic => "dynamic",
        }
    }

    /// The scheme with a given name.
    pub fn from_name(name: &str) -> Option<Self> {
        [Self::Static, Self::Dynamic].into_iter().find(|scheme| scheme.name() == name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scale_indices_cover_all_scales() {
        for granularity in [
            Granularity::PerTensor,
            Granularity::PerChannel,
            Granularity::PerGroup(4),
            Granularity::PerGroup(64),
        ] {
            let scheme = WeightScheme { bits: WeightBits::W4, granularity };
            let (rows, cols) = (3, 10);
            let mut seen = [false; 16];
            for row in 0..rows {
                for col in 0..cols {
                    seen[scheme.scale_index(row, col, cols)] = true;
                }
            }
            let n = scheme.num_scales(rows, cols);
            assert!(seen[..n].iter().all(|&s| s) && !seen[n..].iter().any(|&s| s), "{granularity:?}");
        }
    }

    #[test]
    fn names_read_back() {
        for bits in WeightBits::ALL {
            assert_eq!(WeightBits::from_name(bits.name()), Some(bits));
        }
        for scheme in [ActScheme::Static, ActScheme::Dynamic] {
            assert_eq!(ActScheme::from_name(scheme.name()), Some(scheme));
        }
        assert_eq!(WeightBits::from_name("5"), None);
    }
}
