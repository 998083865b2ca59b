//! Tokens per second of a random model of the LLaMA-58M shape: prefill and decoding apart, threads named.
//!
//! `cargo run --release -p squat-engine --example speed -- [PLAN...] [--prompt 128] [--decode 128] [--threads 1,2]`
//! where PLAN is `w4a8`, `w4a4`, `rho50`, `w2a8`, `fp` (f32), `f16`, ...

use squat_engine::{Engine, EngineOptions, SessionOptions, Weights};
use squat_model::plan::log_scale_name;
use squat_model::{Architecture, ModelSpec, ParamKind, QuantPlan, Tensors};
use std::time::Instant;

/// Timed runs of each test; the best and the median are printed.
const REPEATS: usize = 7;

fn spec() -> ModelSpec {
    ModelSpec {
        architecture: Architecture::Llama,
        vocab_size: 16_000,
        hidden_size: 512,
        intermediate_size: 1024,
        num_hidden_layers: 16,
        num_attention_heads: 8,
        num_key_value_heads: 8,
        head_dim: 64,
        max_position_embeddings: 2048,
        rms_norm_eps: 1e-5,
        rope_theta: 10_000.0,
        tie_word_embeddings: false,
        bos_token_id: Some(1),
        eos_token_ids: vec![2],
        pad_token_id: None,
    }
}

/// Roughly normal weights, with the scales that training would have left beside them: finding the best ones for 58M
/// weights is not what is measured here.
fn tensors(spec: &ModelSpec, plan: &QuantPlan) -> squat_engine::Result<Tensors> {
    let mut state = 1u64;
    let mut tensors = Tensors::new();
    for param in spec.parameters() {
        let mut normal = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let bytes = state.to_le_bytes();
            bytes[4..].iter().map(|&b| f32::from(b) - 127.5).sum::<f32>() / 148.0
        };
        let std = 0.05;
        let values = match param.kind {
            ParamKind::Norm => vec![1.0; param.len()],
            _ => (0..param.len()).map(|_| std * normal()).collect(),
        };
        tensors.insert(param.name.clone(), &param.shape, values)?;
        if let Some(scheme) = plan.scheme_of(&param) {
            let scale = 2.5 * std / scheme.bits.range().max as f32;
            let scales = vec![scale.ln(); scheme.num_scales(param.shape[0], param.shape[1])];
            tensors.insert(log_scale_name(&param), &[scales.len()], scales)?;
        }
    }
    Ok(tensors)
}

struct Arguments {
    plans: Vec<String>,
    prompt: usize,
    decode: usize,
    threads: Vec<usize>,
    block: usize,
}

fn arguments() -> Arguments {
    let mut found = Arguments { plans: Vec::new(), prompt: 128, decode: 128, threads: vec![1, 2], block: 64 };
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        let mut number = || words.next().and_then(|n| n.parse().ok()).expect("a number after an option");
        match word.as_str() {
            "--prompt" => found.prompt = number(),
            "--decode" => found.decode = number(),
            "--block" => found.block = number(),
            "--threads" => {
                let list = words.next().expect("a list after --threads");
                found.threads = list.split(',').map(|n| n.parse().expect("a number of threads")).collect();
            }
            _ => found.plans.push(word),
        }
    }
    if found.plans.is_empty() {
        found.plans = ["w4a8", "w4a4", "rho50", "w2a8", "f16", "fp"].map(str::to_owned).to_vec();
    }
    found
}

fn main() -> squat_engine::Result<()> {
    let Arguments { plans, prompt, decode, threads, block } = arguments();
    let spec = spec();
    eprintln!("LLaMA-58M shape, {:.1}M parameters, blocks of {block}", spec.num_parameters() as f64 / 1e6);
    eprintln!("plan     kernel                threads    test   best tok/s median tok/s");
    let ids: Vec<u32> =
        (0..prompt as u32).map(|i| i.wrapping_mul(2_654_435_761) % spec.vocab_size as u32).collect();
    for name in &plans {
        let (plan, weights) = match name.as_str() {
            "f16" => (QuantPlan::full_precision(), Weights::F16),
            name => (QuantPlan::named(name)?, Weights::F32),
        };
        let mut plan = plan;
        if plan.needs_thresholds() {
            plan.thresholds = vec![1.0; spec.num_hidden_layers];
        }
        let tensors = tensors(&spec, &plan)?;
        for &threads in &threads {
            let options = EngineOptions { threads, weights, kernels: None };
            let engine = Engine::from_parts(&spec, &plan, &tensors, options)?;
            let options = SessionOptions { capacity: Some((prompt + decode).max(2)), block };
            let mut session = engine.session_with(options)?;
            let mut rates = [Vec::new(), Vec::new()];
            for _ in 0..REPEATS {
                session.reset();
                let start = Instant::now();
                session.prefill(&ids)?;
                rates[0].push(prompt as f64 / start.elapsed().as_secs_f64());
                session.reset();
                let start = Instant::now();
                for i in 0..decode {
                    session.decode(ids[i % prompt])?;
                }
                rates[1].push(decode as f64 / start.elapsed().as_secs_f64());
            }
            let kernel = engine.kernel_name();
            for (test, rates) in [format!("pp{prompt}"), format!("tg{decode}")].iter().zip(&mut rates) {
                rates.sort_by(f64::total_cmp);
                let (best, median) = (rates[REPEATS - 1], rates[REPEATS / 2]);
                eprintln!("{name:8} {kernel:22} {threads:6} {test:>7} {best:12.1} {median:12.1}");
            }
            if threads == 1 {
                let memory = engine.memory(Some(&session));
                let [weights, cache, scratch] =
                    [memory.weights, memory.cache, memory.scratch].map(|bytes| bytes as f64 / 1e6);
                eprintln!("{name:8} weights {weights:.1} MB, cache {cache:.2} MB, buffers {scratch:.2} MB");
            }
        }
    }
    Ok(())
}
