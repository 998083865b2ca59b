//! One sequence and the buffers to run it: prefill, decode, truncate, record.

use crate::error::{EngineError, Result};
use crate::model::Model;
use crate::pool::Pool;
use crate::sequence::Sequence;
use crate::workspace::{BatchEntry, Visit, Workspace};
use squat_quant::ActBits;
use std::sync::Arc;

/// Sizes of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SessionOptions {
    /// Most tokens it can hold; `None` is the model's `max_position_embeddings`.
    pub capacity: Option<usize>,
    /// Prompt tokens that one thread computes at a time: enough to reuse a weight once it is read, few enough that
    /// activations stay in the CPU's cache. Results do not depend on it.
    pub block: usize,
}

impl Default for SessionOptions {
    fn default() -> Self {
        Self { capacity: None, block: 64 }
    }
}

/// A sequence with its key-value cache and buffers. Sessions of one engine are independent of each other.
pub struct Session {
    pool: Arc<Pool>,
    block: usize,
    pub(crate) sequence: Sequence,
    /// Made at the first token, so that sessions that only a batch feeds go without.
    workspace: Option<Box<Workspace>>,
}

impl Session {
    pub(crate) fn new(model: Arc<Model>, pool: Arc<Pool>, options: SessionOptions) -> Result<Self> {
        if options.block == 0 || options.block > 4096 {
            return Err(EngineError::Option {
                option: "block",
                expected: "1 to 4096 tokens".to_owned(),
                got: options.block.to_string(),
            });
        }
        let sequence = Sequence::new(model, options.capacity)?;
        Ok(Self { pool, block: options.block.min(sequence.capacity()), sequence, workspace: None })
    }

    /// Number of tokens held.
    pub fn position(&self) -> usize {
        self.sequence.position()
    }

    /// The tokens held.
    pub fn tokens(&self) -> &[u32] {
        self.sequence.tokens()
    }

    /// Most tokens it can hold.
    pub fn capacity(&self) -> usize {
        self.sequence.capacity()
    }

    /// Logits after the token fed last, `[vocabulary]`; zeros before the first.
    pub fn logits(&self) -> &[f32] {
        self.sequence.logits()
    }

    /// Forgets everything.
    pub fn reset(&mut self) {
        self.sequence.truncate(0);
    }

    /// Forgets all tokens from `len` on, so that another continuation can be fed. The logits are stale until then.
    ///
    /// # Errors
    /// `len` beyond the tokens held.
    pub fn truncate(&mut self, len: usize) -> Result<()> {
        if len > self.position() {
            return Err(EngineError::Truncate { asked: len, held: self.position() });
        }
        self.sequence.truncate(len);
        Ok(())
    }

    /// Another session that holds the same: continuations of one prefix.
    ///
    /// # Errors
    /// Out of memory.
    pub fn fork(&self) -> Result<Self> {
        let sequence = self.sequence.fork()?;
        Ok(Self { pool: self.pool.clone(), block: self.block, sequence, workspace: None })
    }

    /// Feeds tokens after those held; returns the logits after the last one, `[vocabulary]`.
    ///
    /// One call gives the same bits as [`Session::decode`] token by token.
    ///
    /// # Errors
    /// No tokens, an id outside the vocabulary, more tokens than fit: nothing is fed then. Logits that are not finite.
    pub fn prefill(&mut self, tokens: &[u32]) -> Result<&[f32]> {
        self.run(tokens, None)?;
        Ok(self.logits())
    }

    /// Feeds one token; returns the logits after it, `[vocabulary]`. Allocates nothing, except where the cache grows.
    ///
    /// # Errors
    /// As [`Session::prefill`].
    pub fn decode(&mut self, token: u32) -> Result<&[f32]> {
        self.prefill(&[token])
    }

    /// Feeds tokens and returns the logits after each of them, `[tokens, vocabulary]` row-major.
    ///
    /// # Errors
    /// As [`Session::prefill`].
    pub fn prefill_all(&mut self, tokens: &[u32]) -> Result<Vec<f32>> {
        let mut all = Vec::with_capacity(tokens.len() * self.sequence.model().spec.vocab_size);
        self.for_each_logits(tokens, |_, logits| all.extend_from_slice(logits))?;
        Ok(all)
    }

    /// Feeds tokens and calls `visit(index, logits)` with the logits after each of them, in order. Memory stays bounded.
    ///
    /// # Errors
    /// As [`Session::prefill`].
    pub fn for_each_logits(&mut self, tokens: &[u32], mut visit: impl FnMut(usize, &[f32])) -> Result<()> {
        let mut show = |index: usize, logits: &[f32]| {
            visit(index, logits);
            Ok(())
        };
        self.run(tokens, Some(&mut show))
    }

    fn run(&mut self, tokens: &[u32], visit: Option<Visit<'_>>) -> Result<()> {
        let Self { pool, block, sequence, workspace } = self;
        sequence.check(tokens)?;
        let model = sequence.model().clone();
        let workspace = workspace.get_or_insert_with(|| {
            Box::new(Workspace::new(&model, pool.threads(), *block, sequence.capacity()))
        });
        workspace.run(&model, pool, &mut [BatchEntry::of(sequence, tokens)], visit)
    }

    /// Starts or stops recording which bits each token gets in each layer. Forgets what was recorded, and every token.
    pub fn record_token_bits(&mut self, on: bool) {
        self.sequence.record_bits(on);
    }

    /// Activation bits `[layer][token]` of all tokens held, if [`Session::record_token_bits`] is on.
    pub fn token_bits(&self) -> Option<&[Vec<ActBits>]> {
        self.sequence.recorded_bits()
    }

    /// Bytes of keys and values held.
    pub fn cache_bytes(&self) -> usize {
        self.sequence.cache_bytes()
    }

    /// Bytes of buffers that do not depend on the tokens held.
    pub fn scratch_bytes(&self) -> usize {
        let workspace = self.workspace.as_ref().map_or(0, |workspace| workspace.bytes());
        workspace + self.sequence.other_bytes()
    }
}
