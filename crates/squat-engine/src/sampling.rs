//! From logits to a token: greedy, temperature, top-k, top-p; the same token for the same seed on every machine.

use crate::error::{EngineError, Result};
use squat_quant::math::exp;
use squat_quant::random::SplitMix64;

/// How tokens are drawn.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampling {
    /// Divides the logits; 0 takes the most probable token.
    pub temperature: f32,
    /// Draw only from this many of the most probable tokens; 0 means all.
    pub top_k: usize,
    /// Draw only from the most probable tokens that together have at least this probability; 1 means all.
    pub top_p: f32,
    /// Seed of the generator.
    pub seed: u64,
}

impl Default for Sampling {
    /// Greedy.
    fn default() -> Self {
        Self { temperature: 0.0, top_k: 0, top_p: 1.0, seed: 0 }
    }
}

impl Sampling {
    /// Checks the ranges.
    ///
    /// # Errors
    /// A temperature that is negative or not finite, a `top_p` outside (0, 1].
    pub fn validate(&self) -> Result<()> {
        if !(self.temperature >= 0.0 && self.temperature.is_finite()) {
            return Err(EngineError::Option {
                option: "temperature",
                expected: "a finite number of at least 0".to_owned(),
                got: self.temperature.to_string(),
            });
        }
        if !(self.top_p > 0.0 && self.top_p <= 1.0) {
            return Err(EngineError::Option {
                option: "top_p",
                expected: "a number above 0 and up to 1".to_owned(),
                got: self.top_p.to_string(),
            });
        }
        Ok(())
    }
}

/// Draws tokens from logits; keeps its buffers and the state of its generator.
#[derive(Clone, Debug)]
pub struct Sampler {
    sampling: Sampling,
    rng: SplitMix64,
    /// (logit, then weight; token).
    candidates: Vec<(f32, u32)>,
}

impl Sampler {
    /// A sampler at the start of its seed's sequence.
    ///
    /// # Errors
    /// As [`Sampling::validate`].
    pub fn new(sampling: Sampling) -> Result<Self> {
        sampling.validate()?;
        Ok(Self { sampling, rng: SplitMix64::new(sampling.seed), candidates: Vec::new() })
    }

    /// A token for finite, non-empty `logits [vocabulary]`; ties go to the lower id. One random number is used
    /// unless the temperature is 0.
    ///
    /// An empty slice gives token 0.
    pub fn sample(&mut self, logits: &[f32]) -> u32 {
        if self.sampling.temperature == 0.0 {
            return greedy(logits);
        }
        let Sampling { temperature, top_k, top_p, .. } = self.sampling;
        self.candidates.clear();
        self.candidates.extend(logits.iter().zip(0..).map(|(&logit, id)| (logit, id)));
        // A total order, so that no sorting algorithm can change the outcome.
        let order = |a: &(f32, u32), b: &(f32, u32)| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1));
        let keep = if top_k == 0 { logits.len() } else { top_k.min(logits.len()) };
        if keep < logits.len() {
            self.candidates.select_nth_unstable_by(keep, order);
            self.candidates.truncate(keep);
        }
        if keep < logits.len() || top_p < 1.0 {
            self.candidates.sort_unstable_by(order);
        }
        let largest = self.candidates.iter().fold(f32::NEG_INFINITY, |a, c| a.max(c.0));
        let mut total = 0f64;
        for candidate in &mut self.candidates {
            // Differences of huge logits may overflow to -inf, which exp clamps to its smallest value: a probability
            // of 1e-38, never drawn in practice.
            candidate.0 = exp((candidate.0 - largest) / temperature);
            total += f64::from(candidate.0);
        }
        if top_p < 1.0 {
            let (mut sum, limit) = (0f64, total * f64::from(top_p));
            let kept = self.candidates.iter().position(|candidate| {
                sum += f64::from(candidate.0);
                sum >= limit
            });
            if let Some(last) = kept {
                self.candidates.truncate(last + 1);
                total = sum;
            }
        }
        let mut rest = self.rng.uniform() * total;
        for &(weight, id) in &self.candidates {
            rest -= f64::from(weight);
            if rest < 0.0 {
                return id;
            }
        }
        // Rounding left a remainder: it goes to the last candidate.
        self.candidates.last().map_or(0, |&(_, id)| id)
    }
}

