//! The weights of a model in the form that runs: laid out for the kernels once, shared by all sessions.

use crate::attention::AttentionPlan;
use crate::error::{EngineError, Result};
use crate::linear::{Linear, Weight};
use crate::source::Source;
use squat_kernels::{Kernels, MatrixError, PackedMatrix, RowQuantizer, StaticAffines};
use squat_model::rope::rope_tables;
use squat_model::{LinearKind, ModelError, ModelSpec, ParamInfo, ParamKind, QuantPlan};
use squat_quant::{ActBits, ActPoint, ActScheme, Granularity, WeightScheme};
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

/// One transformer layer.
pub(crate) struct Layer {
    pub attn_norm: Vec<f32>,
    /// Query, key and value projections: output channels `[q, k, v]`.
    pub qkv: Linear,
    pub attention: AttentionPlan,
    pub output: Linear,
    pub mlp_norm: Vec<f32>,
    /// Gate and up projections: output channels `[gate, up]`.
    pub gate_up: Linear,
    pub down: Linear,
}

/// Rotary tables, `[positions, head_dim / 2]`.
pub(crate) struct Rope {
    pub positions: usize,
    pub cos: Vec<f32>,
    pub sin: Vec<f32>,
}

/// A loaded model.
pub(crate) struct Model {
    pub spec: ModelSpec,
    pub plan: QuantPlan,
    pub kernels: &'static Kernels,
    pub embedding: Arc<Weight>,
    pub layers: Vec<Layer>,
    pub final_norm: Vec<f32>,
    pub head: Linear,
    rope: Mutex<Arc<Rope>>,
}

/// Why a matrix could not be built.
enum BuildError {
    Matrix(MatrixError),
    Model(ModelError),
}

impl From<MatrixError> for BuildError {
    fn from(error: MatrixError) -> Self {
        Self::Matrix(error)
    }
}

/// Builds matrices from a source.
struct Builder<'a> {
    source: &'a dyn Source,
    plan: &'a QuantPlan,
    weights: Weights,
}

impl Builder<'_> {
    /// Parts `[out_i, in]` with the same inputs as one weight whose output channels follow each other.
    fn weight(&self, parts: &[&ParamInfo], scheme: Option<WeightScheme>) -> Result<Weight> {
        let cols = parts[0].shape[1];
        let rows: usize = parts.iter().map(|part| part.shape[0]).sum();
        let Some(scheme) = scheme else {
            let mut values = Vec::with_capacity(if self.weights == Weights::F32 { rows * cols } else { 0 });
            let mut halves = Vec::with_capacity(if self.weights == Weights::F16 { rows * cols } else { 0 });
            for part in parts {
                let part = self.source.values(part)?;
                match self.weights {
                    Weights::F32 => values.extend(part),
                    Weights::F16 => halves.extend(part.iter().map(|&x| half::f16::from_f32(x).to_bits())),
                }
            }
            return Ok(match self.weights {
                Weights::F32 => Weight::F32(values),
                Weights::F16 => Weight::F16(halves),
            });
        };
        // Joined per-tensor weights have one scale each: repeated for their channels, the product is the same.
        let per_tensor = scheme.granularity == Granularity::PerTensor;
        let joined = if per_tensor && parts.len() > 1 {
            WeightScheme { granularity: Granularity::PerChannel, ..scheme }
        } else {
            scheme
        };
        let mut scales = Vec::with_capacity(joined.num_scales(rows, cols));
        let mut fills = Vec::with_capacity(parts.len());
        let mut first = 0;
        for part in parts {
            let codes = self.source.codes(part, scheme)?;
            if joined == scheme {
                scales.extend(codes.scales);
            } else {
                scales.extend(std::iter::repeat_n(codes.scales[0], part.shape[0]));
            }
            fills.push((first, codes.fill));
            first += part.shape[0];
        }
        let matrix = PackedMatrix::from_rows(rows, cols, joined, &scales, |row, codes: &mut [i8]| {
            let at = fills.partition_point(|(first, _)| *first <= row) - 1;
            (fills[at].1)(row - fills[at].0, codes).map_err(BuildError::Model)
        });
        matrix.map(Weight::Packed).map_err(|error| match error {
            BuildError::Model(error) => error.into(),
            BuildError::Matrix(error) => EngineError::Matrix { name: parts[0].name.clone(), source: error },
        })
    }

    fn linear(
        &self,
        parts: &[&ParamInfo],
        scheme: Option<WeightScheme>,
        input: Option<RowQuantizer>,
    ) -> Result<Linear> {
        let rows = parts.iter().map(|part| part.shape[0]).sum();
        let weight = Arc::new(self.weight(parts, scheme)?);
        Ok(Linear { weight, rows, cols: parts[0].shape[1], input })
    }

    /// Quantizer of a point, if it is quantized.
    fn quantizer(&self, point: ActPoint, layer: Option<usize>) -> Result<Option<RowQuantizer>> {
        match self.plan.point(point) {
            None => Ok(None),
            Some(ActScheme::Dynamic) => Ok(Some(RowQuantizer::Dynamic)),
            Some(ActScheme::Static) => {
                let widths = self.plan.widths(point);
                // A width that never occurs stands as a copy of the one that does.
                let width = |bits: ActBits| if widths.contains(&bits) { bits } else { widths[0] };
                let [four, eight] = ActBits::ALL.map(width);
                let affines =
                    [self.source.affine(point, layer, four)?, self.source.affine(point, layer, eight)?];
                let checked = StaticAffines::new(affines).map_err(|source| EngineError::StaticQuantizer {
                    point: point.name(),
                    layer,
                    source,
                })?;
                Ok(Some(RowQuantizer::Static(checked)))
            }
        }
    }
}

