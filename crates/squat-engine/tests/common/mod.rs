//! Random tiny models: enough of everything that can go wrong, small enough for exact comparisons everywhere.
#![allow(dead_code, clippy::unwrap_used)]

use squat_engine::{Engine, EngineOptions};
use squat_model::plan::{static_scale_name, static_zero_point_name};
use squat_model::{ModelSpec, ParamKind, QuantPlan, Tensors, arch};
use squat_quant::token_policy::TokenPolicy;
use squat_quant::{ActBits, ActPoint, ActScheme, Granularity, WeightBits, WeightScheme};

/// SplitMix64.
pub struct Rng(pub u64);

impl Rng {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// Roughly normal, standard deviation 1.
    pub fn normal(&mut self) -> f32 {
        let sum: f32 = (0..4).map(|_| (self.next() >> 40) as f32 / (1u64 << 24) as f32 - 0.5).sum();
        sum * 1.732
    }
}

/// Odd sizes, grouped-query heads, a head width that is not a multiple of any vector.
pub fn spec(tied: bool) -> ModelSpec {
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

/// The same sizes with the operations of GPT-2: every query head has a key-value head of its own.
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

/// The same sizes with biases of queries, keys and values.
pub fn qwen2() -> ModelSpec {
    let base = arch::qwen2::base();
    ModelSpec { architecture: base.architecture, biases: base.biases, ..spec(false) }
}

/// The same sizes with norms of the heads of queries and keys; together the heads are wider than the model.
pub fn qwen3() -> ModelSpec {
    let base = arch::qwen3::base();
    ModelSpec { architecture: base.architecture, qk_norm: base.qk_norm, ..spec(true) }
}

/// Every architecture by name, tied and not.
pub fn specs() -> [(&'static str, ModelSpec); 5] {
    [("untied", spec(false)), ("tied", spec(true)), ("GPT-2", gpt2()), ("Qwen2", qwen2()), ("Qwen3", qwen3())]
}

/// Every plan with LLaMA, GPT-2, and Qwen2 or Qwen3 in turn.
pub fn cases() -> Vec<(String, ModelSpec, QuantPlan)> {
    let mut cases = Vec::new();
    for (index, (plan_name, plan)) in plans().into_iter().enumerate() {
        let qwen = if index % 2 == 0 { ("Qwen2", qwen2()) } else { ("Qwen3", qwen3()) };
        for (name, spec) in [("LLaMA", spec(false)), ("GPT-2", gpt2()), qwen] {
            cases.push((format!("{name} {plan_name}"), spec, plan.clone()));
        }
    }
    cases
}

/// Weights large enough for sharp attention, and static quantizers for every point and width.
pub fn tensors(spec: &ModelSpec, seed: u64) -> Tensors {
    let mut rng = Rng(seed);
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
                let zero = (rng.next() % 5) as i32 - 2;
                tensors.insert(static_scale_name(point, layer, bits), &[1], vec![scale]).unwrap();
                tensors.insert_i32(static_zero_point_name(point, layer, bits), &[1], vec![zero]).unwrap();
            }
        }
    }
    tensors
}

/// Makes every point static.
pub fn make_static(mut plan: QuantPlan) -> QuantPlan {
    for point in ActPoint::ALL {
        plan.set_point(point, Some(ActScheme::Static));
    }
    plan
}

/// A plan whose policy mixes widths, with thresholds that random models straddle.
pub fn mixed(policy: TokenPolicy) -> QuantPlan {
    let thresholds = match policy {
        TokenPolicy::ActivationNorm => vec![0.0, 13.0, 17.0],
        _ => vec![0.9, 0.9, 0.9],
    };
    let rho = 0.5;
    QuantPlan { policy, rho, thresholds, ..QuantPlan::with_rho(rho) }
}

/// Plans by name: every policy, both activation schemes, every weight width and granularity, points left out. The
/// variable `SQUAT_TEST_PLANS` says to take every so-many-th alone, for emulated CPUs.
pub fn plans() -> Vec<(String, QuantPlan)> {
    let step = std::env::var("SQUAT_TEST_PLANS")
        .map_or(1, |text| text.parse().expect("SQUAT_TEST_PLANS is a number"));
    all_plans().into_iter().step_by(step).collect()
}

fn all_plans() -> Vec<(String, QuantPlan)> {
    let mut plans: Vec<(String, QuantPlan)> = ["fp", "w8a8", "w4a8", "w4a4", "w2a8", "ternary-a8", "w4"]
        .into_iter()
        .map(|name| (name.to_owned(), QuantPlan::named(name).unwrap()))
        .collect();
    for policy in [
        TokenPolicy::SinkAttention,
        TokenPolicy::Random { rho: 0.5, seed: 3 },
        TokenPolicy::First { count: 7 },
        TokenPolicy::ActivationNorm,
    ] {
        plans.push((format!("rho50 {}", policy.name()), mixed(policy)));
        plans.push((format!("rho50 static {}", policy.name()), make_static(mixed(policy))));
    }
    for (name, plan) in [("w4a8", QuantPlan::w4a8()), ("w4a4", QuantPlan::w4a4())] {
        plans.push((format!("{name} static"), make_static(plan)));
    }
    for granularity in [Granularity::PerTensor, Granularity::PerGroup(16)] {
        for bits in [WeightBits::W4, WeightBits::W3] {
            let weight = Some(WeightScheme { bits, granularity });
            let plan = QuantPlan { weight, ..mixed(TokenPolicy::SinkAttention) };
            plans.push((format!("{bits:?} {granularity:?}"), plan));
        }
    }
    for left_out in ActPoint::ALL {
        let mut plan = mixed(TokenPolicy::SinkAttention);
        plan.set_point(left_out, None);
        plans.push((format!("without {}", left_out.name()), plan));
    }
    let mut activations_only = mixed(TokenPolicy::SinkAttention);
    (activations_only.weight, activations_only.embedding, activations_only.head) = (None, None, None);
    plans.push(("activations only".to_owned(), activations_only));
    let narrow_probs = QuantPlan { attn_probs_bits: 4, ..mixed(TokenPolicy::SinkAttention) };
    plans.push(("4-bit probabilities".to_owned(), narrow_probs.clone()));
    plans.push(("4-bit probabilities static".to_owned(), make_static(narrow_probs)));
    let mut half = mixed(TokenPolicy::SinkAttention);
    half.set_point(ActPoint::Key, Some(ActScheme::Static));
    half.set_point(ActPoint::DownProjInput, Some(ActScheme::Static));
    plans.push(("keys and down_proj_input static".to_owned(), half));
    let mut queries = mixed(TokenPolicy::SinkAttention);
    queries.set_point(ActPoint::Query, Some(ActScheme::Static));
    plans.push(("queries static".to_owned(), queries));
    plans
}

/// An engine over a random model.
pub fn engine(spec: &ModelSpec, plan: &QuantPlan, options: EngineOptions) -> Engine {
    Engine::from_parts(spec, plan, &tensors(spec, 11), options).unwrap()
}

/// BOS and random ids.
pub fn tokens(spec: &ModelSpec, n: usize, seed: u64) -> Vec<u32> {
    let mut rng = Rng(seed);
    let vocabulary = spec.vocab_size as u64;
    std::iter::once(1).chain((1..n).map(|_| (rng.next() % vocabulary) as u32)).collect()
}

/// Bits of logits, for exact comparison.
pub fn bits(logits: &[f32]) -> Vec<u32> {
    logits.iter().map(|x| x.to_bits()).collect()
}
