//! Fused operations and plain tensor expressions train alike.
#![allow(clippy::unwrap_used)]

use squat_model::QuantPlan;
use squat_train::Recipe;
use squat_train::execution::Execution;
use squat_train::model::{Model, ParamTensors, initial_parameters};
use squat_train::optimizer::Moments;
use squat_train::quantizer::default_quantizer;
use squat_train::recipe::StageConfig;
use squat_train::stage::begin_quantizing;
use squat_train::step::{Teacher, split};
use squat_train::trainer::Trainer;

const STEPS: usize = 200;
const VOCABULARY: u32 = 61;
const SEQ: usize = 24;

const RECIPE: &str = r#"
name = "curves"
[data]
train = ["x"]
valid = ["x"]
[model]
hidden_size = 32
intermediate_size = 48
num_hidden_layers = 2
num_attention_heads = 4
num_key_value_heads = 2
[[stage]]
name = "fp"
kind = "pretrain"
steps = 200
batch_size = 4
micro_batch = 4
learning_rate = 3e-3
warmup = 20
[[stage]]
name = "qat"
kind = "qat"
init = "fp"
teachers = ["fp"]
steps = 200
batch_size = 4
micro_batch = 4
learning_rate = 3e-3
scale_learning_rate = 3e-3
warmup = 20
quant = { plan = "w4a8" }
loss = { gamma = 0.5, temperature = 2.0, entropy = 0.01, alignment = 0.1 }
"#;

/// Four sequences in which a token follows from the one before it, except for one in eight.
fn batch(step: usize) -> Vec<Vec<u32>> {
    let mut state = step as u64 * 0x9E37_79B9 + 1;
    let mut next = |below: u32| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as u32 % below
    };
    (0..4)
        .map(|_| {
            let mut tokens = vec![1, next(VOCABULARY)];
            while tokens.len() <= SEQ {
                let rule = (tokens[tokens.len() - 1] * 2 + 7) % VOCABULARY;
                tokens.push(if next(8) == 0 { next(VOCABULARY) } else { rule });
            }
            tokens
        })
        .collect()
}

/// Loss of every step.
fn curve(plan: Option<&str>, plain: bool) -> Vec<f64> {
    let recipe = Recipe::parse(RECIPE, &[]).unwrap();
    let config: &StageConfig = &recipe.stages[usize::from(plan.is_some())];
    let spec = recipe.model.as_ref().unwrap().spec(VOCABULARY as usize).unwrap();
    let mut parameters = initial_parameters(&spec, 0.1, 7);
    let (mut teachers, mut plan) = (Vec::new(), plan.map(|name| QuantPlan::named(name).unwrap()));
    let model = |plan| {
        let mut model = Model::new(spec.clone(), plan, SEQ);
        model.tensor_forms = plain;
        model
    };
    if let Some(plan) = &mut plan {
        teachers.push(Teacher {
            model: model(None),
            params: ParamTensors::constant(&initial_parameters(&spec, 0.1, 8)),
        });
        let (ids, _, rows, seq) = split(&batch(1_000_000));
        begin_quantizing(&spec, (plan, default_quantizer()), &mut parameters, &[(ids, rows, seq)], SEQ);
    }
    let moments = Moments::zeros(&parameters);
    let mut trainer = Trainer {
        model: model(plan),
        parameters,
        moments,
        bases: squat_train::basis::Bases::new(),
        teachers,
        step: 0,
        seq_len: SEQ,
        execution: Execution::on_cpu(1),
    };
    (0..STEPS).map(|step| trainer.step(config, &batch(step)).unwrap().loss.total).collect()
}

/// In full precision the curves stay within 1e-5 of each other at every step. With quantizers a rounding that falls the
/// other way moves a code by one, so they part after a while like runs with another seed of rounding: 0.5 % over the
/// first 20 steps, 1 % on average over all, 10 % at any step.
#[test]
fn loss_curves_of_fused_and_plain_forms_agree() {
    for (plan, early, average, worst) in [(None, 1e-5, 1e-5, 1e-5), (Some("w4a8"), 5e-3, 1e-2, 1e-1)] {
        let (fused, plain) = (curve(plan, false), curve(plan, true));
        let off: Vec<f64> = fused.iter().zip(&plain).map(|(a, b)| (a - b).abs() / b).collect();
        let largest = |off: &[f64]| off.iter().copied().fold(0.0, f64::max);
        let mean = off.iter().sum::<f64>() / STEPS as f64;
        let figures = (largest(&off[..20]), mean, largest(&off));
        assert!(figures.0 < early && figures.1 < average && figures.2 < worst, "{plan:?} {figures:?}");
        let last = fused[STEPS - 20..].iter().sum::<f64>() / 20.0;
        assert!(last < 0.9 * fused[0], "{plan:?}: it learns: {} -> {last}", fused[0]);
        assert!(off.iter().any(|&x| x > 0.0), "two forms were compared");
    }
}
