//! The cache of one key-value head in the form that the plan allows, and one block of tokens through it.

use super::general::{AttentionPoints, GeneralHead, GeneralScratch};
use crate::model::{Norm, Rope};
use squat_kernels::{
    AttentionScheme, AttentionScratch, CacheError, Causal, FloatKvHead, Kernels, KvHead, QuantizedRows,
    RowQuantizer,
};
use squat_model::{ModelSpec, QkNorm};
use squat_quant::{ActBits, Transform};
use std::ops::Range;

/// Tokens whose keys and values are quantized and appended together.
const TOGETHER: usize = 16;

/// Positions that a cache reserves memory for at once; beyond them it grows as it is filled.
const RESERVE: usize = 4096;

/// How a layer attends.
#[derive(Clone, Debug)]
pub(crate) struct AttentionPlan {
    head_dim: usize,
    /// Query heads that share a key-value head.
    group: usize,
    /// Norms of each head of the queries and of the keys before RoPE, in models that have them.
    pub query_norm: Option<Norm>,
    pub key_norm: Option<Norm>,
    /// Whether these norms are of whole rows, and applied before a row is taken apart.
    pub row_norms: bool,
    /// Positions that a token attends to at most; `usize::MAX` for no limit.
    window: usize,
    /// Of each head of queries and keys, after RoPE.
    pub transform: Transform,
    pub points: AttentionPoints,
    form: Form,
}

/// Which cache holds keys and values.
#[derive(Clone, Debug, PartialEq)]
enum Form {
    /// Everything is quantized, keys and values alike: integers.
    Integer(AttentionScheme),
    /// Nothing is quantized.
    Float,
    /// The rest.
    General,
}

impl AttentionPlan {
    /// The form that these quantizers allow.
    pub(crate) fn new(
        (spec, layer): (&ModelSpec, usize),
        points: AttentionPoints,
        transform: Transform,
        [query_norm, key_norm]: [Option<Norm>; 2],
    ) -> Self {
        use RowQuantizer::{Dynamic, Static};
        let form = match (&points.query, &points.key, &points.value, points.probs) {
            // Products with dynamic keys leave out the zero point that a static query may have.
            (Some(Dynamic(_)), Some(Dynamic(_)), Some(Dynamic(_)), Some(8)) => {
                Form::Integer(AttentionScheme::Dynamic)
            }
            (Some(_), Some(Static(keys)), Some(Static(values)), Some(bits)) => {
                let scheme = AttentionScheme::Static { keys: *keys, values: *values, probability_bits: bits };
                Form::Integer(scheme)
            }
            (None, None, None, None) => Form::Float,
            _ => Form::General,
        };
        let group = spec.num_attention_heads / spec.num_key_value_heads;
        Self {
            head_dim: spec.head_dim,
            group,
            query_norm,
            key_norm,
            row_norms: spec.qk_norm == QkNorm::Row,
            window: spec.window_of(layer).unwrap_or(usize::MAX),
            transform,
            points,
            form,
        }
    }

    /// An empty cache with room for some positions.
    pub(crate) fn cache(&self, capacity: usize, widths: &[ActBits]) -> HeadCache {
        let mut cache = match &self.form {
            Form::Integer(scheme) => HeadCache::Integer(KvHead::new(self.head_dim, *scheme)),
            Form::Float => HeadCache::Float(FloatKvHead::new(self.head_dim)),
            Form::General => HeadCache::General(GeneralHead::new(self.head_dim, self.points.clone())),
        };
        cache.reserve(capacity, widths);
        cache
    }
}

/// Keys and values of one head of one layer.
#[derive(Clone, Debug)]
#[allow(clippy::large_enum_variant)] // A few per layer, and always the same variant.
pub(crate) enum HeadCache {
    Integer(KvHead),
    Float(FloatKvHead),
    General(GeneralHead),
}

impl HeadCache {
    /// Reserves memory for more positions of these widths, up to [`RESERVE`].
    pub(crate) fn reserve(&mut self, positions: usize, widths: &[ActBits]) {
        let room = positions.min(RESERVE);
        match self {
            Self::Integer(head) => widths.iter().for_each(|&bits| head.reserve(room, bits)),
            Self::Float(head) => head.reserve(room),
            Self::General(_) => {}
        }
    }

