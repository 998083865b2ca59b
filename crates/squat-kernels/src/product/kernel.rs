//! The unit of a product: exact i32 sums of some rows of activations with some panels of weights.

use super::unpack::Unpack;
use crate::block::Block;
use crate::rows::RowsView;
use crate::simd::{IntSimd, PREFETCH_DISTANCE};
use crate::storage::Storage;
use core::hint::black_box;
use core::ops::Range;

/// Sums of a tile: rows times panels, 16 channels each.
pub(crate) type Sums<K, const MR: usize, const NP: usize> =
    [[<<K as MicroKernel>::Simd as IntSimd>::V; NP]; MR];

/// Computes the sums of a tile, and decides which tiles a product consists of.
///
/// [`Vectors`] implements it with any [`IntSimd`]. An instruction set with tile registers (Intel AMX, Arm SME) implements
/// it itself, and takes the rest of its table from the set whose vectors it shares:
///
/// * [`Self::rows`] cuts rows into tiles of its height, the last with fewer rows, and may leave few rows to vectors, since
///   [`Self::tile`] knows its height at compile time.
/// * Sixteen blocks of 8-bit codes of a panel are one operand of 64 inputs by 16 channels as they lie.
///   [`Self::weights`] sees each strip once and how many rows will read it, so narrower codes can be unpacked
///   ([`Unpack::unpack`]) once for all rows, or later piece by piece.
/// * [`Self::activations`] sees each tile of rows once, where an instruction wants them padded or transposed.
/// * The sums are an array of vectors: a tile register is stored right into it, and the epilogue reads each vector once.
pub(crate) trait MicroKernel: Copy {
    /// Vectors that hold the sums, 16 channels each, and compute the epilogue.
    type Simd: IntSimd;
    /// What [`Self::tile`] reads of a strip of `NP` panels.
    type Weights<'a, U: Unpack, const NP: usize>;
    /// What [`Self::tile`] reads of `MR` rows.
    type Activations<'a, U: Unpack, const MR: usize>;
    /// Rows of a full tile.
    const ROWS: usize;
    /// Offset of 8-bit weights in the sums. Narrower weights keep [`Storage::offset`].
    const BYTE_OFFSET: i32 = Storage::Bits8.offset();

    fn simd(self) -> Self::Simd;

    /// Covers `panels` by strips, in order.
    fn panels(self, panels: Range<usize>, strips: &mut impl Strips);

    /// Covers `rows` by tiles, in order.
    fn rows(self, rows: Range<usize>, tiles: &mut impl Tiles);

    /// Prepares the weights of a strip that `rows` rows will read.
    fn weights<'a, U: Unpack, const NP: usize>(
        self,
        panels: [&'a [U::Blocks]; NP],
        rows: usize,
    ) -> Self::Weights<'a, U, NP>;

    /// Prepares the rows `range` for a tile of `MR` rows; there are `MR` of them, or fewer if [`Self::rows`] said so.
    fn activations<'a, U: Unpack, const MR: usize>(
        self,
        rows: RowsView<'a>,
        range: Range<usize>,
    ) -> Self::Activations<'a, U, MR>;

    /// The sums over some steps of all inputs, from zero; those of missing rows may be anything. `prefetch` is the
    /// distance in bytes from each block that is read to one that is needed soon.
    fn tile<U: Unpack, const MR: usize, const NP: usize>(
        self,
        weights: &Self::Weights<'_, U, NP>,
        activations: &Self::Activations<'_, U, MR>,
        steps: Range<usize>,
        prefetch: Option<usize>,
    ) -> Sums<Self, MR, NP>;

    /// The sums of a product's only row with one panel. Bound by reading the weights.
    fn row<U: Unpack>(self, weights: &[U::Blocks], codes: &[U::Codes]) -> <Self::Simd as IntSimd>::V;
}

/// Receives the strips of a product.
pub(crate) trait Strips {
    /// Computes panels `panel..panel + NP`.
    fn strip<const NP: usize>(&mut self, panel: usize);
}

