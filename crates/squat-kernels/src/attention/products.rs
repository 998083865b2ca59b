//! The integer sums of attention, written once over [`CodeSimd`]. Several rows of queries share one pass over the cache.

use super::cache::{TILE, depth};
use crate::block::Block;
use crate::simd::{CodeSimd, IntSimd, PREFETCH_DISTANCE};
use squat_quant::ActBits;

/// The cached rows of one width. No closures over registers here, see [`crate::simd`].
pub(crate) trait Width {
    const BITS: ActBits;
    /// Codes of a query for one lane of a block: [`depth`] of them.
    type Query: Copy;
    /// Codes of probabilities for one lane of a block.
    type Codes: Copy;
    fn query(row: &[i8]) -> &[Self::Query];
    fn codes(row: &[u8]) -> &[Self::Codes];
    /// `acc += keys . q` for `NP` tiles.
    fn score<S: IntSimd, const NP: usize>(s: S, acc: &mut [S::V; NP], keys: &[S::V; NP], q: &Self::Query);
    /// `acc += values . c` for `NP` blocks of columns.
    fn weigh<S: CodeSimd, const NP: usize>(s: S, acc: &mut [S::V; NP], values: &[S::V; NP], c: &Self::Codes);
}

/// Rows of 8 bits.
pub(crate) struct Wide;
/// Rows of 4 bits.
pub(crate) struct Narrow;

impl Width for Wide {
    const BITS: ActBits = ActBits::A8;
    type Query = [i8; 4];
    type Codes = [u8; 4];

    #[inline(always)]
    fn query(row: &[i8]) -> &[Self::Query] {
        row.as_chunks().0
    }

    #[inline(always)]
    fn codes(row: &[u8]) -> &[Self::Codes] {
        row.as_chunks().0
    }

    #[inline(always)]
    fn score<S: IntSimd, const NP: usize>(s: S, acc: &mut [S::V; NP], keys: &[S::V; NP], q: &Self::Query) {
        let mut k = *keys;
        for p in 0..NP {
            k[p] = s.unpack8(keys[p]);
        }
        s.dot4(acc, &k, q);
    }

    #[inline(always)]
    fn weigh<S: CodeSimd, const NP: usize>(s: S, acc: &mut [S::V; NP], values: &[S::V; NP], c: &Self::Codes) {
        let mut v = *values;
        for p in 0..NP {
            v[p] = s.values(values[p]);
        }
        s.weigh4(acc, &v, c);
    }
}

/// The 4-bit fields of `NP` vectors.
#[inline(always)]
fn halves<S: IntSimd, const NP: usize>(s: S, v: &[S::V; NP]) -> [[S::V; NP]; 2] {
    let (mut low, mut high) = (*v, *v);
    for p in 0..NP {
        [low[p], high[p]] = s.unpack4(v[p]);
    }
    [low, high]
}

impl Width for Narrow {
    const BITS: ActBits = ActBits::A4;
    type Query = [[i8; 4]; 2];
    type Codes = [[u8; 4]; 2];

    #[inline(always)]
    fn query(row: &[i8]) -> &[Self::Query] {
        row.as_chunks::<4>().0.as_chunks().0
    }

    #[inline(always)]
    fn codes(row: &[u8]) -> &[Self::Codes] {
        row.as_chunks::<4>().0.as_chunks().0
    }

    #[inline(always)]
    fn score<S: IntSimd, const NP: usize>(s: S, acc: &mut [S::V; NP], keys: &[S::V; NP], q: &Self::Query) {
        let [low, high] = halves(s, keys);
        s.dot8_4bit(acc, &low, &high, &q[0], &q[1]);
    }

    #[inline(always)]
    fn weigh<S: CodeSimd, const NP: usize>(s: S, acc: &mut [S::V; NP], values: &[S::V; NP], c: &Self::Codes) {
        let [low, high] = halves(s, values);
        s.weigh8_4bit(acc, &low, &high, &c[0], &c[1]);
    }
}

