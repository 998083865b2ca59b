//! The functions of [`TARGETS`], and their seeds.

use crate::Target;
use flate2::Compression;
use flate2::write::GzEncoder;
use squat_data::tokenizer::{TokenizerOptions, save, train_on_lines};
use squat_data::{CleanOptions, Corpus, PrepareOptions, Split, TokenShards, prepare};
use squat_engine::{Engine, EngineOptions};
use squat_eval::{PairSet, task};
use squat_files::sums::{SUMS, Sums};
use squat_model::{
    FolderContents, ModelFolder, ModelSpec, ModelSummary, OpenedModel, QuantPlan, TensorSource, Tensors,
    Tokenizer, TokenizerFiles, WeightDtype, write_folder,
};
use squat_test::model::{gpt2, llama, qwen2, qwen3, tensors};
use squat_train::checkpoint::State;
use squat_train::model::initial_parameters;
use squat_train::optimizer::Moments;
use squat_train::quantizer::default_quantizer;
use squat_train::{Recipe, checkpoint as training};
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

const MB: usize = 1 << 20;

/// A list of the parameters of 1,000 layers, the most that a model may say it has.
const LIST: usize = 4 * MB;

/// All targets.
pub const TARGETS: [Target; 16] = [
    Target { name: "archive", read: archive, seeds: archives, floor: MB },
    Target { name: "checkpoint", read: state, seeds: states, floor: MB },
    Target { name: "config", read: config, seeds: configs, floor: LIST },
    Target { name: "gguf", read: gguf, seeds: ggufs, floor: LIST },
    Target { name: "llama2c", read: llama2c, seeds: llama2cs, floor: LIST },
    Target { name: "packed", read: packed, seeds: packeds, floor: LIST },
    Target { name: "pairs", read: pairs, seeds: pairs_seeds, floor: MB },
    Target { name: "prefix", read: prefix, seeds: prefixes, floor: MB },
    Target { name: "protocol", read: squat_train::parallel::read_foreign, seeds: protocols, floor: MB },
    Target { name: "recipe", read: recipe, seeds: recipes, floor: MB },
    Target { name: "safetensors", read: safetensors, seeds: all_safetensors, floor: LIST },
    Target { name: "sentencepiece", read: sentencepiece, seeds: sentencepieces, floor: 8 * MB },
    Target { name: "shards", read: shards, seeds: manifests, floor: MB },
    Target { name: "sums", read: sums, seeds: all_sums, floor: MB },
    Target { name: "text", read: text, seeds: texts, floor: MB },
    Target { name: "tokenizer", read: tokenizer, seeds: tokenizers, floor: 8 * MB },
];

/// Writes a file of the target's folder.
fn put(folder: &Path, name: &str, bytes: &[u8]) -> PathBuf {
    let path = folder.join(name);
    fs::write(&path, bytes).unwrap();
    path
}

/// The two halves of an input that stands for two files; the first is text.
fn halves(bytes: &[u8]) -> (&[u8], &[u8]) {
    match bytes.iter().position(|&byte| byte == 0) {
        Some(at) => (&bytes[..at], &bytes[at + 1..]),
        None => (bytes, &[]),
    }
}

fn joined(first: &[u8], second: &[u8]) -> Vec<u8> {
    [first, &[0], second].concat()
}

/// What `squat inspect` and `squat generate` do with a model of any kind.
fn use_model(path: &Path) {
    let Ok(model) = squat_model::open(path) else { return };
    let _ = ModelSummary::of(&model);
    let _ = model.not_finite();
    let _ = model.tokenizer().map(|tokenizer| use_tokenizer(&tokenizer));
    if small(&model)
        && let Ok(engine) = Engine::from_model(&model, EngineOptions::threads(1))
    {
        let _ = engine.log_likelihoods(&[&[1, 0, 2]]);
    }
}

/// Whether computing with a model is a matter of milliseconds. That large ones take long is no defect.
fn small(model: &OpenedModel) -> bool {
    let spec = model.spec();
    spec.parameters().iter().map(|param| param.shape.iter().product::<usize>()).sum::<usize>() < 1 << 17
        && spec.num_hidden_layers < 8
        && spec.max_position_embeddings < 1 << 20
}

fn use_tokenizer(tokenizer: &Tokenizer) {
    let _ = tokenizer.encode_prompt("<s>A cat's 3 é\n");
    let _ = tokenizer.decode(&[1, 0, 7, 36, 2, 5]);
    let mut stream = tokenizer.stream();
    for id in [3, 4, 36] {
        let _ = stream.push(id);
    }
    let _ = stream.finish();
}

