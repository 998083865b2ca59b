//! Trained == packed == run: the fake-quantized forward of training against the packed integers in the engine.
//!
//! Where every operand of every product is quantized, all sums are sums of integers below 2^24, exact in any order,
//! and the float operations between them are the same in the same order: logits are equal bit for bit. Where a point
//! or weight stays in full precision, a product sums floats; training and engine sum them in other orders (blocked
//! matrix product there, rows here), so the last bits differ, and a difference may carry a value over a rounding
//! boundary. Those plans are held to the range of the logits.
#![cfg(feature = "train")]
#![allow(clippy::unwrap_used)]

mod common;

use common::{
    bits, checkpoint_and_packed, checkpoint_and_packed_of, plan_of, quantize, qwen_specs, spec, tokens,
    weights,
};
use squat_engine::{Engine, SessionOptions};
use squat_model::{ModelFolder, ModelSpec, PackedModel, TensorSource};
use squat_quant::{ActBits, Transform};
use squat_test::max_abs_diff as worst;
use squat_train::checkpoint::{self, Loaded};
use squat_train::evaluate::Evaluator;
use squat_train::fake_quant::{TokenBits, Weight};
use squat_train::quantizer::{default_quantizer, parameter_name, registry};

/// `quant = { ... }` of recipes in which every operand is an integer.
const EXACT: &[&str] = &[
    "plan = 'w8a8'",
    "plan = 'w8a4'",
    "plan = 'w4a8'",
    "plan = 'w4a4'",
    "plan = 'w3a8'",
    "plan = 'w3a4'",
    "plan = 'w2a8'",
    "plan = 'w2a4'",
    "plan = 'ternary-a8'",
    "plan = 'ternary-a4'",
    "plan = 'rho50'",
    "plan = 'w2-rho25'",
    "plan = 'rho0'",
    "plan = 'rho100'",
    "plan = 'w4a8', weight_granularity = 'tensor'",
    "plan = 'w4a8', weight_granularity = '32'",
    "plan = 'w4a4', weight_granularity = '10'",
    "plan = 'rho50', weight_granularity = '32'",
    "plan = 'ternary-a8', weight_granularity = 'tensor'",
    "plan = 'w4a8', activations = 'static'",
    "plan = 'w4a4', activations = 'static'",
    "plan = 'rho50', activations = 'static'",
    "plan = 'rho50', activations = 'static', weight_granularity = '16'",
    "plan = 'rho50', points = { key = 'static' }",
    "plan = 'rho50', points = { value = 'static' }",
    "plan = 'rho50', points = { query = 'static', down_proj_input = 'static' }",
    "plan = 'w4a8', embedding = '4', head = '4'",
    "plan = 'rho50', embedding = '3', head = 'ternary'",
    "plan = 'w4a8', attn_probs_bits = 4",
    "plan = 'rho50', attn_probs_bits = 4",
    "plan = 'rho50', attn_probs_bits = 4, activations = 'static'",
    "plan = 'w4a8', rho = 0.5, policy = 'random'",
    "plan = 'w4a8', rho = 0.5, policy = 'first'",
    "plan = 'w4a8', rho = 0.5, policy = 'activation_norm'",
    "plan = 'w4a8', rho = 0.5, policy = 'activation_norm', activations = 'static'",
    "plan = 'w4a8', rho = 0.3, policy = 'random', activations = 'static'",
    "plan = 'rho50', embedding = 'fp'",
    "plan = 'w4a8', exceptions = { 'layers.0.down_proj_input' = 'w8', 'layers.1.attn_in' = 'w2-g16' }",
    "plan = 'w2-rho25', exceptions = { 'layers.1.mlp_in' = 'ternary', 'layers.0.o_proj_input' = 'w3' }",
];

/// Recipes in which some product has an operand in full precision.
const CLOSE: &[&str] = &[
    "plan = 'w4'",
    "plan = 'w8a8', points = { lm_head_input = 'fp' }",
    "plan = 'w4a8', points = { attn_in = 'fp' }",
    "plan = 'w4a8', points = { query = 'fp' }",
    "plan = 'w4a8', points = { key = 'fp' }",
    "plan = 'w4a8', points = { value = 'fp' }",
    "plan = 'w4a8', points = { attn_probs = 'fp' }",
    "plan = 'w4a8', points = { o_proj_input = 'fp' }",
    "plan = 'w4a8', points = { mlp_in = 'fp', down_proj_input = 'fp' }",
    "plan = 'w4a8', head = 'fp', embedding = 'fp'",
];

