//! Softmax of scores, and the codes of probabilities, over whole tiles.
//!
//! The loops run over 16 lanes at a time, so that they vectorise; each element and the order of the sum are those of
//! [`crate::float::softmax`] and [`squat_quant::Affine::quantize`].

use super::cache::{KvHead, TILE, depth};
use crate::block::Block;
use crate::lanes::reduce;
use crate::simd::{CodeSimd, FloatSimd};
use squat_quant::math::exp_nonpositive;
use squat_quant::{ActBits, Affine};

/// Prefetches blocks of values while probabilities are computed: with few rows of queries attention waits for memory, and
/// these passes read nothing else. The prefetches are spread over all passes, because a CPU tracks only a limited number
/// of outstanding cache misses.
pub(crate) struct ValuePrefetch<'a> {
    blocks: &'a [Block],
    /// Blocks per tile of scores: in the pass of exponentials, and in each of the two other passes.
    pace: [usize; 2],
}

/// Scores that become codes between two calls of [`ValuePrefetch::advance`].
const STRETCH: usize = 8 * TILE;

impl<'a> ValuePrefetch<'a> {
    /// The values of the more frequent width, spread over `rows` softmax rows; nothing if not `enabled`.
    pub(super) fn new(head: &'a KvHead, counts: [usize; 2], rows: usize, enabled: bool) -> Self {
        let bits = if counts[0] > counts[1] { ActBits::A4 } else { ActBits::A8 };
        let per_group = head.head_dim().div_ceil(TILE);
        let blocks = counts[bits.index()].div_ceil(depth(bits)) * per_group;
        if !enabled {
            return Self { blocks: &[], pace: [0; 2] };
        }
        let per_tile = (per_group * TILE / depth(bits)).div_ceil(rows);
        let pace = [per_tile.div_ceil(2), per_tile.div_ceil(4)];
        Self { blocks: &head.rows_of(bits).values[..blocks], pace }
    }

    /// Prefetches the next `count` blocks.
    #[inline(always)]
    fn advance<S: CodeSimd>(&mut self, s: S, count: usize) {
        let (now, later) = self.blocks.split_at(count.min(self.blocks.len()));
        for block in now {
            s.prefetch(block);
        }
        self.blocks = later;
    }
}

/// `e = exp(score - largest)` of the first `count` scores, zeros up to the end of the last tile; returns the sum.
#[inline(always)]
pub(super) fn exponentials<S: CodeSimd>(
    s: S,
    scores: &mut [f32],
    count: usize,
    largest: f32,
    prefetch: &mut ValuePrefetch<'_>,
) -> f32 {
    let mut lanes = [0f32; TILE];
    for (index, tile) in scores.as_chunks_mut::<TILE>().0.iter_mut().enumerate() {
        prefetch.advance(s, prefetch.pace[0]);
        let left = count.saturating_sub(index * TILE);
        for l in 0..TILE {
            let e = exp_nonpositive(tile[l] - largest);
            tile[l] = if l < left { e } else { 0.0 };
            lanes[l] += tile[l];
        }
    }
    reduce(lanes)
}

/// The sum over the first `len` positions in order, where the exponentials of 4-bit rows are at the start of `scores` and
/// those of 8-bit rows at `wide`; a bit of `narrow` is set where a position has 4 bits. At least 16 spare floats follow.
#[inline(always)]
pub(super) fn exponentials_merged<S: FloatSimd>(
    s: S,
    scores: &[f32],
    wide: usize,
    narrow: &[u16],
    len: usize,
) -> f32 {
    let mut lanes = s.zero();
    let (mut n, mut w) = (0, wide);
    for &word in &narrow[..len / TILE] {
        lanes = s.add(lanes, s.merge(word, at(scores, w), at(scores, n)));
        let ones = word.count_ones() as usize;
        (n, w) = (n + ones, w + TILE - ones);
    }
    let mut lanes = s.store(lanes);
    if !len.is_multiple_of(TILE) {
        let tile = s.store(s.merge(narrow[len / TILE], at(scores, w), at(scores, n)));
        for l in 0..len % TILE {
            lanes[l] += tile[l];
        }
    }
    reduce(lanes)
}

/// 16 floats from `index` on.
#[inline(always)]
fn at(x: &[f32], index: usize) -> &[f32; TILE] {
    x[index..].first_chunk().unwrap_or(&[0.0; TILE])
}

/// The largest score of whole tiles; negative infinity if all are NaN or there are none. Four tiles at a time hide the
/// latency of a comparison.
#[inline(always)]
pub(super) fn largest_of<S: FloatSimd>(s: S, scores: &[f32]) -> f32 {
    let mut lanes = [s.splat(f32::NEG_INFINITY); 4];
    let (fours, rest) = scores.as_chunks::<TILE>().0.as_chunks::<4>();
    for four in fours {
        for i in 0..4 {
            lanes[i] = s.max(lanes[i], s.load(&four[i]));
        }
    }
    for tile in rest {
        lanes[0] = s.max(lanes[0], s.load(tile));
    }
    let lanes = s.max(s.max(lanes[0], lanes[1]), s.max(lanes[2], lanes[3]));
    s.reduce_max(lanes)
}

/// `u = (e * inv) * scale`; returns the largest, at least 0.
#[inline(always)]
pub(super) fn fold_scales<S: CodeSimd + FloatSimd>(
    s: S,
    scores: &mut [f32],
    inv: f32,
    scales: &[f32],
    prefetch: &mut ValuePrefetch<'_>,
) -> f32 {
    let inv = s.splat(inv);
    let mut lanes = FloatSimd::zero(s);
    let scales = scales.as_chunks::<TILE>().0;
    for (tile, scales) in scores.as_chunks_mut::<TILE>().0.iter_mut().zip(scales) {
        prefetch.advance(s, prefetch.pace[1]);
        let u = s.mul(s.mul(FloatSimd::load(s, tile), inv), FloatSimd::load(s, scales));
        *tile = FloatSimd::store(s, u);
        lanes = s.max(lanes, u);
    }
    s.reduce_max(lanes)
}

/// [`FloatSimd::quantize`] of probabilities.
#[inline(always)]
pub(super) fn codes_of<S: CodeSimd + FloatSimd>(
    s: S,
    values: &[f32],
    quantizer: Affine,
    codes: &mut [u8],
    prefetch: &mut ValuePrefetch<'_>,
) -> i32 {
    let stretches = values.chunks(STRETCH).zip(codes.chunks_mut(STRETCH));
    stretches.fold(0, |sum, (values, codes)| {
        prefetch.advance(s, prefetch.pace[1] * values.len() / TILE);
        sum + s.quantize(values, quantizer, codes)
    })
}
