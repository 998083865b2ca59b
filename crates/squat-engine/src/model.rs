//! The weights of a model in the form that runs: laid out for the kernels once, shared by all sessions.

use crate::attention::AttentionPlan;
use crate::error::{EngineError, Result};
use crate::linear::{Linear, Weight};
use crate::pool::Pool;
use crate::source::{CodeRows, Source};
use squat_kernels::{ArenaSlice, Kernels, PackedMatrix, RowQuantizer, StaticAffines, WeightArena};
use squat_model::spec::{self, bias_name};
use squat_model::{LinearKind, Mlp, ModelError, ModelSpec, ParamInfo, ParamKind, QuantPlan};
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

/// A norm before a linear layer.
pub(crate) struct Norm {
    pub gain: Vec<f32>,
    /// Of a LayerNorm; none makes it an RMSNorm.
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

    /// Gain and bias.
    pub(crate) fn values(&self) -> impl Iterator<Item = f32> {
        self.gain.iter().chain(self.bias.iter().flatten()).copied()
    }
}

/// One transformer layer.
pub(crate) struct Layer {
    pub attn_norm: Norm,
    /// Query, key and value projections: output channels `[q, k, v]`.
    pub qkv: Linear,
    pub attention: AttentionPlan,
    pub output: Linear,
    pub mlp_norm: Norm,
    /// Gate and up projections: output channels `[gate, up]`; `[up]` of an MLP without gate.
    pub gate_up: Linear,
    pub down: Linear,
}

/// The projections of a layer that are one product each, in the order of [`Layer`].
fn linears(mlp: Mlp) -> [&'static [LinearKind]; 4] {
    use LinearKind::{Down, Gate, K, O, Q, Up, V};
    match mlp {
        Mlp::SwiGlu => [&[Q, K, V], &[O], &[Gate, Up], &[Down]],
        Mlp::Gelu => [&[Q, K, V], &[O], &[Up], &[Down]],
    }
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
    /// Learned positions, `[positions, hidden]`; none where there is RoPE.
    pub positions: Option<Vec<f32>>,
    pub layers: Vec<Layer>,
    pub mlp: Mlp,
    pub final_norm: Norm,
    pub head: Linear,
    rope: Mutex<Arc<Rope>>,
}

/// A weight to be laid out: tensors `[out_i, in]` of the same inputs whose output channels follow each other.
struct WeightJob<'a> {
    parts: Vec<&'a ParamInfo>,
    /// Bias of each part, empty where no part has one.
    biases: Vec<Option<&'a ParamInfo>>,
    scheme: Option<WeightScheme>,
    /// Weight and bias as [`Linear`] has them, once they are made.
    done: Option<Result<(Weight, Vec<f32>)>>,
}

impl<'a> WeightJob<'a> {
    fn new(parts: Vec<&'a ParamInfo>, scheme: Option<WeightScheme>) -> Self {
        Self { parts, biases: Vec::new(), scheme, done: None }
    }

    fn rows(&self) -> usize {
        self.parts.iter().map(|part| part.shape[0]).sum()
    }

    fn cols(&self) -> usize {
        self.parts[0].shape[1]
    }

    /// Bits of all codes or values.
    fn size(&self) -> usize {
        let bits = self.scheme.map_or(32, |scheme| scheme.bits.storage_bits() as usize);
        self.rows() * self.cols() * bits
    }
}

/// Builds matrices from a source.
struct Builder<'a> {
    source: &'a dyn Source,
    plan: &'a QuantPlan,
    weights: Weights,
    kernels: &'static Kernels,
}

