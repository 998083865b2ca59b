//! Cross-entropy and distillation over the vocabulary in one pass (METHOD.md section 4).
//!
//! `L = (1 - g) CE + g t^2 KL(softmax(z_T / t) || softmax(z_S / t))`, both **means per token**.

use crate::autograd::{FusedOp, Input, multiversion};
use crate::ops::teacher_logits::{TeacherLogits, distil_top};
use squat_quant::math::exp;
use std::sync::{Arc, Mutex};

/// Means per token of the two terms, left by the forward for the report.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct LossTerms {
    /// Cross-entropy with the targets, nats per token.
    pub cross_entropy: f64,
    /// Kullback-Leibler divergence from the teacher at temperature t (not yet multiplied by t^2), nats per token.
    pub divergence: f64,
}

/// `logits [tokens, vocabulary] -> [1, 1]`: the weighted sum of both terms.
#[derive(Debug)]
pub struct LmLoss {
    /// Next token of each position; `None` positions (padding) do not count.
    pub targets: Arc<[Option<u32>]>,
    /// Mean of the teachers' logits.
    pub teacher: Option<TeacherLogits>,
    /// Weight of the distillation term, `g` in 0..=1. Without a teacher it must be 0.
    pub gamma: f32,
    /// Temperature `t`.
    pub temperature: f32,
    /// Where the forward leaves the terms.
    pub terms: Arc<Mutex<LossTerms>>,
    /// Gradient with respect to the logits, kept between forward and backward.
    pub gradient: Mutex<Vec<f32>>,
}

impl LmLoss {
    /// An operation ready to run.
    pub fn new(
        targets: Arc<[Option<u32>]>,
        teacher: Option<TeacherLogits>,
        gamma: f32,
        temperature: f32,
        terms: Arc<Mutex<LossTerms>>,
    ) -> Self {
        Self { targets, teacher, gamma, temperature, terms, gradient: Mutex::new(Vec::new()) }
    }
}

#[inline(always)]
fn max_lanes(x: &[f32], scale: f32, lanes: &mut [f32; 16]) {
    for i in 0..x.len() {
        let v = x[i] * scale;
        lanes[i] = if v > lanes[i] { v } else { lanes[i] };
    }
}

#[inline(always)]
fn exp_lanes(x: &[f32], scale: f32, max: f32, out: &mut [f32], sums: &mut [f32; 16]) {
    for i in 0..x.len() {
        let e = exp(x[i] * scale - max);
        out[i] = e;
        sums[i] += e;
    }
}

multiversion! {
    /// `out = exp(x * scale - max(x * scale))`; returns (max of x * scale, sum of out).
    fn exponentials(x: &[f32], scale: f32, out: &mut [f32]) -> (f32, f32) {
        let (chunks, rest) = x.as_chunks::<16>();
        let mut lanes = [f32::NEG_INFINITY; 16];
        for chunk in chunks {
            max_lanes(chunk, scale, &mut lanes);
        }
        max_lanes(rest, scale, &mut lanes);
        let mut max = f32::NEG_INFINITY;
        for lane in lanes {
            max = max.max(lane);
        }
        let mut sums = [0f32; 16];
        let (out, out_rest) = out.as_chunks_mut::<16>();
        for (chunk, out) in chunks.iter().zip(out) {
            exp_lanes(chunk, scale, max, out, &mut sums);
        }
        exp_lanes(rest, scale, max, out_rest, &mut sums);
        (max, sums.iter().sum())
    }
}

/// Factors of a row's distillation, see [`distil_row`].
#[derive(Clone, Copy)]
struct Distil {
    student_inv: f32,
    teacher_inv: f32,
    inv_t: f32,
    offset: f32,
    weight: f32,
}

#[inline(always)]
fn distil_lanes(
    student: &[f32],
    teacher: &[f32],
    logits_s: &[f32],
    logits_t: &[f32],
    d: Distil,
    grad: &mut [f32],
    lanes: &mut [f32; 16],
) {
    for i in 0..student.len() {
        let (s, t) = (student[i] * d.student_inv, teacher[i] * d.teacher_inv);
        grad[i] += d.weight * (s - t);
        lanes[i] += t * ((logits_t[i] - logits_s[i]) * d.inv_t + d.offset);
    }
}

