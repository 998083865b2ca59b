//! Rotary position embedding: frequencies and tables, and weights that were written for pairs of neighbours.

use crate::error::ModelError;

/// Rotary position embedding of a model.
#[derive(Clone, Debug, PartialEq)]
pub struct Rope {
    /// Base of the frequencies.
    pub theta: f64,
    /// How the frequencies are stretched for longer contexts.
    pub scaling: RopeScaling,
}

/// How RoPE frequencies are changed, under the names of Hugging Face's `rope_type`.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum RopeScaling {
    /// Not at all.
    #[default]
    Default,
    /// Every frequency is divided by `factor`: positions are interpolated.
    Linear {
        /// At least 1.
        factor: f64,
    },
    /// Low frequencies are divided by `factor`, high ones kept, those between blended (Llama 3.1).
    Llama3 {
        /// At least 1.
        factor: f64,
        /// Wavelengths above `original_max_position_embeddings / low_freq_factor` are scaled in full.
        low_freq_factor: f64,
        /// Wavelengths below `original_max_position_embeddings / high_freq_factor` are kept.
        high_freq_factor: f64,
        /// Context length before scaling, in tokens.
        original_max_position_embeddings: usize,
    },
}

impl Rope {
    /// Unscaled frequencies of a base.
    pub const fn new(theta: f64) -> Self {
        Self { theta, scaling: RopeScaling::Default }
    }

    /// Checks that the numbers describe frequencies.
    ///
    /// # Errors
    /// The first key with a wrong value.
    pub fn validate(&self) -> Result<(), ModelError> {
        let positive = |key: &str, value: f64| match value.is_finite() && value > 0.0 {
            true => Ok(()),
            false => Err(ModelError::config(key, "a positive finite number", value.to_string(), "")),
        };
        positive("rope_theta", self.theta)?;
        match self.scaling {
            RopeScaling::Default => Ok(()),
            RopeScaling::Linear { factor } => positive("rope_parameters.factor", factor),
            RopeScaling::Llama3 { factor, low_freq_factor: low, high_freq_factor: high, .. } => {
                positive("rope_parameters.factor", factor)?;
                positive("rope_parameters.low_freq_factor", low)?;
                if high.is_finite() && high > low {
                    return Ok(());
                }
                let expected = format!("a number above low_freq_factor = {low}");
                Err(ModelError::config("rope_parameters.high_freq_factor", expected, high.to_string(), ""))
            }
        }
    }

    /// Angle per position of each pair of elements, `[head_dim / 2]`.
    pub fn inverse_frequencies(&self, head_dim: usize) -> Vec<f64> {
        let unscaled = |i: usize| libm::pow(self.theta, -(2.0 * i as f64) / head_dim as f64);
        (0..head_dim / 2).map(|i| self.scaling.apply(unscaled(i))).collect()
    }

    /// Cosines and sines, each `[positions, head_dim / 2]` row-major.
    ///
    /// Entry `(p, i)` belongs to the angle `p * inverse_frequencies[i]`, which turns the pair of elements `i` and
    /// `i + head_dim / 2` of a head (the Hugging Face convention). Computed in f64 with a portable library and rounded
    /// once, so that every machine has the same bits.
    pub fn tables(&self, positions: usize, head_dim: usize) -> (Vec<f32>, Vec<f32>) {
        let frequencies = self.inverse_frequencies(head_dim);
        let mut cos = Vec::with_capacity(positions * frequencies.len());
        let mut sin = Vec::with_capacity(positions * frequencies.len());
        for position in 0..positions {
            for frequency in &frequencies {
                let (s, c) = libm::sincos(position as f64 * frequency);
                cos.push(c as f32);
                sin.push(s as f32);
            }
        }
        (cos, sin)
    }
}

impl RopeScaling {
    fn apply(self, frequency: f64) -> f64 {
        match self {
            Self::Default => frequency,
            Self::Linear { factor } => frequency / factor,
            Self::Llama3 {
                factor,
                low_freq_factor: low,
                high_freq_factor: high,
                original_max_position_embeddings: original,
            } => {
                // Turns within the original context.
                let turns = original as f64 * frequency / std::f64::consts::TAU;
                let kept = ((turns - low) / (high - low)).clamp(0.0, 1.0);
                kept * frequency + (1.0 - kept) * frequency / factor
            }
        }
    }
}

/// Reorders the rows of each head from pairs `(2i, 2i + 1)` to pairs `(i, i + head_dim / 2)`.
pub(crate) fn half_rotation(weight: &[f32], head_dim: usize, cols: usize) -> Vec<f32> {
    let mut out = Vec::with_capacity(weight.len());
    for head in weight.chunks_exact(head_dim * cols) {
        for offset in [0, 1] {
            for row in (offset..head_dim).step_by(2) {
                out.extend_from_slice(&head[row * cols..(row + 1) * cols]);
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_paired_half_a_head_apart() {
        // Two heads of four rows of two columns; a row is named by its first value.
        let weight: Vec<f32> = (0..16).map(|i| i as f32).collect();
        let rows: Vec<f32> = half_rotation(&weight, 4, 2).iter().step_by(2).copied().collect();
        assert_eq!(rows, [0.0, 4.0, 2.0, 6.0, 8.0, 12.0, 10.0, 14.0]);
    }

    #[test]
    fn angles() {
        let (cos, sin) = Rope::new(10_000.0).tables(5, 8);
        assert_eq!((cos.len(), sin.len()), (20, 20));
        assert_eq!((&cos[..4], &sin[..4]), (&[1.0f32; 4][..], &[0.0f32; 4][..]));
        for (p, i) in [(1, 0), (3, 2), (4, 3)] {
            let angle = p as f64 * 10_000f64.powf(-2.0 * i as f64 / 8.0);
            assert!((f64::from(cos[p * 4 + i]) - angle.cos()).abs() < 1e-7);
            assert!((f64::from(sin[p * 4 + i]) - angle.sin()).abs() < 1e-7);
        }
    }

    #[test]
    fn scaled_frequencies() {
        let plain = Rope::new(500_000.0).inverse_frequencies(64);
        let linear = Rope { theta: 500_000.0, scaling: RopeScaling::Linear { factor: 4.0 } };
        assert!(linear.inverse_frequencies(64).iter().zip(&plain).all(|(a, b)| *a == b / 4.0));
        let scaling = RopeScaling::Llama3 {
            factor: 32.0,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_max_position_embeddings: 8192,
        };
        let llama3 = Rope { theta: 500_000.0, scaling }.inverse_frequencies(64);
        // Short wavelengths are kept, long ones divided, the ratio never leaves that range and never rises.
        assert_eq!((llama3[0], llama3[31]), (plain[0], plain[31] / 32.0));
        let ratios: Vec<f64> = llama3.iter().zip(&plain).map(|(a, b)| a / b).collect();
        assert!(ratios.windows(2).all(|pair| pair[1] <= pair[0] + 1e-12), "{ratios:?}");
        assert!(ratios.iter().any(|&ratio| ratio > 0.05 && ratio < 0.95), "{ratios:?}");
        let high = RopeScaling::Llama3 {
            factor: 8.0,
            low_freq_factor: 4.0,
            high_freq_factor: 4.0,
            original_max_position_embeddings: 8192,
        };
        assert!(Rope { theta: 1e4, scaling: high }.validate().is_err());
        assert!(Rope::new(f64::NAN).validate().is_err());
    }
}
