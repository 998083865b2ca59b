//! The engine against other definitions of the same thing: the slow reference forward, and a real model's known text.
#![allow(clippy::unwrap_used)]

mod common;

use common::{engine, spec, specs, tensors, tokens};
use squat_engine::{Engine, EngineOptions, GenerateOptions, Weights};
use squat_model::{QuantPlan, TensorSource, Tensors, reference};
use squat_quant::Affine;
use squat_test::data::{KNOWN_STORY, data};
use squat_test::max_abs_diff as worst;
use std::path::PathBuf;

#[test]
fn full_precision_agrees_with_the_reference_forward() {
    for (name, spec) in specs() {
        let tensors = tensors(&spec, 11);
        let ids = tokens(&spec, 40, 3);
        let want = reference::forward(&spec, &tensors, &ids).unwrap();
        let run = |weights| {
            let options = EngineOptions { threads: 1, weights, ..Default::default() };
            let engine = engine(&spec, &QuantPlan::full_precision(), options);
            engine.session().unwrap().prefill_all(&ids).unwrap()
        };
        let range = want.iter().fold(0f32, |a, x| a.max(x.abs()));
        assert!(worst(&run(Weights::F32), &want) < 2e-5 * range, "{name}");
        let half = worst(&run(Weights::F16), &want);
        assert!(half > 0.0 && half < 2e-2 * range, "{name}: {half}");
    }
}

/// Weight-only plans are the reference forward over dequantized weights.
#[test]
fn weight_only_agrees_with_the_reference_over_dequantized_weights() {
    for name in ["w8", "w4", "w2", "ternary"] {
        let plan = QuantPlan::named(name).unwrap();
        let spec = spec(false);
        let tensors = tensors(&spec, 11);
        let mut dequantized = Tensors::new();
        for param in spec.parameters() {
            let mut values = tensors.read_f32(&param.name).unwrap();
            if let Some(scheme) = plan.scheme_of(&param) {
                let (rows, cols) = (param.shape[0], param.shape[1]);
                let mut scales = vec![0.0; scheme.num_scales(rows, cols)];
                squat_quant::calibrate::weight_scales(&values, rows, cols, scheme, &mut scales);
                for (i, x) in values.iter_mut().enumerate() {
                    let scale = scales[scheme.scale_index(i / cols, i % cols, cols)];
                    *x = Affine::symmetric(scale, scheme.bits.range()).fake_quantize(*x);
                }
            }
            dequantized.insert(param.name, &param.shape, values).unwrap();
        }
        let ids = tokens(&spec, 30, 4);
        let want = reference::forward(&spec, &dequantized, &ids).unwrap();
        let engine = engine(&spec, &plan, EngineOptions::threads(2));
        let got = engine.session().unwrap().prefill_all(&ids).unwrap();
        let range = want.iter().fold(0f32, |a, x| a.max(x.abs()));
        assert!(worst(&got, &want) < 2e-5 * range, "{name}");
    }
}

/// Eight-bit weights and activations stay near full precision, and each step down is worse: quantization happens.
#[test]
fn quantization_costs_accuracy_in_the_expected_order() {
    let spec = spec(false);
    let tensors = tensors(&spec, 11);
    let ids = tokens(&spec, 40, 3);
    let want = reference::forward(&spec, &tensors, &ids).unwrap();
    let error = |plan: &str| {
        let plan = QuantPlan::named(plan).unwrap();
        let engine = engine(&spec, &plan, EngineOptions::threads(1));
        let got = engine.session().unwrap().prefill_all(&ids).unwrap();
        (got.iter().zip(&want).map(|(a, b)| (a - b) * (a - b)).sum::<f32>() / want.len() as f32).sqrt()
    };
    let spread = (want.iter().map(|x| x * x).sum::<f32>() / want.len() as f32).sqrt();
    let [w8a8, w4a8, w4a4] = ["w8a8", "w4a8", "w4a4"].map(error);
    assert!(w8a8 < 0.1 * spread, "{w8a8} of {spread}");
    assert!(w8a8 < w4a8 && w4a8 < w4a4, "{w8a8} {w4a8} {w4a4}");
}

fn stories() -> Option<PathBuf> {
    data("stories260K/stories260K.bin")
}

#[test]
fn the_known_story_is_told() {
    let Some(path) = stories() else { return };
    let tokenizer =
        squat_model::format::llama2c::Llama2cTokenizer::load(path.with_file_name("tok512.bin"), 512).unwrap();
    for options in [
        EngineOptions::threads(1),
        EngineOptions::threads(2),
        EngineOptions { threads: 1, weights: Weights::F16, ..Default::default() },
    ] {
        let engine = Engine::from_model(&squat_model::open(&path).unwrap(), options).unwrap();
        let generate = GenerateOptions { max_tokens: 120, ..Default::default() };
        let mut shown = Vec::new();
        let generation = engine
            .generate(&[1], &generate, |token| {
                shown.push(token);
                true
            })
            .unwrap();
        assert_eq!(generation.tokens, shown);
        let text = tokenizer.decode(&generation.tokens);
        assert!(text.trim_start().starts_with(KNOWN_STORY), "{text}");
    }
}

/// On a real model 8-bit rounding hardly moves the logits.
#[test]
fn the_real_model_survives_8_bits() {
    let Some(path) = stories() else { return };
    let (spec, tensors) = squat_model::format::llama2c::load_checkpoint(&path).unwrap();
    let ids = tokens(&spec, 60, 2);
    let run = |plan: &str| {
        let plan = QuantPlan::named(plan).unwrap();
        let engine = Engine::from_parts(&spec, &plan, &tensors, EngineOptions::threads(1)).unwrap();
        engine.session().unwrap().prefill_all(&ids).unwrap()
    };
    let (full, packed) = (run("fp"), run("w8a8"));
    let range = full.iter().fold(0f32, |a, x| a.max(x.abs()));
    let error = worst(&full, &packed);
    assert!(error > 0.0 && error < 0.08 * range, "{error} of {range}");
}