/// Logits of the fake-quantized checkpoint and of the packed folder.
fn both(quant: &str, tied: bool, ids: &[u32]) -> (Vec<f32>, Vec<f32>) {
    let dir = tempfile::tempdir().unwrap();
    let (checkpoint, packed) = checkpoint_and_packed(dir.path(), quant, tied, 7);
    let fake = Evaluator::load(&checkpoint, true, 1).unwrap().logits(ids).unwrap();
    let engine = Engine::load(&packed, 2).unwrap();
    let run = engine.session().unwrap().prefill_all(ids).unwrap();
    (fake, run)
}

fn range(logits: &[f32]) -> f32 {
    let low = logits.iter().copied().fold(f32::INFINITY, f32::min);
    logits.iter().copied().fold(f32::NEG_INFINITY, f32::max) - low
}

#[test]
fn packed_integers_give_the_bits_of_the_fake_quantized_forward() {
    for tied in [false, true] {
        let ids = tokens(&spec(tied), 40, 3);
        for quant in EXACT {
            // A tied head shares the table, and a float head sums floats.
            if tied && quant.contains("embedding = 'fp'") {
                continue;
            }
            let (fake, run) = both(quant, tied, &ids);
            assert!(range(&fake) > 0.5, "{quant}: logits worth comparing");
            let differing = fake.iter().zip(&run).filter(|(a, b)| a.to_bits() != b.to_bits()).count();
            assert_eq!(
                differing,
                0,
                "{quant}, tied {tied}: {differing} of {} logits differ, by {:e} at most",
                fake.len(),
                worst(&fake, &run)
            );
        }
    }
}

/// Whatever learns the scales, the packed model has the bits of the model in training.
#[test]
fn every_weight_quantizer_packs_to_the_bits_of_training() {
    let spec = spec(true);
    let ids = tokens(&spec, 40, 3);
    for &quantizer in registry() {
        for quant in ["plan = 'w4a8'", "plan = 'rho50', weight_granularity = '16'", "plan = 'w2a8'"] {
            let mut plan = plan_of(quant, &spec, 24);
            let mut parameters = weights(&spec, 7);
            quantize(&mut parameters, &spec, &mut plan, 7);
            for info in spec.parameters() {
                let Some(scheme) = plan.scheme_of(&info) else { continue };
                let values = parameters.get(&info.name).unwrap().values.clone();
                let weight = Weight { values: &values, cols: info.shape[1], scheme };
                let index = parameters.index(&parameter_name(&info.name)).unwrap();
                let learned = &mut parameters.list_mut()[index].values;
                *learned = quantizer.parameters(weight, &default_quantizer().scales(weight, learned));
            }
            let dir = tempfile::tempdir().unwrap();
            let (from, to) = (dir.path().join("checkpoint"), dir.path().join("packed"));
            let none = squat_model::TokenizerFiles::none();
            checkpoint::save(&from, &spec, (Some(&plan), quantizer), &parameters, &none, None).unwrap();
            ModelFolder::open(&from).unwrap().pack(None, &to).unwrap();
            let (model, params) =
                Loaded { spec: spec.clone(), plan: Some(plan), parameters, quantizer }.into_model(64);
            let trained = Evaluator::new(model, params, 1, 64).logits(&ids).unwrap();
            let read = Evaluator::load(&from, true, 1).unwrap().logits(&ids).unwrap();
            let run = Engine::load(&to, 2).unwrap().session().unwrap().prefill_all(&ids).unwrap();
            let name = quantizer.name();
            assert!(bits(&trained) == bits(&read), "{name} {quant}: a checkpoint is read back");
            assert!(bits(&trained) == bits(&run), "{name} {quant}: {:e}", worst(&trained, &run));
        }
    }
}

