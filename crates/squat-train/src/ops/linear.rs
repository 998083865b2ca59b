//! A quantized linear layer as one operation: `y = x^ @ w^T` with fake-quantized operands (METHOD.md sections 2, 3).

use crate::host::{HostOp, Input, Layout, columns, gemm, integer_gemm, multiversion, product, scratch};
use crate::quantizer::{
    ActQuant, fake_quantize_rows, fake_quantize_weight, pack_rows, pack_weight, quantize_rows,
    quantize_rows_backward, quantize_weight, quantize_weight_backward,
};
use squat_kernels::{ColumnsMut, Kernels, PackedMatrix};
use squat_quant::{ActScheme, WeightScheme};
use std::sync::Arc;

/// `[tokens, in] x [out, in] -> [tokens, out]`.
///
/// Inputs: x, weight, then the log scales `[1, n]` if the weight is quantized, then the static parameters `[1, 4]` if
/// the activations are quantized statically.
///
/// With both operands quantized the forward is the engine's own integer product; [`Linear::float_forward`] is the
/// definition in floats, which gives the same bits.
#[derive(Clone, Debug, Default)]
pub struct Linear {
    /// Quantizer of the weight, if any.
    pub weight: Option<WeightScheme>,
    /// Quantizer of the input, if any.
    pub input: Option<ActQuant>,
    /// The quantized weight, if it was packed before: it serves every micro-batch of a step.
    pub packed: Option<Arc<PackedMatrix>>,
    /// Whether the plain form multiplies in bf16. Codes of up to 8 bits are exact there: scales are applied outside.
    pub bf16: bool,
}

struct Operands<'a> {
    log_scales: Option<&'a [f32]>,
    parameters: Option<&'a [f32]>,
}

impl Linear {
    fn operands<'a>(&self, inputs: &[Input<'a>]) -> Operands<'a> {
        let mut rest = inputs[2..].iter().map(|input| input.data);
        Operands { log_scales: self.weight.and_then(|_| rest.next()), parameters: rest.next() }
    }
}

multiversion! {
    /// `out[m][n] = (out[m][n] * rows[m]) * channels[n]`: the epilogue of the integer product, in its order.
    fn apply_scales(out: &mut [f32], rows: &[f32], channels: &[f32]) {
        for (row, &scale) in out.chunks_exact_mut(channels.len()).zip(rows) {
            for (y, &channel) in row.iter_mut().zip(channels) {
                *y = (*y * scale) * channel;
            }
        }
    }
}

multiversion! {
    /// `out[m][n] += partial[m][n] * scales[n * stride + offset]`: one group of a per-group product.
    fn add_group(out: &mut [f32], partial: &[f32], n: usize, scales: &[f32], stride: usize, offset: usize) {
        for (row, part) in out.chunks_exact_mut(n).zip(partial.chunks_exact(n)) {
            for i in 0..n {
                row[i] += part[i] * scales[i * stride + offset];
            }
        }
    }
}

/// Largest magnitude of a centered activation code: a static zero point may move 8-bit codes by up to 255.
fn largest_code(quant: &ActQuant) -> f32 {
    match quant.scheme {
        ActScheme::Dynamic => 127.0,
        ActScheme::Static => 255.0,
    }
}

