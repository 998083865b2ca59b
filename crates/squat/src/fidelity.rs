//! How near a quantized model is to its original, on held-out text.

use anyhow::Result;
use serde_json::{Value, json};
use squat_engine::Engine;
use squat_engine::sampling::greedy;
use squat_kernels::Kernels;
use std::sync::Mutex;

/// Sums over predicted tokens.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Fidelity {
    /// Tokens predicted.
    pub tokens: usize,
    /// Negative log-likelihood under the original, nats.
    pub original: f64,
    /// The same under the quantized model.
    pub quantized: f64,
    /// Sum of KL(original || quantized), nats.
    pub divergence: f64,
    /// Tokens for which both models find the same token most probable.
    pub equal: usize,
}

// `squat pack` shows less of it than `squat quantize`, which the edge build lacks.
#[cfg_attr(not(feature = "train"), allow(dead_code))]
impl Fidelity {
    /// Compares two models with one vocabulary on windows of token ids that begin with BOS, each of two tokens or more.
    pub fn measure(
        original: &Engine,
        quantized: &Engine,
        windows: &[Vec<u32>],
        threads: usize,
    ) -> Result<Self> {
        let (original, quantized) = (original.with_threads(1)?, quantized.with_threads(1)?);
        let found = Mutex::new(vec![Self::default(); windows.len()]);
        let windows = Mutex::new(windows.iter().enumerate());
        let work = || -> Result<()> {
            loop {
                let next = windows.lock().unwrap_or_else(|e| e.into_inner()).next();
                let Some((at, window)) = next else { return Ok(()) };
                let one = Self::of_window(&original, &quantized, window)?;
                found.lock().unwrap_or_else(|e| e.into_inner())[at] = one;
            }
        };
        std::thread::scope(|scope| {
            let others: Vec<_> = (1..threads).map(|_| scope.spawn(work)).collect();
            let first = work();
            others
                .into_iter()
                .map(|handle| handle.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
                .fold(first, Result::and)
        })?;
        // In the order of the windows, so that threads change no digit.
        let mut total = Self::default();
        found.into_inner().unwrap_or_else(|e| e.into_inner()).iter().for_each(|one| total.add(one));
        Ok(total)
    }

    fn of_window(original: &Engine, quantized: &Engine, window: &[u32]) -> Result<Self> {
        let logits = original.session()?.prefill_all(&window[..window.len() - 1])?;
        Self::from_logits(&logits, quantized, window)
    }

    /// The same from the original's logits after each token but the last.
    pub fn from_logits(logits: &[f32], quantized: &Engine, window: &[u32]) -> Result<Self> {
        let inputs = &window[..window.len() - 1];
        let vocabulary = quantized.spec().vocab_size;
        let kernels = Kernels::detect();
        let mut found = Self::default();
        quantized.session()?.for_each_logits(inputs, |at, other| {
            let own = &logits[at * vocabulary..(at + 1) * vocabulary];
            let next = window[at + 1] as usize;
            // The logarithm of a softmax is the logit and a number that all tokens share.
            let shared = |logits: &[f32]| kernels.log_softmax_at(logits, next) - f64::from(logits[next]);
            let (p, q) = (shared(own), shared(other));
            found.tokens += 1;
            found.original -= p + f64::from(own[next]);
            found.quantized -= q + f64::from(other[next]);
            found.equal += usize::from(greedy(own) == greedy(other));
            let terms = own.iter().zip(other).map(|(&a, &b)| {
                let (log_p, log_q) = (f64::from(a) + p, f64::from(b) + q);
                log_p.exp() * (log_p - log_q)
            });
            found.divergence += terms.sum::<f64>();
        })?;
        Ok(found)
    }

    /// Adds the sums of other tokens.
    pub fn add(&mut self, other: &Self) {
        self.tokens += other.tokens;
        self.original += other.original;
        self.quantized += other.quantized;
        self.divergence += other.divergence;
        self.equal += other.equal;
    }

    /// Perplexity of the original and of the quantized model.
    pub fn perplexities(&self) -> [f64; 2] {
        [self.original, self.quantized].map(|sum| (sum / self.tokens.max(1) as f64).exp())
    }

    /// Perplexity of the quantized model over that of the original.
    pub fn ratio(&self) -> f64 {
        let [before, after] = self.perplexities();
        after / before
    }

    /// Share of equal next tokens, 0 to 1.
    pub fn agreement(&self) -> f64 {
        self.equal as f64 / self.tokens.max(1) as f64
    }

    /// Mean divergence, nats per token.
    pub fn mean_divergence(&self) -> f64 {
        self.divergence / self.tokens.max(1) as f64
    }

    /// All figures, by name.
    pub fn to_json(self) -> Value {
        let [before, after] = self.perplexities();
        json!({
            "tokens": self.tokens,
            "perplexity_before": before,
            "perplexity_after": after,
            "ratio": self.ratio(),
            "equal_next_tokens": self.agreement(),
            "kl_divergence": self.mean_divergence(),
        })
    }
}
