//! Sums of the log-probabilities of sequences: ordering, batching and checks of the model's output.

use crate::error::EvalError;
use crate::model::LanguageModel;

/// How sequences are batched, and a callback for progress.
pub struct ScoringOptions<'a> {
    /// Largest number of tokens in one call, counting padding to the longest sequence. Each call has at least one
    /// sequence.
    pub batch_tokens: usize,
    /// Called after every batch with the number of distinct sequences done and the total.
    pub on_progress: Option<Box<dyn FnMut(usize, usize) + 'a>>,
}

impl Default for ScoringOptions<'_> {
    fn default() -> Self {
        Self { batch_tokens: 8192, on_progress: None }
    }
}

/// Largest log-probability that rounding alone can produce.
const ROUNDING: f32 = 1e-3;

/// A sequence to score: BOS, which the harness adds, and `tokens`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Scored<'a> {
    /// Ids after BOS, at least one.
    pub tokens: &'a [u32],
    /// Number of tokens at the end of `tokens` whose log-probabilities are summed; those before are context.
    pub scored: usize,
}

impl<'a> Scored<'a> {
    /// A sequence of which every token after BOS is scored.
    pub fn whole(tokens: &'a [u32]) -> Self {
        Self { tokens, scored: tokens.len() }
    }
}

/// Sum over each sequence of the log-probabilities of its scored tokens, in nats and f64.
///
/// Each distinct sequence is run once, so equal sequences get equal sums whatever the model's arithmetic; the order
/// in which the model gets them (by length, then by ids) depends on the set of sequences alone. `location` names
/// sequence `i` in an error.
///
/// # Errors
/// Sequences that the model cannot take, answers of the wrong shape, and log-probabilities that are not finite or
/// above 0.
pub fn sum_log_likelihoods(
    model: &mut dyn LanguageModel,
    bos_id: u32,
    sequences: &[Scored<'_>],
    options: &mut ScoringOptions<'_>,
    location: &dyn Fn(usize) -> String,
) -> Result<Vec<f64>, EvalError> {
    check_sequences(model, bos_id, sequences, location)?;

    let mut order: Vec<usize> = (0..sequences.len()).collect();
    order.sort_by(|&a, &b| {
        let (a, b) = (sequences[a].tokens, sequences[b].tokens);
        a.len().cmp(&b.len()).then_with(|| a.cmp(b))
    });
    // Indices of equal sequences, which are neighbours in `order`.
    let equal: Vec<&[usize]> = order.chunk_by(|&a, &b| sequences[a].tokens == sequences[b].tokens).collect();
    let length = |indices: &[usize]| sequences[indices[0]].tokens.len() + 1;

    let mut sums = vec![0.0; sequences.len()];
    let mut done = 0;
    while done < equal.len() {
        squat_files::interrupt::check()?;
        let mut end = done + 1;
        while end < equal.len() && length(equal[end]) * (end + 1 - done) <= options.batch_tokens {
            end += 1;
        }
        let batch: Vec<Vec<u32>> = equal[done..end]
            .iter()
            .map(|indices| {
                let tokens = sequences[indices[0]].tokens.iter().copied();
                std::iter::once(bos_id).chain(tokens).collect()
            })
            .collect();
        let answers = model.log_likelihoods(&batch.iter().map(Vec::as_slice).collect::<Vec<_>>())?;
        if answers.len() != batch.len() {
            return Err(EvalError::Output {
                model: model.name(),
                expected: format!("log-probabilities of {} sequences", batch.len()),
                got: answers.len().to_string(),
            });
        }
        for (indices, answer) in equal[done..end].iter().zip(&answers) {
            check_answer(model, sequences[indices[0]].tokens.len(), answer, || location(indices[0]))?;
            for &i in *indices {
                let context = answer.len().saturating_sub(sequences[i].scored);
                let mut sum = 0.0;
                answer[context..].iter().for_each(|&value| sum += f64::from(value));
                sums[i] = sum;
            }
        }
        done = end;
        if let Some(on_progress) = &mut options.on_progress {
            on_progress(done, equal.len());
        }
    }
    Ok(sums)
}

fn check_sequences(
    model: &dyn LanguageModel,
    bos_id: u32,
    sequences: &[Scored<'_>],
    location: &dyn Fn(usize) -> String,
) -> Result<(), EvalError> {
    let (vocab_size, max) = (model.vocab_size(), model.max_length());
    for (i, sequence) in sequences.iter().enumerate() {
        if sequence.tokens.is_empty() {
            return Err(EvalError::Empty { location: location(i) });
        }
        let length = sequence.tokens.len() + 1;
        if length > max {
            return Err(EvalError::TooLong { location: location(i), got: length, max });
        }
        let ids = std::iter::once(bos_id).chain(sequence.tokens.iter().copied());
        if let Some((position, token)) = ids.enumerate().find(|&(_, token)| token as usize >= vocab_size) {
            return Err(EvalError::TokenOutOfRange { location: location(i), token, position, vocab_size });
        }
    }
    Ok(())
}

/// Checks the log-probabilities that `model` gives to the `n` tokens of a sequence after BOS.
fn check_answer(
    model: &dyn LanguageModel,
    n: usize,
    answer: &[f32],
    location: impl Fn() -> String,
) -> Result<(), EvalError> {
    if answer.len() != n {
        return Err(EvalError::Output {
            model: model.name(),
            expected: format!("{n} log-probabilities for {}", location()),
            got: answer.len().to_string(),
        });
    }
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
    }
    Ok(())
}