/// Hadamard transforms of the inputs of linear layers: the weights are transformed once, and trainer,
/// packed model and engine transform the rows alike.
#[test]
fn transforms_keep_the_bits_and_the_model() {
    for tied in [false, true] {
        let spec = ModelSpec { intermediate_size: 96, head_dim: 8, ..spec(tied) };
        let ids = tokens(&spec, 40, 3);
        for quant in [
            "plan = 'w4a8'",
            "plan = 'w4a4', clip = 0.8",
            "plan = 'rho50'",
            "plan = 'rho50', clip = 0.9",
            "plan = 'rho50', activations = 'static'",
            "plan = 'w4a8', weight_granularity = '16'",
        ] {
            let one = format!("{quant}, transforms = {{ mlp_mid = 'interleaved_hadamard(32)' }}");
            let both =
                format!("{quant}, transforms = {{ mlp_mid = 'hadamard(16)', attn_out = 'hadamard(32)' }}");
            // The largest of each width: hidden_size, head_dim twice, heads * head_dim, hidden_size, 96.
            let all = ["attn_in", "query", "key", "o_proj_input", "mlp_in", "down_proj_input"]
                .map(|at| format!("{at} = 'hadamard'"));
            let all = format!("{quant}, transforms = {{ {} }}", all.join(", "));
            let found = plan_of(&all, &spec, 24).describe_transforms();
            assert!(
                found.matches("hadamard(").count() == 6
                    && found.contains("key hadamard(8)")
                    && found.contains("down_proj_input hadamard(96)"),
                "{found}"
            );
            let residual = format!("{quant}, transforms = {{ residual = 'hadamard' }}");
            let found = plan_of(&residual, &spec, 24).describe_transforms();
            assert_eq!(found, format!("residual {}", Transform::Largest.for_width(spec.hidden_size)));
            let everything = all.replace("transforms = { ", "transforms = { residual = 'hadamard(4)', ");
            for quant in [one, both, all, residual, everything] {
                let dir = tempfile::tempdir().unwrap();
                let (checkpoint, packed) = checkpoint_and_packed_of(&spec, dir.path(), &quant, 7);
                let fake = Evaluator::load(&checkpoint, true, 1).unwrap().logits(&ids).unwrap();
                for path in [&packed, &checkpoint] {
                    // Others are to refuse it.
                    let config = std::fs::read_to_string(path.join("config.json")).unwrap();
                    assert!(config.contains("\"squat_llama\"") && config.contains("LlamaForCausalLM"));
                    let engine = Engine::load(path, 2).unwrap();
                    let mut session = engine.session().unwrap();
                    let run = session.prefill_all(&ids).unwrap();
                    assert!(bits(&fake) == bits(&run), "{quant}: {:e}", worst(&fake, &run));
                    session.reset();
                    for (t, &id) in ids.iter().enumerate() {
                        let row = &run[t * spec.vocab_size..(t + 1) * spec.vocab_size];
                        assert!(
                            bits(session.decode(id).unwrap()) == bits(row),
                            "{quant}: decoding token {t}"
                        );
                    }
                }
                // Without its quantizers the checkpoint is the model that it came from.
                let plain = Evaluator::load(&checkpoint, false, 1).unwrap().logits(&ids).unwrap();
                let folder = dir.path().join("plain");
                let none = (None, default_quantizer());
                let files = squat_model::TokenizerFiles::none();
                checkpoint::save(&folder, &spec, none, &weights(&spec, 7), &files, None).unwrap();
                let want = Evaluator::load(&folder, false, 1).unwrap().logits(&ids).unwrap();
                assert!(worst(&plain, &want) <= 1e-4 * range(&want), "{:e}", worst(&plain, &want));
                // Another plan does not fit the transformed weights.
                let other = squat_model::QuantPlan::w4a8();
                let error = ModelFolder::open(&checkpoint).unwrap().pack(Some(&other), dir.path().join("x"));
                let error = error.unwrap_err().to_string();
                assert!(error.contains("hadamard(") && error.contains("none"), "{error}");
            }
        }
        // Packed without training as well, in points of full precision.
        let quant = "plan = 'w4', transforms = { attn_out = 'hadamard(4)' }";
        let dir = tempfile::tempdir().unwrap();
        let (checkpoint, packed) = checkpoint_and_packed_of(&spec, dir.path(), quant, 7);
        let fake = Evaluator::load(&checkpoint, true, 1).unwrap().logits(&ids).unwrap();
        let run = Engine::load(&packed, 2).unwrap().session().unwrap().prefill_all(&ids).unwrap();
        assert!(worst(&fake, &run) <= 1e-3 * range(&fake), "{:e}", worst(&fake, &run));
    }
}

