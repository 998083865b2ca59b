//! The targets of distillation: the logits of the teachers, whole, or only the likeliest of each row and the mass of
//! the rest.
//!
//! With the `k` likeliest tokens kept, the divergence is that between two distributions over `k + 1` outcomes: each of
//! these tokens, and any other. Of the others the student is told how likely they are together, not which of them.

use crate::autograd::multiversion;
use squat_kernels::Kernels;
use std::sync::Arc;

/// Logits of a block of rows, already averaged over teachers.
#[derive(Clone, Debug)]
pub enum TeacherLogits {
    /// `[tokens, vocabulary]`.
    Whole(Arc<Vec<f32>>),
    /// The likeliest tokens of each row.
    Top(Arc<TopTokens>),
}

/// The `k` likeliest tokens of each row at a temperature.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TopTokens {
    /// Tokens kept of each row.
    pub k: usize,
    /// Their ids `[tokens, k]`, ascending in a row.
    pub ids: Vec<u32>,
    /// Their log probabilities at the temperature `[tokens, k]`.
    pub log_probabilities: Vec<f32>,
}

impl TopTokens {
    /// For rows that are still to come; `k` is at most the vocabulary.
    pub fn new(k: usize) -> Self {
        Self { k, ..Self::default() }
    }

    /// Takes rows of `vocabulary` logits. Of equal logits the lower id comes first.
    pub fn extend(&mut self, logits: &[f32], vocabulary: usize, temperature: f32) {
        let mut order: Vec<u32> = Vec::new();
        let mut scaled = vec![0f32; vocabulary];
        for row in logits.chunks_exact(vocabulary) {
            for (scaled, x) in scaled.iter_mut().zip(row) {
                *scaled = x / temperature;
            }
            order.clear();
            order.extend(0..vocabulary as u32);
            if self.k < vocabulary {
                order.select_nth_unstable_by(self.k, |&a, &b| {
                    row[b as usize].total_cmp(&row[a as usize]).then(a.cmp(&b))
                });
                order.truncate(self.k);
                order.sort_unstable();
            }
            let log_z = log_sum(&scaled);
            self.ids.extend_from_slice(&order);
            self.log_probabilities
                .extend(order.iter().map(|&id| (f64::from(scaled[id as usize]) - log_z) as f32));
        }
    }

    /// Ids and log probabilities of a row.
    pub fn row(&self, index: usize) -> impl Iterator<Item = (usize, f32)> {
        let span = index * self.k..(index + 1) * self.k;
        let ids = self.ids[span.clone()].iter().map(|&id| id as usize);
        ids.zip(self.log_probabilities[span].iter().copied())
    }
}

/// Logarithm of the sum of exponentials.
fn log_sum(row: &[f32]) -> f64 {
    f64::from(row[0]) - Kernels::detect().log_softmax_at(row, 0)
}

multiversion! {
    fn add_scaled(x: &[f32], scale: f32, sum: &mut [f32]) {
        for (sum, x) in sum.iter_mut().zip(x) {
            *sum += scale * x;
        }
    }
}

/// Probability below which the student's rest counts as this much.
const LEAST_REST: f64 = 1e-7;

