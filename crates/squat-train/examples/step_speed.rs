//! Seconds of a training step on random data: `cargo run --release -p squat-train --example step_speed -- llama-6m w4a8 2`.
#![allow(clippy::print_stdout)] // a program that prints
use squat_data::{Chunks, Sequential, TokenShards};
use squat_model::TokenizerFiles;
use squat_train::checkpoint::Loaded;
use squat_train::recipe::Recipe;
use squat_train::stage::{Event, StageData, StageInput, train};
use std::sync::Arc;

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let shape = args.first().map_or("llama-6m", String::as_str);
    let plan = args.get(1).map_or("fp", String::as_str);
    let threads: usize = args.get(2).and_then(|t| t.parse().ok()).unwrap_or(1);
    let (hidden, inter, layers, heads, vocab) = match shape {
        "llama-58m" => (512, 1024, 16, 8, 16000),
        "tiny" => (128, 384, 4, 4, 1024),
        _ => (256, 768, 6, 4, 4096),
    };
    let kind = if plan == "fp" {
        "kind = \"pretrain\"".to_owned()
    } else {
        format!("kind = \"qat\"\ninit = \"x\"\nteachers = [\"x\"]\nquant = {{ plan = \"{plan}\" }}")
    };
    let text = format!(
        "name = \"speed\"\n[data]\ntrain = [\"x\"]\nvalid = [\"x\"]\n[model]\nhidden_size = {hidden}\nintermediate_size = {inter}\nnum_hidden_layers = {layers}\nnum_attention_heads = {heads}\n[[stage]]\nname = \"s\"\n{kind}\nsteps = 6\nlearning_rate = 1e-3\nbatch_size = 8\nmicro_batch = 4\neval_every = 1000\nsave_every = 1000\n"
    );
    let recipe = Recipe::parse(&text, &[]).expect("recipe");
    let spec = recipe.model.spec(vocab).expect("spec");
    let mut state = 1u64;
    let tokens: Vec<u32> = (0..100_000)
        .map(|_| {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 33) as u32 % vocab as u32
        })
        .collect();
    let shards = TokenShards::from_tokens(tokens);
    let parameters = squat_train::model::initial_parameters(&spec, 0.02, 1);
    println!(
        "{shape} {plan}: {} parameters, {threads} threads",
        parameters.iter().map(|p| p.values.len()).sum::<usize>()
    );
    let loaded = Loaded { spec: spec.clone(), plan: None, parameters };
    let teachers = if plan == "fp" {
        vec![]
    } else {
        let (model, leaves) = loaded.clone().into_model(128);
        vec![squat_train::step::Teacher { model, leaves }]
    };
    let stage = &recipe.stages[0];
    let input = StageInput {
        config: stage,
        student: loaded,
        plan: stage.quant.as_ref().map(|q| q.plan(128, 1).expect("plan")),
        teachers,
        data: StageData {
            train: Chunks::new(&shards, 128, 1).expect("chunks"),
            valid: Sequential::new(&shards, 128).expect("valid"),
        },
        seq_len: 128,
        tokenizer: TokenizerFiles::none(),
        folder: std::env::temp_dir().join("squat-step-speed"),
        fingerprint: String::new(),
        threads,
        device: burn::tensor::Device::flex(),
        resume: false,
        stop: Arc::default(),
    };
    let mut last = std::time::Instant::now();
    let result = train(input, &mut |event| {
        if let Event::Step { step, loss, tokens_per_second, .. } = event {
            println!(
                "step {step} {:.3} s, loss {:.4}, {tokens_per_second:.0} tokens/s",
                last.elapsed().as_secs_f64(),
                loss.total
            );
            last = std::time::Instant::now();
        }
    });
    println!("{result:?}");
}
