//! What a model folder holds, as data: the content of `squat inspect`.

use std::path::Path;

use serde::Serialize;
use squat_quant::ActPoint;

use crate::error::ModelError;
use crate::format::gguf::{GgufModel, is_gguf};
use crate::hf::{ModelFolder, declare_static, has_learned_scales, open_config};
use crate::packed::{PackReport, PackedModel, schema};
use crate::plan::{QuantPlan, describe};
use crate::spec::{ModelSpec, ParamInfo};
use crate::tensors::TensorSource;

/// Which kind of folder it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum FolderKind {
    /// Full precision, no plan.
    FullPrecision,
    /// Full-precision weights with a plan: a quantization-aware training checkpoint.
    Checkpoint,
    /// Integers on disk.
    Packed,
}

/// A model folder or file of any kind, opened.
#[derive(Debug)]
pub enum OpenedModel {
    /// A GGUF file; what it holds in few bits is widened when it is read.
    Gguf(GgufModel),
    /// Full precision, or a checkpoint.
    Folder(ModelFolder),
    /// Packed.
    Packed(PackedModel),
}

impl OpenedModel {
    /// Opens a GGUF file, or a folder as what its `config.json` says it is.
    ///
    /// # Errors
    /// As [`ModelFolder::open`], [`PackedModel::open`] and [`GgufModel::open`].
    pub fn open(path: impl AsRef<Path>) -> Result<Self, ModelError> {
        let path = path.as_ref();
        if is_gguf(path) {
            GgufModel::open(path).map(Self::Gguf)
        } else if open_config(path)?.contains_key(schema::KEY) {
            PackedModel::open(path).map(Self::Packed)
        } else {
            ModelFolder::open(path).map(Self::Folder)
        }
    }

    /// Sizes.
    pub fn spec(&self) -> &ModelSpec {
        match self {
            Self::Gguf(model) => model.spec(),
            Self::Folder(model) => model.spec(),
            Self::Packed(model) => model.spec(),
        }
    }

    /// The plan, where there is one.
    pub fn plan(&self) -> Option<&QuantPlan> {
        match self {
            Self::Gguf(_) => None,
            Self::Folder(model) => model.plan(),
            Self::Packed(model) => Some(model.plan()),
        }
    }

    /// Packs the model into `out`, by `plan` or, without one, by the checkpoint's own.
    ///
    /// # Errors
    /// A model that is packed already, no plan at all, and as [`crate::pack`].
    pub fn pack(&self, plan: Option<&QuantPlan>, out: impl AsRef<Path>) -> Result<PackReport, ModelError> {
        match (self, plan) {
            (Self::Folder(model), plan) => model.pack(plan, out),
            (Self::Gguf(model), Some(plan)) => model.pack(plan, out),
            (Self::Gguf(model), None) => Err(ModelError::file(
                model.path(),
                "the model has no quantization plan; give one, such as w4a8",
            )),
            (Self::Packed(model), _) => Err(ModelError::folder(
                model.path(),
                "expected weights in full precision, got a packed model; give the one it was packed from",
            )),
        }
    }

    /// Which kind it is.
    pub fn kind(&self) -> FolderKind {
        match self {
            Self::Folder(model) if model.plan().is_some() => FolderKind::Checkpoint,
            Self::Folder(_) | Self::Gguf(_) => FolderKind::FullPrecision,
            Self::Packed(_) => FolderKind::Packed,
        }
    }
}

/// One parameter.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TensorSummary {
    /// Hugging Face name.
    pub name: String,
    /// Shape.
    pub shape: Vec<usize>,
    /// Scheme of the plan in words; `full precision` without one.
    pub scheme: String,
    /// Type on disk: `F32`, `F16`, `BF16`, or `int4` and the like.
    pub stored_as: String,
    /// Bytes on disk: weights, or codes, scales and shape.
    pub bytes: u64,
}

/// One layer.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct LayerSummary {
    /// Number of the layer, from 0.
    pub layer: usize,
    /// Its parameters, in the order of the forward pass.
    pub tensors: Vec<TensorSummary>,
    /// Bytes on disk.
    pub bytes: u64,
    /// Frozen threshold of the token policy, where it has one.
    pub threshold: Option<f32>,
}

/// One activation point.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PointSummary {
    /// Name of the point.
    pub point: &'static str,
    /// `dynamic`, `static`, `fixed` or none for full precision.
    pub scheme: Option<&'static str>,
    /// Widths that occur, narrow first; empty in full precision.
    pub bits: Vec<u32>,
}

