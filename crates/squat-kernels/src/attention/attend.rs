//! Attention of rows of queries over a cache of integers.
//!
//! With `q` the query's codes, `k_j`, `v_j` the cached rows, `b(j)` the width of row `j`:
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
//! A width that no row has contributes nothing, not even a zero. All sums of codes are exact integers, in any order; the
//! sum of the softmax runs over positions in their order ([`crate::float`]).
//!
//! Some rows of queries go through three steps together: scores against the whole cache, softmax and codes of each row,
//! sums of values. Between the steps scores stand as the rows of the cache do, one run for each width. Only the sum of
//! the softmax needs them in the order of positions.

use super::cache::{AttentionScheme, Causal, KvHead, TILE, depth, offset};
use super::products::{CodeSimd, Width, score_tiles, weigh_values};
use super::softmax::{Ahead, codes_of, exponentials, exponentials_merged, fold_scales, largest_of};
use crate::float::FloatSimd;
use crate::rows::{CodeRow, RowsView};
use alloc::vec::Vec;
use squat_quant::{ActBits, Affine, CodeRange, dynamic_scale, math};

/// Most rows of queries that go through the cache together.
const MAX_ROWS: usize = 8;

/// Buffers of [`crate::Kernels::attend`], one for each thread; they grow to the longest context seen.
#[derive(Clone, Debug, Default)]
pub struct AttentionScratch {
    /// `[rows, stride]`, see [`Places`].
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

    /// Makes room for `rows` rows of queries over `len` positions and heads of `head_dim` values, so that later calls do
    /// not allocate.
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

/// Where a row's scores (and codes) of each width stand: whole tiles, 4 bits first, then room for a load of 16 more.
#[derive(Clone, Copy)]
pub(crate) struct Places {
    /// Positions of each width that the row which attends to the most needs.
    most: [usize; 2],
    /// Tiles of these.
    tiles: [usize; 2],
    stride: usize,
}

impl Places {
    fn new(most: [usize; 2]) -> Self {
        let tiles = most.map(|count| count.div_ceil(TILE));
        Self { most, tiles, stride: (tiles[0] + tiles[1] + 1) * TILE }
    }

