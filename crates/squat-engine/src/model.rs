//! The weights of a model in the form that runs: laid out for the kernels once, shared by all sessions.

use crate::attention::AttentionPlan;
use crate::linear::{Linear, Weight};
use crate::pool::lock;
use squat_kernels::{Kernels, RowQuantizer};
use squat_model::spec::bias_name;
use squat_model::{LinearKind, ModelSpec, NormKind, ParamInfo, ParamKind, QuantPlan};
use squat_quant::ActPoint;
use std::ops::Range;
use std::sync::{Arc, Mutex};

/// How weights that the plan leaves in full precision are held.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Weights {
    /// Four bytes each.
    #[default]
    F32,
    /// Two bytes each, rounded to half precision (ties to even): half the memory traffic, slightly other logits.
    F16,
}

/// A norm of a row.
#[derive(Clone, Debug)]
pub(crate) struct Norm {
    pub gain: Vec<f32>,
    /// The bias of a LayerNorm; `None` makes this an RMSNorm.
    pub bias: Option<Vec<f32>>,
    pub eps: f32,
}

impl Norm {
    /// `out = norm(row)`.
    pub(crate) fn apply(&self, kernels: &Kernels, row: &[f32], out: &mut [f32]) {
        match &self.bias {
            None => kernels.rms_norm(row, &self.gain, self.eps, out),
            Some(bias) => kernels.layer_norm(row, &self.gain, bias, self.eps, out),
        }
    }
}

/// One transformer layer.
pub(crate) struct Layer {
    /// Before attention, if the model has a norm there; likewise the others.
    pub attn_norm: Option<Norm>,
    /// Query, key and value projections: output channels `[q, k, v]`.
    pub qkv: Linear,
    pub attention: AttentionPlan,
    pub output: Linear,
    pub attn_output_norm: Option<Norm>,
    pub mlp_norm: Option<Norm>,
    /// Gate and up projections: output channels `[gate, up]`; `[up]` of an MLP without gate.
    pub gate_up: Linear,
    pub down: Linear,
    pub mlp_output_norm: Option<Norm>,
}

/// Rotary tables, `[positions, head_dim / 2]`.
#[derive(Default)]
pub(crate) struct Rope {
    pub cos: Vec<f32>,
    pub sin: Vec<f32>,
}

/// The rotary tables of a model.
#[derive(Default)]
pub(crate) struct Ropes {
    positions: usize,
    /// Of the layers that attend to every position.
    full: Rope,
    /// Of the layers with a window, where these have others.
    local: Option<Rope>,
}

impl Ropes {
    /// The tables of a layer; `None` where queries and keys are left as they are.
    pub(crate) fn of_layer(&self, spec: &ModelSpec, layer: usize) -> Option<&Rope> {
        spec.rope_of(layer)?;
        let local = spec.window_of(layer).and(self.local.as_ref());
        Some(local.unwrap_or(&self.full))
    }
}

/// A loaded model.
pub(crate) struct Model {
    pub spec: ModelSpec,
    pub plan: QuantPlan,
    pub kernels: &'static Kernels,
    pub embedding: Arc<Weight>,
    /// Learned positions, `[positions, hidden]`; `None` in models with RoPE.
    pub positions: Option<Vec<f32>>,
    pub layers: Vec<Layer>,
    pub final_norm: Norm,
    pub head: Linear,
    pub ropes: Mutex<Arc<Ropes>>,
}

