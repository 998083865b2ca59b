//! Scores of minimal pairs and their summary.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::error::EvalError;
use crate::model::{Form, LanguageModel, Tokenize};
use crate::scoring::{Scored, ScoringOptions, sum_log_likelihoods};
use crate::tasks::pairs::PairSet;

/// The sentence of a pair that the model prefers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// The good one, which counts 1.
    Good,
    /// Neither, which counts one half.
    Tie,
    /// The bad one, which counts 0.
    Bad,
}

/// The two log-probabilities of a pair.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PairScore {
    /// Sum of the natural-log probabilities of the good sentence's tokens after BOS.
    pub good: f64,
    /// The same for the bad sentence.
    pub bad: f64,
}

impl PairScore {
    /// The more probable sentence. Only exactly equal sums are a tie.
    pub fn outcome(self) -> Outcome {
        if self.good > self.bad {
            Outcome::Good
        } else if self.good == self.bad {
            Outcome::Tie
        } else {
            Outcome::Bad
        }
    }
}

/// Accuracy on one paradigm.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ParadigmResult {
    /// The group that it is averaged into.
    pub group: String,
    /// Percent, 0 to 100.
    pub accuracy: f64,
    /// Number of pairs.
    pub n: usize,
    /// Number of pairs with equal scores.
    pub ties: usize,
}

/// Accuracy on a task of minimal pairs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TaskResult {
    /// Name of the task.
    pub task: String,
    /// Name of the model.
    pub model: String,
    /// The arithmetic in which it ran.
    pub form: Form,
    /// Mean over the groups, in percent; for the complete BLiMP this is "BLiMP-12".
    pub average: f64,
    /// Standard error of `average`, in percent, over the sampling of pairs (not over training seeds).
    pub standard_error: f64,
    /// Mean over the paradigms, in percent.
    pub paradigm_average: f64,
    /// Accuracy by group, in percent: the mean of the group's paradigms.
    pub groups: BTreeMap<String, f64>,
    /// Accuracy by paradigm.
    pub paradigms: BTreeMap<String, ParadigmResult>,
    /// Number of pairs.
    pub n: usize,
    /// Number of pairs with equal scores; each counts one half.
    pub ties: usize,
    /// Number of pairs whose two sentences are the same text; they are among the ties.
    pub identical: usize,
}

/// Scores every pair of `set`, in its order.
///
/// # Errors
/// Those of the tokenizer and of [`sum_log_likelihoods`], with file, line and sentence.
pub fn score_pairs(
    model: &mut dyn LanguageModel,
    tokenizer: &dyn Tokenize,
    set: &PairSet,
    options: &mut ScoringOptions<'_>,
) -> Result<Vec<PairScore>, EvalError> {
    let sentence = |i: usize| {
        let pair = &set.pairs[i / 2];
        if i.is_multiple_of(2) {
            (pair, "sentence_good", &pair.good)
        } else {
            (pair, "sentence_bad", &pair.bad)
        }
    };
    let location = |i: usize| {
        let (pair, field, text) = sentence(i);
        format!("{}, line {}, {field} {text:?}", set.paradigms[pair.paradigm].file, pair.line)
    };
    let tokens = (0..2 * set.pairs.len())
        .map(|i| {
            tokenizer
                .encode(sentence(i).2)
                .map_err(|error| EvalError::Tokenize { location: location(i), message: error.to_string() })
        })
        .collect::<Result<Vec<_>, _>>()?;
    let sequences: Vec<Scored<'_>> = tokens.iter().map(|tokens| Scored::whole(tokens)).collect();
    let sums = sum_log_likelihoods(model, tokenizer.bos_id(), &sequences, options, &location)?;
    Ok(sums.chunks_exact(2).map(|pair| PairScore { good: pair[0], bad: pair[1] }).collect())
}

/// Counts of one paradigm, independent of the order of the pairs.
#[derive(Debug, Clone, Copy, Default)]
struct Tally {
    n: usize,
    good: usize,
    ties: usize,
}

impl Tally {
    fn add(&mut self, outcome: Outcome) {
        self.n += 1;
        match outcome {
            Outcome::Good => self.good += 1,
            Outcome::Tie => self.ties += 1,
            Outcome::Bad => {}
        }
    }

    /// Share of the pairs, 0 to 1.
    fn accuracy(self) -> f64 {
        (2 * self.good + self.ties) as f64 / (2 * self.n) as f64
    }

