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
    /// Only ids below this are drawn: a table may have rows beyond its tokenizer's ids. `None` draws from all.
    pub vocabulary: Option<usize>,
}

impl Default for GenerateOptions {
    /// 128 greedy tokens, no stop token.
    fn default() -> Self {
        Self { max_tokens: 128, sampling: Sampling::default(), stop_ids: Vec::new(), vocabulary: None }
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

/// The result of generating.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Generation {
    /// The tokens, without the prompt.
    pub tokens: Vec<u32>,
    /// Why generation ended.
    pub finish: FinishReason,
}

/// Chooses the tokens of one text and knows when it ends.
#[derive(Debug)]
pub(crate) struct TokenChooser {
    sampler: Sampler,
    stop_ids: Vec<u32>,
    vocabulary: usize,
    /// Tokens that may still come.
    left: usize,
}

impl TokenChooser {
    /// # Errors
    /// Options out of range.
    pub(crate) fn new(options: GenerateOptions) -> Result<Self> {
        let GenerateOptions { max_tokens, sampling, stop_ids, vocabulary } = options;
        if vocabulary == Some(0) {
            return Err(EngineError::Option {
                option: "vocabulary",
                expected: "at least 1 id to draw from".to_owned(),
                got: "0".to_owned(),
            });
        }
        let vocabulary = vocabulary.unwrap_or(usize::MAX);
        Ok(Self { sampler: Sampler::new(sampling)?, stop_ids, vocabulary, left: max_tokens })
    }

    /// The next token, or why the text ends before it.
    pub(crate) fn choose(&mut self, logits: &[f32]) -> std::result::Result<u32, FinishReason> {
        if self.left == 0 {
            return Err(FinishReason::Length);
        }
        let token = self.sampler.sample(&logits[..self.vocabulary.min(logits.len())]);
        if self.stop_ids.contains(&token) {
            return Err(FinishReason::Stop);
        }
        self.left -= 1;
        Ok(token)
    }

    /// Why the text ends after the token just chosen, if it does; `full`: the sequence cannot hold that token.
    pub(crate) fn ended(&self, full: bool) -> Option<FinishReason> {
        match (self.left, full) {
            (0, _) => Some(FinishReason::Length),
            (_, true) => Some(FinishReason::Capacity),
            _ => None,
        }
    }
}

impl Session {
    /// Feeds `prompt` after the tokens held, then generates; each token is passed to `on_token`, which returns whether
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
        let mut chooser = TokenChooser::new(options.clone())?;
        if prompt.is_empty() && self.position() == 0 {
            return Err(EngineError::Empty { what: "the prompt", expected: "the BOS token" });
        }
        if !prompt.is_empty() {
            self.prefill(prompt)?;
        }
        let mut tokens = Vec::new();
        let finish = loop {
            let token = match chooser.choose(self.logits()) {
                Ok(token) => token,
                Err(reason) => break reason,
            };
            tokens.push(token);
            if !on_token(token) {
                break FinishReason::Cancelled;
            }
            if let Some(reason) = chooser.ended(self.position() == self.capacity()) {
                break reason;
            }
            self.decode(token)?;
        };
        Ok(Generation { tokens, finish })
    }
}
