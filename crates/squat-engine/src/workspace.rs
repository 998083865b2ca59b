//! One block of tokens, of one sequence or of several, through all layers: the buffers and the order of the work.

use crate::attention::head::{HeadToken, attend_block};
use crate::attention::{HeadCache, HeadScratch};
use crate::error::{EngineError, Result};
use crate::linear::Operand;
use crate::model::{Model, Rope};
use crate::pool::{Pool, lock};
use crate::row_shard::RowShard;
use crate::sequence::Sequence;
use squat_kernels::CacheError;
use squat_quant::ActBits;
use std::ops::Range;
use std::sync::{Mutex, OnceLock};

/// Fewest rows that are worth a shard of their own.
const MIN_SHARD_ROWS: usize = 16;

/// Tokens whose logits are computed together.
const LOGITS_TILE: usize = 16;

/// Multiplications of an attention step below which sharing it out costs more than it saves.
const MIN_ATTENTION_WORK: usize = 1 << 17;

/// Tokens for one sequence, to be fed together with those of others; see [`crate::Batch::run`].
pub struct BatchEntry<'a> {
    pub(crate) sequence: &'a mut Sequence,
    pub(crate) tokens: &'a [u32],
    /// Whether the logits after the last token are computed.
    logits: bool,
    /// Tokens fed in earlier blocks.
    fed: usize,
    /// First row and number of rows in the current block.
    first: usize,
    count: usize,
}

impl<'a> BatchEntry<'a> {
    /// Tokens to feed after those that `sequence` holds.
    pub(crate) fn of(sequence: &'a mut Sequence, tokens: &'a [u32]) -> Self {
        Self { sequence, tokens, logits: true, fed: 0, first: 0, count: 0 }
    }

    /// The same tokens as a part of a longer input, whose other tokens follow: no logits are computed.
    pub(crate) fn without_logits(self) -> Self {
        Self { logits: false, ..self }
    }

    fn ends_here(&self) -> bool {
        self.logits && self.count > 0 && self.fed + self.count == self.tokens.len()
    }
}

/// A token of a block.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Row {
    pub token: u32,
    /// Its position in its sequence.
    pub position: usize,
}

/// Shown the logits after each token: its index in the tokens fed, and the logits.
pub(crate) type Visit<'a> = &'a mut dyn FnMut(usize, &[f32]) -> Result<()>;

/// Input of the head for some tokens.
#[derive(Debug)]
struct LmHeadInput {
    /// `[tokens, hidden]`
    input: Vec<f32>,
    /// A row of the residual stream without the transform of the plan.
    plain: Vec<f32>,
    operand: Operand,
    /// Logits of some tokens together, `[tokens, vocabulary]`; empty until the logits of more than one token are needed at once.
    tile: Vec<f32>,
}

/// A key-value head of a sequence, and the rows of the block that it attends for.
struct HeadItem<'a> {
    kv: usize,
    cache: &'a mut HeadCache,
    rope: Option<&'a Rope>,
    rows: Range<usize>,
}

/// Buffers for a block, reused by every layer and every block.
#[derive(Debug)]
pub(crate) struct Workspace {
    /// Most rows of a block.
    capacity: usize,
    rows: Vec<Row>,
    shards: Vec<RowShard>,
    /// By key-value head.
    heads: Vec<Mutex<HeadScratch>>,
    head: LmHeadInput,
}

impl Workspace {
    /// Room for blocks of `block` tokens for each thread, in sequences of up to `positions` tokens.
    pub(crate) fn new(model: &Model, threads: usize, block: usize, positions: usize) -> Self {
        let shard_rows = block.max(2 * MIN_SHARD_ROWS);
        let shards = (0..threads).map(|_| RowShard::new(model, shard_rows)).collect();
        let heads = (0..model.spec.num_key_value_heads).map(|_| {
            let mut head = HeadScratch::default();
            head.reserve(&model.layers[0].attention, shard_rows * threads, positions);
            Mutex::new(head)
        });
        Self {
            capacity: block * threads,
            rows: Vec::with_capacity(block * threads),
            shards,
            heads: heads.collect(),
            head: LmHeadInput {
                input: vec![0.0; LOGITS_TILE * model.spec.hidden_size],
                plain: vec![0.0; if model.plan.residual.is_none() { 0 } else { model.spec.hidden_size }],
                operand: Operand::default(),
                tile: Vec::new(),
            },
        }
    }

