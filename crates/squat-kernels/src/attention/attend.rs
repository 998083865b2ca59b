//! Attention of one query row over a cache of integers.
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
//! A width that no row has contributes nothing, not even a zero. All sums are exact integers.

use super::cache::{AttentionScheme, KvHead, SLACK};
use crate::float;
use crate::rows::{CodeRow, quantize_unsigned};
use alloc::vec::Vec;
use squat_quant::{ActBits, Affine, CodeRange, dynamic_scale, math};

/// Buffers of [`crate::Kernels::attend`], one for each thread; they grow to the longest context seen.
#[derive(Clone, Debug, Default)]
pub struct AttentionScratch {
    pub(super) scores: Vec<f32>,
    part: Vec<f32>,
    dots: Vec<i32>,
    codes: Vec<u8>,
    query: [Vec<i8>; 2],
    sums: [Vec<i32>; 2],
}

impl AttentionScratch {
    /// Empty buffers.
    pub fn new() -> Self {
        Self::default()
    }

    /// Makes room for `len` positions and heads of `head_dim` values, so that later calls do not allocate.
    pub fn reserve(&mut self, len: usize, head_dim: usize) {
        grow(&mut self.scores, len);
        grow(&mut self.part, len);
        grow(&mut self.dots, len);
        grow(&mut self.codes, len + 64);
        for bits in ActBits::ALL {
            grow(&mut self.query[bits.index()], query_len(head_dim, bits));
            grow(&mut self.sums[bits.index()], head_dim);
        }
    }

    /// The probabilities of the last call, by position.
    pub fn probabilities(&self, len: usize) -> &[f32] {
        &self.scores[..len.min(self.scores.len())]
    }
}

fn grow<T: Copy + Default>(buffer: &mut Vec<T>, len: usize) {
    if buffer.len() < len {
        buffer.resize(len, T::default());
    }
}

/// Query codes in a chunk: those that meet 64 stored codes.
pub(crate) const CHUNK: usize = 64;

/// Length of a query laid out for rows of that width.
fn query_len(dim: usize, bits: ActBits) -> usize {
    match bits {
        ActBits::A8 => dim.next_multiple_of(CHUNK),
        ActBits::A4 => CHUNK * dim.div_ceil(2).div_ceil(CHUNK / 2),
    }
}

/// Lays a query out as the rows are: for 8 bits as it is, for 4 bits in chunks of 32 codes for low and 32 for high
/// halves. Padding is zero, so that whatever wide loads read beyond a row does not count.
#[inline(always)]
fn lay_out(codes: &[i8], bits: ActBits, out: &mut [i8]) {
    out.fill(0);
    match bits {
        ActBits::A8 => out[..codes.len()].copy_from_slice(codes),
        ActBits::A4 => {
            let (low, high) = codes.split_at(codes.len().div_ceil(2));
            for (side, codes) in [low, high].into_iter().enumerate() {
                for (chunk, codes) in codes.chunks(CHUNK / 2).enumerate() {
                    out[chunk * CHUNK + side * (CHUNK / 2)..][..codes.len()].copy_from_slice(codes);
                }
            }
        }
    }
}

/// Rows of one width, as the primitives take them.
#[derive(Clone, Copy)]
pub(crate) struct StoredRows<'a> {
    /// Rows, and at least [`SLACK`] bytes after the last.
    pub bytes: &'a [u8],
    pub row_bytes: usize,
    pub count: usize,
}

