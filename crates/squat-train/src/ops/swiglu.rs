//! SwiGLU's product `silu(gate) * up` with the engine's function, and its backward.

use crate::autograd::{FusedOp, Input, multiversion};
use squat_kernels::Kernels;
use squat_quant::math::exp;

/// `gate [tokens, n] x up [tokens, n] -> [tokens, n]`.
#[derive(Clone, Copy, Debug)]
pub struct SwiGlu;

multiversion! {
    fn backward_all(gate: &[f32], up: &[f32], grad: &[f32], dgate: &mut [f32], dup: &mut [f32]) {
        for i in 0..gate.len() {
            let sigmoid = 1.0 / (1.0 + exp(-gate[i]));
            let silu = gate[i] * sigmoid;
            dup[i] = grad[i] * silu;
            // d silu / dg = sigmoid (1 + g (1 - sigmoid)).
            dgate[i] = grad[i] * up[i] * (sigmoid * (1.0 + gate[i] * (1.0 - sigmoid)));
        }
    }
}

impl FusedOp for SwiGlu {
    fn name(&self) -> &'static str {
        "swiglu"
    }

    fn forward(&self, inputs: &[Input<'_>]) -> (Vec<f32>, Vec<usize>) {
        let mut out = vec![0f32; inputs[0].data.len()];
        Kernels::detect().silu_mul(inputs[0].data, inputs[1].data, &mut out);
        (out, inputs[0].shape.to_vec())
    }

    fn backward(&self, inputs: &[Input<'_>], grad: &[f32], _needed: &[bool]) -> Vec<Option<Vec<f32>>> {
        let (gate, up) = (inputs[0].data, inputs[1].data);
        let n = gate.len();
        let (mut dgate, mut dup) = (vec![0f32; n], vec![0f32; n]);
        // Slices of one length let the compiler drop the bounds checks.
        backward_all(gate, &up[..n], &grad[..n], &mut dgate, &mut dup);
        vec![Some(dgate), Some(dup)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::gradient_check::{noise, worst_errors};

    #[test]
    fn gradients_match_numeric_ones() {
        let scaled: Vec<f32> = noise(40, 1).iter().map(|x| x * 4.0).collect();
        let inputs = [(scaled, vec![2, 20]), (noise(40, 2), vec![2, 20])];
        let make = || -> Box<dyn FusedOp> { Box::new(SwiGlu) };
        for error in worst_errors(&make, &inputs, 1e-2) {
            assert!(error < 2e-3, "{error:e}");
        }
    }
}
