//! Random models of known shapes, for measuring.

use squat_model::plan::log_scale_name;
use squat_model::{Architecture, ModelSpec, ParamKind, QuantPlan, Tensors};

/// LLaMA-58M (METHOD.md section 7) or SmolLM2-135M.
pub fn spec(name: &str) -> ModelSpec {
    let llama_58m = ModelSpec {
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
    };
    match name {
        "llama-58m" => llama_58m,
        "smollm2-135m" => ModelSpec {
            vocab_size: 49_152,
            hidden_size: 576,
            intermediate_size: 1536,
            num_hidden_layers: 30,
            num_attention_heads: 9,
            num_key_value_heads: 3,
            rope_theta: 100_000.0,
            tie_word_embeddings: true,
            ..llama_58m
        },
        other => panic!("expected llama-58m or smollm2-135m, got {other}"),
    }
}

/// Roughly normal weights, with the scales that training would have left beside them: finding the best ones for so many
/// weights is not what is measured.
pub fn tensors(spec: &ModelSpec, plan: &QuantPlan) -> squat_engine::Result<Tensors> {
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

/// The plan of a name; thresholds that a random model straddles.
pub fn plan(name: &str, spec: &ModelSpec) -> squat_engine::Result<QuantPlan> {
    let mut plan = QuantPlan::named(name)?;
    if plan.needs_thresholds() {
        plan.thresholds = vec![1.0; spec.num_hidden_layers];
    }
    Ok(plan)
}
