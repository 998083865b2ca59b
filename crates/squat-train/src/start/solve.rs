//! Codes and scales of one weight, of least error of its output: `min |W X - W^ X^|^2` over codes and scales of `W^`.

use super::Methods;
use super::factor::{Factor, cholesky, solve_rows};
use super::gram::Gram;
use crate::autograd::{Layout, product};
use squat_kernels::Kernels;
use squat_quant::calibrate::weight_scales;
use squat_quant::{Affine, WeightScheme};
use std::sync::Mutex;

/// Rows that share a read of the factor.
const ROWS: usize = 16;

/// Clip ratios that are tried, as shares of the largest magnitude: 0.4 to 1.
const RATIOS: usize = 25;

/// Codes as values `scale * code`, and the scales.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Solved {
    /// `[rows, cols]`.
    pub values: Vec<f32>,
    /// As many as the scheme has.
    pub scales: Vec<f32>,
}

/// The inner product.
pub(super) fn dot(a: &[f32], b: &[f32]) -> f32 {
    Kernels::detect().dot(a, b)
}

/// What the rows of all weights behind one input share.
pub(super) struct Moments<'a> {
    gram: &'a Gram,
    /// Columns from the last to be rounded to the first: those of largest input are rounded first, and the others make up
    /// for their errors.
    order: Vec<usize>,
    factor: Option<Factor>,
}

impl<'a> Moments<'a> {
    /// Of a finished sum of products.
    pub fn new(gram: &'a Gram) -> Self {
        let n = gram.cols;
        let mut order: Vec<usize> = (0..n).collect();
        order.sort_by(|&a, &b| gram.own[a * n + a].total_cmp(&gram.own[b * n + b]));
        let factor = cholesky(&gram.own, &order);
        Self { gram, order, factor }
    }

    /// Error of the output per squared error of each column, once the columns rounded later have made up for it.
    fn importance(&self, compensate: bool) -> Vec<f32> {
        let n = self.gram.cols;
        let mut out: Vec<f32> = (0..n).map(|i| self.gram.own[i * n + i]).collect();
        if let (true, Some(factor)) = (compensate, &self.factor) {
            for (at, &col) in self.order.iter().enumerate() {
                out[col] = factor.transposed[at * n + at].powi(2);
            }
        }
        out
    }

    /// The weight whose outputs on the inputs of the quantized model are nearest to those of `weight` in full precision,
    /// and a share of the way there: `W + share (W T^T X (X^T X)^-1 - W)`.
    fn target(&self, weight: &[f32], share: f32, threads: usize) -> Vec<f32> {
        let n = self.gram.cols;
        let (false, Some(factor)) = (self.gram.cross.is_empty() || share == 0.0, &self.factor) else {
            return weight.to_vec();
        };
        let mut out = weight.to_vec();
        let chunk = rows_of_a_job(weight.len() / n, threads) * n;
        for_each_job(weight.chunks(chunk).zip(out.chunks_mut(chunk)), threads, |(weight, out)| {
            let rows = weight.len() / n;
            let full = product((rows, n, n), (weight, Layout::Normal), (&self.gram.cross, Layout::Normal));
            let mut ordered = Vec::with_capacity(full.len());
            for row in full.chunks_exact(n) {
                ordered.extend(self.order.iter().map(|&col| row[col]));
            }
            solve_rows(factor, &mut ordered, n);
            for (row, out) in ordered.chunks_exact(n).zip(out.chunks_exact_mut(n)) {
                for (&x, &col) in row.iter().zip(&self.order) {
                    out[col] += share * (x - out[col]);
                }
            }
        });
        out
    }

