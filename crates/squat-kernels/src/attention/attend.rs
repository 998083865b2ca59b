//! Attention of rows of queries over a cache of integers.
//!
//! With `q` the codes of the query and `k_j`, `v_j` the cached rows (METHOD.md section 3):
//!
//! ```text
//! dynamic:  score_j = ((sum_d q[d] k_j[d]) as f32 * (s_q * 1/sqrt(d))) * s_k[j]
//!           u_j = p_j * s_v[j];  for each width: s_u = max(u_j) / 255, c_j = round(u_j / s_u)
//!           out[d] = (sum_8 c_j v_j[d]) as f32 * s_u8  +  (sum_4 c_j v_j[d]) as f32 * s_u4
//! static:   score_j = ((sum_d (q[d] - z_q) (k_j[d] - z_k)) as f32 * (s_q * 1/sqrt(d))) * s_k
//!           c_j = round(p_j * (2^b - 1))
//!           out[d] = (sum_8 c_j (v_j[d] - z_8)) as f32 * (s_p * s_v8)  +  the same for 4
//! ```
//!
//! A width that no cached row has is left out of the sum, rather than added as zero. Sums of codes are exact integers, in
//! any order; the sum of the softmax follows the order of positions ([`crate::float`]).
//!
//! A few rows of queries go through three steps together: scores against the whole cache, softmax and codes of each row,
//! sums of values. Between the steps, scores have the layout of the cache, 4-bit rows before 8-bit rows. Only the sum of
//! the softmax needs them in the order of positions.

use super::cache::{AttentionScheme, KvHead, TILE, depth, offset};
use super::causal::Causal;
use super::definition::query_factor;
use super::products::{Width, score_tiles, weigh_values};
use super::softmax::{ValuePrefetch, codes_of, exponentials, exponentials_merged, fold_scales, largest_of};
use crate::rows::{CodeRow, RowsView};
use crate::simd::{CodeSimd, FloatSimd};
use alloc::vec::Vec;
use squat_quant::{ActBits, Affine, CodeRange, dynamic_scale};

/// Maximum number of query rows that share one pass over the cache.
const MAX_ROWS: usize = 8;

/// Buffers of [`crate::Kernels::attend`], one set per thread; they grow to the longest context seen.
#[derive(Clone, Debug, Default)]
pub struct AttentionScratch {
    /// `[rows, stride]`, see [`ScoreLayout`].
    pub(super) scores: Vec<f32>,
    codes: Vec<u8>,
    /// `[rows, width, columns]`
    sums: Vec<i32>,
}

impl AttentionScratch {
    /// Empty buffers.
    pub fn new() -> Self {
        Self::default()
    }

    /// Grows the buffers for `rows` rows of queries over `len` positions and heads of `head_dim` values, so that later
    /// calls do not allocate.
    pub fn reserve(&mut self, rows: usize, len: usize, head_dim: usize) {
        let (rows, stride) = (rows.min(MAX_ROWS), len + 4 * TILE);
        grow(&mut self.scores, rows * stride);
        grow(&mut self.codes, rows * stride);
        grow(&mut self.sums, rows * 2 * head_dim.next_multiple_of(TILE));
    }

    /// Bytes held.
    pub fn bytes(&self) -> usize {
        4 * self.scores.len() + self.codes.len() + 4 * self.sums.len()
    }
}

fn grow<T: Copy + Default>(buffer: &mut Vec<T>, len: usize) {
    if buffer.len() < len {
        buffer.resize(len, T::default());
    }
}

/// The layout of a row of scores (and of codes): whole tiles of the 4-bit rows, then of the 8-bit rows, then 16 spare
/// elements for a load that starts at the last score.
#[derive(Clone, Copy)]
pub(crate) struct ScoreLayout {
    /// Positions of each width for the row that attends to the most positions.
    most: [usize; 2],
    /// The same in tiles.
    tiles: [usize; 2],
    stride: usize,
}

impl ScoreLayout {
    fn new(most: [usize; 2]) -> Self {
        let tiles = most.map(|count| count.div_ceil(TILE));
        Self { most, tiles, stride: (tiles[0] + tiles[1] + 1) * TILE }
    }

    /// Index of the first score of a width.
    fn start(&self, bits: ActBits) -> usize {
        match bits {
            ActBits::A4 => 0,
            ActBits::A8 => self.tiles[0] * TILE,
        }
    }
}

