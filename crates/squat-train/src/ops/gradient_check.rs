//! Numerical check of hand-written gradients.

use crate::autograd::{FusedOp, Input};

/// Values in about [-1, 1], the same for the same seed.
pub(crate) fn noise(len: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    (0..len)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
        })
        .collect()
}

/// Largest difference between the analytic and the central-difference gradient of `sum(upstream * op(inputs))`,
/// relative to the largest gradient entry, for each input.
pub(crate) fn worst_errors(
    make: &dyn Fn() -> Box<dyn FusedOp>,
    inputs: &[(Vec<f32>, Vec<usize>)],
    step: f32,
) -> Vec<f64> {
    fn views(inputs: &[(Vec<f32>, Vec<usize>)]) -> Vec<Input<'_>> {
        inputs.iter().map(|(data, shape)| Input { data, shape }).collect()
    }
    let op = make();
    let (output, _) = op.forward(&views(inputs));
    let upstream = noise(output.len(), 99);
    let gradients = op.backward(&views(inputs), &upstream, &vec![true; inputs.len()]);
    let value = |inputs: &[(Vec<f32>, Vec<usize>)]| -> f64 {
        let (output, _) = make().forward(&views(inputs));
        output.iter().zip(&upstream).map(|(&y, &g)| f64::from(y) * f64::from(g)).sum()
    };
    gradients
        .into_iter()
        .enumerate()
        .map(|(which, gradient)| {
            let gradient = gradient.expect("asked for every gradient");
            assert_eq!(gradient.len(), inputs[which].0.len());
            let mut moved = inputs.to_vec();
            let (mut worst, mut largest) = (0f64, 1e-3f64);
            for i in 0..gradient.len() {
                let x = inputs[which].0[i];
                moved[which].0[i] = x + step;
                let up = value(&moved);
                moved[which].0[i] = x - step;
                let down = value(&moved);
                moved[which].0[i] = x;
                let numeric = (up - down) / (2.0 * f64::from(step));
                worst = worst.max((numeric - f64::from(gradient[i])).abs());
                largest = largest.max(numeric.abs());
            }
            worst / largest
        })
        .collect()
}
