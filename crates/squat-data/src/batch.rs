//! Sequences for training and for perplexity.
//!
//! A sequence is `<s>` followed by consecutive corpus tokens. Training: `seq_len + 1` ids, of which the first
//! `seq_len` are inputs and the last `seq_len` targets, so each chunk covers `seq_len` corpus tokens.

use squat_quant::random::SplitMix64;

use crate::permutation::Permutation;
use crate::{DataError, Result, TokenShards};

/// Where the chunks of an epoch start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Start {
    /// On the grid: every token of the grid is a target exactly once per epoch.
    #[default]
    Anywhere,
    /// At the first line start within the first half of the chunk's grid cell, if there is one: `<s>` is then mostly
    /// followed by the start of a sentence, as it is when sentences are scored. Chunks may overlap by half.
    Line,
}

/// Training chunks in a random order that depends only on the seed, with random access to any step in constant time:
/// a run that resumes at step n sees exactly the batches that it would have seen without the interruption.
///
/// Every epoch lays a grid of non-overlapping chunks over the corpus at a random offset and visits them in random
/// order.
#[derive(Clone, Debug)]
pub struct Chunks {
    tokens: TokenShards,
    seq_len: usize,
    seed: u64,
    per_epoch: u64,
    start: Start,
}

impl Chunks {
    /// Chunks of `seq_len` corpus tokens each.
    ///
    /// # Errors
    /// `seq_len` is 0, or the corpus has fewer tokens than `seq_len`.
    pub fn new(tokens: &TokenShards, seq_len: usize, seed: u64) -> Result<Self> {
        let len = tokens.len();
        check_length(seq_len, len)?;
        let step = seq_len as u64;
        // One chunk fewer if that lets the grid start at any of `seq_len` offsets.
        let per_epoch = ((len + 1 - step) / step).max(1);
        Ok(Self { tokens: tokens.clone(), seq_len, seed, per_epoch, start: Start::Anywhere })
    }

    /// Sets where chunks start.
    pub fn starting(mut self, start: Start) -> Self {
        self.start = start;
        self
    }

    /// Chunks in one epoch.
    pub fn per_epoch(&self) -> u64 {
        self.per_epoch
    }

    /// Steps in one epoch; the last one may reach into the next epoch.
    pub fn steps_per_epoch(&self, batch_size: usize) -> u64 {
        self.per_epoch.div_ceil(batch_size.max(1) as u64)
    }

    /// The batch of one step: `batch_size` sequences of `seq_len + 1` ids. `// [batch, seq_len + 1]`
    pub fn batch(&self, step: u64, batch_size: usize) -> Vec<Vec<u32>> {
        let first = step.wrapping_mul(batch_size as u64);
        let mut epoch = None;
        (0..batch_size as u64)
            .map(|i| {
                let index = first.wrapping_add(i);
                let wanted = index / self.per_epoch;
                let grid = match epoch.take() {
                    Some((number, grid)) if number == wanted => grid,
                    _ => self.grid(wanted),
                };
                let sequence = self.sequence(&grid, index % self.per_epoch);
                epoch = Some((wanted, grid));
                sequence
            })
            .collect()
    }

    fn grid(&self, epoch: u64) -> (u64, Permutation) {
        let mut rng = SplitMix64::stream(self.seed, epoch);
        let room = self.tokens.len() - self.per_epoch * self.seq_len as u64;
        let offset = rng.below(room.min(self.seq_len as u64 - 1) + 1);
        (offset, Permutation::new(self.per_epoch, rng.next_u64()))
    }

    fn sequence(&self, (offset, order): &(u64, Permutation), index: u64) -> Vec<u32> {
        let step = self.seq_len as u64;
        let mut start = offset + order.get(index) * step;
        if self.start == Start::Line
            && let Some(line) = self.tokens.line_start_from(start)
            && line - start <= step / 2
            && line + step <= self.tokens.len()
        {
            start = line;
        }
        let mut sequence = Vec::with_capacity(self.seq_len + 1);
        sequence.push(self.tokens.bos());
        self.tokens.extend_into(start, self.seq_len, &mut sequence);
        sequence
    }
}

/// The corpus in order, for perplexity: every token is predicted exactly once.
#[derive(Clone, Debug)]
pub struct Sequential {
    tokens: TokenShards,
    seq_len: usize,
}

impl Sequential {
    /// Chunks of `seq_len` corpus tokens each; the last may be shorter.
    ///
    /// # Errors
    /// `seq_len` is 0, or the corpus is empty.
    pub fn new(tokens: &TokenShards, seq_len: usize) -> Result<Self> {
        check_length(seq_len, tokens.len().max(1) * seq_len as u64)?;
        if tokens.is_empty() {
            return Err(DataError::TooShort { tokens: 0, needed: 1 });
        }
        Ok(Self { tokens: tokens.clone(), seq_len })
    }

    /// Number of chunks.
    pub fn len(&self) -> u64 {
        self.tokens.len().div_ceil(self.seq_len as u64)
    }

    /// Always false: an empty corpus is refused.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Chunk `index`: `<s>` and up to `seq_len` corpus tokens; only `<s>` past the end.
    pub fn get(&self, index: u64) -> Vec<u32> {
        let mut sequence = Vec::with_capacity(self.seq_len + 1);
        sequence.push(self.tokens.bos());
        self.tokens.extend_into(index.saturating_mul(self.seq_len as u64), self.seq_len, &mut sequence);
        sequence
    }