#[test]
fn transforms_that_do_not_fit_are_refused() {
    let spec = spec(true);
    for (point, transform, words) in [
        ("mlp_mid", "hadamard(32)", ["83 values", "no size fits"]),
        ("attn_out", "hadamard(16)", ["40 values", "hadamard(40)"]),
        ("query", "hadamard(2)", ["plan.transforms.key", "hadamard(2), as for query"]),
        ("value", "hadamard", ["value", "can be transformed"]),
        ("residual", "hadamard(64)", ["plan.transforms.residual", "the largest is"]),
        ("residual", "interleaved_hadamard(4)", ["plan.transforms.residual", "hadamard(SIZE)"]),
    ] {
        let plan = plan_of(&format!("plan = 'w4a8', transforms = {{ {point} = '{transform}' }}"), &spec, 24);
        let error = plan.validate(&spec).unwrap_err().to_string();
        assert!(words.iter().all(|word| error.contains(word)), "{error}");
        let again = squat_model::QuantPlan::from_json(&plan.to_json()).unwrap();
        assert_eq!(again, plan);
    }
}

/// Biases of projections (Qwen2) and norms of queries and keys (Qwen3), in all three: trainer, packed model, engine.
#[test]
fn biases_and_norms_of_heads_keep_the_bits() {
    for (index, spec) in [false, true].into_iter().flat_map(qwen_specs).enumerate() {
        let ids = tokens(&spec, 40, 3);
        for quant in [
            "plan = 'w8a8'",
            "plan = 'w4a8'",
            "plan = 'w4a4'",
            "plan = 'rho50'",
            "plan = 'rho50', activations = 'static'",
            "plan = 'w4a8', weight_granularity = '16'",
            "plan = 'ternary-a8'",
        ] {
            let dir = tempfile::tempdir().unwrap();
            let (checkpoint, packed) = checkpoint_and_packed_of(&spec, dir.path(), quant, 7 + index as u64);
            let fake = Evaluator::load(&checkpoint, true, 1).unwrap().logits(&ids).unwrap();
            assert!(range(&fake) > 0.5, "{quant}: logits worth comparing");
            for path in [&packed, &checkpoint] {
                let engine = Engine::load(path, 2).unwrap();
                let run = engine.session().unwrap().prefill_all(&ids).unwrap();
                assert!(
                    bits(&fake) == bits(&run),
                    "{} {quant}: {:e}",
                    spec.architecture.class,
                    worst(&fake, &run)
                );
            }
            // In full precision both forms of the same weights agree up to rounding.
            let plain = Evaluator::load(&checkpoint, false, 1).unwrap().logits(&ids).unwrap();
            let folder = ModelFolder::open(&checkpoint).unwrap();
            let reference = squat_model::reference::forward(folder.spec(), &folder, &ids).unwrap();
            assert!(worst(&plain, &reference) <= 1e-5 * range(&plain), "{:e}", worst(&plain, &reference));
        }
    }
}

#[test]
fn points_in_full_precision_stay_within_the_range() {
    for tied in [false, true] {
        let ids = tokens(&spec(tied), 40, 3);
        for quant in CLOSE {
            let (fake, run) = both(quant, tied, &ids);
            let (got, most) = (worst(&fake, &run), 1e-3 * range(&fake));
            assert!(got <= most, "{quant}, tied {tied}: {got:e} > {most:e}");
        }
    }
}

/// The engine itself may also run a checkpoint: what it rounds on loading is what packing wrote.
#[test]
fn a_checkpoint_runs_as_its_packed_form() {
    for quant in ["plan = 'w4a8'", "plan = 'rho50', activations = 'static'", "plan = 'ternary-a8'"] {
        let dir = tempfile::tempdir().unwrap();
        let (checkpoint, packed) = checkpoint_and_packed(dir.path(), quant, false, 7);
        let ids = tokens(&spec(false), 30, 4);
        let logits =
            |path| bits(&Engine::load(path, 1).unwrap().session().unwrap().prefill_all(&ids).unwrap());
        assert_eq!(logits(&checkpoint), logits(&packed), "{quant}");
    }
}

