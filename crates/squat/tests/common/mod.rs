//! Tiny quantization-aware checkpoints, made as training makes them, for the tests of this folder.
#![allow(dead_code, unused_imports, clippy::unwrap_used, reason = "each test binary uses its part")]

pub mod command;
pub mod run;

use squat_model::plan::QuantPlan;
use squat_model::{ModelFolder, ModelSpec, TokenizerFiles, arch};
use squat_test::model::llama;
use squat_test::random::Rng;
use squat_train::calibration::calibrate;
use squat_train::model::{
    ForwardOptions, Model, ParamTensors, add_quantizer_parameters, initial_parameters, transform_weights,
};
use squat_train::parameters::Group;
use squat_train::quantizer::default_quantizer;
use squat_train::recipe::QuantConfig;
use squat_train::{Parameters, checkpoint, thresholds};
use std::path::{Path, PathBuf};

pub use squat_test::bits;
pub use squat_test::model::tokens;

/// Odd sizes, grouped-query heads, a head width that no vector width divides.
pub fn spec(tied: bool) -> ModelSpec {
    ModelSpec {
        vocab_size: 67,
        hidden_size: 36,
        intermediate_size: 83,
        max_position_embeddings: 64,
        pad_token_id: Some(0),
        ..llama(tied)
    }
}

/// The same sizes with the features of Qwen2 and of Qwen3.
pub fn qwen_specs(tied: bool) -> [ModelSpec; 2] {
    [arch::qwen2::base(), arch::qwen3::base()].map(|base| ModelSpec {
        architecture: base.architecture,
        biases: base.biases,
        qk_norm: base.qk_norm,
        ..spec(tied)
    })
}

/// The plan that a recipe's `quant = { ... }` means for a model of this spec.
pub fn plan_of(quant: &str, spec: &ModelSpec, seq_len: usize) -> QuantPlan {
    let table: toml::Table = toml::from_str(&format!("quant = {{ {quant} }}")).unwrap();
    let config: QuantConfig = table["quant"].clone().try_into().unwrap();
    config.plan(seq_len, 5).unwrap().for_model(spec)
}

/// Weights large enough for sharp attention, with gains that differ from one and biases that differ from zero.
pub fn weights(spec: &ModelSpec, seed: u64) -> Parameters {
    let mut parameters = initial_parameters(spec, 0.25, seed);
    let mut rng = Rng::new(seed ^ 0xA5);
    for p in parameters.list_mut().iter_mut().filter(|p| p.group == Group::Norm) {
        p.values.iter_mut().for_each(|x| *x += 0.3 * rng.signed());
    }
    parameters
}

/// Quantizer parameters and thresholds as a stage begins with them, then moved a little, as training moves them.
pub fn quantize(parameters: &mut Parameters, spec: &ModelSpec, plan: &mut QuantPlan, seed: u64) {
    let seq = 24;
    let batches: Vec<(Vec<u32>, usize, usize)> = (0..4)
        .map(|i| ((0..3).flat_map(|j| tokens(spec, seq, seed + 10 * i + j)).collect(), 3, seq))
        .collect();
    transform_weights(parameters, spec, plan);
    add_quantizer_parameters(parameters, spec, plan, default_quantizer());
    calibrate(&Model::new(spec.clone(), None, seq), parameters, plan, &batches);
    let mut rng = Rng::new(seed ^ 0x5A);
    for p in parameters.list_mut().iter_mut().filter(|p| p.group == Group::Scale) {
        let is_static = p.name.ends_with(".static");
        for (i, x) in p.values.iter_mut().enumerate() {
            // Zero points stand at odd places of static points and are in units of the code.
            *x += if is_static && i % 2 == 1 { 1.7 } else { 0.15 } * rng.signed();
        }
    }
    if plan.needs_thresholds() {
        plan.thresholds = vec![0.0; spec.num_hidden_layers];
        let model = Model::new(spec.clone(), Some(plan.clone()), seq);
        let params = ParamTensors::constant(parameters);
        let (ids, batch, seq) = &batches[0];
        let scores = model.forward(&params, ids, (*batch, *seq), &ForwardOptions::default()).scores;
        plan.thresholds = thresholds::initial(&scores, *seq, plan.rho);
    }
}

/// Writes a checkpoint of random weights under the plan of `quant` to `DIR/checkpoint`; packs it to `DIR/packed`.
pub fn checkpoint_and_packed(dir: &Path, quant: &str, tied: bool, seed: u64) -> (PathBuf, PathBuf) {
    checkpoint_and_packed_of(&spec(tied), dir, quant, seed)
}

/// The same for a model of this spec.
pub fn checkpoint_and_packed_of(spec: &ModelSpec, dir: &Path, quant: &str, seed: u64) -> (PathBuf, PathBuf) {
    let mut plan = plan_of(quant, spec, 24);
    let mut parameters = weights(spec, seed);
    quantize(&mut parameters, spec, &mut plan, seed);
    let (from, to) = (dir.join("checkpoint"), dir.join("packed"));
    let quantized = (Some(&plan), default_quantizer());
    checkpoint::save(&from, spec, quantized, &parameters, &TokenizerFiles::none(), None).unwrap();
    ModelFolder::open(&from).unwrap().pack(None, &to).unwrap();
    (from, to)
}