    /// Positions held.
    pub(crate) fn len(&self) -> usize {
        match self {
            Self::Integer(head) => head.len(),
            Self::Float(head) => head.len(),
            Self::General(head) => head.len(),
        }
    }

    /// Prefetches the part that the next [`attend_block`] reads first.
    pub(crate) fn prefetch(&self) {
        if let Self::Integer(head) = self {
            head.prefetch();
        }
    }

    /// Forgets all positions from `len` on.
    pub(crate) fn truncate(&mut self, len: usize) {
        match self {
            Self::Integer(head) => head.truncate(len),
            Self::Float(head) => head.truncate(len),
            Self::General(head) => head.truncate(len),
        }
    }

    /// Bytes held.
    pub(crate) fn bytes(&self) -> usize {
        match self {
            Self::Integer(head) => head.bytes_used(),
            Self::Float(head) => head.bytes_used(),
            Self::General(head) => head.bytes(),
        }
    }
}

/// Buffers and results of one key-value head; the same for every layer.
#[derive(Debug, Default)]
pub(crate) struct HeadScratch {
    /// Attended values of this head's query heads, `[tokens, group * head_dim]`.
    pub attended: Vec<f32>,
    /// Probability of position 0, `[tokens, group]`.
    pub sink_probs: Vec<f32>,
    /// Queries of the group after RoPE, `[tokens, group * head_dim]`.
    query: Vec<f32>,
    /// Keys and values of up to [`TOGETHER`] tokens, `[tokens, head_dim]` each, keys after RoPE.
    keys: Vec<f32>,
    values: Vec<f32>,
    /// Bits of these tokens, and of each row of queries.
    bits: Vec<ActBits>,
    query_bits: Vec<ActBits>,
    queries: QuantizedRows,
    key_codes: QuantizedRows,
    value_codes: QuantizedRows,
    attention: AttentionScratch,
    general: GeneralScratch,
}

impl HeadScratch {
    /// Room for blocks of `tokens` tokens, so that nothing is allocated later.
    pub(crate) fn reserve(&mut self, plan: &AttentionPlan, tokens: usize, positions: usize) {
        let (d, group) = (plan.head_dim, plan.group);
        self.attended.resize(tokens * group * d, 0.0);
        self.sink_probs.resize(tokens * group, 0.0);
        self.query.resize(tokens * group * d, 0.0);
        self.query_bits.resize(tokens * group, ActBits::A8);
        self.keys.resize(TOGETHER * d, 0.0);
        self.values.resize(TOGETHER * d, 0.0);
        self.bits.resize(TOGETHER, ActBits::A8);
        self.queries.reset(tokens * group, d);
        self.key_codes.reset(TOGETHER, d);
        self.value_codes.reset(TOGETHER, d);
        self.attention.reserve(tokens * group, positions.min(RESERVE), d);
    }

    /// Bytes held.
    pub(crate) fn bytes(&self) -> usize {
        let floats = self.attended.capacity()
            + self.sink_probs.capacity()
            + self.query.capacity()
            + self.keys.capacity()
            + self.values.capacity();
        let codes = self.queries.bytes() + self.key_codes.bytes() + self.value_codes.bytes();
        let rows = codes + self.bits.len() + self.query_bits.len();
        4 * floats + rows + self.attention.bytes() + self.general.bytes()
    }
}

/// One token as a key-value head sees it.
pub(crate) struct HeadToken<'a> {
    /// Projections of all heads: `[q, k, v]`.
    pub qkv: &'a [f32],
    /// Activation bits of the token in this layer.
    pub bits: ActBits,
}

/// Copies some heads of a projection, `[heads, head_dim]`, normalized where the model has a norm for them.
fn copy_heads(kernels: &Kernels, norm: Option<&Norm>, heads: &[f32], out: &mut [f32]) {
    let Some(norm) = norm else { return out.copy_from_slice(heads) };
    let head_dim = norm.gain.len();
    for (head, out) in heads.chunks_exact(head_dim).zip(out.chunks_exact_mut(head_dim)) {
        norm.apply(kernels, head, out);
    }
}

