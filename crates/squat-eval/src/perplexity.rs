//! Perplexity of running text, per token, per word and per byte.
//!
//! A text of `N` tokens is scored in sliding windows (Hugging Face's "Perplexity of fixed-length models"). With a
//! context of `c` and a stride of `s <= c - 1`, window `k` is BOS followed by the tokens from `k s` up to
//! `min(k s + c - 1, N)`, and the last window is the first one that reaches `N`. Of each window only the tokens that
//! no earlier window has reached are scored: all tokens of the first one, the last `s` of the others (fewer at the end
//! of the text). BOS is given and never scored, every other token is scored exactly once, and windows never cross from
//! one text to the next, so `perplexity = exp(sum / tokens)`, where `sum` is the negative log-likelihood in nats.
//!
//! The default stride is `c - 1`: disjoint windows, the cheapest way. A smaller stride gives each token at least
//! `c - 1 - s` tokens of context, at `(c - 1) / s` times the cost. Figures are comparable only at the same context and
//! stride.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::error::EvalError;
use crate::model::{Form, LanguageModel};
use crate::scoring::{Scored, ScoringOptions, sum_log_likelihoods};
use crate::text::TokenizedText;

/// Length and stride of the windows that a text is scored in.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Windows {
    /// Tokens of a window, BOS included; the model's `max_length` if absent.
    pub context: Option<usize>,
    /// Tokens scored in each window after the first, at most `context - 1`; `context - 1` if absent, so that windows
    /// do not overlap.
    pub stride: Option<usize>,
}

impl Windows {
    /// Context and stride for a model that takes sequences of `max_length` tokens.
    fn resolve(self, max_length: usize) -> Result<(usize, usize), EvalError> {
        let context = self.context.unwrap_or(max_length);
        if !(2..=max_length).contains(&context) {
            return Err(EvalError::Option {
                option: "context",
                got: context.to_string(),
                expected: format!("2 to {max_length}, the longest sequence that the model takes"),
            });
        }
        let stride = self.stride.unwrap_or(context - 1);
        if !(1..context).contains(&stride) {
            return Err(EvalError::Option {
                option: "stride",
                got: stride.to_string(),
                expected: format!(
                    "1 to {}, the tokens of a window of {context} without BOS, which is not scored",
                    context - 1
                ),
            });
        }
        Ok((context, stride))
    }
}

/// Windows of one text of `n > 0` tokens: ranges of its tokens, each with the number of tokens at its end that are
/// scored.
fn windows(n: usize, context: usize, stride: usize) -> impl Iterator<Item = (std::ops::Range<usize>, usize)> {
    let length = context - 1;
    let count = 1 + n.saturating_sub(length).div_ceil(stride);
    (0..count).map(move |k| {
        let end = |k: usize| n.min(k * stride + length);
        let reached = if k == 0 { 0 } else { end(k - 1) };
        (k * stride..end(k), end(k) - reached)
    })
}

/// Perplexity of one of the texts.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TextPerplexity {
    /// `exp` of the mean negative log-likelihood of a token.
    pub perplexity: f64,
    /// Negative log-likelihood in bits, divided by the bytes of the text.
    pub bits_per_byte: f64,
    /// Number of scored tokens.
    pub n_tokens: usize,
}

/// Perplexity of all texts together.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PerplexityResult {
    /// Always `perplexity`.
    pub task: String,
    /// Name of the model.
    pub model: String,
    /// The arithmetic in which it ran.
    pub form: Form,
    /// `exp` of the mean negative log-likelihood of a token. It depends on the tokenizer.
    pub perplexity: f64,
    /// Standard error of `perplexity`, over the windows; none for a single window.
    pub standard_error: Option<f64>,
    /// Mean negative log-likelihood of a token, in nats.
    pub nll_per_token: f64,
    /// `exp` of the negative log-likelihood divided by the number of words; none without words, or if it overflows.
    pub word_perplexity: Option<f64>,
    /// Negative log-likelihood in bits, divided by the bytes of the text. It does not depend on the tokenizer.
    pub bits_per_byte: f64,
    /// Standard error of `bits_per_byte`, for a fixed number of tokens per byte.
    pub bits_per_byte_standard_error: Option<f64>,
    /// Number of scored tokens.
    pub n_tokens: usize,
    /// Number of words, separated by white space.
    pub n_words: usize,
    /// Number of UTF-8 bytes.
    pub n_bytes: usize,
    /// Number of windows.
    pub n_windows: usize,
    /// Tokens of a whole window, BOS included.
    pub context: usize,
    /// Tokens scored in each window after the first.
    pub stride: usize,
    /// Results by text.
    pub texts: BTreeMap<String, TextPerplexity>,
}

