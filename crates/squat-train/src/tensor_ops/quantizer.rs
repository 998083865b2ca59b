//! Fake quantizers as tensor expressions.

use crate::fake_quant::ActQuant;
use crate::quantizer::WeightQuant;
use burn::tensor::{Tensor, TensorData};
use squat_quant::{ActBits, ActScheme, Granularity};

/// Fake-quantized rows.
pub(super) struct Rows {
    /// Values, with straight-through gradients.
    pub values: Tensor<2>,
    /// Scale of each row, `[rows, 1]`, without gradient.
    pub scales: Tensor<2>,
}

/// Rounds, passing the gradient straight through.
fn round(x: Tensor<2>) -> Tensor<2> {
    x.clone() + (x.clone().round() - x).detach()
}

/// A column `[rows, 1]` of numbers chosen by the bits of each row.
fn by_bits(
    x: &Tensor<2>,
    quant: &ActQuant,
    rows_per_token: usize,
    value: impl Fn(ActBits) -> f32,
) -> Tensor<2> {
    let rows = x.dims()[0];
    let column: Vec<f32> = (0..rows).map(|row| value(quant.bits.get(row / rows_per_token))).collect();
    Tensor::from_data(TensorData::new(column, [rows, 1]), &x.device())
}

/// `[rows, cols]` values, static by the parameters `[1, 4]` or dynamic from each row.
pub(super) fn rows(
    x: Tensor<2>,
    quant: &ActQuant,
    parameters: Option<Tensor<2>>,
    rows_per_token: usize,
) -> Rows {
    let parameters = match (quant.scheme, parameters) {
        (ActScheme::Static, Some(parameters)) => parameters,
        _ => {
            let limit = by_bits(&x, quant, rows_per_token, |bits| bits.range().max as f32);
            let reach = by_bits(&x, quant, rows_per_token, |bits| quant.clip.at(bits));
            let largest = x.clone().detach().abs().max_dim(1);
            let scales = (largest * reach / limit.clone()).clamp_min(f32::MIN_POSITIVE);
            let limit = limit.repeat_dim(1, x.dims()[1]);
            let codes = (x.clone().detach() / scales.clone()).round();
            let codes = codes.max_pair(limit.clone().neg() - 1.0).min_pair(limit);
            let quantized = codes * scales.clone();
            let values = x.clone() + (quantized - x).detach();
            return Rows { values, scales };
        }
    };
    let eight = by_bits(&x, quant, rows_per_token, |bits| if bits == ActBits::A8 { 1.0 } else { 0.0 });
    let four = eight.clone().neg() + 1.0;
    let at = |index: usize| parameters.clone().slice([0..1, index..index + 1]);
    let choose = |a: Tensor<2>, b: Tensor<2>| a * four.clone() + b * eight.clone();
    let scales = choose(at(0).exp(), at(2).exp());
    let zero = choose(round(at(1)), round(at(3)));
    let low = by_bits(&x, quant, rows_per_token, |bits| bits.range().min as f32) - zero.clone();
    let high = by_bits(&x, quant, rows_per_token, |bits| bits.range().max as f32) - zero;
    let cols = x.dims()[1];
    let clamped = (x / scales.clone()).max_pair(low.repeat_dim(1, cols)).min_pair(high.repeat_dim(1, cols));
    Rows { values: round(clamped) * scales.clone(), scales: scales.detach() }
}

/// A fake-quantized weight `[rows, cols]`.
pub(super) struct QuantizedWeight {
    /// Values, with straight-through gradients.
    pub values: Tensor<2>,
    /// One scale for all, or one for each row: `[1, 1]` or `[rows, 1]`, without gradient; none for groups.
    pub scales: Option<Tensor<2>>,
}

/// A weight `[rows, cols]` with the parameters of its quantizer, `[1, n]`.
pub(super) fn weight(
    w: Tensor<2>,
    WeightQuant { scheme, quantizer }: WeightQuant,
    parameters: Tensor<2>,
) -> QuantizedWeight {
    let [rows, cols] = w.dims();
    let scales = quantizer.scale_tensor(&w, scheme, parameters);
    let by_row = match scheme.granularity {
        Granularity::PerTensor | Granularity::PerChannel => Some(scales.clone().detach().transpose()),
        Granularity::PerGroup(_) => None,
    };
    let scales = match scheme.granularity {
        Granularity::PerTensor => scales.repeat_dim(0, rows).repeat_dim(1, cols),
        Granularity::PerChannel => scales.reshape([rows, 1]).repeat_dim(1, cols),
        Granularity::PerGroup(_) => {
            let (group, per_row) = (scheme.group_len(cols), scheme.scales_per_row(cols));
            let wide = scales.reshape([rows * per_row, 1]).repeat_dim(1, group);
            wide.reshape([rows, per_row * group]).slice([0..rows, 0..cols])
        }
    };
    let range = scheme.bits.range();
    let codes = round((w / scales.clone()).clamp(range.min as f32, range.max as f32));
    QuantizedWeight { values: codes * scales, scales: by_row }
}