impl Builder<'_> {
    /// Makes the weights of all jobs, the largest first, so that the threads end together.
    fn run(&self, pool: &Pool, jobs: &mut [WeightJob<'_>]) {
        // Without an arena each weight allocates for itself: if that fails, its error says more than this one would.
        let bytes = jobs.iter().try_fold(0usize, |sum, job| sum.checked_add(self.bytes_needed(job)?));
        let arena = bytes.and_then(WeightArena::reserve);
        let mut order: Vec<&mut WeightJob<'_>> = jobs.iter_mut().collect();
        order.sort_by_key(|job| std::cmp::Reverse(job.size()));
        pool.for_each(order.into_iter(), |_, job| {
            job.done = Some(self.weight(job, arena.as_ref()));
            job.parts.iter().for_each(|part| self.source.release(part));
        });
    }

    /// Bytes of the arena that a job's codes or values take. f32 values are used as the source returns them, outside it.
    fn bytes_needed(&self, job: &WeightJob<'_>) -> Option<usize> {
        let (rows, cols) = (job.rows(), job.cols());
        match (job.scheme, self.weights) {
            (Some(scheme), _) => PackedMatrix::bytes_needed(rows, cols, scheme),
            (None, Weights::F32) => Some(0),
            (None, Weights::F16) => WeightArena::bytes_needed::<u16>(rows.checked_mul(cols)?),
        }
    }

    fn weight(&self, job: &WeightJob<'_>, arena: Option<&Arc<WeightArena>>) -> Result<(Weight, Vec<f32>)> {
        let mut bias = Vec::new();
        for (part, own) in job.parts.iter().zip(&job.biases) {
            match own {
                Some(own) => bias.extend(self.source.values(own)?),
                None => bias.resize(bias.len() + part.shape[0], 0.0),
            }
        }
        let Some(scheme) = job.scheme else { return Ok((self.float_weight(job, arena)?, bias)) };
        let mut matrix = self.packed_weight(job, scheme, arena)?;
        if !bias.is_empty() {
            let name = bias_name(&job.parts[0].name);
            matrix = matrix.with_bias(&bias).map_err(|source| EngineError::Matrix { name, source })?;
        }
        Ok((Weight::Packed(matrix), Vec::new()))
    }

    /// Reads one part at a time, so that little is in memory twice.
    fn float_weight(&self, job: &WeightJob<'_>, arena: Option<&Arc<WeightArena>>) -> Result<Weight> {
        let len = job.rows() * job.cols();
        if self.weights == Weights::F16 {
            let mut halves = ArenaSlice::new(arena, len, std::iter::repeat(0u16));
            let mut rest = &mut halves[..];
            for part in &job.parts {
                let values = self.source.values(part)?;
                let (these, after) = rest.split_at_mut(values.len());
                these.iter_mut().zip(values).for_each(|(half, x)| *half = half::f16::from_f32(x).to_bits());
                rest = after;
            }
            return Ok(Weight::F16(halves));
        }
        if let &[part] = &job.parts[..] {
            return self.source.values(part).map(Weight::F32);
        }
        let mut values = Vec::with_capacity(len);
        for part in &job.parts {
            values.extend(self.source.values(part)?);
        }
        Ok(Weight::F32(values))
    }

    fn packed_weight(
        &self,
        job: &WeightJob<'_>,
        scheme: WeightScheme,
        arena: Option<&Arc<WeightArena>>,
    ) -> Result<PackedMatrix> {
        let (rows, cols, parts) = (job.rows(), job.cols(), &job.parts);
        // Joined per-tensor weights have one scale each: repeated for their channels, the product is the same.
        let per_tensor = scheme.granularity == Granularity::PerTensor;
        let joined = if per_tensor && parts.len() > 1 {
            WeightScheme { granularity: Granularity::PerChannel, ..scheme }
        } else {
            scheme
        };
        let mut scales = Vec::with_capacity(joined.num_scales(rows, cols));
        let mut sources = Vec::with_capacity(parts.len());
        let mut first = 0;
        for part in parts {
            let codes = self.source.codes(part, scheme)?;
            if joined == scheme {
                scales.extend(codes.scales);
            } else {
                scales.extend(std::iter::repeat_n(codes.scales[0], part.shape[0]));
            }
            sources.push((first, codes.rows));
            first += part.shape[0];
        }
        // The part that has a row, and the row within it.
        let find = |row: usize| {
            let (first, rows) = &sources[sources.partition_point(|(first, _)| *first <= row) - 1];
            (row - first, rows)
        };
        let matrix = if sources.iter().all(|(_, rows)| matches!(rows, CodeRows::Words(..))) {
            self.kernels.matrix_from_words(arena, rows, cols, joined, &scales, |row| match find(row) {
                (row, CodeRows::Words(words, per_row)) => &words[row * per_row..(row + 1) * per_row],
                _ => &[],
            })
        } else {
            PackedMatrix::from_rows(arena, rows, cols, joined, &scales, |row, codes: &mut [i8]| {
                if let (row, CodeRows::Fill(fill)) = find(row) {
                    fill(row, codes);
                }
                Ok(())
            })
        };
        matrix.map_err(|source| EngineError::Matrix { name: parts[0].name.clone(), source })
    }

    /// Quantizer of a point, if it is quantized.
    fn quantizer(&self, point: ActPoint, layer: Option<usize>) -> Result<Option<RowQuantizer>> {
        match self.plan.point(point) {
            None => Ok(None),
            Some(ActScheme::Dynamic) => Ok(Some(RowQuantizer::Dynamic)),
            Some(ActScheme::Static) => {
                let widths = self.plan.widths(point);
                // A width that never occurs gets a copy of the other one.
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
        pool: &Pool,
    ) -> Result<Self> {
        spec.validate()?;
        plan.validate_frozen(&spec)?;
        if spec.qk_norm {
            let (expected, got) =
                ("a model without norms of queries and keys".to_owned(), "one with them".to_owned());
            return Err(
                ModelError::Config { key: "qk_norm".to_owned(), expected, got, hint: String::new() }.into()
            );
        }
        let params = spec.parameters();
        let find = |kind: ParamKind, layer: Option<usize>| {
            let found = params.iter().find(|param| param.kind == kind && param.layer == layer);
            found.expect("a spec lists a parameter of each kind for each layer")
        };
        let by_name =
            |name: &str| params.iter().find(|param| param.name == name).expect("a spec lists its own norms");
        let norm = |name: &str| -> Result<Norm> {
            let gain = source.values(by_name(name))?;
            let bias = match spec.norm {
                spec::Norm::Rms => None,
                spec::Norm::Layer => Some(source.values(by_name(&bias_name(name)))?),
            };
            Ok(Norm { gain, bias, eps: spec.norm_eps as f32 })
        };
        let mlp = spec.mlp;
        let linears = linears(mlp);
        let builder = Builder { source, plan: &plan, weights, kernels };
        let table = find(ParamKind::Embedding, None);
        let mut jobs = vec![WeightJob::new(vec![table], plan.embedding)];
        for layer in 0..spec.num_hidden_layers {
            for kinds in linears {
                let parts: Vec<_> =
                    kinds.iter().map(|&kind| find(ParamKind::Linear(kind), Some(layer))).collect();
                let bias = |(kind, part): (&LinearKind, &&ParamInfo)| match spec.biases.contains(*kind) {
                    true => Some(by_name(&bias_name(&part.name))),
                    false => None,
                };
                let mut biases: Vec<_> = kinds.iter().zip(&parts).map(bias).collect();
                if biases.iter().all(Option::is_none) {
                    biases.clear();
                }
                jobs.push(WeightJob { biases, ..WeightJob::new(parts, plan.weight) });
            }
        }
        if !spec.tie_word_embeddings {
            jobs.push(WeightJob::new(vec![find(ParamKind::Head, None)], plan.head));
        }
        builder.run(pool, &mut jobs);
        // In the order of the model, so that the first error does not depend on the threads.
        let mut jobs = jobs.into_iter();
        let mut next = |input: Option<RowQuantizer>| -> Result<Linear> {
            let job = jobs.next().expect("a job for each weight");
            let (rows, cols) = (job.rows(), job.cols());
            let (weight, bias) = job.done.expect("every job has been run")?;
            Ok(Linear { weight: Arc::new(weight), bias, rows, cols, input })
        };
        let embedding = next(None)?.weight;
        let positions = match spec.rope {
            Some(_) => None,
            None => Some(source.values(find(ParamKind::Positions, None))?),
        };
        let mut layers = Vec::with_capacity(spec.num_hidden_layers);
        for layer in 0..spec.num_hidden_layers {
            let at = Some(layer);
            let point = |point| builder.quantizer(point, at);
            let mut linear = |index: usize| next(point(linears[index][0].input_point())?);
            let attn_norm = norm(&spec.attn_norm_name(layer))?;
            let mlp_norm = norm(&spec.mlp_norm_name(layer))?;
            let (qkv, output, gate_up, down) = (linear(0)?, linear(1)?, linear(2)?, linear(3)?);
            let attention = AttentionPlan::new(
                &spec,
                point(ActPoint::Query)?,
                point(ActPoint::Key)?,
                point(ActPoint::Value)?,
                plan.point(ActPoint::AttnProbs).map(|_| plan.attn_probs_bits),
            );
            layers.push(Layer { attn_norm, qkv, attention, output, mlp_norm, gate_up, down });
        }
        let final_norm = norm(ModelSpec::FINAL_NORM)?;
        let input = builder.quantizer(ActPoint::LmHeadInput, None)?;
        let head = if spec.tie_word_embeddings {
            let (weight, bias) = (embedding.clone(), Vec::new());
            Linear { weight, bias, rows: spec.vocab_size, cols: spec.hidden_size, input }
        } else {
            next(input)?
        };
        let rope = Mutex::new(Arc::new(Rope { positions: 0, cos: Vec::new(), sin: Vec::new() }));
        Ok(Self { spec, plan, kernels, embedding, positions, layers, mlp, final_norm, head, rope })
    }

    /// Rotary tables for at least `positions` positions; the largest made so far are kept. None for learned positions.
    pub(crate) fn rope(&self, positions: usize) -> Option<Arc<Rope>> {
        let rope = self.spec.rope.as_ref()?;
        let mut held = crate::pool::lock(&self.rope);
        if held.positions < positions {
            let (cos, sin) = rope.tables(positions, self.spec.head_dim);
            *held = Arc::new(Rope { positions, cos, sin });
        }
        Some(held.clone())
    }

    /// Bytes of all weights in memory, a tied table counted once.
    pub(crate) fn weight_bytes(&self) -> usize {
        let layers: usize = self
            .layers
            .iter()
            .map(|layer| {
                let linears = [&layer.qkv, &layer.output, &layer.gate_up, &layer.down];
                let norms = layer.attn_norm.values().count() + layer.mlp_norm.values().count();
                linears.iter().map(|linear| linear.bytes()).sum::<usize>() + 4 * norms
            })
            .sum();
        let head = if self.spec.tie_word_embeddings { 0 } else { self.head.weight.bytes() };
        let positions = self.positions.as_ref().map_or(0, Vec::len);
        layers + self.embedding.bytes() + head + 4 * (positions + self.final_norm.values().count())
    }
}
