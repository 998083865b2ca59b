//! A quantized linear layer as one operation: `y = T(x)^ @ w^T + b` with fake-quantized operands (METHOD.md sections 2, 3).

use crate::autograd::{FusedOp, Input, Layout, columns, gemm, integer_gemm, multiversion, product, scratch};
use crate::fake_quant::{
    ActQuant, Weight, fake_quantize_rows, pack_rows, quantize_rows, quantize_rows_backward, scale_rows,
};
use crate::quantizer::WeightQuant;
use squat_kernels::{ColumnsMut, Kernels, PackedMatrix};
use squat_quant::{ActScheme, Transform};
use std::borrow::Cow;
use std::sync::Arc;

/// `[tokens, in] x [out, in] -> [tokens, out]`.
///
/// Inputs: x, weight, then the quantizer's parameters `[1, n]` if the weight is quantized, then the static parameters
/// `[1, 4]` if the activations are quantized statically, then the bias `[1, out]` if there is one. The bias is added
/// last, in f32, as the engine does.
///
/// With both operands quantized the forward is the engine's own integer product; [`Linear::float_forward`] is the
/// definition in floats, which gives the same bits.
#[derive(Clone, Debug, Default)]
pub struct Linear {
    /// Quantizer of the weight, if any.
    pub weight: Option<WeightQuant>,
    /// Applied to the rows of the input before they are quantized.
    pub transform: Transform,
    /// Quantizer of the input, if any.
    pub input: Option<ActQuant>,
    /// The quantized weight, if it was packed before: it serves every micro-batch of a step.
    pub packed: Option<Arc<PackedMatrix>>,
    /// Whether there is a bias.
    pub bias: bool,
    /// Whether the tensor form multiplies in bf16. Codes of up to 8 bits are exact there: scales are applied outside.
    pub bf16: bool,
}

/// The inputs after x and weight.
struct Operands<'a> {
    /// The weight quantizer and its parameters.
    weight: Option<(WeightQuant, &'a [f32])>,
    /// Static parameters of the input.
    point: Option<&'a [f32]>,
    /// Added to each output channel.
    bias: Option<&'a [f32]>,
}

impl Linear {
    /// Positions of the quantizer's parameters, the static parameters and the bias among the inputs.
    fn positions(&self) -> [Option<usize>; 3] {
        let is_static = matches!(self.input, Some(ActQuant { scheme: ActScheme::Static, .. }));
        let mut next = 2;
        [self.weight.is_some(), is_static, self.bias].map(|present| {
            present.then(|| {
                next += 1;
                next - 1
            })
        })
    }

    fn operands<'a>(&self, inputs: &[Input<'a>]) -> Operands<'a> {
        let [weight, point, bias] = self.positions().map(|at| at.map(|at| inputs[at].data));
        Operands { weight: self.weight.zip(weight), point, bias }
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

multiversion! {
    fn add_bias(out: &mut [f32], bias: &[f32]) {
        for row in out.chunks_exact_mut(bias.len()) {
            for (y, &b) in row.iter_mut().zip(bias) {
                *y += b;
            }
        }
    }
}

multiversion! {
    /// Sums of the columns: the gradient of a bias.
    fn column_sums(grad: &[f32], sums: &mut [f32]) {
        for row in grad.chunks_exact(sums.len()) {
            for (sum, &g) in sums.iter_mut().zip(row) {
                *sum += g;
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
    /// The rows of the input, transformed.
    fn transformed<'a>(&self, x: Input<'a>) -> Cow<'a, [f32]> {
        if self.transform.is_none() {
            return Cow::Borrowed(x.data);
        }
        let mut rows = x.data.to_vec();
        Kernels::detect().transform(&mut rows, x.shape[1], self.transform);
        Cow::Owned(rows)
    }

    /// The product on the integer kernels; `None` where an operand is not quantized, or has scales that are not finite and
    /// positive.
    fn integer_forward(&self, inputs: &[Input<'_>]) -> Option<Vec<f32>> {
        let (x, w) = (inputs[0], inputs[1]);
        let (m, k, n) = (x.shape[0], x.shape[1], w.shape[0]);
        let Operands { weight, point, .. } = self.operands(inputs);
        let (input, (quant, parameters)) = (self.input.as_ref()?, weight?);
        let made;
        let matrix: &PackedMatrix = match &self.packed {
            Some(packed) => packed,
            None => {
                let (weight, scales) = quant.of(w.data, k, parameters);
                made = weight.pack(&scales)?;
                &made
            }
        };
        let rows = pack_rows(&self.transformed(x), k, input, point)?;
        let mut out = vec![0f32; m * n];
        Kernels::detect().linear(matrix, rows.as_view(), ColumnsMut::new(&mut out, m, n));
        Some(out)
    }

    /// The product in floats: of codes that are whole numbers where operands are quantized, with the scales applied to
    /// the sums in the engine's order.
    fn float_forward(&self, inputs: &[Input<'_>]) -> Vec<f32> {
        let (x, w) = (inputs[0], inputs[1]);
        let (m, k, n) = (x.shape[0], x.shape[1], w.shape[0]);
        let Operands { weight, point, .. } = self.operands(inputs);
        let x = self.transformed(x);
        if self.weight.is_none() && self.input.is_none() {
            return product((m, k, n), (x.as_ref(), Layout::Normal), (w.data, Layout::Transposed));
        }
        let rows = self.input.as_ref().map(|quant| quantize_rows(&x, k, quant, point, 1));
        let scaled = weight.map(|(quant, parameters)| quant.of(w.data, k, parameters));
        let quantized = scaled.as_ref().map(|(weight, scales)| (weight.scheme, weight.quantize(scales)));
        let a = rows.as_ref().map_or(x.as_ref(), |rows| &rows.codes);
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
                    quantized.scales
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
                    add_group(&mut out, &partial, n, quantized.scales, per_row, index);
                }
                scale_rows(&mut out, n, row_scales);
            }
        }
        out
    }
}

