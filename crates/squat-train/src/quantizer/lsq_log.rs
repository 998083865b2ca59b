//! Learned step size in log space: the parameter is the logarithm of the scale, so that the scale stays positive
//! whatever the optimizer does, and a step of Adam changes it by a share of itself.
//!
//! The gradient of the scale is LSQ's (Esser et al. 2020, arXiv 1902.08153, equation 3) times the scale. Adam cancels
//! LSQ's factor `1 / sqrt(N q_max)`, so there is none.

use super::WeightQuantizer;
use crate::fake_quant::Weight;
use burn::tensor::Tensor;
use squat_quant::WeightScheme;
use squat_quant::math::exp;

/// `scale = exp(parameter)`.
#[derive(Debug)]
pub(super) struct LsqLog;

impl WeightQuantizer for LsqLog {
    fn name(&self) -> &'static str {
        "lsq-log"
    }

    fn parameters(&self, _weight: Weight<'_>, scales: &[f32]) -> Vec<f32> {
        scales.iter().map(|scale| scale.ln()).collect()
    }

    fn scales(&self, _weight: Weight<'_>, parameters: &[f32]) -> Vec<f32> {
        parameters.iter().map(|&log| exp(log)).collect()
    }

    fn backward(&self, weight: Weight<'_>, parameters: &[f32], grad: &mut [f32]) -> Vec<f32> {
        let scales = self.scales(weight, parameters);
        let mut out = vec![0f32; parameters.len()];
        // d/d log s = s d/ds.
        weight.straight_through(&scales, grad, |index, d_scale| out[index] += d_scale * scales[index]);
        out
    }

    fn scale_tensor(&self, _weight: &Tensor<2>, _scheme: WeightScheme, parameters: Tensor<2>) -> Tensor<2> {
        parameters.exp()
    }
}
