//! The same operations as tensor expressions, for every device except the CPU.
//!
//! They give the results of the fused operations up to rounding: products of dequantized values instead of integer
//! codes, gradients by the tape with straight-through estimators. Tests compare each with its fused form.

mod attention;
mod loss;
mod quantizer;

use crate::autograd::{self, FusedOp};
use crate::device::is_cpu;
use crate::ops::embedding::Embedding;
use crate::ops::linear::Linear;
use crate::ops::rms_norm::RmsNorm;
use crate::ops::swiglu::SwiGlu;
use crate::ops::transform::TransformRows;
use burn::tensor::{Device, FloatDType, Int, Tensor, TensorData, activation};
use squat_quant::{ActScheme, Transform};

/// An operation that also has a form as tensor expressions.
pub trait TensorForm: FusedOp {
    /// The operation as tensor expressions; inputs and output as in the fused form.
    fn tensor_form(&self, inputs: Vec<Tensor<2>>) -> Tensor<2>;
}

/// Runs an operation where its inputs are: fused on the CPU, as tensor expressions elsewhere.
pub fn dispatch(op: impl TensorForm, inputs: Vec<Tensor<2>>) -> Tensor<2> {
    if is_cpu(&inputs[0].device().inner()) { autograd::apply(op, inputs) } else { op.tensor_form(inputs) }
}

/// Ids as an integer tensor.
fn int_tensor(ids: &[u32], device: &Device) -> Tensor<1, Int> {
    let ids: Vec<i32> = ids.iter().map(|&id| id as i32).collect();
    let n = ids.len();
    Tensor::from_data(TensorData::new(ids, [n]), device)
}

impl TensorForm for RmsNorm {
    fn tensor_form(&self, mut inputs: Vec<Tensor<2>>) -> Tensor<2> {
        let gain = inputs.remove(1);
        let x = inputs.remove(0);
        let mean = x.clone().square().mean_dim(1);
        x / (mean + self.eps).sqrt() * gain
    }
}

impl TensorForm for SwiGlu {
    fn tensor_form(&self, mut inputs: Vec<Tensor<2>>) -> Tensor<2> {
        let up = inputs.remove(1);
        activation::silu(inputs.remove(0)) * up
    }
}

impl TensorForm for Embedding {
    fn tensor_form(&self, mut inputs: Vec<Tensor<2>>) -> Tensor<2> {
        let table = inputs.remove(0);
        let ids = int_tensor(&self.ids, &table.device());
        // The whole table is quantized before rows are taken: of scales that were taken row by row, Burn 0.22 on `wgpu` loses a
        // part of the gradient.
        let table = match self.weight {
            None => table,
            Some(quant) => quantizer::weight(table, quant, inputs.remove(0)).values,
        };
        table.select(0, ids)
    }
}

impl TensorForm for Linear {
    fn tensor_form(&self, inputs: Vec<Tensor<2>>) -> Tensor<2> {
        let mut inputs = inputs.into_iter();
        let (x, mut w) = (inputs.next().expect("x"), inputs.next().expect("weight"));
        let mut x = transformed(x, self.transform);
        let (mut row_scales, mut channel_scales) = (None, None);
        if let Some(quant) = self.weight {
            let quantized =
                quantizer::weight(w, quant, inputs.next().expect("parameters of a quantized weight"));
            (w, channel_scales) = (quantized.values, quantized.scales);
        }
        if let Some(quant) = &self.input {
            let parameters = if quant.scheme == ActScheme::Static { inputs.next() } else { None };
            let rows = quantizer::rows(x, quant, parameters, 1);
            (x, row_scales) = (rows.values, Some(rows.scales));
        }
        let y = match self.bf16 {
            true => product_in_bf16(x, w, row_scales, channel_scales),
            false => x.matmul(w.transpose()),
        };
        match self.bias {
            true => y + inputs.next().expect("bias"),
            false => y,
        }
    }
}

impl TensorForm for TransformRows {
    fn tensor_form(&self, mut inputs: Vec<Tensor<2>>) -> Tensor<2> {
        transformed(inputs.remove(0), self.transform)
    }
}

/// Rows `[tokens, n]`, transformed by a product with the matrix.
fn transformed(x: Tensor<2>, transform: Transform) -> Tensor<2> {
    let [rows, cols] = x.dims();
    let (size, interleaved) = match transform {
        Transform::None | Transform::Largest => return x,
        Transform::Hadamard(size) => (size, false),
        Transform::Interleaved(size) => (size, true),
    };
    let mut matrix = vec![0f32; size * size];
    for (i, row) in matrix.chunks_exact_mut(size).enumerate() {
        row[i] = 1.0;
        Transform::Hadamard(size).apply(row);
    }
    let matrix = Tensor::<2>::from_data(TensorData::new(matrix, [size, size]), &x.device());
    let blocks = cols / size;
    let turned = |x: Tensor<2>, shape: [usize; 3]| x.reshape(shape).swap_dims(1, 2).reshape([rows, cols]);
    let x = if interleaved { turned(x, [rows, size, blocks]) } else { x };
    let y = x.reshape([rows * blocks, size]).matmul(matrix).reshape([rows, cols]);
    if interleaved { turned(y, [rows, blocks, size]) } else { y }
}

/// `x @ w^T` in bf16, both ways. What has scales, `[tokens, 1]` and `[out, 1]` or `[1, 1]`, is multiplied as codes, which
/// are whole numbers of at most 8 bits. (Static codes minus a zero point may take 9.)
fn product_in_bf16(
    x: Tensor<2>,
    w: Tensor<2>,
    row_scales: Option<Tensor<2>>,
    channel_scales: Option<Tensor<2>>,
) -> Tensor<2> {
    let x = match &row_scales {
        Some(scales) => x / scales.clone(),
        None => x,
    };
    let w = match &channel_scales {
        Some(scales) => w / scales.clone(),
        None => w,
    };
    let y = x.cast(FloatDType::BF16).matmul(w.cast(FloatDType::BF16).transpose()).cast(FloatDType::F32);
    let channel_scales = channel_scales.map(Tensor::transpose);
    [row_scales, channel_scales].into_iter().flatten().fold(y, |y, scales| y * scales)
}

#[cfg(test)]
mod tests;
