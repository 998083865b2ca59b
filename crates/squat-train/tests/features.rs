//! Features beyond LLaMA's: biases of linear layers (Qwen2) and norms of queries and keys (Qwen3).
#![allow(clippy::unwrap_used)]

mod common;

use common::{FP, QAT, Run, assert_same};
use squat_model::spec::LinearSet;
use squat_model::{ModelSpec, QuantPlan, TokenizerFiles, arch};
use squat_train::Parameters;
use squat_train::basis::Bases;
use squat_train::checkpoint::{self, locate_stage};
use squat_train::model::{
    Model, ParamTensors, add_quantizer_parameters, check_trainable, initial_parameters,
};
use squat_train::optimizer::{AdamW, Moments};
use squat_train::parameters::Group;
use squat_train::quantizer::default_quantizer;
use squat_train::recipe::LossConfig;
use squat_train::stage::Outcome;
use squat_train::step::{MicroResult, Teacher, micro_step};

/// Tiny models with the features of Qwen2, of Qwen3, of both together, and with biases everywhere.
fn specs(vocab_size: usize) -> [ModelSpec; 4] {
    let both = ModelSpec { biases: LinearSet::ATTENTION, ..arch::qwen3::base() };
    let everywhere = ModelSpec { biases: LinearSet::ALL, ..arch::llama::base() };
    [arch::qwen2::base(), arch::qwen3::base(), both, everywhere].map(|base| ModelSpec {
        vocab_size,
        hidden_size: 32,
        intermediate_size: 56,
        num_hidden_layers: 2,
        num_attention_heads: 4,
        num_key_value_heads: 2,
        // Of its own, as in Qwen3.
        head_dim: 10,
        max_position_embeddings: 64,
        norm_eps: 1e-6,
        tie_word_embeddings: true,
        bos_token_id: Some(1),
        eos_token_ids: vec![2],
        pad_token_id: Some(0),
        ..base
    })
}

/// Weights with gains that are not one and biases that are not zero.
fn weights(spec: &ModelSpec, seed: u64) -> Parameters {
    let mut parameters = initial_parameters(spec, 0.25, seed);
    for (i, p) in parameters.list_mut().iter_mut().filter(|p| p.group == Group::Norm).enumerate() {
        for (j, x) in p.values.iter_mut().enumerate() {
            *x += 0.3 * (((i * 31 + j * 17) % 13) as f32 / 6.0 - 1.0);
        }
    }
    parameters
}

fn sequences() -> Vec<Vec<u32>> {
    (0..2u32)
        .map(|b| (0..=12u32).map(|t| if t == 0 { 1 } else { (b * 31 + t * t * 7) % 90 }).collect())
        .collect()
}

fn step(model: &Model, parameters: &Parameters, loss: &LossConfig) -> MicroResult {
    let teacher = weights(&model.spec, 3);
    let mut teacher_model = Model::new(model.spec.clone(), None, 16);
    teacher_model.tensor_forms = model.tensor_forms;
    let teacher = Teacher { model: teacher_model, params: ParamTensors::constant(&teacher) };
    micro_step(model, parameters, &ParamTensors::constant(parameters), &[teacher], loss, &sequences())
}

/// Every gradient of the whole model in full precision, by central differences of the loss.
#[test]
fn gradients_match_numeric_ones() {
    for spec in specs(90) {
        let mut parameters = weights(&spec, 5);
        let model = Model::new(spec.clone(), None, 16);
        let config = LossConfig { gamma: 0.5, alignment: 0.3, ..LossConfig::default() };
        let found = step(&model, &parameters, &config).gradients;
        let names: Vec<String> = parameters.iter().map(|p| p.name.clone()).collect();
        for (index, name) in names.iter().enumerate() {
            let largest = found[index].iter().fold(0f32, |m, g| m.max(g.abs()));
            for at in [0, found[index].len() / 2, found[index].len() - 1] {
                let mut loss_at = |step_by: f32| {
                    let before = parameters.list_mut()[index].values[at];
                    parameters.list_mut()[index].values[at] = before + step_by;
                    let loss = step(&model, &parameters, &config).loss.total;
                    parameters.list_mut()[index].values[at] = before;
                    loss
                };
                let h = 1e-2;
                let numeric = (loss_at(h) - loss_at(-h)) / f64::from(2.0 * h);
                let got = f64::from(found[index][at]);
                let limit = 0.03 * f64::from(largest).max(numeric.abs()).max(1e-3);
                assert!(
                    (got - numeric).abs() <= limit,
                    "{} {name} {at}: {got} {numeric}",
                    spec.architecture.class
                );
            }
        }
    }
}