/// Receives the tiles of a strip.
pub(crate) trait Tiles {
    /// Computes rows `row..row + rows` in a tile of `MR >= rows` rows.
    fn tile<const MR: usize>(&mut self, row: usize, rows: usize);
}

/// Tiles of `MR` rows and `NP` panels in vector registers; a single row takes `UNROLL` steps of a panel at a time.
#[derive(Clone, Copy)]
pub(crate) struct Vectors<S, const MR: usize, const NP: usize, const UNROLL: usize>(pub S);

impl<S: IntSimd, const TILE_ROWS: usize, const TILE_PANELS: usize, const UNROLL: usize> MicroKernel
    for Vectors<S, TILE_ROWS, TILE_PANELS, UNROLL>
{
    type Simd = S;
    type Weights<'a, U: Unpack, const NP: usize> = [&'a [U::Blocks]; NP];
    type Activations<'a, U: Unpack, const MR: usize> = [&'a [U::Codes]; MR];
    const ROWS: usize = TILE_ROWS;
    const BYTE_OFFSET: i32 = S::BYTE_OFFSET;

    #[inline(always)]
    fn simd(self) -> S {
        self.0
    }

    #[inline(always)]
    fn panels(self, panels: Range<usize>, strips: &mut impl Strips) {
        let Range { start: mut p, end } = panels;
        if const { TILE_PANELS > 1 } {
            while p + TILE_PANELS <= end {
                strips.strip::<TILE_PANELS>(p);
                p += TILE_PANELS;
            }
        }
        while p < end {
            strips.strip::<1>(p);
            p += 1;
        }
    }

    #[inline(always)]
    fn rows(self, rows: Range<usize>, tiles: &mut impl Tiles) {
        let Range { start: mut m, end } = rows;
        while m + TILE_ROWS <= end {
            tiles.tile::<TILE_ROWS>(m, TILE_ROWS);
            m += TILE_ROWS;
        }
        // Tiles that cannot be needed are not compiled.
        if const { TILE_ROWS > 4 } {
            while m + 4 <= end {
                tiles.tile::<4>(m, 4);
                m += 4;
            }
        }
        if const { TILE_ROWS > 2 } {
            while m + 2 <= end {
                tiles.tile::<2>(m, 2);
                m += 2;
            }
        }
        if const { TILE_ROWS > 1 } && m < end {
            tiles.tile::<1>(m, 1);
        }
    }

    #[inline(always)]
    fn weights<U: Unpack, const NP: usize>(self, panels: [&[U::Blocks]; NP], _: usize) -> [&[U::Blocks]; NP] {
        panels
    }

    #[inline(always)]
    fn activations<'a, U: Unpack, const MR: usize>(
        self,
        rows: RowsView<'a>,
        range: Range<usize>,
    ) -> [&'a [U::Codes]; MR] {
        let codes = core::array::from_fn(|i| U::codes(rows.padded(range.start + i)));
        match U::STORAGE {
            // A pointer for each row: as multiples of one stride they take more registers than x86 has, and the loop over
            // bytes, which need little work, reads a spilled multiple in each step.
            Storage::Bits8 => black_box(codes),
            _ => codes,
        }
    }

    #[inline(always)]
    fn tile<U: Unpack, const MR: usize, const NP: usize>(
        self,
        weights: &[&[U::Blocks]; NP],
        activations: &[&[U::Codes]; MR],
        steps: Range<usize>,
        prefetch: Option<usize>,
    ) -> [[S::V; NP]; MR] {
        let s = self.0;
        let mut acc = [[s.zero(); NP]; MR];
        // Slices of one length: no index below needs a check.
        let end = steps.end - steps.start;
        let (mut a_steps, mut w_steps) = (*activations, *weights);
        for m in 0..MR {
            a_steps[m] = &activations[m][steps.clone()][..end];
        }
        for p in 0..NP {
            w_steps[p] = &weights[p][steps.clone()][..end];
        }
        let interval = const { flush_interval::<S, U>() }.unwrap_or(usize::MAX);
        let mut i = 0;
        while i < end {
            let mut partial = [[s.zero_partial(); NP]; MR];
            for i in i..end.min(i.saturating_add(interval)) {
                let mut blocks = [&w_steps[0][i]; NP];
                for p in 0..NP {
                    blocks[p] = &w_steps[p][i];
                    if let Some(distance) = prefetch {
                        prefetch_blocks(s, blocks[p], distance);
                    }
                }
                let mut codes = [&a_steps[0][i]; MR];
                for m in 1..MR {
                    codes[m] = &a_steps[m][i];
                }
                U::step(s, &mut acc, &mut partial, &blocks, &codes);
            }
            if const { has_partial::<U>() } {
                s.flush_rows(&mut acc, &partial);
            }
            i = i.saturating_add(interval);
        }
        acc
    }

    /// `UNROLL` steps at a time, each with sums of its own. Memory is fastest when it is read in order, and slow where
    /// several panels reach the ends of their pages together, so there is one panel at a time.
    #[inline(always)]
    fn row<U: Unpack>(self, weights: &[U::Blocks], codes: &[U::Codes]) -> S::V {
        let s = self.0;
        let mut acc = [[[s.zero()]]; UNROLL];
        let interval = const { flush_interval::<S, U>() };
        let stretch = interval.unwrap_or(usize::MAX).saturating_mul(UNROLL);
        for (a, w) in codes[..weights.len()].chunks(stretch).zip(weights.chunks(stretch)) {
            let mut partial = [[[s.zero_partial()]]; UNROLL];
            let (mut a_steps, mut w_steps) = (a.chunks_exact(UNROLL), w.chunks_exact(UNROLL));
            for (a, w) in a_steps.by_ref().zip(w_steps.by_ref()) {
                for u in 0..UNROLL {
                    prefetch_blocks(s, &w[u], PREFETCH_DISTANCE);
                    U::step(s, &mut acc[u], &mut partial[u], &[&w[u]], &[&a[u]]);
                }
            }
            let (a, w) = (a_steps.remainder(), w_steps.remainder());
            for u in 0..UNROLL {
                if u < w.len() {
                    prefetch_blocks(s, &w[u], PREFETCH_DISTANCE);
                    U::step(s, &mut acc[u], &mut partial[u], &[&w[u]], &[&a[u]]);
                }
            }
            if const { has_partial::<U>() } {
                for u in 0..UNROLL {
                    s.flush_rows(&mut acc[u], &partial[u]);
                }
            }
        }
        let mut sum = acc[0][0][0];
        for u in 1..UNROLL {
            sum = s.add(sum, acc[u][0][0]);
        }
        sum
    }
}

/// Prefetches what lies `distance` bytes after `blocks`.
#[inline(always)]
fn prefetch_blocks<S: IntSimd>(s: S, blocks: &impl AsRef<[Block]>, distance: usize) {
    for block in blocks.as_ref() {
        s.prefetch_ahead(block, distance);
    }
}

/// Whether products of `U` are added to partial sums.
const fn has_partial<U: Unpack>() -> bool {
    !matches!(U::STORAGE, Storage::Bits8)
}

/// Steps after which the partial sums of `S` must be flushed; `None` if they are accumulators themselves.
const fn flush_interval<S: IntSimd, U: Unpack>() -> Option<usize> {
    match U::STORAGE {
        _ if S::PARTIAL_LIMIT == usize::MAX => None,
        Storage::Bits8 => None,
        Storage::Bits4 => Some(S::PARTIAL_LIMIT / (15 * 2)),
        Storage::Bits3 => Some(S::PARTIAL_LIMIT / (7 * 8)),
        Storage::Bits2 => Some(S::PARTIAL_LIMIT / (3 * 4)),
    }
}
