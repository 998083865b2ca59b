//! Products of the unquantized model: `y[m, n] = dot(x[m], w[n])`, each element in the order of [`super::dot`].

use crate::lanes::{LANES, padded, reduce};
use crate::output::ColumnsMut;
use crate::simd::FloatSimd;

/// The type of weights: f32, or the bits of a half-precision number.
pub(crate) trait Weight: Copy + Default {
    /// Tiles of rows of x from which it pays to copy the weights first, as f32 and aligned to a cache line.
    const COPY_FROM: usize;
    fn load<S: FloatSimd>(s: S, x: &[Self; LANES]) -> S::V;
}

impl Weight for f32 {
    const COPY_FROM: usize = 16;
    #[inline(always)]
    fn load<S: FloatSimd>(s: S, x: &[f32; LANES]) -> S::V {
        s.load(x)
    }
}

impl Weight for u16 {
    const COPY_FROM: usize = 2;
    #[inline(always)]
    fn load<S: FloatSimd>(s: S, x: &[u16; LANES]) -> S::V {
        s.load_f16(x)
    }
}

/// Products of `MR` rows of x with `NR` rows of w, which are `apart` rows from each other.
#[inline(always)]
fn tile<S: FloatSimd, W: Weight, const MR: usize, const NR: usize>(
    s: S,
    x: &[f32],
    w: &[W],
    k: usize,
    apart: usize,
) -> [[f32; NR]; MR] {
    let mut acc = [[s.zero(); NR]; MR];
    let x_rows: [&[f32]; MR] = core::array::from_fn(|m| &x[m * k..(m + 1) * k]);
    let w_rows: [&[W]; NR] = core::array::from_fn(|n| &w[n * apart * k..][..k]);
    // Slices of one length: no index below needs a check.
    let steps = k / LANES;
    let x_chunks = x_rows.map(|row| &row.as_chunks::<LANES>().0[..steps]);
    let w_chunks = w_rows.map(|row| &row.as_chunks::<LANES>().0[..steps]);
    for i in 0..steps {
        let mut w = [s.zero(); NR];
        for n in 0..NR {
            w[n] = W::load(s, &w_chunks[n][i]);
        }
        for m in 0..MR {
            let x = s.load(&x_chunks[m][i]);
            for n in 0..NR {
                acc[m][n] = s.mul_add(acc[m][n], x, w[n]);
            }
        }
    }
    let done = k - k % LANES;
    if done < k {
        let mut w = [s.zero(); NR];
        for n in 0..NR {
            w[n] = W::load(s, &padded(&w_rows[n][done..]));
        }
        for m in 0..MR {
            let x = s.load(&padded(&x_rows[m][done..]));
            for n in 0..NR {
                acc[m][n] = s.mul_add(acc[m][n], x, w[n]);
            }
        }
    }
    const { assert!(NR <= 4) };
    let mut y = [[0.0; NR]; MR];
    for m in 0..MR {
        let mut four = [s.zero(); 4];
        four[..NR].copy_from_slice(&acc[m]);
        let four = if NR == 1 { [reduce(s.store(four[0])); 4] } else { s.reduce4(four) };
        y[m].copy_from_slice(&four[..NR]);
    }
    y
}

/// Maximum number of values in a copied strip of weights: 64 KB, which fit the second-level cache.
const COPIED: usize = 16384;

/// Weights as f32, aligned to a cache line, so that no vector crosses a line.
#[repr(align(64))]
struct Copied([f32; COPIED]);

/// Products of all rows of x, in tiles of `MR` and then single rows, with the `NR` rows of `w`: columns `column..`.
#[inline(always)]
fn strip<S: FloatSimd, W: Weight, const MR: usize, const NR: usize>(
    s: S,
    x: &[f32],
    w: &[W],
    bias: Option<&[f32]>,
    k: usize,
    column: usize,
    out: &mut ColumnsMut<'_>,
) {
    let rows = x.len() / k;
    let mut row = 0;
    while row + MR <= rows {
        let y = tile::<S, W, MR, NR>(s, &x[row * k..], w, k, 1);
        for m in 0..MR {
            put(&y[m], bias, column, row + m, out);
        }
        row += MR;
    }
    while row < rows {
        let y = tile::<S, W, 1, NR>(s, &x[row * k..], w, k, 1);
        put(&y[0], bias, column, row, out);
        row += 1;
    }
}

