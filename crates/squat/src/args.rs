//! The arguments of the command line.

use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{Args, Parser, Subcommand};
use squat_eval::Form;
use squat_eval::tasks::task_names;
use squat_model::{ModelError, QuantPlan};
use std::path::PathBuf;

/// A plan's name, checked.
fn plan_name(name: &str) -> Result<String, ModelError> {
    QuantPlan::named(name).map(|_| name.to_owned())
}

/// A size of a vocabulary, checked.
#[cfg(feature = "train")]
fn vocab_size(text: &str) -> Result<usize, String> {
    let largest = squat_data::tokenizer::LARGEST;
    text.parse()
        .ok()
        .filter(|size| *size <= largest)
        .ok_or_else(|| format!("expected a number of at most {largest}"))
}

/// A number of tokens that are kept in memory, checked.
#[cfg(feature = "train")]
fn minutes(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(number) if (0.1..=1e5).contains(&number) => Ok(number),
        _ => Err("expected a number from 0.1 to 100000".to_owned()),
    }
}

/// A number of bytes: `60000000`, `60MB` or `60M`.
#[cfg(feature = "train")]
fn bytes(text: &str) -> Result<u64, String> {
    let digits = text.trim_end_matches(|c: char| !c.is_ascii_digit());
    let factor = match &text[digits.len()..] {
        "" | "B" => 1,
        "k" | "kB" => 1_000,
        "M" | "MB" => 1_000_000,
        "G" | "GB" => 1_000_000_000,
        _ => 0,
    };
    let number = text.parse::<f64>().or_else(|_| digits.parse::<f64>());
    let number =
        number.ok().map(|number| number * factor as f64).filter(|number| (1.0..1e15).contains(number));
    number.map(|number| number as u64).ok_or_else(|| "expected a number of bytes, such as 60MB".to_owned())
}

#[cfg(feature = "train")]
fn tokens(text: &str) -> Result<usize, String> {
    const MOST: usize = 1 << 24;
    let number = text.parse().ok().filter(|number| (1..=MOST).contains(number));
    number.ok_or_else(|| format!("expected a number of tokens from 1 to {MOST}"))
}

/// Small language models at 4 bits and below on ordinary CPUs: train, evaluate, pack, run.
#[derive(Parser, Debug)]
#[command(name = "squat", version, propagate_version = true)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Subcommand, Debug)]
pub enum Command {
    /// Run everything on built-in data: tokenizer, teacher, student, quantization-aware training, packing, text.
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
    /// Train from a recipe: pretraining, distillation, quantization-aware training.
    #[cfg(feature = "train")]
    Train(Train),
    /// Quantize a model that was trained in full precision, better than by rounding: codes and scales of least output error.
    #[cfg(feature = "train")]
    Quantize(Quantize),
    /// Measure what each layer and each activation point costs when it alone is quantized.
    #[cfg(feature = "train")]
    Sensitivity(Sensitivity),
    /// Pack a model to integers: a trained one with its learned scales, any other by rounding to nearest.
    Pack(Pack),
    /// Evaluate a model: minimal pairs, perplexity.
    Eval(Eval),
    /// Generate text.
    Generate(Generate),
    /// Measure speed.
    Bench(Bench),
    /// Show the tensors, sizes, quantization plan and thresholds of a model.
    Inspect(Inspect),
    /// Show the speed limits of this machine and the kernels in use.
    Doctor(Doctor),
    /// Print the completions of a shell.
    #[cfg(feature = "manual")]
    Completions(Completions),
    /// Print the manual page of the program, or of a verb.
    #[cfg(feature = "manual")]
    Man(Man),
}

#[cfg(feature = "manual")]
#[derive(Args, Debug)]
#[command(after_help = "Examples:\n  squat completions bash")]
pub struct Completions {
    /// The shell.
    pub shell: clap_complete::Shell,
}

#[cfg(feature = "manual")]
#[derive(Args, Debug)]
#[command(after_help = "Examples:\n  squat man pack")]
pub struct Man {
    /// The verb, such as `pack` or `data prepare`; the program itself if absent.
    pub verb: Vec<String>,
}

#[cfg(feature = "train")]
#[derive(Args, Debug)]
#[command(after_help = "Examples:\n  squat quickstart --out first --seed 2")]
pub struct Quickstart {
    /// Folder for all results; an interrupted quickstart is continued.
    #[arg(long, default_value = "quickstart")]
    pub out: PathBuf,
    /// Replace a quickstart that the folder holds, and whatever else has its names there.
    #[arg(long)]
    pub force: bool,
    /// Seed of the data, the weights and the sampling.
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Change a value of the built-in recipe, such as `--set stage.teacher.steps=100`. May be repeated.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub settings: Vec<String>,
    /// Threads; 0 uses one per core.
    #[arg(short, long, default_value_t = 0)]
    pub threads: usize,
    /// Print one JSON object instead of a table.
    #[arg(long)]
    pub json: bool,
}

