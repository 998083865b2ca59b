//! A model in a GGUF file, under the names and with the RoPE convention of Hugging Face.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use super::{GgufFile, Value, sampling, tokenizer};
use crate::arch::{Gguf, REGISTRY, Stored};
use crate::error::ModelError;
use crate::generation::GenerationConfig;
use crate::rope::{Rope, RopeScaling};
use crate::spec::{LinearKind, LinearSet, ModelSpec, ParamInfo, ParamKind};
use crate::tensors::{Dtype, TensorSource, check_shape};
use crate::tokenizer_files::TokenizerFiles;

/// A model in a GGUF file, opened: metadata read, shapes checked, weights mapped.
#[derive(Debug)]
pub struct GgufModel {
    file: GgufFile,
    spec: ModelSpec,
    /// How parameters become those of the spec.
    stored: Stored,
    params: BTreeMap<String, ParamInfo>,
    generation: GenerationConfig,
    notes: Vec<String>,
}

impl GgufModel {
    /// Opens a file and checks that it holds a model this project can run.
    ///
    /// # Errors
    /// As [`GgufFile::open`]; an architecture that is not read from this format, another scaling of RoPE than linear,
    /// experts; sampling settings out of range; missing, misshaped or unknown tensors.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, ModelError> {
        Self::of(GgufFile::open(path.as_ref())?)
    }

    /// [`GgufModel::open`] of a file that is open already.
    pub(crate) fn from_file(path: &Path, file: &std::fs::File) -> Result<Self, ModelError> {
        Self::of(GgufFile::from_map(path, squat_files::read::map_file(path, file)?)?)
    }

    fn of(file: GgufFile) -> Result<Self, ModelError> {
        let family = family_of(&file)?;
        let (spec, stored) = spec_of(&file, family)?;
        let params = spec.parameters().into_iter().map(|param| (param.name.clone(), param)).collect();
        let generation = sampling::generation(&file, &spec)?;
        let notes = sampling::unsupported(&file).into_iter().collect();
        let model = Self { file, spec, stored, params, generation, notes };
        for param in model.spec.parameters() {
            // First, so that a type that is not read does not count as a missing tensor.
            model.stored_as(&param)?;
            check_shape(&model, &param.name, &param.shape)?;
        }
        let expected: BTreeSet<String> = model.params.values().map(name_in_file).collect();
        let foreign = model.file.names().find(|&name| !expected.contains(name));
        if let Some(name) = foreign {
            return Err(ModelError::Tensor {
                name: name.to_owned(),
                place: model.place(),
                expected: format!("only tensors of a {}", model.spec.architecture.class),
                got: "one that such a model does not have".to_owned(),
                hint: "; tables of rotary frequencies (rope_freqs) and experts are not supported".to_owned(),
            });
        }
        Ok(model)
    }

    /// The file.
    pub fn path(&self) -> &Path {
        self.file.path()
    }

    /// Sizes.
    pub fn spec(&self) -> &ModelSpec {
        &self.spec
    }

    /// Defaults of text generation: `general.sampling.*` and the special tokens of the spec. A file that names a
    /// temperature, top-k or top-p wants sampling.
    pub fn generation(&self) -> &GenerationConfig {
        &self.generation
    }

    /// Notes for the user on how the file was read, one sentence each.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// Metadata and tensors as they stand.
    pub fn file(&self) -> &GgufFile {
        &self.file
    }

    /// Type in the file, and bytes, of a parameter.
    pub fn stored_as(&self, param: &ParamInfo) -> Result<(&'static str, u64), ModelError> {
        self.file.stored_as(&name_in_file(param))
    }

    /// The tokenizer in the metadata as `tokenizer.json`, and the chat template.
    ///
    /// # Errors
    /// No tokenizer, or one of a kind that is not read here.
    pub fn tokenizer_files(&self) -> Result<TokenizerFiles, ModelError> {
        tokenizer::files(&self.file)
    }
}

impl TensorSource for GgufModel {
    fn place(&self) -> String {
        self.file.path().display().to_string()
    }

    fn names(&self) -> Vec<String> {
        self.params.keys().cloned().collect()
    }

    /// Floats always: blocks of codes are widened when they are read.
    fn info(&self, name: &str) -> Option<(Dtype, Vec<usize>)> {
        let name = name_in_file(self.params.get(name)?);
        let dtype = match self.file.stored_as(&name).ok()?.0 {
            "F16" => Dtype::F16,
            "BF16" => Dtype::Bf16,
            _ => Dtype::F32,
        };
        Some((dtype, self.file.shape(&name)?.to_vec()))
    }

    fn read_f32(&self, name: &str) -> Result<Vec<f32>, ModelError> {
        let param = self.params.get(name).ok_or_else(|| crate::tensors::missing(self, name))?;
        let values = self.file.read_f32(&name_in_file(param))?;
        Ok(self.stored.locate(&self.spec, param).finished(values, param.shape[0]))
    }

