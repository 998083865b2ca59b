//! From rows of packed words, as weight files hold them, straight to panels.
//!
//! A file has a row of codes densely in 32-bit words, lowest bits first, each code plus `2^(b-1)`. For 8, 4 and 2 bits
//! one such word holds exactly the inputs that a lane of a block holds, with the same offset: only the order of the
//! fields within the word differs, and the words of 16 rows interleave. So a panel is made by a transposition of words
//! and a few shifts, and its sums on the way, while it is in the cache. 3-bit codes are widened to 4 bits first.

use crate::matrix::{Block, PANEL, Storage};
use core::mem::MaybeUninit;
use squat_quant::WeightBits;

/// Blocks that are transposed together.
const TILE: usize = 16;

/// A word of a file's row and what it becomes in a block; see [`Storage`].
trait FileWord {
    const STORAGE: Storage;
    /// Word `index` of the row as fields of the storage's width and offset, in the order of the inputs.
    fn word(row: &[i32], index: usize) -> u32;
    /// The fields in the order of a block.
    fn arrange(word: u32) -> u32;
    /// Sum of the fields.
    fn sum(word: u32) -> u32;
    /// Whether any field is a code that the width has not.
    fn invalid(_word: u32) -> bool {
        false
    }
}

/// Sum of four bytes.
#[inline(always)]
fn byte_sum(x: u32) -> u32 {
    let pairs = (x & 0x00FF_00FF) + ((x >> 8) & 0x00FF_00FF);
    (pairs & 0xFFFF) + (pairs >> 16)
}

struct Eight;
struct Four;
struct Three;
struct Two;
struct Ternary;

impl FileWord for Eight {
    const STORAGE: Storage = Storage::Byte;

    #[inline(always)]
    fn word(row: &[i32], index: usize) -> u32 {
        row[index] as u32
    }

    #[inline(always)]
    fn arrange(word: u32) -> u32 {
        word
    }

    #[inline(always)]
    fn sum(word: u32) -> u32 {
        byte_sum(word)
    }
}

impl FileWord for Four {
    const STORAGE: Storage = Storage::Nibble;

    #[inline(always)]
    fn word(row: &[i32], index: usize) -> u32 {
        row[index] as u32
    }

    /// Inputs 0..4 to the low nibbles of the bytes, inputs 4..8 to the high ones.
    #[inline(always)]
    fn arrange(word: u32) -> u32 {
        let (low, high) = (word & 0xFFFF, word >> 16);
        let (low, high) = ((low | low << 8) & 0x00FF_00FF, (high | high << 8) & 0x00FF_00FF);
        let (low, high) = ((low | low << 4) & 0x0F0F_0F0F, (high | high << 4) & 0x0F0F_0F0F);
        low | high << 4
    }

    #[inline(always)]
    fn sum(word: u32) -> u32 {
        byte_sum((word & 0x0F0F_0F0F) + ((word >> 4) & 0x0F0F_0F0F))
    }
}

impl FileWord for Three {
    const STORAGE: Storage = Storage::Nibble;

    /// 24 bits, which may straddle two words, as eight nibbles. A code plus 4 becomes a code plus 8.
    #[inline(always)]
    fn word(row: &[i32], index: usize) -> u32 {
        let bit = 24 * index;
        let low = u64::from(row[bit / 32] as u32);
        let high = row.get(bit / 32 + 1).map_or(0, |&word| u64::from(word as u32));
        let fields = ((low | high << 32) >> (bit % 32)) as u32 & 0x00FF_FFFF;
        let fields = (fields & 0x0000_0FFF) | (fields & 0x00FF_F000) << 4;
        let fields = (fields & 0x003F_003F) | (fields & 0x0FC0_0FC0) << 2;
        let fields = (fields & 0x0707_0707) | (fields & 0x3838_3838) << 1;
        fields + 0x4444_4444
    }

    #[inline(always)]
    fn arrange(word: u32) -> u32 {
        Four::arrange(word)
    }

    #[inline(always)]
    fn sum(word: u32) -> u32 {
        Four::sum(word)
    }
}

impl FileWord for Two {
    const STORAGE: Storage = Storage::Crumb;

    #[inline(always)]
    fn word(row: &[i32], index: usize) -> u32 {
        row[index] as u32
    }