impl Linear {
    /// The product on the integer kernels; `None` where an operand is not quantized or has scales that are none.
    fn integer_forward(&self, inputs: &[Input<'_>]) -> Option<Vec<f32>> {
        let (x, w) = (inputs[0], inputs[1]);
        let (m, k, n) = (x.shape[0], x.shape[1], w.shape[0]);
        let Operands { log_scales, parameters } = self.operands(inputs);
        let (quant, scheme, logs) = (self.input.as_ref()?, self.weight?, log_scales?);
        let made;
        let matrix: &PackedMatrix = match &self.packed {
            Some(packed) => packed,
            None => {
                made = pack_weight(w.data, n, k, scheme, logs)?;
                &made
            }
        };
        let rows = pack_rows(x.data, k, quant, parameters)?;
        let mut out = vec![0f32; m * n];
        Kernels::detect().linear(matrix, rows.as_view(), ColumnsMut::new(&mut out, m, n));
        Some(out)
    }

    /// The product in floats: of codes that are whole numbers where operands are quantized, with the scales applied to
    /// the sums in the engine's order.
    fn float_forward(&self, inputs: &[Input<'_>]) -> Vec<f32> {
        let (x, w) = (inputs[0], inputs[1]);
        let (m, k, n) = (x.shape[0], x.shape[1], w.shape[0]);
        let Operands { log_scales, parameters } = self.operands(inputs);
        if self.weight.is_none() && self.input.is_none() {
            return product((m, k, n), (x.data, Layout::Normal), (w.data, Layout::Transposed));
        }
        let rows = self.input.as_ref().map(|quant| quantize_rows(x.data, k, quant, parameters, 1));
        let quantized = self.weight.zip(log_scales).map(|(s, logs)| (s, quantize_weight(w.data, k, s, logs)));
        let a = rows.as_ref().map_or(x.data, |rows| &rows.codes);
        let ones;
        let row_scales: &[f32] = match &rows {
            Some(rows) => &rows.scales,
            None => {
                ones = vec![1f32; m];
                &ones
            }
        };
        let mut out = vec![0f32; m * n];
        match &quantized {
            None => {
                gemm((m, k, n), 1.0, (a, Layout::Normal), (w.data, Layout::Transposed), 0.0, &mut out);
                if rows.is_some() {
                    apply_scales(&mut out, row_scales, &vec![1f32; n]);
                }
            }
            Some((scheme, quantized)) if scheme.group_len(k) == k => {
                let codes = (quantized.codes.as_slice(), Layout::Transposed);
                if let Some(quant) = &self.input {
                    let term = largest_code(quant) * -(scheme.bits.range().min as f32);
                    integer_gemm((m, k, n), term, a, codes, &mut out);
                } else {
                    gemm((m, k, n), 1.0, (a, Layout::Normal), codes, 0.0, &mut out);
                }
                let shared;
                let channels: &[f32] = if quantized.scales.len() == n {
                    &quantized.scales
                } else {
                    shared = vec![quantized.scales[0]; n];
                    &shared
                };
                apply_scales(&mut out, row_scales, channels);
            }
            Some((scheme, quantized)) => {
                let (group, per_row) = (scheme.group_len(k), scheme.scales_per_row(k));
                let mut partial = vec![0f32; m * n];
                for index in 0..per_row {
                    let (from, to) = (index * group, ((index + 1) * group).min(k));
                    let (a, w) = (columns(a, k, from, to), columns(&quantized.codes, k, from, to));
                    gemm(
                        (m, to - from, n),
                        1.0,
                        (&a, Layout::Normal),
                        (&w, Layout::Transposed),
                        0.0,
                        &mut partial,
                    );
                    add_group(&mut out, &partial, n, &quantized.scales, per_row, index);
                }
                crate::quantizer::scale_rows(&mut out, n, row_scales);
            }
        }
        out
    }
}

impl HostOp for Linear {
    fn name(&self) -> &'static str {
        "linear"
    }

    fn forward(&self, inputs: &[Input<'_>]) -> (Vec<f32>, Vec<usize>) {
        let out = self.integer_forward(inputs).unwrap_or_else(|| self.float_forward(inputs));
        (out, vec![inputs[0].shape[0], inputs[1].shape[0]])
    }

    fn backward(&self, inputs: &[Input<'_>], grad: &[f32], needed: &[bool]) -> Vec<Option<Vec<f32>>> {
        let (x, w) = (inputs[0], inputs[1]);
        let (m, k, n) = (x.shape[0], x.shape[1], w.shape[0]);
        let Operands { log_scales, parameters } = self.operands(inputs);
        let mut found: Vec<Option<Vec<f32>>> = vec![None; inputs.len()];
        let static_at = inputs.len() - 1;
        if needed[0] || (parameters.is_some() && needed[static_at]) {
            let values = self.weight.zip(log_scales).map(|(scheme, logs)| {
                let mut values = scratch(n * k);
                fake_quantize_weight(w.data, k, scheme, logs, &mut values);
                values
            });
            let w = values.as_deref().unwrap_or(w.data);
            let mut dx = product((m, n, k), (grad, Layout::Normal), (w, Layout::Normal));
            if let Some(quant) = &self.input {
                let d = quantize_rows_backward(x.data, k, quant, parameters, 1, &mut dx);
                if let Some(d) = d {
                    found[static_at] = Some(d);
                }
            }
            found[0] = Some(dx);
        }
        if needed[1] || (log_scales.is_some() && needed[2]) {
            let values = self.input.as_ref().map(|quant| {
                let mut values = scratch(m * k);
                fake_quantize_rows(x.data, k, quant, parameters, 1, &mut values);
                values
            });
            let x = values.as_deref().unwrap_or(x.data);
            let mut dw = product((n, m, k), (grad, Layout::Transposed), (x, Layout::Normal));
            if let Some((scheme, logs)) = self.weight.zip(log_scales) {
                found[2] = Some(quantize_weight_backward(w.data, k, scheme, logs, &mut dw));
            }
            found[1] = Some(dw);
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::gradient_check::{noise, worst_errors};
    use crate::quantizer::TokenBits;
    use squat_quant::{ActBits, Granularity, WeightBits};

    #[test]
    fn plain_gradients_match_numeric_ones() {
        let inputs = [(noise(12, 1), vec![3, 4]), (noise(20, 2), vec![5, 4])];
        let make = || -> Box<dyn HostOp> { Box::new(Linear::default()) };
        for error in worst_errors(&make, &inputs, 1e-2) {
            assert!(error < 1e-3, "{error:e}");
        }
    }

    /// The straight-through gradient is by definition that of the product with the quantization residues held
    /// constant: `x^ = x + r`, so it is checked against the plain product at the quantized values.
    #[test]
    fn quantized_gradients_are_those_of_the_product_at_the_quantized_values() {
        let (m, k, n) = (3, 6, 4);
        let (x, w) = (noise(m * k, 3), noise(n * k, 4));
        for granularity in [Granularity::PerTensor, Granularity::PerChannel, Granularity::PerGroup(4)] {
            let scheme = WeightScheme { bits: WeightBits::W4, granularity };
            // Wide enough that nothing is clipped.
            let logs = vec![(0.2f32).ln(); scheme.num_scales(n, k)];
            let quant = ActQuant { scheme: ActScheme::Dynamic, bits: TokenBits::Uniform(ActBits::A8) };
            let op = Linear { weight: Some(scheme), input: Some(quant.clone()), packed: None, bf16: false };
            let (xs, ws, ls) = ([m, k], [n, k], [1, logs.len()]);
            let inputs = [
                Input { data: &x, shape: &xs },
                Input { data: &w, shape: &ws },
                Input { data: &logs, shape: &ls },
            ];
            let (y, shape) = op.forward(&inputs);
            assert_eq!(shape, [m, n]);
            let (xh, wh) = (
                quantize_rows(&x, k, &quant, None, 1).dequantize(k),
                quantize_weight(&w, k, scheme, &logs).dequantize(k, scheme),
            );
            let up = noise(m * n, 5);
            let got = op.backward(&inputs, &up, &[true; 3]);
            for i in 0..m {
                for j in 0..n {
                    let want: f32 = (0..k).map(|t| xh[i * k + t] * wh[j * k + t]).sum();
                    assert!((y[i * n + j] - want).abs() < 1e-5);
                }
            }
            for i in 0..m * k {
                let want: f32 = (0..n).map(|j| up[i / k * n + j] * wh[j * k + i % k]).sum();
                assert!((got[0].as_ref().unwrap()[i] - want).abs() < 1e-5);
            }
            let mut dlogs = vec![0f32; logs.len()];
            for j in 0..n * k {
                let want: f32 = (0..m).map(|i| up[i * n + j / k] * xh[i * k + j % k]).sum();
                assert!((got[1].as_ref().unwrap()[j] - want).abs() < 1e-5);
                // d w^ / d log s = s (round(v) - v) = w^ - w inside the range.
                dlogs[scheme.scale_index(j / k, j % k, k)] += want * (wh[j] - w[j]);
            }
            for (got, want) in got[2].as_ref().unwrap().iter().zip(&dlogs) {
                assert!((got - want).abs() < 1e-5, "{got} {want}");
            }
        }
    }

    #[test]
    fn static_parameters_get_their_gradients() {
        let (m, k, n) = (2, 5, 3);
        let (x, w) = (noise(m * k, 6), noise(n * k, 7));
        let parameters = [-1.5f32, 1.0, -3.0, 3.0];
        let bits = TokenBits::PerToken([ActBits::A8, ActBits::A4].into());
        let op = Linear {
            input: Some(ActQuant { scheme: ActScheme::Static, bits: bits.clone() }),
            ..Linear::default()
        };
        let (xs, ws, ps) = ([m, k], [n, k], [1, 4]);
        let inputs = [
            Input { data: &x, shape: &xs },
            Input { data: &w, shape: &ws },
            Input { data: &parameters, shape: &ps },
        ];
        let up = noise(m * n, 8);
        let got = op.backward(&inputs, &up, &[true; 3]);
        let mut want = [0f32; 4];
        for i in 0..m * k {
            let affine = crate::quantizer::static_affine(&parameters, bits.get(i / k));
            let g: f32 = (0..n).map(|j| up[i / k * n + j] * w[j * k + i % k]).sum();
            let (dx, ds, dz) = affine.gradient(x[i]);
            assert!((got[0].as_ref().unwrap()[i] - g * dx).abs() < 1e-5);
            want[2 * bits.get(i / k).index()] += g * ds * affine.scale;
            want[2 * bits.get(i / k).index() + 1] += g * dz;
        }
        for (got, want) in got[2].as_ref().unwrap().iter().zip(&want) {
            assert!((got - want).abs() < 1e-4, "{got} {want}");
        }
    }

    /// The integer kernels and the float definition, and a weight packed before, give the same bits: every width,
    /// granularity and scheme, with a reduction longer than single-precision sums of the widest codes allow.
    #[test]
    fn the_integer_product_is_the_float_one_bit_for_bit() {
        let (m, k, n) = (5, 1100, 19);
        let (x, w) = (noise(m * k, 11), noise(n * k, 12));
        let bits: Arc<[ActBits]> = (0..m).map(|i| ActBits::ALL[i % 2]).collect();
        for width in WeightBits::ALL {
            for granularity in [Granularity::PerTensor, Granularity::PerChannel, Granularity::PerGroup(96)] {
                let scheme = WeightScheme { bits: width, granularity };
                let logs: Vec<f32> = (0..scheme.num_scales(n, k))
                    .map(|i| (1.2 / width.range().max as f32).ln() - 0.01 * (i % 9) as f32)
                    .collect();
                for act in [ActScheme::Dynamic, ActScheme::Static] {
                    let quant = ActQuant { scheme: act, bits: TokenBits::PerToken(bits.clone()) };
                    let mut op =
                        Linear { weight: Some(scheme), input: Some(quant), packed: None, bf16: false };
                    let (xs, ws, ls, ps) = ([m, k], [n, k], [1, logs.len()], [1, 4]);
                    let parameters = [-2.0f32, 2.0, -4.8, -31.0];
                    let mut inputs = vec![
                        Input { data: &x, shape: &xs },
                        Input { data: &w, shape: &ws },
                        Input { data: &logs, shape: &ls },
                    ];
                    if act == ActScheme::Static {
                        inputs.push(Input { data: &parameters, shape: &ps });
                    }
                    let want: Vec<u32> = op.float_forward(&inputs).iter().map(|y| y.to_bits()).collect();
                    assert!(op.integer_forward(&inputs).is_some());
                    for _ in 0..2 {
                        let got: Vec<u32> = op.forward(&inputs).0.iter().map(|y| y.to_bits()).collect();
                        assert!(got == want, "{scheme:?} {act:?}");
                        op.packed = pack_weight(&w, n, k, scheme, &logs).map(Arc::new);
                    }
                }
            }
        }
    }
}
