//! One sequence on its way through the model: key-value cache, position, buffers.

use crate::attention::head::{HeadToken, attend_block};
use crate::attention::{HeadCache, HeadScratch};
use crate::error::{EngineError, Result};
use crate::lane::Lane;
use crate::model::{Model, Rope};
use crate::pool::Pool;
use squat_kernels::{CacheError, MAX_CONTEXT};
use squat_quant::ActBits;
use std::sync::{Arc, OnceLock};

/// Fewest rows for which a lane of its own pays.
const MIN_LANE_ROWS: usize = 16;

/// Tokens whose logits are computed together when all are asked for.
const LOGITS_TILE: usize = 16;

/// Multiplications of an attention step below which a join costs more than it saves.
const MIN_ATTENTION_WORK: usize = 1 << 17;

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
    rope: Arc<Rope>,
    capacity: usize,
    block: usize,
    position: usize,
    /// `[layer][key-value head]`
    cache: Vec<Vec<HeadCache>>,
    lanes: Vec<Lane>,
    heads: Vec<HeadScratch>,
    logits: Vec<f32>,
    /// Logits of some tokens together, `[tokens, vocabulary]`; empty until asked for.
    tile: Vec<f32>,
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
        let widths: &[ActBits] = match model.plan.policy.uniform() {
            Some(ActBits::A4) => &[ActBits::A4],
            Some(ActBits::A8) => &[ActBits::A8],
            None => &ActBits::ALL,
        };
        let layer_cache = |layer: &crate::model::Layer| {
            (0..kv_heads).map(|_| layer.attention.cache(capacity, widths)).collect()
        };
        let cache = model.layers.iter().map(layer_cache).collect();
        let threads = pool.threads();
        let lane_rows = block.max(2 * MIN_LANE_ROWS);
        let lanes = (0..threads).map(|_| Lane::new(&model, lane_rows)).collect();
        let mut heads: Vec<HeadScratch> = (0..kv_heads).map(|_| HeadScratch::default()).collect();
        for head in &mut heads {
            head.reserve(&model.layers[0].attention, lane_rows * threads, capacity);
        }
        let logits = vec![0.0; model.spec.vocab_size];
        Ok(Self {
            model,
            pool,
            rope,
            capacity,
            block,
            position: 0,
            cache,
            lanes,
            heads,
            logits,
            tile: Vec::new(),
            trace: None,
        })
    }

    /// Tokens held.
    pub fn position(&self) -> usize {
        self.position
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
        if len > self.position {
            return Err(EngineError::Truncate { asked: len, held: self.position });
        }
        self.cut(len);
        Ok(())
    }

    fn cut(&mut self, len: usize) {
        self.cache.iter_mut().flatten().for_each(|head| head.truncate(len));
        if let Some(trace) = &mut self.trace {
            trace.iter_mut().for_each(|layer| layer.truncate(len));
        }
        self.position = len;
    }

    /// Feeds tokens after those held; returns the logits after the last one, `[vocabulary]`.
    ///
    /// One call gives the same bits as [`Session::decode`] token by token.
    ///
    /// # Errors
    /// No tokens, an id outside the vocabulary, more tokens than there is room for: nothing is fed then. Logits that
    /// are not finite.
    pub fn prefill(&mut self, tokens: &[u32]) -> Result<&[f32]> {
        self.check(tokens)?;
        self.blocks(tokens, |_, _, _| Ok(()))?;
        self.last_logits()
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
        self.check(tokens)?;
        let (model, pool) = (self.model.clone(), self.pool.clone());
        let vocabulary = model.spec.vocab_size;
        let start = self.position;
        let mut tile = std::mem::take(&mut self.tile);
        tile.resize(tile.len().max(LOGITS_TILE.min(tokens.len()) * vocabulary), 0.0);
        let done = self.blocks(tokens, |first, lane, session_logits| {
            for index in (0..lane.count).step_by(LOGITS_TILE) {
                let rows = LOGITS_TILE.min(lane.count - index);
                let tile = &mut tile[..rows * vocabulary];
                lane.logits(&model, index, &pool, tile);
                for (row, logits) in tile.chunks_exact(vocabulary).enumerate() {
                    let token = first + lane.first + index + row;
                    check_finite(logits, start + token)?;
                    visit(token, logits);
                }
                session_logits.copy_from_slice(&tile[(rows - 1) * vocabulary..]);
            }
            Ok(())
        });
        self.tile = tile;
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
        let lanes: usize = self.lanes.iter().map(Lane::bytes).sum();
        let heads: usize = self.heads.iter().map(HeadScratch::bytes).sum();
        lanes + heads + 4 * (self.logits.len() + self.tile.len())
    }

    fn check(&self, tokens: &[u32]) -> Result<()> {
        if tokens.is_empty() {
            return Err(EngineError::Empty { what: "the input", expected: "one token" });
        }
        check_ids(tokens, self.model.spec.vocab_size)?;
        let asked = self.position + tokens.len();
        if asked > self.capacity {
            return Err(EngineError::TooLong {
                asked,
                capacity: self.capacity,
                max_positions: self.model.spec.max_position_embeddings,
            });
        }
        Ok(())
    }

    /// Feeds checked tokens in blocks; after each block `visit(index of its first token, lane, logits)` for its lanes
    /// in order. On an error the session is as before.
    fn blocks(
        &mut self,
        tokens: &[u32],
        mut visit: impl FnMut(usize, &mut Lane, &mut [f32]) -> Result<()>,
    ) -> Result<()> {
        let start = self.position;
        let size = self.block * self.pool.threads();
        for (index, block) in tokens.chunks(size).enumerate() {
            let mut done = self.feed(block);
            if done.is_ok() {
                self.position += block.len();
                for lane in self.lanes.iter_mut().filter(|lane| lane.count > 0) {
                    if done.is_ok() {
                        done = visit(index * size, lane, &mut self.logits);
                    }
                }
            }
            if let Err(error) = done {
                self.cut(start);
                return Err(error);
            }
        }
        Ok(())
    }

    /// Logits after the last token of the block fed last.
    fn last_logits(&mut self) -> Result<&[f32]> {
        let lane = self.lanes.iter_mut().rfind(|lane| lane.count > 0);
        if let Some(lane) = lane {
            lane.logits(&self.model, lane.count - 1, &self.pool, &mut self.logits);
        }
        check_finite(&self.logits, self.position - 1)?;
        Ok(&self.logits)
    }

    /// One block through all layers. Rows are shared out over lanes when there are enough of them, else output
    /// channels; heads of attention always.
    fn feed(&mut self, tokens: &[u32]) -> Result<()> {
        let (model, pool) = (&*self.model, &*self.pool);
        let active = (tokens.len() / MIN_LANE_ROWS).clamp(1, self.lanes.len());
        for (index, lane) in self.lanes.iter_mut().enumerate() {
            let cut = |i: usize| tokens.len() * i.min(active) / active;
            (lane.first, lane.count) = (cut(index), cut(index + 1) - cut(index));
        }
        let inner = (active == 1).then_some(pool);
        let position = self.position;
        let layers = model.layers.len();
        let kv_heads = self.heads.len();
        for layer in 0..=layers {
            let heads = &self.heads;
            pool.for_each(self.lanes[..active].iter_mut(), |_, lane| {
                match layer.checked_sub(1) {
                    None => lane.embed(model, tokens),
                    Some(below) => lane.finish(model, below, heads, inner),
                }
                if layer < layers {
                    lane.project(model, layer, position, heads, inner);
                }
            });
            if layer == layers {
                break;
            }
            let lanes = &self.lanes[..active];
            if let Some(trace) = &mut self.trace {
                lanes.iter().for_each(|lane| trace[layer].extend_from_slice(&lane.bits[..lane.count]));
            }
            let (plan, width) = (&model.layers[layer].attention, model.layers[layer].qkv.rows);
            let failed = OnceLock::<CacheError>::new();
            let attend = |kv: usize, (cache, scratch): (&mut HeadCache, &mut HeadScratch)| {
                let rows = lanes
                    .iter()
                    .flat_map(|lane| lane.output.chunks_exact(width).zip(&lane.bits).take(lane.count));
                let rows = rows.map(|(qkv, &bits)| HeadToken { qkv, bits });
                let done =
                    attend_block(model.kernels, plan, &self.rope, (kv, kv_heads), rows, cache, scratch);
                if let Err(error) = done {
                    let _ = failed.set(error);
                }
            };
            let items = self.cache[layer].iter_mut().zip(&mut self.heads);
            let work = tokens.len() * (position + tokens.len()) * 2 * model.layers[layer].output.cols;
            if work < MIN_ATTENTION_WORK {
                items.enumerate().for_each(|(kv, item)| attend(kv, item));
            } else {
                pool.for_each(items, attend);
            }
            if let Some(error) = failed.into_inner() {
                return Err(error.into());
            }
        }
        Ok(())
    }
}

/// Every id must be in the vocabulary.
pub(crate) fn check_ids(tokens: &[u32], vocab_size: usize) -> Result<()> {
    match tokens.iter().position(|&id| id as usize >= vocab_size) {
        None => Ok(()),
        Some(position) => Err(EngineError::TokenOutOfRange { id: tokens[position], position, vocab_size }),
    }
}

/// Logits must be finite: functions further on take NaN for a small number.
fn check_finite(logits: &[f32], position: usize) -> Result<()> {
    if logits.iter().fold(true, |finite, x| finite & x.is_finite()) {
        return Ok(());
    }
    let index = logits.iter().position(|x| !x.is_finite()).unwrap_or(0);
    Err(EngineError::NotFinite { position, index, value: logits[index] })
}
