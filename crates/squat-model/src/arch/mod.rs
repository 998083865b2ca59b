//! The supported model families: one file each, one line each in `architectures!`.
//!
//! A file says which features a family has ([`ModelSpec`] with sizes of zero), how its `config.json` is read and written,
//! where its parameters are stored when a file uses other names, and what it is called in GGUF files.

mod decoder;
mod native;

use serde_json::{Map, Value};

use crate::error::ModelError;
use crate::format::gguf::Metadata;
use crate::plan::QuantPlan;
use crate::spec::{Architecture, LinearKind, ModelSpec, NormKind, ParamInfo, ParamKind, QkNorm};
use crate::weights::TensorLocation;

/// What an architecture file provides.
pub(crate) struct Definition {
    pub architecture: Architecture,
    pub from_config: fn(&Map<String, Value>) -> Result<ModelSpec, ModelError>,
    /// What `from_config` reads back to an equal spec, if the spec has no more features than the family. Without it, models are
    /// written under the configuration of this program alone ([`native`]).
    pub to_config: Option<fn(&ModelSpec) -> Map<String, Value>>,
    /// How a Hugging Face folder stores parameters; `None` if names, shapes and values are those of the spec.
    pub stored: Option<fn(&Map<String, Value>) -> Result<Stored, ModelError>>,
    /// The family in GGUF files; none where it is not read from them.
    pub gguf: Option<Gguf>,
}

/// How the files of a family store parameters: their names, and constants of the forward pass that are multiplied into
/// weights when these are read, so that engine and trainer need not know of them.
#[derive(Debug)]
pub(crate) struct Stored {
    /// Location of a parameter; `None` if names and shapes match the spec.
    pub location: Option<fn(&ParamInfo) -> TensorLocation>,
    /// Whether rows of queries and keys are reordered for RoPE on neighbouring pairs.
    pub neighbours: bool,
    /// What gains of norms have in excess of what is stored.
    pub gain_offset: f32,
    /// Factor of the rows of the token table.
    pub embedding: f64,
    /// Factor of the products of queries and keys, divided by the square root of the width of a head: 1 where it is that already.
    pub attention: f64,
    /// Factor of what attention and MLP add to the residual stream.
    pub residual: f64,
    /// Factor of the logits.
    pub logits: f64,
}

impl Default for Stored {
    fn default() -> Self {
        Self {
            location: None,
            neighbours: false,
            gain_offset: 0.0,
            embedding: 1.0,
            attention: 1.0,
            residual: 1.0,
            logits: 1.0,
        }
    }
}

impl Stored {
    /// Checks that the factors are numbers that a model can have.
    pub(crate) fn validate(&self) -> Result<(), ModelError> {
        let factors = [
            ("factor of the token table", self.embedding),
            ("factor of the attention scores", self.attention),
            ("factor of the residual stream", self.residual),
            ("factor of the logits", self.logits),
        ];
        match factors.into_iter().find(|(_, factor)| !(factor.is_normal() && factor.abs() < 1e6)) {
            None => Ok(()),
            Some((name, factor)) => {
                let hint = "; check the multipliers and scalings of the configuration";
                let expected = "a number between -1e6 and 1e6 other than 0";
                Err(ModelError::config(name, expected, format!("{factor:e}"), hint))
            }
        }
    }

    /// What is added to each element of a parameter, and the factor of the sum.
    fn change(&self, spec: &ModelSpec, param: &ParamInfo) -> (f32, f32) {
        let behind = |kinds: &[LinearKind]| kinds.iter().any(|kind| param.name.contains(kind.module()));
        // A norm behind a block swallows a factor of the block.
        let residual = if spec.norm_places.output() { 1.0 } else { self.residual };
        let query = if spec.qk_norm == QkNorm::None { self.attention } else { 1.0 };
        let factor = match param.kind {
            ParamKind::Embedding | ParamKind::Positions => self.embedding,
            ParamKind::Head => self.logits,
            ParamKind::Norm(NormKind::Final) if spec.tie_word_embeddings => self.logits / self.embedding,
            ParamKind::Norm(NormKind::Query) => self.attention,
            ParamKind::Norm(NormKind::AttnOutput | NormKind::MlpOutput) => self.residual,
            ParamKind::Linear(_) | ParamKind::Bias if behind(&[LinearKind::O, LinearKind::Down]) => residual,
            ParamKind::Linear(_) | ParamKind::Bias if behind(&[LinearKind::Q]) => query,
            ParamKind::Norm(_) | ParamKind::Linear(_) | ParamKind::Bias => 1.0,
        };
        let added = if matches!(param.kind, ParamKind::Norm(_)) { self.gain_offset } else { 0.0 };
        (added, factor as f32)
    }

    /// Where a parameter is, and how it becomes that of the spec.
    pub(crate) fn locate(&self, spec: &ModelSpec, param: &ParamInfo) -> TensorLocation {
        let mut location = match self.location {
            Some(location) => location(param),
            None => TensorLocation::plain(&param.name),
        };
        location.change = self.change(spec, param);
        let turned = [LinearKind::Q, LinearKind::K].iter().any(|kind| param.name.contains(kind.module()));
        if self.neighbours && turned && matches!(param.kind, ParamKind::Linear(_) | ParamKind::Bias) {
            location.neighbours = spec.head_dim;
        }
        location
    }
}