    /// Bytes held.
    pub(crate) fn bytes(&self) -> usize {
        let shards: usize = self.shards.iter().map(RowShard::bytes).sum();
        let heads: usize = self.heads.iter().map(|head| lock(head).bytes()).sum();
        let head = &self.head;
        let head = 4 * (head.input.len() + head.plain.len() + head.tile.len()) + head.operand.bytes();
        shards + heads + head + self.rows.capacity() * size_of::<Row>()
    }

    /// Feeds all entries, whose tokens have been checked; each sequence gets the logits after its last token. With `visit`
    /// there is one entry, and the logits after each of its tokens are shown.
    ///
    /// On an error the sequences are as before, except for their logits.
    pub(crate) fn run(
        &mut self,
        model: &Model,
        pool: &Pool,
        entries: &mut [BatchEntry<'_>],
        mut visit: Option<Visit<'_>>,
    ) -> Result<()> {
        let done = self.blocks(model, pool, entries, &mut visit);
        if done.is_err() {
            for entry in entries {
                entry.sequence.truncate(entry.sequence.position() - entry.fed);
            }
        }
        done
    }

    fn blocks(
        &mut self,
        model: &Model,
        pool: &Pool,
        entries: &mut [BatchEntry<'_>],
        visit: &mut Option<Visit<'_>>,
    ) -> Result<()> {
        while self.fill(entries) {
            if let Err(error) = self.feed(model, pool, entries) {
                // Nothing of this block counts.
                entries.iter_mut().for_each(|entry| entry.sequence.truncate(entry.sequence.position()));
                return Err(error.into());
            }
            // An error from here on must undo the block, so the tokens are counted before it is returned.
            let logits = self.entry_logits(model, pool, entries, visit);
            for entry in entries.iter_mut() {
                entry.sequence.advance(&entry.tokens[entry.fed..entry.fed + entry.count]);
                entry.fed += entry.count;
            }
            logits?;
        }
        Ok(())
    }

    /// Fills a block with the next tokens of the entries; false if no tokens are left.
    fn fill(&mut self, entries: &mut [BatchEntry<'_>]) -> bool {
        self.rows.clear();
        for entry in entries {
            entry.first = self.rows.len();
            entry.count = (self.capacity - entry.first).min(entry.tokens.len() - entry.fed);
            let tokens = &entry.tokens[entry.fed..entry.fed + entry.count];
            let from = entry.sequence.position();
            self.rows.extend((from..).zip(tokens).map(|(position, &token)| Row { token, position }));
        }
        !self.rows.is_empty()
    }

    /// One block through all layers. Rows are shared out over shards when there are enough of them, else output
    /// channels; heads of attention always.
    fn feed(
        &mut self,
        model: &Model,
        pool: &Pool,
        entries: &mut [BatchEntry<'_>],
    ) -> std::result::Result<(), CacheError> {
        let rows = &self.rows[..];
        let active = (rows.len() / MIN_SHARD_ROWS).clamp(1, self.shards.len());
        for (index, shard) in self.shards.iter_mut().enumerate() {
            let cut = |i: usize| rows.len() * i.min(active) / active;
            (shard.first, shard.count) = (cut(index), cut(index + 1) - cut(index));
        }
        let inner = (active == 1).then_some(pool);
        let layers = model.layers.len();
        let kv_heads = self.heads.len();
        let reach: usize = rows.iter().map(|row| row.position + 1).sum();
        for layer in 0..=layers {
            let heads = &self.heads;
            pool.for_each(self.shards[..active].iter_mut(), |_, shard| {
                match layer.checked_sub(1) {
                    None => shard.embed(model, rows),
                    Some(below) => shard.finish(model, below, heads, inner),
                }
                if layer < layers {
                    shard.project(model, layer, rows, heads, inner);
                }
            });
            if layer == layers {
                break;
            }
            let shards = &self.shards[..active];
            let (plan, width) = (&model.layers[layer].attention, model.layers[layer].qkv.rows);
            let token = |row: usize| {
                let holds = |shard: &&RowShard| row < shard.first + shard.count;
                let shard = shards.iter().find(holds).expect("shards hold every row of the block");
                let at = row - shard.first;
                HeadToken { qkv: &shard.output[at * width..][..width], bits: shard.bits[at] }
            };
            for entry in entries.iter_mut() {
                let rows = entry.first..entry.first + entry.count;
                entry.sequence.record(layer, rows.map(|row| token(row).bits));
            }
            let failed = OnceLock::<CacheError>::new();
            let items = entries.iter_mut().filter(|entry| entry.count > 0).flat_map(|entry| {
                let (from, to) = (entry.first, entry.first + entry.count);
                let (caches, rope) = entry.sequence.layer_cache(layer);
                caches.iter_mut().enumerate().map(move |(kv, cache)| HeadItem {
                    kv,
                    cache,
                    rope,
                    rows: from..to,
                })
            });
            let items = PrefetchHeads::new(items);
            let attend = |_, HeadItem { kv, cache, rope, rows }: HeadItem<'_>| {
                let scratch = &mut *lock(&heads[kv]);
                let done =
                    attend_block(model.kernels, plan, rope, (kv, kv_heads), rows, token, cache, scratch);
                if let Err(error) = done {
                    let _ = failed.set(error);
                }
            };
            if reach * 2 * model.layers[layer].output.cols < MIN_ATTENTION_WORK {
                items.enumerate().for_each(|(index, item)| attend(index, item));
            } else {
                pool.for_each(items, attend);
            }
            if let Some(error) = failed.into_inner() {
                return Err(error);
            }
        }
        Ok(())
    }

    /// Logits after the tokens of the block that are wanted: all, shown to `visit`, or the last one of each entry.
    fn entry_logits(
        &mut self,
        model: &Model,
        pool: &Pool,
        entries: &mut [BatchEntry<'_>],
        visit: &mut Option<Visit<'_>>,
    ) -> Result<()> {
        let vocabulary = model.spec.vocab_size;
        if let (Some(visit), [entry]) = (visit, &mut *entries) {
            for from in (0..entry.count).step_by(LOGITS_TILE) {
                let count = LOGITS_TILE.min(entry.count - from);
                (0..count).for_each(|slot| self.gather(model, slot, entry.first + from + slot));
                self.tile_logits(model, pool, count);
                for (row, logits) in self.head.tile.chunks_exact(vocabulary).take(count).enumerate() {
                    let index = entry.fed + from + row;
                    check_finite(logits, entry.sequence.position() + from + row)?;
                    visit(index, logits)?;
                }
                let last = &self.head.tile[(count - 1) * vocabulary..count * vocabulary];
                entry.sequence.logits_mut().copy_from_slice(last);
            }
            return Ok(());
        }
        let mut next = 0;
        while next < entries.len() {
            // Up to a tile of entries that end in this block.
            let (from, mut count) = (next, 0);
            while next < entries.len() && count < LOGITS_TILE {
                if entries[next].ends_here() {
                    self.gather(model, count, entries[next].first + entries[next].count - 1);
                    count += 1;
                }
                next += 1;
            }
            let mut ending = entries[from..next].iter_mut().filter(|entry| entry.ends_here());
            if count == 1
                && let Some(entry) = ending.next()
            {
                self.head.logits(model, pool, 1, entry.sequence.logits_mut());
                check_finite(entry.sequence.logits(), entry.sequence.position() + entry.count - 1)?;
            } else if count > 1 {
                self.tile_logits(model, pool, count);
                for (entry, logits) in ending.zip(self.head.tile.chunks_exact(vocabulary)) {
                    check_finite(logits, entry.sequence.position() + entry.count - 1)?;
                    entry.sequence.logits_mut().copy_from_slice(logits);
                }
            }
        }
        Ok(())
    }

    /// Copies a row of the block, normalized, to the input of the head.
    fn gather(&mut self, model: &Model, slot: usize, row: usize) {
        let hidden = model.spec.hidden_size;
        let holds = |shard: &&RowShard| (shard.first..shard.first + shard.count).contains(&row);
        if let Some(shard) = self.shards.iter().find(holds) {
            let x = &shard.x[(row - shard.first) * hidden..][..hidden];
            let out = &mut self.head.input[slot * hidden..][..hidden];
            if model.plan.residual.is_none() {
                model.final_norm.apply(model.kernels, x, out);
            } else {
                // A transform undoes itself; the gain has its place between the two.
                let (plain, transform) = (&mut self.head.plain, model.plan.residual);
                plain.copy_from_slice(x);
                model.kernels.transform(plain, hidden, transform);
                model.final_norm.apply(model.kernels, plain, out);
                model.kernels.transform(out, hidden, transform);
            }
        }
    }

    /// Logits of the first `count` gathered rows, in the tile.
    fn tile_logits(&mut self, model: &Model, pool: &Pool, count: usize) {
        let mut tile = std::mem::take(&mut self.head.tile);
        let needed = count * model.spec.vocab_size;
        if tile.len() < needed {
            tile.resize(needed, 0.0);
        }
        self.head.logits(model, pool, count, &mut tile[..needed]);
        self.head.tile = tile;
    }
}

impl LmHeadInput {
    fn logits(&mut self, model: &Model, pool: &Pool, count: usize, out: &mut [f32]) {
        let input = &mut self.input[..count * model.spec.hidden_size];
        // The head's input is always 8 bits.
        let bits = &[ActBits::A8; LOGITS_TILE][..count];
        model.head.prepare(model.kernels, input, bits, &mut self.operand);
        model.head.product(model.kernels, Some(pool), input, &self.operand, count, out);
    }
}

/// An iterator over heads. Taking an item prefetches the cache of the next one, and the descriptor of the cache of the
/// one after it.
struct PrefetchHeads<I: Iterator> {
    items: I,
    next: Option<I::Item>,
    after: Option<I::Item>,
}

impl<'a, I: Iterator<Item = HeadItem<'a>>> PrefetchHeads<I> {
    fn new(mut items: I) -> Self {
        Self { next: items.next(), after: items.next(), items }
    }
}

impl<'a, I: Iterator<Item = HeadItem<'a>>> Iterator for PrefetchHeads<I> {
    type Item = HeadItem<'a>;

    fn next(&mut self) -> Option<HeadItem<'a>> {
        let item = self.next.take()?;
        self.next = self.after.take();
        if let Some(next) = &self.next {
            next.cache.prefetch();
            self.after = self.items.next();
        }
        if let Some(after) = &self.after {
            squat_kernels::prefetch(std::slice::from_ref(&*after.cache));
        }
        Some(item)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        let (least, most) = self.items.size_hint();
        let held = usize::from(self.next.is_some()) + usize::from(self.after.is_some());
        (least + held, most.and_then(|most| most.checked_add(held)))
    }
}

/// Logits must be finite: later functions treat NaN as a small number.
fn check_finite(logits: &[f32], position: usize) -> Result<()> {
    if logits.iter().fold(true, |finite, x| finite & x.is_finite()) {
        return Ok(());
    }
    let index = logits.iter().position(|x| !x.is_finite()).unwrap_or(0);
    Err(EngineError::NotFinite { position, index, value: logits[index] })
}
