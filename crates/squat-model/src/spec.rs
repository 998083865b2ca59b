//! An architecture as data: its features, its sizes, and the parameters that follow from them.
//!
//! This is the ground floor: nothing here opens a file or knows a family of models. [`crate::arch`] reads and writes the
//! configuration of each family; trainer, engine and [`crate::reference`] interpret the fields.

use squat_quant::ActPoint;

use crate::error::ModelError;
use crate::rope::Rope;

/// The family that a model belongs to, as Hugging Face names it. It decides how configurations and files are written,
/// never what is computed: that follows from the other fields of [`ModelSpec`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Architecture {
    /// Entry of `architectures` in `config.json`: `LlamaForCausalLM`.
    pub class: &'static str,
    /// `model_type` in `config.json`: `llama`.
    pub model_type: &'static str,
}

/// Normalization of a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Norm {
    /// RMSNorm: divided by the root mean square, times a gain.
    Rms,
    /// LayerNorm: mean subtracted, divided by the standard deviation, times a gain, plus a bias.
    Layer,
}

/// The feed-forward block of a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mlp {
    /// `down(silu(gate(x)) * up(x))`
    SwiGlu,
    /// `down(gelu(gate(x)) * up(x))`, with the tanh approximation of GELU.
    GeGlu,
    /// `down(gelu(up(x)))`, with the tanh approximation of GELU.
    Gelu,
}

impl Mlp {
    /// Whether the block has a gate projection.
    pub const fn gated(self) -> bool {
        !matches!(self, Self::Gelu)
    }
}

/// The norms of queries and keys before RoPE.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum QkNorm {
    /// None.
    #[default]
    None,
    /// An RMSNorm of each head, gain `[head_dim]`.
    Head,
    /// An RMSNorm of all heads of a row together, gain `[heads * head_dim]`.
    Row,
}

/// Where the norms of a layer stand: before its two blocks (attention and MLP), behind them on their way to the residual
/// stream, or both.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum NormPlaces {
    /// `x + block(norm(x))`
    #[default]
    Input,
    /// `x + norm(block(x))`
    Output,
    /// `x + norm(block(norm(x)))`
    Both,
}

impl NormPlaces {
    /// Whether blocks have a norm before them.
    pub const fn input(self) -> bool {
        !matches!(self, Self::Output)
    }

    /// Whether blocks have a norm behind them.
    pub const fn output(self) -> bool {
        !matches!(self, Self::Input)
    }
}

/// Layers that attend to the latest positions alone.
#[derive(Clone, Debug, PartialEq)]
pub struct Window {
    /// Positions that a token attends to, itself included.
    pub size: usize,
    /// Whether each layer has the window, `[layers]`.
    pub layers: Vec<bool>,
    /// Rotary embedding of these layers where it differs from that of the others.
    pub rope: Option<Rope>,
}

/// A set of linear layers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LinearSet(u8);

impl LinearSet {
    /// The empty set.
    pub const NONE: Self = Self(0);
    /// Query, key and value projections.
    pub const QKV: Self = Self::of(&[LinearKind::Q, LinearKind::K, LinearKind::V]);
    /// The four projections of attention.
    pub const ATTENTION: Self = Self::of(&[LinearKind::Q, LinearKind::K, LinearKind::V, LinearKind::O]);
    /// The projections of the MLP.
    pub const MLP: Self = Self::of(&[LinearKind::Gate, LinearKind::Up, LinearKind::Down]);
    /// Every linear layer.
    pub const ALL: Self = Self::of(&LinearKind::ALL);

    /// The set of these kinds.
    pub const fn of(kinds: &[LinearKind]) -> Self {
        let (mut bits, mut i) = (0, 0);
        while i < kinds.len() {
            bits |= 1 << kinds[i] as u8;
            i += 1;
        }
        Self(bits)
    }

    /// Whether `kind` belongs to the set.
    pub const fn contains(self, kind: LinearKind) -> bool {
        self.0 & (1 << kind as u8) != 0
    }

    /// Whether every element of `other` belongs to the set.
    pub const fn contains_all(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// Elements of either set.
    pub const fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Whether the set is empty.
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }
}