/// The integer sums that an instruction set provides, by width ([`ActBits::index`]).
pub(crate) struct Primitives {
    /// `out[j] = sum_d q[d] * k_j[d]`: the query as [`lay_out`] arranges it, the sum of its codes, the rows.
    pub dots: [fn(&[i8], i32, StoredRows<'_>, &mut [i32]); 2],
    /// `out[d] = sum_j c_j * v_j[d]`.
    pub weigh: [fn(&[u8], StoredRows<'_>, &mut [i32]); 2],
}

/// The portable sums.
pub(crate) mod primitives {
    use super::{CHUNK, StoredRows};

    pub(crate) fn dots_narrow(q: &[i8], q_sum: i32, rows: StoredRows<'_>, out: &mut [i32]) {
        for (row, out) in rows.bytes.chunks_exact(rows.row_bytes.max(1)).zip(&mut out[..rows.count]) {
            let mut sum = -8 * q_sum;
            for (bytes, q) in row.chunks(CHUNK / 2).zip(q.chunks_exact(CHUNK)) {
                let (low, high) = q.split_at(CHUNK / 2);
                for ((&byte, &low), &high) in bytes.iter().zip(low).zip(high) {
                    sum += i32::from(byte & 15) * i32::from(low) + i32::from(byte >> 4) * i32::from(high);
                }
            }
            *out = sum;
        }
    }

    pub(crate) fn dots_wide(q: &[i8], q_sum: i32, rows: StoredRows<'_>, out: &mut [i32]) {
        for (row, out) in rows.bytes.chunks_exact(rows.row_bytes.max(1)).zip(&mut out[..rows.count]) {
            let sum: i32 = row.iter().zip(q).map(|(&k, &q)| i32::from(k) * i32::from(q)).sum();
            *out = sum - 128 * q_sum;
        }
    }

    pub(crate) fn weigh_narrow(codes: &[u8], rows: StoredRows<'_>, out: &mut [i32]) {
        out.fill(0);
        let (low, high) = out.split_at_mut(rows.row_bytes);
        for (row, &c) in rows.bytes.chunks_exact(rows.row_bytes.max(1)).zip(&codes[..rows.count]) {
            let c = i32::from(c);
            for (sum, &byte) in low.iter_mut().zip(row) {
                *sum += c * (i32::from(byte & 15) - 8);
            }
            for (sum, &byte) in high.iter_mut().zip(row) {
                *sum += c * (i32::from(byte >> 4) - 8);
            }
        }
    }

    pub(crate) fn weigh_wide(codes: &[u8], rows: StoredRows<'_>, out: &mut [i32]) {
        out.fill(0);
        for (row, &c) in rows.bytes.chunks_exact(rows.row_bytes.max(1)).zip(&codes[..rows.count]) {
            let c = i32::from(c);
            for (sum, &byte) in out.iter_mut().zip(row) {
                *sum += c * (i32::from(byte) - 128);
            }
        }
    }
}

/// Attention of query `q` over the first `len` positions; writes `out` `[head_dim]`, returns the probability of
/// position 0.
///
/// # Panics
/// When `len` is 0 or more than the cache holds, or lengths differ from `head_dim`.
#[inline(always)]
pub(crate) fn attend(
    primitives: &Primitives,
    head: &KvHead,
    len: usize,
    q: CodeRow<'_>,
    scratch: &mut AttentionScratch,
    out: &mut [f32],
) -> f32 {
    let dim = head.head_dim;
    assert!(len > 0 && len <= head.len(), "attention over {len} of {} positions", head.len());
    assert!(q.codes.len() == dim && out.len() == dim, "lengths of query and output, head_dim is {dim}");
    scratch.reserve(len, dim);
    let AttentionScratch { scores, part, dots, codes, query, sums } = scratch;
    let scores = &mut scores[..len];
    score(primitives, head, q, query, dots, part, scores);
    float::softmax(scores);

    let mut scales = [0f32; 2];
    let mut counts = [0usize; 2];
    for bits in ActBits::ALL {
        let index = bits.index();
        let count = head.values.count(bits, len);
        counts[index] = count;
        if count == 0 {
            continue;
        }
        let part = &mut part[..count];
        if count == len {
            part.copy_from_slice(scores);
        } else {
            let of_width =
                scores.iter().zip(head.values.bits()).filter(|&(_, &b)| b == bits).map(|(&p, _)| p);
            for (to, p) in part.iter_mut().zip(of_width) {
                *to = p;
            }
        }
        let quantizer = match head.scheme {
            AttentionScheme::Dynamic => {
                for (p, s) in part.iter_mut().zip(head.values.scales_of(bits)) {
                    *p *= s;
                }
                let range = CodeRange::unsigned(8);
                let quantizer = Affine::symmetric(dynamic_scale(float::max_abs(part), range), range);
                scales[index] = quantizer.scale;
                quantizer
            }
            AttentionScheme::Static { values, probability_bits, .. } => {
                let quantizer = Affine::probability(probability_bits);
                scales[index] = quantizer.scale * values.get(bits).scale;
                quantizer
            }
        };
        let codes = &mut codes[..count];
        quantize_unsigned(part, quantizer, codes);
        let sums = &mut sums[index][..dim];
        (primitives.weigh[index])(codes, stored(&head.values, bits, count), sums);
        if let AttentionScheme::Static { values, .. } = head.scheme {
            let code_sum: i32 = codes.iter().map(|&c| i32::from(c)).sum();
            let shift = values.get(bits).zero_point * code_sum;
            for sum in sums {
                *sum -= shift;
            }
        }
    }
    let [narrow, wide] = ActBits::ALL.map(ActBits::index);
    let (sums_4, sums_8) = (&sums[narrow][..dim], &sums[wide][..dim]);
    match (counts[wide] > 0, counts[narrow] > 0) {
        (true, true) => {
            for ((out, &a), &b) in out.iter_mut().zip(sums_8).zip(sums_4) {
                *out = a as f32 * scales[wide] + b as f32 * scales[narrow];
            }
        }
        (true, false) => {
            for (out, &a) in out.iter_mut().zip(sums_8) {
                *out = a as f32 * scales[wide];
            }
        }
        _ => {
            for (out, &b) in out.iter_mut().zip(sums_4) {
                *out = b as f32 * scales[narrow];
            }
        }
    }
    scores[0]
}

fn stored(store: &super::CodeStore, bits: ActBits, count: usize) -> StoredRows<'_> {
    let (bytes, row_bytes) = (store.bytes_of(bits), store.row_bytes(bits));
    debug_assert!(bytes.len() >= count * row_bytes + SLACK);
    StoredRows { bytes, row_bytes, count }
}

/// Scores of the query against the first `scores.len()` keys.
#[inline(always)]
fn score(
    primitives: &Primitives,
    head: &KvHead,
    q: CodeRow<'_>,
    query: &mut [Vec<i8>; 2],
    dots: &mut [i32],
    part: &mut [f32],
    scores: &mut [f32],
) {
    let (dim, len) = (head.head_dim, scores.len());
    let q_scale = q.scale * (1.0 / math::sqrt(dim as f32));
    for bits in ActBits::ALL {
        let index = bits.index();
        let count = head.keys.count(bits, len);
        if count == 0 {
            continue;
        }
        let laid_out = &mut query[index][..query_len(dim, bits)];
        lay_out(q.codes, bits, laid_out);
        let dots = &mut dots[..count];
        (primitives.dots[index])(laid_out, q.sum, stored(&head.keys, bits, count), dots);
        let whole = count == len;
        let to = if whole { &mut *scores } else { &mut part[..count] };
        match head.scheme {
            AttentionScheme::Dynamic => {
                for ((to, &dot), &scale) in to.iter_mut().zip(dots.iter()).zip(head.keys.scales_of(bits)) {
                    *to = (dot as f32 * q_scale) * scale;
                }
            }
            AttentionScheme::Static { keys, .. } => {
                let Affine { scale, zero_point, .. } = keys.get(bits);
                let constant = dim as i32 * q.zero_point * zero_point - zero_point * q.sum;
                for ((to, &dot), &sum) in to.iter_mut().zip(dots.iter()).zip(head.keys.sums_of(bits)) {
                    *to = ((dot - q.zero_point * sum + constant) as f32 * q_scale) * scale;
                }
            }
        }
        if !whole {
            let places = scores.iter_mut().zip(head.keys.bits()).filter(|&(_, &b)| b == bits);
            for ((place, _), &score) in places.zip(part.iter()) {
                *place = score;
            }
        }
    }
}