/// What packing writes is what the learned scales make of the weights, number by number.
#[test]
fn packed_weights_are_the_fake_quantized_ones() {
    for quant in ["plan = 'w4a8'", "plan = 'w3a8', weight_granularity = '32'", "plan = 'ternary-a8'"] {
        let dir = tempfile::tempdir().unwrap();
        let (checkpoint, packed) = checkpoint_and_packed(dir.path(), quant, false, 9);
        let (folder, packed) = (ModelFolder::open(&checkpoint).unwrap(), PackedModel::open(&packed).unwrap());
        let plan = packed.plan().clone();
        for param in packed.spec().parameters() {
            let Some(scheme) = plan.scheme_of(&param) else { continue };
            let cols = param.shape[1];
            let weight = folder.tensor_f32(&param.name).unwrap();
            let scales = folder.read_f32(&squat_model::scales::scale_name(&param)).unwrap();
            let want = Weight { values: &weight, cols, scheme }.quantize(&scales).dequantize();
            let got = packed.tensor(&param.name).unwrap().dequantize().unwrap();
            assert_eq!(bits(&want), bits(&got), "{quant} {}", param.name);
        }
    }
}

/// One prefill, prefill in pieces, and token by token; and the fake-quantized forward of every prefix.
#[test]
fn a_prefix_never_sees_what_follows() {
    for quant in EXACT {
        let dir = tempfile::tempdir().unwrap();
        let (checkpoint, packed) = checkpoint_and_packed(dir.path(), quant, false, 11);
        let (spec, ids) = (spec(false), tokens(&spec(false), 33, 5));
        let engine = Engine::load(&packed, 2).unwrap();
        let mut session = engine.session_with(SessionOptions { capacity: None, block: 8 }).unwrap();
        let whole = session.prefill_all(&ids).unwrap();
        let row = |t: usize| bits(&whole[t * spec.vocab_size..(t + 1) * spec.vocab_size]);
        session.reset();
        for (t, &id) in ids.iter().enumerate() {
            assert_eq!(bits(session.decode(id).unwrap()), row(t), "{quant}: decoding token {t}");
        }
        session.reset();
        session.prefill(&ids[..13]).unwrap();
        assert_eq!(bits(session.prefill(&ids[13..]).unwrap()), row(32), "{quant}: prefill in two pieces");
        let evaluator = Evaluator::load(&checkpoint, true, 1).unwrap();
        for n in [1, 2, 17] {
            let prefix = evaluator.logits(&ids[..n]).unwrap();
            assert_eq!(bits(&prefix), bits(&whole[..n * spec.vocab_size]), "{quant}: prefix of {n}");
        }
    }
}

/// Sequences of other lengths in the same call, other orders, other numbers of threads change no bit.
#[test]
fn company_changes_nothing() {
    for quant in ["plan = 'rho50'", "plan = 'rho50', activations = 'static'", "plan = 'w4a4'"] {
        let dir = tempfile::tempdir().unwrap();
        let (checkpoint, packed) = checkpoint_and_packed(dir.path(), quant, true, 13);
        let all: Vec<Vec<u32>> =
            (0..9).map(|i| tokens(&spec(true), 2 + (i * 11) % 40, 20 + i as u64)).collect();
        let views: Vec<&[u32]> = all.iter().map(Vec::as_slice).collect();
        let reversed: Vec<&[u32]> = views.iter().rev().copied().collect();
        let alone = |score: &dyn Fn(&[&[u32]]) -> Vec<Vec<f32>>| -> Vec<Vec<u32>> {
            views.iter().map(|&view| bits(&score(&[view])[0])).collect()
        };
        let fake = |threads| {
            let evaluator = Evaluator::load(&checkpoint, true, threads).unwrap();
            move |sequences: &[&[u32]]| evaluator.log_likelihoods(sequences).unwrap()
        };
        let run = |threads| {
            let engine = Engine::load(&packed, threads).unwrap();
            move |sequences: &[&[u32]]| engine.log_likelihoods(sequences).unwrap()
        };
        let want = alone(&fake(1));
        assert_eq!(alone(&run(1)), want, "{quant}: engine, alone");
        for threads in [1, 3] {
            let company = |score: &dyn Fn(&[&[u32]]) -> Vec<Vec<f32>>| -> [Vec<Vec<u32>>; 2] {
                let to_bits = |found: Vec<Vec<f32>>| found.iter().map(|row| bits(row)).collect::<Vec<_>>();
                let mut backwards = to_bits(score(&reversed));
                backwards.reverse();
                [to_bits(score(&views)), backwards]
            };
            for found in company(&fake(threads)).into_iter().chain(company(&run(threads))) {
                assert_eq!(found, want, "{quant}, {threads} threads");
            }
        }
    }
}

