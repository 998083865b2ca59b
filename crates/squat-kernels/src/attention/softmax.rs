//! Softmax of scores and the codes of probabilities, over runs of whole tiles.
//!
//! The loops run over 16 lanes at a time, so that they vectorise; every element and the order of the sum are those of
//! [`crate::float::softmax`] and [`squat_quant::Affine::quantize`].

use super::cache::{KvHead, TILE, depth};
use super::products::CodeSimd;
use crate::float::{FloatSimd, fold};
use crate::matrix::Block;
use squat_quant::math::exp_nonpositive;
use squat_quant::{ActBits, Affine};

/// Blocks of values to ask for while probabilities are computed: with few rows of queries attention waits for memory, and
/// here nothing else is read. What memory can deliver in the time is spread over all passes, because a CPU keeps only so
/// many requests.
pub(crate) struct Ahead<'a> {
    blocks: &'a [Block],
    /// Blocks for each tile of scores in the pass of exponentials, and in each of the two others.
    pace: [usize; 2],
}

/// Scores that become codes between two requests of [`Ahead`].
const STRETCH: usize = 8 * TILE;

impl<'a> Ahead<'a> {
    /// The values of the more frequent width, spread over `rows` softmax rows; nothing if `!wanted`.
    pub(super) fn new(head: &'a KvHead, counts: [usize; 2], rows: usize, wanted: bool) -> Self {
        let bits = if counts[0] > counts[1] { ActBits::A4 } else { ActBits::A8 };
        let per_group = head.head_dim().div_ceil(TILE);
        let blocks = counts[bits.index()].div_ceil(depth(bits)) * per_group;
        if !wanted {
            return Self { blocks: &[], pace: [0; 2] };
        }
        let per_tile = (per_group * TILE / depth(bits)).div_ceil(rows);
        let pace = [per_tile.div_ceil(2), per_tile.div_ceil(4)];
        Self { blocks: &head.run(bits).values[..blocks], pace }
    }

    #[inline(always)]
    fn ask<S: CodeSimd>(&mut self, s: S, count: usize) {
        let (now, later) = self.blocks.split_at(count.min(self.blocks.len()));
        for block in now {
            s.prefetch(block);
        }
        self.blocks = later;
    }
}

/// `e = exp(score - largest)` of the first `count` scores of whole tiles, zeros after them; returns their sum.
#[inline(always)]
pub(super) fn exponentials<S: CodeSimd>(
    s: S,
    scores: &mut [f32],
    count: usize,
    largest: f32,
    ahead: &mut Ahead<'_>,
) -> f32 {
    let mut lanes = [0f32; TILE];
    for (index, tile) in scores.as_chunks_mut::<TILE>().0.iter_mut().enumerate() {
        ahead.ask(s, ahead.pace[0]);
        let left = count.saturating_sub(index * TILE);
        for l in 0..TILE {
            let e = exp_nonpositive(tile[l] - largest);
            tile[l] = if l < left { e } else { 0.0 };
            lanes[l] += tile[l];
        }
    }
    fold(lanes)
}

/// The sum over the first `len` positions where exponentials of 4-bit rows stand at the begin of `scores` and those of
/// 8-bit rows from `wide` on; `narrow` tells which is which. At least 16 more floats follow.
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
    fold(lanes)
}

/// 16 floats from `index` on, which must be there.
#[inline(always)]
fn at(x: &[f32], index: usize) -> &[f32; TILE] {
    x[index..].first_chunk().unwrap_or(&[0.0; TILE])
}

/// Largest of whole tiles; negative infinity if there are none, or no numbers. Four tiles at a time, because one
/// comparison waits for the one before.
#[inline(always)]
pub(super) fn largest_of<S: FloatSimd>(s: S, scores: &[f32]) -> f32 {
    let mut lanes = [s.splat(f32::NEG_INFINITY); 4];
    let (fours, rest) = scores.as_chunks::<TILE>().0.as_chunks::<4>();
    for four in fours {
        for i in 0..4 {
            lanes[i] = s.greater(lanes[i], s.load(&four[i]));
        }
    }
    for tile in rest {
        lanes[0] = s.greater(lanes[0], s.load(tile));
    }
    let lanes = s.greater(s.greater(lanes[0], lanes[1]), s.greater(lanes[2], lanes[3]));
    s.fold_greatest(lanes)
}

/// `u = (e * inv) * scale`; returns the largest, at least 0.
#[inline(always)]
pub(super) fn fold_scales<S: CodeSimd + FloatSimd>(
    s: S,
    scores: &mut [f32],
    inv: f32,
    scales: &[f32],
    ahead: &mut Ahead<'_>,
) -> f32 {
    let inv = s.splat(inv);
    let mut lanes = FloatSimd::zero(s);
    let scales = scales.as_chunks::<TILE>().0;
    for (tile, scales) in scores.as_chunks_mut::<TILE>().0.iter_mut().zip(scales) {
        ahead.ask(s, ahead.pace[1]);
        let u = s.multiply(s.multiply(FloatSimd::load(s, tile), inv), FloatSimd::load(s, scales));
        *tile = FloatSimd::store(s, u);
        lanes = s.greater(lanes, u);
    }
    s.fold_greatest(lanes)
}

/// [`FloatSimd::quantize`] of probabilities.
#[inline(always)]
pub(super) fn codes_of<S: CodeSimd + FloatSimd>(
    s: S,
    values: &[f32],
    quantizer: Affine,
    codes: &mut [u8],
    ahead: &mut Ahead<'_>,
) -> i32 {
    let stretches = values.chunks(STRETCH).zip(codes.chunks_mut(STRETCH));
    stretches.fold(0, |sum, (values, codes)| {
        ahead.ask(s, ahead.pace[1] * values.len() / TILE);
        sum + s.quantize(values, quantizer, codes)
    })
}
