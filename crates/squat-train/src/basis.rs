//! The basis in which the optimizer sees a weight that was rewritten for the transforms of a plan.
//!
//! Adam divides each element of a gradient by its own size, so its steps depend on the basis. In a transformed residual stream
//! every channel holds a share of the few that are very large in the original (the first token's are hundreds of times larger
//! than others'), and the weights of all channels cancel them together: steps of one size for all elements disturb that, and
//! the loss of SmolLM2-135M grows sixfold within four steps. In the basis of the original the large channels have elements of
//! their own, with small gains, and steps are as safe as they were there.

use crate::parameters::Parameters;
use squat_kernels::Kernels;
use squat_model::{LinearKind, ModelSpec, QuantPlan};
use squat_quant::Transform;
use std::collections::HashMap;

/// From the weight `W` of the original to the stored `O (W diag(gain) I)`, `I` and `O` being transforms of inputs and outputs.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Basis {
    /// A factor for each input; none is 1.
    pub gain: Vec<f32>,
    /// Of the inputs, in this order.
    pub inputs: Vec<Transform>,
    /// Of the outputs.
    pub outputs: Transform,
}

/// Bases by the names of parameters; others are seen as they are stored.
pub type Bases = HashMap<String, Basis>;

impl Basis {
    /// From a gradient of the stored weight, rows of `cols` values, to one of the original weight, in place.
    pub(crate) fn enter(&self, values: &mut [f32], cols: usize) {
        transform_outputs(values, cols, self.outputs);
        for &transform in self.inputs.iter().rev() {
            Kernels::detect().transform(values, cols, transform);
        }
        self.scale(values);
    }

    /// From a step of the original weight to one of the stored weight, in place.
    pub(crate) fn leave(&self, values: &mut [f32], cols: usize) {
        self.scale(values);
        for &transform in &self.inputs {
            Kernels::detect().transform(values, cols, transform);
        }
        transform_outputs(values, cols, self.outputs);
    }

    fn scale(&self, values: &mut [f32]) {
        if !self.gain.is_empty() {
            for row in values.chunks_exact_mut(self.gain.len()) {
                row.iter_mut().zip(&self.gain).for_each(|(x, gain)| *x *= gain);
            }
        }
    }
}

/// Transforms the columns of a matrix of rows of `cols` values, in place. A column is an interleaved block of the whole.
pub(crate) fn transform_outputs(values: &mut [f32], cols: usize, transform: Transform) {
    let size = match transform {
        Transform::Hadamard(size) => size,
        Transform::Interleaved(_) | Transform::None | Transform::Largest => return,
    };
    let block = size * cols;
    Kernels::detect().transform(values, block, Transform::Interleaved(size));
}

/// The bases of a model whose weights were rewritten for `plan` ([`crate::model::transform_weights`], and
/// [`crate::model::transform_values`] where the residual stream is transformed), seen as those of `original`, whose gains are
/// taken relative to their root mean square.
pub fn bases_of(original: &Parameters, spec: &ModelSpec, plan: &QuantPlan) -> Bases {
    let mut bases = Bases::new();
    if plan.residual.is_none() {
        return bases;
    }
    let heads = Transform::Largest.for_width(spec.head_dim);
    let table = Basis { inputs: vec![plan.residual], ..Basis::default() };
    bases.insert(ModelSpec::EMBEDDING.to_owned(), table.clone());
    if !spec.tie_word_embeddings {
        bases.insert(ModelSpec::HEAD.to_owned(), table);
    }
    for layer in 0..spec.num_hidden_layers {
        for &kind in spec.linears() {
            let reads = |norm: String| (relative(original, &norm), vec![plan.residual]);
            let (gain, mut inputs) = match kind {
                LinearKind::Q | LinearKind::K | LinearKind::V => reads(spec.attn_norm_name(layer)),
                LinearKind::Gate | LinearKind::Up => reads(spec.mlp_norm_name(layer)),
                LinearKind::O => (Vec::new(), vec![heads]),
                LinearKind::Down => (Vec::new(), Vec::new()),
            };
            inputs.push(plan.transform(kind.input_point()));
            let outputs = match kind {
                LinearKind::V => heads,
                LinearKind::O | LinearKind::Down => plan.residual,
                LinearKind::Q | LinearKind::K | LinearKind::Gate | LinearKind::Up => Transform::None,
            };
            bases.insert(spec.linear_name(layer, kind), Basis { gain, inputs, outputs });
        }
    }
    bases
}

/// The gains of a norm over their root mean square; none where that is no number to divide by.
fn relative(original: &Parameters, norm: &str) -> Vec<f32> {
    let Some(gain) = original.get(norm).map(|p| &p.values) else { return Vec::new() };
    let mean = gain.iter().map(|g| f64::from(*g).powi(2)).sum::<f64>() / gain.len().max(1) as f64;
    let root = mean.sqrt() as f32;
    if !(root > 0.0 && root.is_finite()) {
        return Vec::new();
    }
    gain.iter().map(|g| g / root).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::gradient_check::noise;

    #[test]
    fn leaving_is_the_transpose_of_entering() {
        // <enter(a), b> = <a, leave(b)>, as for any linear map and its transpose.
        let (rows, cols) = (12, 24);
        let basis = Basis {
            gain: noise(cols, 3),
            inputs: vec![Transform::Hadamard(24), Transform::Interleaved(8)],
            outputs: Transform::Hadamard(4),
        };
        let (a, b) = (noise(rows * cols, 1), noise(rows * cols, 2));
        let dot =
            |x: &[f32], y: &[f32]| x.iter().zip(y).map(|(x, y)| f64::from(*x) * f64::from(*y)).sum::<f64>();
        let (mut entered, mut left) = (a.clone(), b.clone());
        basis.enter(&mut entered, cols);
        basis.leave(&mut left, cols);
        let (one, other) = (dot(&entered, &b), dot(&a, &left));
        assert!((one - other).abs() < 1e-5 * dot(&a, &a), "{one} {other}");
        assert!((one - dot(&a, &b)).abs() > 1e-3, "something was transformed");
    }

    #[test]
    fn outputs_are_columns() {
        let (rows, cols) = (24, 5);
        let values = noise(rows * cols, 1);
        let mut fast = values.clone();
        transform_outputs(&mut fast, cols, Transform::Hadamard(12));
        for col in 0..cols {
            let mut column: Vec<f32> = values[col..].iter().step_by(cols).copied().collect();
            Transform::Hadamard(12).apply(&mut column);
            let found: Vec<f32> = fast[col..].iter().step_by(cols).copied().collect();
            assert_eq!(found, column);
        }
    }
}
