//! The words on the command line.

use clap::{Args, Parser, Subcommand};
use std::path::PathBuf;

/// Small language models at 4 bits and below on the CPU you have: train, evaluate, pack, run.
#[derive(Parser, Debug)]
#[command(name = "squat", version, propagate_version = true)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Subcommand, Debug)]
pub enum Command {
    /// The whole way on built-in data: tokenizer, teacher, student, quantization-aware training, packing, text.
    #[cfg(feature = "train")]
    Quickstart(Quickstart),
    /// Prepare a corpus.
    #[cfg(feature = "train")]
    #[command(subcommand)]
    Data(Data),
    /// Train a tokenizer.
    #[cfg(feature = "train")]
    #[command(subcommand)]
    Tokenizer(Tokenizer),
    /// Train by a recipe: pretraining, distillation, quantization-aware training.
    #[cfg(feature = "train")]
    Train(Train),
    /// Pack a trained model to integers.
    Pack(Pack),
    /// Evaluate a model.
    Eval(Eval),
    /// Generate text.
    Generate(Generate),
    /// Measure speed.
    Bench(Bench),
    /// Show a model's plan, sizes and thresholds.
    Inspect(Inspect),
    /// Show what this machine can do and which kernels are used.
    Doctor(Doctor),
}

#[cfg(feature = "train")]
#[derive(Args, Debug)]
pub struct Quickstart {
    /// Folder for everything that is made.
    #[arg(long, default_value = "quickstart")]
    pub out: PathBuf,
    /// Seed of everything random.
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Threads; 0 is one for each core.
    #[arg(short, long, default_value_t = 0)]
    pub threads: usize,
    /// Print one JSON object instead of a table.
    #[arg(long)]
    pub json: bool,
}

#[cfg(feature = "train")]
#[derive(Subcommand, Debug)]
pub enum Data {
    /// Clean and tokenize texts into memory-mapped shards.
    Prepare(DataPrepare),
    /// Join the parts that `prepare --shard I/N` made.
    Merge(DataMerge),
}

#[cfg(feature = "train")]
#[derive(Args, Debug)]
pub struct DataMerge {
    /// Folder that was given to `prepare` as --out.
    pub out: PathBuf,
    /// Print one JSON object.
    #[arg(long)]
    pub json: bool,
}

#[cfg(feature = "train")]
#[derive(Args, Debug)]
pub struct DataPrepare {
    /// Files or folders: .txt, .gz, .jsonl.
    #[arg(required = true)]
    pub inputs: Vec<PathBuf>,
    /// Tokenizer folder or tokenizer.json.
    #[arg(long)]
    pub tokenizer: PathBuf,
    /// Folder for the shards.
    #[arg(long)]
    pub out: PathBuf,
    /// Which files of a folder: train, dev, test or all.
    #[arg(long, default_value = "train")]
    pub split: String,
    /// Prepare only part I of N (from 0), as one job of many; `data merge` joins them.
    #[arg(long, value_name = "I/N")]
    pub shard: Option<String>,
    /// Print one JSON object.
    #[arg(long)]
    pub json: bool,
}

#[cfg(feature = "train")]
#[derive(Subcommand, Debug)]
pub enum Tokenizer {
    /// Train byte-level BPE on texts.
    Train(TokenizerTrain),
}

#[cfg(feature = "train")]
#[derive(Args, Debug)]
pub struct TokenizerTrain {
    /// Files or folders: .txt, .gz, .jsonl.
    #[arg(required = true)]
    pub inputs: Vec<PathBuf>,
    /// Number of ids.
    #[arg(long, default_value_t = 16_000)]
    pub vocab_size: usize,
    /// Folder for tokenizer.json.
    #[arg(long)]
    pub out: PathBuf,
    /// Which files of a folder: train, dev, test or all.
    #[arg(long, default_value = "train")]
    pub split: String,
}

#[cfg(feature = "train")]
#[derive(Args, Debug)]
pub struct Train {
    /// Recipe, a TOML file.
    pub recipe: PathBuf,
    /// Change a value: `--set stage.fp.steps=100`. May be repeated.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub settings: Vec<String>,
    /// Folder of the run; `runs/NAME` if absent.
    #[arg(long)]
    pub out: Option<PathBuf>,
    /// Continue where the run stopped.
    #[arg(long)]
    pub resume: bool,
    /// Where to compute: cpu, or cuda, vulkan, metal, wgpu in a build with the feature of that name.
    #[arg(long, default_value = "cpu")]
    pub device: String,
    /// Threads; 0 is one for each core, shared among the processes of this machine.
    #[arg(short, long, default_value_t = 0)]
    pub threads: usize,
    /// Print at the end where the time and the memory of a step went.
    #[arg(long)]
    pub profile: bool,
    /// Seconds to wait for the other processes that a launcher (torchrun, srun, mpirun) started, and for a sign of
    /// life of each later.
    #[arg(long, default_value_t = 300.0, value_name = "SECONDS")]
    pub peer_timeout: f64,
}

#[derive(Args, Debug)]
pub struct Pack {
    /// Run folder, stage folder, or model folder.
    pub run: PathBuf,
    /// Folder for the packed model.
    #[arg(long)]
    pub out: PathBuf,
    /// Plan for a model that was not trained with quantization (round to nearest): w4a8, w4a4, w8a8, ...
    #[arg(long)]
    pub plan: Option<String>,
    /// Print one JSON object.
    #[arg(long)]
    pub json: bool,
}

