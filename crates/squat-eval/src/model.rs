//! The trait that every form of a model implements, and the trait of its tokenizer.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::error::EvalError;

/// The arithmetic in which a model is evaluated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Form {
    /// Full precision: no quantizers.
    Fp,
    /// Fake-quantized: floating point, rounded to the integer grid at every point of the quantization plan.
    Fake,
    /// Packed: integers in memory, integer products.
    Packed,
}

impl Form {
    /// Every form, in the order of the tables.
    pub const ALL: [Self; 3] = [Self::Fp, Self::Fake, Self::Packed];

    /// Its name on the command line and in JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Fp => "fp",
            Self::Fake => "fake",
            Self::Packed => "packed",
        }
    }

    /// Its name in tables and plots.
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

/// A causal language model that assigns probabilities to given tokens.
///
/// The training model, its fake-quantized form and the packed integer model implement it, so that a task runs on all of
/// them and the difference is only the cost of quantization.
pub trait LanguageModel {
    /// Name of the model in results and messages.
    fn name(&self) -> String;

    /// The arithmetic in which it runs.
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
    /// The harness calls it with sequences of similar length. An implementation may batch and pad them, but the values
    /// of a sequence must not depend on what else is in the batch.
    ///
    /// # Errors
    /// [`EvalError::Model`] with the message of the implementation.
    fn log_likelihoods(&mut self, sequences: &[&[u32]]) -> Result<Vec<Vec<f32>>, EvalError>;
}

/// Text to token ids.
pub trait Tokenize {
    /// Ids of `text`, without BOS and EOS: the harness adds BOS in front.
    ///
    /// # Errors
    /// Those of the tokenizer; the harness adds the location.
    fn encode(&self, text: &str) -> Result<Vec<u32>, Box<dyn std::error::Error + Send + Sync>>;

    /// Id of the token at the start of every sequence.
    fn bos_id(&self) -> u32;
}

/// A tokenizer made of a closure and a BOS id.
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

    fn bos_id(&self) -> u32 {
        self.bos_id
    }
}
