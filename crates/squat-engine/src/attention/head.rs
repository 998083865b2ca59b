//! The cache of one key-value head in the form that the plan allows, and one block of tokens through it.

use super::general::{AttentionPoints, GeneralHead, GeneralScratch};
use crate::model::Rope;
use squat_kernels::{
    AttentionScheme, AttentionScratch, CacheError, Causal, FloatKvHead, Kernels, KvHead, QuantizedRows,
    RowQuantizer,
};
use squat_model::ModelSpec;
use squat_quant::ActBits;

/// Positions for which a cache makes room at once; beyond it grows as it is filled.
const RESERVE: usize = 4096;

/// How a layer attends.
#[derive(Clone, Debug)]
pub(crate) struct AttentionPlan {
    head_dim: usize,
    /// Query heads that share a key-value head.
    group: usize,
    points: AttentionPoints,
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
    /// The form that these quantizers allow; `probs` is the width of the probabilities.
    pub(crate) fn new(
        spec: &ModelSpec,
        query: Option<RowQuantizer>,
        key: Option<RowQuantizer>,
        value: Option<RowQuantizer>,
        probs: Option<u32>,
    ) -> Self {
        use RowQuantizer::{Dynamic, Static};
        let form = match (&query, &key, &value, probs) {
            // Sums over dynamic keys know no zero point, so a static query, which may have one, is not for them.
            (Some(Dynamic), Some(Dynamic), Some(Dynamic), Some(8)) => Form::Integer(AttentionScheme::Dynamic),
            (Some(_), Some(Static(keys)), Some(Static(values)), Some(bits)) => {
                let scheme = AttentionScheme::Static { keys: *keys, values: *values, probability_bits: bits };
                Form::Integer(scheme)
            }
            (None, None, None, None) => Form::Float,
            _ => Form::General,
        };
        let group = spec.num_attention_heads / spec.num_key_value_heads;
        Self { head_dim: spec.head_dim, group, points: AttentionPoints { query, key, value, probs }, form }
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
    /// Makes room for some more positions of these widths, but not for more than it pays to hold ready.
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
    pub column_0: Vec<f32>,
    /// Queries of the group after RoPE, `[tokens, group * head_dim]`.
    query: Vec<f32>,
    /// Key and value of one token after RoPE.
    pair: Vec<f32>,
    /// Bits of each row of queries.
    query_bits: Vec<ActBits>,
    queries: QuantizedRows,
    key: QuantizedRows,
    value: QuantizedRows,
    attention: AttentionScratch,
    general: GeneralScratch,
}

impl HeadScratch {
    /// Room for blocks of `tokens` tokens, so that nothing is allocated later.
    pub(crate) fn reserve(&mut self, plan: &AttentionPlan, tokens: usize, positions: usize) {
        let (d, group) = (plan.head_dim, plan.group);
        self.attended.resize(tokens * group * d, 0.0);
        self.column_0.resize(tokens * group, 0.0);
        self.query.resize(tokens * group * d, 0.0);
        self.query_bits.resize(tokens * group, ActBits::A8);
        self.pair.resize(2 * d, 0.0);
        self.queries.reset(tokens * group, d);
        self.key.reset(1, d);
        self.value.reset(1, d);
        self.attention.reserve(tokens * group, positions.min(RESERVE), d);
    }

    /// Bytes held.
    pub(crate) fn bytes(&self) -> usize {
        let floats = self.attended.capacity()
            + self.column_0.capacity()
            + self.query.capacity()
            + self.pair.capacity();
        let rows = self.queries.bytes() + self.key.bytes() + self.value.bytes() + self.query_bits.len();
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

/// Appends the tokens of a block to the cache of key-value head `kv`, and lets each attend to everything up to itself.
/// Results are left in `scratch`, from row `first` on.
///
/// What a token gets does not depend on the others of its block, so a block gives the same as its tokens alone.
///
/// # Errors
/// The cache is full; callers check the capacity before.
pub(crate) fn attend_block<'a>(
    kernels: &Kernels,
    plan: &AttentionPlan,
    rope: &Rope,
    (kv, kv_heads): (usize, usize),
    first: usize,
    tokens: impl Iterator<Item = HeadToken<'a>>,
    cache: &mut HeadCache,
    scratch: &mut HeadScratch,
) -> Result<(), CacheError> {
    let (d, group) = (plan.head_dim, plan.group);
    let (half, width) = (d / 2, group * d);
    let HeadScratch { attended, column_0, query, pair, query_bits, queries, key, value, attention, general } =
        scratch;
    let (attended, column_0) = (&mut attended[first * width..], &mut column_0[first * group..]);
    let causal = Causal { len: cache.len() + 1, group };
    let keys_at = kv_heads * width;
    let mut count = 0;
    for HeadToken { qkv, bits } in tokens {
        let at = cache.len() * half;
        let (cos, sin) = (&rope.cos[at..][..half], &rope.sin[at..][..half]);
        let q_rows = &mut query[count * width..][..width];
        q_rows.copy_from_slice(&qkv[kv * width..][..width]);
        pair[..d].copy_from_slice(&qkv[keys_at + kv * d..][..d]);
        pair[d..].copy_from_slice(&qkv[keys_at + (kv_heads + kv) * d..][..d]);
        let (k_row, v_row) = pair.split_at_mut(d);
        for row in q_rows.chunks_exact_mut(d).chain([&mut *k_row]) {
            kernels.rope(row, cos, sin);
        }
        match cache {
            HeadCache::Integer(head) => {
                let (Some(k), Some(v)) = (&plan.points.key, &plan.points.value) else {
                    unreachable!("the integer form has all its quantizers");
                };
                kernels.quantize_rows(key, k_row, d, &[bits], k);
                kernels.quantize_rows(value, v_row, d, &[bits], v);
                head.push(key.row(0), value.row(0))?;
                query_bits[count * group..][..group].fill(bits);
            }
            HeadCache::Float(head) => head.push(k_row, v_row)?,
            HeadCache::General(head) => {
                head.push(k_row, v_row, bits);
                let attended = attended[count * width..][..width].chunks_exact_mut(d);
                let column_0 = &mut column_0[count * group..][..group];
                for ((query, out), column_0) in q_rows.chunks_exact(d).zip(attended).zip(column_0) {
                    *column_0 = head.attend(query, bits, general, out);
                }
            }
        }
        count += 1;
    }
    let (query, attended) = (&query[..count * width], &mut attended[..count * width]);
    let column_0 = &mut column_0[..count * group];
    match cache {
        HeadCache::Integer(head) => {
            let Some(quantizer) = &plan.points.query else {
                unreachable!("the integer form has all its quantizers");
            };
            kernels.quantize_rows(queries, query, d, &query_bits[..count * group], quantizer);
            kernels.attend(head, causal, queries.as_view(), attention, attended, column_0);
        }
        HeadCache::Float(head) => kernels.attend_float(head, causal, query, attention, attended, column_0),
        HeadCache::General(_) => {}
    }
    Ok(())
}
