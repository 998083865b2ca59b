//! Configurations and plans: round trips, and messages for wrong ones.
#![allow(clippy::unwrap_used)]

mod common;

use common::spec;
use proptest::prelude::*;
use serde_json::{Value, json};
use squat_model::packed::schema;
use squat_model::rope::{Rope, RopeScaling};
use squat_model::{LinearKind, LinearSet, ModelSpec, ParamKind, QuantPlan, arch};
use squat_quant::token_policy::TokenPolicy;
use squat_quant::{ActBits, ActPoint, ActScheme, Clip, Granularity, WeightBits, WeightScheme};

fn read(config: &Value) -> Result<ModelSpec, String> {
    squat_model::arch::spec_of_config(config.as_object().unwrap()).map_err(|error| error.to_string())
}

#[test]
fn published_shape_has_the_published_number_of_parameters() {
    // METHOD.md section 7: LLaMA-58M.
    let spec = read(&json!({
        "architectures": ["LlamaForCausalLM"], "vocab_size": 16000, "hidden_size": 512, "num_hidden_layers": 16,
        "num_attention_heads": 8, "intermediate_size": 1024, "max_position_embeddings": 128,
        "torch_dtype": "float32", "use_cache": true,
    }))
    .unwrap();
    assert_eq!(spec.num_parameters(), 58_343_936);
    assert_eq!((spec.num_key_value_heads, spec.head_dim, spec.rope.unwrap().theta), (8, 64, 10_000.0));
}

#[test]
fn parameters_in_forward_order() {
    let spec = spec(false);
    let params = spec.parameters();
    assert_eq!(params[0].name, "model.embed_tokens.weight");
    let layer0: Vec<&str> = params[1..10].iter().map(|p| p.name.as_str()).collect();
    assert_eq!(layer0[0], "model.layers.0.input_layernorm.weight");
    assert_eq!(layer0[4], "model.layers.0.self_attn.o_proj.weight");
    assert_eq!(layer0[5], "model.layers.0.post_attention_layernorm.weight");
    assert_eq!(layer0[8], "model.layers.0.mlp.down_proj.weight");
    assert_eq!(params.last().unwrap().kind, ParamKind::Head);
    assert_eq!(params.len(), 1 + 2 * 9 + 1 + 1);
    assert_eq!(params[2].shape, [24, 24]);
    assert_eq!(params[3].shape, [12, 24]);
    assert_eq!(params[9].shape, [24, 37]);
    assert_eq!(LinearKind::Down.input_point(), ActPoint::DownProjInput);
    assert_eq!(common::spec(true).parameters().len(), params.len() - 1);
}

#[test]
fn config_reads_back() {
    for tied in [true, false] {
        let mut spec = spec(tied);
        spec.norm_eps = 1e-6;
        assert_eq!(
            squat_model::arch::spec_of_config(&squat_model::arch::config_of_spec(&spec)).unwrap(),
            spec
        );
        spec.eos_token_ids = vec![2, 3];
        spec.pad_token_id = None;
        spec.bos_token_id = None;
        assert_eq!(
            squat_model::arch::spec_of_config(&squat_model::arch::config_of_spec(&spec)).unwrap(),
            spec
        );
    }
}

