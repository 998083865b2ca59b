//! GPT-2 folders as Hugging Face writes them, against logits of another implementation (`golden/gpt2.py`).
#![allow(clippy::unwrap_used)]

mod common;

use common::{bits, noise};
use serde_json::{Value, json};
use squat_engine::{Engine, EngineOptions, GenerateOptions};
use squat_model::format::safetensors::{Declaration, Writer};
use squat_model::tensors::Dtype;
use squat_model::{ModelFolder, QuantPlan, reference};
use std::path::Path;

/// As in `golden/gpt2.py`.
const TOKENS: [u32; 10] = [1, 7, 22, 0, 13, 13, 5, 18, 2, 9];
const GOLDEN: &str = include_str!("golden/gpt2.txt");

fn config() -> Value {
    json!({
        "architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", "vocab_size": 23, "n_positions": 16, "n_embd": 24,
        "n_layer": 2, "n_head": 4, "n_inner": null, "activation_function": "gelu_new", "layer_norm_epsilon": 1e-5,
        "bos_token_id": 1, "eos_token_id": 2, "scale_attn_weights": true, "summary_type": "cls_index",
    })
}

/// Names with the prefix `transformer.`, shapes as `Conv1D` has them.
fn tensors() -> Vec<(String, Vec<usize>)> {
    let mut all = vec![("wte.weight".to_owned(), vec![23, 24]), ("wpe.weight".to_owned(), vec![16, 24])];
    let mut with_bias = |name: String, shape: &[usize]| {
        all.push((format!("{name}.weight"), shape.to_vec()));
        all.push((format!("{name}.bias"), vec![*shape.last().unwrap()]));
    };
    for layer in 0..2 {
        with_bias(format!("h.{layer}.ln_1"), &[24]);
        with_bias(format!("h.{layer}.attn.c_attn"), &[24, 72]);
        with_bias(format!("h.{layer}.attn.c_proj"), &[24, 24]);
        with_bias(format!("h.{layer}.ln_2"), &[24]);
        with_bias(format!("h.{layer}.mlp.c_fc"), &[24, 96]);
        with_bias(format!("h.{layer}.mlp.c_proj"), &[96, 24]);
    }
    with_bias("ln_f".to_owned(), &[24]);
    all.into_iter().map(|(name, shape)| (format!("transformer.{name}"), shape)).collect()
}

/// Writes a folder of these tensors; without `prefix` as old files are, with their masks.
fn write(folder: &Path, config: &Value, tensors: &[(String, Vec<usize>)], prefix: bool) {
    std::fs::create_dir(folder).unwrap();
    std::fs::write(folder.join("config.json"), config.to_string()).unwrap();
    let stored =
        |name: &str| if prefix { name } else { name.strip_prefix("transformer.").unwrap() }.to_owned();
    let declare = |(name, shape): &(String, Vec<usize>)| Declaration {
        name: stored(name),
        dtype: Dtype::F32,
        shape: shape.clone(),
    };
    let mut declarations: Vec<Declaration> = tensors.iter().map(declare).collect();
    let mask = Declaration { name: "h.0.attn.bias".to_owned(), dtype: Dtype::F32, shape: vec![1, 1, 16, 16] };
    declarations.extend((!prefix).then_some(mask));
    let mut writer = Writer::create(&folder.join("model.safetensors"), declarations).unwrap();
    for declaration in writer.order().to_vec() {
        let Declaration { name, shape, .. } = declaration;
        let of_name = if prefix { name.clone() } else { format!("transformer.{name}") };
        let gain = if name.contains("ln_") && name.ends_with(".weight") { 1.0 } else { 0.0 };
        let values =
            noise(&of_name, shape.iter().product()).iter().map(|x| gain + 0.5 * x).collect::<Vec<_>>();
        writer.write_f32(&name, &values).unwrap();
    }
    writer.finish().unwrap();
}

fn logits(engine: &Engine) -> Vec<f32> {
    engine.session().unwrap().prefill_all(&TOKENS).unwrap()
}

