//! Folders of every family as Hugging Face writes them, compared with transformers (`golden/families.py`).
#![allow(clippy::unwrap_used)]

use serde_json::{Value, json};
use squat_engine::{Engine, GenerateOptions};
use squat_model::format::safetensors::{Declaration, Writer};
use squat_model::tensors::Dtype;
use squat_model::{arch, open, reference};
use squat_test::max_abs_diff;
use squat_test::random::noise_of_name as noise;
use std::path::Path;

/// Log-likelihoods of transformers are this close, and so are those of transformers in f32 and in f64 (4e-6).
const TOLERANCE: f32 = 2e-5;

fn golden() -> Vec<Value> {
    serde_json::from_str(include_str!("golden/families.json")).unwrap()
}

fn ids(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
}

fn floats(value: &Value) -> Vec<f32> {
    value.as_array().unwrap().iter().map(|x| x.as_f64().unwrap() as f32).collect()
}

/// Writes the folder that `save_pretrained` writes for `model`, with another `config.json` where one is given.
fn write(folder: &Path, model: &Value, config: &Value) {
    std::fs::create_dir(folder).unwrap();
    std::fs::write(folder.join("config.json"), config.to_string()).unwrap();
    std::fs::write(folder.join("generation_config.json"), model["generation_config"].to_string()).unwrap();
    let tensors = model["tensors"].as_object().unwrap();
    let declare = |(name, shape): (&String, &Value)| Declaration {
        name: name.clone(),
        dtype: Dtype::F32,
        shape: ids(shape).into_iter().map(|size| size as usize).collect(),
    };
    let mut writer =
        Writer::create(&folder.join("model.safetensors"), tensors.iter().map(declare).collect()).unwrap();
    for Declaration { name, shape, .. } in writer.order().to_vec() {
        // Gemma's gains are stored without their 1.
        let gain = if name.contains("norm") && !model["name"].as_str().unwrap().contains("gemma") {
            1.0
        } else {
            0.0
        };
        let values: Vec<f32> = noise(&name, shape.iter().product()).iter().map(|x| gain + 0.5 * x).collect();
        writer.write_f32(&name, &values).unwrap();
    }
    writer.finish().unwrap();
}

/// Log-probability of each token given those before it, from logits `[tokens, vocab]`.
fn log_likelihoods(logits: &[f32], tokens: &[u32]) -> Vec<f32> {
    let vocab = logits.len() / tokens.len();
    let score = |(row, &token): (&[f32], &u32)| {
        let sum: f64 = row.iter().map(|&x| f64::from(x).exp()).sum();
        (f64::from(row[token as usize]) - sum.ln()) as f32
    };
    logits.chunks(vocab).zip(&tokens[1..]).map(score).collect()
}

fn assert_close(name: &str, got: &[f32], want: &[f32]) {
    let worst = max_abs_diff(got, want);
    assert!(worst < TOLERANCE, "{name}: {worst}");
}

#[test]
fn log_likelihoods_and_greedy_text_are_those_of_transformers() {
    let dir = tempfile::tempdir().unwrap();
    for model in golden() {
        let name = model["name"].as_str().unwrap();
        let folder = dir.path().join(name);
        write(&folder, &model, &model["config"]);
        let opened = open(&folder).unwrap();
        let count: u32 =
            model["tensors"].as_object().unwrap().values().map(|s| ids(s).iter().product::<u32>()).sum();
        assert_eq!(opened.spec().num_parameters(), count as usize, "{name}");
        let engine = Engine::load(&folder, 2).unwrap();
        for sequence in model["sequences"].as_array().unwrap() {
            let (tokens, want) = (ids(&sequence["tokens"]), floats(&sequence["log_likelihoods"]));
            let plain = reference::forward(opened.spec(), opened.tensors(), &tokens).unwrap();
            assert_close(&format!("{name}, reference"), &log_likelihoods(&plain, &tokens), &want);
            let got = engine.log_likelihoods(&[&tokens]).unwrap().remove(0);
            assert_close(&format!("{name}, engine"), &got, &want);
        }
        for greedy in model["greedy"].as_array().unwrap() {
            let stop_ids = opened.spec().eos_token_ids.clone();
            assert_eq!(stop_ids, [2, 12], "{name}: those of generation_config.json");
            let options =
                GenerateOptions { max_tokens: 20, stop_ids: stop_ids.clone(), ..Default::default() };
            // transformers reports the token that ended the text, too.
            let mut want = ids(&greedy["text"]);
            want.pop_if(|last| stop_ids.contains(last));
            let got = engine.generate(&ids(&greedy["prompt"]), &options, |_| true).unwrap();
            assert_eq!(got.tokens, want, "{name}");
        }
    }
}

/// Released Qwen2.5 folders say `use_sliding_window: false` beside a window: attention is full.
#[test]
fn a_window_counts_where_it_is_switched_on() {
    let dir = tempfile::tempdir().unwrap();
    let qwen = |model: &Value| {
        ["qwen2", "qwen2-tied", "qwen3", "qwen3-tied"].iter().any(|name| model["name"] == *name)
    };
    for model in golden().into_iter().filter(qwen) {
        let name = model["name"].as_str().unwrap();
        let spec = |changes: Value| {
            let mut config = model["config"].as_object().unwrap().clone();
            // As files before transformers 4.53: without the list of layers.
            config.remove("layer_types");
            config.extend(changes.as_object().unwrap().clone());
            arch::spec_of_config(&config)
        };
        let full = arch::spec_of_config(model["config"].as_object().unwrap()).unwrap();
        assert_eq!(spec(json!({ "sliding_window": 8, "max_window_layers": 1 })).unwrap(), full, "{name}");
        // The first `max_window_layers` layers stay full.
        let on = json!({ "use_sliding_window": true, "sliding_window": 8, "max_window_layers": 3 });
        assert_eq!(spec(on).unwrap(), full, "{name}");
        for on in [
            json!({ "use_sliding_window": true, "sliding_window": 8, "max_window_layers": 1 }),
            json!({ "use_sliding_window": true, "sliding_window": 8,
                "layer_types": ["full_attention", "sliding_attention", "full_attention"] }),
        ] {
            let window = spec(on).unwrap().window.unwrap();
            assert_eq!((window.size, window.layers[0], window.layers[1]), (8, false, true), "{name}");
        }
        let unknown = json!({ "layer_types": ["full_attention", "linear_attention", "full_attention"] });
        let error = spec(unknown).unwrap_err().to_string();
        assert!(error.contains("layer_types"), "{name}: {error}");
        let mut config = model["config"].clone();
        config.as_object_mut().unwrap().remove("layer_types");
        config["sliding_window"] = json!(8);
        let folder = dir.path().join(name);
        write(&folder, &model, &config);
        let sequence = &model["sequences"][2];
        let got = Engine::load(&folder, 1).unwrap().log_likelihoods(&[&ids(&sequence["tokens"])]).unwrap();
        assert_close(name, &got[0], &floats(&sequence["log_likelihoods"]));
    }
}
