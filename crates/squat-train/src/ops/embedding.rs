//! Token embedding, fake-quantized row by row.

use crate::autograd::{FusedOp, Input};
use crate::fake_quant::Weight;
use crate::quantizer::WeightQuant;
use std::sync::Arc;

/// `table [vocabulary, hidden] (x parameters of the quantizer [1, vocabulary]) -> [tokens, hidden]`.
///
/// Only the rows that the batch names are quantized.
#[derive(Clone, Debug)]
pub struct Embedding {
    /// Token ids, all below the vocabulary.
    pub ids: Arc<[u32]>,
    /// Quantizer of the table, if any: one scale for each row.
    pub weight: Option<WeightQuant>,
}

impl FusedOp for Embedding {
    fn name(&self) -> &'static str {
        "embedding"
    }

    fn forward(&self, inputs: &[Input<'_>]) -> (Vec<f32>, Vec<usize>) {
        let (table, hidden) = (inputs[0].data, inputs[0].shape[1]);
        let mut out = Vec::with_capacity(self.ids.len() * hidden);
        for &id in self.ids.iter() {
            let at = id as usize;
            let row = &table[at * hidden..(at + 1) * hidden];
            match self.weight {
                None => out.extend_from_slice(row),
                Some(quant) => {
                    let (row, scales) = quant.of(row, hidden, &inputs[1].data[at..=at]);
                    out.extend(row.quantize(&scales).dequantize());
                }
            }
        }
        (out, vec![self.ids.len(), hidden])
    }

    fn backward(&self, inputs: &[Input<'_>], grad: &[f32], _needed: &[bool]) -> Vec<Option<Vec<f32>>> {
        let (table, hidden) = (inputs[0].data, inputs[0].shape[1]);
        let mut dtable = vec![0f32; table.len()];
        let mut dparameters = self.weight.map(|_| vec![0f32; inputs[1].data.len()]);
        let mut named: Vec<usize> = Vec::with_capacity(self.ids.len());
        for (&id, grad) in self.ids.iter().zip(grad.chunks_exact(hidden)) {
            let at = id as usize;
            named.push(at);
            for (d, g) in dtable[at * hidden..(at + 1) * hidden].iter_mut().zip(grad) {
                *d += g;
            }
        }
        if let (Some(WeightQuant { scheme, quantizer }), Some(dparameters)) = (self.weight, &mut dparameters)
        {
            named.sort_unstable();
            named.dedup();
            for at in named {
                let span = at * hidden..(at + 1) * hidden;
                let row = Weight { values: &table[span.clone()], cols: hidden, scheme };
                let d = quantizer.backward(row, &inputs[1].data[at..=at], &mut dtable[span]);
                dparameters[at] = d[0];
            }
        }
        std::iter::once(Some(dtable)).chain(dparameters.map(Some)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::gradient_check::{noise, worst_errors};
    use crate::quantizer::default_quantizer;
    use squat_quant::{WeightBits, WeightScheme};

    #[test]
    fn gradients_match_numeric_ones() {
        let inputs = [(noise(5 * 6, 1), vec![5, 6])];
        let make = || -> Box<dyn FusedOp> { Box::new(Embedding { ids: [3, 0, 3, 1].into(), weight: None }) };
        for error in worst_errors(&make, &inputs, 1e-2) {
            assert!(error < 1e-3, "{error:e}");
        }
    }

    #[test]
    fn quantized_rows_pass_the_gradient_through_and_learn_their_steps() {
        let (table, logs) = (noise(4 * 6, 2), vec![(0.2f32).ln(); 4]);
        let scheme = WeightScheme::per_channel(WeightBits::W4);
        let op = Embedding {
            ids: [2, 2, 0].into(),
            weight: Some(WeightQuant { scheme, quantizer: default_quantizer() }),
        };
        let (ts, ls) = ([4, 6], [1, 4]);
        let inputs = [Input { data: &table, shape: &ts }, Input { data: &logs, shape: &ls }];
        let (y, _) = op.forward(&inputs);
        let up = noise(18, 3);
        let got = op.backward(&inputs, &up, &[true; 2]);
        let mut want = [0f32; 4];
        for j in 0..6 {
            let sum = up[j] + up[6 + j];
            assert!((got[0].as_ref().unwrap()[12 + j] - sum).abs() < 1e-6);
            want[2] += sum * (y[j] - table[12 + j]);
            want[0] += up[12 + j] * (y[12 + j] - table[j]);
        }
        for (got, want) in got[1].as_ref().unwrap().iter().zip(&want) {
            assert!((got - want).abs() < 1e-5);
        }
    }
}