fn contents<'a>(
    spec: &'a ModelSpec,
    tensors: &'a Tensors,
    tokenizer: &'a TokenizerFiles,
) -> FolderContents<'a> {
    FolderContents {
        spec,
        plan: None,
        tensors,
        dtype: WeightDtype::F32,
        tokenizer,
        generation: None,
        extra_files: &[],
    }
}

/// Random parameters, and nothing else.
fn weights(spec: &ModelSpec, seed: u64) -> Tensors {
    let all = tensors(spec, seed);
    let mut found = Tensors::new();
    for param in spec.parameters() {
        found.insert(param.name.clone(), &param.shape, all.read_f32(&param.name).unwrap()).unwrap();
    }
    found
}

/// Model folders of each architecture and type, and one with a plan.
fn folders(folder: &Path) -> Vec<PathBuf> {
    let tokenizer = TokenizerFiles::from_tokenizer_json(squat_test::tokenizer::word_level(37));
    let specs = [llama(true), gpt2(), qwen2(), qwen3()];
    let dtypes = [WeightDtype::F32, WeightDtype::F16, WeightDtype::F32, WeightDtype::F16];
    let mut made: Vec<PathBuf> = Vec::new();
    for (index, (spec, dtype)) in specs.iter().zip(dtypes).enumerate() {
        let path = folder.join(format!("model-{index}"));
        let weights = weights(spec, 3);
        write_folder(&path, &FolderContents { dtype, ..contents(spec, &weights, &tokenizer) }).unwrap();
        made.push(path);
    }
    made
}

/// Packed folders under some plans.
fn packed_folders(folder: &Path) -> Vec<PathBuf> {
    let source = folders(folder).remove(0);
    let plans = ["w4a8", "w8a8", "w2a8", "ternary-a8", "w4a4-g8"];
    plans
        .iter()
        .map(|name| {
            let mut plan = QuantPlan::named(name).unwrap();
            plan.head = plan.embedding;
            let path = folder.join(name);
            ModelFolder::open(&source).unwrap().pack(Some(&plan), &path).unwrap();
            path
        })
        .collect()
}

fn read(path: &Path) -> Vec<u8> {
    fs::read(path).unwrap()
}

