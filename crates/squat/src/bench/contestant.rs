//! A model to be timed: a file, or a known shape with random weights, under a scheme.

use anyhow::{Result, bail};
use squat_engine::{Engine, EngineOptions, Weights};
use squat_model::{ModelSpec, QuantPlan, shapes};
use squat_quant::ActBits;
use std::path::Path;

use crate::forms;

/// Seed of random weights.
const SEED: u64 = 1;

/// Default scheme of a random model.
const DEFAULT_SCHEME: &str = "w4a8";

/// Tokens over which the share of 8-bit tokens is counted.
const COUNTED_TOKENS: usize = 64;

/// A loaded model with its name in the table.
pub struct Contestant {
    pub name: String,
    pub engine: Engine,
    /// Storage type of the weights that the plan leaves in full precision.
    pub weights: Weights,
    /// Share of tokens with 8-bit activations: from the plan if it is fixed, counted if a policy decides.
    pub share_of_8_bit: f64,
}

impl Contestant {
    fn new(name: String, engine: Engine, weights: Weights) -> Result<Self> {
        let share_of_8_bit = match engine.plan().policy.uniform() {
            Some(bits) => f64::from(u8::from(bits == ActBits::A8)),
            None => share_of_8_bit(&engine)?,
        };
        Ok(Self { name, engine, weights, share_of_8_bit })
    }

    /// The known shape `name` with random weights.
    pub fn random(name: &str, scheme: Option<&str>) -> Result<Self> {
        let spec = shapes::shape(name)?;
        let scheme = scheme.unwrap_or(DEFAULT_SCHEME);
        let (plan, weights) = scheme_of(scheme, &spec)?;
        let tensors = shapes::tensors(&spec, &plan, SEED)?;
        let options = EngineOptions { threads: 1, weights, kernels: None };
        Self::new(format!("{name} {scheme}"), Engine::from_parts(&spec, &plan, &tensors, options)?, weights)
    }

    /// The model of a file or folder: unchanged, or rounded to nearest under a scheme.
    pub fn file(path: &Path, scheme: Option<&str>) -> Result<Self> {
        let model = forms::open_model(path)?;
        let name = model.path().display().to_string();
        let Some(scheme) = scheme else {
            return Self::new(name, Engine::from_model(&model, EngineOptions::threads(1))?, Weights::F32);
        };
        let (plan, weights) = scheme_of(scheme, model.spec())?;
        let options = EngineOptions { threads: 1, weights, kernels: None };
        Self::new(format!("{name} {scheme}"), Engine::from_model_as(&model, &plan, options)?, weights)
    }
}

/// A scheme by name: `f32`, `f16`, or a quantization plan. Thresholds of a policy, which training determines otherwise,
/// are set so that about half of the tokens of a random model have 8 bits.
fn scheme_of(name: &str, spec: &ModelSpec) -> Result<(QuantPlan, Weights)> {
    let (mut plan, weights) = match name {
        "f32" => (QuantPlan::full_precision(), Weights::F32),
        "f16" => (QuantPlan::full_precision(), Weights::F16),
        name => (QuantPlan::named(name)?, Weights::F32),
    };
    plan = plan.for_model(spec);
    if plan.needs_thresholds() {
        if plan.rho != 0.5 {
            bail!(
                "the scheme {name} needs thresholds, which training freezes; without training there is rho50 alone, \
                 with thresholds that suit random weights"
            );
        }
        plan.thresholds = vec![1.0; spec.num_hidden_layers];
    }
    Ok((plan, weights))
}

/// Counted over all layers and the first tokens of a fixed sequence.
fn share_of_8_bit(engine: &Engine) -> Result<f64> {
    let tokens = COUNTED_TOKENS.min(engine.spec().max_position_embeddings);
    let ids = super::measure::token_ids(tokens, engine.spec().vocab_size);
    let bits = engine.token_bits(&ids)?;
    let all: Vec<ActBits> = bits.into_iter().flatten().collect();
    Ok(all.iter().filter(|&&bits| bits == ActBits::A8).count() as f64 / all.len().max(1) as f64)
}