    /// Codes and scales of `weight` `[rows, cols]` in full precision.
    pub fn solve(&self, weight: &[f32], scheme: WeightScheme, methods: &Methods, threads: usize) -> Solved {
        let n = self.gram.cols;
        let rows = weight.len() / n;
        let target = self.target(weight, methods.correct, threads);
        let mut scales = vec![0f32; scheme.num_scales(rows, n)];
        weight_scales(&target, rows, n, scheme, &mut scales);
        let per_row = scheme.scales_per_row(n);
        let mut values = vec![0f32; target.len()];
        // One scale for all rows is not searched further.
        let mut shared = scales.clone();
        let step = rows_of_a_job(rows, threads);
        let importance = self.importance(methods.compensate);
        let scale_chunks: Vec<&mut [f32]> = match per_row {
            0 => (0..rows.div_ceil(step)).map(|_| Default::default()).collect(),
            per_row => scales.chunks_mut(step * per_row).collect(),
        };
        let jobs = target.chunks(step * n).zip(values.chunks_mut(step * n)).zip(scale_chunks);
        let first = shared.first().copied();
        for_each_job(jobs, threads, |((target, values), scales)| {
            let mut one = [first.unwrap_or(1.0)];
            let fixed = scales.is_empty();
            let scales: &mut [f32] = if fixed { &mut one } else { scales };
            let mut rows = Rows { target, values, scales, n, scheme, fixed };
            if methods.output_error && !fixed {
                rows.search(&importance);
            }
            match (&self.factor, methods.compensate) {
                (Some(factor), true) => rows.compensate(factor, &self.order),
                _ => rows.round(),
            }
            for _ in 0..methods.refine {
                rows.refine(&self.gram.own);
            }
        });
        if per_row == 0 {
            std::mem::swap(&mut scales, &mut shared);
        }
        Solved { values, scales }
    }
}

/// Rows of one job: enough jobs for all threads, enough rows to share reads of the factor.
fn rows_of_a_job(rows: usize, threads: usize) -> usize {
    rows.div_ceil(4 * threads.max(1)).next_multiple_of(ROWS).max(ROWS)
}

/// Runs every job once, on that many threads.
pub(super) fn for_each_job<J: Send>(
    jobs: impl Iterator<Item = J> + Send,
    threads: usize,
    run: impl Fn(J) + Sync,
) {
    let jobs = Mutex::new(jobs);
    let work = || {
        loop {
            let next = jobs.lock().unwrap_or_else(|e| e.into_inner()).next();
            let Some(job) = next else { return };
            run(job);
        }
    };
    std::thread::scope(|scope| {
        for _ in 1..threads {
            scope.spawn(work);
        }
        work();
    });
}

/// Rows of a weight while they are quantized.
struct Rows<'a> {
    /// What they should be, `[rows, n]`.
    target: &'a [f32],
    /// What they are, `[rows, n]`.
    values: &'a mut [f32],
    /// Their scales; one where it is shared with other rows.
    scales: &'a mut [f32],
    n: usize,
    scheme: WeightScheme,
    /// Whether scales must stay as they are.
    fixed: bool,
}

