//! Specs and random weights of tiny models: odd sizes, small enough for exact comparisons everywhere.

use crate::random::Rng;
use squat_model::plan::{static_scale_name, static_zero_point_name};
use squat_model::rope::Rope;
use squat_model::{ModelSpec, ParamKind, Tensors, Window, arch};
use squat_quant::{ActBits, ActPoint};

/// A LLaMA with grouped-query heads and a head width that no vector width divides.
pub fn llama(tied: bool) -> ModelSpec {
    ModelSpec {
        vocab_size: 37,
        hidden_size: 24,
        intermediate_size: 41,
        num_hidden_layers: 3,
        num_attention_heads: 4,
        num_key_value_heads: 2,
        head_dim: 10,
        max_position_embeddings: 96,
        norm_eps: 1e-5,
        tie_word_embeddings: tied,
        bos_token_id: Some(1),
        eos_token_ids: vec![2],
        pad_token_id: None,
        ..arch::llama::base()
    }
}

/// A GPT-2 of about the same sizes: every query head has its own key-value head.
pub fn gpt2() -> ModelSpec {
    ModelSpec {
        num_attention_heads: 2,
        head_dim: 13,
        hidden_size: 26,
        vocab_size: 37,
        intermediate_size: 41,
        num_hidden_layers: 3,
        num_key_value_heads: 2,
        max_position_embeddings: 96,
        tie_word_embeddings: true,
        bos_token_id: Some(1),
        eos_token_ids: vec![2],
        ..arch::gpt2::base()
    }
}

/// The LLaMA with biases of queries, keys and values.
pub fn qwen2() -> ModelSpec {
    let base = arch::qwen2::base();
    ModelSpec { architecture: base.architecture, biases: base.biases, ..llama(false) }
}

/// The LLaMA with norms of the heads of queries and keys; together the heads are wider than the model.
pub fn qwen3() -> ModelSpec {
    let base = arch::qwen3::base();
    ModelSpec { architecture: base.architecture, qk_norm: base.qk_norm, ..llama(true) }
}

/// Norms before and behind the blocks, GeGLU, and windows that are shorter than the sequences of tests, with a rotary embedding of
/// their own.
pub fn gemma3() -> ModelSpec {
    let rope = Some(Rope::new(10_000.0));
    let window = Window { size: 9, layers: vec![true, false, true], rope };
    ModelSpec { rope: Some(Rope::new(1e6)), window: Some(window), ..of(&arch::gemma3::base(), llama(true)) }
}

/// Norms behind the blocks, and of whole rows of queries and keys.
pub fn olmo2() -> ModelSpec {
    of(&arch::olmo2::base(), llama(false))
}

/// A layer without RoPE.
pub fn smollm3() -> ModelSpec {
    ModelSpec { without_rope: vec![false, true, false], ..of(&arch::smollm3::base(), llama(true)) }
}

/// The features of a family with the sizes of another model.
fn of(family: &ModelSpec, sizes: ModelSpec) -> ModelSpec {
    ModelSpec {
        architecture: family.architecture,
        norm_places: family.norm_places,
        qk_norm: family.qk_norm,
        mlp: family.mlp,
        ..sizes
    }
}

/// Each architecture by name, LLaMA tied and untied.
pub fn specs() -> [(&'static str, ModelSpec); 8] {
    [
        ("untied", llama(false)),
        ("tied", llama(true)),
        ("GPT-2", gpt2()),
        ("Qwen2", qwen2()),
        ("Qwen3", qwen3()),
        ("Gemma 3", gemma3()),
        ("OLMo 2", olmo2()),
        ("SmolLM3", smollm3()),
    ]
}

/// Weights large enough for sharp attention, and static quantizers for every point and width.
pub fn tensors(spec: &ModelSpec, seed: u64) -> Tensors {
    let mut rng = Rng::new(seed);
    let mut tensors = Tensors::new();
    for param in spec.parameters() {
        let n = param.len();
        let values = match param.kind {
            ParamKind::Norm(_) => (0..n).map(|_| 1.0 + 0.2 * rng.normal()).collect(),
            ParamKind::Bias => (0..n).map(|_| 0.5 * rng.normal()).collect(),
            _ => {
                let std = 1.5 / (param.shape[1] as f32).sqrt();
                (0..n).map(|_| std * rng.normal()).collect()
            }
        };
        tensors.insert(param.name, &param.shape, values).unwrap();
    }
    for layer in (0..spec.num_hidden_layers).map(Some).chain([None]) {
        for point in ActPoint::ALL {
            for bits in ActBits::ALL {
                let scale = 3.0 / bits.range().max as f32 * (1.0 + 0.1 * rng.normal());
                let zero = (rng.next_u64() % 5) as i32 - 2;
                tensors.insert(static_scale_name(point, layer, bits), &[1], vec![scale]).unwrap();
                tensors.insert_i32(static_zero_point_name(point, layer, bits), &[1], vec![zero]).unwrap();
            }
        }
    }
    tensors
}

/// BOS and `n - 1` random ids.
pub fn tokens(spec: &ModelSpec, n: usize, seed: u64) -> Vec<u32> {
    let mut rng = Rng::new(seed);
    let vocabulary = spec.vocab_size as u64;
    std::iter::once(1).chain((1..n).map(|_| (rng.next_u64() % vocabulary) as u32)).collect()
}
