//! A loaded model and its threads.

use crate::batch::Batch;
use crate::error::{EngineError, Result};
use crate::generate::{GenerateOptions, Generation};
use crate::model::{Model, Weights};
use crate::pool::{Pool, lock};
use crate::scheduler::{Scheduler, SchedulerOptions};
use crate::sequence::check_ids;
use crate::session::{Session, SessionOptions};
use crate::source::Unpacked;
use squat_kernels::Kernels;
use squat_model::scales::stored_scales;
use squat_model::{ModelError, ModelKind, ModelSpec, OpenedModel, PackedModel, QuantPlan, TensorSource};
use squat_quant::{ActBits, ActPoint, WeightBits};
use std::path::Path;
use std::sync::{Arc, Mutex};

/// How a model is loaded and run.
#[derive(Clone, Copy, Debug, Default)]
pub struct EngineOptions {
    /// Threads, including the caller's; 0 takes one for each available core.
    pub threads: usize,
    /// How weights that the plan leaves in full precision are held.
    pub weights: Weights,
    /// The kernels; `None` takes those that the environment variable `SQUAT_ISA` names, else the best of this CPU.
    pub kernels: Option<&'static Kernels>,
}

impl EngineOptions {
    /// Defaults with that many threads.
    pub fn threads(threads: usize) -> Self {
        Self { threads, ..Self::default() }
    }
}

/// Memory of a model and a session, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Memory {
    /// Weights as laid out for the kernels.
    pub weights: usize,
    /// Keys and values held by the session.
    pub cache: usize,
    /// Buffers of the session.
    pub scratch: usize,
}

/// A model ready to run. Cheap to clone: clones share weights and threads.
#[derive(Clone)]
pub struct Engine {
    model: Arc<Model>,
    pool: Arc<Pool>,
}

impl Engine {
    /// Opens and loads whatever model `path` holds ([`squat_model::open`]) with `threads` threads (0: one for each core).
    ///
    /// # Errors
    /// Everything that can be wrong with the files; a thread that cannot be started.
    pub fn load(path: impl AsRef<Path>, threads: usize) -> Result<Self> {
        Self::from_model(&squat_model::open(path)?, EngineOptions::threads(threads))
    }

    /// Loads an opened model: packed integers as they are, a checkpoint quantized by its own plan, anything else in full
    /// precision.
    ///
    /// # Errors
    /// Damaged or non-finite tensors, an instruction set that this CPU lacks, a thread that cannot be started.
    pub fn from_model(model: &OpenedModel, options: EngineOptions) -> Result<Self> {
        if let Some(packed) = model.packed() {
            return Self::from_packed(packed, options);
        }
        let full_precision = QuantPlan::full_precision();
        Self::from_parts(model.spec(), model.plan().unwrap_or(&full_precision), model.tensors(), options)
    }

    /// Loads an opened model in full precision and quantizes it to nearest as `plan` says, in memory.
    ///
    /// # Errors
    /// As [`Engine::from_model`]; a packed model, or a checkpoint with a plan of its own.
    pub fn from_model_as(model: &OpenedModel, plan: &QuantPlan, options: EngineOptions) -> Result<Self> {
        let found = match model.kind() {
            ModelKind::FullPrecision => {
                return Self::from_parts(model.spec(), plan, model.tensors(), options);
            }
            ModelKind::Packed => "a packed model; run it as it is, or give the model it was packed from",
            ModelKind::Checkpoint => {
                "a checkpoint with a plan of its own; run it as it is, or give the model it was trained from"
            }
        };
        let message = format!("expected weights in full precision, to be run by another plan, got {found}");
        Err(ModelError::Folder { path: model.path().to_path_buf(), message }.into())
    }

    /// An engine over an open packed folder.
    ///
    /// # Errors
    /// Damaged tensors; a plan without the thresholds it needs; a thread that cannot be started.
    pub fn from_packed(packed: &PackedModel, options: EngineOptions) -> Result<Self> {
        let (spec, plan) = (packed.spec().clone(), packed.plan().clone());
        Self::build(options, |weights, kernels, pool| {
            Model::build(spec, plan, packed, weights, kernels, pool)
        })
    }

