//! A tiny model with weights from a fixed sequence, shared by the tests.
#![allow(dead_code, unused_imports, clippy::unwrap_used, reason = "each test binary uses its part")]

use squat_model::{ModelSpec, QuantPlan, TensorSource, Tensors, TokenizerFiles};
use squat_quant::{ActPoint, ActScheme};
use squat_test::model::llama;
use squat_test::random::noise;

pub use squat_test::files::listing;
pub use squat_test::tokenizer::word_level as tokenizer_json;

/// Two layers, grouped heads, sizes that are not multiples of 32.
pub fn spec(tied: bool) -> ModelSpec {
    ModelSpec {
        vocab_size: 19,
        intermediate_size: 37,
        num_hidden_layers: 2,
        head_dim: 6,
        max_position_embeddings: 16,
        pad_token_id: Some(0),
        ..llama(tied)
    }
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
pub fn add_scales(spec: &ModelSpec, plan: &QuantPlan, tensors: &mut Tensors) {
    for (seed, param) in spec.parameters().into_iter().enumerate() {
        let Some(scheme) = plan.scheme_of(&param) else { continue };
        let n = scheme.num_scales(param.shape[0], param.shape[1]);
        let q_max = scheme.bits.range().max.max(1) as f32;
        let scales =
            (0..n as u64).map(|i| 0.25 / q_max * (0.2 * noise(100 + seed as u64, i)).exp()).collect();
        tensors.insert(squat_model::plan::scale_name(&param), &[n], scales).unwrap();
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
