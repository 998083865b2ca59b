//! From rows of packed words, the layout of weight files, straight to panels.
//!
//! A file stores a row of codes densely in 32-bit words, lowest bits first, each code plus `2^(b-1)`. One such word, or
//! three words of 3-bit codes, hold exactly the inputs of one lane of one (or three) blocks, with the same offset: only the order
//! of the fields within the words differs, and the words of 16 rows are interleaved. So a panel takes a transposition of
//! words and a few shifts; its sums are computed in the same pass, while the words are in the cache.

use crate::block::{Block, PANEL};
use crate::storage::{Storage, words_of_bits3};
use core::mem::MaybeUninit;
use squat_quant::WeightBits;

/// Steps of [`Storage::depth`] inputs that are transposed together.
const TILE: usize = 16;

/// Converts `N` words of a file's row to the words of `N` blocks.
trait FileWords<const N: usize> {
    const STORAGE: Storage;
    /// Reorders the fields as blocks store them, see [`Storage`].
    fn arrange(words: [u32; N]) -> [u32; N];
    /// Sum of the fields.
    fn sum(words: [u32; N]) -> u32;
    /// Whether any field is a code outside the width.
    fn invalid(_words: [u32; N]) -> bool {
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

impl FileWords<1> for Eight {
    const STORAGE: Storage = Storage::Bits8;

    #[inline(always)]
    fn arrange(words: [u32; 1]) -> [u32; 1] {
        words
    }

    #[inline(always)]
    fn sum([word]: [u32; 1]) -> u32 {
        byte_sum(word)
    }
}

impl FileWords<1> for Four {
    const STORAGE: Storage = Storage::Bits4;

    /// Inputs 0..4 to the low halves of the bytes, inputs 4..8 to the high halves.
    #[inline(always)]
    fn arrange([word]: [u32; 1]) -> [u32; 1] {
        let (low, high) = (word & 0xFFFF, word >> 16);
        let (low, high) = ((low | low << 8) & 0x00FF_00FF, (high | high << 8) & 0x00FF_00FF);
        let (low, high) = ((low | low << 4) & 0x0F0F_0F0F, (high | high << 4) & 0x0F0F_0F0F);
        [low | high << 4]
    }

    #[inline(always)]
    fn sum([word]: [u32; 1]) -> u32 {
        byte_sum((word & 0x0F0F_0F0F) + ((word >> 4) & 0x0F0F_0F0F))
    }
}

/// The 32 codes of 96 bits, one per byte.
#[inline(always)]
fn quads_of_bits3([a, b, c]: [u32; 3]) -> [u32; 8] {
    let mut quads = [a, a >> 12, a >> 24 | b << 8, b >> 4, b >> 16, b >> 28 | c << 4, c >> 8, c >> 20];
    for quad in &mut quads {
        let bits = *quad & 0xFFF;
        let pairs = (bits | bits << 10) & 0x003F_003F;
        *quad = (pairs | pairs << 5) & 0x0707_0707;
    }
    quads
}

impl FileWords<3> for Three {
    const STORAGE: Storage = Storage::Bits3;

    #[inline(always)]
    fn arrange(words: [u32; 3]) -> [u32; 3] {
        words_of_bits3(&quads_of_bits3(words))
    }

    #[inline(always)]
    fn sum(words: [u32; 3]) -> u32 {
        let mut bytes = 0;
        for quad in quads_of_bits3(words) {
            bytes += quad;
        }
        byte_sum(bytes)
    }
}

impl FileWords<1> for Two {
    const STORAGE: Storage = Storage::Bits2;

    /// Transposes sixteen fields as a 4 x 4 matrix: swaps first within, then between, 2 x 2 blocks.
    #[inline(always)]
    fn arrange([word]: [u32; 1]) -> [u32; 1] {
        let swap = (word ^ (word >> 6)) & 0x00CC_00CC;
        let word = word ^ swap ^ (swap << 6);
        let swap = (word ^ (word >> 12)) & 0x0000_F0F0;
        [word ^ swap ^ (swap << 12)]
    }

    #[inline(always)]
    fn sum([word]: [u32; 1]) -> u32 {
        Four::sum([(word & 0x3333_3333) + ((word >> 2) & 0x3333_3333)])
    }
}

impl FileWords<1> for Ternary {
    const STORAGE: Storage = Storage::Bits2;

    #[inline(always)]
    fn arrange(words: [u32; 1]) -> [u32; 1] {
        Two::arrange(words)
    }

    #[inline(always)]
    fn sum(words: [u32; 1]) -> u32 {
        Two::sum(words)
    }

    /// Code -2, a field of 0.
    #[inline(always)]
    fn invalid([word]: [u32; 1]) -> bool {
        (word | word >> 1) & 0x5555_5555 != 0x5555_5555
    }
}

/// The input of [`fill_panel`].
pub(crate) struct PanelSource<'a> {
    pub bits: WeightBits,
    /// Number of inputs.
    pub cols: usize,
    /// Steps of [`Storage::depth`] inputs that share a sum.
    pub steps_per_group: usize,
    /// Words of the 16 rows; missing rows hold code 0.
    pub rows: [&'a [i32]; PANEL],
}

/// Writes every block of a panel and the sums of codes of each group; returns false if a code is outside the width.
#[inline(always)]
pub(crate) fn fill_panel(
    source: &PanelSource<'_>,
    blocks: &mut [MaybeUninit<Block>],
    sums: &mut [[i32; PANEL]],
) -> bool {
    match source.bits {
        WeightBits::W8 => fill::<Eight, 1>(source, blocks, sums),
        WeightBits::W4 => fill::<Four, 1>(source, blocks, sums),
        WeightBits::W3 => fill::<Three, 3>(source, blocks, sums),
        WeightBits::W2 => fill::<Two, 1>(source, blocks, sums),
        WeightBits::Ternary => fill::<Ternary, 1>(source, blocks, sums),
    }
}

#[inline(always)]
fn fill<W: FileWords<N>, const N: usize>(
    source: &PanelSource<'_>,
    blocks: &mut [MaybeUninit<Block>],
    sums: &mut [[i32; PANEL]],
) -> bool {
    let (depth, bits) = (W::STORAGE.depth(), W::STORAGE.bits());
    // Unused fields of the last words are set to code 0, whatever the file contains there.
    let last = source.cols.div_ceil(depth) - 1;
    let held = source.cols - last * depth;
    let zeros = (held..depth).fold(0, |zeros, i| zeros | 1u128 << ((i + 1) * bits - 1));
    let mask = (1u128 << (held * bits)) - 1;
    let offset = W::STORAGE.offset() * depth as i32;
    let mut invalid = false;
    let (steps, _) = blocks.as_chunks_mut::<N>();
    for (group, (steps, sums)) in steps.chunks_mut(source.steps_per_group).zip(sums).enumerate() {
        let first = group * source.steps_per_group;
        let mut total = [0u32; PANEL];
        for (tile, steps) in steps.chunks_mut(TILE).enumerate() {
            let at = first + tile * TILE;
            let mut words = [[[0u32; PANEL]; N]; TILE];
            for (lane, row) in source.rows.iter().enumerate() {
                let to = words[..steps.len()].as_flattened_mut();
                for (to, &word) in to.iter_mut().zip(&row[at * N..]) {
                    to[lane] = word as u32;
                }
            }
            if at + steps.len() > last {
                for (i, words) in words[last - at].iter_mut().enumerate() {
                    let (mask, zeros) = ((mask >> (32 * i)) as u32, (zeros >> (32 * i)) as u32);
                    words.iter_mut().for_each(|word| *word = (*word & mask) | zeros);
                }
            }
            for (blocks, words) in steps.iter_mut().zip(&words) {
                let mut bytes = [[0u8; 64]; N];
                for lane in 0..PANEL {
                    let mut of_lane = [0; N];
                    for i in 0..N {
                        of_lane[i] = words[i][lane];
                    }
                    total[lane] += W::sum(of_lane);
                    invalid |= W::invalid(of_lane);
                    for (bytes, word) in bytes.iter_mut().zip(W::arrange(of_lane)) {
                        bytes[lane * 4..lane * 4 + 4].copy_from_slice(&word.to_le_bytes());
                    }
                }
                for (block, bytes) in blocks.iter_mut().zip(bytes) {
                    block.write(Block(bytes));
                }
            }
        }
        for lane in 0..PANEL {
            sums[lane] = total[lane] as i32 - offset * steps.len() as i32;
        }
    }
    !invalid
}
