//! From sequences to sums of log-probabilities: ordering, batching and every check of a model's answers.

use crate::error::EvalError;
use crate::model::{LanguageModel, Tokenize};

/// How sequences are handed to a model, and who is told about it.
pub struct ScoringOptions<'a> {
    /// Largest number of tokens in one call, padding to the longest sequence of the call counted. At least one
    /// sequence is always sent.
    pub batch_tokens: usize,
    /// Called after every batch with the numbers of distinct sequences done and in all.
    pub on_progress: Option<Box<dyn FnMut(usize, usize) + 'a>>,
}

impl Default for ScoringOptions<'_> {
    fn default() -> Self {
        Self { batch_tokens: 8192, on_progress: None }
    }
}

/// How far above 0 rounding may lift a log-probability.
const ROUNDING: f32 = 1e-3;

/// BOS and the ids of `text`, of which there is at least one.
pub(crate) fn encode_with_bos(
    tokenizer: &dyn Tokenize,
    text: &str,
    location: impl Fn() -> String,
) -> Result<Vec<u32>, EvalError> {
    let sequence = tokenizer
        .encode_prompt(text)
        .map_err(|error| EvalError::Tokenize { location: location(), message: error.to_string() })?;
    if sequence.len() < 2 {
        return Err(EvalError::Empty { location: location() });
    }
    Ok(sequence)
}

/// Sum over each sequence of the log-probabilities of its tokens after BOS, in f64.
///
/// Each distinct sequence is scored once, so equal sequences get equal sums whatever the model's arithmetic; the order
/// in which a model sees them (by length, then by ids) depends on the set of sequences alone. `location` names
/// sequence `i` in an error.
///
/// # Errors
/// Sequences that the model cannot take, answers of the wrong shape, and log-probabilities that are not finite or
/// above 0.
pub fn sum_log_likelihoods(
    model: &mut dyn LanguageModel,
    sequences: &[Vec<u32>],
    options: &mut ScoringOptions<'_>,
    location: &dyn Fn(usize) -> String,
) -> Result<Vec<f64>, EvalError> {
    check_sequences(model, sequences, location)?;

    let mut order: Vec<usize> = (0..sequences.len()).collect();
    order.sort_by(|&a, &b| {
        let (a, b) = (&sequences[a], &sequences[b]);
        a.len().cmp(&b.len()).then_with(|| a.cmp(b))
    });
    // `distinct[k]` is the first of a run of equal sequences in `order`.
    let runs: Vec<&[usize]> = order.chunk_by(|&a, &b| sequences[a] == sequences[b]).collect();

    let mut sums = vec![0.0; sequences.len()];
    let mut done = 0;
    while done < runs.len() {
        let mut end = done + 1;
        while end < runs.len() && sequences[runs[end][0]].len() * (end + 1 - done) <= options.batch_tokens {
            end += 1;
        }
        let batch: Vec<&[u32]> = runs[done..end].iter().map(|run| sequences[run[0]].as_slice()).collect();
        let answers = model.log_likelihoods(&batch)?;
        if answers.len() != batch.len() {
            return Err(EvalError::Output {
                model: model.name(),
                expected: format!("log-probabilities of {} sequences", batch.len()),
                got: answers.len().to_string(),
            });
        }
        for (run, answer) in runs[done..end].iter().zip(&answers) {
            let sum = checked_sum(model, &sequences[run[0]], answer, || location(run[0]))?;
            for &sequence in *run {
                sums[sequence] = sum;
            }
        }
        done = end;
        if let Some(on_progress) = &mut options.on_progress {
            on_progress(done, runs.len());
        }
    }
    Ok(sums)
}

fn check_sequences(
    model: &dyn LanguageModel,
    sequences: &[Vec<u32>],
    location: &dyn Fn(usize) -> String,
) -> Result<(), EvalError> {
    let (vocab_size, max) = (model.vocab_size(), model.max_length());
    for (i, sequence) in sequences.iter().enumerate() {
        if sequence.len() < 2 {
            return Err(EvalError::Empty { location: location(i) });
        }
        if sequence.len() > max {
            return Err(EvalError::TooLong { location: location(i), got: sequence.len(), max });
        }
        if let Some(position) = sequence.iter().position(|&token| token as usize >= vocab_size) {
            return Err(EvalError::TokenOutOfRange {
                location: location(i),
                token: sequence[position],
                position,
                vocab_size,
            });
        }
    }
    Ok(())
}

fn checked_sum(
    model: &dyn LanguageModel,
    sequence: &[u32],
    answer: &[f32],
    location: impl Fn() -> String,
) -> Result<f64, EvalError> {
    if answer.len() + 1 != sequence.len() {
        return Err(EvalError::Output {
            model: model.name(),
            expected: format!("{} log-probabilities for {}", sequence.len() - 1, location()),
            got: answer.len().to_string(),
        });
    }
    let mut sum = 0.0;
    for (i, &value) in answer.iter().enumerate() {
        let position = i + 1;
        if !value.is_finite() {
            return Err(EvalError::NonFinite { model: model.name(), value, position, location: location() });
        }
        if value > ROUNDING {
            return Err(EvalError::NotLogProbability {
                model: model.name(),
                value,
                position,
                location: location(),
            });
        }
        sum += f64::from(value);
    }
    Ok(sum)
}