impl FusedOp for Linear {
    fn name(&self) -> &'static str {
        "linear"
    }

    fn forward(&self, inputs: &[Input<'_>]) -> (Vec<f32>, Vec<usize>) {
        let mut out = self.integer_forward(inputs).unwrap_or_else(|| self.float_forward(inputs));
        if let Some(bias) = self.operands(inputs).bias {
            add_bias(&mut out, bias);
        }
        (out, vec![inputs[0].shape[0], inputs[1].shape[0]])
    }

    fn backward(&self, inputs: &[Input<'_>], grad: &[f32], needed: &[bool]) -> Vec<Option<Vec<f32>>> {
        let (x, w) = (inputs[0], inputs[1]);
        let (m, k, n) = (x.shape[0], x.shape[1], w.shape[0]);
        let Operands { weight, point, .. } = self.operands(inputs);
        let x = self.transformed(x);
        let mut found: Vec<Option<Vec<f32>>> = vec![None; inputs.len()];
        let [weight_at, point_at, bias_at] = self.positions();
        let wanted = |at: Option<usize>| at.is_some_and(|at| needed[at]);
        if let Some(at) = bias_at.filter(|&at| needed[at]) {
            let mut sums = vec![0f32; n];
            column_sums(grad, &mut sums);
            found[at] = Some(sums);
        }
        if needed[0] || wanted(point_at) {
            let values = weight.map(|(quant, parameters)| {
                let mut values = scratch(n * k);
                let (weight, scales) = quant.of(w.data, k, parameters);
                weight.fake_quantize(&scales, &mut values);
                values
            });
            let w = values.as_deref().unwrap_or(w.data);
            let mut dx = product((m, n, k), (grad, Layout::Normal), (w, Layout::Normal));
            if let Some(quant) = &self.input {
                let d = quantize_rows_backward(&x, k, quant, point, 1, &mut dx);
                if let Some(at) = point_at {
                    found[at] = d;
                }
            }
            // The transposed matrix is the matrix itself.
            Kernels::detect().transform(&mut dx, k, self.transform);
            found[0] = Some(dx);
        }
        if needed[1] || wanted(weight_at) {
            let values = self.input.as_ref().map(|quant| {
                let mut values = scratch(m * k);
                fake_quantize_rows(&x, k, quant, point, 1, &mut values);
                values
            });
            let x = values.as_deref().unwrap_or(&x);
            let mut dw = product((n, m, k), (grad, Layout::Transposed), (x, Layout::Normal));
            if let Some((WeightQuant { scheme, quantizer }, parameters)) = weight {
                let weight = Weight { values: w.data, cols: k, scheme };
                let d = quantizer.backward(weight, parameters, &mut dw);
                if let Some(at) = weight_at {
                    found[at] = Some(d);
                }
            }
            found[1] = Some(dw);
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake_quant::TokenBits;
    use crate::ops::gradient_check::{noise, worst_errors};
    use crate::quantizer::default_quantizer;
    use squat_quant::{ActBits, Clip, Granularity, WeightBits, WeightScheme};

    fn learned(scheme: WeightScheme) -> Option<WeightQuant> {
        Some(WeightQuant { scheme, quantizer: default_quantizer() })
    }

    #[test]
    fn plain_gradients_match_numeric_ones() {
        let inputs = [(noise(12, 1), vec![3, 4]), (noise(20, 2), vec![5, 4])];
        let make = || -> Box<dyn FusedOp> { Box::new(Linear::default()) };
        for error in worst_errors(&make, &inputs, 1e-2) {
            assert!(error < 1e-3, "{error:e}");
        }
    }

    #[test]
    fn gradients_pass_through_a_transform() {
        let inputs = [(noise(24, 1), vec![3, 8]), (noise(40, 2), vec![5, 8])];
        let make = || -> Box<dyn FusedOp> {
            Box::new(Linear { transform: Transform::Hadamard(4), ..Linear::default() })
        };
        for error in worst_errors(&make, &inputs, 1e-2) {
            assert!(error < 1e-3, "{error:e}");
        }
        // Transformed operands on both sides give the product of the originals.
        let mut rotated = inputs[1].0.clone();
        Transform::Hadamard(4).apply_rows(&mut rotated, 8);
        let views =
            |w| [Input { data: &inputs[0].0, shape: &inputs[0].1 }, Input { data: w, shape: &inputs[1].1 }];
        let (want, _) = Linear::default().forward(&views(&inputs[1].0));
        let (got, _) = make().forward(&views(&rotated));
        assert!(want.iter().zip(&got).all(|(a, b)| (a - b).abs() < 1e-5));
    }

    #[test]
    fn a_bias_is_added_last_and_gets_the_sums_of_columns() {
        let inputs = [(noise(12, 1), vec![3, 4]), (noise(20, 2), vec![5, 4]), (noise(5, 3), vec![1, 5])];
        let make = || -> Box<dyn FusedOp> { Box::new(Linear { bias: true, ..Linear::default() }) };
        for error in worst_errors(&make, &inputs, 1e-2) {
            assert!(error < 1e-3, "{error:e}");
        }
        // Behind quantized operands and static parameters too.
        let scheme = WeightScheme::per_channel(WeightBits::W4);
        let quant = ActQuant {
            scheme: ActScheme::Static,
            bits: TokenBits::Uniform(ActBits::A8),
            clip: Clip::default(),
        };
        let (logs, statics) = (vec![-1.5f32; 5], [-1.0f32, 0.0, -4.0, 3.0]);
        let shapes = [[3, 4], [5, 4], [1, 5], [1, 4], [1, 5]];
        let values: [&[f32]; 5] = [&inputs[0].0, &inputs[1].0, &logs, &statics, &inputs[2].0];
        let views: Vec<Input<'_>> =
            values.iter().zip(&shapes).map(|(data, shape)| Input { data, shape }).collect();
        let without = Linear { weight: learned(scheme), input: Some(quant), ..Linear::default() };
        let with = Linear { bias: true, ..without.clone() };
        let (plain, biased) = (without.forward(&views[..4]).0, with.forward(&views).0);
        for (i, (plain, biased)) in plain.iter().zip(&biased).enumerate() {
            assert_eq!((plain + values[4][i % 5]).to_bits(), biased.to_bits());
        }
        let up = noise(15, 4);
        let (a, b) = (without.backward(&views[..4], &up, &[true; 4]), with.backward(&views, &up, &[true; 5]));
        assert_eq!(a, b[..4]);
        for (n, sum) in b[4].as_ref().unwrap().iter().enumerate() {
            assert!((sum - (0..3).map(|m| up[m * 5 + n]).sum::<f32>()).abs() < 1e-6);
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
            let quant = ActQuant {
                scheme: ActScheme::Dynamic,
                bits: TokenBits::Uniform(ActBits::A8),
                clip: Clip::default(),
            };
            let op = Linear { weight: learned(scheme), input: Some(quant.clone()), ..Linear::default() };
            let (xs, ws, ls) = ([m, k], [n, k], [1, logs.len()]);
            let inputs = [
                Input { data: &x, shape: &xs },
                Input { data: &w, shape: &ws },
                Input { data: &logs, shape: &ls },
            ];
            let (y, shape) = op.forward(&inputs);
            assert_eq!(shape, [m, n]);
            let xh = quantize_rows(&x, k, &quant, None, 1).dequantize(k);
            let scales: Vec<f32> = logs.iter().map(|&log| squat_quant::math::exp(log)).collect();
            let wh = Weight { values: &w, cols: k, scheme }.quantize(&scales).dequantize();
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
            input: Some(ActQuant { scheme: ActScheme::Static, bits: bits.clone(), clip: Clip::default() }),
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
            let affine = crate::fake_quant::static_affine(&parameters, bits.get(i / k));
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
                    let quant = ActQuant {
                        scheme: act,
                        bits: TokenBits::PerToken(bits.clone()),
                        clip: Clip::default(),
                    };
                    let mut op = Linear { weight: learned(scheme), input: Some(quant), ..Linear::default() };
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
                        let (weight, scales) = learned(scheme).unwrap().of(&w, k, &logs);
                        op.packed = weight.pack(&scales).map(Arc::new);
                    }
                }
            }
        }
    }
}
