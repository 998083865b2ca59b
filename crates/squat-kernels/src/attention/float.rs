//! Keys and values in f32, for unquantized models.

use super::attend::{AttentionScratch, check};
use super::causal::Causal;
use super::definition::query_factor;
use crate::error::CacheError;
use crate::lanes::LANES;
use crate::output::ColumnsMut;
use crate::simd::FloatSimd;
use alloc::vec::Vec;
use core::ops::Range;
use squat_quant::math;

/// Query rows that share one pass over the cache.
const ROWS: usize = 8;

/// The f32 cache of one key-value head.
#[derive(Clone, Debug)]
pub struct FloatKvHead {
    head_dim: usize,
    keys: Vec<f32>,
    values: Vec<f32>,
}

impl FloatKvHead {
    /// An empty cache for heads of `head_dim` values.
    pub fn new(head_dim: usize) -> Self {
        Self { head_dim, keys: Vec::new(), values: Vec::new() }
    }

    /// Reserves memory for `rows` more positions.
    pub fn reserve(&mut self, rows: usize) {
        self.keys.reserve(rows * self.head_dim);
        self.values.reserve(rows * self.head_dim);
    }

    /// Appends key and value of the next position.
    ///
    /// # Errors
    /// Rows whose length is not `head_dim`. On an error nothing is appended.
    pub fn push(&mut self, key: &[f32], value: &[f32]) -> Result<(), CacheError> {
        for row in [key, value] {
            if row.len() != self.head_dim {
                return Err(CacheError::Dim(self.head_dim, row.len()));
            }
        }
        self.keys.extend_from_slice(key);
        self.values.extend_from_slice(value);
        Ok(())
    }

    /// Key and value at `position`.
    ///
    /// # Panics
    /// If `position` is not held.
    pub fn row(&self, position: usize) -> (&[f32], &[f32]) {
        let row = position * self.head_dim..(position + 1) * self.head_dim;
        (&self.keys[row.clone()], &self.values[row])
    }

    /// Drops all positions from `len` on.
    pub fn truncate(&mut self, len: usize) {
        self.keys.truncate(len * self.head_dim);
        self.values.truncate(len * self.head_dim);
    }

    /// Positions held.
    pub fn len(&self) -> usize {
        self.keys.len() / self.head_dim.max(1)
    }

    /// Whether the cache is empty.
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// Values in a row.
    pub fn head_dim(&self) -> usize {
        self.head_dim
    }

    /// Bytes held.
    pub fn bytes_used(&self) -> usize {
        (self.keys.len() + self.values.len()) * 4
    }
}

/// Adds `p_j v_j` over the positions `range` to `NB` blocks of 16 columns from `column` on, for `MR` rows.
#[inline(always)]
fn weigh<S: FloatSimd, const MR: usize, const NB: usize>(
    s: S,
    p: &[&[f32]; MR],
    values: &[f32],
    dim: usize,
    column: usize,
    range: Range<usize>,
    out: &mut [f32],
) {
    let mut acc = [[s.zero(); NB]; MR];
    for m in 0..MR {
        for b in 0..NB {
            acc[m][b] = s.load(block(&out[m * dim..], column + LANES * b));
        }
    }
    let p: [&[f32]; MR] = core::array::from_fn(|m| &p[m][range.clone()]);
    let rows = values[range.start * dim..].chunks_exact(dim).take(range.len());
    for (j, row) in rows.enumerate() {
        let mut value = [s.zero(); NB];
        for b in 0..NB {
            value[b] = s.load(block(row, column + LANES * b));
        }
        for m in 0..MR {
            let p = s.splat(p[m][j]);
            for b in 0..NB {
                acc[m][b] = s.mul_add(acc[m][b], p, value[b]);
            }
        }
    }
    for m in 0..MR {
        for b in 0..NB {
            out[m * dim + column + LANES * b..][..LANES].copy_from_slice(&s.store(acc[m][b]));
        }
    }
}

/// 16 floats from `at` on.
#[inline(always)]
fn block(x: &[f32], at: usize) -> &[f32; LANES] {
    x[at..].first_chunk().expect("16 floats")
}

/// [`weigh`] for all columns: `NB` blocks at a time, single blocks, single columns.
#[inline(always)]
fn weigh_all<S: FloatSimd, const MR: usize, const NB: usize>(
    s: S,
    p: &[&[f32]; MR],
    values: &[f32],
    dim: usize,
    range: Range<usize>,
    out: &mut [f32],
) {
    let mut column = 0;
    while column + NB * LANES <= dim {
        weigh::<S, MR, NB>(s, p, values, dim, column, range.clone(), out);
        column += NB * LANES;
    }
    while column + LANES <= dim {
        weigh::<S, MR, 1>(s, p, values, dim, column, range.clone(), out);
        column += LANES;
    }
    if column < dim {
        for m in 0..MR {
            let out = &mut out[m * dim + column..(m + 1) * dim];
            for j in range.clone() {
                for (out, &v) in out.iter_mut().zip(&values[j * dim + column..]) {
                    *out = math::mul_add(p[m][j], v, *out);
                }
            }
        }
    }
}

