//! Cross-entropy and distillation as tensor expressions.

use super::{TensorForm, int_tensor};
use crate::ops::lm_loss::{LmLoss, LossTerms};
use crate::ops::teacher_logits::{TeacherLogits, TopTokens};
use burn::tensor::{Tensor, TensorData, activation};

impl TensorForm for LmLoss {
    fn tensor_form(&self, mut inputs: Vec<Tensor<2>>) -> Tensor<2> {
        let logits = inputs.remove(0);
        let device = logits.device();
        let [tokens, vocabulary] = logits.dims();
        let counted = self.targets.iter().flatten().count().max(1) as f32;
        let weights: Vec<f32> =
            self.targets.iter().map(|t| if t.is_some() { 1.0 / counted } else { 0.0 }).collect();
        let weights = Tensor::<2>::from_data(TensorData::new(weights, [tokens, 1]), &device);
        let targets: Vec<u32> = self.targets.iter().map(|t| t.unwrap_or(0)).collect();
        let targets = int_tensor(&targets, &device).reshape([tokens, 1]);
        let log_p = activation::log_softmax(logits.clone(), 1);
        let cross_entropy = (log_p.gather(1, targets).neg() * weights.clone()).sum().reshape([1, 1]);
        let scalar = |x: &Tensor<2>| f64::from(x.clone().into_scalar::<f32>());
        let mut terms = LossTerms { cross_entropy: scalar(&cross_entropy), divergence: 0.0 };
        let mut loss = cross_entropy * (1.0 - self.gamma);
        if let Some(teacher) = &self.teacher {
            let t = self.temperature;
            let student = activation::log_softmax(logits / t, 1);
            let rows = match teacher {
                TeacherLogits::Whole(teacher) => {
                    let teacher = TensorData::new(teacher.as_ref().clone(), [tokens, vocabulary]);
                    let teacher = activation::log_softmax(Tensor::<2>::from_data(teacher, &device) / t, 1);
                    (teacher.clone().exp() * (teacher - student)).sum_dim(1)
                }
                TeacherLogits::Top(top) => top_rows(top, student),
            };
            let divergence = (rows * weights).sum().reshape([1, 1]);
            terms.divergence = scalar(&divergence);
            loss = loss + divergence * (self.gamma * t * t);
        }
        *self.terms.lock().unwrap_or_else(|e| e.into_inner()) = terms;
        loss
    }
}

/// Divergence of each row over the kept tokens and the rest, `[tokens, 1]`; `student` are log probabilities.
fn top_rows(top: &TopTokens, student: Tensor<2>) -> Tensor<2> {
    let device = student.device();
    let [tokens, vocabulary] = student.dims();
    let mut probabilities = vec![0f32; tokens * vocabulary];
    let mut others = vec![1f32; tokens * vocabulary];
    let (mut own, mut rest) = (vec![0f32; tokens], vec![0f32; tokens]);
    for row in 0..tokens {
        let (mut known, mut negative_entropy) = (0f64, 0f64);
        for (id, log_t) in top.row(row) {
            let t = f64::from(log_t).exp();
            probabilities[row * vocabulary + id] = t as f32;
            others[row * vocabulary + id] = 0.0;
            known += t;
            negative_entropy += t * f64::from(log_t);
        }
        let left = if top.k == vocabulary { 0.0 } else { (1.0 - known).max(0.0) };
        rest[row] = left as f32;
        own[row] = (negative_entropy + if left > 0.0 { left * left.ln() } else { 0.0 }) as f32;
    }
    let tensor = |values: Vec<f32>, columns| {
        Tensor::<2>::from_data(TensorData::new(values, [tokens, columns]), &device)
    };
    let known = (student.clone() * tensor(probabilities, vocabulary)).sum_dim(1);
    let left = (student.exp() * tensor(others, vocabulary)).sum_dim(1).clamp_min(1e-7).log();
    tensor(own, 1) - known - left * tensor(rest, 1)
}