#[cfg(feature = "train")]
#[derive(Subcommand, Debug)]
pub enum Data {
    /// Clean and tokenize texts into token shards.
    Prepare(DataPrepare),
    /// Join the parts written by `prepare --shard I/N`.
    Merge(DataMerge),
}

#[cfg(feature = "train")]
#[derive(Args, Debug)]
#[command(after_help = "Examples:\n  squat data merge shards")]
pub struct DataMerge {
    /// The folder given to `prepare` as --out.
    pub out: PathBuf,
    /// Replace what the output folder holds even if squat did not write it; files with other names stay.
    #[arg(long)]
    pub force: bool,
    /// Print one JSON object instead of a table.
    #[arg(long)]
    pub json: bool,
}

#[cfg(feature = "train")]
#[derive(Args, Debug)]
#[command(after_help = "Examples:\n  squat data prepare texts --tokenizer tokenizer --out shards")]
pub struct DataPrepare {
    /// Text files (.txt, .gz, .jsonl) or folders of them.
    #[arg(required = true)]
    pub inputs: Vec<PathBuf>,
    /// Tokenizer folder or tokenizer.json.
    #[arg(long)]
    pub tokenizer: PathBuf,
    /// Folder for the shards.
    #[arg(long)]
    pub out: PathBuf,
    /// Replace what the output folder holds even if squat did not write it; files with other names stay.
    #[arg(long)]
    pub force: bool,
    /// Which files of a folder to read, by their names: train, dev, test or all.
    #[arg(long, default_value = "train", value_parser = ["train", "dev", "test", "valid", "validation", "all"], hide_possible_values = true)]
    pub split: String,
    /// Prepare only part I of N, counted from 0, as one job of an array; `data merge` joins the parts.
    #[arg(long, value_name = "I/N")]
    pub shard: Option<String>,
    /// Print one JSON object instead of a table.
    #[arg(long)]
    pub json: bool,
}

#[cfg(feature = "train")]
#[derive(Subcommand, Debug)]
pub enum Tokenizer {
    /// Train a byte-level BPE tokenizer on texts.
    Train(TokenizerTrain),
}

#[cfg(feature = "train")]
#[derive(Args, Debug)]
#[command(after_help = "Examples:\n  squat tokenizer train texts --vocab-size 300 --out tokenizer")]
pub struct TokenizerTrain {
    /// Text files (.txt, .gz, .jsonl) or folders of them.
    #[arg(required = true)]
    pub inputs: Vec<PathBuf>,
    /// Size of the vocabulary.
    #[arg(long, default_value_t = 16_000, value_parser = vocab_size)]
    pub vocab_size: usize,
    /// Folder for tokenizer.json.
    #[arg(long)]
    pub out: PathBuf,
    /// Replace what the output folder holds even if squat did not write it; files with other names stay.
    #[arg(long)]
    pub force: bool,
    /// Which files of a folder to read, by their names: train, dev, test or all.
    #[arg(long, default_value = "train", value_parser = ["train", "dev", "test", "valid", "validation", "all"], hide_possible_values = true)]
    pub split: String,
    /// Print one JSON object instead of a line.
    #[arg(long)]
    pub json: bool,
}

#[cfg(feature = "train")]
#[derive(Args, Debug)]
#[command(after_help = "Examples:\n  squat train recipe.toml --out run")]
pub struct Train {
    /// Recipe (TOML file).
    pub recipe: PathBuf,
    /// Change a value of the recipe, such as `--set stage.fp.steps=100`. May be repeated.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub settings: Vec<String>,
    /// Folder of the run [default: runs/NAME].
    #[arg(long)]
    pub out: Option<PathBuf>,
    /// Continue a run where it stopped.
    #[arg(long)]
    pub resume: bool,
    /// Replace a run that the folder holds, and whatever else has its names there.
    #[arg(long, conflicts_with = "resume")]
    pub force: bool,
    /// Device to compute on: cpu, or cuda, vulkan, metal, wgpu in a build with the feature of that name.
    #[arg(long, default_value = "cpu")]
    pub device: String,
    /// Threads; 0 uses one per core, divided among the processes on this machine.
    #[arg(short, long, default_value_t = 0)]
    pub threads: usize,
    /// Print at the end how a step spends its time and memory.
    #[arg(long)]
    pub profile: bool,
    /// Seconds to wait for the other processes that a launcher (torchrun, srun, mpirun) started, and for a
    /// heartbeat of each one later.
    #[arg(long, default_value_t = 300.0, value_name = "SECONDS")]
    pub peer_timeout: f64,
    /// Print one JSON object instead of the folder of the run.
    #[arg(long)]
    pub json: bool,
}