multiversion! {
    /// Adds `weight * (p_S - p_T)` to `grad` and returns the divergence KL(p_T || p_S); `student` and `teacher` hold
    /// unnormalised exponentials on entry. All slices are as long as `student`.
    fn distil_row(
        student: &[f32], teacher: &[f32], logits_s: &[f32], logits_t: &[f32], d: Distil, grad: &mut [f32],
    ) -> f32 {
        let mut lanes = [0f32; 16];
        let (s, s_rest) = student.as_chunks::<16>();
        let (t, t_rest) = teacher.as_chunks::<16>();
        let (ls, ls_rest) = logits_s.as_chunks::<16>();
        let (lt, lt_rest) = logits_t.as_chunks::<16>();
        let (g, g_rest) = grad.as_chunks_mut::<16>();
        for i in 0..s.len() {
            distil_lanes(&s[i], &t[i], &ls[i], &lt[i], d, &mut g[i], &mut lanes);
        }
        distil_lanes(s_rest, t_rest, ls_rest, lt_rest, d, g_rest, &mut lanes);
        lanes.iter().sum()
    }
}

multiversion! {
    fn scaled_copy(x: &[f32], scale: f32, out: &mut [f32]) {
        for (out, x) in out.iter_mut().zip(x) {
            *out = x * scale;
        }
    }
}

multiversion! {
    fn scale_all(x: &mut [f32], scale: f32) {
        for x in x {
            *x *= scale;
        }
    }
}