/// Sums of `MR` queries times the rows of `NP` tiles from `tile` on; they include the stored offset.
#[inline(always)]
pub(crate) fn score_tiles<S: IntSimd, W: Width, const MR: usize, const NP: usize>(
    s: S,
    keys: &[Block],
    dim: usize,
    tile: usize,
    queries: &[&[i8]; MR],
) -> [[[i32; TILE]; NP]; MR] {
    let blocks = dim.div_ceil(depth(W::BITS));
    let keys: [&[Block]; NP] = core::array::from_fn(|p| &keys[(tile + p) * blocks..][..blocks]);
    let queries: [&[W::Query]; MR] = core::array::from_fn(|m| &W::query(queries[m])[..blocks]);
    let mut acc = [[s.zero(); NP]; MR];
    for i in 0..blocks {
        let mut block = [s.zero(); NP];
        for p in 0..NP {
            if const { MR < 8 } {
                s.prefetch_ahead(&keys[p][i], PREFETCH_DISTANCE);
            }
            block[p] = s.load(&keys[p][i].0);
        }
        for m in 0..MR {
            W::score(s, &mut acc[m], &block, &queries[m][i]);
        }
    }
    let mut sums = [[[0; TILE]; NP]; MR];
    for m in 0..MR {
        for p in 0..NP {
            sums[m][p] = s.store(acc[m][p]);
        }
    }
    sums
}

/// Adds the columns of blocks `panel..panel + NP` to `sums` (`[MR, panels]`, 16 columns each), over all groups of the
/// codes, `U` groups at a time.
#[inline(always)]
fn weigh_panels<S: CodeSimd, W: Width, const MR: usize, const NP: usize, const U: usize>(
    s: S,
    values: &[Block],
    panels: usize,
    panel: usize,
    codes: &[&[W::Codes]; MR],
    sums: &mut [i32],
) {
    let groups = codes[0].len();
    let mut acc = [[[s.zero(); NP]; MR]; U];
    let mut group = 0;
    while group + U <= groups {
        for u in 0..U {
            let from = &values[(group + u) * panels + panel..][..NP];
            let mut block = [s.zero(); NP];
            for p in 0..NP {
                block[p] = s.load(&from[p].0);
            }
            for m in 0..MR {
                W::weigh(s, &mut acc[u][m], &block, &codes[m][group + u]);
            }
        }
        group += U;
    }
    while group < groups {
        let from = &values[group * panels + panel..][..NP];
        let mut block = [s.zero(); NP];
        for p in 0..NP {
            block[p] = s.load(&from[p].0);
        }
        for m in 0..MR {
            W::weigh(s, &mut acc[0][m], &block, &codes[m][group]);
        }
        group += 1;
    }
    for m in 0..MR {
        for p in 0..NP {
            let to = &mut sums[(m * panels + panel + p) * TILE..][..TILE];
            for u in 0..U {
                let lanes = s.store(acc[u][m][p]);
                for c in 0..TILE {
                    to[c] += lanes[c];
                }
            }
        }
    }
}

/// `sums[m][c] += sum_j codes[m][j] * v_j[c]` over whole groups of rows; a row of sums has 16 columns for each block of a
/// group. The sums include the offset of the values: the stored one at 4 bits, [`CodeSimd::VALUE_OFFSET`] at 8 bits.
#[inline(always)]
pub(crate) fn weigh_values<S: CodeSimd, W: Width, const MR: usize, const NP: usize, const U: usize>(
    s: S,
    values: &[Block],
    dim: usize,
    codes: &[&[u8]; MR],
    sums: &mut [i32],
) {
    let panels = dim.div_ceil(TILE);
    let groups = codes[0].len() / depth(W::BITS);
    let codes: [&[W::Codes]; MR] = core::array::from_fn(|m| &W::codes(codes[m])[..groups]);
    let mut panel = 0;
    while panel + NP <= panels {
        weigh_panels::<S, W, MR, NP, U>(s, values, panels, panel, &codes, sums);
        panel += NP;
    }
    if const { NP > 1 } {
        while panel < panels {
            weigh_panels::<S, W, MR, 1, U>(s, values, panels, panel, &codes, sums);
            panel += 1;
        }
    }
}