#[cfg(feature = "train")]
#[derive(Args, Debug)]
#[command(after_help = "Examples:\n  squat quantize my-model --tokens 2048 --eval-tokens 512 --out small-w4")]
pub struct Quantize {
    /// Model to quantize: Hugging Face folder, GGUF file, or a run or checkpoint in full precision.
    pub model: PathBuf,
    /// Folder for the packed model.
    #[arg(long)]
    pub out: PathBuf,
    /// Replace what the output folder holds even if squat did not write it; files with other names stay.
    #[arg(long)]
    pub force: bool,
    /// Text like that which the model will see, to calibrate on: a file, or a folder of .txt, .raw and .gz files. Its end is
    /// held out, to measure on, unless --held-out is given. If absent, the model writes its own text.
    #[arg(long, conflicts_with = "data_free")]
    pub data: Option<PathBuf>,
    /// Calibrate on text that the model writes itself; the default without --data.
    #[arg(long)]
    pub data_free: bool,
    /// Text to measure on, before and after; never calibrated on.
    #[arg(long, value_name = "TEXT")]
    pub held_out: Option<PathBuf>,
    /// Quantization plan: w8, w4, wWaA with W in 8, 4, 3, 2 and A in 8, 4, ternary-a8; rhoN or wW-rhoN with 8-bit activations for
    /// N percent of the tokens, else 4; with -gN one scale for every N inputs, with -t4 embedding and head in 4 bits.
    #[arg(long, value_parser = plan_name, default_value = "w4a8")]
    pub plan: String,
    /// Most bytes of the packed weights: each layer gets 8, 4, 3 or 2 bits, wherever they save most by what `squat sensitivity`
    /// measures; --plan says everything else.
    #[arg(long, value_name = "N", value_parser = bytes)]
    pub target_bytes: Option<u64>,
    /// What finds codes and scales: all, none (rounding to nearest), or some of rotate, migrate, clip, scales, compensate, refine,
    /// correct, joined by commas.
    #[arg(long, default_value = "all")]
    pub methods: squat_train::start::Methods,
    /// Tokens to calibrate on; more take longer. Without it 16384, or what fits into --minutes, up to 32768.
    #[arg(long, value_name = "N", value_parser = tokens)]
    pub tokens: Option<usize>,
    /// Held-out tokens to measure on. Without it 8192, or what fits into --minutes.
    #[arg(long, value_name = "N", value_parser = tokens)]
    pub eval_tokens: Option<usize>,
    /// Minutes for everything; what is left after the first codes are found is used to train on what the original says.
    /// Without it there is no training.
    #[arg(long, value_name = "N", value_parser = minutes)]
    pub minutes: Option<f64>,
    /// Seed of the choice of text, and of the text that the model writes.
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Threads; 0 uses one per core.
    #[arg(short, long, default_value_t = 0)]
    pub threads: usize,
    /// Print one JSON object instead of a table.
    #[arg(long)]
    pub json: bool,
}

#[cfg(feature = "train")]
#[derive(Args, Debug)]
#[command(
    after_help = "Examples:\n  squat sensitivity my-model --tokens 64\n  squat sensitivity my-model --plan w2a8 --tokens 64 --methods none"
)]
pub struct Sensitivity {
    /// Model in full precision: Hugging Face folder, GGUF file, or a run or checkpoint.
    pub model: PathBuf,
    /// Quantization plan, as for `squat quantize`.
    #[arg(long, value_parser = plan_name, default_value = "w4a8")]
    pub plan: String,
    /// Text to measure on: a file, or a folder of .txt, .raw and .gz files. If absent, English that comes with the program.
    #[arg(long)]
    pub data: Option<PathBuf>,
    /// Tokens to measure on, from the beginning of the text.
    #[arg(long, value_name = "N", default_value_t = 512, value_parser = tokens)]
    pub tokens: usize,
    /// Whether the model is rotated first, as `squat quantize` does: all or none.
    #[arg(long, default_value = "all")]
    pub methods: squat_train::start::Methods,
    /// Threads; 0 uses one per core.
    #[arg(short, long, default_value_t = 0)]
    pub threads: usize,
    /// Print one JSON object instead of a table.
    #[arg(long)]
    pub json: bool,
}

