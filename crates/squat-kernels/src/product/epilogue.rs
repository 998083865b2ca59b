//! From sums to outputs: offset, zero point, scales, bias.

use super::kernel::{MicroKernel, Sums};
use crate::block::PANEL;
use crate::matrix::PackedMatrix;
use crate::output::ColumnsMut;
use crate::rows::RowsView;
use crate::simd::{IntSimd, PanelOutputs, RowScale, correct};

/// The operands and the result of a product.
pub(super) struct Epilogue<'a, 'b> {
    pub matrix: &'a PackedMatrix,
    pub rows: RowsView<'a>,
    pub out: &'a mut ColumnsMut<'b>,
}

impl Epilogue<'_, '_> {
    /// Writes the outputs of `rows` rows from `m` on and `NP` panels from `p` on. `offset` is that of the stored weights.
    #[inline(always)]
    pub(super) fn write_tile<K: MicroKernel, const MR: usize, const NP: usize>(
        &mut self,
        kernel: K,
        acc: &Sums<K, MR, NP>,
        offset: i32,
        (m, rows): (usize, usize),
        p: usize,
    ) {
        let s = kernel.simd();
        let (matrix, view) = (self.matrix, self.rows);
        let (scales, zeros, sums) =
            (&view.scales[m..m + rows], &view.zero_points[m..m + rows], &view.sums[m..m + rows]);
        let (w_sums, w_scales) = (matrix.panels_sums::<NP>(p), matrix.panels_scales::<NP>(p));
        let of_row =
            |i: usize| RowScale { shift: offset.wrapping_mul(sums[i]), zero: zeros[i], scale: scales[i] };
        if matrix.panel_bias(p).is_none()
            && let Some(mut tile) = self.out.tile::<NP>(m, rows, p * PANEL)
        {
            for i in 0..rows {
                let row = of_row(i);
                for j in 0..NP {
                    tile.set(i, j, &s.scaled(acc[i][j], row, &w_sums[j], &w_scales[j]));
                }
            }
            return;
        }
        for i in 0..rows {
            let row = of_row(i);
            for j in 0..NP {
                self.write(m + i, p + j, s.scaled(acc[i][j], row, &w_sums[j], &w_scales[j]));
            }
        }
    }

    /// Adds the sums of one group of inputs, scaled, to the outputs `y` of `NP` panels from `p` on. `sums` and `zeros`
    /// hold the sum of codes and the zero point of each row.
    #[inline(always)]
    pub(super) fn add_group<K: MicroKernel, const MR: usize, const NP: usize>(
        &self,
        kernel: K,
        y: &mut [[PanelOutputs; NP]; MR],
        acc: &Sums<K, MR, NP>,
        offset: i32,
        (p, group): (usize, usize),
        sums: &[i32],
        zeros: &[i32],
    ) {
        let (s, matrix, rows) = (kernel.simd(), self.matrix, sums.len());
        let mut scales = [matrix.panel_scales(p, group); NP];
        for j in 1..NP {
            scales[j] = matrix.panel_scales(p + j, group);
        }
        let zeros = &zeros[..rows];
        if zeros.iter().all(|&zero| zero == 0) {
            // Short enough for the compiler to unroll completely: the sums stay in registers.
            for i in 0..rows {
                let shift = offset.wrapping_mul(sums[i]);
                for j in 0..NP {
                    s.add_scaled(&mut y[i][j], acc[i][j], shift, scales[j]);
                }
            }
            return;
        }
        for i in 0..rows {
            let shift = offset.wrapping_mul(sums[i]);
            for j in 0..NP {
                let (acc, w_sums) = (s.store(acc[i][j]), matrix.panel_sums(p + j, group));
                for c in 0..PANEL {
                    y[i][j].0[c] += correct(acc[c], shift, zeros[i], w_sums[c]) as f32 * scales[j][c];
                }
            }
        }
    }

    /// Writes the outputs of `rows` rows from `m` on, from their sums over all groups.
    #[inline(always)]
    pub(super) fn write_groups<const MR: usize, const NP: usize>(
        &mut self,
        y: &mut [[PanelOutputs; NP]; MR],
        (m, rows): (usize, usize),
        p: usize,
    ) {
        for i in 0..rows {
            for j in 0..NP {
                for c in 0..PANEL {
                    y[i][j].0[c] *= self.rows.scales[m + i];
                }
                self.write(m + i, p + j, y[i][j].0);
            }
        }
    }

    /// Adds the bias and writes the channels of panel `p` that `out` covers.
    #[inline(always)]
    fn write(&mut self, m: usize, p: usize, mut y: [f32; PANEL]) {
        if let Some(bias) = self.matrix.panel_bias(p) {
            for c in 0..PANEL {
                y[c] += bias[c];
            }
        }
        let range = self.out.range();
        let to = self.out.row(m);
        let first = p * PANEL;
        if first >= range.start && first + PANEL <= range.end {
            to[first - range.start..][..PANEL].copy_from_slice(&y);
        } else {
            for c in 0..PANEL {
                if range.contains(&(first + c)) {
                    to[first + c - range.start] = y[c];
                }
            }
        }
    }
}