/// The constants that turn the integer sums of a query into scores, see [`Self::apply`].
struct RowScale {
    /// Excess of the integer sums over the true ones: from the offset of the stored codes, minus the constant term of the
    /// two zero points.
    shift: i32,
    /// Zero point of the query, to be multiplied by the sum of a key's codes.
    zero_point: i32,
    scale: f32,
    /// Scale of the keys, if it is static.
    key_scale: f32,
}

impl RowScale {
    #[inline(always)]
    fn new<S: CodeSimd>(head: &KvHead, bits: ActBits, q: CodeRow<'_>) -> Self {
        let dim = head.head_dim();
        let scale = query_factor(q.scale, dim);
        let stored = if bits == ActBits::A8 { S::BYTE_OFFSET } else { offset(bits) }.wrapping_mul(q.sum);
        match head.scheme() {
            AttentionScheme::Dynamic => Self { shift: stored, zero_point: 0, scale, key_scale: 1.0 },
            AttentionScheme::Static { keys, .. } => {
                let keys = keys.get(bits);
                let constant = dim as i32 * q.zero_point * keys.zero_point - keys.zero_point * q.sum;
                let shift = stored.wrapping_sub(constant);
                Self { shift, zero_point: q.zero_point, scale, key_scale: keys.scale }
            }
        }
    }

    /// Scores of a tile from its sums. Intermediate integers may wrap; the result is exact because it fits.
    #[inline(always)]
    fn apply(&self, dynamic: bool, sums: &[i32; TILE], scales: &[f32], key_sums: &[i32], out: &mut [f32]) {
        if dynamic {
            let (scales, out) = (&scales[..TILE], &mut out[..TILE]);
            for i in 0..TILE {
                out[i] = (sums[i].wrapping_sub(self.shift) as f32 * self.scale) * scales[i];
            }
        } else {
            let (key_sums, out) = (&key_sums[..TILE], &mut out[..TILE]);
            for i in 0..TILE {
                let sum = sums[i].wrapping_sub(self.shift);
                let sum = sum.wrapping_sub(self.zero_point.wrapping_mul(key_sums[i]));
                out[i] = (sum as f32 * self.scale) * self.key_scale;
            }
        }
    }
}