#[derive(Args, Debug)]
#[command(after_help = "Examples:\n  squat pack my-model --plan w8a8 --out small")]
pub struct Pack {
    /// Model to pack: run, checkpoint, Hugging Face folder or GGUF file.
    pub run: PathBuf,
    /// Folder for the packed model.
    #[arg(long)]
    pub out: PathBuf,
    /// Replace what the output folder holds even if squat did not write it; files with other names stay.
    #[arg(long)]
    pub force: bool,
    /// Quantization plan for a model that was not trained with one (rounds to nearest): w8, w4, wWaA with W in 8, 4,
    /// 3, 2 and A in 8, 4, ternary-a8; with -gN one scale for every N inputs, with -t4 embedding and head in 4 bits.
    #[arg(long, value_parser = plan_name)]
    pub plan: Option<String>,
    /// Print one JSON object instead of a table.
    #[arg(long)]
    pub json: bool,
}

#[derive(Args, Debug)]
#[command(
    after_help = "Examples:\n  squat eval my-model --task perplexity --data text.txt\n  squat eval small --task pairs --data pairs --json"
)]
pub struct Eval {
    /// Model to evaluate: packed folder, Hugging Face folder, GGUF file, run or checkpoint.
    pub model: PathBuf,
    /// Task: accuracy on minimal pairs, or the perplexity of text.
    #[arg(long, value_parser = PossibleValuesParser::new(task_names()))]
    pub task: String,
    /// Data of the task: an archive, a folder or a .jsonl file of pairs; for perplexity a text file, a folder of them, or
    /// prepared shards.
    #[arg(long)]
    pub data: PathBuf,
    /// Form to run: fp (weights without quantizers), fake (the training forward pass) or packed; the form that the
    /// model is stored in if absent.
    #[arg(long, value_parser = PossibleValuesParser::new(Form::ALL.map(Form::as_str)).try_map(|form| form.parse::<Form>()))]
    pub form: Option<Form>,
    /// Minimal pairs: only the first N of each paradigm.
    #[arg(long, value_name = "N")]
    pub limit: Option<usize>,
    /// Perplexity: tokens of a window, BOS included; 512 if absent, or the maximum of the model if that is less.
    #[arg(long, value_name = "N")]
    pub context: Option<usize>,
    /// Perplexity: tokens scored in each window, after others that are only context; all tokens after BOS if absent, so
    /// that windows do not overlap.
    #[arg(long, value_name = "N")]
    pub stride: Option<usize>,
    /// Threads; 0 uses one per core.
    #[arg(short, long, default_value_t = 0)]
    pub threads: usize,
    /// Print one JSON object instead of a table.
    #[arg(long)]
    pub json: bool,
}

#[derive(Args, Debug)]
#[command(
    after_help = "Examples:\n  squat generate small --prompt \"Once upon a time\"\n  squat generate small --prompt-file prompt.txt --temperature 0 --max-tokens 20"
)]
pub struct Generate {
    /// Model to run: packed folder, Hugging Face folder, GGUF file, run or checkpoint.
    pub model: PathBuf,
    /// Text to continue; `-` reads it from standard input.
    #[arg(long, default_value = "", allow_hyphen_values = true)]
    pub prompt: String,
    /// File with the text to continue; one line end at its end is left out.
    #[arg(long, value_name = "FILE", conflicts_with = "prompt")]
    pub prompt_file: Option<PathBuf>,
    /// Maximum number of tokens to generate.
    #[arg(long, default_value_t = 100)]
    pub max_tokens: usize,
    /// Sampling temperature; 0 is greedy [default: that of a generation_config.json with do_sample or of a GGUF file, else 0.8].
    #[arg(long, allow_negative_numbers = true)]
    pub temperature: Option<f32>,
    /// Sample from the k likeliest tokens only; 0 keeps all [default: as the temperature, else 0].
    #[arg(long)]
    pub top_k: Option<usize>,
    /// Sample from the likeliest tokens that together have this probability [default: as the temperature, else 0.95].
    #[arg(long, allow_negative_numbers = true)]
    pub top_p: Option<f32>,
    /// Seed of the sampler.
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Threads; 0 uses one per core.
    #[arg(short, long, default_value_t = 0)]
    pub threads: usize,
    /// Print one JSON object instead of the text as it comes.
    #[arg(long)]
    pub json: bool,
}

