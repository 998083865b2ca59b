//! The one trait that every form of a model implements, and the tokenizer beside it.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::error::EvalError;

/// In which arithmetic a model was evaluated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Form {
    /// Full precision: no quantizer anywhere.
    Fp,
    /// Fake-quantized: floating point, rounded to the integer grids at every point of the quantization plan.
    Fake,
    /// Packed: integers in memory, integer products.
    Packed,
}

impl Form {
    /// Every form, in the order of the tables.
    pub const ALL: [Self; 3] = [Self::Fp, Self::Fake, Self::Packed];

    /// The word used on the command line and in JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Fp => "fp",
            Self::Fake => "fake",
            Self::Packed => "packed",
        }
    }

    /// The words of tables and plots.
    pub fn title(self) -> &'static str {
        match self {
            Self::Fp => "full precision",
            Self::Fake => "fake-quantized",
            Self::Packed => "packed",
        }
    }
}

impl fmt::Display for Form {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for Form {
    type Err = EvalError;

    fn from_str(text: &str) -> Result<Self, EvalError> {
        Self::ALL
            .into_iter()
            .find(|form| form.as_str() == text)
            .ok_or_else(|| EvalError::unknown_name("form", text, &Self::ALL.map(Self::as_str)))
    }
}

/// A causal language model that gives probabilities to given tokens.
///
/// The training model, its fake-quantized form and the packed integer model implement it, so that one task runs on
/// all of them and the difference is the cost of quantization alone.
pub trait LanguageModel {
    /// What to call the model in results and messages.
    fn name(&self) -> String;

    /// In which arithmetic it runs.
    fn form(&self) -> Form;

    /// Number of token ids; valid ids are `0..vocab_size`.
    fn vocab_size(&self) -> usize;

    /// Longest sequence it takes, BOS included.
    fn max_length(&self) -> usize;

    /// Natural-log probabilities of given tokens.
    ///
    /// `sequences`: any number of sequences of `n >= 2` ids in `0..vocab_size`, `n <= max_length`, position 0 being
    /// BOS. Returned, per sequence: `n - 1` values, value `i` being `ln p(token[i + 1] | token[0..=i])`.
    ///
    /// The harness calls it with sequences of similar length. An implementation may batch and pad as it likes, but
    /// the values of a sequence must not depend on its company.
    ///
    /// # Errors
    /// [`EvalError::Model`] with the implementation's own message.
    fn log_likelihoods(&mut self, sequences: &[&[u32]]) -> Result<Vec<Vec<f32>>, EvalError>;
}

/// Text to token ids.
pub trait Tokenize {
    /// Ids of `text`, without BOS and without EOS.
    ///
    /// # Errors
    /// The tokenizer's own message; the harness adds the place.
    fn encode(&self, text: &str) -> Result<Vec<u32>, Box<dyn std::error::Error + Send + Sync>>;

    /// What a model is fed for `text`: BOS, once, then its ids.
    ///
    /// # Errors
    /// As [`Tokenize::encode`].
    fn encode_prompt(&self, text: &str) -> Result<Vec<u32>, Box<dyn std::error::Error + Send + Sync>>;

    /// Id of the token that begins every sequence.
    fn bos_id(&self) -> u32;
}

/// A [`Tokenize`] made of a closure and a BOS id.
pub struct FnTokenizer<F> {
    bos_id: u32,
    encode: F,
}

impl<F, E> FnTokenizer<F>
where
    F: Fn(&str) -> Result<Vec<u32>, E>,
    E: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    /// `encode` must add neither BOS nor EOS.
    pub fn new(bos_id: u32, encode: F) -> Self {
        Self { bos_id, encode }
    }
}

impl<F, E> Tokenize for FnTokenizer<F>
where
    F: Fn(&str) -> Result<Vec<u32>, E>,
    E: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    fn encode(&self, text: &str) -> Result<Vec<u32>, Box<dyn std::error::Error + Send + Sync>> {
        (self.encode)(text).map_err(Into::into)
    }

    fn encode_prompt(&self, text: &str) -> Result<Vec<u32>, Box<dyn std::error::Error + Send + Sync>> {
        let mut ids = self.encode(text)?;
        if ids.first() != Some(&self.bos_id) {
            ids.insert(0, self.bos_id);
        }
        Ok(ids)
    }

    fn bos_id(&self) -> u32 {
        self.bos_id
    }
}