/// Features that no family has together are written under a configuration of our own.
#[test]
fn every_combination_of_features_reads_back() {
    use squat_model::rope::{Rope, RopeScaling};
    use squat_model::{LinearSet, Mlp, NormPlaces, QkNorm, Window};
    let read_back = |spec: &ModelSpec| {
        let config = squat_model::arch::config_of_spec(spec);
        assert_eq!(&squat_model::arch::spec_of_config(&config).unwrap(), spec, "{config:?}");
        config
    };
    for (name, spec) in squat_test::model::specs() {
        let native = read_back(&spec)["architectures"][0] == "SquatForCausalLM";
        assert_eq!(native, ["Gemma 3", "OLMo 2"].contains(&name), "{name}");
    }
    let local = Rope { theta: 500.0, scaling: RopeScaling::Linear { factor: 3.0 } };
    let odd = ModelSpec {
        mlp: Mlp::GeGlu,
        norm_places: NormPlaces::Both,
        qk_norm: QkNorm::Row,
        biases: LinearSet::of(&[LinearKind::K, LinearKind::Down]),
        without_rope: vec![true, false],
        window: Some(Window { size: 5, layers: vec![false, true], rope: Some(local) }),
        ..spec(false)
    };
    let config = read_back(&odd);
    assert_eq!(config["family"], "LlamaForCausalLM");
    read_back(&ModelSpec { rope: None, window: None, without_rope: Vec::new(), ..odd });
    for (key, value, want) in [
        ("family", json!("GemaForCausalLM"), "did you mean"),
        ("mlp", json!("swigul"), "did you mean"),
        ("biases", json!(["q"]), "biases"),
        ("without_rope", json!([true]), "2 layers"),
        ("window", json!({"size": 0, "layers": [true, true]}), "sliding_window"),
        ("rope", json!("llama3"), "rope"),
    ] {
        let mut config = config.clone();
        config.insert(key.to_owned(), value);
        let error = read(&Value::Object(config)).unwrap_err();
        assert!(error.contains(want), "{key}: {error}");
    }
}

#[test]
fn wrong_configurations_are_named() {
    let change = |key: &str, value: Value| {
        let mut config = squat_model::arch::config_of_spec(&spec(false));
        if value == "absent" {
            config.remove(key);
        } else {
            config.insert(key.to_owned(), value);
        }
        read(&Value::Object(config)).unwrap_err()
    };
    let cases = [
        ("architectures", json!(["LlamaForCasualLM"]), "did you mean \"LlamaForCausalLM\""),
        ("architectures", json!(["BertModel"]), "known: LlamaForCausalLM"),
        ("vocab_size", json!("absent"), "vocab_size: expected a whole number, got nothing"),
        ("vocab_size", json!(-5), "got -5"),
        ("hidden_size", json!(0), "hidden_size: expected a positive number"),
        ("num_key_value_heads", json!(3), "a divisor of num_attention_heads = 4"),
        ("head_dim", json!(5), "even"),
        ("hidden_act", json!("gelu"), "\"silu\""),
        ("attention_bias", json!("yes"), "attention_bias"),
        ("use_sliding_window", json!(true), "sliding window is not supported"),
        ("layer_types", json!(["full_attention", "sliding_attention"]), "layer_types"),
        ("rope_scaling", json!({"type": "yarn", "factor": 2.0}), "not supported"),
        ("rope_scaling", json!({"type": "linear"}), "rope_scaling.factor"),
        ("rope_scaling", json!({"type": "linear", "factor": -2.0}), "factor"),
        ("rope_parameters", json!({"rope_type": "default", "rope_theta": 5.0}), "rope_theta"),
        ("rope_parameters", json!({"rope_type": "llama3", "rope_theta": 10000.0}), "rope_parameters.factor"),
        ("rms_norm_eps", json!(0), "rms_norm_eps"),
        ("rope_theta", json!("x"), "rope_theta: expected a number"),
        ("eos_token_id", json!(19), "below vocab_size = 19"),
        ("vocab_size", json!(1u64 << 31), "parameters in all"),
        ("intermediate_size", json!(1u64 << 40), "at most 2147483648"),
        ("num_hidden_layers", json!(20_000), "at most 1000"),
    ];
    for (key, value, want) in cases {
        let wide = if value == json!(1u64 << 31) { Some(()) } else { None };
        let error = match wide {
            // Sizes that are allowed one by one and absurd together.
            Some(()) => {
                let mut config = squat_model::arch::config_of_spec(&spec(false));
                for key in
                    ["vocab_size", "hidden_size", "intermediate_size", "head_dim", "num_attention_heads"]
                {
                    config.insert(key.to_owned(), json!(1u64 << 31));
                }
                read(&Value::Object(config)).unwrap_err()
            }
            None => change(key, value),
        };
        assert!(error.contains(want), "{key}: {error}");
    }
    assert!(read(&json!({})).unwrap_err().contains("config.json of a language model"));
    let default_rope = json!({"rope_type": "default", "rope_theta": 500000.0});
    let mut config = squat_model::arch::config_of_spec(&spec(false));
    config.insert("rope_parameters".to_owned(), default_rope);
    config.remove("rope_theta");
    assert_eq!(read(&Value::Object(config)).unwrap().rope.unwrap().theta, 500_000.0);
}

