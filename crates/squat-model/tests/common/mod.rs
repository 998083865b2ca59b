//! A tiny model with weights from a fixed sequence, shared by the tests.
#![allow(dead_code, clippy::unwrap_used)]

use squat_model::{ModelSpec, QuantPlan, TensorSource, Tensors, TokenizerFiles, arch};
use squat_quant::{ActPoint, ActScheme};

/// Two layers, grouped heads, sizes that are not multiples of 32.
pub fn spec(tied: bool) -> ModelSpec {
    ModelSpec {
        vocab_size: 19,
        hidden_size: 24,
        intermediate_size: 37,
        num_hidden_layers: 2,
        num_attention_heads: 4,
        num_key_value_heads: 2,
        head_dim: 6,
        max_position_embeddings: 16,
        norm_eps: 1e-5,
        tie_word_embeddings: tied,
        bos_token_id: Some(1),
        eos_token_ids: vec![2],
        pad_token_id: Some(0),
        ..arch::llama::base()
    }
}

/// A number in -1..1 from a seed and an index.
pub fn noise(seed: u64, index: u64) -> f32 {
    let mut z = (seed << 32).wrapping_add(index).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    ((z >> 40) as f32 / (1u64 << 23) as f32) - 1.0
}

pub fn tensors(spec: &ModelSpec) -> Tensors {
    let mut tensors = Tensors::new();
    for (seed, param) in spec.parameters().into_iter().enumerate() {
        let values = (0..param.len() as u64).map(|i| noise(seed as u64, i) * 0.3).collect();
        tensors.insert(param.name, &param.shape, values).unwrap();
    }
    tensors
}

/// Learned scales near the largest magnitude of what they cover, with some noise.
pub fn add_log_scales(spec: &ModelSpec, plan: &QuantPlan, tensors: &mut Tensors) {
    for (seed, param) in spec.parameters().into_iter().enumerate() {
        let Some(scheme) = plan.scheme_of(&param) else { continue };
        let n = scheme.num_scales(param.shape[0], param.shape[1]);
        let q_max = scheme.bits.range().max.max(1) as f32;
        let logs = (0..n as u64).map(|i| (0.25 / q_max).ln() + 0.2 * noise(100 + seed as u64, i)).collect();
        tensors.insert(squat_model::plan::log_scale_name(&param), &[n], logs).unwrap();
    }
}

/// Static quantizers at every point that can have one.
pub fn add_static(spec: &ModelSpec, plan: &mut QuantPlan, tensors: &mut Tensors) {
    for point in ActPoint::ALL {
        plan.set_point(point, Some(ActScheme::Static));
    }
    for (i, (point, layer, bits)) in plan.static_quantizers(spec).into_iter().enumerate() {
        let name = squat_model::plan::static_scale_name(point, layer, bits);
        tensors.insert(name, &[1], vec![0.01 + i as f32 * 0.001]).unwrap();
        let name = squat_model::plan::static_zero_point_name(point, layer, bits);
        tensors.insert_i32(name, &[1], vec![i as i32 % 7 - 3]).unwrap();
    }
}

/// A word-level `tokenizer.json` of 19 tokens.
pub fn tokenizer_files() -> TokenizerFiles {
    TokenizerFiles::from_tokenizer_json(tokenizer_json(19))
}

pub fn tokenizer_json(size: usize) -> String {
    let special = ["<pad>", "<s>", "</s>"];
    let vocab: serde_json::Map<String, serde_json::Value> = (0..size)
        .map(|i| (special.get(i).map_or_else(|| format!("w{i}"), |s| (*s).to_owned()), i.into()))
        .collect();
    let added: Vec<serde_json::Value> = special
        .iter()
        .enumerate()
        .map(|(id, content)| {
            serde_json::json!({"id": id, "content": content, "single_word": false, "lstrip": false,
                "rstrip": false, "normalized": false, "special": true})
        })
        .collect();
    serde_json::json!({
        "version": "1.0", "truncation": {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0},
        "padding": null, "added_tokens": added, "normalizer": null,
        "pre_tokenizer": {"type": "WhitespaceSplit"}, "post_processor": null, "decoder": null,
        "model": {"type": "WordLevel", "vocab": vocab, "unk_token": "<pad>"},
    })
    .to_string()
}

/// Names and content of everything in a folder.
pub fn listing(folder: &std::path::Path) -> Vec<String> {
    let mut names: Vec<String> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}

pub fn assert_same(a: &impl TensorSource, b: &impl TensorSource, names: &[String]) {
    for name in names {
        assert_eq!(a.info(name).map(|i| i.1), b.info(name).map(|i| i.1), "{name}");
        match a.read_f32(name) {
            Ok(values) => {
                let other = b.read_f32(name).unwrap();
                assert!(values.iter().zip(&other).all(|(x, y)| x.to_bits() == y.to_bits()), "{name}");
            }
            Err(_) => assert_eq!(a.read_i32(name).unwrap(), b.read_i32(name).unwrap(), "{name}"),
        }
    }
}
