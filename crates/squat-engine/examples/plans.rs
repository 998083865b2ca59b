//! Tokens per second of a random model, for prefill and decoding, by number of threads.
//!
//! `cargo run --release -p squat-engine --example plans -- [PLAN...] [--shape llama-58m|smollm2-135m] [--prompt 128]
//! [--decode 128] [--depth 0] [--block 64] [--threads 1,2] [--batch 1,4,16] [--repeats 7]`
//! where PLAN is `w4a8`, `w4a4`, `rho50`, `w2a8`, `fp` (f32), `f16`, ...; depths are positions already in the cache
//! before the prompt or the decoded tokens, a list.

use squat_engine::{BatchEntry, Engine, EngineOptions, SessionOptions, Weights};
use squat_model::{QuantPlan, shapes};
use std::time::Instant;

struct Arguments {
    plans: Vec<String>,
    depths: Vec<usize>,
    /// Timed runs of each test; the best and the median are printed.
    repeats: usize,
    prompt: usize,
    decode: usize,
    threads: Vec<usize>,
    block: usize,
    batches: Vec<usize>,
    shape: String,
}

fn list(word: Option<String>) -> Vec<usize> {
    let word = word.expect("a list after an option");
    word.split(',').map(|n| n.parse().expect("numbers, separated by commas")).collect()
}

fn arguments() -> Arguments {
    let mut found = Arguments {
        plans: Vec::new(),
        depths: vec![0],
        repeats: 7,
        prompt: 128,
        decode: 128,
        threads: vec![1, 2],
        block: 64,
        batches: Vec::new(),
        shape: "llama-58m".to_owned(),
    };
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        let mut number = || words.next().and_then(|n| n.parse().ok()).expect("a number after an option");
        match word.as_str() {
            "--prompt" => found.prompt = number(),
            "--decode" => found.decode = number(),
            "--block" => found.block = number(),
            "--shape" => found.shape = words.next().expect("a name after --shape"),
            "--threads" => found.threads = list(words.next()),
            "--batch" => found.batches = list(words.next()),
            "--depth" => found.depths = list(words.next()),
            "--repeats" => found.repeats = number().max(1),
            _ => found.plans.push(word),
        }
    }
    if found.plans.is_empty() {
        found.plans = ["w4a8", "w4a4", "rho50", "w2a8", "f16", "fp"].map(str::to_owned).to_vec();
    }
    found
}

fn main() -> squat_engine::Result<()> {
    let Arguments { plans, depths, repeats, prompt, decode, threads, block, batches, shape } = arguments();
    let capacity = (depths.iter().copied().max().unwrap_or(0) + prompt.max(decode)).max(2);
    let mut spec = shapes::shape(&shape)?;
    spec.max_position_embeddings = spec.max_position_embeddings.max(capacity);
    eprintln!("{shape} shape, {:.1}M parameters, blocks of {block}", spec.num_parameters() as f64 / 1e6);
    eprintln!("plan     kernel                threads   depth    test   best tok/s median tok/s");
    let ids: Vec<u32> =
        (0..prompt as u32).map(|i| i.wrapping_mul(2_654_435_761) % spec.vocab_size as u32).collect();
    for name in &plans {
        let (mut plan, weights) = match name.as_str() {
            "f16" => (QuantPlan::full_precision(), Weights::F16),
            name => (QuantPlan::named(name)?, Weights::F32),
        };
        if plan.needs_thresholds() {
            plan.thresholds = vec![1.0; spec.num_hidden_layers];
        }
        let tensors = shapes::tensors(&spec, &plan, 1)?;
        for &threads in &threads {
            let options = EngineOptions { threads, weights, kernels: None };
            let engine = Engine::from_parts(&spec, &plan, &tensors, options)?;
            let options = SessionOptions { capacity: Some(capacity), block };
            let mut session = engine.session_with(options)?;
            let kernel = engine.kernel_name();
            for &depth in &depths {
                let filler: Vec<u32> = (0..depth).map(|i| ids[i % prompt]).collect();
                session.reset();
                if depth > 0 {
                    session.prefill(&filler)?;
                }
                let mut rates = [Vec::new(), Vec::new()];
                for _ in 0..repeats {
                    session.truncate(depth)?;
                    let start = Instant::now();
                    session.prefill(&ids)?;
                    rates[0].push(prompt as f64 / start.elapsed().as_secs_f64());
                    session.truncate(depth)?;
                    let start = Instant::now();
                    for i in 0..decode {
                        session.decode(ids[i % prompt])?;
                    }
                    rates[1].push(decode as f64 / start.elapsed().as_secs_f64());
                }
                for (test, rates) in [format!("pp{prompt}"), format!("tg{decode}")].iter().zip(&mut rates) {
                    rates.sort_by(f64::total_cmp);
                    let (best, median) = (rates[repeats - 1], rates[repeats / 2]);
                    eprintln!(
                        "{name:8} {kernel:22} {threads:6} {depth:7} {test:>7} {best:12.1} {median:12.1}"
                    );
                }
            }
            for &batch in &batches {
                let mut sessions =
                    (0..batch).map(|_| engine.session_with(options)).collect::<Result<Vec<_>, _>>()?;
                let mut together = engine.batch(batch)?;
                let mut rates = Vec::new();
                for _ in 0..repeats {
                    sessions.iter_mut().for_each(|session| session.reset());
                    let start = Instant::now();
                    for i in 0..decode {
                        let id = &ids[i % prompt..=i % prompt];
                        let entries = sessions.iter_mut().map(|session| BatchEntry::new(session, id));
                        together.run(&mut entries.collect::<Vec<_>>())?;
                    }
                    rates.push((batch * decode) as f64 / start.elapsed().as_secs_f64());
                }
                rates.sort_by(f64::total_cmp);
                let (best, median) = (rates[repeats - 1], rates[repeats / 2]);
                let test = format!("tg x{batch}");
                eprintln!("{name:8} {kernel:22} {threads:6} {0:7} {test:>7} {best:12.1} {median:12.1}", 0);
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
