//! The content of a report.

use serde::{Deserialize, Serialize};

use crate::error::EvalError;
use crate::model::Form;
use crate::perplexity::PerplexityResult;
use crate::table::{Table, fixed};
use crate::tasks::TaskResult;

/// The content of the page of one run. Empty parts are not shown.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct QuickstartReport {
    /// Heading of the page.
    pub title: String,
    /// The run that produced the figures.
    pub run: RunInfo,
    /// The training configuration, in the order of the page.
    #[serde(default)]
    pub settings: Vec<Setting>,
    /// Every logged value of every loss term.
    #[serde(default)]
    pub losses: Vec<LossPoint>,
    /// Accuracy on one task of minimal pairs, one entry per form.
    #[serde(default)]
    pub accuracy: Vec<TaskResult>,
    /// Perplexity of one held-out text, one entry per form.
    #[serde(default)]
    pub perplexity: Vec<PerplexityResult>,
    /// Bytes on disk by form.
    #[serde(default)]
    pub bytes: Vec<FormValue>,
    /// Decoding speed by form, in tokens per second.
    #[serde(default)]
    pub decode_tokens_per_second: Vec<FormValue>,
    /// Numerical agreement of the forms.
    #[serde(default)]
    pub parity: Option<Parity>,
    /// Generated text.
    #[serde(default)]
    pub samples: Vec<Sample>,
    /// Activation bits by token and layer.
    #[serde(default)]
    pub token_bits: Vec<TokenBits>,
}

/// Facts about a run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RunInfo {
    /// Version of the program.
    pub version: String,
    /// Seed of the run.
    pub seed: u64,
    /// Wall-clock seconds of the whole run.
    pub seconds: f64,
    /// Number of threads.
    pub threads: usize,
    /// Name of the CPU; empty if unknown.
    #[serde(default)]
    pub cpu: String,
    /// Name of the integer kernels; empty if unknown.
    #[serde(default)]
    pub kernel: String,
}

/// One line of the configuration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Setting {
    /// Its section: a stage, the model, the data.
    pub section: String,
    /// Its key.
    pub name: String,
    /// Its value as text.
    pub value: String,
}

/// One logged value of one term of the loss.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LossPoint {
    /// Name of the training stage.
    pub stage: String,
    /// Optimizer step within the stage.
    pub step: u64,
    /// Name of the term.
    pub term: String,
    /// Its value; a non-finite one leaves a gap in the curve.
    pub value: f64,
}

/// A figure of one form.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct FormValue {
    /// The form.
    pub form: Form,
    /// The figure.
    pub value: f64,
}

/// Numerical agreement of the forms.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Parity {
    /// Largest difference of a logit between the fake-quantized and the packed form.
    pub max_abs_logit_diff: f64,
    /// Largest difference of a logit between one prefill and token-by-token decoding of the packed form.
    pub prefill_decode_max_abs_diff: f64,
}

/// A generated text.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sample {
    /// The form that wrote it.
    pub form: Form,
    /// The prompt.
    pub prompt: String,
    /// The continuation.
    pub text: String,
}

/// Activation bits of the tokens of one sentence.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenBits {
    /// The tokens as text, BOS first. A leading space may be written as a space, as `Ġ` or as `▁`.
    pub tokens: Vec<String>,
    /// `layers[layer][token]`: number of bits.
    pub layers: Vec<Vec<u8>>,
}

impl QuickstartReport {
    /// The forms that have any figure, in the order of [`Form::ALL`].
    pub fn forms(&self) -> Vec<Form> {
        let known = |form: &Form| {
            self.accuracy.iter().any(|result| result.form == *form)
                || self.perplexity.iter().any(|result| result.form == *form)
                || self.bytes.iter().chain(&self.decode_tokens_per_second).any(|value| value.form == *form)
        };
        Form::ALL.into_iter().filter(known).collect()
    }

    /// One row per form: accuracy, perplexity, size and speed.
    pub fn summary_table(&self) -> Table {
        let mut table = Table::new(["form", "accuracy, %", "perplexity", "size", "decode, tokens/s"]);
        let plus_minus = |value: f64, error: Option<f64>, decimals: usize| match error {
            Some(error) => format!("{value:.decimals$} ± {error:.decimals$}"),
            None => format!("{value:.decimals$}"),
        };
        for form in self.forms() {
            let accuracy = self.accuracy.iter().find(|result| result.form == form);
            let perplexity = self.perplexity.iter().find(|result| result.form == form);
            let dash = || "-".to_owned();
            table.push([
                form.title().to_owned(),
                accuracy.map_or_else(dash, |r| plus_minus(r.average, Some(r.standard_error), 2)),
                perplexity.map_or_else(dash, |r| plus_minus(r.perplexity, r.standard_error, 3)),
                value_of(&self.bytes, form).map_or_else(dash, format_bytes),
                fixed(value_of(&self.decode_tokens_per_second, form), 0),
            ]);
        }
        table
    }

    pub(super) fn check(&self) -> Result<(), EvalError> {
        for (sentence, bits) in self.token_bits.iter().enumerate() {
            for (layer, row) in bits.layers.iter().enumerate() {
                if row.len() != bits.tokens.len() {
                    return Err(EvalError::Mismatch {
                        what: format!("the number of tokens of sentence {sentence}, layer {layer}"),
                        left: bits.tokens.len().to_string(),
                        right: row.len().to_string(),
                    });
                }
            }
        }
        Ok(())
    }
}

/// The figure of `form`, if any.
pub(super) fn value_of(values: &[FormValue], form: Form) -> Option<f64> {
    values.iter().find(|value| value.form == form).map(|value| value.value)
}

/// Decimal units, three significant digits: `1.93 MB`.
pub(super) fn format_bytes(bytes: f64) -> String {
    let units = ["B", "kB", "MB", "GB", "TB"];
    let (mut value, mut unit) = (bytes, 0);
    while value >= 999.5 && unit + 1 < units.len() {
        value /= 1000.0;
        unit += 1;
    }
    let decimals = match value {
        _ if unit == 0 => 0,
        v if v >= 99.95 => 0,
        v if v >= 9.995 => 1,
        _ => 2,
    };
    format!("{value:.decimals$} {}", units[unit])
}
