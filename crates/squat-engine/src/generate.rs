//! Text generation: prompt in, tokens out one at a time.

use crate::error::{EngineError, Result};
use crate::sampling::{Sampler, Sampling};
use crate::session::Session;

/// What to generate.
#[derive(Clone, Debug, PartialEq)]
pub struct GenerateOptions {
    /// Most tokens to generate.
    pub max_tokens: usize,
    /// How tokens are drawn.
    pub sampling: Sampling,
    /// Tokens that end the text; they are neither reported nor kept.
    pub stop_ids: Vec<u32>,
}

impl Default for GenerateOptions {
    /// 128 greedy tokens, no stop token.
    fn default() -> Self {
        Self { max_tokens: 128, sampling: Sampling::default(), stop_ids: Vec::new() }
    }
}

/// Why generation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FinishReason {
    /// A stop token was drawn.
    Stop,
    /// `max_tokens` were generated.
    Length,
    /// The session is full.
    Capacity,
    /// The callback returned `false`.
    Cancelled,
}

/// What was generated.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Generation {
    /// The tokens, without the prompt.
    pub tokens: Vec<u32>,
    /// Why there are no more.
    pub finish: FinishReason,
}

impl Session {
    /// Feeds `prompt` after the tokens held, then generates; each token is shown to `on_token`, which returns whether
    /// to go on.
    ///
    /// The same prompt, options and model give the same tokens on every machine and for any number of threads.
    ///
    /// # Errors
    /// As [`Session::prefill`], or options out of range.
    pub fn generate(
        &mut self,
        prompt: &[u32],
        options: &GenerateOptions,
        mut on_token: impl FnMut(u32) -> bool,
    ) -> Result<Generation> {
        let mut sampler = Sampler::new(options.sampling)?;
        if prompt.is_empty() && self.position() == 0 {
            return Err(EngineError::Empty { what: "the prompt", expected: "the BOS token" });
        }
        if !prompt.is_empty() {
            self.prefill(prompt)?;
        }
        let mut tokens = Vec::new();
        let finish = loop {
            if tokens.len() == options.max_tokens {
                break FinishReason::Length;
            }
            let token = sampler.sample(self.logits());
            if options.stop_ids.contains(&token) {
                break FinishReason::Stop;
            }
            tokens.push(token);
            if !on_token(token) {
                break FinishReason::Cancelled;
            }
            if tokens.len() == options.max_tokens {
                break FinishReason::Length;
            }
            if self.position() == self.capacity() {
                break FinishReason::Capacity;
            }
            self.decode(token)?;
        };
        Ok(Generation { tokens, finish })
    }
}