impl FusedOp for LmLoss {
    fn name(&self) -> &'static str {
        "loss"
    }

    fn forward(&self, inputs: &[Input<'_>]) -> (Vec<f32>, Vec<usize>) {
        let (logits, vocabulary) = (inputs[0].data, inputs[0].shape[1]);
        let counted = self.targets.iter().flatten().count().max(1) as f32;
        let mut gradient = vec![0f32; logits.len()];
        let (mut student, mut teacher_e) = (vec![0f32; vocabulary], vec![0f32; vocabulary]);
        let (mut cross_entropy, mut divergence) = (0f64, 0f64);
        let (gamma, t) = (self.gamma, self.temperature);
        for (index, target) in self.targets.iter().enumerate() {
            let Some(target) = *target else { continue };
            let span = index * vocabulary..(index + 1) * vocabulary;
            let (row, grad) = (&logits[span.clone()], &mut gradient[span.clone()]);
            let (max, sum) = exponentials(row, 1.0, &mut student);
            cross_entropy += f64::from(max) + f64::from(sum).ln() - f64::from(row[target as usize]);
            scaled_copy(&student, (1.0 - gamma) / (counted * sum), grad);
            grad[target as usize] -= (1.0 - gamma) / counted;
            if let Some(TeacherLogits::Top(top)) = &self.teacher {
                let (max, sum) = exponentials(row, 1.0 / t, &mut student);
                let weight = gamma * t / counted;
                divergence += distil_top(top, index, (row, 1.0 / t), (&student, max, sum), weight, grad);
            }
            if let Some(TeacherLogits::Whole(teacher)) = &self.teacher {
                let teacher_row = &teacher[span];
                let (max_s, sum_s) = exponentials(row, 1.0 / t, &mut student);
                let (max_t, sum_t) = exponentials(teacher_row, 1.0 / t, &mut teacher_e);
                // log p_T - log p_S = (z_T - z_S) / t + (log Z_S - log Z_T).
                let offset = (f64::from(max_s) + f64::from(sum_s).ln()
                    - f64::from(max_t)
                    - f64::from(sum_t).ln()) as f32;
                // d (g t^2 KL) / dz_S = g t (p_S - p_T).
                let d = Distil {
                    student_inv: 1.0 / sum_s,
                    teacher_inv: 1.0 / sum_t,
                    inv_t: 1.0 / t,
                    offset,
                    weight: gamma * t / counted,
                };
                divergence += f64::from(distil_row(&student, &teacher_e, row, teacher_row, d, grad));
            }
        }
        let terms = LossTerms {
            cross_entropy: cross_entropy / f64::from(counted),
            divergence: divergence / f64::from(counted),
        };
        *self.terms.lock().unwrap_or_else(|e| e.into_inner()) = terms;
        *self.gradient.lock().unwrap_or_else(|e| e.into_inner()) = gradient;
        let loss = f64::from(1.0 - gamma) * terms.cross_entropy + f64::from(gamma * t * t) * terms.divergence;
        (vec![loss as f32], vec![1, 1])
    }

    fn backward(&self, _inputs: &[Input<'_>], grad: &[f32], _needed: &[bool]) -> Vec<Option<Vec<f32>>> {
        let mut gradient = std::mem::take(&mut *self.gradient.lock().unwrap_or_else(|e| e.into_inner()));
        if grad[0] != 1.0 {
            scale_all(&mut gradient, grad[0]);
        }
        vec![Some(gradient)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::gradient_check::{noise, worst_errors};

    fn op(gamma: f32, temperature: f32, teacher: Option<Vec<f32>>) -> LmLoss {
        LmLoss::new(
            [Some(2), None, Some(0)].into(),
            teacher.map(|logits| TeacherLogits::Whole(Arc::new(logits))),
            gamma,
            temperature,
            Arc::default(),
        )
    }

    #[test]
    fn gradients_match_numeric_ones() {
        let logits: Vec<f32> = noise(3 * 19, 1).iter().map(|x| x * 3.0).collect();
        let teacher: Vec<f32> = noise(3 * 19, 2).iter().map(|x| x * 3.0).collect();
        for (gamma, t, teacher) in
            [(0.0, 1.0, None), (0.5, 2.0, Some(teacher.clone())), (1.0, 1.5, Some(teacher.clone()))]
        {
            let make = || -> Box<dyn FusedOp> { Box::new(op(gamma, t, teacher.clone())) };
            for error in worst_errors(&make, &[(logits.clone(), vec![3, 19])], 1e-2) {
                assert!(error < 3e-3, "gamma {gamma}: {error:e}");
            }
        }
    }

    #[test]
    fn both_terms_are_means_per_token() {
        let logits = noise(3 * 19, 3);
        let shape = [3, 19];
        let input = [Input { data: &logits, shape: &shape }];
        let one = op(0.5, 2.0, Some(noise(3 * 19, 4)));
        let (loss, _) = one.forward(&input);
        let terms = *one.terms.lock().unwrap();
        // Twice the batch, the same tokens: nothing changes.
        let (logits2, teacher2) = (logits.repeat(2), noise(3 * 19, 4).repeat(2));
        let two = LmLoss::new(
            [Some(2), None, Some(0), Some(2), None, Some(0)].into(),
            Some(TeacherLogits::Whole(Arc::new(teacher2))),
            0.5,
            2.0,
            Arc::default(),
        );
        let shape2 = [6, 19];
        let (loss2, _) = two.forward(&[Input { data: &logits2, shape: &shape2 }]);
        assert!((loss[0] - loss2[0]).abs() < 1e-6);
        assert!((f64::from(loss[0]) - 0.5 * terms.cross_entropy - 0.5 * 4.0 * terms.divergence).abs() < 1e-6);
    }

    #[test]
    fn an_identical_teacher_gives_zero_divergence_and_no_gradient() {
        let logits = noise(3 * 19, 5);
        let same = op(1.0, 2.0, Some(logits.clone()));
        let shape = [3, 19];
        let input = [Input { data: &logits, shape: &shape }];
        let (loss, _) = same.forward(&input);
        assert!(loss[0].abs() < 1e-6);
        assert!(same.backward(&input, &[1.0], &[true])[0].as_ref().unwrap().iter().all(|g| g.abs() < 1e-7));
    }
}