    fn read_i32(&self, name: &str) -> Result<Vec<i32>, ModelError> {
        Err(crate::tensors::wrong(self, name, "I32", "floats: a GGUF file has no integers of ours", ""))
    }
}

/// Last part of a module's name, ours and the format's.
const MODULES: [(&str, &str); 16] = [
    ("embed_tokens", "token_embd"),
    ("lm_head", "output"),
    ("norm", "output_norm"),
    ("input_layernorm", "attn_norm"),
    ("q_proj", "attn_q"),
    ("k_proj", "attn_k"),
    ("v_proj", "attn_v"),
    ("o_proj", "attn_output"),
    ("q_norm", "attn_q_norm"),
    ("k_norm", "attn_k_norm"),
    ("post_attention_layernorm", "ffn_norm"),
    ("attn_output_layernorm", "post_attention_norm"),
    ("mlp_output_layernorm", "post_ffw_norm"),
    ("gate_proj", "ffn_gate"),
    ("up_proj", "ffn_up"),
    ("down_proj", "ffn_down"),
];

/// Name of a parameter in the file; its own where the format has none, which then is missing.
fn name_in_file(param: &ParamInfo) -> String {
    let (module, suffix) = param.name.rsplit_once('.').unwrap_or((&param.name, "weight"));
    // The norms behind the blocks have one last part.
    let last = match module.strip_suffix(".output_layernorm") {
        Some(block) if block.ends_with("self_attn") => "attn_output_layernorm",
        Some(_) => "mlp_output_layernorm",
        None => module.rsplit_once('.').map_or(module, |(_, last)| last),
    };
    let Some((_, name)) = MODULES.iter().find(|(ours, _)| *ours == last) else { return param.name.clone() };
    match param.layer {
        Some(layer) => format!("blk.{layer}.{name}.{suffix}"),
        None => format!("{name}.{suffix}"),
    }
}

/// Metadata of a model, under the prefix of its family.
pub(crate) struct Metadata<'a> {
    file: &'a GgufFile,
    family: &'static str,
}

impl Metadata<'_> {
    fn wrong(&self, key: &str, expected: &str, hint: &str) -> ModelError {
        let got = self.file.metadata(key).map_or("nothing".to_owned(), Value::shown);
        let message = format!("metadata \"{key}\": expected {expected}, got {got}{hint}");
        ModelError::file(self.file.path(), message)
    }

    fn key(&self, name: &str) -> String {
        format!("{}.{name}", self.family)
    }

    /// A number of the family; none where the file has none.
    pub(crate) fn optional(&self, name: &str) -> Result<Option<usize>, ModelError> {
        self.whole_number(&self.key(name))
    }

    fn whole_number(&self, key: &str) -> Result<Option<usize>, ModelError> {
        let Some(value) = self.file.metadata(key) else { return Ok(None) };
        let number = value.as_u64().and_then(|value| usize::try_from(value).ok());
        number.map(Some).ok_or_else(|| self.wrong(key, "a whole number", ""))
    }

    fn size(&self, name: &str) -> Result<usize, ModelError> {
        self.optional(name)?.ok_or_else(|| self.wrong(&self.key(name), "a whole number", ""))
    }

    /// As [`Self::optional`], of any number.
    pub(crate) fn number(&self, name: &str) -> Result<Option<f64>, ModelError> {
        let key = self.key(name);
        let Some(value) = self.file.metadata(&key) else { return Ok(None) };
        // Stored as f32: its shortest decimal is the number that was meant (1e-5, not 9.99999974e-6).
        value.as_f64().map(|value| Some(shortest(value))).ok_or_else(|| self.wrong(&key, "a number", ""))
    }

    fn token(&self, key: &str) -> Result<Option<u32>, ModelError> {
        let id = self.whole_number(key)?;
        id.map(|id| u32::try_from(id).map_err(|_| self.wrong(key, "a token id", ""))).transpose()
    }

    /// As llama.cpp reads it (2026-10): a factor without a type is linear, the older key `rope.scale_linear` too, and
    /// the type `none` switches a factor off.
    fn rope(&self) -> Result<Rope, ModelError> {
        let theta = self.number("rope.freq_base")?.unwrap_or(10_000.0);
        let key = self.key("rope.scaling.type");
        let factor = match self.number("rope.scaling.factor")? {
            Some(factor) => Some(factor),
            None => self.number("rope.scale_linear")?,
        };
        let scaling = match (self.file.metadata(&key).map(Value::as_str), factor) {
            (Some(Some("none")), _) | (None | Some(Some("linear")), None) => RopeScaling::Default,
            // Converters write 0 or 1 where nothing is scaled.
            (None | Some(Some("linear")), Some(factor)) if factor == 0.0 || factor == 1.0 => {
                RopeScaling::Default
            }
            (None | Some(Some("linear")), Some(factor)) => RopeScaling::Linear { factor },
            _ => {
                let hint = "; other rotary scalings are not supported";
                return Err(self.wrong(&key, "\"none\" or \"linear\"", hint));
            }
        };
        Ok(Rope { theta, scaling })
    }
}

