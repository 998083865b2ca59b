//! One sequence on its way through the model: key-value cache, position, buffers.

use crate::attention::HeadCache;
use crate::error::{EngineError, Result};
use crate::model::{Model, Rope};
use crate::pool::Pool;
use crate::workspace::{BatchEntry, Visit, Workspace};
use squat_kernels::MAX_CONTEXT;
use squat_quant::ActBits;
use std::sync::Arc;

/// Sizes of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SessionOptions {
    /// Most tokens it can hold; `None` is the model's `max_position_embeddings`.
    pub capacity: Option<usize>,
    /// Prompt tokens that one thread computes at a time: enough to use a weight well once it is read, few enough that
    /// activations stay in the cache. Results do not depend on it.
    pub block: usize,
}

impl Default for SessionOptions {
    fn default() -> Self {
        Self { capacity: None, block: 64 }
    }
}

/// A sequence and everything that is remembered of it. Sessions of one engine are independent of each other.
pub struct Session {
    model: Arc<Model>,
    pool: Arc<Pool>,
    /// Rotary tables, where the model has them.
    rope: Option<Arc<Rope>>,
    capacity: usize,
    block: usize,
    /// Tokens held.
    tokens: Vec<u32>,
    /// `[layer][key-value head]`
    cache: Vec<Vec<HeadCache>>,
    logits: Vec<f32>,
    /// Made at the first token, so that sessions that are only fed by a batch have none.
    workspace: Option<Box<Workspace>>,
    /// `[layer][token]`, if recorded.
    trace: Option<Vec<Vec<ActBits>>>,
}

impl Session {
    pub(crate) fn new(model: Arc<Model>, pool: Arc<Pool>, options: SessionOptions) -> Result<Self> {
        let max_positions = model.spec.max_position_embeddings;
        let limit = max_positions.min(MAX_CONTEXT);
        let capacity = options.capacity.unwrap_or(limit);
        if capacity == 0 || capacity > limit {
            return Err(EngineError::Option {
                option: "capacity",
                expected: format!(
                    "1 to {limit} tokens (max_position_embeddings is {max_positions}, exact sums reach {MAX_CONTEXT})"
                ),
                got: capacity.to_string(),
            });
        }
        if options.block == 0 || options.block > 4096 {
            return Err(EngineError::Option {
                option: "block",
                expected: "1 to 4096 tokens".to_owned(),
                got: options.block.to_string(),
            });
        }
        let block = options.block.min(capacity);
        let rope = model.rope(capacity);
        let kv_heads = model.spec.num_key_value_heads;
        let widths = cache_widths(&model);
        let layer_cache = |layer: &crate::model::Layer| {
            (0..kv_heads).map(|_| layer.attention.cache(capacity, widths)).collect()
        };
        let cache = model.layers.iter().map(layer_cache).collect();
        let logits = vec![0.0; model.spec.vocab_size];
        let tokens = Vec::with_capacity(capacity);
        Ok(Self { model, pool, rope, capacity, block, tokens, cache, logits, workspace: None, trace: None })
    }

    /// Number of tokens held.
    pub fn position(&self) -> usize {
        self.tokens.len()
    }

    /// The tokens held.
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// Most tokens it can hold.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Logits after the token fed last, `[vocabulary]`; zeros before the first.
    pub fn logits(&self) -> &[f32] {
        &self.logits
    }

    /// Forgets everything.
    pub fn reset(&mut self) {
        self.cut(0);
    }

    /// Forgets all tokens from `len` on, so that another continuation can be fed. The logits are stale until then.
    ///
    /// # Errors
    /// `len` beyond the tokens held.
    pub fn truncate(&mut self, len: usize) -> Result<()> {
        if len > self.position() {
            return Err(EngineError::Truncate { asked: len, held: self.position() });
        }
        self.cut(len);
        Ok(())
    }

    pub(crate) fn cut(&mut self, len: usize) {
        self.cache.iter_mut().flatten().for_each(|head| head.truncate(len));
        if let Some(trace) = &mut self.trace {
            trace.iter_mut().for_each(|layer| layer.truncate(len));
        }
        self.tokens.truncate(len);
    }

    /// Keys and values of a layer, and the rotary tables.
    pub(crate) fn layer_cache(&mut self, layer: usize) -> (&mut [HeadCache], Option<&Rope>) {
        (&mut self.cache[layer], self.rope.as_deref())
    }

    /// Notes the activation bits of the next tokens in a layer, if that was asked for.
    pub(crate) fn record(&mut self, layer: usize, bits: impl Iterator<Item = ActBits>) {
        if let Some(trace) = &mut self.trace {
            trace[layer].extend(bits);
        }
    }

    /// Counts tokens whose keys and values are in the cache.
    pub(crate) fn advance(&mut self, tokens: &[u32]) {
        self.tokens.extend_from_slice(tokens);
    }

    pub(crate) fn logits_mut(&mut self) -> &mut [f32] {
        &mut self.logits
    }

