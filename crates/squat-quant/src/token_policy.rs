//! Which tokens get 8-bit activations: a causal rule, the same in training, prefill and decoding (METHOD.md section 5).
//!
//! The decision for token i in layer l depends only on the token's own attention row in the layer below, on its position,
//! and on a threshold stored in the model. So it can be made when the token is processed, independently of the batch.

use crate::random::mix;
use crate::scheme::ActBits;

/// The rule that chooses the activation bits of each token and layer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum TokenPolicy {
    /// Every token of every layer has the same width (rho = 1 is [`ActBits::A8`], rho = 0 is [`ActBits::A4`]).
    Uniform(ActBits),
    /// Tokens that attend strongly to the initial token: `s * (i + 1) >= theta_l`.
    SinkAttention,
    /// Control: tokens drawn at random with probability `rho`, by a hash of seed, layer and position.
    Random {
        /// Fraction of 8-bit tokens.
        rho: f32,
        /// Seed of the hash.
        seed: u64,
    },
    /// Control: the first tokens of a sequence.
    First {
        /// Positions below this one get 8 bits.
        count: usize,
    },
    /// Control: tokens whose layer input has a large Euclidean norm, compared with a threshold per layer.
    ActivationNorm,
}

/// The inputs of a decision, all of them properties of the token itself.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TokenEvidence {
    /// Position in the sequence, from 0.
    pub position: usize,
    /// Mean over heads of the token's attention probability for position 0 in the layer below; unused in layer 0.
    pub sink_probability: f32,
    /// Euclidean norm of the token's input to the layer.
    pub input_norm: f32,
}

impl TokenPolicy {
    /// The score that is compared with the layer's threshold; `None` for policies without a score.
    ///
    /// Attention to the initial token falls with the position by construction (a uniform row gives 1 / (i + 1)), so it is
    /// multiplied by `i + 1`: a score of 1 is the level of chance.
    #[inline]
    pub fn score(&self, evidence: &TokenEvidence) -> Option<f32> {
        match self {
            Self::SinkAttention => Some(evidence.sink_probability * (evidence.position + 1) as f32),
            Self::ActivationNorm => Some(evidence.input_norm),
            Self::Uniform(_) | Self::Random { .. } | Self::First { .. } => None,
        }
    }

    /// Activation bits of a token in `layer`, whose threshold is `theta`.
    ///
    /// Token 0 and layer 0 always get 8 bits, except under [`TokenPolicy::Uniform`].
    #[inline]
    pub fn decide(&self, layer: usize, theta: f32, evidence: &TokenEvidence) -> ActBits {
        if let Self::Uniform(bits) = self {
            return *bits;
        }
        if layer == 0 || evidence.position == 0 {
            return ActBits::A8;
        }
        let eight = match *self {
            Self::Uniform(_) => true,
            Self::SinkAttention | Self::ActivationNorm => {
                self.score(evidence).is_some_and(|score| score >= theta)
            }
            Self::Random { rho, seed } => hash(seed, layer, evidence.position) < rho,
            Self::First { count } => evidence.position < count,
        };
        if eight { ActBits::A8 } else { ActBits::A4 }
    }

    /// The width, if it is the same for every token, so that no evidence is needed.
    pub const fn uniform(&self) -> Option<ActBits> {
        match self {
            Self::Uniform(bits) => Some(*bits),
            _ => None,
        }
    }

    /// Name in recipes and files.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Uniform(_) => "uniform",
            Self::SinkAttention => "sink_attention",
            Self::Random { .. } => "random",
            Self::First { .. } => "first",
            Self::ActivationNorm => "activation_norm",
        }
    }
}

/// Mean over heads of the probabilities of position 0, summed in head order: [`TokenEvidence::sink_probability`].
#[inline]
pub fn mean_over_heads(sink_probs: &[f32]) -> f32 {
    let mut sum = 0.0;
    for p in sink_probs {
        sum += p;
    }
    sum / sink_probs.len() as f32
}

/// A number in [0, 1) from seed, layer and position (the finalizer of SplitMix64).
fn hash(seed: u64, layer: usize, position: usize) -> f32 {
    let z = seed
        .wrapping_add((layer as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15))
        .wrapping_add((position as u64 + 1).wrapping_mul(0xD1B5_4A32_D192_ED03));
    (mix(z) >> 40) as f32 / (1u64 << 24) as f32
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(position: usize, sink_probability: f32) -> TokenEvidence {
        TokenEvidence { position, sink_probability, input_norm: sink_probability }
    }

    #[test]
    fn layer_0_and_token_0_are_8_bit_unless_uniform() {
        for policy in [
            TokenPolicy::SinkAttention,
            TokenPolicy::Random { rho: 0.0, seed: 1 },
            TokenPolicy::First { count: 0 },
            TokenPolicy::ActivationNorm,
        ] {
            assert_eq!(policy.decide(0, f32::INFINITY, &at(5, 0.0)), ActBits::A8);
            assert_eq!(policy.decide(3, f32::INFINITY, &at(0, 0.0)), ActBits::A8);
            assert_eq!(policy.decide(3, f32::INFINITY, &at(1, 0.0)), ActBits::A4);
        }
        assert_eq!(TokenPolicy::Uniform(ActBits::A4).decide(0, 0.0, &at(0, 1.0)), ActBits::A4);
    }

    #[test]
    fn the_score_is_normalised_by_position() {
        let policy = TokenPolicy::SinkAttention;
        for position in [1, 10, 100] {
            // A uniform row scores exactly its chance level everywhere.
            let score = policy.score(&at(position, 1.0 / (position + 1) as f32)).unwrap();
            assert!((score - 1.0).abs() < 1e-6);
            assert_eq!(policy.decide(1, 0.99, &at(position, 1.0 / (position + 1) as f32)), ActBits::A8);
            assert_eq!(policy.decide(1, 1.01, &at(position, 1.0 / (position + 1) as f32)), ActBits::A4);
        }
    }

    #[test]
    fn random_tokens_come_at_the_given_rate() {
        for rho in [0.1, 0.5, 0.9] {
            let policy = TokenPolicy::Random { rho, seed: 7 };
            let eight = (1..20_001).filter(|&i| policy.decide(2, 0.0, &at(i, 0.0)) == ActBits::A8).count();
            assert!((eight as f32 / 20_000.0 - rho).abs() < 0.02, "{rho}: {eight}");
        }
    }

    #[test]
    fn nan_scores_are_4_bit() {
        assert_eq!(TokenPolicy::SinkAttention.decide(1, 0.5, &at(3, f32::NAN)), ActBits::A4);
    }
}
