//! An architecture as data: sizes, and the parameters that follow from them.

use std::path::Path;

use serde_json::{Map, Value};
use squat_quant::ActPoint;

use crate::arch::{self, Architecture, Mlp, Norm};
use crate::error::ModelError;
use crate::format::gguf::{GgufModel, is_gguf};
use crate::hf::open_config;

/// Sizes and constants of a decoder-only transformer, as `config.json` states them.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelSpec {
    /// Which forward pass these sizes belong to.
    pub architecture: Architecture,
    /// Rows of the embedding; token ids are `0..vocab_size`.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width of the MLP.
    pub intermediate_size: usize,
    /// Number of layers.
    pub num_hidden_layers: usize,
    /// Query heads.
    pub num_attention_heads: usize,
    /// Key and value heads; divides `num_attention_heads`.
    pub num_key_value_heads: usize,
    /// Width of a head; even where RoPE turns pairs.
    pub head_dim: usize,
    /// Longest sequence, in tokens.
    pub max_position_embeddings: usize,
    /// Added to the mean square, or to the variance, in norms.
    pub norm_eps: f64,
    /// Base of the RoPE frequencies; none where positions are learned and added to the tokens' rows.
    pub rope_theta: Option<f64>,
    /// Whether the output projection is the embedding itself.
    pub tie_word_embeddings: bool,
    /// Token that begins every sequence.
    pub bos_token_id: Option<u32>,
    /// Tokens that end a text; may be empty.
    pub eos_token_ids: Vec<u32>,
    /// Token that fills batches.
    pub pad_token_id: Option<u32>,
}

/// One of the linear layers of a transformer layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum LinearKind {
    /// Query projection, `[heads * head_dim, hidden]`.
    Q,
    /// Key projection, `[kv_heads * head_dim, hidden]`.
    K,
    /// Value projection, `[kv_heads * head_dim, hidden]`.
    V,
    /// Output projection, `[hidden, heads * head_dim]`.
    O,
    /// Gate of the MLP, `[intermediate, hidden]`.
    Gate,
    /// Up projection of the MLP, `[intermediate, hidden]`; its first matrix where it has no gate.
    Up,
    /// Down projection of the MLP, `[hidden, intermediate]`.
    Down,
}

impl LinearKind {
    /// Every kind, in the order of the forward pass; see [`ModelSpec::linears`].
    pub const ALL: [Self; 7] = [Self::Q, Self::K, Self::V, Self::O, Self::Gate, Self::Up, Self::Down];

    /// Name of the Hugging Face module: `q_proj`, ..., `down_proj`.
    pub const fn module(self) -> &'static str {
        match self {
            Self::Q => "q_proj",
            Self::K => "k_proj",
            Self::V => "v_proj",
            Self::O => "o_proj",
            Self::Gate => "gate_proj",
            Self::Up => "up_proj",
            Self::Down => "down_proj",
        }
    }

    /// The activation point that is this linear's input.
    pub const fn input_point(self) -> ActPoint {
        match self {
            Self::Q | Self::K | Self::V => ActPoint::AttnIn,
            Self::O => ActPoint::AttnOut,
            Self::Gate | Self::Up => ActPoint::MlpIn,
            Self::Down => ActPoint::MlpMid,
        }
    }
}

/// What a parameter does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ParamKind {
    /// Token table, `[vocab, hidden]`.
    Embedding,
    /// Learned positions, `[max_position_embeddings, hidden]`.
    Positions,
    /// Gain of a norm, `[hidden]`.
    Norm,
    /// Weight of a linear layer, `[out, in]`.
    Linear(LinearKind),
    /// Bias of a norm, `[hidden]`, or of a linear layer, `[out]`.
    Bias,
    /// Output projection of an untied model, `[vocab, hidden]`.
    Head,
}

/// A parameter of a model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParamInfo {
    /// Its name, e.g. `model.layers.0.self_attn.q_proj.weight`: that of Hugging Face's LLaMA, whatever the architecture.
    pub name: String,
    /// `[out, in]` for matrices, one number for gains and biases.
    pub shape: Vec<usize>,
    /// What it does.
    pub kind: ParamKind,
    /// Layer it belongs to; none for the embedding, the last norm and the head.
    pub layer: Option<usize>,
}

impl ParamInfo {
    /// Number of elements.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Whether it has no element; never the case in a validated spec.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Name without the trailing `.weight`: the stem of packed and learned-scale tensors.
    pub fn module(&self) -> &str {
        module(&self.name)
    }
}

/// Name of the bias beside a weight of that name.
pub fn bias_name(weight: &str) -> String {
    format!("{}.bias", module(weight))
}

fn module(name: &str) -> &str {
    name.strip_suffix(".weight").unwrap_or(name)
}

impl ModelSpec {
    /// Name of the token table.
    pub const EMBEDDING: &'static str = "model.embed_tokens.weight";
    /// Name of learned positions.
    pub const POSITIONS: &'static str = "model.embed_positions.weight";
    /// Name of the gain of the last norm.
    pub const FINAL_NORM: &'static str = "model.norm.weight";
    /// Name of the output projection of an untied model.
    pub const HEAD: &'static str = "lm_head.weight";

