//! Learned step size quantization as published (Esser et al. 2020, arXiv 1902.08153): the scale itself is the parameter,
//! and its gradient (equation 3) is multiplied by `1 / sqrt(N q_max)` (section 2.2), where N weights share the scale.
//!
//! The publication leaves open what happens when a step would make the scale negative; here it stops at [`SMALLEST`].
//! Scales are small numbers, so `scale_learning_rate` has to be smaller than for `lsq-log`, about as much as the scales.

use super::WeightQuantizer;
use crate::fake_quant::Weight;
use burn::tensor::{Tensor, TensorData};
use squat_quant::{Granularity, WeightScheme};

/// Smallest scale.
const SMALLEST: f32 = 1e-8;

/// `scale = parameter`.
#[derive(Debug)]
pub(super) struct Lsq;

/// The published factor on the gradient of a scale that `count` weights share.
fn gradient_factor(count: usize, scheme: WeightScheme) -> f32 {
    1.0 / (count as f32 * scheme.bits.range().max as f32).sqrt()
}

impl WeightQuantizer for Lsq {
    fn name(&self) -> &'static str {
        "lsq"
    }

    fn parameters(&self, _weight: Weight<'_>, scales: &[f32]) -> Vec<f32> {
        scales.to_vec()
    }

    fn scales(&self, _weight: Weight<'_>, parameters: &[f32]) -> Vec<f32> {
        parameters.to_vec()
    }

    fn backward(&self, weight: Weight<'_>, parameters: &[f32], grad: &mut [f32]) -> Vec<f32> {
        let mut out = vec![0f32; parameters.len()];
        weight.straight_through(parameters, grad, |index, d_scale| out[index] += d_scale);
        for (d, count) in out.iter_mut().zip(weight.weights_per_scale()) {
            *d *= gradient_factor(count, weight.scheme);
        }
        out
    }

    fn scale_tensor(&self, weight: &Tensor<2>, scheme: WeightScheme, parameters: Tensor<2>) -> Tensor<2> {
        let [rows, cols] = weight.dims();
        let factors: Vec<f32> = match scheme.granularity {
            Granularity::PerTensor => vec![gradient_factor(rows * cols, scheme)],
            Granularity::PerChannel => vec![gradient_factor(cols, scheme); rows],
            Granularity::PerGroup(_) => {
                let group = scheme.group_len(cols);
                let row = (0..cols).step_by(group).map(|at| gradient_factor(group.min(cols - at), scheme));
                row.cycle().take(scheme.num_scales(rows, cols)).collect()
            }
        };
        let factors = TensorData::new(factors, parameters.dims());
        let scaled = parameters.clone() * Tensor::from_data(factors, &parameters.device());
        // The value of the parameter, with the gradient of the scaled one.
        parameters.detach() + (scaled.clone() - scaled.detach())
    }

    fn project(&self, parameters: &mut [f32]) {
        // NaN stays NaN, so that it is reported.
        for scale in parameters.iter_mut().filter(|scale| **scale < SMALLEST) {
            *scale = SMALLEST;
        }
    }

    fn stores_scales(&self) -> bool {
        true
    }
}
