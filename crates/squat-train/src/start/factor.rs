//! Factorization of a symmetric positive definite matrix.

use crate::autograd::{Layout, gemm};

/// Columns that are factored together.
const BLOCK: usize = 64;

/// The factor of `H[order][order] = L L^T`, L lower triangular.
#[derive(Clone, Debug)]
pub(super) struct Factor {
    /// `L^T`, `[n, n]` row-major: row k holds column k of L from its diagonal on, zeros before.
    pub transposed: Vec<f32>,
}

/// Factors `h` `[n, n]` with rows and columns in `order`; `None` where it is not positive definite.
pub(super) fn cholesky(h: &[f32], order: &[usize]) -> Option<Factor> {
    let n = order.len();
    let mut u = Vec::with_capacity(n * n);
    for &i in order {
        u.extend(order.iter().map(|&j| h[i * n + j]));
    }
    for from in (0..n).step_by(BLOCK) {
        let to = (from + BLOCK).min(n);
        // The rows of the block: U with U^T U = H, where U = L^T.
        for k in from..to {
            let (above, below) = u.split_at_mut(k * n);
            let row = &mut below[..n];
            for j in from..k {
                let other = &above[j * n..(j + 1) * n];
                let factor = other[k];
                row[k..].iter_mut().zip(&other[k..]).for_each(|(x, y)| *x -= factor * y);
            }
            let pivot = row[k];
            if !(pivot > 0.0 && pivot.is_finite()) {
                return None;
            }
            let inverse = 1.0 / pivot.sqrt();
            row[k..].iter_mut().for_each(|x| *x *= inverse);
            row[..k].fill(0.0);
        }
        if to == n {
            break;
        }
        // What is left: H -= panel^T panel.
        let width = n - to;
        let panel: Vec<f32> = (from..to).flat_map(|k| u[k * n + to..(k + 1) * n].to_vec()).collect();
        let mut product = vec![0f32; width * width];
        gemm(
            (width, to - from, width),
            1.0,
            (&panel, Layout::Transposed),
            (&panel, Layout::Normal),
            0.0,
            &mut product,
        );
        for (row, sums) in product.chunks_exact(width).enumerate() {
            let at = (to + row) * n + to;
            u[at..at + width].iter_mut().zip(sums).for_each(|(x, y)| *x -= y);
        }
    }
    Some(Factor { transposed: u })
}

/// Solves `x (L L^T) = b` for rows `b` `[rows, n]`, in the order of the factor, in place.
pub(super) fn solve_rows(factor: &Factor, b: &mut [f32], n: usize) {
    let u = &factor.transposed;
    for row in b.chunks_exact_mut(n) {
        // (L L^T) x^T = b^T, with L^T = U: first L y = b, column by column, then U x = y, row by row.
        for k in 0..n {
            let y = row[k] / u[k * n + k];
            row[k] = y;
            let (_, rest) = row.split_at_mut(k + 1);
            rest.iter_mut().zip(&u[k * n + k + 1..(k + 1) * n]).for_each(|(x, l)| *x -= y * l);
        }
        for k in (0..n).rev() {
            let sum = super::solve::dot(&u[k * n + k + 1..(k + 1) * n], &row[k + 1..]);
            row[k] = (row[k] - sum) / u[k * n + k];
        }
    }
}
