//! Keys and values in f32, for the unquantized model.

use super::attend::AttentionScratch;
use crate::error::CacheError;
use crate::float::{self, FloatSimd};
use crate::output::ColumnsMut;
use alloc::vec::Vec;
use squat_quant::math;

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

    /// Makes room for `rows` more positions.
    pub fn reserve(&mut self, rows: usize) {
        self.keys.reserve(rows * self.head_dim);
        self.values.reserve(rows * self.head_dim);
    }

    /// Appends key and value of the next position.
    ///
    /// # Errors
    /// Rows of another length than the head; nothing is appended then.
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
    /// When `position` is not held.
    pub fn row(&self, position: usize) -> (&[f32], &[f32]) {
        let row = position * self.head_dim..(position + 1) * self.head_dim;
        (&self.keys[row.clone()], &self.values[row])
    }

    /// Forgets all positions from `len` on.
    pub fn truncate(&mut self, len: usize) {
        self.keys.truncate(len * self.head_dim);
        self.values.truncate(len * self.head_dim);
    }

    /// Positions held.
    pub fn len(&self) -> usize {
        self.keys.len() / self.head_dim.max(1)
    }

    /// Whether no position is held.
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

/// Attention over the first `len` positions: `score_j = dot(q, k_j) * (1 / sqrt(d))`, softmax, then
/// `out[d] = sum_j p_j v_j[d]` in the order of positions. Returns the probability of position 0.
///
/// # Panics
/// When `len` is 0 or more than the cache holds, or lengths differ from `head_dim`.
#[inline(always)]
pub(crate) fn attend_float<S: FloatSimd>(
    s: S,
    head: &FloatKvHead,
    len: usize,
    q: &[f32],
    scratch: &mut AttentionScratch,
    out: &mut [f32],
) -> f32 {
    let dim = head.head_dim;
    assert!(len > 0 && len <= head.len(), "attention over {len} of {} positions", head.len());
    assert!(q.len() == dim && out.len() == dim, "lengths of query and output, head_dim is {dim}");
    if scratch.scores.len() < len {
        scratch.scores.resize(len, 0.0);
    }
    let scores = &mut scratch.scores[..len];
    float::matmul::<S, f32, 1, 4>(
        s,
        q,
        &head.keys[..len * dim],
        None,
        dim,
        &mut ColumnsMut::new(scores, 1, len),
    );
    let inv_sqrt = 1.0 / math::sqrt(dim as f32);
    for score in scores.iter_mut() {
        *score *= inv_sqrt;
    }
    float::softmax(scores);
    // 64 columns at a time stay in registers over all positions; the rest in memory.
    let (blocks, _) = out.as_chunks_mut::<64>();
    for (block, out) in blocks.iter_mut().enumerate() {
        let mut acc = [s.zero(); 4];
        for (&p, value) in scores.iter().zip(head.values.chunks_exact(dim)) {
            let p = s.splat(p);
            let (lanes, _) = value[block * 64..][..64].as_chunks::<16>();
            for i in 0..4 {
                acc[i] = s.multiply_add(acc[i], p, s.load(&lanes[i]));
            }
        }
        for i in 0..4 {
            out[16 * i..][..16].copy_from_slice(&s.store(acc[i]));
        }
    }
    let done = dim - dim % 64;
    let out = &mut out[done..];
    out.fill(0.0);
    if !out.is_empty() {
        for (&p, value) in scores.iter().zip(head.values.chunks_exact(dim)) {
            for (out, &v) in out.iter_mut().zip(&value[done..]) {
                *out += p * v;
            }
        }
    }
    scores[0]
}
