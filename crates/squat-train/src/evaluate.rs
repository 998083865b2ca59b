//! Log-likelihoods and losses of a model in training form: full precision or fake-quantized.

use crate::checkpoint;
use crate::error::TrainError;
use crate::fake_quant::TokenBits;
use crate::model::{ForwardOptions, Model, ParamTensors};
use crate::parallel::{Group, ParallelError};
use crate::step::split;
use squat_data::Sequential;
use squat_kernels::Kernels;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

/// A model in training form that answers questions.
pub struct Evaluator {
    model: Model,
    params: ParamTensors,
    threads: usize,
    max_seq: usize,
}

/// Tokens that go through the model together at most.
const BLOCK: usize = 1024;

impl Evaluator {
    /// From a checkpoint folder; `fake` keeps its quantizers, otherwise only the weights are used.
    ///
    /// # Errors
    /// A folder that cannot be read; `fake` on a folder without a plan.
    pub fn load(path: &Path, fake: bool, threads: usize) -> Result<Self, TrainError> {
        let mut loaded = checkpoint::load(path)?;
        if fake && loaded.plan.is_none() {
            return Err(TrainError::Checkpoint {
                path: path.to_path_buf(),
                message: "has no quantization plan and thus no fake-quantized form; use --form fp, or the folder of \
                          a qat stage"
                    .into(),
            });
        }
        if !fake {
            loaded = loaded.without_quantizers();
        }
        let max_seq = loaded.spec.max_position_embeddings;
        // Tables for all positions of a long context take more memory than a small model: they grow with the sequences.
        let (model, params) = loaded.into_model(max_seq.min(BLOCK));
        Ok(Self { model, params, threads: threads.max(1), max_seq })
    }

    /// From parts.
    pub fn new(model: Model, params: ParamTensors, threads: usize, max_seq: usize) -> Self {
        Self { model, params, threads: threads.max(1), max_seq }
    }

    /// The model.
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// Longest sequence.
    pub fn max_seq(&self) -> usize {
        self.max_seq
    }

    fn check(&self, sequences: &[&[u32]]) -> Result<(), TrainError> {
        for (index, sequence) in sequences.iter().enumerate() {
            if sequence.len() > self.max_seq {
                return Err(TrainError::Input(format!(
                    "sequence {index} has {} tokens, the model takes at most {}",
                    sequence.len(),
                    self.max_seq
                )));
            }
            if let Some(id) = sequence.iter().find(|&&id| id as usize >= self.model.spec.vocab_size) {
                return Err(TrainError::Input(format!(
                    "token id {id} in sequence {index} is outside the vocabulary of {}; is it the model's tokenizer?",
                    self.model.spec.vocab_size
                )));
            }
        }
        Ok(())
    }

    /// Natural-log probabilities of tokens 1.. of each sequence, given the tokens before.
    ///
    /// Sequences of like length share a forward; none influences another.
    ///
    /// # Errors
    /// Ids outside the vocabulary, sequences too long.
    pub fn log_likelihoods(&self, sequences: &[&[u32]]) -> Result<Vec<Vec<f32>>, TrainError> {
        self.check(sequences)?;
        let mut order: Vec<usize> = (0..sequences.len()).filter(|&i| sequences[i].len() > 1).collect();
        order.sort_by_key(|&i| sequences[i].len());
        let mut blocks: Vec<Vec<usize>> = Vec::new();
        for index in order {
            let len = sequences[index].len() - 1;
            match blocks.last_mut() {
                Some(block) if (block.len() + 1) * len <= BLOCK => block.push(index),
                _ => blocks.push(vec![index]),
            }
        }
        let next = AtomicUsize::new(0);
        let found = std::sync::Mutex::new(vec![Vec::new(); sequences.len()]);
        std::thread::scope(|scope| {
            for _ in 0..self.threads {
                scope.spawn(|| {
                    while let Some(block) = blocks.get(next.fetch_add(1, Ordering::Relaxed)) {
                        let scored = self.block(sequences, block);
                        let mut found = found.lock().unwrap_or_else(|e| e.into_inner());
                        for (&index, scores) in block.iter().zip(scored) {
                            found[index] = scores;
                        }
                    }
                });
            }
        });
        Ok(found.into_inner().unwrap_or_else(|e| e.into_inner()))
    }