/// The steps of [`attend`], compiled for an instruction set; pairs are indexed by width ([`ActBits::index`]).
pub(crate) struct Steps {
    /// Scores `[rows, stride]` of rows of queries: [`score`].
    pub score: [fn(&KvHead, RowsView<'_>, ScoreLayout, &mut [f32]); 2],
    /// Codes of a row from its scores: [`probability_codes`].
    pub probability_codes:
        fn(&KvHead, usize, ScoreLayout, &mut ValuePrefetch<'_>, &mut [f32], &mut [u8]) -> RowCodes,
    /// Sums `[rows, columns]` of codes `[rows, stride]` with values: [`weigh`].
    pub weigh: [fn(&KvHead, ScoreLayout, &[u8], &mut [i32]); 2],
    /// Whether the steps take up to 8 rows at a time, or 4.
    pub wide_tiles: bool,
}

/// Picks the tile for `rows` rows: calls `$go::<S, W, rows, tiles, U>`. Enough sums at a time to hide the latency of a
/// product, few enough to stay in registers.
macro_rules! by_rows {
    ($wide_tiles:ident, $rows:expr, $go:ident::<$s:ty, $w:ty>($($arg:expr),*)) => {
        if $wide_tiles {
            match $rows {
                8 => $go::<$s, $w, 8, 2, 1>($($arg),*),
                4 => $go::<$s, $w, 4, 4, 1>($($arg),*),
                3 => $go::<$s, $w, 3, 4, 1>($($arg),*),
                2 => $go::<$s, $w, 2, 4, 1>($($arg),*),
                1 => $go::<$s, $w, 1, 4, 2>($($arg),*),
                rows => unreachable!("{rows} rows of queries at a time"),
            }
        } else {
            match $rows {
                4 => $go::<$s, $w, 4, 1, 1>($($arg),*),
                3 => $go::<$s, $w, 3, 1, 1>($($arg),*),
                2 => $go::<$s, $w, 2, 1, 1>($($arg),*),
                1 => $go::<$s, $w, 1, 2, 1>($($arg),*),
                rows => unreachable!("{rows} rows of queries at a time"),
            }
        }
    };
}

/// Query rows to take next when `left` remain.
fn rows_together(left: usize, wide_tiles: bool) -> usize {
    match left {
        MAX_ROWS.. if wide_tiles => MAX_ROWS,
        4.. => 4,
        left => left,
    }
}

/// Scores of rows of queries against the tiles of a width.
#[inline(always)]
pub(crate) fn score<S: CodeSimd, W: Width, const WIDE: bool>(
    s: S,
    head: &KvHead,
    queries: RowsView<'_>,
    layout: ScoreLayout,
    scores: &mut [f32],
) {
    by_rows!(WIDE, queries.rows(), score_rows::<S, W>(s, head, queries, layout, scores));
}

/// [`score`] of `MR` rows, `NP` tiles at a time.
#[inline(always)]
fn score_rows<S: CodeSimd, W: Width, const MR: usize, const NP: usize, const U: usize>(
    s: S,
    head: &KvHead,
    queries: RowsView<'_>,
    layout: ScoreLayout,
    scores: &mut [f32],
) {
    let rows: [&[i8]; MR] = core::array::from_fn(|m| queries.padded(m));
    let scales: [RowScale; MR] = core::array::from_fn(|m| RowScale::new::<S>(head, W::BITS, queries.row(m)));
    let tiles = layout.tiles[W::BITS.index()];
    let mut tile = 0;
    while tile + NP <= tiles {
        score_some::<S, W, MR, NP>(s, head, layout, tile, &rows, &scales, scores);
        tile += NP;
    }
    if const { NP > 1 } {
        while tile < tiles {
            score_some::<S, W, MR, 1>(s, head, layout, tile, &rows, &scales, scores);
            tile += 1;
        }
    }
}

/// Scores of `NP` tiles from `tile` on.
#[inline(always)]
fn score_some<S: CodeSimd, W: Width, const MR: usize, const NP: usize>(
    s: S,
    head: &KvHead,
    layout: ScoreLayout,
    tile: usize,
    rows: &[&[i8]; MR],
    scales: &[RowScale; MR],
    scores: &mut [f32],
) {
    let stored = head.rows_of(W::BITS);
    let dynamic = *head.scheme() == AttentionScheme::Dynamic;
    let start = layout.start(W::BITS);
    let sums = score_tiles::<S, W, MR, NP>(s, &stored.keys, head.head_dim(), tile, rows);
    for p in 0..NP {
        let at = (tile + p) * TILE;
        let key_scales = stored.key_scales.get(at..).unwrap_or(&[]);
        let key_sums = stored.key_sums.get(at..).unwrap_or(&[]);
        for m in 0..MR {
            let out = &mut scores[m * layout.stride + start + at..];
            scales[m].apply(dynamic, &sums[m][p], key_scales, key_sums, out);
        }
    }
}

/// The outcome of the softmax of a row.
#[derive(Clone, Copy, Default)]
pub(crate) struct RowCodes {
    /// Scale of the value sums of each width.
    scales: [f32; 2],
    /// Excess of these sums over the true ones: (offset + zero point of the values) times sum of the codes.
    shifts: [i32; 2],
    /// Probability of position 0.
    first: f32,
}

/// Softmax of a row of scores, quantized to codes.
#[inline(always)]
pub(crate) fn probability_codes<S: CodeSimd + FloatSimd>(
    s: S,
    head: &KvHead,
    len: usize,
    layout: ScoreLayout,
    prefetch: &mut ValuePrefetch<'_>,
    scores: &mut [f32],
    codes: &mut [u8],
) -> RowCodes {
    let counts = head.counts(len);
    let mut largest = f32::NEG_INFINITY;
    for bits in ActBits::ALL {
        let (count, start) = (counts[bits.index()], layout.start(bits));
        let tiles = count.next_multiple_of(TILE);
        scores[start + count..start + tiles].fill(f32::NEG_INFINITY);
        let of_width = largest_of(s, &scores[start..start + tiles]);
        largest = if of_width > largest { of_width } else { largest };
    }
    let (narrow, wide) = scores.split_at_mut(layout.start(ActBits::A8));
    let sum = match counts {
        [0, count] => exponentials(s, &mut wide[..count.next_multiple_of(TILE)], count, largest, prefetch),
        [count, 0] => exponentials(s, &mut narrow[..count.next_multiple_of(TILE)], count, largest, prefetch),
        _ => {
            for (scores, bits) in [(&mut *narrow, ActBits::A4), (&mut *wide, ActBits::A8)] {
                let count = counts[bits.index()];
                exponentials(s, &mut scores[..count.next_multiple_of(TILE)], count, largest, prefetch);
            }
            // A load of 16 may start at the last 4-bit score; the lanes beyond it are not used.
            exponentials_merged(s, scores, layout.start(ActBits::A8), head.narrow(), len)
        }
    };
    let inv = 1.0 / sum;
    let mut row = RowCodes { first: scores[layout.start(head.bits(0))] * inv, ..RowCodes::default() };
    for bits in ActBits::ALL {
        let (index, start) = (bits.index(), layout.start(bits));
        // Rows with fewer positions than others of their block are filled up with codes of 0.
        let range = start..start + layout.tiles[index] * TILE;
        let (used, count) = (counts[index].next_multiple_of(TILE), counts[index]);
        codes[range.start + used..range.end].fill(0);
        if count == 0 {
            continue;
        }
        let scores = &mut scores[start..start + used];
        let quantizer = match head.scheme() {
            AttentionScheme::Dynamic => {
                let largest = fold_scales(s, scores, inv, &head.rows_of(bits).value_scales, prefetch);
                let range = CodeRange::unsigned(8);
                let quantizer = Affine::symmetric(dynamic_scale(largest, range), range);
                row.scales[index] = quantizer.scale;
                quantizer
            }
            AttentionScheme::Static { values, probability_bits, .. } => {
                for p in scores.iter_mut() {
                    *p *= inv;
                }
                let quantizer = Affine::probability(*probability_bits);
                row.scales[index] = quantizer.scale * values.get(bits).scale;
                quantizer
            }
        };
        let code_sum = codes_of(s, scores, quantizer, &mut codes[start..start + used], prefetch);
        let stored = if bits == ActBits::A4 { offset(bits) } else { S::VALUE_OFFSET };
        let zero_point = match head.scheme() {
            AttentionScheme::Dynamic => 0,
            AttentionScheme::Static { values, .. } => values.get(bits).zero_point,
        };
        row.shifts[index] = (stored + zero_point).wrapping_mul(code_sum);
    }
    row
}

/// Value product of a width: sums of rows of codes times values.
#[inline(always)]
pub(crate) fn weigh<S: CodeSimd, W: Width, const WIDE: bool>(
    s: S,
    head: &KvHead,
    layout: ScoreLayout,
    codes: &[u8],
    sums: &mut [i32],
) {
    let rows = sums.len() / head.head_dim().next_multiple_of(TILE);
    by_rows!(WIDE, rows, weigh_rows::<S, W>(s, head, layout, codes, sums));
}

#[inline(always)]
fn weigh_rows<S: CodeSimd, W: Width, const MR: usize, const NP: usize, const U: usize>(
    s: S,
    head: &KvHead,
    layout: ScoreLayout,
    codes: &[u8],
    sums: &mut [i32],
) {
    let (start, dim) = (layout.start(W::BITS), head.head_dim());
    let len = layout.most[W::BITS.index()].next_multiple_of(depth(W::BITS));
    let codes: [&[u8]; MR] = core::array::from_fn(|m| &codes[m * layout.stride + start..][..len]);
    weigh_values::<S, W, MR, NP, U>(s, &head.rows_of(W::BITS).values, dim, &codes, sums);
}

/// Attention of rows of queries `[rows, head_dim]`: row `r` over the first `causal.len_of(r)` positions, into row `r` of
/// `out` and the probability of position 0 into `sink_probs[r]`.
///
/// # Panics
/// If a row attends to no position or to more than the cache holds, or lengths do not match.
pub(crate) fn attend(
    steps: &Steps,
    head: &KvHead,
    causal: Causal,
    queries: RowsView<'_>,
    scratch: &mut AttentionScratch,
    out: &mut [f32],
    sink_probs: &mut [f32],
) {
    let (rows, dim) = (queries.rows(), head.head_dim());
    if rows == 0 {
        return;
    }
    check(causal, head.len(), dim, queries.cols(), rows, out.len(), sink_probs.len());
    let mut first = 0;
    while first < rows {
        let range = first..first + rows_together(rows - first, steps.wide_tiles);
        let out = &mut out[range.start * dim..range.end * dim];
        let lens = |m: usize| causal.len_of(range.start + m);
        let starts = |m: usize| causal.start_of(range.start + m);
        attend_rows(
            steps,
            head,
            (lens, starts),
            queries.part(range.clone()),
            rows,
            scratch,
            out,
            &mut sink_probs[range.clone()],
        );
        first = range.end;
    }
}

/// Attention of a few rows together, row `m` over the positions from `starts(m)` to `lens(m)`; the whole call has `total` rows.
fn attend_rows(
    steps: &Steps,
    head: &KvHead,
    (lens, starts): (impl Fn(usize) -> usize, impl Fn(usize) -> usize),
    queries: RowsView<'_>,
    total: usize,
    scratch: &mut AttentionScratch,
    out: &mut [f32],
    sink_probs: &mut [f32],
) {
    let (rows, dim) = (queries.rows(), head.head_dim());
    let columns = dim.next_multiple_of(TILE);
    // The last row attends to the most positions.
    let len = lens(rows - 1);
    let layout = ScoreLayout::new(head.counts(len));
    scratch.reserve(rows, len, dim);
    let AttentionScratch { scores, codes, sums } = scratch;
    let used = |bits: &ActBits| layout.most[bits.index()] > 0;
    for bits in ActBits::ALL.iter().filter(|bits| used(bits)) {
        (steps.score[bits.index()])(head, queries, layout, scores);
    }
    let mut after = [RowCodes::default(); MAX_ROWS];
    let mut prefetch = ValuePrefetch::new(head, layout.most, rows, total == rows);
    let pieces = scores.chunks_exact_mut(layout.stride).zip(codes.chunks_exact_mut(layout.stride));
    for (m, (scores, codes)) in pieces.take(rows).enumerate() {
        // Positions before the window keep their place and get a probability of 0.
        let before = head.counts(starts(m));
        for bits in ActBits::ALL {
            let start = layout.start(bits);
            scores[start..start + before[bits.index()]].fill(f32::NEG_INFINITY);
        }
        after[m] = (steps.probability_codes)(head, lens(m), layout, &mut prefetch, scores, codes);
        sink_probs[m] = after[m].first;
    }
    let (narrow, wide) = sums[..2 * rows * columns].split_at_mut(rows * columns);
    for (bits, sums) in ActBits::ALL.iter().zip([&mut *narrow, &mut *wide]).filter(|(bits, _)| used(bits)) {
        sums.fill(0);
        (steps.weigh[bits.index()])(head, layout, codes, sums);
    }
    let sums = narrow.chunks_exact(columns).zip(wide.chunks_exact(columns));
    for (m, (out, (narrow, wide))) in out.chunks_exact_mut(dim).zip(sums).enumerate() {
        let [shift_4, shift_8] = after[m].shifts;
        let [scale_4, scale_8] = after[m].scales;
        let wide = wide.iter().map(|&sum| sum.wrapping_sub(shift_8) as f32 * scale_8);
        let narrow = narrow.iter().map(|&sum| sum.wrapping_sub(shift_4) as f32 * scale_4);
        match head.counts(lens(m)).map(|count| count > 0) {
            [true, true] => out.iter_mut().zip(wide.zip(narrow)).for_each(|(out, (a, b))| *out = a + b),
            [false, _] => out.iter_mut().zip(wide).for_each(|(out, a)| *out = a),
            [true, false] => out.iter_mut().zip(narrow).for_each(|(out, b)| *out = b),
        }
    }
}

/// Checks the shapes of a call.
pub(super) fn check(
    causal: Causal,
    held: usize,
    dim: usize,
    cols: usize,
    rows: usize,
    out: usize,
    sink_probs: usize,
) {
    let (least, most) = (causal.len, causal.len_of(rows - 1));
    assert!(least > 0 && most <= held, "attention over {least} to {most} of {held} positions");
    assert!(cols == dim && out == rows * dim, "lengths of queries and output, head_dim is {dim}");
    assert_eq!(sink_probs, rows, "one probability of position 0 for each row");
}