/// Appends the tokens of some rows of a block to the cache of key-value head `kv`, and lets each attend to everything up to
/// itself. Results are left in these rows of `scratch`.
///
/// A token's result does not depend on the rest of its block: blocks and single tokens give the same bits.
///
/// # Errors
/// The cache is full; callers check the capacity before.
pub(crate) fn attend_block<'a>(
    kernels: &Kernels,
    plan: &AttentionPlan,
    rope: Option<&Rope>,
    (kv, kv_heads): (usize, usize),
    rows: Range<usize>,
    token: impl Fn(usize) -> HeadToken<'a>,
    cache: &mut HeadCache,
    scratch: &mut HeadScratch,
) -> Result<(), CacheError> {
    let (d, group) = (plan.head_dim, plan.group);
    let (half, width) = (d / 2, group * d);
    let HeadScratch {
        attended,
        sink_probs,
        query,
        keys,
        values,
        bits,
        query_bits,
        queries,
        key_codes,
        value_codes,
        attention,
        general,
    } = scratch;
    let count = rows.len();
    let attended = &mut attended[rows.start * width..rows.end * width];
    let sink_probs = &mut sink_probs[rows.start * group..rows.end * group];
    let causal = Causal { len: cache.len() + 1, group, window: plan.window };
    let (query_norm, key_norm) = match plan.row_norms {
        true => (None, None),
        false => (plan.query_norm.as_ref(), plan.key_norm.as_ref()),
    };
    let (start, keys_at) = (cache.len(), kv_heads * width);
    for from in (0..count).step_by(TOGETHER) {
        let held = TOGETHER.min(count - from);
        for index in 0..held {
            let (row, HeadToken { qkv, bits: of_token }) = (from + index, token(rows.start + from + index));
            let q_rows = &mut query[row * width..][..width];
            let k_row = &mut keys[index * d..][..d];
            copy_heads(kernels, query_norm, &qkv[kv * width..][..width], q_rows);
            copy_heads(kernels, key_norm, &qkv[keys_at + kv * d..][..d], k_row);
            values[index * d..][..d].copy_from_slice(&qkv[keys_at + (kv_heads + kv) * d..][..d]);
            if let Some(rope) = rope {
                let at = (start + row) * half;
                let (cos, sin) = (&rope.cos[at..][..half], &rope.sin[at..][..half]);
                for row in q_rows.chunks_exact_mut(d).chain([&mut *k_row]) {
                    kernels.rope(row, cos, sin);
                }
            }
            if !plan.transform.is_none() {
                kernels.transform(q_rows, d, plan.transform);
                kernels.transform(k_row, d, plan.transform);
            }
            bits[index] = of_token;
            query_bits[row * group..][..group].fill(of_token);
        }
        let (keys, values, bits) = (&keys[..held * d], &values[..held * d], &bits[..held]);
        match cache {
            HeadCache::Integer(head) => {
                let (Some(k), Some(v)) = (&plan.points.key, &plan.points.value) else {
                    unreachable!("the integer form has all its quantizers");
                };
                kernels.quantize_rows(key_codes, keys, d, bits, k);
                kernels.quantize_rows(value_codes, values, d, bits, v);
                head.extend(key_codes.as_view(), value_codes.as_view())?;
            }
            HeadCache::Float(head) => {
                for (key, value) in keys.chunks_exact(d).zip(values.chunks_exact(d)) {
                    head.push(key, value)?;
                }
            }
            HeadCache::General(head) => {
                let rows = keys.chunks_exact(d).zip(values.chunks_exact(d)).zip(bits);
                for (index, ((key, value), &bits)) in (from..).zip(rows) {
                    head.push(key, value, bits);
                    let attended = attended[index * width..][..width].chunks_exact_mut(d);
                    let sink_probs = &mut sink_probs[index * group..][..group];
                    let queries = query[index * width..][..width].chunks_exact(d);
                    for ((query, out), sink_prob) in queries.zip(attended).zip(sink_probs) {
                        *sink_prob = head.attend(kernels, query, (bits, plan.window), general, out);
                    }
                }
            }
        }
    }
    let query = &query[..count * width];
    match cache {
        HeadCache::Integer(head) => {
            let Some(quantizer) = &plan.points.query else {
                unreachable!("the integer form has all its quantizers");
            };
            kernels.quantize_rows(queries, query, d, &query_bits[..count * group], quantizer);
            kernels.attend(head, causal, queries.as_view(), attention, attended, sink_probs);
        }
        HeadCache::Float(head) => kernels.attend_float(head, causal, query, attention, attended, sink_probs),
        HeadCache::General(_) => {}
    }
    Ok(())
}