    fn block(&self, sequences: &[&[u32]], block: &[usize]) -> Vec<Vec<f32>> {
        let seq = block.iter().map(|&i| sequences[i].len() - 1).max().unwrap_or(0);
        // Padding comes after the sequence, where a causal model cannot see it.
        let ids: Vec<u32> = block
            .iter()
            .flat_map(|&i| {
                let inputs = &sequences[i][..sequences[i].len() - 1];
                inputs.iter().copied().chain(std::iter::repeat_n(0, seq - inputs.len()))
            })
            .collect();
        let output = self.model.reaching(seq).forward(
            &self.params,
            &ids,
            (block.len(), seq),
            &ForwardOptions::default(),
        );
        let data = output.logits.into_data();
        let logits = data.as_slice::<f32>().expect("logits are f32");
        let vocabulary = self.model.spec.vocab_size;
        block
            .iter()
            .enumerate()
            .map(|(row, &i)| {
                (1..sequences[i].len())
                    .map(|t| {
                        let at = (row * seq + t - 1) * vocabulary;
                        Kernels::detect()
                            .log_softmax_at(&logits[at..at + vocabulary], sequences[i][t] as usize)
                            as f32
                    })
                    .collect()
            })
            .collect()
    }

    /// Logits `[tokens, vocabulary]` of one sequence.
    ///
    /// # Errors
    /// Ids outside the vocabulary, a sequence too long or empty.
    pub fn logits(&self, ids: &[u32]) -> Result<Vec<f32>, TrainError> {
        self.check(&[ids])?;
        if ids.is_empty() {
            return Err(TrainError::Input("an empty sequence has no logits".into()));
        }
        let output = self.model.reaching(ids.len()).forward(
            &self.params,
            ids,
            (1, ids.len()),
            &ForwardOptions::default(),
        );
        Ok(output.logits.into_data().try_into_vec::<f32>().expect("logits are f32"))
    }

    /// Activation bits chosen for each token of one sequence, by layer.
    ///
    /// # Errors
    /// As [`Evaluator::logits`].
    pub fn token_bits(&self, ids: &[u32]) -> Result<Vec<TokenBits>, TrainError> {
        self.check(&[ids])?;
        Ok(self
            .model
            .reaching(ids.len())
            .forward(&self.params, ids, (1, ids.len()), &ForwardOptions::default())
            .bits)
    }
}

/// Mean cross-entropy of held-out sequences, nats per token, without distillation or any other term. Each process of the
/// group takes a part of them.
///
/// # Errors
/// A process of the group that is gone or failed.
pub fn held_out_loss(
    model: &Model,
    params: &ParamTensors,
    valid: &Sequential,
    sequences: u64,
    batch: usize,
    threads: usize,
    group: &Group,
) -> Result<f64, ParallelError> {
    let all: Vec<Vec<u32>> = valid.spread(sequences).filter(|s| s.len() > 1).collect();
    let mut by_length: Vec<&Vec<u32>> = all.iter().collect();
    by_length.sort_by_key(|s| s.len());
    let blocks: Vec<Vec<Vec<u32>>> = by_length
        .chunk_by(|a, b| a.len() == b.len())
        .flat_map(|same| same.chunks(batch.max(1)))
        .map(|block| block.iter().map(|s| (*s).clone()).collect())
        .collect();
    let (rank, world) = (group.rank(), group.world());
    let next = AtomicUsize::new(0);
    let sums = Mutex::new(vec![(0f64, 0usize); blocks.len()]);
    std::thread::scope(|scope| {
        for _ in 0..threads.max(1) {
            scope.spawn(|| {
                loop {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    let Some(block) = blocks.get(index) else { return };
                    if index % world != rank {
                        continue;
                    }
                    let (ids, targets, batch, seq) = split(block);
                    let output = model.forward(params, &ids, (batch, seq), &ForwardOptions::default());
                    let data = output.logits.into_data();
                    let logits = data.as_slice::<f32>().expect("logits are f32");
                    let vocabulary = model.spec.vocab_size;
                    let sum: f64 = targets
                        .iter()
                        .flatten()
                        .zip(logits.chunks_exact(vocabulary))
                        .map(|(&target, row)| -Kernels::detect().log_softmax_at(row, target as usize))
                        .sum();
                    sums.lock().unwrap_or_else(|e| e.into_inner())[index] = (sum, targets.len());
                }
            });
        }
    });
    let sums = sums.into_inner().unwrap_or_else(|e| e.into_inner());
    let bytes: Vec<u8> =
        sums.iter().flat_map(|&(sum, n)| [sum.to_bits(), n as u64]).flat_map(u64::to_le_bytes).collect();
    let all = group.gather(&bytes)?;
    let (mut total, mut count) = (0f64, 0u64);
    // In the order of the blocks, whichever process computed them.
    for index in 0..sums.len() {
        let from = index % world;
        let Some((sum, n)) = all[from].get(16 * index..16 * index + 16).and_then(|b| b.split_first_chunk())
        else {
            return Err(ParallelError::Disagree { what: "held-out text", rank: from, own: rank });
        };
        total += f64::from_bits(u64::from_le_bytes(*sum));
        count += n.first_chunk().map_or(0, |n| u64::from_le_bytes(*n));
    }
    Ok(total / count.max(1) as f64)
}