/// The most probable token, the lowest id among equals.
pub fn greedy(logits: &[f32]) -> u32 {
    squat_kernels::float::argmax(logits).unwrap_or(0) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    fn draws(sampling: Sampling, logits: &[f32], n: usize) -> Vec<usize> {
        let mut sampler = Sampler::new(sampling).unwrap();
        let mut counts = vec![0; logits.len()];
        for _ in 0..n {
            counts[sampler.sample(logits) as usize] += 1;
        }
        counts
    }

    #[test]
    fn greedy_takes_the_first_of_equals() {
        assert_eq!(greedy(&[0.0, 3.0, 3.0, -1.0]), 1);
        assert_eq!(draws(Sampling::default(), &[0.0, 3.0, 3.0], 5), [0, 5, 0]);
    }

    #[test]
    fn frequencies_follow_the_probabilities() {
        let logits = [0.0, 2.0f32.ln(), 5.0f32.ln()];
        let sampling = Sampling { temperature: 1.0, seed: 3, ..Sampling::default() };
        let counts = draws(sampling, &logits, 8000);
        for (count, share) in counts.iter().zip([0.125, 0.25, 0.625]) {
            assert!((*count as f64 / 8000.0 - share).abs() < 0.02, "{counts:?}");
        }
        // Half the temperature squares the ratios: 1 : 4 : 25.
        let counts = draws(Sampling { temperature: 0.5, ..sampling }, &logits, 8000);
        assert!((counts[2] as f64 / 8000.0 - 25.0 / 30.0).abs() < 0.02, "{counts:?}");
    }

    #[test]
    fn top_k_and_top_p_cut_the_tail() {
        let logits: Vec<f32> = [1.0f32, 4.0, 2.0, 3.0].iter().map(|p| p.ln()).collect();
        let base = Sampling { temperature: 1.0, seed: 1, ..Sampling::default() };
        let two = draws(Sampling { top_k: 2, ..base }, &logits, 2000);
        assert!(two[0] == 0 && two[2] == 0 && two[1] > 0 && two[3] > 0, "{two:?}");
        // 0.4 + 0.3 reach 0.65, the next is cut off.
        let most = draws(Sampling { top_p: 0.65, ..base }, &logits, 2000);
        assert!(most[0] == 0 && most[2] == 0 && most[1] > 0 && most[3] > 0, "{most:?}");
        assert_eq!(draws(Sampling { top_k: 1, ..base }, &logits, 50)[1], 50);
        assert_eq!(draws(Sampling { top_p: 1e-6, ..base }, &logits, 50)[1], 50);
    }

    #[test]
    fn a_seed_fixes_the_sequence() {
        let logits: Vec<f32> = (0..50).map(|i| (i * 7 % 13) as f32 * 0.3).collect();
        let run = |seed| {
            let mut sampler =
                Sampler::new(Sampling { temperature: 0.8, top_k: 20, top_p: 0.9, seed }).unwrap();
            (0..40).map(|_| sampler.sample(&logits)).collect::<Vec<_>>()
        };
        assert_eq!(run(7), run(7));
        assert_ne!(run(7), run(8));
    }

    #[test]
    fn options_are_checked() {
        for bad in [
            Sampling { temperature: -1.0, ..Sampling::default() },
            Sampling { temperature: f32::NAN, ..Sampling::default() },
            Sampling { top_p: 0.0, ..Sampling::default() },
            Sampling { top_p: 1.5, ..Sampling::default() },
        ] {
            let message = Sampler::new(bad).unwrap_err().to_string();
            assert!(message.contains("expected") && message.contains("got"), "{message}");
        }
    }
}