    pub(crate) fn model(&self) -> &Model {
        &self.model
    }

    /// Key-value heads, layer by layer.
    pub(crate) fn heads(&self) -> impl Iterator<Item = &HeadCache> {
        self.cache.iter().flatten()
    }

    /// Key-value heads, layer by layer.
    pub(crate) fn heads_mut(&mut self) -> impl Iterator<Item = &mut HeadCache> {
        self.cache.iter_mut().flatten()
    }

    /// An empty session of the same model and sizes.
    pub(crate) fn empty_twin(&self) -> Result<Self> {
        let options = SessionOptions { capacity: Some(self.capacity), block: self.block };
        Self::new(self.model.clone(), self.pool.clone(), options)
    }

    /// Takes over what another session of the same model and sizes holds.
    pub(crate) fn take_from(&mut self, other: Self) {
        (self.tokens, self.cache, self.logits, self.trace) =
            (other.tokens, other.cache, other.logits, other.trace);
    }

    /// Copies what another session of the same model and sizes holds.
    pub(crate) fn copy_from(&mut self, other: &Self) {
        self.tokens.extend_from_slice(&other.tokens);
        self.logits.copy_from_slice(&other.logits);
        self.trace.clone_from(&other.trace);
        let widths = cache_widths(&self.model);
        let room = self.capacity;
        for (own, other) in self.heads_mut().zip(other.heads()) {
            own.clone_from(other);
            own.reserve(room - other.len(), widths);
        }
    }

    pub(crate) fn is_of(&self, model: &Arc<Model>) -> bool {
        Arc::ptr_eq(&self.model, model)
    }

    /// Feeds tokens after those held; returns the logits after the last one, `[vocabulary]`.
    ///
    /// One call gives the same bits as [`Session::decode`] token by token.
    ///
    /// # Errors
    /// No tokens, an id outside the vocabulary, more tokens than there is room for: nothing is fed then. Logits that
    /// are not finite.
    pub fn prefill(&mut self, tokens: &[u32]) -> Result<&[f32]> {
        self.run(tokens, None)?;
        Ok(&self.logits)
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
        let mut all = Vec::with_capacity(tokens.len() * self.model.spec.vocab_size);
        self.for_each_logits(tokens, |_, logits| all.extend_from_slice(logits))?;
        Ok(all)
    }

    /// Feeds tokens and shows the logits after each of them in order: `visit(index, logits)`. Memory stays bounded.
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
        self.check(tokens)?;
        let (model, pool) = (self.model.clone(), self.pool.clone());
        let mut workspace = self
            .workspace
            .take()
            .unwrap_or_else(|| Box::new(Workspace::new(&model, pool.threads(), self.block, self.capacity)));
        let done = workspace.run(&model, &pool, &mut [BatchEntry::new(self, tokens)], visit);
        self.workspace = Some(workspace);
        done
    }

    /// Records from now on which bits each token gets in each layer; forgets what was recorded, and every token.
    pub fn record_token_bits(&mut self, on: bool) {
        self.reset();
        self.trace = on.then(|| vec![Vec::new(); self.model.layers.len()]);
    }

    /// Activation bits `[layer][token]` of all tokens held, if [`Session::record_token_bits`] asked for them.
    pub fn token_bits(&self) -> Option<&[Vec<ActBits>]> {
        self.trace.as_deref()
    }

    /// Bytes of keys and values held.
    pub fn cache_bytes(&self) -> usize {
        self.cache.iter().flatten().map(HeadCache::bytes).sum()
    }

    /// Bytes of buffers that do not depend on the tokens held.
    pub fn scratch_bytes(&self) -> usize {
        let workspace = self.workspace.as_ref().map_or(0, |workspace| workspace.bytes());
        workspace + 4 * (self.logits.len() + self.tokens.capacity())
    }

    pub(crate) fn check(&self, tokens: &[u32]) -> Result<()> {
        if tokens.is_empty() {
            return Err(EngineError::Empty { what: "the input", expected: "one token" });
        }
        check_ids(tokens, self.model.spec.vocab_size)?;
        let asked = self.position() + tokens.len();
        if asked > self.capacity {
            return Err(EngineError::TooLong {
                asked,
                capacity: self.capacity,
                max_positions: self.model.spec.max_position_embeddings,
            });
        }
        Ok(())
    }
}

/// Widths that rows of the cache can have.
fn cache_widths(model: &Model) -> &'static [ActBits] {
    match model.plan.policy.uniform() {
        Some(ActBits::A4) => &[ActBits::A4],
        Some(ActBits::A8) => &[ActBits::A8],
        None => &ActBits::ALL,
    }
}

/// Every id must be in the vocabulary.
pub(crate) fn check_ids(tokens: &[u32], vocab_size: usize) -> Result<()> {
    match tokens.iter().position(|&id| id as usize >= vocab_size) {
        None => Ok(()),
        Some(position) => Err(EngineError::TokenOutOfRange { id: tokens[position], position, vocab_size }),
    }
}