/// Writes columns `column..` of a row.
#[inline(always)]
fn put<const NR: usize>(
    y: &[f32; NR],
    bias: Option<&[f32]>,
    column: usize,
    row: usize,
    out: &mut ColumnsMut<'_>,
) {
    let at = column - out.range().start;
    let to = &mut out.row(row)[at..at + NR];
    match bias {
        Some(bias) => to.iter_mut().zip(y.iter().zip(&bias[column..])).for_each(|(to, (y, b))| *to = y + b),
        None => to.copy_from_slice(y),
    }
}

/// The only row of x, all columns: `NR` at a time, from `NR` places far apart. Memory is fastest when it is read in order
/// from a few places, and slow where all of them reach the ends of their pages together.
#[inline(always)]
fn row<S: FloatSimd, W: Weight, const NR: usize>(
    s: S,
    x: &[f32],
    w: &[W],
    bias: Option<&[f32]>,
    k: usize,
    out: &mut ColumnsMut<'_>,
) {
    let range = out.range();
    let to = out.row(0);
    let part = to.len() / NR;
    let mut put = |i: usize, y: f32| to[i] = bias.map_or(y, |bias| y + bias[range.start + i]);
    for i in 0..part {
        let y = tile::<S, W, 1, NR>(s, x, &w[(range.start + i) * k..], k, part)[0];
        for n in 0..NR {
            put(i + n * part, y[n]);
        }
    }
    for i in NR * part..range.len() {
        put(i, tile::<S, W, 1, 1>(s, x, &w[(range.start + i) * k..], k, 1)[0][0]);
    }
}

/// `y[m, n] = dot(x[m], w[n]) (+ bias[n])` for the columns of `out`; x `[m, k]`, w `[n, k]`.
#[inline(always)]
pub(crate) fn matmul<S: FloatSimd, W: Weight, const MR: usize, const NR: usize>(
    s: S,
    x: &[f32],
    w: &[W],
    bias: Option<&[f32]>,
    k: usize,
    mut out: ColumnsMut<'_>,
) {
    let out = &mut out;
    let range = out.range();
    assert_eq!(x.len(), out.rows() * k, "length of the rows of a product");
    assert!(w.len() >= range.end * k, "length of the weights of a product");
    assert!(bias.is_none_or(|b| b.len() >= range.end), "length of the bias of a product");
    if k == 0 {
        for row in 0..out.rows() {
            for (i, y) in out.row(row).iter_mut().enumerate() {
                *y = bias.map_or(0.0, |b| 0.0 + b[range.start + i]);
            }
        }
        return;
    }
    if out.rows() == 1 {
        return row::<S, W, 4>(s, x, w, bias, k, out);
    }
    let mut column = range.start;
    if out.rows() >= W::COPY_FROM * MR && NR * k <= COPIED {
        let mut copied = Copied([0.0; COPIED]);
        let copied = &mut copied.0[..NR * k];
        while column + NR <= range.end {
            copy(s, &w[column * k..][..NR * k], copied);
            strip::<S, f32, MR, NR>(s, x, copied, bias, k, column, out);
            column += NR;
        }
    }
    while column + NR <= range.end {
        strip::<S, W, MR, NR>(s, x, &w[column * k..][..NR * k], bias, k, column, out);
        column += NR;
    }
    while column < range.end {
        strip::<S, W, MR, 1>(s, x, &w[column * k..(column + 1) * k], bias, k, column, out);
        column += 1;
    }
}

/// `wide = w` as f32.
#[inline(always)]
fn copy<S: FloatSimd, W: Weight>(s: S, w: &[W], wide: &mut [f32]) {
    let (chunks, tail) = w.as_chunks::<LANES>();
    let (wide_chunks, wide_tail) = wide.as_chunks_mut::<LANES>();
    for (wide, chunk) in wide_chunks.iter_mut().zip(chunks) {
        *wide = s.store(W::load(s, chunk));
    }
    let lanes = s.store(W::load(s, &padded(tail)));
    wide_tail.copy_from_slice(&lanes[..tail.len()]);
}
