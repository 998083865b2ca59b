//! One sequence: its tokens, keys and values, logits. It holds data and runs nothing; [`crate::workspace`] does.

use crate::attention::HeadCache;
use crate::error::{EngineError, Result};
use crate::model::{Layer, Model, Rope, Ropes};
use squat_kernels::MAX_CONTEXT;
use squat_quant::ActBits;
use std::sync::Arc;

/// The state of one sequence of a model.
pub(crate) struct Sequence {
    model: Arc<Model>,
    ropes: Arc<Ropes>,
    capacity: usize,
    /// Tokens held.
    tokens: Vec<u32>,
    /// `[layer][key-value head]`
    cache: Vec<Vec<HeadCache>>,
    /// After the token fed last, `[vocabulary]`.
    logits: Vec<f32>,
    /// Activation bits `[layer][token]`, if recorded.
    trace: Option<Vec<Vec<ActBits>>>,
}

impl Sequence {
    /// An empty sequence of up to `capacity` tokens; `None` takes the model's `max_position_embeddings`.
    ///
    /// # Errors
    /// A capacity of 0, or beyond what the model or exact sums reach.
    pub(crate) fn new(model: Arc<Model>, capacity: Option<usize>) -> Result<Self> {
        let max_positions = model.spec.max_position_embeddings;
        let limit = max_positions.min(MAX_CONTEXT);
        let capacity = capacity.unwrap_or(limit);
        if capacity == 0 || capacity > limit {
            return Err(EngineError::Option {
                option: "capacity",
                expected: format!(
                    "1 to {limit} tokens (max_position_embeddings is {max_positions}, exact sums reach {MAX_CONTEXT})"
                ),
                got: capacity.to_string(),
            });
        }
        let ropes = model.ropes(capacity);
        let kv_heads = model.spec.num_key_value_heads;
        let widths = cache_widths(&model);
        let layer_cache =
            |layer: &Layer| (0..kv_heads).map(|_| layer.attention.cache(capacity, widths)).collect();
        let cache = model.layers.iter().map(layer_cache).collect();
        let logits = vec![0.0; model.spec.vocab_size];
        let tokens = Vec::with_capacity(capacity);
        Ok(Self { model, ropes, capacity, tokens, cache, logits, trace: None })
    }

    pub(crate) fn model(&self) -> &Arc<Model> {
        &self.model
    }

    pub(crate) fn capacity(&self) -> usize {
        self.capacity
    }

    pub(crate) fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// Number of tokens held.
    pub(crate) fn position(&self) -> usize {
        self.tokens.len()
    }

    pub(crate) fn logits(&self) -> &[f32] {
        &self.logits
    }

    pub(crate) fn logits_mut(&mut self) -> &mut [f32] {
        &mut self.logits
    }

    /// Forgets all tokens from `len` on. The logits stay.
    pub(crate) fn truncate(&mut self, len: usize) {
        self.cache.iter_mut().flatten().for_each(|head| head.truncate(len));
        if let Some(trace) = &mut self.trace {
            trace.iter_mut().for_each(|layer| layer.truncate(len));
        }
        self.tokens.truncate(len);
    }

    /// Keys and values of a layer, and the rotary tables.
    pub(crate) fn layer_cache(&mut self, layer: usize) -> (&mut [HeadCache], Option<&Rope>) {
        (&mut self.cache[layer], self.ropes.of_layer(&self.model.spec, layer))
    }

    /// Counts tokens whose keys and values are in the cache.
    pub(crate) fn advance(&mut self, tokens: &[u32]) {
        self.tokens.extend_from_slice(tokens);
    }

    /// Starts or stops recording activation bits; forgets every token.
    pub(crate) fn record_bits(&mut self, on: bool) {
        self.truncate(0);
        self.trace = on.then(|| vec![Vec::new(); self.cache.len()]);
    }

    /// Notes the activation bits of the next tokens in a layer, if they are recorded.
    pub(crate) fn record(&mut self, layer: usize, bits: impl Iterator<Item = ActBits>) {
        if let Some(trace) = &mut self.trace {
            trace[layer].extend(bits);
        }
    }

    pub(crate) fn recorded_bits(&self) -> Option<&[Vec<ActBits>]> {
        self.trace.as_deref()
    }

    /// Key-value heads, layer by layer.
    pub(crate) fn heads(&self) -> impl Iterator<Item = &HeadCache> {
        self.cache.iter().flatten()
    }

    /// Key-value heads, layer by layer.
    pub(crate) fn heads_mut(&mut self) -> impl Iterator<Item = &mut HeadCache> {
        self.cache.iter_mut().flatten()
    }

    /// Another sequence that holds the same.
    ///
    /// # Errors
    /// Out of memory.
    pub(crate) fn fork(&self) -> Result<Self> {
        let mut fork = Self::new(self.model.clone(), Some(self.capacity))?;
        fork.tokens.extend_from_slice(&self.tokens);
        fork.logits.copy_from_slice(&self.logits);
        fork.trace.clone_from(&self.trace);
        let widths = cache_widths(&self.model);
        for (copy, head) in fork.cache.iter_mut().flatten().zip(self.heads()) {
            copy.clone_from(head);
            copy.reserve(self.capacity - head.len(), widths);
        }
        Ok(fork)
    }

    /// Checks tokens that are to be fed.
    ///
    /// # Errors
    /// No tokens, an id outside the vocabulary, more tokens than fit.
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

    /// Bytes of keys and values held.
    pub(crate) fn cache_bytes(&self) -> usize {
        self.heads().map(HeadCache::bytes).sum()
    }

    /// Bytes of everything else.
    pub(crate) fn other_bytes(&self) -> usize {
        4 * (self.logits.len() + self.tokens.capacity())
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