    /// An engine over tensors in full precision. What `plan` quantizes is quantized here: with the learned scales
    /// (`*.weight_scale`) of a weight where there are any, to nearest otherwise.
    ///
    /// # Errors
    /// A spec or plan that is not valid, learned scales of some weights only, missing, misshaped or non-finite tensors, a thread that cannot be started.
    pub fn from_parts(
        spec: &ModelSpec,
        plan: &QuantPlan,
        tensors: &(dyn TensorSource + Sync),
        options: EngineOptions,
    ) -> Result<Self> {
        // All or none: a scale is never made up beside learned ones.
        stored_scales(tensors, spec, plan)?;
        let (spec, plan) = (spec.clone(), plan.clone());
        Self::build(options, |weights, kernels, pool| {
            Model::build(spec, plan, &Unpacked(tensors), weights, kernels, pool)
        })
    }

    fn build(
        options: EngineOptions,
        model: impl FnOnce(Weights, &'static Kernels, &Pool) -> Result<Model>,
    ) -> Result<Self> {
        let kernels = match options.kernels {
            Some(kernels) => kernels,
            None => Kernels::from_environment()?.unwrap_or_else(Kernels::detect),
        };
        let pool = Arc::new(Pool::new(thread_count(options.threads))?);
        Ok(Self { model: Arc::new(model(options.weights, kernels, &pool)?), pool })
    }

    /// The same weights with another number of threads (0: one for each core).
    ///
    /// # Errors
    /// A thread that cannot be started.
    pub fn with_threads(&self, threads: usize) -> Result<Self> {
        Ok(Self { model: self.model.clone(), pool: Arc::new(Pool::new(thread_count(threads))?) })
    }

    /// Architecture and sizes.
    pub fn spec(&self) -> &ModelSpec {
        &self.model.spec
    }

    /// Quantization plan; [`QuantPlan::full_precision`] for an unquantized model.
    pub fn plan(&self) -> &QuantPlan {
        &self.model.plan
    }

    /// Threads, the caller's included.
    pub fn threads(&self) -> usize {
        self.pool.threads()
    }

    /// Name of the kernels that do most of the work, such as `avx512vnni-w4a8` or `avx512vnni-f32`.
    pub fn kernel_name(&self) -> String {
        let (kernels, plan) = (self.model.kernels, &self.model.plan);
        let float = || match self.model.layers[0].qkv.weight.as_ref() {
            crate::linear::Weight::F16(_) => format!("{}-f16", kernels.name()),
            _ => format!("{}-f32", kernels.name()),
        };
        let weight_name = |bits: WeightBits| match bits {
            WeightBits::Ternary => "ternary".to_owned(),
            bits => format!("w{}", bits.name()),
        };
        match (plan.weight, plan.point(ActPoint::AttnIn)) {
            (None, _) => float(),
            (Some(scheme), None) => format!("{}-{}", kernels.name(), weight_name(scheme.bits)),
            (Some(scheme), Some(_)) => {
                let acts = plan.widths(ActPoint::AttnIn).iter().map(|bits| bits.bits().to_string());
                let acts: Vec<String> = acts.rev().collect();
                format!("{}-{}a{}", kernels.name(), weight_name(scheme.bits), acts.join("a"))
            }
        }
    }

    /// A session for one sequence of up to `max_position_embeddings` tokens.
    ///
    /// # Errors
    /// Out of memory.
    pub fn session(&self) -> Result<Session> {
        self.session_with(SessionOptions::default())
    }

    /// A session of given sizes.
    ///
    /// # Errors
    /// Sizes out of range.
    pub fn session_with(&self, options: SessionOptions) -> Result<Session> {
        Session::new(self.model.clone(), self.pool.clone(), options)
    }

    /// Buffers for feeding several sessions of this engine together, up to `rows` tokens at a time.
    ///
    /// # Errors
    /// `rows` out of range.
    pub fn batch(&self, rows: usize) -> Result<Batch> {
        Batch::new(self.model.clone(), self.pool.clone(), rows)
    }

    /// Runs requests of this engine together.
    ///
    /// # Errors
    /// Options out of range.
    pub fn scheduler(&self, options: SchedulerOptions) -> Result<Scheduler> {
        Scheduler::new(self.model.clone(), self.pool.clone(), options)
    }

    /// Memory of the weights, and of a session if one is given.
    pub fn memory(&self, session: Option<&Session>) -> Memory {
        Memory {
            weights: self.model.weight_bytes(),
            cache: session.map_or(0, Session::cache_bytes),
            scratch: session.map_or(0, Session::scratch_bytes),
        }
    }

    /// Generates from a prompt in a session of its own; see [`Session::generate`].
    ///
    /// # Errors
    /// As [`Session::generate`].
    pub fn generate(
        &self,
        prompt: &[u32],
        options: &GenerateOptions,
        on_token: impl FnMut(u32) -> bool,
    ) -> Result<Generation> {
        let limit = self.spec().max_position_embeddings.min(squat_kernels::MAX_CONTEXT);
        let wanted = prompt.len().saturating_add(options.max_tokens).clamp(1, limit);
        let options_session = SessionOptions { capacity: Some(wanted), ..SessionOptions::default() };
        self.session_with(options_session)?.generate(prompt, options, on_token)
    }

    /// Which activation bits each token of a prompt gets, `[layer][token]`.
    ///
    /// # Errors
    /// As [`Session::prefill`].
    pub fn token_bits(&self, tokens: &[u32]) -> Result<Vec<Vec<ActBits>>> {
        let mut session = self.sized_session(tokens.len())?;
        session.record_token_bits(true);
        session.prefill(tokens)?;
        Ok(session.token_bits().map(<[_]>::to_vec).unwrap_or_default())
    }

    /// A session for exactly that many tokens.
    fn sized_session(&self, tokens: usize) -> Result<Session> {
        self.check_length(tokens)?;
        self.session_with(SessionOptions { capacity: Some(tokens.max(1)), ..SessionOptions::default() })
    }

    fn check_length(&self, tokens: usize) -> Result<()> {
        let max_positions = self.spec().max_position_embeddings;
        let capacity = max_positions.min(squat_kernels::MAX_CONTEXT);
        if tokens > capacity {
            return Err(EngineError::TooLong { asked: tokens, capacity, max_positions });
        }
        Ok(())
    }

    /// Natural-log probabilities of given tokens.
    ///
    /// For each sequence of `n >= 2` ids (position 0 is BOS and is not scored) `n - 1` values, value `i` being
    /// `ln p(token[i + 1] | token[0..=i])`. Sequences are shared out over the threads, each computed whole by one of
    /// them: the values depend neither on the number of threads nor on the other sequences.
    ///
    /// # Errors
    /// A sequence of fewer than two tokens or more than the model takes, an id outside the vocabulary, logits that
    /// are not finite: that of the first sequence with an error.
    pub fn log_likelihoods(&self, sequences: &[&[u32]]) -> Result<Vec<Vec<f32>>> {
        let mut longest = 0;
        for sequence in sequences {
            if sequence.len() < 2 {
                return Err(EngineError::Empty {
                    what: "a sequence to score",
                    expected: "two tokens, BOS and one more",
                });
            }
            self.check_length(sequence.len())?;
            check_ids(sequence, self.spec().vocab_size)?;
            longest = longest.max(sequence.len());
        }
        if sequences.is_empty() {
            return Ok(Vec::new());
        }
        let solo = Arc::new(Pool::new(1)?);
        let options = SessionOptions { capacity: Some(longest), ..SessionOptions::default() };
        let workers = self.pool.threads().min(sequences.len());
        let sessions: Vec<Mutex<Session>> = (0..workers)
            .map(|_| Session::new(self.model.clone(), solo.clone(), options).map(Mutex::new))
            .collect::<Result<_>>()?;
        let mut results: Vec<Result<Vec<f32>>> = sequences.iter().map(|_| Ok(Vec::new())).collect();
        // A session is free whenever a worker takes a sequence: there are as many as workers that can be busy.
        let free = Mutex::new((0..workers).collect::<Vec<usize>>());
        self.pool.for_each(sequences.iter().zip(&mut results), |_, (sequence, result)| {
            let index = lock(&free).pop().expect("as many sessions as sequences in progress");
            *result = score(&self.model, &mut lock(&sessions[index]), sequence);
            lock(&free).push(index);
        });
        results.into_iter().collect()
    }
}

/// The number of threads to use; 0 means one for each core.
fn thread_count(threads: usize) -> usize {
    match threads {
        0 => std::thread::available_parallelism().map_or(1, |n| n.get()),
        threads => threads,
    }
}

fn score(model: &Model, session: &mut Session, sequence: &[u32]) -> Result<Vec<f32>> {
    session.reset();
    let mut values = Vec::with_capacity(sequence.len() - 1);
    session.for_each_logits(&sequence[..sequence.len() - 1], |index, logits| {
        values.push(model.kernels.log_softmax_at(logits, sequence[index + 1] as usize) as f32);
    })?;
    Ok(values)
}