/// What a model folder holds.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ModelSummary {
    /// Which kind of folder it is.
    pub kind: FolderKind,
    /// Hugging Face class.
    pub architecture: &'static str,
    /// `config.json` of the sizes.
    pub config: serde_json::Map<String, serde_json::Value>,
    /// Number of parameters; a tied table counts once.
    pub num_parameters: usize,
    /// Bytes of the weight files.
    pub weight_bytes: u64,
    /// Bytes the parameters take in f32.
    pub f32_bytes: u64,
    /// Bits on disk for each parameter.
    pub bits_per_parameter: f64,
    /// Parameters outside the layers: token table, last norm, head.
    pub outside: Vec<TensorSummary>,
    /// Layers.
    pub layers: Vec<LayerSummary>,
    /// Whether the folder holds learned scales: of a checkpoint, or static activation quantizers.
    pub learned_scales: bool,
    /// Activation points; empty without a plan.
    pub points: Vec<PointSummary>,
    /// Token policy, where there is a plan.
    pub policy: Option<&'static str>,
    /// Share of 8-bit tokens aimed at, where there is a plan.
    pub rho: Option<f32>,
    /// The plan itself.
    pub plan: Option<QuantPlan>,
}

impl ModelSummary {
    /// Opens a folder and describes it; elements are not read.
    ///
    /// # Errors
    /// As [`OpenedModel::open`].
    pub fn open(path: impl AsRef<Path>) -> Result<Self, ModelError> {
        Self::of(&OpenedModel::open(path)?)
    }

    /// Describes an opened folder.
    ///
    /// # Errors
    /// Learned scales that are incomplete.
    pub fn of(model: &OpenedModel) -> Result<Self, ModelError> {
        let (spec, plan) = (model.spec(), model.plan());
        let mut outside = Vec::new();
        let mut layers: Vec<LayerSummary> = (0..spec.num_hidden_layers)
            .map(|layer| LayerSummary {
                layer,
                tensors: Vec::new(),
                bytes: 0,
                threshold: plan
                    .filter(|plan| plan.needs_thresholds())
                    .and_then(|plan| plan.thresholds.get(layer).copied()),
            })
            .collect();
        for param in spec.parameters() {
            let tensor = summarize(model, &param);
            match param.layer.and_then(|layer| layers.get_mut(layer)) {
                Some(layer) => {
                    layer.bytes += tensor.bytes;
                    layer.tensors.push(tensor);
                }
                None => outside.push(tensor),
            }
        }
        let weight_bytes = match model {
            OpenedModel::Gguf(model) => model.file().file_bytes(),
            OpenedModel::Folder(model) => model.weight_bytes(),
            OpenedModel::Packed(model) => model.weight_bytes(),
        };
        let learned_scales = match (model, plan) {
            (OpenedModel::Folder(folder), Some(plan)) => {
                has_learned_scales(folder, spec, plan)? || !declare_static(folder, spec, plan)?.is_empty()
            }
            (OpenedModel::Packed(_), Some(plan)) => !plan.static_quantizers(spec).is_empty(),
            _ => false,
        };
        let num_parameters = spec.num_parameters();
        Ok(Self {
            kind: model.kind(),
            architecture: spec.architecture.class(),
            config: spec.to_config(),
            num_parameters,
            weight_bytes,
            f32_bytes: 4 * num_parameters as u64,
            bits_per_parameter: 8.0 * weight_bytes as f64 / num_parameters as f64,
            outside,
            layers,
            learned_scales,
            points: plan.map(points).unwrap_or_default(),
            policy: plan.map(|plan| plan.policy.name()),
            rho: plan.map(|plan| plan.rho),
            plan: plan.cloned(),
        })
    }
}

fn points(plan: &QuantPlan) -> Vec<PointSummary> {
    ActPoint::ALL
        .into_iter()
        .map(|point| {
            let scheme = plan.point(point);
            PointSummary {
                point: point.name(),
                scheme: scheme
                    .map(|scheme| if point == ActPoint::AttnProbs { "fixed" } else { scheme.name() }),
                bits: match scheme {
                    Some(_) => plan.widths(point).iter().map(|width| width.bits()).collect(),
                    None => Vec::new(),
                },
            }
        })
        .collect()
}

fn summarize(model: &OpenedModel, param: &ParamInfo) -> TensorSummary {
    let scheme = model.plan().and_then(|plan| plan.scheme_of(param));
    let (stored_as, bytes) = match model {
        OpenedModel::Packed(packed) if packed.is_packed(&param.name) => match packed.tensor(&param.name) {
            Ok(tensor) => {
                let bits = tensor.scheme.bits.storage_bits();
                let bytes = 4 * (tensor.words.len() + tensor.scales.len()) + 16;
                (format!("int{bits}"), bytes as u64)
            }
            Err(_) => ("missing".to_owned(), 0),
        },
        OpenedModel::Packed(packed) => stored(packed, param),
        OpenedModel::Folder(folder) => stored(folder, param),
        OpenedModel::Gguf(model) => match model.stored_as(param) {
            Ok((name, bytes)) => (name.to_owned(), bytes),
            Err(_) => ("missing".to_owned(), 0),
        },
    };
    TensorSummary {
        name: param.name.clone(),
        shape: param.shape.clone(),
        scheme: describe(scheme),
        stored_as,
        bytes,
    }
}

fn stored(source: &impl TensorSource, param: &ParamInfo) -> (String, u64) {
    match source.info(&param.name) {
        Some((dtype, _)) => (dtype.name().to_owned(), (param.len() * dtype.size()) as u64),
        None => ("missing".to_owned(), 0),
    }
}