/// The first folder that `make` makes, once for each process.
fn fixed(once: &'static OnceLock<PathBuf>, folder: &Path, make: fn(&Path) -> Vec<PathBuf>) -> &'static Path {
    once.get_or_init(|| make(folder).remove(0))
}

fn gguf(bytes: &[u8], folder: &Path) {
    use_model(&put(folder, "model.gguf", bytes));
}

fn ggufs(_: &Path) -> Vec<Vec<u8>> {
    let models = [llama(false), llama(true), qwen2(), qwen3()];
    models.iter().map(|spec| squat_test::gguf::model(spec, &weights(spec, 5)).bytes()).collect()
}

fn llama2c(bytes: &[u8], folder: &Path) {
    let (checkpoint, tokenizer) = match bytes.strip_prefix(b"t") {
        Some(tokenizer) => (&[][..], tokenizer),
        None => (bytes, &[][..]),
    };
    let path = put(folder, "model.bin", checkpoint);
    put(folder, "tokenizer.bin", tokenizer);
    use_model(&path);
    let _ = Tokenizer::open_llama2c(folder.join("tokenizer.bin"), &llama(true))
        .map(|tokenizer| use_tokenizer(&tokenizer));
}

/// A checkpoint, and after the letter `t` a tokenizer.
fn llama2cs(_: &Path) -> Vec<Vec<u8>> {
    use squat_test::llama2c::{checkpoint, tokenizer};
    vec![checkpoint(9), [&b"t"[..], &tokenizer()].concat()]
}

/// A model whose weights are these bytes.
fn use_weights(bytes: &[u8], model: &Path) {
    put(model, "model.safetensors", bytes);
    use_model(model);
}

fn safetensors(bytes: &[u8], folder: &Path) {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    use_weights(bytes, fixed(&FOLDER, folder, folders));
}

fn all_safetensors(folder: &Path) -> Vec<Vec<u8>> {
    folders(&folder.join("seeds")).iter().map(|path| read(&path.join("model.safetensors"))).collect()
}

fn config(bytes: &[u8], folder: &Path) {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    let model = fixed(&FOLDER, folder, packed_folders);
    let (config, generation) = halves(bytes);
    put(model, "config.json", config);
    put(model, "generation_config.json", generation);
    use_model(model);
}

fn configs(folder: &Path) -> Vec<Vec<u8>> {
    let folder = folder.join("seeds");
    let both = |path: &PathBuf| {
        joined(&read(&path.join("config.json")), &read(&path.join("generation_config.json")))
    };
    packed_folders(&folder).iter().chain(&folders(&folder)).map(both).collect()
}

fn packed(bytes: &[u8], folder: &Path) {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    use_weights(bytes, fixed(&FOLDER, folder, packed_folders));
}

fn packeds(folder: &Path) -> Vec<Vec<u8>> {
    packed_folders(&folder.join("seeds")).iter().map(|path| read(&path.join("model.safetensors"))).collect()
}

fn tokenizer(bytes: &[u8], _: &Path) {
    let _ = Tokenizer::from_json(bytes, "tokenizer.json", &llama(true))
        .map(|tokenizer| use_tokenizer(&tokenizer));
}

fn sentencepiece(bytes: &[u8], folder: &Path) {
    let file = put(folder, "tokenizer.model", bytes);
    let _ = Tokenizer::open(file, &llama(true)).map(|tokenizer| use_tokenizer(&tokenizer));
}

fn sentencepieces(_: &Path) -> Vec<Vec<u8>> {
    use squat_test::tokenizer::{PIECES, sentencepiece_model};
    vec![sentencepiece_model(2, true, &PIECES), sentencepiece_model(1, false, &PIECES)]
}

fn tokenizers(folder: &Path) -> Vec<Vec<u8>> {
    let words = squat_test::tokenizer::word_level(37).into_bytes();
    let pieces = squat_test::tokenizer::sentencepiece().into_bytes();
    vec![words, pieces, read(&trained(folder).join("tokenizer.json"))]
}

/// A folder with a tokenizer of byte-level BPE.
fn trained(folder: &Path) -> PathBuf {
    let lines = ["The cat sat on the mat.", "The dog ran home, one line at a time."];
    let options = TokenizerOptions { vocab_size: 270, min_frequency: 0, ..TokenizerOptions::default() };
    let path = folder.join("trained");
    save(&train_on_lines(lines.iter().cycle().take(50), &options).unwrap(), &path, 64, true).unwrap();
    path
}

fn prefix(bytes: &[u8], folder: &Path) {
    static ENGINE: OnceLock<Engine> = OnceLock::new();
    let engine = ENGINE.get_or_init(|| Engine::load(packed_folders(folder).remove(0), 1).unwrap());
    let path = put(folder, "prefix", bytes);
    let mut session = engine.session().unwrap();
    if session.load_prefix(&path).is_ok() {
        let _ = session.prefill(&[3]);
    }
}

fn prefixes(folder: &Path) -> Vec<Vec<u8>> {
    let engine = Engine::load(packed_folders(folder).remove(0), 1).unwrap();
    let mut session = engine.session().unwrap();
    session.prefill(&[1, 5, 9]).unwrap();
    let path = folder.join("saved");
    session.save_prefix(&path).unwrap();
    vec![read(&path)]
}

fn pairs(bytes: &[u8], folder: &Path) {
    let path = put(folder, "agreement.jsonl", bytes);
    for name in ["pairs", "blimp"] {
        let _ = PairSet::read(task(name).unwrap(), &path, None);
    }
}

const RECORDS: &str = "{\"sentence_good\": \"The cat sits.\", \"sentence_bad\": \"The cat sit.\", \"UID\": \"agreement\", \
                       \"linguistics_term\": \"agreement\", \"field\": \"syntax\"}\n\
                       {\"sentence_good\": \"Dogs run.\", \"sentence_bad\": \"Dogs runs.\", \"UID\": \"agreement\"}\n";

fn gzipped(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn pairs_seeds(_: &Path) -> Vec<Vec<u8>> {
    vec![RECORDS.as_bytes().to_vec(), gzipped(RECORDS.as_bytes())]
}

fn archive(bytes: &[u8], folder: &Path) {
    let _ = PairSet::read(task("pairs").unwrap(), &put(folder, "all.tar.gz", bytes), None);
}

fn archives(_: &Path) -> Vec<Vec<u8>> {
    let mut builder = tar::Builder::new(Vec::new());
    for name in ["blimp/agreement.jsonl", "blimp/._agreement.jsonl", "README"] {
        let mut header = tar::Header::new_gnu();
        header.set_size(RECORDS.len() as u64);
        header.set_mode(0o644);
        header.set_cksum();
        builder.append_data(&mut header, name, RECORDS.as_bytes()).unwrap();
    }
    let plain = builder.into_inner().unwrap();
    vec![gzipped(&plain), plain]
}

fn text(bytes: &[u8], folder: &Path) {
    for name in ["a.txt", "a.jsonl", "a.txt.gz"] {
        let path = put(folder, name, bytes);
        let Ok(corpus) = Corpus::open(&[path], &Split::All) else { continue };
        let _ = corpus.for_each(&CleanOptions::default(), |_, _| Ok(()));
    }
}

fn texts(_: &Path) -> Vec<Vec<u8>> {
    let plain =
        b"= Title =\n\nThe cat \xe2\x80\x9csat\xe2\x80\x9d . \r\n*MOT: what 's that ?\nA\xff B\n".to_vec();
    let lines = b"{\"text\": \"One line.\\nTwo lines.\"}\n\n{\"text\": \"x\"}\n".to_vec();
    vec![gzipped(&plain), gzipped(&lines), plain, lines]
}

fn recipe(bytes: &[u8], _: &Path) {
    let text = String::from_utf8_lossy(bytes);
    let Ok(recipe) = Recipe::parse(&text, &[]) else { return };
    for stage in &recipe.stages {
        let sizes = recipe.sizes(stage);
        let _ = sizes.and_then(|sizes| sizes.spec(recipe.data.vocab_size));
        let _ = stage.quant.as_ref().map(|quant| quant.plan(recipe.data.seq_len, recipe.seed));
    }
    let _ = recipe.to_toml();
}

fn recipes(_: &Path) -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../recipes");
    let mut paths: Vec<PathBuf> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "toml"));
    paths.sort();
    paths.iter().map(|path| read(path)).collect()
}