    /// Variance of [`Tally::accuracy`]: sample variance of the values 1, 1/2, 0, divided by their number.
    fn variance(self) -> f64 {
        if self.n < 2 {
            return 0.0;
        }
        let (n, mean) = (self.n as f64, self.accuracy());
        let squares = self.good as f64 + 0.25 * self.ties as f64;
        (squares - n * mean * mean).max(0.0) / (n - 1.0) / n
    }
}

fn mean(values: impl ExactSizeIterator<Item = f64>) -> f64 {
    let n = values.len() as f64;
    values.sum::<f64>() / n
}

/// Accuracies by paradigm, by group and overall.
///
/// # Errors
/// [`EvalError::Mismatch`] if the number of scores is not that of the pairs.
pub fn summarise(
    model: &dyn LanguageModel,
    set: &PairSet,
    scores: &[PairScore],
) -> Result<TaskResult, EvalError> {
    if scores.len() != set.pairs.len() {
        return Err(EvalError::Mismatch {
            what: "the number of pairs".to_owned(),
            left: set.pairs.len().to_string(),
            right: scores.len().to_string(),
        });
    }
    let mut tallies = vec![Tally::default(); set.paradigms.len()];
    for (pair, score) in set.pairs.iter().zip(scores) {
        tallies[pair.paradigm].add(score.outcome());
    }

    let mut by_group: BTreeMap<&str, Vec<Tally>> = BTreeMap::new();
    let mut paradigms = BTreeMap::new();
    for (paradigm, tally) in set.paradigms.iter().zip(&tallies) {
        by_group.entry(&paradigm.group).or_default().push(*tally);
        let (group, accuracy) = (paradigm.group.clone(), 100.0 * tally.accuracy());
        paradigms
            .insert(paradigm.name.clone(), ParadigmResult { group, accuracy, n: tally.n, ties: tally.ties });
    }
    let groups: BTreeMap<String, f64> = by_group
        .iter()
        .map(|(name, tallies)| {
            ((*name).to_owned(), 100.0 * mean(tallies.iter().map(|tally| tally.accuracy())))
        })
        .collect();
    // Pairs are sampled independently for each paradigm, so variances add up with the squared weights of the means.
    let variance: f64 = by_group
        .values()
        .map(|tallies| {
            let weight = (groups.len() * tallies.len()) as f64;
            tallies.iter().map(|tally| tally.variance()).sum::<f64>() / (weight * weight)
        })
        .sum();

    Ok(TaskResult {
        task: set.task.clone(),
        model: model.name(),
        form: model.form(),
        average: mean(groups.values().copied()),
        standard_error: 100.0 * variance.sqrt(),
        paradigm_average: mean(paradigms.values().map(|paradigm| paradigm.accuracy)),
        groups,
        n: set.pairs.len(),
        ties: tallies.iter().map(|tally| tally.ties).sum(),
        identical: set.identical(),
        paradigms,
    })
}

/// [`score_pairs`] and [`summarise`] in one.
///
/// # Errors
/// Those of the two.
pub fn evaluate(
    model: &mut dyn LanguageModel,
    tokenizer: &dyn Tokenize,
    set: &PairSet,
    options: &mut ScoringOptions<'_>,
) -> Result<TaskResult, EvalError> {
    let scores = score_pairs(model, tokenizer, set, options)?;
    summarise(model, set, &scores)
}

/// Mean over the groups of several tasks, in percent: of BLiMP and its supplement it is "BLiMP-17".
///
/// # Errors
/// [`EvalError::Mismatch`] if the results have different forms or models, or a group in common.
pub fn average_of_groups(results: &[&TaskResult]) -> Result<f64, EvalError> {
    let mut groups: BTreeMap<&str, f64> = BTreeMap::new();
    for result in results {
        let first = results[0];
        if (result.form, &result.model) != (first.form, &first.model) {
            return Err(EvalError::Mismatch {
                what: "the model".to_owned(),
                left: format!("{} ({})", first.model, first.form),
                right: format!("{} ({})", result.model, result.form),
            });
        }
        for (name, accuracy) in &result.groups {
            if groups.insert(name, *accuracy).is_some() {
                return Err(EvalError::Mismatch {
                    what: "the set of groups, which should share none,".to_owned(),
                    left: name.clone(),
                    right: name.clone(),
                });
            }
        }
    }
    if groups.is_empty() {
        return Err(EvalError::Option {
            option: "results",
            got: "no group".to_owned(),
            expected: "at least one".to_owned(),
        });
    }
    Ok(mean(groups.values().copied()))
}
