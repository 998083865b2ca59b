//! A linear layer in the form that the plan requires, and its product over a block of tokens.
//!
//! | weight | input | product |
//! |---|---|---|
//! | quantized | quantized | integers: the fast path of every usual plan |
//! | quantized | full precision | weights dequantized 16 channels at a time |
//! | full precision | quantized | codes as floats, then the row's scale |
//! | full precision | full precision | floats |

use crate::pool::Pool;
use squat_kernels::{ArenaSlice, ColumnsMut, Kernels, PackedMatrix, QuantizedRows, RowQuantizer, RowsMut};
use squat_quant::{ActBits, Transform};
use std::sync::Arc;

/// Output channels that one worker takes at a time are a multiple of this.
const CHANNEL_ALIGN: usize = 64;

/// Channels dequantized at a time for unquantized inputs.
const TILE: usize = 16;

/// A weight `[out, in]`.
#[derive(Debug)]
pub(crate) enum Weight {
    /// Integers in the kernel's layout.
    Packed(PackedMatrix),
    /// Row-major floats.
    F32(Vec<f32>),
    /// Row-major half-precision numbers, as bits.
    F16(ArenaSlice<u16>),
}

impl Weight {
    /// Bytes held.
    pub(crate) fn bytes(&self) -> usize {
        match self {
            Self::Packed(matrix) => matrix.bytes(),
            Self::F32(values) => values.len() * 4,
            Self::F16(values) => values.len() * 2,
        }
    }

    /// Writes the values of row `row`: the embedding lookup.
    pub(crate) fn read_row(&self, row: usize, out: &mut [f32]) {
        let at = row * out.len();
        match self {
            Self::Packed(matrix) => matrix.dequantize_row(row, out),
            Self::F32(values) => out.copy_from_slice(&values[at..at + out.len()]),
            Self::F16(values) => {
                for (out, &bits) in out.iter_mut().zip(&values[at..]) {
                    *out = squat_kernels::float::f16_to_f32(bits);
                }
            }
        }
    }
}

/// Weight and input quantizer of one or several projections of the same input (their output channels follow each
/// other).
#[derive(Debug)]
pub(crate) struct Linear {
    pub weight: Arc<Weight>,
    /// One value for each output channel, or empty. Only for weights in full precision: a packed matrix contains its bias.
    pub bias: Vec<f32>,
    pub rows: usize,
    pub cols: usize,
    /// What is applied to the rows of the input before they are quantized; the weight is stored to match.
    pub transform: Transform,
    pub input: Option<RowQuantizer>,
}

/// The input of a product in the form that the weight requires; buffers are reused.
#[derive(Debug, Default)]
pub(crate) struct Operand {
    rows: QuantizedRows,
    /// Centered codes as floats, for full-precision weights.
    values: Vec<f32>,
}

impl Operand {
    /// Room for the codes of an input, to be written by the caller.
    pub(crate) fn reset(&mut self, tokens: usize, cols: usize) -> RowsMut<'_> {
        self.rows.reset(tokens, cols);
        self.rows.as_mut()
    }

    /// Bytes held.
    pub(crate) fn bytes(&self) -> usize {
        self.rows.bytes() + self.values.capacity() * 4
    }
}

impl Linear {
    /// Bias of a channel, where there is one.
    pub(crate) fn bias(&self, channel: usize) -> Option<f32> {
        match &*self.weight {
            Weight::Packed(matrix) => matrix.bias(channel),
            _ => self.bias.get(channel).copied(),
        }
    }

    /// The quantizer of the input and the transform before it, if the product takes nothing but the codes.
    pub(crate) fn integer_input(&self) -> Option<(&RowQuantizer, Transform)> {
        let quantizer = self.input.as_ref().filter(|_| matches!(*self.weight, Weight::Packed(_)))?;
        Some((quantizer, self.transform))
    }