/// Both sides choose the same tokens, and a mixed plan really mixes.
#[test]
fn both_sides_give_the_same_tokens_eight_bits() {
    for quant in [
        "plan = 'rho50'",
        "plan = 'w4a8', rho = 0.5, policy = 'random'",
        "plan = 'w4a8', rho = 0.5, policy = 'first'",
        "plan = 'w4a8', rho = 0.5, policy = 'activation_norm'",
    ] {
        let dir = tempfile::tempdir().unwrap();
        let (checkpoint, packed) = checkpoint_and_packed(dir.path(), quant, false, 17);
        let ids = tokens(&spec(false), 40, 6);
        let fake: Vec<Vec<ActBits>> = Evaluator::load(&checkpoint, true, 1)
            .unwrap()
            .token_bits(&ids)
            .unwrap()
            .iter()
            .map(|bits| (0..ids.len()).map(|t| TokenBits::get(bits, t)).collect())
            .collect();
        let run = Engine::load(&packed, 2).unwrap().token_bits(&ids).unwrap();
        assert_eq!(fake, run, "{quant}");
        assert!(fake[0].iter().all(|&b| b == ActBits::A8), "{quant}: layer 0 is always 8 bits");
        for layer in &fake[1..] {
            assert_eq!(layer[0], ActBits::A8, "{quant}: the first token is always 8 bits");
            let eight = layer.iter().filter(|&&b| b == ActBits::A8).count();
            assert!((4..=36).contains(&eight), "{quant}: {eight} of 40 tokens");
        }
    }
}

/// Full precision: no integers, so nothing is exact, but both sides must mean the same model.
#[test]
fn full_precision_agrees() {
    let dir = tempfile::tempdir().unwrap();
    let (checkpoint, _) = checkpoint_and_packed(dir.path(), "plan = 'w4a8'", true, 19);
    let loaded = squat_train::checkpoint::load(&checkpoint).unwrap();
    let mut plain = squat_train::Parameters::default();
    for info in loaded.spec.parameters() {
        let p = loaded.parameters.get(&info.name).unwrap();
        plain.push(p.name.clone(), p.shape, p.values.clone(), p.group);
    }
    let folder = dir.path().join("plain");
    let none = squat_model::TokenizerFiles::none();
    squat_train::checkpoint::save(&folder, &loaded.spec, (None, loaded.quantizer), &plain, &none, None)
        .unwrap();
    let ids = tokens(&spec(true), 40, 8);
    let want = Evaluator::load(&folder, false, 1).unwrap().logits(&ids).unwrap();
    // The weights of a checkpoint without its quantizers are the same model.
    assert_eq!(bits(&want), bits(&Evaluator::load(&checkpoint, false, 1).unwrap().logits(&ids).unwrap()));
    let got = Engine::load(&folder, 2).unwrap().session().unwrap().prefill_all(&ids).unwrap();
    assert!(worst(&want, &got) <= 1e-5 * range(&want), "{:e}", worst(&want, &got));
    let reference = {
        let folder = ModelFolder::open(&folder).unwrap();
        squat_model::reference::forward(folder.spec(), &folder, &ids).unwrap()
    };
    assert!(worst(&want, &reference) <= 1e-5 * range(&want), "{:e}", worst(&want, &reference));
}
