//! A LLaMA in a GGUF file, under the names and with the RoPE convention of Hugging Face.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use super::{GgufFile, Value, tokenizer};
use crate::arch::Architecture;
use crate::error::ModelError;
use crate::generation::GenerationConfig;
use crate::plan::QuantPlan;
use crate::rope::half_rotation;
use crate::spec::{LinearKind, ModelSpec, ParamInfo, ParamKind};
use crate::tensors::{Dtype, TensorSource, check_shape};
use crate::tokenizer_files::TokenizerFiles;
use crate::{PackReport, PackSource, pack};

/// A model in a GGUF file, opened: metadata read, shapes checked, weights mapped.
#[derive(Debug)]
pub struct GgufModel {
    file: GgufFile,
    spec: ModelSpec,
    params: BTreeMap<String, ParamInfo>,
}

impl GgufModel {
    /// Opens a file and checks that it holds a model this project can run.
    ///
    /// # Errors
    /// As [`GgufFile::open`]; another architecture than LLaMA, scaled RoPE, experts or biases; missing or misshaped
    /// tensors.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, ModelError> {
        let file = GgufFile::open(path.as_ref())?;
        let spec = spec_of(&file)?;
        let params = spec.parameters().into_iter().map(|param| (param.name.clone(), param)).collect();
        let model = Self { file, spec, params };
        for param in model.spec.parameters() {
            check_shape(&model, &param.name, &param.shape)?;
        }
        let expected: BTreeSet<String> = model.params.values().map(name_in_file).collect();
        let foreign = model.file.names().find(|&name| !expected.contains(name));
        if let Some(name) = foreign {
            return Err(ModelError::Tensor {
                name: name.to_owned(),
                place: model.place(),
                expected: "only the tensors of a plain LLaMA".to_owned(),
                got: "one that such a model has not".to_owned(),
                hint: "; biases, scaled rotary frequencies and experts are not supported".to_owned(),
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

    /// Quantizes the model to nearest as `plan` says and packs it into `out`.
    ///
    /// # Errors
    /// As [`pack`], and a tokenizer of a kind that is not read here.
    pub fn pack(&self, plan: &QuantPlan, out: impl AsRef<Path>) -> Result<PackReport, ModelError> {
        let tokenizer = self.tokenizer_files()?;
        let generation = GenerationConfig::of_spec(&self.spec);
        let generation = Some(&generation);
        pack(&PackSource { spec: &self.spec, plan, tensors: self, tokenizer: &tokenizer, generation }, out)
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
        Ok(match param.kind {
            // Converters to this format pair neighbouring rows for RoPE.
            ParamKind::Linear(LinearKind::Q | LinearKind::K) => {
                half_rotation(&values, self.spec.head_dim, self.spec.hidden_size)
            }
            _ => values,
        })
    }

    fn read_i32(&self, name: &str) -> Result<Vec<i32>, ModelError> {
        Err(crate::tensors::wrong(self, name, "I32", "floats: a GGUF file has no integers of ours", ""))
    }
}

/// Name of a parameter in the file.
fn name_in_file(param: &ParamInfo) -> String {
    let module = match param.kind {
        ParamKind::Embedding => return "token_embd.weight".to_owned(),
        // The models of this format that are read have neither; a name that no file has is an error where it is looked up.
        ParamKind::Positions | ParamKind::Bias => return param.name.clone(),
        ParamKind::Head => return "output.weight".to_owned(),
        ParamKind::Norm if param.layer.is_none() => return "output_norm.weight".to_owned(),
        ParamKind::Norm if param.name.ends_with("input_layernorm.weight") => "attn_norm",
        ParamKind::Norm => "ffn_norm",
        ParamKind::Linear(LinearKind::Q) => "attn_q",
        ParamKind::Linear(LinearKind::K) => "attn_k",
        ParamKind::Linear(LinearKind::V) => "attn_v",
        ParamKind::Linear(LinearKind::O) => "attn_output",
        ParamKind::Linear(LinearKind::Gate) => "ffn_gate",
        ParamKind::Linear(LinearKind::Up) => "ffn_up",
        ParamKind::Linear(LinearKind::Down) => "ffn_down",
    };
    format!("blk.{}.{module}.weight", param.layer.unwrap_or_default())
}

fn spec_of(file: &GgufFile) -> Result<ModelSpec, ModelError> {
    let wrong = |key: &str, expected: &str, got: Option<&Value>, hint: &str| {
        let got = got.map_or("nothing".to_owned(), Value::shown);
        ModelError::file(file.path(), format!("metadata \"{key}\": expected {expected}, got {got}{hint}"))
    };
    let architecture = file.metadata("general.architecture");
    if architecture.and_then(Value::as_str) != Some("llama") {
        let hint = "; other architectures are not supported";
        return Err(wrong("general.architecture", "\"llama\"", architecture, hint));
    }
    let optional = |key: &str| match file.metadata(key) {
        None => Ok(None),
        Some(value) => value
            .as_u64()
            .and_then(|value| usize::try_from(value).ok())
            .map(Some)
            .ok_or_else(|| wrong(key, "a whole number", Some(value), "")),
    };
    let size = |key: &str| optional(key)?.ok_or_else(|| wrong(key, "a whole number", None, ""));
    let number = |key: &str| match file.metadata(key) {
        None => Ok(None),
        Some(value) => value.as_f64().map(Some).ok_or_else(|| wrong(key, "a number", Some(value), "")),
    };
    let scaling = file.metadata("llama.rope.scaling.type").and_then(Value::as_str);
    if scaling.is_some_and(|scaling| scaling != "none") {
        let got = file.metadata("llama.rope.scaling.type");
        return Err(wrong(
            "llama.rope.scaling.type",
            "\"none\"",
            got,
            "; scaled rotary frequencies are not supported",
        ));
    }
    if optional("llama.expert_count")?.unwrap_or(0) > 0 {
        let got = file.metadata("llama.expert_count");
        return Err(wrong("llama.expert_count", "0", got, "; mixtures of experts are not supported"));
    }
    let hidden_size = size("llama.embedding_length")?;
    let heads = size("llama.attention.head_count")?;
    let head_dim = match optional("llama.attention.key_length")? {
        Some(head_dim) => head_dim,
        None if heads > 0 && hidden_size.is_multiple_of(heads) => hidden_size / heads,
        None => {
            let expected = format!("a divisor of {hidden_size}");
            return Err(wrong(
                "llama.attention.head_count",
                &expected,
                Some(&Value::Unsigned(heads as u64)),
                "",
            ));
        }
    };
    for key in ["llama.rope.dimension_count", "llama.attention.value_length"] {
        if optional(key)?.is_some_and(|found| found != head_dim) {
            let expected = format!("{head_dim}, the width of a head");
            return Err(wrong(key, &expected, file.metadata(key), ""));
        }
    }
    let table = file.shape("token_embd.weight");
    let vocab_size = table.and_then(|shape| shape.first().copied());
    let vocab_size = vocab_size.map_or_else(|| size("llama.vocab_size"), Ok)?;
    let id = |key: &str| -> Result<Option<u32>, ModelError> {
        let id = optional(key)?;
        id.map(|id| u32::try_from(id).map_err(|_| wrong(key, "a token id", file.metadata(key), "")))
            .transpose()
    };
    let mut eos_token_ids = Vec::new();
    for key in ["tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id"] {
        eos_token_ids.extend(id(key)?.filter(|id| !eos_token_ids.contains(id)));
    }
    let spec = ModelSpec {
        architecture: Architecture::Llama,
        vocab_size,
        hidden_size,
        intermediate_size: size("llama.feed_forward_length")?,
        num_hidden_layers: size("llama.block_count")?,
        num_attention_heads: heads,
        num_key_value_heads: optional("llama.attention.head_count_kv")?.unwrap_or(heads),
        head_dim,
        max_position_embeddings: size("llama.context_length")?,
        // Stored as f32: its shortest decimal is the number that was meant (1e-5, not 9.99999974e-6).
        norm_eps: number("llama.attention.layer_norm_rms_epsilon")?.map_or(1e-5, shortest),
        rope_theta: Some(number("llama.rope.freq_base")?.map_or(10_000.0, shortest)),
        tie_word_embeddings: file.shape("output.weight").is_none(),
        bos_token_id: id("tokenizer.ggml.bos_token_id")?,
        eos_token_ids,
        pad_token_id: id("tokenizer.ggml.padding_token_id")?,
    };
    spec.validate().map_err(|error| ModelError::file(file.path(), error.to_string()))?;
    Ok(spec)
}

/// The number whose nearest f32 is `value`, with the fewest digits.
fn shortest(value: f64) -> f64 {
    (value as f32).to_string().parse().unwrap_or(value)
}