    /// Transforms the input `[tokens, in]`, in place, and quantizes it, token `i` at `bits[i]`.
    pub(crate) fn prepare(&self, kernels: &Kernels, x: &mut [f32], bits: &[ActBits], operand: &mut Operand) {
        kernels.transform(x, self.cols, self.transform);
        let Some(quantizer) = &self.input else { return };
        kernels.quantize_rows(&mut operand.rows, x, self.cols, bits, quantizer);
        if let Weight::Packed(_) = *self.weight {
            return;
        }
        operand.values.clear();
        for index in 0..bits.len() {
            let row = operand.rows.row(index);
            operand.values.extend(row.codes.iter().map(|&code| (i32::from(code) - row.zero_point) as f32));
        }
    }

    /// The columns of `out` of the product with a prepared input; `x` is the input itself.
    fn columns(&self, kernels: &Kernels, x: &[f32], operand: &Operand, mut out: ColumnsMut<'_>) {
        let range = out.range();
        if range.is_empty() {
            return;
        }
        let values = if self.input.is_some() { &operand.values } else { x };
        // Codes get their scale first.
        let bias = Some(&self.bias[..]).filter(|bias| self.input.is_none() && !bias.is_empty());
        match (&*self.weight, &self.input) {
            (Weight::Packed(matrix), Some(_)) => {
                kernels.linear(matrix, operand.rows.as_view(), out);
                return;
            }
            (Weight::Packed(matrix), None) => return self.dequantized(kernels, matrix, x, out),
            (Weight::F32(weight), _) => kernels.matmul_f32(values, weight, bias, self.cols, out.reborrow()),
            (Weight::F16(weight), _) => kernels.matmul_f16(values, weight, bias, self.cols, out.reborrow()),
        }
        if self.input.is_some() {
            for index in 0..out.rows() {
                let scale = operand.rows.row(index).scale;
                out.row(index).iter_mut().for_each(|y| *y *= scale);
                if !self.bias.is_empty() {
                    kernels.add(out.row(index), &self.bias[range.clone()]);
                }
            }
        }
    }

    /// Unquantized inputs times integer weights. A slow path: it allocates.
    fn dequantized(&self, kernels: &Kernels, matrix: &PackedMatrix, x: &[f32], mut out: ColumnsMut<'_>) {
        let (range, tokens) = (out.range(), out.rows());
        let mut tile = vec![0f32; TILE * self.cols];
        let mut part = vec![0f32; TILE * tokens];
        let mut bias = [0f32; TILE];
        let biased = matrix.bias(0).is_some();
        for from in range.clone().step_by(TILE) {
            let channels = TILE.min(range.end - from);
            for (channel, row) in tile.chunks_exact_mut(self.cols).take(channels).enumerate() {
                matrix.dequantize_row(from + channel, row);
                bias[channel] = matrix.bias(from + channel).unwrap_or(0.0);
            }
            let view = ColumnsMut::new(&mut part, tokens, channels);
            kernels.matmul_f32(x, &tile, biased.then_some(&bias[..]), self.cols, view);
            for token in 0..tokens {
                let at = from - range.start;
                out.row(token)[at..at + channels].copy_from_slice(&part[token * channels..][..channels]);
            }
        }
    }

    /// `out [tokens, out] = x [tokens, in] @ weight^T`, output channels shared out over the pool if one is given.
    ///
    /// [`Linear::prepare`] must have been called with the same `x`.
    pub(crate) fn product(
        &self,
        kernels: &Kernels,
        pool: Option<&Pool>,
        x: &[f32],
        operand: &Operand,
        tokens: usize,
        out: &mut [f32],
    ) {
        let out = ColumnsMut::new(out, tokens, self.rows);
        match pool.filter(|pool| pool.threads() > 1) {
            None => self.columns(kernels, x, operand, out),
            Some(pool) => {
                pool.for_each(out.split_guided(pool.threads(), CHANNEL_ALIGN), |_, part| {
                    self.columns(kernels, x, operand, part);
                });
            }
        }
    }
}