    /// Largest number of parameters accepted: a configuration beyond it is a mistake, and sizes could overflow.
    pub const MAX_PARAMETERS: u64 = 1 << 40;

    /// Reads the `config.json` of a model folder, or the metadata of a GGUF file.
    ///
    /// # Errors
    /// No such folder or file, and as [`ModelSpec::from_config`] and [`GgufModel::open`].
    pub fn open(path: impl AsRef<Path>) -> Result<Self, ModelError> {
        if is_gguf(path.as_ref()) {
            return Ok(GgufModel::open(path)?.spec().clone());
        }
        Self::from_config(&open_config(path.as_ref())?)
    }

    /// Reads a Hugging Face `config.json` object.
    ///
    /// Keys that do not change the forward pass are ignored.
    ///
    /// # Errors
    /// An unknown architecture, a missing or mistyped key, a feature that is not implemented, sizes that do not fit
    /// together: each names the key, what was expected and what was found.
    pub fn from_config(config: &Map<String, Value>) -> Result<Self, ModelError> {
        let spec = arch::of_config(config)?.read_config(config)?;
        spec.validate()?;
        Ok(spec)
    }

    /// The Hugging Face `config.json` object; [`ModelSpec::from_config`] reads it back to an equal spec.
    pub fn to_config(&self) -> Map<String, Value> {
        self.architecture.to_config(self)
    }

    /// Checks that the sizes describe a model.
    ///
    /// # Errors
    /// The first key with a wrong value.
    pub fn validate(&self) -> Result<(), ModelError> {
        let sizes = [
            ("vocab_size", self.vocab_size),
            ("hidden_size", self.hidden_size),
            ("intermediate_size", self.intermediate_size),
            ("num_hidden_layers", self.num_hidden_layers),
            ("num_attention_heads", self.num_attention_heads),
            ("num_key_value_heads", self.num_key_value_heads),
            ("head_dim", self.head_dim),
            ("max_position_embeddings", self.max_position_embeddings),
        ];
        for (key, size) in sizes {
            if size == 0 {
                return Err(ModelError::config(key, "a positive number", "0", ""));
            }
            let limit = match key {
                "num_hidden_layers" => 10_000,
                "max_position_embeddings" => 1 << 24,
                _ => 1 << 31,
            };
            if size > limit {
                return Err(ModelError::config(key, format!("at most {limit}"), size.to_string(), ""));
            }
        }
        if !self.num_attention_heads.is_multiple_of(self.num_key_value_heads) {
            return Err(ModelError::config(
                "num_key_value_heads",
                format!("a divisor of num_attention_heads = {}", self.num_attention_heads),
                self.num_key_value_heads.to_string(),
                "",
            ));
        }
        if self.rope_theta.is_some() && !self.head_dim.is_multiple_of(2) {
            let got = self.head_dim.to_string();
            return Err(ModelError::config("head_dim", "an even number, for rotary pairs", got, ""));
        }
        let eps = match self.architecture.norm() {
            Norm::RootMeanSquare => "rms_norm_eps",
            Norm::Layer => "layer_norm_epsilon",
        };
        for (key, value) in [(eps, Some(self.norm_eps)), ("rope_theta", self.rope_theta)] {
            let Some(value) = value else { continue };
            if !(value.is_finite() && value > 0.0) {
                return Err(ModelError::config(key, "a positive finite number", value.to_string(), ""));
            }
        }
        let ids = [("bos_token_id", self.bos_token_id), ("pad_token_id", self.pad_token_id)];
        let ids = ids.into_iter().filter_map(|(key, id)| id.map(|id| (key, id)));
        for (key, id) in ids.chain(self.eos_token_ids.iter().map(|&id| ("eos_token_id", id))) {
            if id as usize >= self.vocab_size {
                let expected = format!("a token id below vocab_size = {}", self.vocab_size);
                return Err(ModelError::config(key, expected, id.to_string(), ""));
            }
        }
        match self.checked_num_parameters() {
            Some(n) if n <= Self::MAX_PARAMETERS => Ok(()),
            n => Err(ModelError::config(
                "sizes",
                format!("at most {} parameters in all", Self::MAX_PARAMETERS),
                n.map_or("more than can be counted".to_owned(), |n| n.to_string()),
                "; check hidden_size, intermediate_size, num_hidden_layers and vocab_size",
            )),
        }
    }