    /// At most `count` chunks, spread evenly: the beginning of a corpus represents only one of its domains.
    pub fn spread(&self, count: u64) -> impl Iterator<Item = Vec<u32>> + '_ {
        let (len, count) = (self.len(), self.len().min(count));
        (0..count).map(move |i| self.get((u128::from(i) * u128::from(len) / u128::from(count)) as u64))
    }

    /// All chunks in order.
    pub fn iter(&self) -> impl Iterator<Item = Vec<u32>> + '_ {
        (0..self.len()).map(|i| self.get(i))
    }
}

fn check_length(seq_len: usize, tokens: u64) -> Result<()> {
    if seq_len == 0 {
        return Err(DataError::BadOption { what: "seq_len", got: "0".into(), expected: "at least 1".into() });
    }
    match tokens < seq_len as u64 {
        true => Err(DataError::TooShort { tokens, needed: seq_len as u64 }),
        false => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn shards(n: u32) -> TokenShards {
        TokenShards::from_tokens((3..3 + n).collect())
    }

    proptest! {
        #[test]
        fn spread_chunks_are_different_and_even(n in 1u32..200, seq_len in 1usize..20, count in 0u64..40) {
            let all = Sequential::new(&shards(n), seq_len.min(n as usize)).unwrap();
            let some: Vec<_> = all.spread(count).collect();
            prop_assert_eq!(some.len() as u64, count.min(all.len()));
            let chunks: Vec<_> = all.iter().collect();
            let at: Vec<usize> = some.iter().map(|s| chunks.iter().position(|c| c == s).unwrap()).collect();
            let step = chunks.len() as f64 / some.len().max(1) as f64;
            for (i, at) in at.iter().enumerate() {
                prop_assert_eq!(*at, (i as f64 * step + 1e-9) as usize);
            }
        }
    }

    #[test]
    fn shape_and_bos() {
        let chunks = Chunks::new(&shards(1000), 16, 1).unwrap();
        let batch = chunks.batch(3, 4);
        assert_eq!(batch.len(), 4);
        for sequence in batch {
            assert_eq!((sequence.len(), sequence[0]), (17, 1));
            assert!(sequence[1..].windows(2).all(|w| w[1] == w[0] + 1), "consecutive");
        }
    }

    #[test]
    fn seeds_and_epochs_differ_and_repeat() {
        let at = |seed, step| Chunks::new(&shards(5000), 16, seed).unwrap().batch(step, 8);
        assert_eq!(at(1, 7), at(1, 7));
        assert_ne!(at(1, 7), at(2, 7));
        let per_epoch = Chunks::new(&shards(5000), 16, 1).unwrap().per_epoch();
        assert_ne!(at(1, 0), Chunks::new(&shards(5000), 16, 1).unwrap().batch(per_epoch / 8 + 1, 8));
    }

    proptest! {
        /// One epoch: chunks do not overlap, cover all but the edges, and batch size does not change the order.
        #[test]
        fn an_epoch_is_a_permutation_of_a_grid(n in 1u32..600, seq_len in 1usize..40, seed: u64, epoch in 0u64..4, batch in 1usize..9) {
            prop_assume!(n as usize >= seq_len);
            let chunks = Chunks::new(&shards(n), seq_len, seed).unwrap();
            let per_epoch = chunks.per_epoch();
            let one_by_one: Vec<_> = (0..per_epoch).flat_map(|i| chunks.batch(epoch * per_epoch + i, 1)).collect();
            let mut starts: Vec<u32> = one_by_one.iter().map(|s| s[1]).collect();
            starts.sort_unstable();
            prop_assert!(starts.windows(2).all(|w| w[1] - w[0] == seq_len as u32));
            prop_assert!((starts[0] - 3) < seq_len as u32);
            let uncovered = n as usize - per_epoch as usize * seq_len;
            prop_assert!(uncovered < 2 * seq_len);
            let all: Vec<_> = (0..(epoch + 1) * per_epoch).flat_map(|i| chunks.batch(i, 1)).collect();
            let steps = ((epoch + 1) * per_epoch).div_ceil(batch as u64);
            let batched: Vec<_> = (0..steps).flat_map(|s| chunks.batch(s, batch)).take(all.len()).collect();
            prop_assert_eq!(all, batched);
        }

        #[test]
        fn sequential_covers_every_token_once(n in 1u32..300, seq_len in 1usize..40) {
            let all: Vec<u32> = Sequential::new(&shards(n), seq_len).unwrap().iter().flat_map(|s| s[1..].to_vec()).collect();
            prop_assert_eq!(all, (3..3 + n).collect::<Vec<_>>());
        }
    }

    #[test]
    fn offsets_vary_between_epochs() {
        let chunks = Chunks::new(&shards(1000), 50, 3).unwrap();
        let offset = |epoch| chunks.batch(epoch * chunks.per_epoch(), 1)[0][1] % 50;
        assert!((1..10).any(|e| offset(e) != offset(0)));
    }

    #[test]
    fn too_short() {
        assert!(matches!(Chunks::new(&shards(5), 6, 0), Err(DataError::TooShort { tokens: 5, needed: 6 })));
        assert!(Chunks::new(&shards(5), 0, 0).is_err());
        assert!(Sequential::new(&TokenShards::from_tokens(vec![]), 4).is_err());
        assert_eq!(Chunks::new(&shards(5), 5, 0).unwrap().per_epoch(), 1);
    }
}
