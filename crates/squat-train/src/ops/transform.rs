//! A transform of rows as an operation of its own: of the residual stream, which it enters and leaves.

use crate::autograd::{FusedOp, Input};
use squat_kernels::Kernels;
use squat_quant::Transform;

/// `x [tokens, n] -> T(x)`. Its matrix is symmetric and orthogonal: a second one undoes it, and it is its own backward.
#[derive(Clone, Copy, Debug)]
pub struct TransformRows {
    /// What is applied to each row.
    pub transform: Transform,
}

impl TransformRows {
    fn of(self, x: &[f32], cols: usize) -> Vec<f32> {
        let mut rows = x.to_vec();
        Kernels::detect().transform(&mut rows, cols, self.transform);
        rows
    }
}

impl FusedOp for TransformRows {
    fn name(&self) -> &'static str {
        "transform"
    }

    fn forward(&self, inputs: &[Input<'_>]) -> (Vec<f32>, Vec<usize>) {
        (self.of(inputs[0].data, inputs[0].shape[1]), inputs[0].shape.to_vec())
    }

    fn backward(&self, inputs: &[Input<'_>], grad: &[f32], _needed: &[bool]) -> Vec<Option<Vec<f32>>> {
        vec![Some(self.of(grad, inputs[0].shape[1]))]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::gradient_check::{noise, worst_errors};

    #[test]
    fn gradients_match_numeric_ones() {
        let inputs = [(noise(48, 1), vec![2, 24])];
        for size in [8, 12, 24] {
            let transform = Transform::hadamard(size).unwrap();
            let make = || -> Box<dyn FusedOp> { Box::new(TransformRows { transform }) };
            for error in worst_errors(&make, &inputs, 1e-2) {
                assert!(error < 2e-3, "{size}: {error:e}");
            }
        }
    }
}