    /// Sixteen fields as a 4 x 4 matrix, transposed by exchanging first within, then between, 2 x 2 blocks.
    #[inline(always)]
    fn arrange(word: u32) -> u32 {
        let swap = (word ^ (word >> 6)) & 0x00CC_00CC;
        let word = word ^ swap ^ (swap << 6);
        let swap = (word ^ (word >> 12)) & 0x0000_F0F0;
        word ^ swap ^ (swap << 12)
    }

    #[inline(always)]
    fn sum(word: u32) -> u32 {
        Four::sum((word & 0x3333_3333) + ((word >> 2) & 0x3333_3333))
    }
}

impl FileWord for Ternary {
    const STORAGE: Storage = Storage::Crumb;

    #[inline(always)]
    fn word(row: &[i32], index: usize) -> u32 {
        row[index] as u32
    }

    #[inline(always)]
    fn arrange(word: u32) -> u32 {
        Two::arrange(word)
    }

    #[inline(always)]
    fn sum(word: u32) -> u32 {
        Two::sum(word)
    }

    /// Code -2, a field of 0.
    #[inline(always)]
    fn invalid(word: u32) -> bool {
        (word | word >> 1) & 0x5555_5555 != 0x5555_5555
    }
}

/// What [`fill_panel`] is given.
pub(crate) struct PanelSource<'a> {
    pub bits: WeightBits,
    /// Inputs.
    pub cols: usize,
    /// Blocks that share a sum.
    pub blocks_per_group: usize,
    /// Words of the 16 rows; rows that the matrix lacks hold code 0.
    pub rows: [&'a [i32]; PANEL],
}

/// Writes every block of a panel and the sums of codes of each of its groups; false if a code is outside the width.
#[inline(always)]
pub(crate) fn fill_panel(
    source: &PanelSource<'_>,
    blocks: &mut [MaybeUninit<Block>],
    sums: &mut [[i32; PANEL]],
) -> bool {
    match source.bits {
        WeightBits::W8 => fill::<Eight>(source, blocks, sums),
        WeightBits::W4 => fill::<Four>(source, blocks, sums),
        WeightBits::W3 => fill::<Three>(source, blocks, sums),
        WeightBits::W2 => fill::<Two>(source, blocks, sums),
        WeightBits::Ternary => fill::<Ternary>(source, blocks, sums),
    }
}

#[inline(always)]
fn fill<W: FileWord>(
    source: &PanelSource<'_>,
    blocks: &mut [MaybeUninit<Block>],
    sums: &mut [[i32; PANEL]],
) -> bool {
    let depth = W::STORAGE.depth();
    // Fields of the last word that belong to no input hold code 0, whatever the file has there.
    let last = source.cols.div_ceil(depth) - 1;
    let held = source.cols - last * depth;
    let mask = u32::MAX >> (32 - held * (32 / depth));
    let zero = u32::from(W::STORAGE.zero_byte()) * 0x0101_0101;
    let offset = W::STORAGE.offset() * depth as i32;
    let mut invalid = false;
    for (group, (blocks, sums)) in blocks.chunks_mut(source.blocks_per_group).zip(sums).enumerate() {
        let first = group * source.blocks_per_group;
        let mut total = [0u32; PANEL];
        for (tile, blocks) in blocks.chunks_mut(TILE).enumerate() {
            let at = first + tile * TILE;
            let mut words = [[0u32; PANEL]; TILE];
            for (lane, row) in source.rows.iter().enumerate() {
                for (index, words) in words[..blocks.len()].iter_mut().enumerate() {
                    words[lane] = W::word(row, at + index);
                }
            }
            if at + blocks.len() > last {
                words[last - at].iter_mut().for_each(|word| *word = (*word & mask) | (zero & !mask));
            }
            for (block, words) in blocks.iter_mut().zip(&words) {
                let mut bytes = [0u8; 64];
                for lane in 0..PANEL {
                    total[lane] += W::sum(words[lane]);
                    invalid |= W::invalid(words[lane]);
                    bytes[lane * 4..lane * 4 + 4].copy_from_slice(&W::arrange(words[lane]).to_le_bytes());
                }
                block.write(Block(bytes));
            }
        }
        for lane in 0..PANEL {
            sums[lane] = total[lane] as i32 - offset * blocks.len() as i32;
        }
    }
    !invalid
}