    /// Number of parameters, `None` on overflow.
    fn checked_num_parameters(&self) -> Option<u64> {
        let mul = |a: usize, b: usize| (a as u64).checked_mul(b as u64);
        let table = mul(self.vocab_size, self.hidden_size)?;
        let q = mul(self.num_attention_heads, self.head_dim)?;
        let kv = mul(self.num_key_value_heads, self.head_dim)?;
        let hidden = self.hidden_size as u64;
        let attention = q.checked_add(kv)?.checked_mul(2)?.checked_mul(hidden)?;
        let (inner, matrices) = (self.intermediate_size as u64, self.linears().len() as u64 - 4);
        let mlp = inner.checked_mul(matrices)?.checked_mul(hidden)?;
        let biases = match self.architecture.biases() {
            true => (q + 2 * kv).checked_add((matrices - 1) * inner)?.checked_add(2 * hidden)?,
            false => 0,
        };
        let norm = match self.architecture.norm() {
            Norm::RootMeanSquare => hidden,
            Norm::Layer => 2 * hidden,
        };
        let layer = attention.checked_add(mlp)?.checked_add(biases)?.checked_add(2 * norm)?;
        let tables = table.checked_mul(if self.tie_word_embeddings { 1 } else { 2 })?;
        let positions = match self.rope_theta {
            Some(_) => 0,
            None => mul(self.max_position_embeddings, self.hidden_size)?,
        };
        layer
            .checked_mul(self.num_hidden_layers as u64)?
            .checked_add(tables)?
            .checked_add(positions)?
            .checked_add(norm)
    }

    /// The linears of a layer, in the order of the forward pass.
    pub fn linears(&self) -> &'static [LinearKind] {
        use LinearKind::{Down, K, O, Q, Up, V};
        match self.architecture.mlp() {
            Mlp::SwiGlu => &LinearKind::ALL,
            Mlp::Gelu => &[Q, K, V, O, Up, Down],
        }
    }

    /// Every parameter, in the order of the forward pass; a tied head is not listed.
    pub fn parameters(&self) -> Vec<ParamInfo> {
        let (vocab, hidden) = (self.vocab_size, self.hidden_size);
        let mut params = Vec::new();
        let mut push = |name: &str, shape: &[usize], kind, layer, biased: bool| {
            params.push(ParamInfo { name: name.to_owned(), shape: shape.to_vec(), kind, layer });
            if biased {
                let (name, shape) = (bias_name(name), vec![shape[0]]);
                params.push(ParamInfo { name, shape, kind: ParamKind::Bias, layer });
            }
        };
        let layer_norm = self.architecture.norm() == Norm::Layer;
        push(Self::EMBEDDING, &[vocab, hidden], ParamKind::Embedding, None, false);
        if self.rope_theta.is_none() {
            push(Self::POSITIONS, &[self.max_position_embeddings, hidden], ParamKind::Positions, None, false);
        }
        for layer in 0..self.num_hidden_layers {
            let at = Some(layer);
            push(&self.attn_norm_name(layer), &[hidden], ParamKind::Norm, at, layer_norm);
            for &kind in self.linears() {
                let (name, shape) = (self.linear_name(layer, kind), self.linear_shape(kind));
                push(&name, &shape, ParamKind::Linear(kind), at, self.architecture.biases());
                if kind == LinearKind::O {
                    push(&self.mlp_norm_name(layer), &[hidden], ParamKind::Norm, at, layer_norm);
                }
            }
        }
        push(Self::FINAL_NORM, &[hidden], ParamKind::Norm, None, layer_norm);
        if !self.tie_word_embeddings {
            push(Self::HEAD, &[vocab, hidden], ParamKind::Head, None, false);
        }
        params
    }

    /// Number of parameters; a tied table counts once.
    pub fn num_parameters(&self) -> usize {
        self.parameters().iter().map(ParamInfo::len).sum()
    }

    /// `[out, in]` of a linear.
    pub fn linear_shape(&self, kind: LinearKind) -> [usize; 2] {
        let (q, kv) = (self.num_attention_heads * self.head_dim, self.num_key_value_heads * self.head_dim);
        match kind {
            LinearKind::Q => [q, self.hidden_size],
            LinearKind::K | LinearKind::V => [kv, self.hidden_size],
            LinearKind::O => [self.hidden_size, q],
            LinearKind::Gate | LinearKind::Up => [self.intermediate_size, self.hidden_size],
            LinearKind::Down => [self.hidden_size, self.intermediate_size],
        }
    }

    /// Hugging Face name of a linear's weight.
    pub fn linear_name(&self, layer: usize, kind: LinearKind) -> String {
        let block = match kind {
            LinearKind::Q | LinearKind::K | LinearKind::V | LinearKind::O => "self_attn",
            LinearKind::Gate | LinearKind::Up | LinearKind::Down => "mlp",
        };
        format!("model.layers.{layer}.{block}.{}.weight", kind.module())
    }

    /// Name of the gain of the norm before attention.
    pub fn attn_norm_name(&self, layer: usize) -> String {
        format!("model.layers.{layer}.input_layernorm.weight")
    }

    /// Name of the gain of the norm before the MLP.
    pub fn mlp_norm_name(&self, layer: usize) -> String {
        format!("model.layers.{layer}.post_attention_layernorm.weight")
    }

    /// Name of the table the logits come from: the head, or the embedding of a tied model.
    pub fn head_name(&self) -> &'static str {
        if self.tie_word_embeddings { Self::EMBEDDING } else { Self::HEAD }
    }
}