impl Rows<'_> {
    fn affine(&self, row: usize, col: usize) -> Affine {
        let index = if self.fixed { 0 } else { self.scheme.scale_index(row, col, self.n) };
        Affine::symmetric(self.scales[index], self.scheme.bits.range())
    }

    /// Each scale is that of least squared error, columns weighted by their importance.
    fn search(&mut self, importance: &[f32]) {
        let (n, group, range) = (self.n, self.scheme.group_len(self.n), self.scheme.bits.range());
        let groups =
            self.target.chunks_exact(n).flat_map(|row| row.chunks(group).zip(importance.chunks(group)));
        for ((values, weights), scale) in groups.zip(self.scales.iter_mut()) {
            let largest = squat_quant::affine::max_abs(values);
            if !(largest > 0.0 && largest.is_finite()) {
                continue;
            }
            let error = |scale: f32| weighted_error(values, weights, Affine::symmetric(scale, range));
            let mut best = (error(*scale), *scale);
            for step in 0..RATIOS {
                let ratio = 0.4 + 0.6 * step as f32 / (RATIOS - 1) as f32;
                let candidate = (ratio * largest / range.max.max(1) as f32).max(f32::MIN_POSITIVE);
                let found = error(candidate);
                if found < best.0 {
                    best = (found, candidate);
                }
            }
            *scale = best.1;
        }
    }

    /// Rounds to nearest.
    fn round(&mut self) {
        for at in 0..self.values.len() {
            self.values[at] = self.affine(at / self.n, at % self.n).fake_quantize(self.target[at]);
        }
    }

    /// Rounds column after column, from the last of `order` to the first; each makes up for the errors of those before:
    /// `w_k + sum_{j before k} (w_j - w^_j) L[j][k] / L[k][k]`.
    fn compensate(&mut self, factor: &Factor, order: &[usize]) {
        let n = self.n;
        let rows = self.target.len() / n;
        let mut errors = vec![0f32; ROWS * n];
        for from in (0..rows).step_by(ROWS) {
            let count = ROWS.min(rows - from);
            for k in (0..n).rev() {
                let (col, column) = (order[k], &factor.transposed[k * n + k..(k + 1) * n]);
                let inverse = 1.0 / column[0];
                for row in 0..count {
                    let at = (from + row) * n + col;
                    let made_up = dot(&errors[row * n + k + 1..(row + 1) * n], &column[1..]) * inverse;
                    let value = self.affine(from + row, col).fake_quantize(self.target[at] + made_up);
                    self.values[at] = value;
                    errors[row * n + k] = self.target[at] - value;
                }
            }
        }
    }

    /// One round of coordinate descent on `e H e^T`, `e` the error of a row: every scale in turn, then every code.
    fn refine(&mut self, h: &[f32]) {
        let (n, group) = (self.n, self.scheme.group_len(self.n));
        let rows = self.target.len() / n;
        let errors: Vec<f32> = self.target.iter().zip(&*self.values).map(|(t, v)| t - v).collect();
        let mut gradients = product((rows, n, n), (&errors, Layout::Normal), (h, Layout::Normal));
        for (row, gradient) in gradients.chunks_exact_mut(n).enumerate() {
            if !self.fixed {
                for from in (0..n).step_by(group) {
                    self.refine_scale(row, from..(from + group).min(n), h, gradient);
                }
            }
            for col in 0..n {
                let at = row * n + col;
                let now = self.values[at];
                let value = self.affine(row, col).fake_quantize(now + gradient[col] / h[col * n + col]);
                if value != now {
                    subtract(gradient, value - now, &h[col * n..(col + 1) * n]);
                    self.values[at] = value;
                }
            }
        }
    }

    /// Moves one scale to where the error is least with these codes.
    fn refine_scale(&mut self, row: usize, run: std::ops::Range<usize>, h: &[f32], gradient: &mut [f32]) {
        let n = self.n;
        let index = self.scheme.scale_index(row, run.start, n);
        let values = &mut self.values[row * n + run.start..row * n + run.end];
        // H v over the columns of the run, a column of H being a row of it.
        let mut moved = vec![0f32; n];
        for (&v, col) in values.iter().zip(run.clone()) {
            if v != 0.0 {
                subtract(&mut moved, -v, &h[col * n..(col + 1) * n]);
            }
        }
        let square = dot(values, &moved[run.clone()]);
        let slope = dot(values, &gradient[run]);
        let share = slope / square;
        // A scale that would leave its neighbourhood has codes of hardly any use; it stays.
        if !(square > 0.0 && share.is_finite() && share.abs() < 0.5) {
            return;
        }
        let old = self.scales[index];
        let new = old * (1.0 + share);
        let exact = new / old - 1.0;
        self.scales[index] = new;
        for v in values {
            *v = new * (*v / old).round_ties_even();
        }
        subtract(gradient, exact, &moved);
    }
}

crate::autograd::multiversion! {
    /// `x -= factor * y`.
    fn subtract(x: &mut [f32], factor: f32, y: &[f32]) {
        let y = &y[..x.len()];
        for i in 0..x.len() {
            x[i] -= factor * y[i];
        }
    }
}

crate::autograd::multiversion! {
    /// Squared error of the values under a quantizer, each weighted.
    fn weighted_error(values: &[f32], weights: &[f32], affine: Affine) -> f32 {
        let mut lanes = [0f32; 16];
        let n = values.len().min(weights.len());
        let whole = n / 16 * 16;
        for at in (0..whole).step_by(16) {
            let (x, w) = (&values[at..at + 16], &weights[at..at + 16]);
            for i in 0..16 {
                let e = affine.fake_quantize(x[i]) - x[i];
                lanes[i] += e * e * w[i];
            }
        }
        for at in whole..n {
            let e = affine.fake_quantize(values[at]) - values[at];
            lanes[at - whole] += e * e * weights[at];
        }
        lanes.iter().sum()
    }
}