/// Fused operations and tensor expressions agree, and computing activations again gives the same bits.
#[test]
fn both_forms_and_recomputing_agree() {
    for spec in specs(90) {
        for plan in [None, Some(QuantPlan::w4a8())] {
            let mut parameters = weights(&spec, 5);
            if let Some(plan) = &plan {
                let mut plan = plan.clone();
                plan.head = plan.embedding;
                add_quantizer_parameters(&mut parameters, &spec, &plan, default_quantizer());
                // The largest weight of a channel lies on the limit of the codes, where the gradient of the scale jumps.
                for p in parameters.list_mut().iter_mut().filter(|p| p.group == Group::Scale) {
                    p.values.iter_mut().for_each(|log_scale| *log_scale += 0.03);
                }
            }
            let mut model = Model::new(spec.clone(), plan.clone(), 16);
            let config = LossConfig { entropy: 0.01, alignment: 0.1, ..LossConfig::default() };
            let fused = step(&model, &parameters, &config);
            model.recompute = true;
            let again = step(&model, &parameters, &config);
            assert!(fused.gradients == again.gradients && fused.loss == again.loss);
            (model.recompute, model.tensor_forms) = (false, true);
            let tensor = step(&model, &parameters, &config);
            // With quantizers a value next to a rounding boundary may fall on the other side, and all that follows moves.
            let (loss, gradient) = if plan.is_some() { (1e-2, 0.2) } else { (1e-5, 1e-4) };
            for ((term, a), (_, b)) in fused.loss.terms().zip(tensor.loss.terms()) {
                assert!((a - b).abs() <= loss * a.abs().max(0.1), "{term} {a} {b}");
            }
            for ((a, b), p) in fused.gradients.iter().zip(&tensor.gradients).zip(parameters.iter()) {
                let norm = |values: &mut dyn Iterator<Item = f32>| values.map(|x| x * x).sum::<f32>().sqrt();
                let apart = norm(&mut a.iter().zip(b).map(|(a, b)| a - b));
                let all = norm(&mut a.iter().copied());
                assert!(apart <= gradient * all.max(1e-4), "{}: {apart} of {all}", p.name);
            }
        }
    }
}

/// Gains, biases and scales never decay (without a gradient nothing else could move them).
#[test]
fn biases_gains_and_scales_do_not_decay() {
    for spec in specs(90) {
        let mut plan = QuantPlan::w4a8();
        plan.head = plan.embedding;
        let mut parameters = weights(&spec, 5);
        add_quantizer_parameters(&mut parameters, &spec, &plan, default_quantizer());
        let before = parameters.clone();
        let zeros: Vec<Vec<f32>> = parameters.iter().map(|p| vec![0.0; p.values.len()]).collect();
        let mut moments = Moments::zeros(&parameters);
        let adam = AdamW { beta1: 0.9, beta2: 0.95, eps: 1e-8, weight_decay: 0.5 };
        adam.step(&mut parameters, &zeros, &mut moments, (1, 0.0, 1.0), (0.1, 0.1), &Bases::new(), 1);
        for (p, old) in parameters.iter().zip(before.iter()) {
            let decays = p.name.ends_with(".weight") && !p.name.contains("norm");
            assert_eq!(p.values != old.values, decays, "{}", p.name);
        }
        // A checkpoint keeps the groups.
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("c");
        let quantized = (Some(&plan), default_quantizer());
        checkpoint::save(&path, &spec, quantized, &parameters, &TokenizerFiles::none(), None).unwrap();
        let loaded = checkpoint::load(&path).unwrap();
        assert_eq!(loaded.spec, spec);
        for p in loaded.parameters.iter() {
            assert_eq!(p.group, before.get(&p.name).unwrap().group, "{}", p.name);
        }
    }
}

/// A stage that starts from such a model learns, and continues bit for bit.
#[test]
fn a_stage_resumes_bit_for_bit() {
    let dir = tempfile::tempdir().unwrap();
    let base = dir.path().join("base");
    Run { settings: &["stage.fp.steps=2"], ..Run::new(&base) }.run(&[FP]).unwrap();
    let tokenizer = locate_stage(&base, "fp");
    let files = squat_model::ModelFolder::open(&tokenizer).unwrap().tokenizer_files().unwrap();
    for (index, spec) in specs(300).into_iter().enumerate() {
        let model = dir.path().join(format!("model{index}"));
        let none = (None, default_quantizer());
        checkpoint::save(&model, &spec, none, &weights(&spec, 8), &files, None).unwrap();
        let path = model.display();
        let qat = QAT
            .replace("init = \"fp\"", &format!("init = \"{path}\""))
            .replace("teachers = [\"fp\"]", &format!("teachers = [\"{path}\"]"));
        let setting = format!("data.tokenizer={}", tokenizer.display());
        let settings = [setting.as_str()];
        let [straight, broken] = ["straight", "broken"].map(|name| dir.path().join(format!("{name}{index}")));
        Run { settings: &settings, ..Run::new(&straight) }.run(&[&qat]).unwrap();
        let outcome = Run { settings: &settings, stop: Some(("q", 5)), ..Run::new(&broken) }.run(&[&qat]);
        assert_eq!(outcome.unwrap(), Outcome::Interrupted { step: 5 });
        Run { settings: &settings, resume: true, ..Run::new(&broken) }.run(&[&qat]).unwrap();
        assert_same(&straight, &broken, "q");
        let (first, last) = (weights(&spec, 8), checkpoint::load(&straight.join("q/last")).unwrap());
        for p in first.iter() {
            assert_ne!(p.values, last.parameters.get(&p.name).unwrap().values, "{} is trained", p.name);
        }
    }
}

/// The trainer looks at features, and names those that it does not have.
#[test]
fn other_features_are_refused_by_name() {
    for spec in specs(90) {
        check_trainable(&spec).unwrap();
    }
    let gpt2 = squat_model::shapes::shape("gpt2-97m").unwrap();
    let error = check_trainable(&gpt2).unwrap_err().to_string();
    for feature in ["LayerNorm", "GELU", "learned positions", "GPT2LMHeadModel"] {
        assert!(error.contains(feature), "{feature}: {error}");
    }
}