/// A family in GGUF files.
pub(crate) struct Gguf {
    /// `general.architecture`, and the prefix of its metadata.
    pub name: &'static str,
    pub base: fn() -> ModelSpec,
    /// Whether rows of queries and keys are reordered for RoPE on neighbouring pairs.
    pub interleaved_rope: bool,
    /// Whether `features` reads windows.
    pub windows: bool,
    /// What metadata beyond that of LLaMA says: further fields of the spec, and factors.
    pub features: Option<fn(&Metadata<'_>, &mut ModelSpec) -> Result<Stored, ModelError>>,
}

/// Declares the modules and collects their definitions.
macro_rules! architectures {
    ($($name:ident)*) => {
        $(pub mod $name;)*
        pub(crate) static REGISTRY: [Definition; [$(stringify!($name)),*].len()] = [$($name::DEFINITION),*];
    };
}

// One line for each architecture.
architectures! {
    llama
    mistral
    qwen2
    qwen3
    gemma3
    granite
    granitemoehybrid
    smollm3
    olmo2
    exaone4
    ernie4_5
    gpt2
}

/// The definition of a family.
pub(crate) fn definition(architecture: Architecture) -> &'static Definition {
    REGISTRY
        .iter()
        .find(|definition| definition.architecture == architecture)
        .expect("specs get their architecture from a file of the registry, a test reads them")
}

/// Reads a Hugging Face `config.json` object.
///
/// Keys that do not change the forward pass are ignored.
///
/// # Errors
/// An unknown architecture, a missing or mistyped key, a feature that is not implemented, sizes that do not fit
/// together: each names the key, what was expected and what was found.
pub fn spec_of_config(config: &Map<String, Value>) -> Result<ModelSpec, ModelError> {
    if native::is_native(config) {
        return native::from_config(config);
    }
    let spec = (of_config(config)?.from_config)(config)?;
    spec.validate()?;
    Ok(spec)
}

/// How the folder of a `config.json` stores parameters; `None` if names, shapes and values are those of the spec.
pub(crate) fn stored_of_config(config: &Map<String, Value>) -> Result<Option<Stored>, ModelError> {
    if native::is_native(config) {
        return Ok(None);
    }
    let Some(stored) = of_config(config)?.stored else { return Ok(None) };
    let stored = stored(config)?;
    stored.validate()?;
    Ok(Some(stored))
}

/// The `config.json` object of a spec, that of its family where this can express it; [`spec_of_config`] reads it back to an
/// equal spec.
pub fn config_of_spec(spec: &ModelSpec) -> Map<String, Value> {
    let of_family = definition(spec.architecture).to_config.map(|to_config| to_config(spec));
    let same = |config: &Map<String, Value>| spec_of_config(config).is_ok_and(|read| read == *spec);
    of_family.filter(same).unwrap_or_else(|| native::to_config(spec))
}

/// [`config_of_spec`] for a file that is written. `renamed` are parameters under the names of the spec, which a family may store
/// otherwise.
///
/// Weights that were rewritten for the transforms of a plan are another model to whoever does not know these, so `model_type`
/// is then one that others refuse; `architectures` stays.
pub(crate) fn config_to_write(
    spec: &ModelSpec,
    plan: Option<&QuantPlan>,
    packed: bool,
) -> Map<String, Value> {
    if !packed && definition(spec.architecture).stored.is_some() {
        return native::to_config(spec);
    }
    let mut config = config_of_spec(spec);
    if plan.is_some_and(QuantPlan::is_own) && !native::is_native(&config) {
        let own = format!("{OWN_TYPE}{}", spec.architecture.model_type);
        config.insert("model_type".to_owned(), own.into());
    }
    config
}

/// Prefix of the `model_type` of models that only this program can run ([`QuantPlan::is_own`]).
const OWN_TYPE: &str = "squat_";

/// The architecture that a `config.json` names in `architectures` or, without it, in `model_type`.
fn of_config(config: &Map<String, Value>) -> Result<&'static Definition, ModelError> {
    let class = config.get("architectures").and_then(|list| list.get(0)).and_then(Value::as_str);
    let model_type = config.get("model_type").and_then(Value::as_str);
    let model_type = model_type.map(|name| name.strip_prefix(OWN_TYPE).unwrap_or(name));
    let found = match (class, model_type) {
        (Some(class), _) => REGISTRY.iter().find(|d| d.architecture.class == class),
        (None, Some(model_type)) => REGISTRY.iter().find(|d| d.architecture.model_type == model_type),
        (None, None) => {
            return Err(ModelError::config(
                "architectures",
                format!("[\"{}\"]", REGISTRY[0].architecture.class),
                "nothing",
                "; is this the config.json of a language model?",
            ));
        }
    };
    found.ok_or_else(|| match class {
        Some(class) => {
            let known = REGISTRY.each_ref().map(|d| d.architecture.class);
            ModelError::unknown_name("architecture", class, &known)
        }
        None => {
            let known = REGISTRY.each_ref().map(|d| d.architecture.model_type);
            ModelError::unknown_name("model_type", model_type.unwrap_or_default(), &known)
        }
    })
}
