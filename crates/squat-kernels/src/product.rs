//! The integer product, written once over [`IntSimd`].
//!
//! Definition, which every instruction set reproduces bit for bit (METHOD.md section 2, with the order of float
//! operations fixed):
//!
//! ```text
//! acc[m, n]   = sum_k qa[m, k] * qw[n, k]                                                    exact, i32
//! per tensor, per channel:  y = ((acc - z_a[m] * sum_w[n]) as f32 * s_a[m]) * s_w[n]
//! per group:                y = (sum over groups g in order of
//!                                ((acc_g - z_a[m] * sum_w[n, g]) as f32 * s_w[n, g])) * s_a[m]
//! bias:                     y + bias[n], last
//! ```
//!
//! Weights are stored with an offset that makes them unsigned, so a kernel computes `sum_k qa * (qw + offset)` and
//! takes `offset * sum_k qa` away, which is one number for each row.

use crate::matrix::{Block, PANEL, PackedMatrix, Storage};
use crate::output::ColumnsMut;
use crate::reference;
use crate::rows::RowsView;

/// Sixteen i32 accumulators and the dot products that feed them. A value of an implementing type proves that the CPU
/// has its instructions.
pub(crate) trait IntSimd: Copy {
    /// 16 channels: i32 accumulators, or 4 unsigned bytes each.
    type V: Copy;
    fn zero(self) -> Self::V;
    /// 4 stored codes for each channel.
    fn load(self, block: &[u8; 64]) -> Self::V;
    /// The two nibbles of every byte, low ones first.
    fn nibbles(self, v: Self::V) -> [Self::V; 2];
    /// The four two-bit fields of every byte, low ones first.
    fn crumbs(self, v: Self::V) -> [Self::V; 4];
    /// `acc[c] += sum_i w[c][i] * a[i]` for any bytes.
    fn dot4<const NP: usize>(self, acc: &mut [Self::V; NP], w: &[Self::V; NP], a: &[i8; 4]);
    /// The same for w <= 15, where instructions that saturate at 16 bits are safe.
    #[inline(always)]
    fn dot4_small<const NP: usize>(self, acc: &mut [Self::V; NP], w: &[Self::V; NP], a: &[i8; 4]) {
        self.dot4(acc, w, a);
    }
    /// `acc + w * a` over eight inputs with w <= 15: two [`Self::dot4_small`] in one.
    #[inline(always)]
    fn dot8_small<const NP: usize>(
        self,
        acc: &mut [Self::V; NP],
        low: &[Self::V; NP],
        high: &[Self::V; NP],
        a: &[i8; 4],
        b: &[i8; 4],
    ) {
        self.dot4_small(acc, low, a);
        self.dot4_small(acc, high, b);
    }
    fn store(self, v: Self::V) -> [i32; PANEL];
}

/// A way of storing codes, see [`Storage`].
pub(crate) trait Unpack {
    const STORAGE: Storage;
    /// `acc += block . a` for `NP` panels and one row: `a` holds [`Storage::depth`] codes.
    fn step<S: IntSimd, const MR: usize, const NP: usize>(
        s: S,
        acc: &mut [[S::V; NP]; MR],
        blocks: [S::V; NP],
        a: [&[i8]; MR],
    );
}

pub(crate) struct Bytes;
pub(crate) struct Nibbles;
pub(crate) struct Crumbs;

/// Four codes at `at`.
#[inline(always)]
fn quad(a: &[i8], at: usize) -> &[i8; 4] {
    // The caller's rows are padded to whole blocks; the check is cheap beside what follows.
    match a[at..].first_chunk() {
        Some(quad) => quad,
        None => &[0; 4],
    }
}

impl Unpack for Bytes {
    const STORAGE: Storage = Storage::Byte;
    #[inline(always)]
    fn step<S: IntSimd, const MR: usize, const NP: usize>(
        s: S,
        acc: &mut [[S::V; NP]; MR],
        blocks: [S::V; NP],
        a: [&[i8]; MR],
    ) {
        for m in 0..MR {
            s.dot4(&mut acc[m], &blocks, quad(a[m], 0));
        }
    }
}

