//! Summary of a model as data: the content of `squat inspect`.

use std::path::Path;

use serde::Serialize;
use squat_quant::ActPoint;

use crate::arch;
use crate::error::ModelError;
use crate::hf::{declare_static, has_learned_scales};
use crate::open::{ModelKind, OpenedModel};
use crate::plan::{QuantPlan, describe};
use crate::spec::ParamInfo;

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

/// Summary of a model.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ModelSummary {
    /// Which kind of folder it is.
    pub kind: ModelKind,
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
    /// Token policy, if there is a plan.
    pub policy: Option<&'static str>,
    /// Target share of 8-bit tokens, if there is a plan.
    pub rho: Option<f32>,
    /// The plan itself.
    pub plan: Option<QuantPlan>,
}

impl ModelSummary {
    /// Opens a model and describes it; elements are not read.
    ///
    /// # Errors
    /// As [`crate::open`].
    pub fn open(path: impl AsRef<Path>) -> Result<Self, ModelError> {
        Self::of(&crate::open(path)?)
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
        let weight_bytes = model.weight_bytes();
        let learned_scales = match (model.kind(), plan) {
            (ModelKind::Checkpoint, Some(plan)) => {
                let tensors = model.tensors();
                has_learned_scales(tensors, spec, plan)? || !declare_static(tensors, spec, plan)?.is_empty()
            }
            (ModelKind::Packed, Some(plan)) => !plan.static_quantizers(spec).is_empty(),
            _ => false,
        };
        let num_parameters = spec.num_parameters();
        Ok(Self {
            kind: model.kind(),
            architecture: spec.architecture.class,
            config: arch::config_of_spec(spec),
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
    let (stored_as, bytes) = model.stored_as(param);
    TensorSummary {
        name: param.name.clone(),
        shape: param.shape.clone(),
        scheme: describe(scheme),
        stored_as,
        bytes,
    }
}
