//! RMSNorm with the engine's row function, and its backward.

use crate::autograd::{FusedOp, Input, multiversion};
use squat_kernels::Kernels;

/// `[tokens, hidden] x gain [1, hidden] -> [tokens, hidden]`: `x / sqrt(mean(x^2) + eps) * gain`.
#[derive(Clone, Copy, Debug)]
pub struct RmsNorm {
    /// Added to the mean square.
    pub eps: f32,
}

multiversion! {
    /// Backward of one row: writes dx, adds to dgain.
    fn row_backward(x: &[f32], gain: &[f32], grad: &[f32], inv: f32, dx: &mut [f32], dgain: &mut [f32]) {
        let n = x.len();
        // Slices of one length let the compiler drop the bounds checks.
        let (gain, grad, dx, dgain) = (&gain[..n], &grad[..n], &mut dx[..n], &mut dgain[..n]);
        let mut lanes = [0f32; 16];
        let whole = n / 16 * 16;
        for at in (0..whole).step_by(16) {
            let (grad, gain, x) = (&grad[at..at + 16], &gain[at..at + 16], &x[at..at + 16]);
            for i in 0..16 {
                lanes[i] += grad[i] * gain[i] * x[i];
            }
        }
        for at in whole..n {
            lanes[at - whole] += grad[at] * gain[at] * x[at];
        }
        // y = x r g with r = (mean x^2 + eps)^(-1/2), dr/dx = -r^3 x / n.
        let shared = lanes.iter().sum::<f32>() * inv * inv * inv / n as f32;
        for i in 0..n {
            dx[i] = grad[i] * gain[i] * inv - x[i] * shared;
            dgain[i] += grad[i] * x[i] * inv;
        }
    }
}

impl FusedOp for RmsNorm {
    fn name(&self) -> &'static str {
        "rms_norm"
    }

    fn forward(&self, inputs: &[Input<'_>]) -> (Vec<f32>, Vec<usize>) {
        let (x, gain) = (inputs[0], inputs[1].data);
        let mut out = vec![0f32; x.data.len()];
        for (x, out) in x.data.chunks_exact(gain.len()).zip(out.chunks_exact_mut(gain.len())) {
            Kernels::detect().rms_norm(x, gain, self.eps, out);
        }
        (out, x.shape.to_vec())
    }

    fn backward(&self, inputs: &[Input<'_>], grad: &[f32], _needed: &[bool]) -> Vec<Option<Vec<f32>>> {
        let (x, gain) = (inputs[0].data, inputs[1].data);
        let n = gain.len();
        let (mut dx, mut dgain) = (vec![0f32; x.len()], vec![0f32; n]);
        for ((x, grad), dx) in x.chunks_exact(n).zip(grad.chunks_exact(n)).zip(dx.chunks_exact_mut(n)) {
            let inv = 1.0 / (Kernels::detect().sum_squares(x) / n as f32 + self.eps).sqrt();
            row_backward(x, gain, grad, inv, dx, &mut dgain);
        }
        vec![Some(dx), Some(dgain)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::gradient_check::{noise, worst_errors};

    #[test]
    fn gradients_match_numeric_ones() {
        let inputs = [(noise(3 * 21, 1), vec![3, 21]), (noise(21, 2), vec![1, 21])];
        let make = || -> Box<dyn FusedOp> { Box::new(RmsNorm { eps: 1e-5 }) };
        for error in worst_errors(&make, &inputs, 1e-2) {
            assert!(error < 2e-3, "{error:e}");
        }
    }
}