/// Adds `weight` times the gradient of the divergence to `grad` and returns the divergence of one row. `student` holds
/// exponentials of `logits * inv_t` whose sum is `sum` and which were divided by `exp(max)`.
pub(crate) fn distil_top(
    top: &TopTokens,
    index: usize,
    (logits, inv_t): (&[f32], f32),
    (student, max, sum): (&[f32], f32, f32),
    weight: f32,
    grad: &mut [f32],
) -> f64 {
    let log_z = f64::from(max) + f64::from(sum).ln();
    let (mut known_student, mut known_teacher, mut divergence) = (0f64, 0f64, 0f64);
    for (id, log_t) in top.row(index) {
        let t = f64::from(log_t).exp();
        known_teacher += t;
        known_student += f64::from(student[id]) / f64::from(sum);
        divergence += t * (f64::from(log_t) - f64::from(logits[id] * inv_t) + log_z);
    }
    let rest_teacher = (1.0 - known_teacher).max(0.0);
    let rest_student = (1.0 - known_student).max(LEAST_REST);
    let ratio = if top.k == student.len() { 0.0 } else { rest_teacher / rest_student };
    if ratio > 0.0 {
        divergence += rest_teacher * ratio.ln();
    }
    // Of the rest, a token's own share of the teacher's mass is its share of the student's: d KL / dz = p (1 - ratio).
    add_scaled(student, (f64::from(weight) * (1.0 - ratio) / f64::from(sum)) as f32, grad);
    for (id, log_t) in top.row(index) {
        let s = f64::from(student[id]) / f64::from(sum);
        grad[id] += (f64::from(weight) * (ratio * s - f64::from(log_t).exp())) as f32;
    }
    divergence
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::autograd::{FusedOp, Input};
    use crate::ops::gradient_check::{noise, worst_errors};
    use crate::ops::lm_loss::LmLoss;

    const VOCABULARY: usize = 19;

    fn logits(seed: u64) -> Vec<f32> {
        noise(3 * VOCABULARY, seed).iter().map(|x| x * 3.0).collect()
    }

    fn op(gamma: f32, t: f32, teacher: TeacherLogits) -> LmLoss {
        LmLoss::new([Some(2), None, Some(0)].into(), Some(teacher), gamma, t, Arc::default())
    }

    fn top(k: usize, t: f32, logits: &[f32]) -> TeacherLogits {
        let mut top = TopTokens::new(k);
        top.extend(logits, VOCABULARY, t);
        TeacherLogits::Top(Arc::new(top))
    }

    #[test]
    fn gradients_match_numeric_ones() {
        for (k, gamma, t) in [(1, 1.0, 1.0), (4, 0.5, 2.0), (VOCABULARY, 1.0, 1.5)] {
            let make = || -> Box<dyn FusedOp> { Box::new(op(gamma, t, top(k, t, &logits(2)))) };
            for error in worst_errors(&make, &[(logits(1), vec![3, VOCABULARY])], 1e-2) {
                assert!(error < 3e-3, "k {k}: {error:e}");
            }
        }
    }

    /// All tokens kept: the whole divergence. Fewer: never more, and the likeliest alone still say something.
    #[test]
    fn more_tokens_say_more() {
        let (student, teacher) = (logits(1), logits(2));
        let shape = [3, VOCABULARY];
        let run = |teacher: TeacherLogits| {
            let op = op(1.0, 2.0, teacher);
            let (loss, _) = op.forward(&[Input { data: &student, shape: &shape }]);
            let gradient = op.backward(&[], &[1.0], &[true]).remove(0).unwrap();
            (loss[0], gradient)
        };
        let (whole, gradient) = run(TeacherLogits::Whole(Arc::new(teacher.clone())));
        let mut last = 0.0;
        for k in 1..=VOCABULARY {
            let (loss, found) = run(top(k, 2.0, &teacher));
            assert!(loss >= last - 1e-5 && loss <= whole + 1e-5, "{k}: {last} {loss} {whole}");
            last = loss;
            if k == VOCABULARY {
                assert!((loss - whole).abs() < 1e-5);
                assert!(found.iter().zip(&gradient).all(|(a, b)| (a - b).abs() < 1e-6));
            }
        }
        assert!(last > 0.1);
    }

    #[test]
    fn the_likeliest_are_kept() {
        let mut top = TopTokens::new(2);
        top.extend(&[0.0, 3.0, 1.0, 3.0, 5.0, -1.0, 2.0, 2.0, 2.0, 2.0], 5, 1.0);
        assert_eq!(top.ids, [1, 4, 1, 2]);
        let z: f64 = [0.0f64, 3.0, 1.0, 3.0, 5.0].iter().map(|x| x.exp()).sum();
        assert!((f64::from(top.log_probabilities[1]) - (5.0 - z.ln())).abs() < 1e-6);
    }
}
