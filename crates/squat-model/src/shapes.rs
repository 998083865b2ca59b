//! Models of named shapes with random weights: for measuring speed, which does not depend on the values of the weights.

use crate::arch;
use crate::error::ModelError;
use crate::plan::{QuantPlan, scale_name};
use crate::rope::Rope;
use crate::spec::{ModelSpec, ParamKind};
use crate::tensors::Tensors;

/// Names that [`shape`] knows.
pub const SHAPES: [&str; 5] = ["llama-58m", "smollm2-135m", "gpt2-97m", "llama-6m", "tiny"];

/// Standard deviation of the weights.
const STD: f32 = 0.05;

/// Clipping range in standard deviations: close to the least-squares optimum for normally distributed weights.
const CLIP: f32 = 2.5;

/// Sizes of a named model.
///
/// `llama-58m` is the student of the BabyLlama experiments (58.3M parameters, untied head), `smollm2-135m` is
/// SmolLM2-135M (tied head), `gpt2-97m` the GPT-2 of the BabyLlama experiments (97.5M parameters with 256 positions, twice
/// the length of their sequences), `llama-6m` the model of `recipes/babylm-6m.toml`, `tiny` one for tests.
///
/// # Errors
/// A name that is not in [`SHAPES`].
pub fn shape(name: &str) -> Result<ModelSpec, ModelError> {
    let llama = ModelSpec {
        vocab_size: 16_000,
        hidden_size: 512,
        intermediate_size: 1024,
        num_hidden_layers: 16,
        num_attention_heads: 8,
        num_key_value_heads: 8,
        head_dim: 64,
        max_position_embeddings: 2048,
        norm_eps: 1e-5,
        tie_word_embeddings: false,
        bos_token_id: Some(1),
        eos_token_ids: vec![2],
        pad_token_id: None,
        ..arch::llama::base()
    };
    match name {
        "llama-58m" => Ok(llama),
        "smollm2-135m" => Ok(ModelSpec {
            vocab_size: 49_152,
            hidden_size: 576,
            intermediate_size: 1536,
            num_hidden_layers: 30,
            num_attention_heads: 9,
            num_key_value_heads: 3,
            max_position_embeddings: 8192,
            rope: Some(Rope::new(100_000.0)),
            tie_word_embeddings: true,
            ..llama
        }),
        "llama-6m" => Ok(ModelSpec {
            vocab_size: 6144,
            hidden_size: 256,
            intermediate_size: 640,
            num_hidden_layers: 6,
            num_attention_heads: 4,
            num_key_value_heads: 4,
            tie_word_embeddings: true,
            ..llama
        }),
        "tiny" => Ok(ModelSpec {
            vocab_size: 512,
            hidden_size: 64,
            intermediate_size: 128,
            num_hidden_layers: 2,
            num_attention_heads: 4,
            num_key_value_heads: 4,
            head_dim: 16,
            tie_word_embeddings: true,
            ..llama
        }),
        "gpt2-97m" => Ok(ModelSpec {
            vocab_size: llama.vocab_size,
            norm_eps: llama.norm_eps,
            bos_token_id: llama.bos_token_id,
            eos_token_ids: llama.eos_token_ids,
            head_dim: llama.head_dim,
            hidden_size: 768,
            intermediate_size: 3072,
            num_hidden_layers: 12,
            num_attention_heads: 12,
            num_key_value_heads: 12,
            max_position_embeddings: 256,
            tie_word_embeddings: true,
            ..arch::gpt2::base()
        }),
        _ => Err(ModelError::unknown_name("shape", name, &SHAPES)),
    }
}

/// Roughly normal weights, the same for the same seed. What `plan` quantizes has its scales beside it, as training
/// would have left them: finding the best ones for many weights takes long and changes no speed.
///
/// # Errors
/// None for a valid spec.
pub fn tensors(spec: &ModelSpec, plan: &QuantPlan, seed: u64) -> Result<Tensors, ModelError> {
    let mut tensors = Tensors::new();
    let mut state = seed ^ 0x9E37_79B9_7F4A_7C15;
    for param in spec.parameters() {
        let values = match param.kind {
            ParamKind::Norm(_) => vec![1.0; param.len()],
            _ => (0..param.len()).map(|_| STD * normal(&mut state)).collect(),
        };
        tensors.insert(param.name.clone(), &param.shape, values)?;
        if let Some(scheme) = plan.scheme_of(&param) {
            let scale = CLIP * STD / scheme.bits.range().max.max(1) as f32;
            let scales = vec![scale; scheme.num_scales(param.shape[0], param.shape[1])];
            tensors.insert(scale_name(&param), &[scales.len()], scales)?;
        }
    }
    Ok(tensors)
}

/// Sum of four uniform bytes, of mean 0 and variance 1.
fn normal(state: &mut u64) -> f32 {
    // The top halves of a linear congruential generator are good enough for this.
    *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    state.to_le_bytes()[4..].iter().map(|&byte| f32::from(byte) - 127.5).sum::<f32>() / 148.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes_are_the_known_models() {
        let sizes: Vec<usize> = SHAPES.iter().map(|name| shape(name).unwrap().num_parameters()).collect();
        assert_eq!(sizes, [58_343_936, 134_515_008, 97_540_608, 6_098_176, 115_008]);
        for name in SHAPES {
            shape(name).unwrap().validate().unwrap();
        }
        assert!(shape("lama-58m").unwrap_err().to_string().contains("did you mean \"llama-58m\""));
    }

    #[test]
    fn weights_look_normal_and_follow_the_seed() {
        let spec = ModelSpec { num_hidden_layers: 1, vocab_size: 64, ..shape("llama-58m").unwrap() };
        let plan = QuantPlan::w4a8();
        let [a, b, c] = [1, 1, 2].map(|seed| tensors(&spec, &plan, seed).unwrap());
        assert!(a == b && a != c);
        let values = a.get(ModelSpec::EMBEDDING).unwrap();
        let mean_square = values.iter().map(|x| f64::from(x * x)).sum::<f64>() / values.len() as f64;
        assert!((mean_square.sqrt() - f64::from(STD)).abs() < 0.002, "{}", mean_square.sqrt());
        let param = &spec.parameters()[0];
        assert_eq!(a.get(&scale_name(param)).unwrap(), [CLIP * STD / 127.0; 64]);
    }
}