/// The family of a file, by `general.architecture`.
fn family_of(file: &GgufFile) -> Result<&'static Gguf, ModelError> {
    const KEY: &str = "general.architecture";
    let families = || REGISTRY.iter().filter_map(|definition| definition.gguf.as_ref());
    let found = file.metadata(KEY).and_then(Value::as_str);
    families().find(|family| Some(family.name) == found).ok_or_else(|| {
        let known: Vec<String> = families().map(|family| format!("\"{}\"", family.name)).collect();
        let metadata = Metadata { file, family: "general" };
        metadata.wrong(
            KEY,
            &format!("one of {}", known.join(", ")),
            "; other architectures are not supported",
        )
    })
}

fn spec_of(file: &GgufFile, family: &Gguf) -> Result<(ModelSpec, Stored), ModelError> {
    let metadata = Metadata { file, family: family.name };
    if metadata.optional("expert_count")?.unwrap_or(0) > 0 {
        let key = metadata.key("expert_count");
        return Err(metadata.wrong(&key, "0", "; mixtures of experts are not supported"));
    }
    let hidden_size = metadata.size("embedding_length")?;
    let heads = metadata.size("attention.head_count")?;
    let head_dim = match metadata.optional("attention.key_length")? {
        Some(head_dim) => head_dim,
        None if heads > 0 && hidden_size.is_multiple_of(heads) => hidden_size / heads,
        None => {
            let expected = format!("a divisor of {hidden_size}");
            return Err(metadata.wrong(&metadata.key("attention.head_count"), &expected, ""));
        }
    };
    for name in ["rope.dimension_count", "attention.value_length"] {
        if metadata.optional(name)?.is_some_and(|found| found != head_dim) {
            let expected = format!("{head_dim}, the width of a head");
            return Err(metadata.wrong(&metadata.key(name), &expected, ""));
        }
    }
    let table = file.shape("token_embd.weight");
    let vocab_size = table.and_then(|shape| shape.first().copied());
    let vocab_size = vocab_size.map_or_else(|| metadata.size("vocab_size"), Ok)?;
    let mut eos_token_ids = Vec::new();
    for key in ["eos", "eot", "eom"].map(|kind| format!("tokenizer.ggml.{kind}_token_id")) {
        eos_token_ids.extend(metadata.token(&key)?.filter(|id| !eos_token_ids.contains(id)));
    }
    let base = (family.base)();
    // Biases are optional in the format: a file has those that its model has.
    let biased = |kind: LinearKind| {
        let bias = ParamInfo {
            name: format!("{}.bias", kind.module()),
            shape: Vec::new(),
            kind: ParamKind::Bias,
            layer: Some(0),
        };
        file.shape(&name_in_file(&bias)).is_some()
    };
    let biases: Vec<LinearKind> = LinearKind::ALL.into_iter().filter(|&kind| biased(kind)).collect();
    let mut spec = ModelSpec {
        vocab_size,
        hidden_size,
        intermediate_size: metadata.size("feed_forward_length")?,
        num_hidden_layers: metadata.size("block_count")?,
        num_attention_heads: heads,
        num_key_value_heads: metadata.optional("attention.head_count_kv")?.unwrap_or(heads),
        head_dim,
        max_position_embeddings: metadata.size("context_length")?,
        norm_eps: metadata.number("attention.layer_norm_rms_epsilon")?.unwrap_or(1e-5),
        biases: base.biases.union(LinearSet::of(&biases)),
        rope: Some(metadata.rope()?),
        tie_word_embeddings: file.shape("output.weight").is_none(),
        bos_token_id: metadata.token("tokenizer.ggml.bos_token_id")?,
        eos_token_ids,
        pad_token_id: metadata.token("tokenizer.ggml.padding_token_id")?,
        ..base
    };
    let of_file = |error: ModelError| ModelError::file(file.path(), error.to_string());
    ModelSpec::check_layers(spec.num_hidden_layers).map_err(of_file)?;
    let mut stored = match family.features {
        Some(features) => features(&metadata, &mut spec)?,
        None => Stored::default(),
    };
    stored.neighbours = family.interleaved_rope;
    // What would change the logits and is not read is refused; 0 stands for none.
    for (name, read) in [
        ("attention.sliding_window", family.windows),
        ("attn_logit_softcapping", false),
        ("final_logit_softcapping", false),
    ] {
        if !read && metadata.number(name)?.is_some_and(|number| number != 0.0) {
            return Err(metadata.wrong(&metadata.key(name), "none", "; not supported in this architecture"));
        }
    }
    stored.validate().map_err(of_file)?;
    spec.validate().map_err(of_file)?;
    Ok((spec, stored))
}

/// The number whose nearest f32 is `value`, with the fewest digits.
pub(super) fn shortest(value: f64) -> f64 {
    (value as f32).to_string().parse().unwrap_or(value)
}