fn prepared(folder: &Path) -> Vec<PathBuf> {
    let texts = folder.join("texts");
    fs::create_dir_all(&texts).unwrap();
    put(&texts, "a.txt", b"The cat sat.\nThe dog ran home.\n");
    let corpus = Corpus::open(&[texts], &Split::All).unwrap();
    let out = folder.join("shards");
    prepare(&corpus, &trained(folder), &out, &PrepareOptions::default()).unwrap();
    vec![out]
}

fn shards(bytes: &[u8], folder: &Path) {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    let out = fixed(&FOLDER, folder, prepared);
    put(out, "manifest.json", bytes);
    if let Ok(shards) = TokenShards::open(out) {
        shards.get(0, 100);
        let lines = shards.lines();
        for line in [0, lines / 2, lines] {
            let _ = shards.line_start(line);
        }
    }
}

fn manifests(folder: &Path) -> Vec<Vec<u8>> {
    vec![read(&prepared(&folder.join("seeds")).remove(0).join("manifest.json"))]
}

/// A checkpoint with training state, and the model in it.
fn checkpoints(folder: &Path) -> Vec<PathBuf> {
    let path = folder.join("last");
    let spec = llama(true);
    let parameters = initial_parameters(&spec, 0.1, 3);
    let state = State {
        step: 7,
        thresholds: vec![],
        best: Some(1.5f64.to_bits()),
        fingerprint: "0123456789abcdef".to_owned(),
        static_points: vec![],
        quantizer: None,
    };
    let moments = Moments::zeros(&parameters);
    let none = TokenizerFiles::none();
    training::save(&path, &spec, (None, default_quantizer()), &parameters, &none, Some((&state, &moments)))
        .unwrap();
    vec![path]
}

fn state(bytes: &[u8], folder: &Path) {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    static LOADED: OnceLock<training::Loaded> = OnceLock::new();
    let path = fixed(&FOLDER, folder, checkpoints);
    let loaded = LOADED.get_or_init(|| training::load(path).unwrap());
    let (state, moments) = halves(bytes);
    put(path, "trainer_state.json", state);
    put(path, "optimizer_state.bin", moments);
    let _ = training::load_state(path, &mut loaded.clone());
    let _ = training::fingerprint(path);
}

fn states(folder: &Path) -> Vec<Vec<u8>> {
    let path = checkpoints(&folder.join("seeds")).remove(0);
    vec![joined(&read(&path.join("trainer_state.json")), &read(&path.join("optimizer_state.bin")))]
}

fn sums(bytes: &[u8], folder: &Path) {
    put(folder, SUMS, bytes);
    if let Ok(Some(sums)) = Sums::read(folder) {
        let _ = sums.verify(folder);
    }
}

fn all_sums(folder: &Path) -> Vec<Vec<u8>> {
    vec![read(&folders(&folder.join("seeds")).remove(0).join(SUMS))]
}

fn protocols(_: &Path) -> Vec<Vec<u8>> {
    squat_train::parallel::foreign_seeds()
}