/// The value product of `MR` rows of probabilities, row `m` over its first `lens[m]` positions in order.
#[inline(always)]
fn weigh_rows<S: FloatSimd, const MR: usize, const NB: usize>(
    s: S,
    p: &[f32],
    lens: &[usize],
    values: &[f32],
    dim: usize,
    out: &mut [f32],
) {
    let stride = p.len() / lens.len();
    let p: [&[f32]; MR] = core::array::from_fn(|m| &p[m * stride..(m + 1) * stride]);
    out.fill(0.0);
    weigh_all::<S, MR, NB>(s, &p, values, dim, 0..lens[0], out);
    for m in 0..MR {
        let out = &mut out[m * dim..(m + 1) * dim];
        weigh_all::<S, 1, NB>(s, &[p[m]], values, dim, lens[0]..lens[m], out);
    }
}

/// The steps of [`attend_float`], compiled for an instruction set.
pub(crate) struct FloatSteps {
    pub matmul: fn(&[f32], &[f32], Option<&[f32]>, usize, ColumnsMut<'_>),
    pub softmax: fn(&mut [f32]),
    /// [`weigh_float`].
    pub weigh: fn(&[f32], &[usize], &[f32], usize, &mut [f32]),
}

/// The value product of rows of probabilities `[rows, stride]`, row `m` over its first `lens[m]` positions in order (`lens`
/// is ascending): `out[m] = sum_j p[m][j] * v_j` by fused multiply-add. `WIDE` is for sets with many registers.
#[inline(always)]
pub(crate) fn weigh_float<S: FloatSimd, const WIDE: bool>(
    s: S,
    p: &[f32],
    lens: &[usize],
    values: &[f32],
    dim: usize,
    out: &mut [f32],
) {
    let (count, stride) = (lens.len(), p.len() / lens.len());
    let mut m = 0;
    macro_rules! rows {
        ($mr:literal, $nb:literal) => {{
            let (p, lens) = (&p[m * stride..(m + $mr) * stride], &lens[m..m + $mr]);
            weigh_rows::<S, $mr, $nb>(s, p, lens, values, dim, &mut out[m * dim..(m + $mr) * dim]);
            m += $mr;
        }};
    }
    while m < count {
        match count - m {
            4.. if WIDE => rows!(4, 4),
            3 if WIDE => rows!(3, 4),
            2.. => rows!(2, 2),
            _ => rows!(1, 4),
        }
    }
}

/// Attention of rows of queries `[rows, head_dim]`, row `r` over the first `causal.len_of(r)` positions:
/// `score_j = dot(q, k_j) * (1 / sqrt(d))`, softmax, then `out[d] = sum_j p_j v_j[d]` in the order of positions.
/// The probabilities of position 0 go to `sink_probs`.
///
/// # Panics
/// If a row attends to no position or to more than the cache holds, or lengths do not match.
pub(crate) fn attend_float(
    steps: &FloatSteps,
    head: &FloatKvHead,
    causal: Causal,
    queries: &[f32],
    scratch: &mut AttentionScratch,
    out: &mut [f32],
    sink_probs: &mut [f32],
) {
    let dim = head.head_dim;
    let rows = queries.len().checked_div(dim).unwrap_or(0);
    if rows == 0 {
        return;
    }
    check(causal, head.len(), dim, queries.len() / rows, rows, out.len(), sink_probs.len());
    let inv_sqrt = query_factor(1.0, dim);
    for first in (0..rows).step_by(ROWS) {
        let count = ROWS.min(rows - first);
        let lens: [usize; ROWS] = core::array::from_fn(|m| causal.len_of(first + m));
        let lens = &lens[..count];
        let most = lens[count - 1];
        if scratch.scores.len() < count * most {
            scratch.scores.resize(count * most, 0.0);
        }
        let scores = &mut scratch.scores[..count * most];
        let (q, k) = (&queries[first * dim..(first + count) * dim], &head.keys[..most * dim]);
        (steps.matmul)(q, k, None, dim, ColumnsMut::new(scores, count, most));
        for (m, row) in scores.chunks_exact_mut(most).enumerate() {
            let row = &mut row[..lens[m]];
            for score in row.iter_mut() {
                *score *= inv_sqrt;
            }
            row[..causal.start_of(first + m)].fill(f32::NEG_INFINITY);
            (steps.softmax)(row);
            sink_probs[first + m] = row[0];
        }
        (steps.weigh)(scores, lens, &head.values, dim, &mut out[first * dim..(first + count) * dim]);
    }
}
