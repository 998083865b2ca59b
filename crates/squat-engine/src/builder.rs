//! From the tensors of a file to a [`Model`]: every parameter that the spec lists, laid out for the kernels.

use crate::attention::{AttentionPlan, AttentionPoints};
use crate::error::{EngineError, Result};
use crate::linear::{Linear, Weight};
use crate::model::{Layer, Model, Norm, Weights};
use crate::pool::Pool;
use crate::source::{CodeRows, Source};
use squat_kernels::{ArenaSlice, Kernels, PackedMatrix, RowQuantizer, StaticAffines, WeightArena};
use squat_model::spec::bias_name;
use squat_model::{LinearKind, ModelSpec, NormKind, ParamInfo, ParamKind, QuantPlan};
use squat_quant::{ActBits, ActPoint, ActScheme, Granularity, Transform, WeightScheme};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

impl Model {
    /// Reads every parameter of a spec, and the quantizers of a plan.
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
        let params = spec.parameters();
        // Matrices, and everything else by name. What is left of either at the end has no place in the model.
        let mut jobs: Vec<WeightJob<'_>> = Vec::new();
        let mut vectors: BTreeMap<&str, Vec<f32>> = BTreeMap::new();
        for param in &params {
            match param.kind {
                ParamKind::Embedding => jobs.push(WeightJob::new(param, plan.embedding)),
                ParamKind::Head => jobs.push(WeightJob::new(param, plan.head)),
                ParamKind::Linear(_) => match jobs.last_mut().filter(|job| job.joins(param)) {
                    Some(job) => {
                        job.parts.push(param);
                        job.biases.push(None);
                    }
                    None => jobs.push(WeightJob::new(param, plan.scheme_of(param))),
                },
                ParamKind::Bias if jobs.last_mut().is_some_and(|job| job.take_bias(param)) => {}
                ParamKind::Bias | ParamKind::Norm(_) | ParamKind::Positions => {
                    vectors.insert(&param.name, source.values(param)?);
                }
            }
        }
        let builder = Builder { source, plan: &plan, weights, kernels };
        builder.run(pool, &mut jobs);
        // In the order of the model, so that the first error does not depend on the threads.
        let mut jobs = jobs.into_iter();
        let mut next = |input: Option<RowQuantizer>, transform: Transform| -> Result<Linear> {
            let job = jobs.next().expect("a spec lists every matrix");
            let (rows, cols) = (job.rows(), job.cols());
            let (weight, bias) = job.done.expect("every job has been run")?;
            Ok(Linear { weight: Arc::new(weight), bias, rows, cols, transform, input })
        };
        let mut norm = |name: &str| {
            let gain = vectors.remove(name).expect("a spec lists every norm");
            Norm { gain, bias: vectors.remove(&*bias_name(name)), eps: spec.norm_eps as f32 }
        };
        let embedding = next(None, Transform::None)?.weight;
        let mut layers = Vec::with_capacity(spec.num_hidden_layers);
        for layer in 0..spec.num_hidden_layers {
            let point = |point| builder.quantizer(point, Some(layer));
            let mut head_norm =
                |kind| spec.qk_norm_of(kind).map(|_| norm(&ModelSpec::head_norm_name(layer, kind)));
            let (query_norm, key_norm) = (head_norm(LinearKind::Q), head_norm(LinearKind::K));
            let mut linear = |at| next(point(at)?, plan.transform(at));
            let qkv = linear(ActPoint::AttnIn)?;
            let points = AttentionPoints {
                query: point(ActPoint::Query)?,
                key: point(ActPoint::Key)?,
                value: point(ActPoint::Value)?,
                probs: plan.point(ActPoint::AttnProbs).map(|_| plan.attn_probs_bits),
            };
            let mut block_norm = |kind| spec.block_norm_name(layer, kind).map(|name| norm(&name));
            layers.push(Layer {
                attn_norm: block_norm(NormKind::Attn),
                qkv,
                attention: AttentionPlan::new(
                    (&spec, layer),
                    points,
                    plan.transform(ActPoint::Query),
                    [query_norm, key_norm],
                ),
                output: linear(ActPoint::OProjInput)?,
                attn_output_norm: block_norm(NormKind::AttnOutput),
                mlp_norm: block_norm(NormKind::Mlp),
                gate_up: linear(ActPoint::MlpIn)?,
                down: linear(ActPoint::DownProjInput)?,
                mlp_output_norm: block_norm(NormKind::MlpOutput),
            });
        }
        let final_norm = norm(ModelSpec::FINAL_NORM);
        let input = builder.quantizer(ActPoint::LmHeadInput, None)?;
        let head = if spec.tie_word_embeddings {
            let (weight, bias) = (embedding.clone(), Vec::new());
            let transform = Transform::None;
            Linear { weight, bias, rows: spec.vocab_size, cols: spec.hidden_size, transform, input }
        } else {
            next(input, Transform::None)?
        };
        let positions = vectors.remove(ModelSpec::POSITIONS);
        let left = jobs.next().map(|job| job.parts[0].name.clone());
        if let Some(name) = left.or_else(|| vectors.keys().next().map(|&name| name.to_owned())) {
            return Err(EngineError::NoPlace { name });
        }
        let ropes = Mutex::default();
        Ok(Self { spec, plan, kernels, embedding, positions, layers, final_norm, head, ropes })
    }
}

/// A weight to be laid out: tensors `[out_i, in]` of the same inputs whose output channels follow each other.
struct WeightJob<'a> {
    parts: Vec<&'a ParamInfo>,
    /// Bias of each part.
    biases: Vec<Option<&'a ParamInfo>>,
    scheme: Option<WeightScheme>,
    /// Weight and bias as [`Linear`] has them, once they are made.
    done: Option<Result<(Weight, Vec<f32>)>>,
}

impl<'a> WeightJob<'a> {
    fn new(part: &'a ParamInfo, scheme: Option<WeightScheme>) -> Self {
        Self { parts: vec![part], biases: vec![None], scheme, done: None }
    }

    /// Whether a linear layer is one product with those of the job: the same input.
    fn joins(&self, param: &ParamInfo) -> bool {
        let first = self.parts[0];
        match (first.kind, param.kind) {
            (ParamKind::Linear(a), ParamKind::Linear(b)) => {
                first.layer == param.layer && a.input_point() == b.input_point()
            }
            _ => false,
        }
    }

    /// Takes the bias of the last part; whether it is one.
    fn take_bias(&mut self, param: &'a ParamInfo) -> bool {
        let is_own = self.parts.last().is_some_and(|part| bias_name(&part.name) == param.name);
        if let (true, Some(bias)) = (is_own, self.biases.last_mut()) {
            *bias = Some(param);
        }
        is_own
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
        let biased = job.biases.iter().any(Option::is_some);
        for (part, own) in job.parts.iter().zip(&job.biases).filter(|_| biased) {
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
            Some(ActScheme::Dynamic) => Ok(Some(RowQuantizer::Dynamic(self.plan.clip))),
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
