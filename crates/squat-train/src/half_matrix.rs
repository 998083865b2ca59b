//! Weights of frozen models in bf16: half the bytes, widened to `f32` whenever they are read.

use crate::autograd::multiversion;
use burn::tensor::{Device, Tensor, TensorData, bf16};

/// A `[rows, cols]` matrix on the CPU, rounded to bf16 (nearest, ties to even).
#[derive(Debug)]
pub(crate) struct HalfMatrix {
    /// Upper halves of the `f32` patterns, row-major.
    bits: Vec<u16>,
    shape: [usize; 2],
}

multiversion! {
    /// The `f32` of each bf16 pattern; both slices have one length.
    fn widen(bits: &[u16], out: &mut [f32]) {
        for (out, &bits) in out.iter_mut().zip(bits) {
            *out = f32::from_bits(u32::from(bits) << 16);
        }
    }
}

impl HalfMatrix {
    /// Rounds row-major values.
    pub fn new(values: &[f32], shape: [usize; 2]) -> Self {
        Self { bits: values.iter().map(|&x| bf16::from_f32(x).to_bits()).collect(), shape }
    }

    /// All of it as a tensor.
    pub fn widened(&self) -> Tensor<2> {
        tensor(&self.bits, self.shape)
    }

    /// These rows `[rows.len(), cols]`.
    ///
    /// # Panics
    /// When a row does not exist; callers check ids against the vocabulary.
    pub fn rows(&self, rows: &[u32]) -> Tensor<2> {
        let cols = self.shape[1];
        let bits: Vec<u16> = rows
            .iter()
            .flat_map(|&row| &self.bits[row as usize * cols..(row as usize + 1) * cols])
            .copied()
            .collect();
        tensor(&bits, [rows.len(), cols])
    }

    /// Bytes that it holds.
    pub fn bytes(&self) -> usize {
        self.bits.len() * size_of::<u16>()
    }
}

fn tensor(bits: &[u16], shape: [usize; 2]) -> Tensor<2> {
    let mut values = vec![0f32; bits.len()];
    widen(bits, &mut values);
    Tensor::from_data(TensorData::new(values, shape), &Device::flex())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_rounded_once_and_widened_exactly() {
        // Exact; a tie to the even neighbour below and above; the least that rounds up; both zeros; a subnormal.
        let ulp = 2f32.powi(-7);
        let values =
            [1.5, 1.0 + ulp / 2.0, 1.0 + 1.5 * ulp, 1.0 + 0.51 * ulp, 0.0, -0.0, f32::from_bits(0x0001_8000)];
        let want = [1.5, 1.0, 1.0 + 2.0 * ulp, 1.0 + ulp, 0.0, -0.0, f32::from_bits(0x0002_0000)];
        let half = HalfMatrix::new(&values, [7, 1]);
        let got = half.widened().into_data().try_into_vec::<f32>().unwrap();
        assert!(got.iter().zip(&want).all(|(a, b)| a.to_bits() == b.to_bits()), "{got:?}");
        assert_eq!(half.bytes(), 14);
    }

    #[test]
    fn rows_are_those_of_the_whole() {
        let values: Vec<f32> = (0..15).map(|i| i as f32 * 0.37).collect();
        let half = HalfMatrix::new(&values, [5, 3]);
        let whole = half.widened().into_data().try_into_vec::<f32>().unwrap();
        let rows = half.rows(&[4, 0, 4]);
        assert_eq!(rows.dims(), [3, 3]);
        let rows = rows.into_data().try_into_vec::<f32>().unwrap();
        assert_eq!(rows, [&whole[12..], &whole[..3], &whole[12..]].concat());
    }
}