/// Features, sizes and constants of a decoder-only transformer.
///
/// `arch::llama::base()` and its siblings give the features of a family; sizes are filled in with struct update syntax,
/// so that a new field does not change the places that build a spec.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelSpec {
    /// The family.
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
    /// Norm before attention, before the MLP and before the head.
    pub norm: Norm,
    /// Added to the mean square, or to the variance, in every norm.
    pub norm_eps: f64,
    /// Where the norms of a layer stand.
    pub norm_places: NormPlaces,
    /// Norms of queries and keys before RoPE.
    pub qk_norm: QkNorm,
    /// Feed-forward block.
    pub mlp: Mlp,
    /// Linear layers with a bias; the head never has one.
    pub biases: LinearSet,
    /// Rotary position embedding; without one, positions are learned and added to the rows of the token table.
    pub rope: Option<Rope>,
    /// Whether queries and keys of each layer are left as they are in spite of `rope`, `[layers]`; empty: nowhere.
    pub without_rope: Vec<bool>,
    /// Layers that attend to the latest positions alone.
    pub window: Option<Window>,
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
            Self::O => ActPoint::OProjInput,
            Self::Gate | Self::Up => ActPoint::MlpIn,
            Self::Down => ActPoint::DownProjInput,
        }
    }
}

/// Which norm of a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum NormKind {
    /// Before attention, `[hidden]`.
    Attn,
    /// Of the queries, `[head_dim]` or `[heads * head_dim]`.
    Query,
    /// Of the keys, `[head_dim]` or `[kv_heads * head_dim]`.
    Key,
    /// Behind the output projection of attention, `[hidden]`.
    AttnOutput,
    /// Before the MLP, `[hidden]`.
    Mlp,
    /// Behind the MLP, `[hidden]`.
    MlpOutput,
    /// Before the head, `[hidden]`.
    Final,
}

/// The role of a parameter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ParamKind {
    /// Token table, `[vocab, hidden]`.
    Embedding,
    /// Learned positions, `[max_position_embeddings, hidden]`.
    Positions,
    /// Gain of a norm.
    Norm(NormKind),
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
    /// Its role.
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