/// Perplexity of `texts`, in windows as the module's documentation says.
///
/// # Errors
/// A context below 2 or above `max_length`, a stride of 0 or of more tokens than a window scores, texts without a
/// token or of the same name, and those of [`sum_log_likelihoods`].
pub fn perplexity(
    model: &mut dyn LanguageModel,
    bos_id: u32,
    texts: &[TokenizedText],
    cut: Windows,
    options: &mut ScoringOptions<'_>,
) -> Result<PerplexityResult, EvalError> {
    let (context, stride) = cut.resolve(model.max_length())?;
    let mut names: Vec<&str> = texts.iter().map(|text| text.name.as_str()).collect();
    names.sort_unstable();
    if let Some(twice) = names.windows(2).find(|pair| pair[0] == pair[1]) {
        return Err(EvalError::Option {
            option: "texts",
            got: format!("{} twice", twice[0]),
            expected: "each name once".to_owned(),
        });
    }

    // Index of the text, and the number of the window in it.
    let mut origin = Vec::new();
    let mut sequences = Vec::new();
    for (i, text) in texts.iter().enumerate() {
        if text.tokens.is_empty() {
            return Err(EvalError::EmptyText(text.name.clone()));
        }
        for (number, (range, scored)) in windows(text.tokens.len(), context, stride).enumerate() {
            origin.push((i, number));
            sequences.push(Scored { tokens: &text.tokens[range], scored });
        }
    }
    if sequences.is_empty() {
        return Err(EvalError::EmptyText("the list of texts".to_owned()));
    }
    let location = |i: usize| format!("{}, window {}", texts[origin[i].0].name, origin[i].1 + 1);
    let sums = sum_log_likelihoods(model, bos_id, &sequences, options, &location)?;
    let nats: Vec<f64> = sums.into_iter().map(|sum| -sum).collect();

    let mut by_text = vec![0.0; texts.len()];
    for ((text, _), nats) in origin.iter().zip(&nats) {
        by_text[*text] += nats;
    }
    let n_tokens: usize = texts.iter().map(|text| text.tokens.len()).sum();
    let n_words: usize = texts.iter().map(|text| text.n_words).sum();
    let n_bytes: usize = texts.iter().map(|text| text.n_bytes).sum();
    let total: f64 = by_text.iter().sum();
    let mean = total / n_tokens as f64;
    let error = standard_error_of_ratio(&nats, sequences.iter().map(|sequence| sequence.scored), mean);
    let word_perplexity = (total / n_words as f64).exp();
    let bits_per_nat = std::f64::consts::LOG2_E;

    Ok(PerplexityResult {
        task: "perplexity".to_owned(),
        model: model.name(),
        form: model.form(),
        perplexity: mean.exp(),
        standard_error: error.map(|error| mean.exp() * error),
        nll_per_token: mean,
        word_perplexity: Some(word_perplexity).filter(|value| n_words > 0 && value.is_finite()),
        bits_per_byte: total * bits_per_nat / n_bytes as f64,
        bits_per_byte_standard_error: error
            .map(|error| error * bits_per_nat * n_tokens as f64 / n_bytes as f64),
        n_tokens,
        n_words,
        n_bytes,
        n_windows: sequences.len(),
        context,
        stride,
        texts: texts
            .iter()
            .zip(&by_text)
            .map(|(text, nats)| {
                let (n_tokens, n_bytes) = (text.tokens.len(), text.n_bytes as f64);
                let perplexity = (nats / n_tokens as f64).exp();
                (
                    text.name.clone(),
                    TextPerplexity { perplexity, bits_per_byte: nats * bits_per_nat / n_bytes, n_tokens },
                )
            })
            .collect(),
    })
}

/// Standard error of `ratio = sum(s_i) / sum(n_i)` over independent windows, by linearisation:
/// `sqrt(W / (W - 1) * sum((s_i - ratio * n_i)^2)) / sum(n_i)`.
///
/// The delta method then gives `exp(ratio) * error` for the perplexity.
fn standard_error_of_ratio(sums: &[f64], counts: impl Iterator<Item = usize>, ratio: f64) -> Option<f64> {
    if sums.len() < 2 {
        return None;
    }
    let (mut squares, mut total) = (0.0, 0.0);
    for (sum, count) in sums.iter().zip(counts) {
        squares += (sum - ratio * count as f64).powi(2);
        total += count as f64;
    }
    let windows = sums.len() as f64;
    Some((windows / (windows - 1.0) * squares).sqrt() / total)
}
