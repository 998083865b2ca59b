//! Differences between two forms of one model.

use serde::{Deserialize, Serialize};

use crate::error::EvalError;
use crate::model::LanguageModel;
use crate::tasks::{Outcome, PairScore};

/// Difference of two sets of log-probabilities of the same tokens.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LogLikelihoodDifference {
    /// Number of sequences.
    pub n_sequences: usize,
    /// Number of tokens compared.
    pub n: usize,
    /// Largest absolute difference, in nats.
    pub max_abs: f64,
    /// Mean absolute difference, in nats.
    pub mean_abs: f64,
    /// Root of the mean squared difference, in nats.
    pub root_mean_square: f64,
    /// Mean of `b - a`, in nats: below 0, `b` is the worse model of these tokens.
    pub mean: f64,
    /// Position of the largest difference: index of the sequence, and of the value in it; none without values.
    pub worst: Option<(usize, usize)>,
}

/// Compares log-probabilities as [`LanguageModel::log_likelihoods`] returns them.
///
/// # Errors
/// [`EvalError::Mismatch`] when the shapes differ, or when a value is not finite.
pub fn compare_log_likelihoods(a: &[Vec<f32>], b: &[Vec<f32>]) -> Result<LogLikelihoodDifference, EvalError> {
    let mismatch = |what: String, left: String, right: String| EvalError::Mismatch { what, left, right };
    if a.len() != b.len() {
        return Err(mismatch("the number of sequences".to_owned(), a.len().to_string(), b.len().to_string()));
    }
    let (mut n, mut max_abs, mut sum_abs, mut squares, mut sum) = (0, 0.0, 0.0, 0.0, 0.0);
    let mut worst = None;
    for (sequence, (a, b)) in a.iter().zip(b).enumerate() {
        if a.len() != b.len() {
            let what = format!("the number of values of sequence {sequence}");
            return Err(mismatch(what, a.len().to_string(), b.len().to_string()));
        }
        for (position, (&a, &b)) in a.iter().zip(b).enumerate() {
            if !a.is_finite() || !b.is_finite() {
                let what = format!("value {position} of sequence {sequence}, which should be finite,");
                return Err(mismatch(what, a.to_string(), b.to_string()));
            }
            let difference = f64::from(b) - f64::from(a);
            if difference.abs() > max_abs || worst.is_none() {
                max_abs = difference.abs();
                worst = Some((sequence, position));
            }
            n += 1;
            sum_abs += difference.abs();
            squares += difference * difference;
            sum += difference;
        }
    }
    let count = n.max(1) as f64;
    Ok(LogLikelihoodDifference {
        n_sequences: a.len(),
        n,
        max_abs,
        mean_abs: sum_abs / count,
        root_mean_square: (squares / count).sqrt(),
        mean: sum / count,
        worst,
    })
}

/// Runs both models on the same sequences and compares their log-probabilities.
///
/// # Errors
/// Those of the models and of [`compare_log_likelihoods`].
pub fn compare_models(
    a: &mut dyn LanguageModel,
    b: &mut dyn LanguageModel,
    sequences: &[&[u32]],
) -> Result<LogLikelihoodDifference, EvalError> {
    compare_log_likelihoods(&a.log_likelihoods(sequences)?, &b.log_likelihoods(sequences)?)
}

/// Agreement of two forms on the same pairs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PairAgreement {
    /// Number of pairs.
    pub n: usize,
    /// Number of pairs with the same outcome.
    pub same: usize,
    /// Change of accuracy over all pairs from `a` to `b`, in percent.
    pub change: f64,
    /// Standard error of `change`, in percent, from the changes pair by pair: far smaller than the error of the
    /// difference of two unpaired accuracies.
    pub standard_error: f64,
}

/// Compares two models pair by pair.
///
/// # Errors
/// [`EvalError::Mismatch`] if the numbers of scores differ.
pub fn compare_pairs(a: &[PairScore], b: &[PairScore]) -> Result<PairAgreement, EvalError> {
    if a.len() != b.len() {
        return Err(EvalError::Mismatch {
            what: "the number of pairs".to_owned(),
            left: a.len().to_string(),
            right: b.len().to_string(),
        });
    }
    let credit = |score: &PairScore| match score.outcome() {
        Outcome::Good => 1.0,
        Outcome::Tie => 0.5,
        Outcome::Bad => 0.0,
    };
    let changes: Vec<f64> = a.iter().zip(b).map(|(a, b)| credit(b) - credit(a)).collect();
    let n = changes.len().max(1) as f64;
    let mean = changes.iter().sum::<f64>() / n;
    let squares: f64 = changes.iter().map(|change| (change - mean).powi(2)).sum();
    Ok(PairAgreement {
        n: changes.len(),
        same: changes.iter().filter(|change| **change == 0.0).count(),
        change: 100.0 * mean,
        standard_error: 100.0 * (squares / (n - 1.0).max(1.0) / n).sqrt(),
    })
}