    /// Begin of a width in a row.
    fn start(&self, bits: ActBits) -> usize {
        match bits {
            ActBits::A4 => 0,
            ActBits::A8 => self.tiles[0] * TILE,
        }
    }
}

/// Constants of a row's scores: see [`Self::apply`].
struct RowScale {
    /// What the offset of the stored codes added, less what the zero points give together.
    shift: i32,
    /// Zero point of the query, which meets the sum of a key's codes.
    zero_point: i32,
    scale: f32,
    /// Of the keys, if it is static.
    key_scale: f32,
}

impl RowScale {
    #[inline(always)]
    fn new<S: CodeSimd>(head: &KvHead, bits: ActBits, q: CodeRow<'_>) -> Self {
        let dim = head.head_dim();
        let scale = q.scale * (1.0 / math::sqrt(dim as f32));
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

    /// Scores of a tile from its sums. Intermediate integers may wrap; the result fits.
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

/// The steps of [`attend`], compiled for an instruction set; by width ([`ActBits::index`]) where there are two.
pub(crate) struct Steps {
    /// Scores `[rows, stride]` of rows of queries: [`score`].
    pub score: [fn(&KvHead, RowsView<'_>, Places, &mut [f32]); 2],
    /// Codes of a row from its scores: [`weights`].
    pub weights: fn(&KvHead, usize, Places, &mut Ahead<'_>, &mut [f32], &mut [u8]) -> RowCodes,
    /// Sums `[rows, columns]` of codes `[rows, stride]` with values: [`weigh`].
    pub weigh: [fn(&KvHead, Places, &[u8], &mut [i32]); 2],
}

/// Tiles of a product for `rows` rows, `LARGE` or not: calls `$go::<S, W, rows, tiles, U>`. Enough sums at a time to hide
/// what a product takes, few enough to stay in registers.
macro_rules! by_rows {
    ($large:ident, $rows:expr, $go:ident::<$s:ty, $w:ty>($($arg:expr),*)) => {
        if $large {
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

/// Rows of queries that go through the cache together when so many are left.
fn rows_together(left: usize, large: bool) -> usize {
    match left {
        MAX_ROWS.. if large => MAX_ROWS,
        4.. => 4,
        left => left,
    }
}

/// Scores of rows of queries against the tiles of a width.
#[inline(always)]
pub(crate) fn score<S: CodeSimd, W: Width, const LARGE: bool>(
    s: S,
    head: &KvHead,
    queries: RowsView<'_>,
    places: Places,
    scores: &mut [f32],
) {
    by_rows!(LARGE, queries.rows(), score_rows::<S, W>(s, head, queries, places, scores));
}

/// `MR` rows, `NP` tiles at a time.
#[inline(always)]
fn score_rows<S: CodeSimd, W: Width, const MR: usize, const NP: usize, const U: usize>(
    s: S,
    head: &KvHead,
    queries: RowsView<'_>,
    places: Places,
    scores: &mut [f32],
) {
    let rows: [&[i8]; MR] = core::array::from_fn(|m| queries.padded(m));
    let scales: [RowScale; MR] = core::array::from_fn(|m| RowScale::new::<S>(head, W::BITS, queries.row(m)));
    let tiles = places.tiles[W::BITS.index()];
    let mut tile = 0;
    while tile + NP <= tiles {
        score_some::<S, W, MR, NP>(s, head, places, tile, &rows, &scales, scores);
        tile += NP;
    }
    if const { NP > 1 } {
        while tile < tiles {
            score_some::<S, W, MR, 1>(s, head, places, tile, &rows, &scales, scores);
            tile += 1;
        }
    }
}

/// `NP` tiles from `tile` on.
#[inline(always)]
fn score_some<S: CodeSimd, W: Width, const MR: usize, const NP: usize>(
    s: S,
    head: &KvHead,
    places: Places,
    tile: usize,
    rows: &[&[i8]; MR],
    scales: &[RowScale; MR],
    scores: &mut [f32],
) {
    let run = head.run(W::BITS);
    let dynamic = *head.scheme() == AttentionScheme::Dynamic;
    let start = places.start(W::BITS);
    let sums = score_tiles::<S, W, MR, NP>(s, &run.keys, head.head_dim(), tile, rows);
    for p in 0..NP {
        let at = (tile + p) * TILE;
        let key_scales = run.key_scales.get(at..).unwrap_or(&[]);
        let key_sums = run.key_sums.get(at..).unwrap_or(&[]);
        for m in 0..MR {
            let out = &mut scores[m * places.stride + start + at..];
            scales[m].apply(dynamic, &sums[m][p], key_scales, key_sums, out);
        }
    }
}

/// A row after its softmax: factors of the sums of each width, what is to be taken from the sums, and the probability
/// of position 0.
#[derive(Clone, Copy, Default)]
pub(crate) struct RowCodes {
    scales: [f32; 2],
    shifts: [i32; 2],
    first: f32,
}

/// Scores of a row, as [`Places`] says, to codes of its probabilities.
#[inline(always)]
pub(crate) fn weights<S: CodeSimd + FloatSimd>(
    s: S,
    head: &KvHead,
    len: usize,
    places: Places,
    ahead: &mut Ahead<'_>,
    scores: &mut [f32],
    codes: &mut [u8],
) -> RowCodes {
    let counts = head.counts(len);
    let mut largest = f32::NEG_INFINITY;
    for bits in ActBits::ALL {
        let (count, start) = (counts[bits.index()], places.start(bits));
        let tiles = count.next_multiple_of(TILE);
        scores[start + count..start + tiles].fill(f32::NEG_INFINITY);
        let of_width = largest_of(s, &scores[start..start + tiles]);
        largest = if of_width > largest { of_width } else { largest };
    }
    let (narrow, wide) = scores.split_at_mut(places.start(ActBits::A8));
    let sum = match counts {
        [0, count] => exponentials(s, &mut wide[..count.next_multiple_of(TILE)], count, largest, ahead),
        [count, 0] => exponentials(s, &mut narrow[..count.next_multiple_of(TILE)], count, largest, ahead),
        _ => {
            for (scores, bits) in [(&mut *narrow, ActBits::A4), (&mut *wide, ActBits::A8)] {
                let count = counts[bits.index()];
                exponentials(s, &mut scores[..count.next_multiple_of(TILE)], count, largest, ahead);
            }
            // A load of 16 may begin at the last score of 4 bits: what it reads beyond it does not count.
            exponentials_merged(s, scores, places.start(ActBits::A8), head.narrow(), len)
        }
    };
    let inv = 1.0 / sum;
    let mut row = RowCodes { first: scores[places.start(head.bits(0))] * inv, ..RowCodes::default() };
    for bits in ActBits::ALL {
        let (index, start) = (bits.index(), places.start(bits));
        // Rows that have fewer positions than others of their block have codes of 0 for the rest.
        let place = start..start + places.tiles[index] * TILE;
        let (used, count) = (counts[index].next_multiple_of(TILE), counts[index]);
        codes[place.start + used..place.end].fill(0);
        if count == 0 {
            continue;
        }
        let scores = &mut scores[start..start + used];
        let quantizer = match head.scheme() {
            AttentionScheme::Dynamic => {
                let largest = fold_scales(s, scores, inv, &head.run(bits).value_scales, ahead);
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
        let code_sum = codes_of(s, scores, quantizer, &mut codes[start..start + used], ahead);
        let stored = if bits == ActBits::A4 { offset(bits) } else { S::VALUE_OFFSET };
        let zero_point = match head.scheme() {
            AttentionScheme::Dynamic => 0,
            AttentionScheme::Static { values, .. } => values.get(bits).zero_point,
        };
        row.shifts[index] = (stored + zero_point).wrapping_mul(code_sum);
    }
    row
}

/// Sums of rows of codes with the values of a width.
#[inline(always)]
pub(crate) fn weigh<S: CodeSimd, W: Width, const LARGE: bool>(
    s: S,
    head: &KvHead,
    places: Places,
    codes: &[u8],
    sums: &mut [i32],
) {
    let rows = sums.len() / head.head_dim().next_multiple_of(TILE);
    by_rows!(LARGE, rows, weigh_rows::<S, W>(s, head, places, codes, sums));
}

#[inline(always)]
fn weigh_rows<S: CodeSimd, W: Width, const MR: usize, const NP: usize, const U: usize>(
    s: S,
    head: &KvHead,
    places: Places,
    codes: &[u8],
    sums: &mut [i32],
) {
    let (start, dim) = (places.start(W::BITS), head.head_dim());
    let len = places.most[W::BITS.index()].next_multiple_of(depth(W::BITS));
    let codes: [&[u8]; MR] = core::array::from_fn(|m| &codes[m * places.stride + start..][..len]);
    weigh_values::<S, W, MR, NP, U>(s, &head.run(W::BITS).values, dim, &codes, sums);
}

/// Attention of rows of queries `[rows, head_dim]`: row `r` over the first `causal.len_of(r)` positions, into row `r` of
/// `out` and the probability of position 0 into `column_0[r]`. `large` tells how many rows the steps take.
///
/// # Panics
/// When a row attends to no position or to more than the cache holds, or lengths do not fit.
pub(crate) fn attend(
    steps: &Steps,
    large: bool,
    head: &KvHead,
    causal: Causal,
    queries: RowsView<'_>,
    scratch: &mut AttentionScratch,
    out: &mut [f32],
    column_0: &mut [f32],
) {
    let (rows, dim) = (queries.rows(), head.head_dim());
    if rows == 0 {
        return;
    }
    check(causal, head.len(), dim, queries.cols(), rows, out.len(), column_0.len());
    let mut first = 0;
    while first < rows {
        let range = first..first + rows_together(rows - first, large);
        let out = &mut out[range.start * dim..range.end * dim];
        let lens = |m: usize| causal.len_of(range.start + m);
        some_rows(
            steps,
            head,
            lens,
            queries.part(range.clone()),
            rows,
            scratch,
            out,
            &mut column_0[range.clone()],
        );
        first = range.end;
    }
}

/// Some rows together, row `m` over `lens(m)` positions; `of` rows are asked for in all.
fn some_rows(
    steps: &Steps,
    head: &KvHead,
    lens: impl Fn(usize) -> usize,
    queries: RowsView<'_>,
    of: usize,
    scratch: &mut AttentionScratch,
    out: &mut [f32],
    column_0: &mut [f32],
) {
    let (rows, dim) = (queries.rows(), head.head_dim());
    let columns = dim.next_multiple_of(TILE);
    // The last row attends to the most.
    let len = lens(rows - 1);
    let places = Places::new(head.counts(len));
    scratch.reserve(rows, len, dim);
    let AttentionScratch { scores, codes, sums } = scratch;
    let used = |bits: &ActBits| places.most[bits.index()] > 0;
    for bits in ActBits::ALL.iter().filter(|bits| used(bits)) {
        (steps.score[bits.index()])(head, queries, places, scores);
    }
    let mut after = [RowCodes::default(); MAX_ROWS];
    let mut ahead = Ahead::new(head, places.most, rows, of == rows);
    let pieces = scores.chunks_exact_mut(places.stride).zip(codes.chunks_exact_mut(places.stride));
    for (m, (scores, codes)) in pieces.take(rows).enumerate() {
        after[m] = (steps.weights)(head, lens(m), places, &mut ahead, scores, codes);
        column_0[m] = after[m].first;
    }
    let (narrow, wide) = sums[..2 * rows * columns].split_at_mut(rows * columns);
    for (bits, sums) in ActBits::ALL.iter().zip([&mut *narrow, &mut *wide]).filter(|(bits, _)| used(bits)) {
        sums.fill(0);
        (steps.weigh[bits.index()])(head, places, codes, sums);
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
    column_0: usize,
) {
    let (least, most) = (causal.len, causal.len_of(rows - 1));
    assert!(least > 0 && most <= held, "attention over {least} to {most} of {held} positions");
    assert!(cols == dim && out == rows * dim, "lengths of queries and output, head_dim is {dim}");
    assert_eq!(column_0, rows, "one probability of position 0 for each row");
}