impl Unpack for Nibbles {
    const STORAGE: Storage = Storage::Nibble;
    #[inline(always)]
    fn step<S: IntSimd, const MR: usize, const NP: usize>(
        s: S,
        acc: &mut [[S::V; NP]; MR],
        blocks: [S::V; NP],
        a: [&[i8]; MR],
    ) {
        let parts = blocks.map(|block| s.nibbles(block));
        let (low, high) = (parts.map(|p| p[0]), parts.map(|p| p[1]));
        for m in 0..MR {
            s.dot8_small(&mut acc[m], &low, &high, quad(a[m], 0), quad(a[m], 4));
        }
    }
}

impl Unpack for Crumbs {
    const STORAGE: Storage = Storage::Crumb;
    #[inline(always)]
    fn step<S: IntSimd, const MR: usize, const NP: usize>(
        s: S,
        acc: &mut [[S::V; NP]; MR],
        blocks: [S::V; NP],
        a: [&[i8]; MR],
    ) {
        let parts = blocks.map(|block| s.crumbs(block));
        for half in 0..2 {
            let (low, high) = (parts.map(|p| p[2 * half]), parts.map(|p| p[2 * half + 1]));
            for m in 0..MR {
                s.dot8_small(&mut acc[m], &low, &high, quad(a[m], 8 * half), quad(a[m], 8 * half + 4));
            }
        }
    }
}

/// `MR` rows against the blocks `from..to` of `NP` panels.
#[inline(always)]
fn tile<S: IntSimd, U: Unpack, const MR: usize, const NP: usize>(
    s: S,
    a: &[&[i8]; MR],
    w: &[&[Block]; NP],
    from: usize,
    to: usize,
) -> [[[i32; PANEL]; NP]; MR] {
    let depth = U::STORAGE.depth();
    let mut acc = [[s.zero(); NP]; MR];
    for block in from..to {
        let blocks = w.map(|panel| s.load(&panel[block].0));
        let at = a.map(|row| &row[block * depth..(block + 1) * depth]);
        U::step(s, &mut acc, blocks, at);
    }
    acc.map(|row| row.map(|v| s.store(v)))
}

/// What [`linear`] was called with.
struct Job<'a, 'b> {
    matrix: &'a PackedMatrix,
    rows: RowsView<'a>,
    out: &'a mut ColumnsMut<'b>,
}

impl Job<'_, '_> {
    /// Rows `m..m + MR` times panels `p..p + NP`.
    #[inline(always)]
    fn tile<S: IntSimd, U: Unpack, const MR: usize, const NP: usize>(&mut self, s: S, m: usize, p: usize) {
        let (matrix, rows) = (self.matrix, self.rows);
        let a: [&[i8]; MR] = core::array::from_fn(|i| rows.padded(m + i));
        let w: [&[Block]; NP] = core::array::from_fn(|j| matrix.panel(p + j));
        let offset = U::STORAGE.offset();
        let mut y = [[[0f32; PANEL]; NP]; MR];
        if matrix.grouped() {
            let blocks_per_group = matrix.group_len() / U::STORAGE.depth();
            for group in 0..matrix.groups() {
                let from = group * blocks_per_group;
                let to = if group + 1 == matrix.groups() {
                    matrix.blocks_per_panel
                } else {
                    from + blocks_per_group
                };
                let acc = tile::<S, U, MR, NP>(s, &a, &w, from, to);
                for i in 0..MR {
                    let codes = &a[i][from * U::STORAGE.depth()..to * U::STORAGE.depth()];
                    let row_sum: i32 = codes.iter().map(|&c| i32::from(c)).sum();
                    let zero = rows.zero_points[m + i];
                    for j in 0..NP {
                        let sums = matrix.panel_sums(p + j, group);
                        let scales = matrix.panel_scales(p + j, group);
                        for c in 0..PANEL {
                            let exact = correct(acc[i][j][c], offset, row_sum, zero, sums[c]);
                            y[i][j][c] += exact as f32 * scales[c];
                        }
                    }
                }
            }
            for i in 0..MR {
                for j in 0..NP {
                    for c in 0..PANEL {
                        y[i][j][c] *= rows.scales[m + i];
                    }
                }
            }
        } else {
            let acc = tile::<S, U, MR, NP>(s, &a, &w, 0, matrix.blocks_per_panel);
            for i in 0..MR {
                let (row_sum, zero, scale) = (rows.sums[m + i], rows.zero_points[m + i], rows.scales[m + i]);
                for j in 0..NP {
                    let sums = matrix.panel_sums(p + j, 0);
                    let scales = matrix.panel_scales(p + j, 0);
                    for c in 0..PANEL {
                        let exact = correct(acc[i][j][c], offset, row_sum, zero, sums[c]);
                        y[i][j][c] = (exact as f32 * scale) * scales[c];
                    }
                }
            }
        }
        for j in 0..NP {
            if let Some(bias) = matrix.panel_bias(p + j) {
                for i in 0..MR {
                    for c in 0..PANEL {
                        y[i][j][c] += bias[c];
                    }
                }
            }
        }
        let range = self.out.range();
        for i in 0..MR {
            let to = self.out.row(m + i);
            for j in 0..NP {
                let first = (p + j) * PANEL;
                if first >= range.start && first + PANEL <= range.end {
                    to[first - range.start..][..PANEL].copy_from_slice(&y[i][j]);
                } else {
                    for c in 0..PANEL {
                        if range.contains(&(first + c)) {
                            to[first + c - range.start] = y[i][j][c];
                        }
                    }
                }
            }
        }
    }

