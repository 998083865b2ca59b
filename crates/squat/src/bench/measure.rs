//! Times tests like llama-bench: prompt processing (`pp`) and text generation (`tg`) separately, after a warm-up.

use anyhow::{Result, bail};
use squat_engine::{Batch, BatchEntry, Engine, Session, SessionOptions};
use std::time::Instant;

/// How a test feeds its tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// All tokens at once; logits of the last one.
    Prompt,
    /// One token of each sequence at a time; logits of each.
    Generation,
}

/// One test.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Test {
    pub kind: Kind,
    /// Tokens of a sequence that are timed.
    pub tokens: usize,
    /// Tokens of a sequence that are already in the cache.
    pub depth: usize,
    /// Sequences that are decoded together; one for a prompt.
    pub batch: usize,
}

impl Test {
    /// Both tests, generation once for each batch size; tests of 0 tokens are skipped.
    pub fn list(prompt: usize, generate: usize, depth: usize, batches: &[usize]) -> Vec<Self> {
        let generation = batches.iter().map(|&batch| (Kind::Generation, generate, batch));
        let tests = std::iter::once((Kind::Prompt, prompt, 1)).chain(generation);
        let tests = tests.filter(|&(_, tokens, _)| tokens > 0);
        tests.map(|(kind, tokens, batch)| Self { kind, tokens, depth, batch }).collect()
    }

    /// Tokens that are timed, of all sequences.
    pub fn all_tokens(&self) -> usize {
        self.batch * self.tokens
    }

    /// `pp128`, `tg128`, `tg128@d512`.
    pub fn name(&self) -> String {
        let kind = if self.kind == Kind::Prompt { "pp" } else { "tg" };
        let depth = if self.depth > 0 { format!("@d{}", self.depth) } else { String::new() };
        format!("{kind}{}{depth}", self.tokens)
    }
}

/// Tokens per second of each repetition, in order.
#[derive(Clone, Debug, PartialEq)]
pub struct Samples(Vec<f64>);

impl Samples {
    /// `samples` must not be empty.
    pub fn new(samples: Vec<f64>) -> Self {
        Self(samples)
    }

    pub fn values(&self) -> &[f64] {
        &self.0
    }

    /// Median; the mean of the two middle values if their number is even.
    pub fn median(&self) -> f64 {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        (sorted[(sorted.len() - 1) / 2] + sorted[sorted.len() / 2]) / 2.0
    }

    pub fn min(&self) -> f64 {
        self.0.iter().copied().fold(f64::INFINITY, f64::min)
    }

    pub fn max(&self) -> f64 {
        self.0.iter().copied().fold(0.0, f64::max)
    }

    /// Median of the ratios to `base`, repetition by repetition, so that slow phases of the machine cancel out.
    pub fn ratio_to(&self, base: &Self) -> f64 {
        Self(self.0.iter().zip(&base.0).map(|(a, b)| a / b).collect()).median()
    }
}

/// Ids spread over the vocabulary, always the same.
pub fn token_ids(count: usize, vocab_size: usize) -> Vec<u32> {
    (0..count as u32).map(|i| i.wrapping_mul(2_654_435_761) % vocab_size as u32).collect()
}

/// The sequences of one engine, and the batch for several of them.
struct Sequences {
    sessions: Vec<Session>,
    batch: Batch,
    /// Ids of the first sequence; each further sequence starts one id later.
    ids: Vec<u32>,
}

/// Times every test on every engine, alternating (A B A B ...), after one warm-up run of each: `[engine][test]`.
pub fn alternate(engines: &[Engine], tests: &[Test], repeats: usize) -> Result<Vec<Vec<Samples>>> {
    let longest = tests.iter().map(|test| test.depth + test.tokens).max().unwrap_or(1);
    let widest = tests.iter().map(|test| test.batch).max().unwrap_or(1);
    let mut sequences = Vec::with_capacity(engines.len());
    for engine in engines {
        let room = engine.spec().max_position_embeddings;
        if longest > room {
            bail!("the model takes {room} tokens at most, got {longest}; ask for fewer with -p, -n and -d");
        }
        let options = SessionOptions { capacity: Some(longest), ..SessionOptions::default() };
        // Refuses sizes out of range before sessions are made.
        let batch = engine.batch(widest)?;
        let sessions = (0..widest).map(|_| engine.session_with(options)).collect::<Result<_, _>>()?;
        let ids = token_ids(longest + widest, engine.spec().vocab_size);
        sequences.push(Sequences { sessions, batch, ids });
    }
    let mut found = vec![Vec::with_capacity(tests.len()); engines.len()];
    for test in tests {
        let mut samples = vec![Vec::with_capacity(repeats); engines.len()];
        for round in 0..=repeats.max(1) {
            for (sequences, samples) in sequences.iter_mut().zip(&mut samples) {
                let rate = once(sequences, test)?;
                if round > 0 {
                    samples.push(rate);
                }
            }
        }
        found.iter_mut().zip(samples).for_each(|(found, samples)| found.push(Samples::new(samples)));
    }
    Ok(found)
}

/// Tokens per second of one run of a test, all sequences together.
fn once(sequences: &mut Sequences, test: &Test) -> Result<f64> {
    let Sequences { sessions, batch, ids } = sequences;
    let sessions = &mut sessions[..test.batch];
    for (index, session) in sessions.iter_mut().enumerate() {
        if session.position() >= test.depth {
            session.truncate(test.depth)?;
        } else {
            session.reset();
            session.prefill(&ids[index..index + test.depth])?;
        }
    }
    let started = Instant::now();
    match (test.kind, &mut *sessions) {
        (Kind::Prompt, sessions) => {
            for (index, session) in sessions.iter_mut().enumerate() {
                session.prefill(&ids[index + test.depth..][..test.tokens])?;
            }
        }
        (Kind::Generation, [session]) => {
            for &id in &ids[test.depth..test.depth + test.tokens] {
                session.decode(id)?;
            }
        }
        (Kind::Generation, sessions) => {
            for at in test.depth..test.depth + test.tokens {
                let mut entries: Vec<BatchEntry<'_>> = sessions
                    .iter_mut()
                    .zip(ids[at..].chunks(1))
                    .map(|(s, id)| BatchEntry::new(s, id))
                    .collect();
                batch.run(&mut entries)?;
            }
        }
    }
    Ok(test.all_tokens() as f64 / started.elapsed().as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_and_ratios() {
        let samples = Samples::new(vec![3.0, 1.0, 2.0, 10.0]);
        assert_eq!((samples.median(), samples.min(), samples.max()), (2.5, 1.0, 10.0));
        assert_eq!(Samples::new(vec![4.0]).median(), 4.0);
        // The machine runs at half speed in the second repetition: the ratio is unchanged.
        let (a, b) = (Samples::new(vec![10.0, 5.0, 10.0]), Samples::new(vec![5.0, 2.5, 5.0]));
        assert_eq!(a.ratio_to(&b), 2.0);
    }

    #[test]
    fn tests_have_the_names_of_llama_bench() {
        let (prompt, generation) = (Test::list(128, 0, 0, &[1]), Test::list(0, 16, 512, &[1, 4]));
        let names: Vec<String> = prompt.iter().chain(&generation).map(Test::name).collect();
        assert_eq!(names, ["pp128", "tg16@d512", "tg16@d512"]);
        assert_eq!((generation[1].batch, generation[1].all_tokens()), (4, 64));
    }
}