impl Model {
    /// Reads every tensor of a validated spec and plan.
    pub(crate) fn build(
        spec: ModelSpec,
        plan: QuantPlan,
        source: &dyn Source,
        weights: Weights,
        kernels: &'static Kernels,
    ) -> Result<Self> {
        spec.validate()?;
        plan.validate_frozen(&spec)?;
        let params = spec.parameters();
        let find = |kind: ParamKind, layer: Option<usize>| {
            let found = params.iter().find(|param| param.kind == kind && param.layer == layer);
            found.expect("a spec lists a parameter of each kind for each layer")
        };
        let by_name =
            |name: &str| params.iter().find(|param| param.name == name).expect("a spec lists its own norms");
        let builder = Builder { source, plan: &plan, weights };
        let table = find(ParamKind::Embedding, None);
        let embedding = Arc::new(builder.weight(&[table], plan.embedding)?);
        let mut layers = Vec::with_capacity(spec.num_hidden_layers);
        for layer in 0..spec.num_hidden_layers {
            let at = Some(layer);
            let linear = |kinds: &[LinearKind]| {
                let parts: Vec<&ParamInfo> =
                    kinds.iter().map(|&kind| find(ParamKind::Linear(kind), at)).collect();
                let input = builder.quantizer(kinds[0].input_point(), at)?;
                builder.linear(&parts, plan.weight, input)
            };
            let point = |point| builder.quantizer(point, at);
            layers.push(Layer {
                attn_norm: source.values(by_name(&spec.attn_norm_name(layer)))?,
                qkv: linear(&[LinearKind::Q, LinearKind::K, LinearKind::V])?,
                attention: AttentionPlan::new(
                    &spec,
                    point(ActPoint::Query)?,
                    point(ActPoint::Key)?,
                    point(ActPoint::Value)?,
                    plan.point(ActPoint::AttnProbs).map(|_| plan.attn_probs_bits),
                ),
                output: linear(&[LinearKind::O])?,
                mlp_norm: source.values(by_name(&spec.mlp_norm_name(layer)))?,
                gate_up: linear(&[LinearKind::Gate, LinearKind::Up])?,
                down: linear(&[LinearKind::Down])?,
            });
        }
        let final_norm = source.values(by_name(ModelSpec::FINAL_NORM))?;
        let input = builder.quantizer(ActPoint::HeadIn, None)?;
        let head = if spec.tie_word_embeddings {
            Linear { weight: embedding.clone(), rows: spec.vocab_size, cols: spec.hidden_size, input }
        } else {
            builder.linear(&[find(ParamKind::Head, None)], plan.head, input)?
        };
        let rope = Mutex::new(Arc::new(Rope { positions: 0, cos: Vec::new(), sin: Vec::new() }));
        Ok(Self { spec, plan, kernels, embedding, layers, final_norm, head, rope })
    }

    /// Rotary tables for at least `positions` positions; the largest made so far are kept.
    pub(crate) fn rope(&self, positions: usize) -> Arc<Rope> {
        let mut held = crate::pool::lock(&self.rope);
        if held.positions < positions {
            let (cos, sin) = rope_tables(positions, self.spec.head_dim, self.spec.rope_theta);
            *held = Arc::new(Rope { positions, cos, sin });
        }
        held.clone()
    }

    /// Bytes of all weights in memory, a tied table counted once.
    pub(crate) fn weight_bytes(&self) -> usize {
        let layers: usize = self
            .layers
            .iter()
            .map(|layer| {
                let linears = [&layer.qkv, &layer.output, &layer.gate_up, &layer.down];
                let norms = layer.attn_norm.len() + layer.mlp_norm.len();
                linears.iter().map(|linear| linear.weight.bytes()).sum::<usize>() + 4 * norms
            })
            .sum();
        let head = if self.spec.tie_word_embeddings { 0 } else { self.head.weight.bytes() };
        layers + self.embedding.bytes() + head + 4 * self.final_norm.len()
    }
}