    /// All rows times panels `p..p + NP`.
    #[inline(always)]
    fn strip<S: IntSimd, U: Unpack, const MR: usize, const NP: usize>(&mut self, s: S, p: usize) {
        let rows = self.rows.rows();
        let mut m = 0;
        while m + MR <= rows {
            self.tile::<S, U, MR, NP>(s, m, p);
            m += MR;
        }
        while m + 2 <= rows {
            self.tile::<S, U, 2, NP>(s, m, p);
            m += 2;
        }
        if m < rows {
            self.tile::<S, U, 1, NP>(s, m, p);
        }
    }
}

/// Takes the offset of the stored weights and the zero point of the activations out of an accumulator.
///
/// Intermediate sums may wrap; the result is exact because it fits (see [`crate::MAX_COLS`]).
#[inline(always)]
fn correct(acc: i32, offset: i32, row_sum: i32, zero: i32, weight_sum: i32) -> i32 {
    acc.wrapping_sub(offset.wrapping_mul(row_sum)).wrapping_sub(zero.wrapping_mul(weight_sum))
}

/// Checks shapes; returns whether there is anything to do.
fn check(matrix: &PackedMatrix, rows: &RowsView<'_>, out: &ColumnsMut<'_>) -> bool {
    let (inputs, outputs) = (matrix.cols(), matrix.rows());
    assert_eq!(rows.cols(), inputs, "the matrix takes rows of {inputs} inputs, got {}", rows.cols());
    assert_eq!(out.rows(), rows.rows(), "{} rows need as many output rows, got {}", rows.rows(), out.rows());
    assert!(
        out.range().end <= outputs,
        "the matrix has {outputs} outputs, but columns {:?} were asked for",
        out.range()
    );
    !out.range().is_empty() && rows.rows() > 0
}

/// The product of `rows` with the output channels that `out` covers; `MR` rows and `NP` panels at a time, `GEMV` panels
/// for a single row.
///
/// # Panics
/// When shapes do not fit.
#[inline(always)]
pub(crate) fn linear<S: IntSimd, U: Unpack, const MR: usize, const NP: usize, const GEMV: usize>(
    s: S,
    matrix: &PackedMatrix,
    rows: RowsView<'_>,
    out: &mut ColumnsMut<'_>,
) {
    if !check(matrix, &rows, out) {
        return;
    }
    let depth = U::STORAGE.depth();
    if matrix.groups() > 1 && !matrix.group_len().is_multiple_of(depth) {
        // Groups that cut a block: rare enough for the plain loops.
        return reference::linear(matrix, rows, out);
    }
    let range = out.range();
    let (mut p, end) = (range.start / PANEL, range.end.div_ceil(PANEL));
    let mut job = Job { matrix, rows, out };
    if job.rows.rows() == 1 {
        while p + GEMV <= end {
            job.tile::<S, U, 1, GEMV>(s, 0, p);
            p += GEMV;
        }
    } else {
        while p + NP <= end {
            job.strip::<S, U, MR, NP>(s, p);
            p += NP;
        }
    }
    while p < end {
        job.strip::<S, U, MR, 1>(s, p);
        p += 1;
    }
}
