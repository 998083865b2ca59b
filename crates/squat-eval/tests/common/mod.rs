//! Tiny models and tokenizers whose output can be computed by hand.
#![allow(dead_code, reason = "each test binary uses its part")]

use std::collections::HashMap;
use std::convert::Infallible;

use squat_eval::{EvalError, FnTokenizer, Form, LanguageModel, Tokenize};

/// The same probability for every token.
pub struct Uniform {
    pub vocab_size: usize,
    pub max_length: usize,
    pub form: Form,
}

impl Uniform {
    pub fn new(vocab_size: usize) -> Self {
        Self { vocab_size, max_length: 256, form: Form::Fp }
    }
}

impl LanguageModel for Uniform {
    fn name(&self) -> String {
        "uniform".to_owned()
    }
    fn form(&self) -> Form {
        self.form
    }
    fn vocab_size(&self) -> usize {
        self.vocab_size
    }
    fn max_length(&self) -> usize {
        self.max_length
    }
    fn log_likelihoods(&mut self, sequences: &[&[u32]]) -> Result<Vec<Vec<f32>>, EvalError> {
        let value = -(self.vocab_size as f32).ln();
        Ok(sequences.iter().map(|sequence| vec![value; sequence.len() - 1]).collect())
    }
}

/// Counts of pairs and of single tokens, interpolated with the uniform distribution.
pub struct Bigram {
    vocab_size: usize,
    pairs: HashMap<(u32, u32), u32>,
    left: Vec<u32>,
    singles: Vec<u32>,
    total: u32,
    /// Sizes of the batches it was called with: (sequences, longest).
    pub calls: Vec<(usize, usize)>,
}

impl Bigram {
    pub fn new(vocab_size: usize) -> Self {
        Self {
            vocab_size,
            pairs: HashMap::new(),
            left: vec![0; vocab_size],
            singles: vec![0; vocab_size],
            total: 0,
            calls: Vec::new(),
        }
    }

    pub fn train(&mut self, sequence: &[u32]) {
        for pair in sequence.windows(2) {
            *self.pairs.entry((pair[0], pair[1])).or_default() += 1;
            self.left[pair[0] as usize] += 1;
            self.singles[pair[1] as usize] += 1;
            self.total += 1;
        }
    }

    pub fn probability(&self, left: u32, token: u32) -> f64 {
        let share = |count: u32, total: u32| f64::from(count) / f64::from(total.max(1));
        let pair = self.pairs.get(&(left, token)).copied().unwrap_or(0);
        let backed = 0.95 * share(self.singles[token as usize], self.total) + 0.05 / self.vocab_size as f64;
        let weight = f64::from(self.left[left as usize]);
        (weight * share(pair, self.left[left as usize]) + 10.0 * backed) / (weight + 10.0)
    }
}

impl LanguageModel for Bigram {
    fn name(&self) -> String {
        "bigram".to_owned()
    }
    fn form(&self) -> Form {
        Form::Fp
    }
    fn vocab_size(&self) -> usize {
        self.vocab_size
    }
    fn max_length(&self) -> usize {
        256
    }
    fn log_likelihoods(&mut self, sequences: &[&[u32]]) -> Result<Vec<Vec<f32>>, EvalError> {
        self.calls.push((sequences.len(), sequences.iter().map(|s| s.len()).max().unwrap_or(0)));
        let score = |pair: &[u32]| self.probability(pair[0], pair[1]).ln() as f32;
        Ok(sequences.iter().map(|sequence| sequence.windows(2).map(score).collect()).collect())
    }
}

/// Words and punctuation hashed into `vocab_size` ids; id 0 is BOS.
pub fn hashed_words(vocab_size: usize) -> impl Tokenize {
    FnTokenizer::new(0, move |text: &str| Ok::<_, Infallible>(hash_words(text, vocab_size)))
}

pub fn hash_words(text: &str, vocab_size: usize) -> Vec<u32> {
    text.split_inclusive(|c: char| !c.is_alphanumeric() && c != '\'')
        .flat_map(|piece| {
            let word = piece.trim_end_matches(|c: char| !c.is_alphanumeric() && c != '\'');
            [word, piece[word.len()..].trim()]
        })
        .filter(|word| !word.is_empty())
        .map(|word| {
            let hash = word
                .bytes()
                .fold(0xcbf2_9ce4_8422_2325_u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x100_0000_01b3));
            1 + ((hash >> 20) % (vocab_size as u64 - 1)) as u32
        })
        .collect()
}

/// One id per byte, shifted by one; id 0 is BOS.
pub fn bytes() -> impl Tokenize {
    FnTokenizer::new(0, |text: &str| {
        Ok::<_, Infallible>(text.bytes().map(|byte| u32::from(byte) + 1).collect())
    })
}