/// Keys of transformers 5 and older ones, alone and together; an empty object says nothing.
#[test]
fn rotary_scalings_are_read_from_old_and_new_keys() {
    let rope = |changes: &[(&str, Value)]| {
        let mut config = squat_model::arch::config_of_spec(&spec(false));
        config.remove("rope_theta");
        changes.iter().for_each(|(key, value)| drop(config.insert((*key).to_owned(), value.clone())));
        read(&Value::Object(config)).map(|spec| spec.rope.unwrap())
    };
    let plain = Rope::new(10_000.0);
    assert_eq!(rope(&[]).unwrap(), plain);
    assert_eq!(rope(&[("rope_scaling", json!({}))]).unwrap(), plain);
    assert_eq!(rope(&[("rope_scaling", json!({"type": "default"}))]).unwrap(), plain);
    let of_scaling = json!({"rope_theta": 500000, "rope_type": "default"});
    assert_eq!(rope(&[("rope_scaling", of_scaling.clone())]).unwrap(), Rope::new(500_000.0));
    assert_eq!(rope(&[("rope_parameters", json!({"rope_theta": 7.0}))]).unwrap(), Rope::new(7.0));
    let linear = Rope { theta: 10_000.0, scaling: RopeScaling::Linear { factor: 2.0 } };
    assert_eq!(rope(&[("rope_scaling", json!({"type": "linear", "factor": 2.0}))]).unwrap(), linear);
    let both = [("rope_scaling", of_scaling.clone()), ("rope_parameters", of_scaling.clone())];
    assert_eq!(rope(&both).unwrap(), Rope::new(500_000.0));
    // Two that disagree are refused.
    let other = json!({"rope_theta": 5.0, "rope_type": "default"});
    assert!(rope(&[("rope_scaling", other), ("rope_parameters", of_scaling.clone())]).is_err());
    assert!(rope(&[("rope_theta", json!(10_000.0)), ("rope_parameters", of_scaling)]).is_err());
    let llama3 = json!({
        "rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    });
    let read_back = rope(&[("rope_theta", json!(500000.0)), ("rope_scaling", llama3)]).unwrap();
    let spec = ModelSpec { rope: Some(read_back.clone()), ..spec(true) };
    assert!(matches!(read_back.scaling, RopeScaling::Llama3 { factor: 32.0, .. }));
    assert_eq!(read(&Value::Object(squat_model::arch::config_of_spec(&spec))).unwrap(), spec);
}

/// Parameters follow from the features; files of a family have its own.
#[test]
fn qwen_is_llama_with_biases_or_norms() {
    let sizes = spec(true);
    let of = |base: ModelSpec| ModelSpec {
        architecture: base.architecture,
        biases: base.biases,
        qk_norm: base.qk_norm,
        ..sizes.clone()
    };
    let added = |spec: &ModelSpec| {
        let known: Vec<String> = sizes.parameters().into_iter().map(|param| param.name).collect();
        let new = spec.parameters().into_iter().filter(|param| !known.contains(&param.name));
        new.map(|param| (param.name, param.shape)).collect::<Vec<_>>()
    };
    let qwen2 = of(arch::qwen2::base());
    assert_eq!(
        added(&qwen2)[..3],
        [("q", 24), ("k", 12), ("v", 12)]
            .map(|(kind, size)| (format!("model.layers.0.self_attn.{kind}_proj.bias"), vec![size]))
    );
    let qwen3 = of(arch::qwen3::base());
    assert_eq!(
        added(&qwen3)[..2],
        ["q", "k"].map(|kind| (format!("model.layers.0.self_attn.{kind}_norm.weight"), vec![6]))
    );
    for spec in [qwen2, qwen3] {
        assert_eq!(read(&Value::Object(arch::config_of_spec(&spec))).unwrap(), spec);
    }
    // Biases of LLaMA are a key of the configuration.
    let mut config = arch::config_of_spec(&sizes);
    config.insert("attention_bias".to_owned(), json!(true));
    let spec = read(&Value::Object(config)).unwrap();
    assert!(spec.biases.contains_all(LinearSet::ATTENTION) && !spec.biases.contains(LinearKind::Up));
    assert_eq!(read(&Value::Object(arch::config_of_spec(&spec))).unwrap(), spec);
}

fn schemes() -> impl Strategy<Value = Option<WeightScheme>> {
    let granularity = prop_oneof![
        Just(Granularity::PerTensor),
        Just(Granularity::PerChannel),
        (1usize..200).prop_map(Granularity::PerGroup)
    ];
    let scheme = (0..5usize, granularity)
        .prop_map(|(bits, granularity)| WeightScheme { bits: WeightBits::ALL[bits], granularity });
    prop::option::of(scheme)
}

fn plans() -> impl Strategy<Value = QuantPlan> {
    let scheme = prop::option::of(prop_oneof![Just(ActScheme::Static), Just(ActScheme::Dynamic)]);
    let policy = (0..6, 0.0f32..=1.0, any::<u64>(), 0usize..100);
    let thresholds = prop::collection::vec(-1e6f32..1e6, 2);
    (schemes(), schemes(), prop::collection::vec(scheme, 9), prop::bool::ANY, policy, thresholds).prop_map(
        |(weight, table, points, four, (policy, rho, seed, count), thresholds)| {
            let mut plan =
                QuantPlan { weight, embedding: table, head: table, thresholds, rho, ..QuantPlan::default() };
            for (point, scheme) in ActPoint::ALL.into_iter().zip(points) {
                plan.set_point(point, scheme);
            }
            plan.attn_probs_bits = if four { 4 } else { 8 };
            plan.policy = match policy {
                0 => TokenPolicy::Uniform(ActBits::A8),
                1 => TokenPolicy::Uniform(ActBits::A4),
                2 => TokenPolicy::SinkAttention,
                3 => TokenPolicy::ActivationNorm,
                4 => TokenPolicy::Random { rho, seed },
                _ => TokenPolicy::First { count },
            };
            plan
        },
    )
}

proptest! {
    #[test]
    fn plans_read_back(plan in plans()) {
        plan.validate(&spec(true)).unwrap();
        let text = serde_json::to_string(&plan).unwrap();
        let back: QuantPlan = serde_json::from_str(&text).unwrap();
        prop_assert_eq!(back, plan);
    }
}

#[test]
fn named_plans() {
    for name in QuantPlan::NAMES {
        let plan = QuantPlan::named(name).unwrap();
        plan.validate(&spec(true)).unwrap();
        assert_eq!(plan.is_weight_only(), matches!(name, "fp" | "w4"), "{name}");
        assert_eq!(serde_json::from_value::<QuantPlan>(json!(name)).unwrap(), plan);
    }
    assert_eq!(QuantPlan::named("w4a8").unwrap(), QuantPlan::default());
    assert_eq!(QuantPlan::named("w2-rho25").unwrap().rho, 0.25);
    for name in ["w3a8-g64-t4", "w3a8-t4-g64"] {
        let plan = QuantPlan::named(name).unwrap();
        let weight = WeightScheme { bits: WeightBits::W3, granularity: Granularity::PerGroup(64) };
        assert_eq!((plan.weight, plan.head), (Some(weight), Some(WeightScheme::per_channel(WeightBits::W4))));
    }
    for wrong in ["w4a8-g", "w4a8-g0", "w4a8-g64-g32", "fp-g64", "w4a8-g+64"] {
        assert!(QuantPlan::named(wrong).is_err(), "{wrong}");
    }
    let plan = QuantPlan::named("rho50").unwrap();
    assert_eq!((plan.policy, plan.rho, plan.needs_thresholds()), (TokenPolicy::SinkAttention, 0.5, true));
    assert_eq!(plan.widths(ActPoint::Key), &ActBits::ALL);
    assert_eq!(plan.widths(ActPoint::LmHeadInput), &[ActBits::A8]);
    assert_eq!(QuantPlan::w4a4().widths(ActPoint::AttnProbs), &[ActBits::A8]);
    for wrong in
        ["w4a16", "w5a8", "rho101", "rho", "", "wé", "w", "4a8", "rho+50", "w4a8x", "a8", "-rho50", "w4-"]
    {
        assert!(QuantPlan::named(wrong).is_err(), "{wrong}");
    }
    assert!(QuantPlan::named("w4a88").unwrap_err().to_string().contains("did you mean \"w4a8\""));
}

#[test]
fn absent_keys_have_defaults_and_rho_chooses_the_policy() {
    let read = |value: Value| QuantPlan::from_json(&value).unwrap();
    assert_eq!(read(json!({})), QuantPlan::default());
    assert_eq!(read(json!({"rho": 0.5})), QuantPlan::with_rho(0.5));
    assert_eq!(read(json!({"rho": 0.0})), QuantPlan::w4a4());
    assert_eq!(read(json!({"policy": {"name": "uniform", "bits": 4}})), QuantPlan::w4a4());
    assert_eq!(read(json!({"points": {}})), QuantPlan::named("w4").unwrap());
    let group = read(json!({"weight": {"bits": 3, "group_size": 64}})).weight.unwrap();
    assert_eq!(group, WeightScheme { bits: WeightBits::W3, granularity: Granularity::PerGroup(64) });
}

/// A share with few digits stays one, absent means none, and no other program is led to believe that it knows the plan.
#[test]
fn clipping_is_a_share_and_our_own() {
    let spec = spec(false);
    let clipped = QuantPlan { clip: Clip::new(0.85).unwrap(), ..QuantPlan::w4a4() };
    let json = clipped.to_json();
    assert_eq!(json["clip"].to_string(), "0.85");
    assert_eq!(QuantPlan::from_json(&json).unwrap(), clipped);
    assert_eq!(QuantPlan::w4a4().to_json().get("clip"), None);
    for wrong in [json!(0), json!(1.5), json!(-0.5), json!("0.8")] {
        let error = QuantPlan::from_json(&json!({"clip": wrong})).unwrap_err().to_string();
        assert!(error.contains("clip"), "{error}");
    }
    let method = |plan| schema::quantization_config(&spec, plan)["quant_method"].clone();
    assert_eq!((method(&clipped), method(&QuantPlan::w4a4())), (json!("squat"), json!("compressed-tensors")));
    let drawn = QuantPlan::named("w2-rho25-random").unwrap();
    assert_eq!(drawn.policy, TokenPolicy::Random { rho: 0.25, seed: 1 });
    assert!(!drawn.needs_thresholds() && QuantPlan::named("rho50-rand").is_err());
}

#[test]
fn former_names_of_points_are_read_and_present_ones_written() {
    let mut plan = QuantPlan::named("w4a8").unwrap();
    plan.set_point(ActPoint::OProjInput, Some(ActScheme::Static));
    plan.set_point(ActPoint::DownProjInput, None);
    plan.set_point(ActPoint::LmHeadInput, Some(ActScheme::Static));
    let mut text = plan.to_json().to_string();
    for (former, present) in
        [("attn_out", "o_proj_input"), ("mlp_mid", "down_proj_input"), ("head_in", "lm_head_input")]
    {
        assert!(text.contains(present), "{text}");
        text = text.replace(present, former);
    }
    let read = QuantPlan::from_json(&serde_json::from_str(&text).unwrap()).unwrap();
    assert_eq!(read, plan);
    assert!(!read.to_json().to_string().contains("head_in\""));
}

#[test]
fn wrong_plans_are_named() {
    let cases = [
        (json!({"wieght": null}), "did you mean \"weight\""),
        (json!({"weight": {"bits": 5}}), "plan.weight.bits: expected 8, 4, 3, 2"),
        (json!({"weight": {"bits": 4, "granularity": "per_chanel"}}), "did you mean \"per_channel\""),
        (json!({"weight": {"bits": 4, "granularity": "per_group"}}), "group_size"),
        (json!({"weight": {"bits": 4, "granularity": "per_channel", "group_size": 32}}), "per_group"),
        (json!({"weight": {"bits": 4, "zero": 1}}), "plan.weight.zero"),
        (json!({"points": {"attn": "dynamic"}}), "plan.points.attn"),
        (json!({"points": {"mlp_mid": null, "down_proj_input": null}}), "the same point"),
        (json!({"points": {"query": "statik"}}), "did you mean \"static\""),
        (json!({"points": {"query": 8}}), "\"dynamic\", \"static\" or null"),
        (json!({"policy": {"name": "sink"}}), "unknown token policy"),
        (json!({"policy": {"name": "uniform", "bits": 6}}), "8 or 4"),
        (json!({"policy": {"name": "uniform", "seed": 6}}), "plan.policy.seed"),
        (json!({"policy": {"name": "first"}}), "plan.policy.count"),
        (json!({"thresholds": ["x"]}), "a list of numbers"),
        (json!({"rho": "half"}), "rho: expected a number"),
        (json!(4), "plan: expected an object"),
    ];
    for (value, want) in cases {
        let error = QuantPlan::from_json(&value).unwrap_err().to_string();
        assert!(error.contains(want), "{value}: {error}");
    }
    let spec = spec(true);
    let with = |change: fn(&mut QuantPlan)| {
        let mut plan = QuantPlan::default();
        change(&mut plan);
        plan.validate_frozen(&spec).unwrap_err().to_string()
    };
    assert!(with(|p| p.head = None).contains("ties them"));
    assert!(with(|p| p.rho = 1.5).contains("plan.rho"));
    assert!(with(|p| p.rho = f32::NAN).contains("plan.rho"));
    assert!(with(|p| p.attn_probs_bits = 6).contains("attn_probs_bits"));
    assert!(with(|p| p.points[4] = Some(ActScheme::Static)).contains("known"));
    assert!(with(|p| p.thresholds = vec![0.0; 3]).contains("one for each of 2 layers"));
    assert!(with(|p| p.thresholds = vec![0.0, f32::NAN]).contains("thresholds[1]"));
    assert!(with(|p| p.policy = TokenPolicy::SinkAttention).contains("freezes"));
    assert!(with(|p| p.policy = TokenPolicy::Random { rho: 0.3, seed: 0 }).contains("same rho"));
}

#[test]
fn every_architecture_file_is_registered() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src/arch");
    let registry = std::fs::read_to_string(folder.join("mod.rs")).unwrap();
    let (_, list) = registry.split_once("architectures! {").unwrap();
    let lines: Vec<&str> = list.lines().map(str::trim).take_while(|line| *line != "}").collect();
    // The reader that most families share, and what is written where no family fits.
    let shared = ["mod.rs", "decoder.rs", "native.rs"];
    for name in common::listing(&folder).iter().filter(|name| !shared.contains(&name.as_str())) {
        let module = name.strip_suffix(".rs").unwrap();
        assert!(lines.contains(&module), "{name} has no line in the registry");
    }
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src/format");
    let modules = std::fs::read_to_string(folder.join("mod.rs")).unwrap();
    for name in common::listing(&folder).iter().filter(|name| *name != "mod.rs") {
        assert!(modules.contains(&format!("pub mod {};", name.trim_end_matches(".rs"))), "{name}");
    }
}
