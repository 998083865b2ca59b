//! The integer sums of attention, written once over [`CodeSimd`].
//!
//! Scores: 64 stored codes of a key meet 64 query codes in lanes of four; four keys are folded together at the end.
//! Values: four rows are interleaved so that a lane holds one `d` of four positions, and meets four codes of
//! probabilities.

use super::attend::{CHUNK, StoredRows};
use crate::product::IntSimd;
use squat_quant::ActBits;

/// 64 bytes at a time, and their dot products. See [`IntSimd`] for what a value proves.
pub(crate) trait CodeSimd: IntSimd {
    /// 64 query codes.
    fn load_codes(self, codes: &[i8; 64]) -> Self::V;
    /// 32 bytes: their low nibbles, then their high nibbles.
    fn load_halves(self, bytes: &[u8; 32]) -> Self::V;
    /// Four bytes in every lane.
    fn splat(self, quad: &[i8; 4]) -> Self::V;
    /// Stored 8-bit codes to signed bytes: the top bit of every byte flipped.
    fn flip(self, v: Self::V) -> Self::V;
    /// `acc[l] += sum_i u[4l + i] * s[4l + i]`, u unsigned, s signed, any values.
    fn dot(self, acc: Self::V, u: Self::V, s: Self::V) -> Self::V;
    /// The same where every u, or every s, is at most 15.
    fn dot_small(self, acc: Self::V, u: Self::V, s: Self::V) -> Self::V;
    /// Bytes of four rows to quads: result `i`, 16-byte lane `l`, holds the quads of columns `16 l + 4 i ..+ 4`.
    fn interleave(self, rows: [Self::V; 4]) -> [Self::V; 4];
    /// Sums of the lanes of four accumulators.
    fn reduce(self, acc: [Self::V; 4]) -> [i32; 4];
}

/// The bytes from `at` on; rows are followed by enough slack, so the fallback is never taken.
#[inline(always)]
fn bytes_at<const N: usize>(bytes: &[u8], at: usize) -> &[u8; N] {
    bytes[at..].first_chunk().unwrap_or(&[0; N])
}

/// Stored codes of a chunk of a row.
#[inline(always)]
fn load<S: CodeSimd, const NARROW: bool>(s: S, rows: &StoredRows<'_>, row: usize, chunk: usize) -> S::V {
    let start = row * rows.row_bytes;
    if NARROW {
        s.load_halves(bytes_at(rows.bytes, start + chunk * (CHUNK / 2)))
    } else {
        s.load(bytes_at(rows.bytes, start + chunk * CHUNK))
    }
}

/// `out[j] = sum_d q[d] * k_j[d]`.
#[inline(always)]
pub(crate) fn dots<S: CodeSimd, const NARROW: bool>(
    s: S,
    q: &[i8],
    q_sum: i32,
    rows: StoredRows<'_>,
    out: &mut [i32],
) {
    let offset = if NARROW { 8 } else { 128 };
    let (chunks, _) = q.as_chunks::<CHUNK>();
    let mut row = 0;
    for out in out[..rows.count].chunks_mut(4) {
        // The last rows of an incomplete four repeat the last one.
        let last = rows.count - 1;
        let mut acc = [s.zero(); 4];
        for (chunk, q) in chunks.iter().enumerate() {
            let q = s.load_codes(q);
            for i in 0..4 {
                let k = load::<S, NARROW>(s, &rows, (row + i).min(last), chunk);
                acc[i] = if NARROW { s.dot_small(acc[i], k, q) } else { s.dot(acc[i], k, q) };
            }
        }
        for (out, sum) in out.iter_mut().zip(s.reduce(acc)) {
            *out = sum - offset * q_sum;
        }
        row += 4;
    }
}

/// Four rows from `row`, interleaved, times their codes. Rows beyond the last repeat it; their codes are 0.
#[inline(always)]
fn weigh_four<S: CodeSimd, const NARROW: bool>(
    s: S,
    acc: &mut [S::V; 4],
    rows: &StoredRows<'_>,
    chunk: usize,
    row: usize,
    codes: &[u8; 4],
) {
    let mut four = [s.zero(); 4];
    for i in 0..4 {
        let v = load::<S, NARROW>(s, rows, (row + i).min(rows.count - 1), chunk);
        four[i] = if NARROW { v } else { s.flip(v) };
    }
    let four = s.interleave(four);
    let codes = s.splat(&[codes[0] as i8, codes[1] as i8, codes[2] as i8, codes[3] as i8]);
    for i in 0..4 {
        acc[i] = if NARROW { s.dot_small(acc[i], codes, four[i]) } else { s.dot(acc[i], codes, four[i]) };
    }
}

/// `out[d] = sum_j c_j * v_j[d]`.
#[inline(always)]
pub(crate) fn weigh<S: CodeSimd, const NARROW: bool>(
    s: S,
    codes: &[u8],
    rows: StoredRows<'_>,
    out: &mut [i32],
) {
    let code_sum: i32 = codes.iter().map(|&c| i32::from(c)).sum();
    let bits = if NARROW { ActBits::A4 } else { ActBits::A8 };
    let (quads, tail) = codes[..rows.count].as_chunks::<4>();
    let chunks = rows.row_bytes.div_ceil(if NARROW { CHUNK / 2 } else { CHUNK });
    for chunk in 0..chunks {
        let mut acc = [s.zero(); 4];
        for (i, quad) in quads.iter().enumerate() {
            weigh_four::<S, NARROW>(s, &mut acc, &rows, chunk, 4 * i, quad);
        }
        if !tail.is_empty() {
            let mut quad = [0; 4];
            quad[..tail.len()].copy_from_slice(tail);
            weigh_four::<S, NARROW>(s, &mut acc, &rows, chunk, 4 * quads.len(), &quad);
        }
        let mut columns = [0i32; CHUNK];
        for (i, acc) in acc.into_iter().enumerate() {
            for (lane, four) in s.store(acc).as_chunks::<4>().0.iter().enumerate() {
                columns[16 * lane + 4 * i..][..4].copy_from_slice(four);
            }
        }
        match bits {
            ActBits::A8 => copy(&columns, &mut out[chunk * CHUNK..], 0),
            ActBits::A4 => {
                let (low, high) = out.split_at_mut(rows.row_bytes);
                let at = chunk * (CHUNK / 2);
                copy(&columns[..CHUNK / 2], &mut low[at..], 8 * code_sum);
                if at < high.len() {
                    copy(&columns[CHUNK / 2..], &mut high[at..], 8 * code_sum);
                }
            }
        }
    }
}

/// Copies what fits, less `shift`.
#[inline(always)]
fn copy(from: &[i32], to: &mut [i32], shift: i32) {
    for (to, from) in to.iter_mut().zip(from) {
        *to = from - shift;
    }
}
