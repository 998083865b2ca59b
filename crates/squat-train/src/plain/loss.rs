//! Cross-entropy and distillation as tensor expressions.

use super::{PlainForm, int_tensor};
use crate::ops::lm_loss::{LmLoss, LossTerms};
use burn::tensor::{Tensor, TensorData, activation};

impl PlainForm for LmLoss {
    fn plain(&self, mut inputs: Vec<Tensor<2>>) -> Tensor<2> {
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
            let teacher = TensorData::new(teacher.as_ref().clone(), [tokens, vocabulary]);
            let teacher = activation::log_softmax(Tensor::<2>::from_data(teacher, &device) / t, 1);
            let student = activation::log_softmax(logits / t, 1);
            let rows = (teacher.clone().exp() * (teacher - student)).sum_dim(1);
            let divergence = (rows * weights).sum().reshape([1, 1]);
            terms.divergence = scalar(&divergence);
            loss = loss + divergence * (self.gamma * t * t);
        }
        *self.terms.lock().unwrap_or_else(|e| e.into_inner()) = terms;
        loss
    }
}