#[derive(Args, Debug)]
pub struct Eval {
    /// Packed model, model folder, or run.
    pub model: PathBuf,
    /// blimp, supplement, pairs or perplexity.
    #[arg(long)]
    pub task: String,
    /// Data of the task: an archive, a folder or a file.
    #[arg(long)]
    pub data: PathBuf,
    /// fp, fake or packed; what the folder holds if absent.
    #[arg(long)]
    pub form: Option<String>,
    /// Only the first pairs of each file, or windows of so many tokens for perplexity.
    #[arg(long)]
    pub limit: Option<usize>,
    /// Threads; 0 is one for each core.
    #[arg(short, long, default_value_t = 0)]
    pub threads: usize,
    /// Print one JSON object.
    #[arg(long)]
    pub json: bool,
}

#[derive(Args, Debug)]
pub struct Generate {
    /// Packed model or model folder.
    pub model: PathBuf,
    /// Text to continue.
    #[arg(long, default_value = "")]
    pub prompt: String,
    /// Tokens to generate at most.
    #[arg(long, default_value_t = 100)]
    pub max_tokens: usize,
    /// 0 is greedy.
    #[arg(long, default_value_t = 0.8, allow_negative_numbers = true)]
    pub temperature: f32,
    /// Keep the k likeliest tokens; 0 keeps all.
    #[arg(long, default_value_t = 0)]
    pub top_k: usize,
    /// Keep the likeliest tokens up to this mass.
    #[arg(long, default_value_t = 0.95, allow_negative_numbers = true)]
    pub top_p: f32,
    /// Seed of the sampling.
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Threads; 0 is one for each core.
    #[arg(short, long, default_value_t = 0)]
    pub threads: usize,
}

#[derive(Args, Debug)]
pub struct Bench {
    /// Packed model, model folder or file; or none, with --random.
    #[cfg_attr(feature = "train", arg(required_unless_present_any = ["random", "train"], conflicts_with = "random"))]
    #[cfg_attr(not(feature = "train"), arg(required_unless_present = "random", conflicts_with = "random"))]
    pub model: Option<PathBuf>,
    #[cfg(feature = "train")]
    #[command(flatten)]
    pub training: BenchTrain,
    /// Random weights of a known shape: llama-58m, smollm2-135m, gpt2-97m, llama-6m, tiny.
    #[arg(long, value_name = "SHAPE")]
    pub random: Option<String>,
    /// How to run a model that is not packed: w4a8, w4a4, rho50, w8a8, w2a8, f16, f32, ...; w4a8-t4 for embedding and
    /// head in 4 bits too, w4a8-g64 for a scale for every 64 inputs. In a build with training, with --train: fp, or a plan that is trained with every term of the
    /// loss.
    #[arg(long)]
    pub scheme: Option<String>,
    /// Tokens of the prompt test; 0 leaves it out.
    #[arg(short = 'p', long, default_value_t = 128)]
    pub prompt: usize,
    /// Tokens of the generation test; 0 leaves it out.
    #[arg(short = 'n', long, default_value_t = 128)]
    pub generate: usize,
    /// Tokens in the cache before a test begins.
    #[arg(short, long, default_value_t = 0)]
    pub depth: usize,
    /// Sequences of the generation test that are decoded together, one number or several: 1,4,16. In a build with
    /// training, with --train: sequences of a step, 4 if absent.
    #[arg(short, long, value_name = "N", value_delimiter = ',', default_value = "1")]
    #[cfg_attr(
        feature = "train",
        arg(default_value_if("train", clap::builder::ArgPredicate::IsPresent, "4"))
    )]
    pub batch: Vec<usize>,
    /// Threads, one number or several: 1,2; 0 is one for each core.
    #[arg(short, long, default_value = "0", value_delimiter = ',')]
    pub threads: Vec<usize>,
    /// Repetitions; the median is printed.
    #[arg(short, long, default_value_t = 5)]
    pub repeat: usize,
    /// Other models, or other schemes of this one: all run in turns, and ratios to the first are printed.
    #[arg(long, num_args = 1.., value_name = "MODEL_OR_SCHEME")]
    pub compare: Vec<String>,
    /// Print a JSON list.
    #[arg(long)]
    pub json: bool,
    /// Print comma-separated values.
    #[arg(long, conflicts_with = "json")]
    pub csv: bool,
}

/// The speed of a training step instead, on random data.
#[cfg(feature = "train")]
#[derive(Args, Debug)]
pub struct BenchTrain {
    /// Measure a training step of a model of such a shape instead.
    #[arg(long, value_name = "SHAPE", conflicts_with_all = ["model", "random"])]
    pub train: Option<String>,
    /// With --train: tokens of a sequence.
    #[arg(long, default_value_t = 128, requires = "train")]
    pub seq: usize,
    /// With --train: keep only the input of each layer for the backward pass, and compute the rest again.
    #[arg(long, requires = "train")]
    pub activation_checkpointing: bool,
    /// With --train: keep only so many of the teacher's likeliest tokens at each position; 0 keeps all.
    #[arg(long, requires = "train", value_name = "K", default_value_t = 0)]
    pub teacher_top_k: usize,
    /// With --train: how the teacher's weights are held.
    #[arg(long, requires = "train", value_parser = ["f32", "bf16"], default_value = "f32")]
    pub teacher_dtype: String,
    /// With --train: print where the time goes.
    #[arg(long, requires = "train")]
    pub profile: bool,
}

#[derive(Args, Debug)]
pub struct Inspect {
    /// Packed model, model folder, or run.
    pub model: PathBuf,
    /// Print one JSON object.
    #[arg(long)]
    pub json: bool,
}

#[derive(Args, Debug)]
pub struct Doctor {
    /// Print one JSON object.
    #[arg(long)]
    pub json: bool,
}