#[derive(Args, Debug)]
#[command(
    after_help = "Examples:\n  squat bench small --compare my-model\n  squat bench --random tiny -p 16 -n 16"
)]
pub struct Bench {
    /// Model to measure: packed folder, Hugging Face folder, GGUF file, run or checkpoint; or use --random.
    #[cfg_attr(feature = "train", arg(required_unless_present_any = ["random", "train"], conflicts_with = "random"))]
    #[cfg_attr(not(feature = "train"), arg(required_unless_present = "random", conflicts_with = "random"))]
    pub model: Option<PathBuf>,
    #[cfg(feature = "train")]
    #[command(flatten)]
    pub training: BenchTrain,
    /// Measure random weights of a known shape instead: llama-58m, smollm2-135m, gpt2-97m, llama-6m, tiny.
    #[arg(long, value_name = "SHAPE")]
    pub random: Option<String>,
    /// How to run a model that is not packed: f32, f16, or a quantization plan such as w8a8, w4a8, w4a4, rho50; -t4
    /// puts embedding and head in 4 bits too (w4a8-t4), -g64 gives every 64 inputs a scale (w4a8-g64). With --train, which
    /// the full build has: fp, or the plan to train with every term of the loss.
    #[arg(long)]
    pub scheme: Option<String>,
    /// Tokens of the prompt test (pp); 0 skips it.
    #[arg(short = 'p', long, default_value_t = 128)]
    pub prompt: usize,
    /// Tokens of the generation test (tg); 0 skips it.
    #[arg(short = 'n', long, default_value_t = 128)]
    pub generate: usize,
    /// Tokens in the cache before each test begins.
    #[arg(short, long, default_value_t = 0)]
    pub depth: usize,
    /// Sequences decoded together in the generation test, one number or several: 1,4,16. With --train: sequences of a
    /// step, 4 if absent.
    #[arg(short, long, value_name = "N", value_delimiter = ',', default_value = "1")]
    #[cfg_attr(
        feature = "train",
        arg(default_value_if("train", clap::builder::ArgPredicate::IsPresent, "4"))
    )]
    pub batch: Vec<usize>,
    /// Threads, one number or several: 1,2; 0 uses one per core.
    #[arg(short, long, default_value = "0", value_delimiter = ',')]
    pub threads: Vec<usize>,
    /// Repetitions of each test; the median is printed.
    #[arg(short, long, default_value_t = 5)]
    pub repeat: usize,
    /// Other models, or other schemes of this one, to measure in turns; ratios to the first are printed.
    #[arg(long, num_args = 1.., value_name = "MODEL_OR_SCHEME")]
    pub compare: Vec<String>,
    /// Print a JSON list instead of a table.
    #[arg(long)]
    pub json: bool,
    /// Print comma-separated values instead of a table.
    #[arg(long, conflicts_with = "json")]
    pub csv: bool,
}

/// Options that measure a training step, on random data.
#[cfg(feature = "train")]
#[derive(Args, Debug)]
pub struct BenchTrain {
    /// Measure a training step of a model of this shape instead.
    #[arg(long, value_name = "SHAPE", conflicts_with_all = ["model", "random"])]
    pub train: Option<String>,
    /// With --train: tokens per sequence.
    #[arg(long, default_value_t = 128, requires = "train")]
    pub seq: usize,
    /// With --train: keep only the input of each layer for the backward pass and recompute the rest.
    #[arg(long, requires = "train")]
    pub activation_checkpointing: bool,
    /// With --train: keep only the K likeliest tokens of the teacher at each position; 0 keeps all.
    #[arg(long, requires = "train", value_name = "K", default_value_t = 0)]
    pub teacher_top_k: usize,
    /// With --train: data type of the teacher's weights.
    #[arg(long, requires = "train", value_parser = ["f32", "bf16"], default_value = "f32")]
    pub teacher_dtype: String,
    /// With --train: print how a step spends its time.
    #[arg(long, requires = "train")]
    pub profile: bool,
}

#[derive(Args, Debug)]
#[command(after_help = "Examples:\n  squat inspect my-model")]
pub struct Inspect {
    /// Model to inspect: packed folder, Hugging Face folder, GGUF file, run or checkpoint.
    pub model: PathBuf,
    /// Prove that no file has changed since the model was written, by the checksums in its folder.
    #[arg(long)]
    pub verify: bool,
    /// Print one JSON object instead of a table.
    #[arg(long)]
    pub json: bool,
}

#[derive(Args, Debug)]
#[command(after_help = "Examples:\n  squat doctor")]
pub struct Doctor {
    /// Print one JSON object instead of a table.
    #[arg(long)]
    pub json: bool,
}
