//! How the codes of each width are stored in blocks.
//!
//! Codes are stored unsigned, `code + offset`, in blocks of 64 bytes: 16 output channels times 4 inputs, times the number
//! of codes in a byte. A 32-bit lane of a block belongs to one channel, and its four bytes to four consecutive inputs: the
//! operand of the dot-product instructions of all CPUs (`vpdpbusd`, `sdot`, and `vpmaddubsw` + `vpmaddwd`). Sixteen blocks
//! of 8-bit codes are one operand of a tile instruction (`tdpbsud`): 16 rows of 64 bytes.
//!
//! | width | offset | inputs in a block | bit field `f` of a byte holds |
//! |---|---|---|---|
//! | 8 | 128 | 4 | inputs 0..4 |
//! | 4 | 8 | 8 | inputs 4f..4f+4 |
//! | 3 | 4 | 32 in three | see below |
//! | 2, ternary | 2 | 16 | inputs 4f..4f+4 |
//!
//! Codes of 3 bits: bits 0..3 and 3..6 of a byte of the first block hold inputs 0..4 and 4..8, of the second block 8..12
//! and 12..16, of the third block 16..20 and 20..24. Bits 6 and 7 of the first block hold the low two bits of inputs
//! 24..28, of the second block those of 28..32; bit 6 of the third block is the high bit of inputs 24..28, bit 7 that of
//! 28..32. So six of the eight fields are unpacked as cheaply as 4-bit ones; separate planes of two bits and of one bit
//! would take five operations per field. A matrix whose group length is not a multiple of 32 stores 3-bit codes in 4 bits.

use crate::block::Block;
use squat_quant::{Granularity, WeightBits, WeightScheme};

/// The layout of codes in blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Storage {
    /// One code in a byte.
    Bits8,
    /// Two codes in a byte.
    Bits4,
    /// Eight codes in three bytes.
    Bits3,
    /// Four codes in a byte: 2 bits and ternary.
    Bits2,
}

impl Storage {
    /// The storage of weights `[_, cols]` of a scheme. 3-bit codes are stored in 4 bits if groups would end within a step.
    pub fn of(scheme: WeightScheme, cols: usize) -> Self {
        match scheme.bits {
            WeightBits::W8 => Self::Bits8,
            WeightBits::W4 => Self::Bits4,
            WeightBits::W3 => match scheme.granularity {
                Granularity::PerGroup(len) if len < cols && !len.is_multiple_of(Self::Bits3.depth()) => {
                    Self::Bits4
                }
                _ => Self::Bits3,
            },
            WeightBits::W2 | WeightBits::Ternary => Self::Bits2,
        }
    }

    /// Bits of a stored code: 8, 4, 3, 2.
    pub const fn bits(self) -> usize {
        match self {
            Self::Bits8 => 8,
            Self::Bits4 => 4,
            Self::Bits3 => 3,
            Self::Bits2 => 2,
        }
    }

    /// The offset that makes a code unsigned: `2^(bits - 1)`.
    pub const fn offset(self) -> i32 {
        1 << (self.bits() - 1)
    }

    /// Blocks of a step: those that are unpacked together.
    pub(crate) const fn blocks(self) -> usize {
        match self {
            Self::Bits3 => 3,
            Self::Bits8 | Self::Bits4 | Self::Bits2 => 1,
        }
    }

    /// Inputs of a step.
    pub(crate) const fn depth(self) -> usize {
        self.blocks() * 4 * 8 / self.bits()
    }

    /// The byte that fills each block of a step when all codes are 0.
    pub(crate) const fn zero_bytes(self) -> &'static [u8] {
        match self {
            Self::Bits8 => &[0x80],
            Self::Bits4 => &[0x88],
            Self::Bits3 => &[0x24, 0x24, 0xE4],
            Self::Bits2 => &[0xAA],
        }
    }

    /// Code of input `i` of a channel, in the step at the start of `blocks`.
    #[inline]
    pub(crate) fn code(self, blocks: &[Block], lane: usize, i: usize) -> i32 {
        let (quad, at) = (i / 4, lane * 4 + i % 4);
        let field = match self {
            Self::Bits3 if quad < 6 => blocks[quad / 2].0[at] >> (quad % 2 * 3) & 7,
            Self::Bits3 => blocks[quad - 6].0[at] >> 6 | (blocks[2].0[at] >> quad & 1) << 2,
            _ => {
                let bits = self.bits();
                blocks[0].0[at] >> (quad * bits) & ((1u32 << bits) - 1) as u8
            }
        };
        i32::from(field) - self.offset()
    }

    /// Writes the codes of a channel into its lane of `blocks`.
    pub(crate) fn store_row(self, blocks: &mut [Block], lane: usize, codes: &[i8]) {
        match self {
            Self::Bits8 => self.store::<1, 1>(blocks, lane, codes, |quads| *quads),
            Self::Bits4 => self.store::<2, 1>(blocks, lane, codes, |&[a, b]| [a | b << 4]),
            Self::Bits3 => self.store::<8, 3>(blocks, lane, codes, words_of_bits3),
            Self::Bits2 => {
                self.store::<4, 1>(blocks, lane, codes, |&[a, b, c, d]| [a | b << 2 | c << 4 | d << 6])
            }
        }
    }

    /// Four codes at a time, as one 32-bit word; a step has `QUADS` of them, and `words` turns them into the words of `N`
    /// blocks.
    fn store<const QUADS: usize, const N: usize>(
        self,
        blocks: &mut [Block],
        lane: usize,
        codes: &[i8],
        words: impl Fn(&[u32; QUADS]) -> [u32; N],
    ) {
        // Adding the offset to a code flips its highest bit, so four bytes are offset at once without carries.
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

/// 32 codes of 3 bits, one per byte, as the words of three blocks.
#[inline(always)]
pub(crate) fn words_of_bits3(quads: &[u32; 8]) -> [u32; 3] {
    let [a, b, c, d, e, f, g, h] = *quads;
    let (low, high) = (0x0303_0303, 0x0404_0404);
    [a | b << 3 | (g & low) << 6, c | d << 3 | (h & low) << 6, e | f << 3 | (g & high) << 4 | (h & high) << 5]
}