/// The norm of each head behind a projection.
const fn head_norm(kind: LinearKind) -> Option<NormKind> {
    match kind {
        LinearKind::Q => Some(NormKind::Query),
        LinearKind::K => Some(NormKind::Key),
        _ => None,
    }
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

    /// Largest number of layers accepted.
    pub const MAX_LAYERS: usize = 1_000;

    /// Checks a number of layers, before lists of that length are made.
    pub(crate) fn check_layers(layers: usize) -> Result<(), ModelError> {
        let (key, limit) = ("num_hidden_layers", Self::MAX_LAYERS);
        if layers <= limit {
            return Ok(());
        }
        Err(ModelError::config(key, format!("at most {limit}"), layers.to_string(), ""))
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
                "num_hidden_layers" => Self::MAX_LAYERS,
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
        if self.rope.is_some() && !self.head_dim.is_multiple_of(2) {
            let got = self.head_dim.to_string();
            return Err(ModelError::config("head_dim", "an even number, for rotary pairs", got, ""));
        }
        let eps = match self.norm {
            Norm::Rms => "rms_norm_eps",
            Norm::Layer => "layer_norm_epsilon",
        };
        if !(self.norm_eps.is_finite() && self.norm_eps > 0.0) {
            return Err(ModelError::config(eps, "a positive finite number", self.norm_eps.to_string(), ""));
        }
        if let Some(rope) = &self.rope {
            rope.validate()?;
        }
        let layers = self.num_hidden_layers;
        let listed = [
            ("layers without RoPE", self.without_rope.len()),
            ("layer_types", self.window.as_ref().map_or(0, |window| window.layers.len())),
        ];
        if let Some((key, found)) = listed.into_iter().find(|&(_, found)| found != 0 && found != layers) {
            return Err(ModelError::config(key, format!("{layers} layers"), found.to_string(), ""));
        }
        if let Some(window) = &self.window {
            if window.size == 0 {
                return Err(ModelError::config("sliding_window", "a positive number", "0", ""));
            }
            window.rope.as_ref().map_or(Ok(()), Rope::validate)?;
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

    /// Number of parameters, `None` on overflow. One layer stands for all, so an absurd number of layers costs nothing.
    fn checked_num_parameters(&self) -> Option<u64> {
        let one = Self { num_hidden_layers: 1, window: None, without_rope: Vec::new(), ..self.clone() };
        let (mut layer, mut outside) = (0u64, 0u64);
        for param in one.parameters() {
            let len = param.shape.iter().try_fold(1u64, |len, &size| len.checked_mul(size as u64))?;
            let sum = if param.layer.is_some() { &mut layer } else { &mut outside };
            *sum = sum.checked_add(len)?;
        }
        layer.checked_mul(self.num_hidden_layers as u64)?.checked_add(outside)
    }

    /// The linears of a layer, in the order of the forward pass.
    pub fn linears(&self) -> &'static [LinearKind] {
        use LinearKind::{Down, K, O, Q, Up, V};
        match self.mlp {
            Mlp::SwiGlu | Mlp::GeGlu => &LinearKind::ALL,
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
        let layer_norm = self.norm == Norm::Layer;
        push(Self::EMBEDDING, &[vocab, hidden], ParamKind::Embedding, None, false);
        if self.rope.is_none() {
            push(Self::POSITIONS, &[self.max_position_embeddings, hidden], ParamKind::Positions, None, false);
        }
        for layer in 0..self.num_hidden_layers {
            let at = Some(layer);
            let norm = |push: &mut dyn FnMut(&str, &[usize], ParamKind, Option<usize>, bool), kind| {
                if let Some(name) = self.block_norm_name(layer, kind) {
                    push(&name, &[hidden], ParamKind::Norm(kind), at, layer_norm);
                }
            };
            norm(&mut push, NormKind::Attn);
            for &kind in self.linears() {
                let (name, shape) = (self.linear_name(layer, kind), self.linear_shape(kind));
                push(&name, &shape, ParamKind::Linear(kind), at, self.biases.contains(kind));
                if let Some((norm, width)) = self.qk_norm_of(kind) {
                    let name = Self::head_norm_name(layer, kind);
                    push(&name, &[width], ParamKind::Norm(norm), at, false);
                }
                match kind {
                    LinearKind::O => {
                        norm(&mut push, NormKind::AttnOutput);
                        norm(&mut push, NormKind::Mlp);
                    }
                    LinearKind::Down => norm(&mut push, NormKind::MlpOutput),
                    _ => {}
                }
            }
        }
        push(Self::FINAL_NORM, &[hidden], ParamKind::Norm(NormKind::Final), None, layer_norm);
        if !self.tie_word_embeddings {
            push(Self::HEAD, &[vocab, hidden], ParamKind::Head, None, false);
        }
        params
    }

    /// Number of parameters; a tied table counts once.
    pub fn num_parameters(&self) -> usize {
        self.checked_num_parameters().map_or(usize::MAX, |number| number as usize)
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

    /// Name of the gain of a norm before or behind one of the blocks of a layer; none where the model has no such norm.
    pub fn block_norm_name(&self, layer: usize, kind: NormKind) -> Option<String> {
        let (input, output) = (self.norm_places.input(), self.norm_places.output());
        match kind {
            NormKind::Attn => input.then(|| self.attn_norm_name(layer)),
            NormKind::Mlp => input.then(|| self.mlp_norm_name(layer)),
            NormKind::AttnOutput => {
                output.then(|| format!("model.layers.{layer}.self_attn.output_layernorm.weight"))
            }
            NormKind::MlpOutput => {
                output.then(|| format!("model.layers.{layer}.mlp.output_layernorm.weight"))
            }
            NormKind::Query | NormKind::Key | NormKind::Final => None,
        }
    }

    /// Name of the gain of the norm before attention.
    pub fn attn_norm_name(&self, layer: usize) -> String {
        format!("model.layers.{layer}.input_layernorm.weight")
    }

    /// Name of the gain of the norm before the MLP.
    pub fn mlp_norm_name(&self, layer: usize) -> String {
        format!("model.layers.{layer}.post_attention_layernorm.weight")
    }

    /// The norm behind a projection, and its width: of queries or keys.
    pub fn qk_norm_of(&self, kind: LinearKind) -> Option<(NormKind, usize)> {
        let width = match self.qk_norm {
            QkNorm::None => return None,
            QkNorm::Head => self.head_dim,
            QkNorm::Row => self.linear_shape(kind)[0],
        };
        head_norm(kind).map(|norm| (norm, width))
    }

    /// Positions that a token attends to in `layer`, itself included; none: all up to itself.
    pub fn window_of(&self, layer: usize) -> Option<usize> {
        let window = self.window.as_ref()?;
        window.layers.get(layer).is_some_and(|&has| has).then_some(window.size)
    }

    /// The rotary embedding of `layer`.
    pub fn rope_of(&self, layer: usize) -> Option<&Rope> {
        if self.without_rope.get(layer).is_some_and(|&without| without) {
            return None;
        }
        let local = self.window_of(layer).and(self.window.as_ref()).and_then(|window| window.rope.as_ref());
        local.or(self.rope.as_ref())
    }

    /// Name of the gain of the norm of each head behind a projection, e.g. `model.layers.0.self_attn.q_norm.weight`:
    /// of the queries for [`LinearKind::Q`], of the keys otherwise.
    pub fn head_norm_name(layer: usize, kind: LinearKind) -> String {
        let letter = if kind == LinearKind::Q { 'q' } else { 'k' };
        format!("model.layers.{layer}.self_attn.{letter}_norm.weight")
    }

    /// Name of the table the logits come from: the head, or the embedding of a tied model.
    pub fn head_name(&self) -> &'static str {
        if self.tie_word_embeddings { Self::EMBEDDING } else { Self::HEAD }
    }
}
