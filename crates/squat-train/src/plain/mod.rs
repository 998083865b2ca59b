//! The same operations as plain tensor expressions, for every device that is not the CPU.
//!
//! They compute what the host operations compute, up to rounding: products of dequantized values instead of integer
//! codes, gradients by the tape with straight-through estimators. Tests hold each against its host form.

mod attention;
mod loss;
mod quantizer;

use crate::device::is_cpu;
use crate::host::{self, HostOp};
use crate::ops::embedding::Embedding;
use crate::ops::linear::Linear;
use crate::ops::rms_norm::RmsNorm;
use crate::ops::swiglu::SwiGlu;
use burn::tensor::{Device, FloatDType, Int, Tensor, TensorData, activation};
use squat_quant::Granularity;

/// An operation that also has a plain-tensor form.
pub trait PlainForm: HostOp {
    /// The operation as tensor expressions; inputs and output as in the host form.
    fn plain(&self, inputs: Vec<Tensor<2>>) -> Tensor<2>;
}

/// Runs an operation where its inputs are: fused on the CPU, as tensor expressions elsewhere.
pub fn run<const N: usize>(op: impl PlainForm, inputs: [Tensor<2>; N]) -> Tensor<2> {
    if is_cpu(&inputs[0].device().inner()) {
        host::apply(op, inputs)
    } else {
        op.plain(inputs.into_iter().collect())
    }
}

/// Ids as an integer tensor.
fn int_tensor(ids: &[u32], device: &Device) -> Tensor<1, Int> {
    let ids: Vec<i32> = ids.iter().map(|&id| id as i32).collect();
    let n = ids.len();
    Tensor::from_data(TensorData::new(ids, [n]), device)
}

impl PlainForm for RmsNorm {
    fn plain(&self, mut inputs: Vec<Tensor<2>>) -> Tensor<2> {
        let gain = inputs.remove(1);
        let x = inputs.remove(0);
        let mean = x.clone().square().mean_dim(1);
        x / (mean + self.eps).sqrt() * gain
    }
}

impl PlainForm for SwiGlu {
    fn plain(&self, mut inputs: Vec<Tensor<2>>) -> Tensor<2> {
        let up = inputs.remove(1);
        activation::silu(inputs.remove(0)) * up
    }
}

impl PlainForm for Embedding {
    fn plain(&self, mut inputs: Vec<Tensor<2>>) -> Tensor<2> {
        let table = inputs.remove(0);
        let ids = int_tensor(&self.ids, &table.device());
        // The whole table is quantized before rows are taken: of scales that were taken row by row, Burn 0.22 on `wgpu` loses a
        // part of the gradient.
        let table = match self.weight {
            None => table,
            Some(scheme) => quantizer::weight(table, scheme, inputs.remove(0)),
        };
        table.select(0, ids)
    }
}

impl PlainForm for Linear {
    fn plain(&self, inputs: Vec<Tensor<2>>) -> Tensor<2> {
        let mut inputs = inputs.into_iter();
        let (mut x, mut w) = (inputs.next().expect("x"), inputs.next().expect("weight"));
        let (mut row_scales, mut channel_scales) = (None, None);
        if let Some(scheme) = self.weight {
            let logs = inputs.next().expect("log scales of a quantized weight");
            channel_scales = match scheme.granularity {
                Granularity::PerTensor | Granularity::PerChannel => Some(logs.clone().detach().exp()),
                Granularity::PerGroup(_) => None,
            };
            w = quantizer::weight(w, scheme, logs);
        }
        if let Some(quant) = &self.input {
            let rows = quantizer::rows(x, quant, inputs.next(), 1);
            (x, row_scales) = (rows.values, Some(rows.scales));
        }
        if self.bf16 { product_in_bf16(x, w, row_scales, channel_scales) } else { x.matmul(w.transpose()) }
    }
}

/// `x @ w^T` in bf16, both ways. What has scales, `[tokens, 1]` and `[1, out]` or `[1, 1]`, is multiplied as codes, which
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
        Some(scales) => w / scales.clone().transpose(),
        None => w,
    };
    let y = x.cast(FloatDType::BF16).matmul(w.cast(FloatDType::BF16).transpose()).cast(FloatDType::F32);
    [row_scales, channel_scales].into_iter().flatten().fold(y, |y, scales| y * scales)
}

#[cfg(test)]
mod tests;