#[test]
fn logits_are_those_of_transformers() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("gpt2");
    write(&folder, &config(), &tensors(), true);
    let golden: Vec<f32> = GOLDEN.split_whitespace().map(|x| x.parse().unwrap()).collect();
    let opened = ModelFolder::open(&folder).unwrap();
    let plain = reference::forward(opened.spec(), &opened, &TOKENS).unwrap();
    for (name, got) in [("engine", logits(&Engine::load(&folder, 2).unwrap())), ("reference", plain)] {
        assert_eq!(got.len(), golden.len());
        let worst = got.iter().zip(&golden).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(worst < 2e-5, "{name}: {worst}");
    }
    // Models that were saved without their head have shorter names; masks are of no interest.
    let bare = dir.path().join("bare");
    write(&bare, &config(), &tensors(), false);
    let [a, b] = [&folder, &bare].map(|folder| bits(&logits(&Engine::load(folder, 1).unwrap())));
    assert_eq!(a, b);
}

#[test]
fn packed_folders_are_the_model_rounded_to_nearest() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("gpt2");
    write(&folder, &config(), &tensors(), true);
    let exact = logits(&Engine::load(&folder, 1).unwrap());
    for (name, error) in [("w8a8", 0.1), ("w4a8", 1.5), ("w4a4", 2.5), ("w4", 1.5)] {
        let plan = QuantPlan::named(name).unwrap();
        let out = dir.path().join(name);
        ModelFolder::open(&folder).unwrap().pack(Some(&plan), &out).unwrap();
        let packed = Engine::load(&out, 2).unwrap();
        assert_eq!(packed.spec(), ModelFolder::open(&folder).unwrap().spec());
        let got = logits(&packed);
        let in_memory =
            Engine::from_model_as(&squat_model::open(&folder).unwrap(), &plan, EngineOptions::threads(1))
                .unwrap();
        assert_eq!(bits(&got), bits(&logits(&in_memory)), "{name}");
        let square: f32 = got.iter().zip(&exact).map(|(a, b)| (a - b) * (a - b)).sum();
        let found = (square / exact.len() as f32).sqrt();
        assert!(found > 0.0 && found < error, "{name}: {found}");
        let options = GenerateOptions { max_tokens: 5, ..Default::default() };
        assert!(packed.generate(&TOKENS[..3], &options, |_| true).is_ok());
        // There is a row for each position and no more.
        assert!(packed.session().unwrap().prefill(&[1; 17]).is_err());
    }
}

#[test]
fn what_is_no_gpt2_of_ours_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    for (key, value, expected) in [
        ("activation_function", json!("relu"), "gelu_new"),
        ("scale_attn_by_inverse_layer_idx", json!(true), "other attention"),
        ("n_head", json!(5), "divisor of n_embd = 24"),
        ("layer_norm_epsilon", json!(0), "layer_norm_epsilon"),
        ("n_positions", json!(0), "positive"),
    ] {
        let mut config = config();
        config[key] = value;
        let error = squat_model::arch::spec_of_config(config.as_object().unwrap()).unwrap_err().to_string();
        assert!(error.contains(key) || error.contains("max_position_embeddings"), "{error}");
        assert!(error.contains(expected), "{error}");
    }
    let spec = squat_model::arch::spec_of_config(config().as_object().unwrap()).unwrap();
    assert_eq!(squat_model::arch::spec_of_config(&squat_model::arch::config_of_spec(&spec)).unwrap(), spec);
    let count: usize = tensors().iter().map(|(_, shape)| shape.iter().product::<usize>()).sum();
    assert_eq!(spec.num_parameters(), count);

    let mut missing = tensors();
    missing.retain(|(name, _)| name != "transformer.h.1.attn.c_attn.bias");
    let error = |name: &str, tensors: &[(String, Vec<usize>)]| {
        let folder = dir.path().join(name);
        write(&folder, &config(), tensors, true);
        ModelFolder::open(&folder).unwrap_err().to_string()
    };
    let message = error("missing", &missing);
    assert!(message.contains("h.1.attn.c_attn.bias") && message.contains("missing"), "{message}");
    for (index, shape) in [[24, 70], [23, 72], [24, 75]].into_iter().enumerate() {
        let mut wrong = tensors();
        let place = wrong.iter().position(|(name, _)| name == "transformer.h.0.attn.c_attn.weight").unwrap();
        wrong[place].1 = shape.to_vec();
        let message = error(&format!("wrong{index}"), &wrong);
        assert!(message.contains("q_proj") && message.contains("[24, 24]"), "{message}");
    }
}
