//! Second moments of the inputs of a linear layer.

use crate::autograd::{Layout, gemm};

/// Columns that a block of the symmetric product has.
const BLOCK: usize = 256;

/// `X^T X` over rows `x`, and `T^T X` with the rows `t` that the model in full precision has in their place.
#[derive(Clone, Debug, Default)]
pub(super) struct Gram {
    /// Length of a row.
    pub cols: usize,
    /// `X^T X`, `[cols, cols]`; only blocks on and above the diagonal until [`Self::finish`].
    pub own: Vec<f32>,
    /// `T^T X`, `[cols, cols]`; empty where it is not wanted.
    pub cross: Vec<f32>,
    /// Rows seen.
    pub rows: usize,
}

impl Gram {
    /// No rows.
    pub fn new(cols: usize, crossed: bool) -> Self {
        let cross = if crossed { vec![0.0; cols * cols] } else { Vec::new() };
        Self { cols, own: vec![0.0; cols * cols], cross, rows: 0 }
    }

    /// Adds rows `x` `[n, cols]`, and their counterparts `t` in full precision where they are wanted.
    pub fn add(&mut self, x: &[f32], t: &[f32]) {
        let n = self.cols;
        let rows = x.len() / n;
        self.rows += rows;
        let mut block = Vec::new();
        for from in (0..n).step_by(BLOCK) {
            let to = (from + BLOCK).min(n);
            // Columns from..to against columns from..n.
            let left = crate::autograd::columns(x, n, from, to);
            let right = crate::autograd::columns(x, n, from, n);
            let (height, width) = (to - from, n - from);
            block.clear();
            block.resize(height * width, 0.0);
            gemm(
                (height, rows, width),
                1.0,
                (&left, Layout::Transposed),
                (&right, Layout::Normal),
                0.0,
                &mut block,
            );
            for (row, sums) in block.chunks_exact(width).enumerate() {
                let at = (from + row) * n + from;
                self.own[at..at + width].iter_mut().zip(sums).for_each(|(a, b)| *a += b);
            }
        }
        if !self.cross.is_empty() {
            gemm((n, rows, n), 1.0, (t, Layout::Transposed), (x, Layout::Normal), 1.0, &mut self.cross);
        }
    }

    /// Adds another's rows.
    pub fn merge(&mut self, other: &Self) {
        self.rows += other.rows;
        for (a, b) in self.own.iter_mut().zip(&other.own).chain(self.cross.iter_mut().zip(&other.cross)) {
            *a += b;
        }
    }

    /// Fills in the blocks below the diagonal, and adds `damping` times the mean of the diagonal to the diagonal (and as
    /// much to the diagonal of `T^T X`, so that a weight that needs no correction gets none).
    pub fn finish(&mut self, damping: f32) {
        let n = self.cols;
        for i in 0..n {
            for j in 0..i {
                self.own[i * n + j] = self.own[j * n + i];
            }
        }
        let mean = (0..n).map(|i| f64::from(self.own[i * n + i])).sum::<f64>() / n.max(1) as f64;
        let add = (mean * f64::from(damping)).max(1e-12) as f32;
        for i in 0..n {
            self.own[i * n + i] += add;
            if let Some(x) = self.cross.get_mut(i * n + i) {
                *x += add;
            }
        }
    }
}
