//! How weights of each width lie in the bytes of blocks; [`crate::matrix`] draws it.

use crate::matrix::Block;
use squat_quant::{Granularity, WeightBits, WeightScheme};

/// How codes are laid out in blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Storage {
    /// One code in a byte.
    Byte,
    /// Two codes in a byte.
    Nibble,
    /// Eight codes in three bytes.
    Octal,
    /// Four codes in a byte.
    Crumb,
}

impl Storage {
    /// The storage of weights `[_, cols]` of that scheme. Three bits are stored in four where a group would end within
    /// a step.
    pub fn of(scheme: WeightScheme, cols: usize) -> Self {
        match scheme.bits {
            WeightBits::W8 => Self::Byte,
            WeightBits::W4 => Self::Nibble,
            WeightBits::W3 => match scheme.granularity {
                Granularity::PerGroup(len) if len < cols && !len.is_multiple_of(Self::Octal.depth()) => {
                    Self::Nibble
                }
                _ => Self::Octal,
            },
            WeightBits::W2 | WeightBits::Ternary => Self::Crumb,
        }
    }

    /// Bits of a stored code: 8, 4, 3, 2.
    pub const fn bits(self) -> usize {
        match self {
            Self::Byte => 8,
            Self::Nibble => 4,
            Self::Octal => 3,
            Self::Crumb => 2,
        }
    }

    /// What is added to a code to store it.
    pub const fn offset(self) -> i32 {
        1 << (self.bits() - 1)
    }

    /// Blocks that are unpacked together: one step of a product.
    pub(crate) const fn blocks(self) -> usize {
        match self {
            Self::Octal => 3,
            Self::Byte | Self::Nibble | Self::Crumb => 1,
        }
    }

    /// Inputs of a step.
    pub(crate) const fn depth(self) -> usize {
        self.blocks() * 4 * 8 / self.bits()
    }

    /// The byte that fills each block of a step when all codes are 0.
    pub(crate) const fn zero_bytes(self) -> &'static [u8] {
        match self {
            Self::Byte => &[0x80],
            Self::Nibble => &[0x88],
            Self::Octal => &[0x24, 0x24, 0xE4],
            Self::Crumb => &[0xAA],
        }
    }

    /// Code of input `i` of the step that `blocks` begin with.
    #[inline]
    pub(crate) fn code(self, blocks: &[Block], lane: usize, i: usize) -> i32 {
        let (quad, at) = (i / 4, lane * 4 + i % 4);
        let field = match self {
            Self::Octal if quad < 6 => blocks[quad / 2].0[at] >> (quad % 2 * 3) & 7,
            Self::Octal => blocks[quad - 6].0[at] >> 6 | (blocks[2].0[at] >> quad & 1) << 2,
            _ => {
                let bits = self.bits();
                blocks[0].0[at] >> (quad * bits) & ((1u32 << bits) - 1) as u8
            }
        };
        i32::from(field) - self.offset()
    }

    /// Writes a row of codes into its lane of `blocks`.
    pub(crate) fn store_row(self, blocks: &mut [Block], lane: usize, codes: &[i8]) {
        match self {
            Self::Byte => self.store::<1, 1>(blocks, lane, codes, |quads| *quads),
            Self::Nibble => self.store::<2, 1>(blocks, lane, codes, |&[a, b]| [a | b << 4]),
            Self::Octal => self.store::<8, 3>(blocks, lane, codes, octal_words),
            Self::Crumb => {
                self.store::<4, 1>(blocks, lane, codes, |&[a, b, c, d]| [a | b << 2 | c << 4 | d << 6])
            }
        }
    }

    /// Four codes at a time, as one 32-bit number; a step has `QUADS` of them, and `words` lays them out in `N` blocks.
    fn store<const QUADS: usize, const N: usize>(
        self,
        blocks: &mut [Block],
        lane: usize,
        codes: &[i8],
        words: impl Fn(&[u32; QUADS]) -> [u32; N],
    ) {
        // Adding the offset to a code of so many bits is flipping its highest bit; four bytes at once have no carries.
        let ones = 0x0101_0101u32;
        let (mask, flip) = (ones * ((1u32 << self.bits()) - 1), ones * self.offset() as u32);
        let mut put = |step: usize, quads: &[[i8; 4]; QUADS]| {
            let fields = quads.map(|quad| (u32::from_le_bytes(quad.map(|code| code as u8)) ^ flip) & mask);
            for (block, word) in blocks[step * N..(step + 1) * N].iter_mut().zip(words(&fields)) {
                block.0[lane * 4..lane * 4 + 4].copy_from_slice(&word.to_le_bytes());
            }
        };
        let (whole, _) = codes.as_chunks::<4>().0.as_chunks::<QUADS>();
        for (step, quads) in whole.iter().enumerate() {
            put(step, quads);
        }
        let rest = &codes[whole.len() * QUADS * 4..];
        if !rest.is_empty() {
            let mut quads = [[0i8; 4]; QUADS];
            quads.as_flattened_mut()[..rest.len()].copy_from_slice(rest);
            put(whole.len(), &quads);
        }
    }
}

/// 32 codes of three bits, a byte each, as the words of three blocks; see [`crate::matrix`].
#[inline(always)]
pub(crate) fn octal_words(quads: &[u32; 8]) -> [u32; 3] {
    let [a, b, c, d, e, f, g, h] = *quads;
    let (low, high) = (0x0303_0303, 0x0404_0404);
    [a | b << 3 | (g & low) << 6, c | d << 3 | (h & low) << 6, e | f << 3 | (g & high) << 4 | (h & high) << 5]
}
