//! Quantization plans for the tiny models of `squat-test`, and engines over them.
#![allow(dead_code, unused_imports, clippy::unwrap_used, reason = "each test binary uses its part")]

use squat_engine::{Engine, EngineOptions};
use squat_model::{ModelSpec, QuantPlan};
use squat_quant::token_policy::TokenPolicy;
use squat_quant::{ActPoint, ActScheme, Granularity, WeightBits, WeightScheme};

pub use squat_test::bits;
pub use squat_test::model::{gemma3, gpt2, llama as spec, olmo2, qwen2, qwen3, specs, tensors, tokens};
pub use squat_test::random::noise_of_name as noise;

/// Every plan with LLaMA, GPT-2, and one of the others in turn.
pub fn cases() -> Vec<(String, ModelSpec, QuantPlan)> {
    let mut cases = Vec::new();
    for (index, (plan_name, plan)) in plans().into_iter().enumerate() {
        let other = match index % 4 {
            0 => ("Qwen2", qwen2()),
            1 => ("Qwen3", qwen3()),
            2 => ("Gemma 3", gemma3()),
            _ => ("OLMo 2", olmo2()),
        };
        for (name, spec) in [("LLaMA", spec(false)), ("GPT-2", gpt2()), other] {
            cases.push((format!("{name} {plan_name}"), spec, plan.clone()));
        }
    }
    cases
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