/// Where a model holds a parameter.
pub(crate) enum Place<'a> {
    /// Rows of a weight.
    Rows(&'a Weight, Range<usize>),
    /// Biases of output channels.
    Biases(&'a Linear, Range<usize>),
    /// A vector, or learned positions.
    Values(&'a [f32]),
}

impl Layer {
    /// The product that computes a projection, and the first of its output channels that belongs to it.
    fn linear(&self, kind: LinearKind, spec: &ModelSpec) -> (&Linear, usize) {
        let rows = |kinds: &[LinearKind]| kinds.iter().map(|&kind| spec.linear_shape(kind)[0]).sum();
        match kind {
            LinearKind::Q => (&self.qkv, 0),
            LinearKind::K => (&self.qkv, rows(&[LinearKind::Q])),
            LinearKind::V => (&self.qkv, rows(&[LinearKind::Q, LinearKind::K])),
            LinearKind::O => (&self.output, 0),
            LinearKind::Gate => (&self.gate_up, 0),
            LinearKind::Up if spec.mlp.gated() => (&self.gate_up, rows(&[LinearKind::Gate])),
            LinearKind::Up => (&self.gate_up, 0),
            LinearKind::Down => (&self.down, 0),
        }
    }
}

impl Model {
    /// Rotary tables for at least `positions` positions; the largest made so far are kept.
    pub(crate) fn ropes(&self, positions: usize) -> Arc<Ropes> {
        let mut held = lock(&self.ropes);
        if held.positions < positions {
            let tables = |rope: &squat_model::rope::Rope| {
                let (cos, sin) = rope.tables(positions, self.spec.head_dim);
                Rope { cos, sin }
            };
            let full = self.spec.rope.as_ref().map(tables).unwrap_or_default();
            let local = self.spec.window.as_ref().and_then(|window| window.rope.as_ref()).map(tables);
            *held = Arc::new(Ropes { positions, full, local });
        }
        held.clone()
    }

    /// Every parameter of the spec in order, and where it is held.
    pub(crate) fn places(&self) -> impl Iterator<Item = (ParamInfo, Place<'_>)> {
        let mut owner: Option<ParamInfo> = None;
        self.spec.parameters().into_iter().map(move |param| {
            let place = match (param.kind, &owner) {
                // A bias follows the parameter that it belongs to.
                (ParamKind::Bias, Some(owner)) if bias_name(&owner.name) == param.name => {
                    self.place(owner, true)
                }
                (ParamKind::Bias, _) => None,
                _ => self.place(&param, false),
            };
            let place = place.expect("a built model has a place for every parameter");
            if param.kind != ParamKind::Bias {
                owner = Some(param.clone());
            }
            (param, place)
        })
    }

    /// Where a parameter, or its bias, is held. The match is exhaustive: a new kind of parameter must get
    /// a place.
    fn place(&self, param: &ParamInfo, bias: bool) -> Option<Place<'_>> {
        let layer = param.layer.and_then(|index| self.layers.get(index));
        let norm = match param.kind {
            ParamKind::Embedding => return Some(Place::Rows(&self.embedding, 0..param.shape[0])),
            ParamKind::Head => return Some(Place::Rows(&self.head.weight, 0..param.shape[0])),
            ParamKind::Positions => return self.positions.as_deref().map(Place::Values),
            ParamKind::Bias => return None,
            ParamKind::Linear(kind) => {
                let (linear, first) = layer?.linear(kind, &self.spec);
                let rows = first..first + param.shape[0];
                return Some(if bias {
                    Place::Biases(linear, rows)
                } else {
                    Place::Rows(&linear.weight, rows)
                });
            }
            ParamKind::Norm(NormKind::Attn) => layer?.attn_norm.as_ref()?,
            ParamKind::Norm(NormKind::Query) => layer?.attention.query_norm.as_ref()?,
            ParamKind::Norm(NormKind::Key) => layer?.attention.key_norm.as_ref()?,
            ParamKind::Norm(NormKind::AttnOutput) => layer?.attn_output_norm.as_ref()?,
            ParamKind::Norm(NormKind::Mlp) => layer?.mlp_norm.as_ref()?,
            ParamKind::Norm(NormKind::MlpOutput) => layer?.mlp_output_norm.as_ref()?,
            ParamKind::Norm(NormKind::Final) => &self.final_norm,
        };
        match bias {
            false => Some(Place::Values(&norm.gain)),
            true => norm.bias.as_deref().map(Place::Values),
        }
    }

    /// The quantizer of a point; `layer` is `None` for the input of the head. `None` where the point is not quantized, and for
    /// the probabilities, whose bits are in the plan.
    pub(crate) fn quantizer(&self, point: ActPoint, layer: Option<usize>) -> Option<&RowQuantizer> {
        let layer = layer.and_then(|index| self.layers.get(index));
        match point {
            ActPoint::AttnIn => layer?.qkv.input.as_ref(),
            ActPoint::Query => layer?.attention.points.query.as_ref(),
            ActPoint::Key => layer?.attention.points.key.as_ref(),
            ActPoint::Value => layer?.attention.points.value.as_ref(),
            ActPoint::AttnProbs => None,
            ActPoint::OProjInput => layer?.output.input.as_ref(),
            ActPoint::MlpIn => layer?.gate_up.input.as_ref(),
            ActPoint::DownProjInput => layer?.down.input.as_ref(),
            ActPoint::LmHeadInput if layer.is_none() => self.head.input.as_ref(),
            ActPoint::LmHeadInput => None,
        }
    }

    /// Bytes of all weights in memory, joined and tied ones counted once.
    pub(crate) fn weight_bytes(&self) -> usize {
        let bytes = |place| match place {
            Place::Rows(weight, rows) if rows.start == 0 => weight.bytes(),
            Place::Biases(linear, rows) if rows.start == 0 => 4 * linear.bias.len(),
            Place::Rows(..) | Place::Biases(..) => 0,
            Place::Values(values) => 4 * values.len(),
        };
        self.places().map(|(_, place)| bytes(place)).sum()
    }
}
