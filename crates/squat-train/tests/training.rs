//! The guarantees of a training run: the same bits whatever interrupts it, every term in its place, a clear end when
//! numbers go wrong.
#![allow(clippy::unwrap_used)]

mod common;

use common::{FP, QAT, Run, assert_same, metrics, number, results, steps};
use squat_train::basis::Bases;
use squat_train::checkpoint::{self, locate_stage};
use squat_train::model::{Model, ParamTensors, add_quantizer_parameters, initial_parameters};
use squat_train::optimizer::{AdamW, Moments};
use squat_train::parameters::Group;
use squat_train::quantizer::{default_quantizer, registry};
use squat_train::recipe::LossConfig;
use squat_train::stage::Outcome;
use squat_train::step::{StepLoss, Teacher, micro_step, split};
use squat_train::{Recipe, TrainError};
use std::path::Path;

fn finished(outcome: Result<Outcome, TrainError>) {
    let outcome = outcome.unwrap();
    assert!(matches!(outcome, Outcome::Finished { best } if best.is_finite()), "{outcome:?}");
}

/// A folder that no test shares.
fn folder() -> tempfile::TempDir {
    tempfile::tempdir().unwrap()
}

#[test]
fn an_interrupted_run_continues_bit_for_bit() {
    let dir = folder();
    let (straight, broken) = (dir.path().join("straight"), dir.path().join("broken"));
    finished(Run::new(&straight).run(&[FP, QAT]));
    // Stopped in the first stage, and twice in the second.
    for stop in [("fp", 5), ("q", 3), ("q", 6)] {
        let outcome =
            Run { resume: stop != ("fp", 5), stop: Some(stop), ..Run::new(&broken) }.run(&[FP, QAT]);
        assert_eq!(outcome.unwrap(), Outcome::Interrupted { step: stop.1 });
    }
    finished(Run { resume: true, ..Run::new(&broken) }.run(&[FP, QAT]));
    for stage in ["fp", "q"] {
        assert_same(&straight, &broken, stage);
    }
    let state = results(&straight, "q").into_iter().find(|(p, _)| p.ends_with("last/trainer_state.json"));
    let state: serde_json::Value = serde_json::from_slice(&state.unwrap().1).unwrap();
    assert_eq!(state["step"], 10);
    assert_eq!(state["thresholds"].as_array().unwrap().len(), 2);
    assert!(!state["static_points"].as_array().unwrap().is_empty());
    // Another call has nothing to do and changes nothing.
    let before = results(&broken, "q");
    Run { resume: true, ..Run::new(&broken) }.run(&[FP, QAT]).unwrap();
    assert!(before == results(&broken, "q"));
}

#[test]
fn a_run_that_was_killed_continues_bit_for_bit() {
    let dir = folder();
    let (straight, killed) = (dir.path().join("straight"), dir.path().join("killed"));
    // At step 7 the last checkpoint is that of step 4, and lines of metrics up to step 7 are written.
    finished(Run { snapshot: Some(("q", 7, &killed)), ..Run::new(&straight) }.run(&[FP, QAT]));
    let steps_of = |run: &Path| steps(run, "q").last().unwrap()["step"].as_u64().unwrap();
    assert_eq!((steps_of(&straight), steps_of(&killed)), (10, 7));
    // Half of a line, as a crash may leave it.
    let path = killed.join("q/metrics.jsonl");
    let text = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, &text[..text.len() - 20]).unwrap();
    finished(Run { resume: true, ..Run::new(&killed) }.run(&[FP, QAT]));
    assert_same(&straight, &killed, "q");
}

#[test]
fn threads_change_nothing() {
    let dir = folder();
    let (one, three) = (dir.path().join("one"), dir.path().join("three"));
    for (folder, threads) in [(&one, 1), (&three, 3)] {
        finished(Run { threads, settings: &["stage.q.micro_batch=1"], ..Run::new(folder) }.run(&[FP, QAT]));
    }
    assert_same(&one, &three, "fp");
    assert_same(&one, &three, "q");
}

/// Computing activations again instead of keeping them changes nothing but memory and time, and may be switched on in
/// the middle of a stage.
#[test]
fn activation_checkpointing_changes_nothing() {
    let dir = folder();
    let (kept, again) = (dir.path().join("kept"), dir.path().join("again"));
    finished(Run::new(&kept).run(&[FP, QAT]));
    let settings = &["stage.fp.activation_checkpointing=true", "stage.q.activation_checkpointing=true"];
    let outcome = Run { stop: Some(("fp", 3)), ..Run::new(&again) }.run(&[FP, QAT]);
    assert_eq!(outcome.unwrap(), Outcome::Interrupted { step: 3 });
    finished(Run { resume: true, settings, ..Run::new(&again) }.run(&[FP, QAT]));
    assert_same(&kept, &again, "fp");
    assert_same(&kept, &again, "q");
    // Without terms between the layers and with dynamic scales too.
    for (name, switch) in [("kept-w4a8", "false"), ("again-w4a8", "true")] {
        let qat = QAT.replace("plan = \"rho50\", activations = \"static\"", "plan = \"w4a8\"");
        let qat = qat.replace(
            "entropy = 0.01, alignment = 0.1",
            "entropy = 0.0, alignment = 0.1, alignment_layers = [-1]",
        );
        let setting = format!("stage.q.activation_checkpointing={switch}");
        finished(Run { settings: &[&setting], ..Run::new(&dir.path().join(name)) }.run(&[FP, &qat]));
    }
    assert_same(&dir.path().join("kept-w4a8"), &dir.path().join("again-w4a8"), "q");
}

/// Gradient accumulation: the mean over micro-batches is the gradient of the whole batch.
#[test]
fn micro_batches_add_up_to_the_batch() {
    let spec = spec(4);
    let parameters = initial_parameters(&spec, 0.3, 9);
    let constant = ParamTensors::constant(&parameters);
    let config = LossConfig { alignment: 0.3, ..LossConfig::default() };
    let model = Model::new(spec, None, 16);
    let batch = sequences(4, 12, 90);
    let step =
        |batch: &[Vec<u32>]| micro_step(&model, &parameters, &constant, &[teacher(4, 1)], &config, batch);
    let whole = step(&batch);
    let parts: Vec<_> = batch.chunks(1).map(step).collect();
    let mean = StepLoss::mean(&parts.iter().map(|part| part.loss).collect::<Vec<_>>());
    for ((name, a), (_, b)) in whole.loss.terms().zip(mean.terms()) {
        assert!((a - b).abs() <= 1e-5 * a.abs(), "{name}: {a} {b}");
    }
    for (index, p) in parameters.iter().enumerate() {
        let gradient = &whole.gradients[index];
        let largest = gradient.iter().fold(0f32, |m, g| m.max(g.abs()));
        for (i, &g) in gradient.iter().enumerate() {
            let mean = parts.iter().map(|part| f64::from(part.gradients[index][i])).sum::<f64>() / 4.0;
            assert!((f64::from(g) - mean).abs() <= 1e-5 * f64::from(largest), "{} {i}: {g} {mean}", p.name);
        }
    }
}

#[test]
fn the_seed_decides() {
    let dir = folder();
    let folders = ["a", "b", "c"].map(|name| dir.path().join(name));
    for (folder, seed) in folders.iter().zip(["seed=5", "seed=5", "seed=6"]) {
        finished(Run { settings: &[seed, "stage.fp.steps=3"], ..Run::new(folder) }.run(&[FP]));
    }
    assert_same(&folders[0], &folders[1], "fp");
    let losses = |run: &Path| steps(run, "fp").iter().map(|l| number(l, "loss")).collect::<Vec<_>>();
    assert_ne!(losses(&folders[0]), losses(&folders[2]));
    // Not the data alone: other first weights as well.
    let first = |folder: &Path, name: &str| {
        checkpoint::load(&folder.join("fp/last")).unwrap().parameters.get(name).unwrap().values[0]
    };
    let name = "model.layers.0.self_attn.q_proj.weight";
    assert!((first(&folders[0], name) - first(&folders[2], name)).abs() > 1e-4);
}

#[test]
fn a_resume_with_anything_else_is_refused() {
    let dir = folder();
    let run = dir.path().join("run");
    Run { stop: Some(("fp", 4)), ..Run::new(&run) }.run(&[FP]).unwrap();
    let before = results(&run, "fp");
    let error = Run::new(&run).run(&[FP]).unwrap_err().to_string();
    assert!(error.contains("--resume"), "{error}");
    for setting in ["stage.fp.learning_rate=1e-3", "seed=4", "data.seq_len=16", "model.intermediate_size=48"]
    {
        let error = Run { resume: true, settings: &[setting], ..Run::new(&run) }.run(&[FP]).unwrap_err();
        assert!(matches!(error, TrainError::Checkpoint { .. }), "{setting}: {error}");
        assert!(error.to_string().contains("another recipe"), "{setting}: {error}");
    }
    assert!(before == results(&run, "fp"), "a refusal changes nothing");
    // How often something is written does not affect the result.
    finished(Run { resume: true, settings: &["stage.fp.save_every=3"], ..Run::new(&run) }.run(&[FP]));
}

/// Each term is in the metrics exactly when it is switched on, and the total is their weighted sum.
#[test]
fn each_term_is_reported_apart() {
    let dir = folder();
    let base = dir.path().join("base");
    finished(Run { settings: &["stage.fp.steps=4"], ..Run::new(&base) }.run(&[FP]));
    let teacher = format!("teachers = [\"{}\"]", locate_stage(&base, "fp").display());
    let init = format!("init = \"{}\"", locate_stage(&base, "fp").display());
    let qat = QAT.replace("init = \"fp\"", &init).replace("teachers = [\"fp\"]", &teacher);
    let tokenizer = format!("data.tokenizer={}", base.join("tokenizer").display());
    for (index, (gamma, entropy, alignment, with_teacher)) in [
        (0.5, 0.0, 0.0, true),
        (1.0, 0.0, 0.0, true),
        (0.0, 0.3, 0.0, true),
        (0.25, 0.0, 0.7, true),
        (0.25, 0.02, 0.1, true),
        (0.5, 0.02, 0.0, false),
        (0.5, 0.0, 0.0, false),
    ]
    .into_iter()
    .enumerate()
    {
        let run = dir.path().join(index.to_string());
        let qat = if with_teacher { qat.clone() } else { qat.replace(&teacher, "") };
        let settings = [
            format!("stage.q.loss.gamma={gamma}"),
            format!("stage.q.loss.entropy={entropy}"),
            format!("stage.q.loss.alignment={alignment}"),
            "stage.q.loss.temperature=1.5".to_owned(),
            "stage.q.steps=2".to_owned(),
            tokenizer.clone(),
        ];
        let settings: Vec<&str> = settings.iter().map(String::as_str).collect();
        finished(Run { settings: &settings, ..Run::new(&run) }.run(&[&qat]));
        for line in steps(&run, "q") {
            let has = |key: &str| line.get(key).is_some();
            assert_eq!(has("divergence"), with_teacher, "{line}");
            assert_eq!(has("entropy"), entropy != 0.0, "{line}");
            assert_eq!(has("alignment"), alignment != 0.0, "{line}");
            let gamma = if with_teacher { gamma } else { 0.0 };
            let term = |key: &str| if has(key) { number(&line, key) } else { 0.0 };
            let want = (1.0 - gamma) * term("cross_entropy")
                + gamma * 2.25 * term("divergence")
                + entropy * term("entropy")
                + alignment * term("alignment");
            assert!((term("loss") - want).abs() < 1e-4 * want.abs().max(1.0), "{want} {line}");
            assert!((0.5..1.0).contains(&number(&line, "eight_bit_share")), "{line}");
        }
        // Evaluation is on cross-entropy alone, whatever is minimised.
        let valid: Vec<f64> =
            metrics(&run, "q").iter().filter_map(|l| l["valid_cross_entropy"].as_f64()).collect();
        assert_eq!(valid.len(), 1);
        assert!((4.0..6.5).contains(&valid[0]), "{valid:?}");
    }
}

/// Stage, step and term of a run that must end with such an error, and its message.
fn not_finite(run: &Run<'_>) -> (u64, String, String) {
    let error = run.run(&[FP]).unwrap_err();
    let TrainError::NonFinite { stage, step, term, .. } = &error else { panic!("{error}") };
    assert_eq!(stage, "fp");
    (*step, term.clone(), error.to_string())
}

#[test]
fn numbers_that_are_not_finite_end_the_run() {
    let dir = folder();
    for (index, (settings, step, term)) in [
        // The first update overflows, and the second step sees it.
        (["learning_rate=1e38", "eval_every=100", "save_every=100"], 2, "loss"),
        // Huge weights: norms keep the loss finite, not the gradient.
        (["learning_rate=1e30", "eval_every=100", "save_every=100"], 2, "gradient norm"),
        // Whoever looks first finds it: the evaluation, or the checkpoint, which must never hold such weights.
        (["learning_rate=1e38", "eval_every=1", "save_every=1"], 1, "held-out cross-entropy"),
        (["learning_rate=1e38", "eval_every=100", "save_every=1"], 1, "model.embed_tokens.weight"),
    ]
    .into_iter()
    .enumerate()
    {
        let run = dir.path().join(index.to_string());
        let settings: Vec<String> =
            settings.iter().chain(&["warmup=0"]).map(|s| format!("stage.fp.{s}")).collect();
        let settings: Vec<&str> = settings.iter().map(String::as_str).collect();
        let found = not_finite(&Run { settings: &settings, ..Run::new(&run) });
        assert_eq!((found.0, found.1.as_str()), (step, term), "{}", found.2);
        assert!(found.2.contains("learning rate") && found.2.contains("no checkpoint"), "{}", found.2);
        assert!(!run.join("fp/last").exists() && !run.join("fp/best").exists(), "nothing bad was saved");
        assert!(!std::fs::read_to_string(run.join("fp/metrics.jsonl")).unwrap().contains("null"));
    }
    // With a good checkpoint before, it is named, and stays as it was.
    let run = dir.path().join("later");
    Run { stop: Some(("fp", 4)), ..Run::new(&run) }.run(&[FP]).unwrap();
    let last = run.join("fp/last");
    let weights = std::fs::read(last.join("model.safetensors")).unwrap();
    // Moments that blow the next update up, as a spike of gradients would have left them.
    let moments = last.join("optimizer_state.bin");
    let mut bytes = std::fs::read(&moments).unwrap();
    let half = bytes.len() / 2;
    bytes[..half].chunks_exact_mut(4).for_each(|b| b.copy_from_slice(&3e38f32.to_le_bytes()));
    std::fs::write(&moments, bytes).unwrap();
    // Accepts the change, which would be refused otherwise.
    std::fs::remove_file(last.join("SHA256SUMS")).unwrap();
    let (step, _, message) = not_finite(&Run { resume: true, ..Run::new(&run) });
    assert!(message.contains(&format!("last good checkpoint is {}", last.display())), "{message}");
    assert!(step > 4 && message.starts_with(&format!("step {step}: ")), "{message}");
    assert_eq!(weights, std::fs::read(last.join("model.safetensors")).unwrap());
}

#[test]
fn weights_that_are_not_finite_are_refused_before_the_first_step() {
    let dir = folder();
    let base = dir.path().join("base");
    finished(Run { settings: &["stage.fp.steps=2"], ..Run::new(&base) }.run(&[FP]));
    let broken = base.join("fp/last");
    let weights = broken.join("model.safetensors");
    let mut bytes = std::fs::read(&weights).unwrap();
    let at = bytes.len() - 4 * 40;
    bytes[at..at + 4].copy_from_slice(&f32::NAN.to_le_bytes());
    std::fs::write(&weights, bytes).unwrap();
    let stage = FP.replace("name = \"fp\"", &format!("name = \"more\"\ninit = \"{}\"", broken.display()));
    let run = dir.path().join("run");
    let error = Run::new(&run).run(&[&stage]).unwrap_err().to_string();
    assert!(error.contains("NaN") && error.contains("tensor \"") && error.contains("element"), "{error}");
    assert!(!run.join("more/last").exists());
}

/// Sequences as batches have them, from a fixed rule.
fn sequences(count: usize, seq: usize, vocabulary: u32) -> Vec<Vec<u32>> {
    (0..count as u32)
        .map(|b| {
            (0..=seq as u32).map(|t| if t == 0 { 1 } else { (b * 31 + t * t * 7) % vocabulary }).collect()
        })
        .collect()
}

fn spec(heads: usize) -> squat_model::ModelSpec {
    let recipe = Recipe::parse(&format!("{}{FP}", common::HEAD), &[]).unwrap();
    let mut spec = recipe.model.as_ref().unwrap().spec(90).unwrap();
    (spec.num_attention_heads, spec.num_key_value_heads, spec.head_dim) = (heads, heads, 32 / heads);
    spec
}

fn teacher(heads: usize, seed: u64) -> Teacher {
    let spec = spec(heads);
    let params = ParamTensors::constant(&initial_parameters(&spec, 0.4, seed));
    Teacher { model: Model::new(spec, None, 16), params }
}

/// The divergence is that from the mean of the teachers' logits, and their shapes need not be the student's.
#[test]
fn two_teachers_teach_their_mean() {
    let student = spec(4);
    let parameters = initial_parameters(&student, 0.3, 9);
    let model = Model::new(student, None, 16);
    let constant = ParamTensors::constant(&parameters);
    let config = LossConfig { gamma: 1.0, temperature: 2.0, ..LossConfig::default() };
    let batch = sequences(3, 12, 90);
    let step = |teachers: &[Teacher]| micro_step(&model, &parameters, &constant, teachers, &config, &batch);
    let both = step(&[teacher(4, 1), teacher(2, 2)]);
    let swapped = step(&[teacher(2, 2), teacher(4, 1)]);
    assert!((both.loss.total - swapped.loss.total).abs() < 1e-6);
    let (ids, _, rows, seq) = split(&batch);
    let logits = |model: &Model, params: &ParamTensors| {
        model
            .forward(params, &ids, (rows, seq), &Default::default())
            .logits
            .into_data()
            .try_into_vec::<f32>()
            .unwrap()
    };
    let (a, b) = (teacher(4, 1), teacher(2, 2));
    let (a, b) = (logits(&a.model, &a.params), logits(&b.model, &b.params));
    let own = logits(&model, &constant);
    let log_softmax = |row: Vec<f64>| -> Vec<f64> {
        let max = row.iter().copied().fold(f64::MIN, f64::max);
        let sum: f64 = row.iter().map(|x| (x - max).exp()).sum();
        row.iter().map(|x| x - max - sum.ln()).collect()
    };
    let mut want = 0.0;
    for row in 0..rows * seq {
        let at = row * 90..(row + 1) * 90;
        let mean = at.clone().map(|i| (f64::from(a[i]) + f64::from(b[i])) / 2.0 / 2.0).collect();
        let (t, s) = (log_softmax(mean), log_softmax(at.map(|i| f64::from(own[i]) / 2.0).collect()));
        want += t.iter().zip(&s).map(|(t, s)| t.exp() * (t - s)).sum::<f64>();
    }
    want /= (rows * seq) as f64;
    let got = both.loss.divergence.unwrap();
    assert!((got - want).abs() < 1e-4 * want, "{got} {want}");
    assert!((both.loss.total - 4.0 * want).abs() < 1e-3 * want, "g t^2 KL");
    // One teacher alone is another lesson; the same teacher twice is not.
    let alone = step(&[teacher(4, 1)]);
    let twice = step(&[teacher(4, 1), teacher(4, 1)]);
    assert!((alone.loss.total - both.loss.total).abs() > 1e-3);
    assert!((alone.loss.total - twice.loss.total).abs() < 1e-6);
}

/// A student that is its own teacher has nothing to learn from it.
#[test]
fn a_perfect_student_has_no_divergence_and_no_misalignment() {
    let spec = spec(4);
    let parameters = initial_parameters(&spec, 0.4, 1);
    let constant = ParamTensors::constant(&parameters);
    let config = LossConfig { gamma: 1.0, alignment: 1.0, ..LossConfig::default() };
    let model = Model::new(spec, None, 16);
    let batch = sequences(2, 10, 90);
    let loss = micro_step(&model, &parameters, &constant, &[teacher(4, 1)], &config, &batch).loss;
    assert!(loss.divergence.unwrap().abs() < 1e-6 && loss.alignment.unwrap().abs() < 1e-6, "{loss:?}");
    let other = micro_step(&model, &parameters, &constant, &[teacher(4, 2)], &config, &batch).loss;
    assert!(other.divergence.unwrap() > 1e-2 && other.alignment.unwrap() > 1e-3, "{other:?}");
}

#[test]
fn two_teachers_in_a_recipe() {
    let dir = folder();
    let run = dir.path().join("run");
    let other = FP.replace("\"fp\"", "\"other\"")
        + "model = { hidden_size = 24, intermediate_size = 40, \
        num_hidden_layers = 1, num_attention_heads = 2, max_position_embeddings = 64 }\n";
    let distill = FP
        .replace("\"fp\"", "\"student\"")
        .replace("\"pretrain\"", "\"distill\"\nteachers = [\"fp\", \"other\"]");
    let settings = ["stage.fp.steps=3", "stage.other.steps=3", "stage.student.steps=3"];
    finished(Run { settings: &settings, ..Run::new(&run) }.run(&[FP, &other, &distill]));
    assert!(steps(&run, "student").iter().all(|line| line.get("divergence").is_some()));
}

#[test]
fn teachers_that_do_not_fit_are_refused() {
    let dir = folder();
    let other = |change: &str| {
        FP.replace("\"fp\"", "\"other\"")
            + &format!(
                "model = {{ hidden_size = 32, intermediate_size = 40, max_position_embeddings = 64, {change} }}\n"
            )
    };
    let qat = QAT.replace("teachers = [\"fp\"]", "teachers = [\"other\"]");
    for (index, change) in
        ["num_hidden_layers = 1, num_attention_heads = 4", "num_hidden_layers = 2, num_attention_heads = 2"]
            .into_iter()
            .enumerate()
    {
        let run = dir.path().join(index.to_string());
        let settings = ["stage.fp.steps=1", "stage.other.steps=1"];
        let error = Run { settings: &settings, ..Run::new(&run) }.run(&[FP, &other(change), &qat]);
        let error = error.unwrap_err().to_string();
        assert!(
            error.contains("alignment") && error.contains("layers") && error.contains("heads"),
            "{error}"
        );
        assert!(!run.join("q/last").exists());
        // Without alignment the same teacher is welcome.
        let settings =
            ["stage.fp.steps=1", "stage.other.steps=1", "stage.q.steps=1", "stage.q.loss.alignment=0.0"];
        let run = dir.path().join(format!("{index} without"));
        finished(Run { settings: &settings, ..Run::new(&run) }.run(&[FP, &other(change), &qat]));
    }
}

#[test]
fn the_loss_goes_down() {
    let dir = folder();
    let run = dir.path().join("run");
    let settings =
        ["stage.fp.steps=40", "stage.fp.batch_size=8", "stage.fp.micro_batch=8", "stage.fp.eval_every=20"];
    finished(Run { settings: &settings, threads: 2, ..Run::new(&run) }.run(&[FP]));
    let losses: Vec<f64> = steps(&run, "fp").iter().map(|line| number(line, "loss")).collect();
    assert!((losses[0] - 300f64.ln()).abs() < 0.3, "the first loss is that of a guess: {}", losses[0]);
    assert!(losses[39] < losses[0] - 1.0, "{losses:?}");
    let held_out: Vec<f64> =
        metrics(&run, "fp").iter().filter_map(|line| line["valid_cross_entropy"].as_f64()).collect();
    assert!(held_out.len() == 2 && held_out[1] < held_out[0] && held_out[1] < 5.0, "{held_out:?}");
}

#[test]
fn quantizer_steps_are_learned_and_stay_finite() {
    let dir = folder();
    let run = dir.path().join("run");
    finished(Run::new(&run).run(&[FP, QAT]));
    let still = dir.path().join("still");
    finished(Run { settings: &["stage.q.scale_learning_rate=0.0"], ..Run::new(&still) }.run(&[FP, QAT]));
    let (moved, still) = (checkpoint::load(&run.join("q/last")), checkpoint::load(&still.join("q/last")));
    let (moved, still) = (moved.unwrap(), still.unwrap());
    assert_eq!(moved.parameters.non_finite(), None);
    let (mut scales, mut points) = ((0, 0), (0, 0));
    for (a, b) in moved.parameters.iter().zip(still.parameters.iter()) {
        assert_eq!(a.name, b.name);
        let group = match a.group {
            Group::Scale if a.name.ends_with(".static") => &mut points,
            Group::Scale => &mut scales,
            _ => continue,
        };
        group.0 += a.values.iter().zip(&b.values).filter(|(a, b)| a != b).count();
        group.1 += a.values.len();
    }
    assert!(scales.0 * 10 > scales.1 * 9, "{} of {} weight scales moved", scales.0, scales.1);
    // Zero points are whole numbers on disk and the head's narrow quantizer does not exist; most scales move.
    assert!(points.0 * 3 > points.1, "{} of {} values of static points moved", points.0, points.1);
    // Scales on disk are positive: they are learned in log space.
    use squat_model::TensorSource;
    let folder = squat_model::ModelFolder::open(run.join("q/last")).unwrap();
    for name in folder.names().iter().filter(|name| name.ends_with("_scale") && !name.ends_with("log_scale"))
    {
        assert!(folder.read_f32(name).unwrap().iter().all(|&s| s > 0.0 && s.is_finite()), "{name}");
    }
}

/// Every weight quantizer moves its parameters, lowers the loss, keeps the scales positive, and continues bit for bit.
#[test]
fn every_weight_quantizer_learns_and_resumes() {
    use squat_model::TensorSource;
    let dir = folder();
    for quantizer in registry() {
        let name = quantizer.name();
        let qat = QAT.replace("plan = \"rho50\"", &format!("plan = \"w4a8\", quantizer = \"{name}\""));
        // Scales are about 0.01; those of the published LSQ are learned as they are.
        let rate = if name == "lsq" { "scale_learning_rate=1e-4" } else { "scale_learning_rate=5e-3" };
        let rate = format!("stage.q.{rate}");
        let settings = ["stage.q.steps=40", "stage.q.loss.gamma=1.0", "stage.q.eval_every=40", &rate];
        let [straight, broken, still] =
            ["straight", "broken", "still"].map(|n| dir.path().join(name).join(n));
        finished(Run { settings: &settings, ..Run::new(&straight) }.run(&[FP, &qat]));
        let losses: Vec<f64> = steps(&straight, "q").iter().map(|line| number(line, "loss")).collect();
        let mean = |part: &[f64]| part.iter().sum::<f64>() / part.len() as f64;
        let (first, last) = (mean(&losses[..8]), mean(&losses[32..]));
        assert!(last < 0.9 * first, "{name}: {first} -> {last}");
        let outcome =
            Run { settings: &settings, stop: Some(("q", 17)), ..Run::new(&broken) }.run(&[FP, &qat]);
        assert_eq!(outcome.unwrap(), Outcome::Interrupted { step: 17 });
        finished(Run { settings: &settings, resume: true, ..Run::new(&broken) }.run(&[FP, &qat]));
        assert_same(&straight, &broken, "q");
        let fixed = [settings[0], settings[1], settings[2], "stage.q.scale_learning_rate=0.0"];
        finished(Run { settings: &fixed, ..Run::new(&still) }.run(&[FP, &qat]));
        let open = |run: &Path| squat_model::ModelFolder::open(run.join("q/last")).unwrap();
        let (moved, still) = (open(&straight), open(&still));
        let (mut changed, mut all) = (0, 0);
        for name in moved.names().iter().filter(|name| name.ends_with(".weight_scale")) {
            let (a, b) = (moved.read_f32(name).unwrap(), still.read_f32(name).unwrap());
            assert!(a.iter().all(|&s| s > 0.0 && s.is_finite()), "{name}");
            changed += a.iter().zip(&b).filter(|(a, b)| a != b).count();
            all += a.len();
        }
        assert!(changed * 10 > all * 9, "{name}: {changed} of {all} scales moved");
    }
}

/// Checkpoints from before stored the logarithms of scales and named no quantizer: they evaluate to the same bits, and a
/// run continues from them.
#[test]
fn checkpoints_with_logarithms_are_read_and_resumed() {
    use squat_model::{TensorSource, Tensors};
    let dir = folder();
    let (new, old) = (dir.path().join("new"), dir.path().join("old"));
    for run in [&new, &old] {
        Run { stop: Some(("q", 4)), ..Run::new(run) }.run(&[FP, QAT]).unwrap();
    }
    let last = old.join("q/last");
    let logs = std::fs::read(last.join("quantizer_state.bin")).unwrap();
    let mut logs = logs.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]));
    let folder = squat_model::ModelFolder::open(&last).unwrap();
    let mut tensors = Tensors::new();
    let parameters: Vec<_> = folder.spec().parameters();
    for param in &parameters {
        tensors.insert(param.name.clone(), &param.shape, folder.tensor_f32(&param.name).unwrap()).unwrap();
    }
    for param in &parameters {
        let name = squat_model::scales::scale_name(param);
        let Some((_, shape)) = folder.info(&name) else { continue };
        let log = squat_model::scales::log_scale_name(param);
        tensors.insert(log, &shape, logs.by_ref().take(shape[0]).collect()).unwrap();
    }
    for name in folder.names().iter().filter(|name| name.contains(".a4_") || name.contains(".a8_")) {
        let (dtype, shape) = folder.info(name).unwrap();
        if dtype.is_float() {
            tensors.insert(name.clone(), &shape, folder.read_f32(name).unwrap()).unwrap();
        } else {
            tensors.insert_i32(name.clone(), &shape, folder.read_i32(name).unwrap()).unwrap();
        }
    }
    let (plan, spec) = (folder.plan().unwrap().clone(), folder.spec().clone());
    let files = folder.tokenizer_files().unwrap();
    let state = std::fs::read_to_string(last.join("trainer_state.json")).unwrap();
    let mut state: serde_json::Value = serde_json::from_str(&state).unwrap();
    assert_eq!(state.as_object_mut().unwrap().remove("quantizer").unwrap(), "lsq-log");
    let extra = [
        ("trainer_state.json".to_owned(), state.to_string().into_bytes()),
        ("optimizer_state.bin".to_owned(), std::fs::read(last.join("optimizer_state.bin")).unwrap()),
    ];
    drop(folder);
    let contents = squat_model::FolderContents {
        spec: &spec,
        plan: Some(&plan),
        tensors: &tensors,
        dtype: squat_model::WeightDtype::F32,
        tokenizer: &files,
        generation: None,
        extra_files: &extra,
    };
    std::fs::remove_dir_all(&last).unwrap();
    squat_model::write_folder(&last, &contents).unwrap();
    let logits = |run: &Path| {
        let evaluator = squat_train::evaluate::Evaluator::load(&run.join("q/last"), true, 1).unwrap();
        let logits = evaluator.logits(&[1, 5, 9, 77, 3]).unwrap();
        logits.iter().map(|x| x.to_bits()).collect::<Vec<_>>()
    };
    assert_eq!(logits(&new), logits(&old));
    for run in [&new, &old] {
        finished(Run { resume: true, ..Run::new(run) }.run(&[FP, QAT]));
    }
    assert_same(&new, &old, "q");
}

/// Without a gradient, weight decay alone acts: on matrices, never on gains, steps and zero points.
#[test]
fn weight_decay_is_for_matrices() {
    let spec = spec(4);
    let mut plan = squat_model::QuantPlan::w4a8();
    plan.set_point(squat_quant::ActPoint::AttnIn, Some(squat_quant::ActScheme::Static));
    let mut parameters = initial_parameters(&spec, 0.1, 1);
    add_quantizer_parameters(&mut parameters, &spec, &plan, default_quantizer());
    for p in parameters.list_mut().iter_mut().filter(|p| p.name.ends_with(".static")) {
        p.values.copy_from_slice(&[-1.0, 2.0, -3.0, 4.0]);
    }
    let before = parameters.clone();
    let zeros: Vec<Vec<f32>> = parameters.iter().map(|p| vec![0.0; p.values.len()]).collect();
    let mut moments = Moments::zeros(&parameters);
    let adam = AdamW { beta1: 0.9, beta2: 0.95, eps: 1e-8, weight_decay: 0.5 };
    adam.step(&mut parameters, &zeros, &mut moments, (1, 0.0, 1.0), (0.1, 0.1), &Bases::new(), 2);
    let mut seen = [0; 3];
    for (p, old) in parameters.iter().zip(before.iter()) {
        let factor = if p.group == Group::Weight { 1.0 - 0.1 * 0.5 } else { 1.0 };
        seen[p.group as usize] += 1;
        assert!(p.values.iter().zip(&old.values).all(|(a, b)| *a == b * factor), "{}", p.name);
    }
    assert!(seen.iter().all(|&n| n > 0), "{seen:?}");
}

/// Static quantizers read back from a checkpoint exactly, whatever their scale.
#[test]
fn static_quantizers_read_back_exactly() {
    use squat_quant::{ActBits, ActPoint, ActScheme};
    use squat_train::fake_quant::static_affine;
    let spec = spec(4);
    let mut plan = squat_model::QuantPlan::named("rho50").unwrap();
    for point in ActPoint::ALL {
        plan.set_point(point, Some(ActScheme::Static));
    }
    let mut parameters = initial_parameters(&spec, 0.1, 1);
    add_quantizer_parameters(&mut parameters, &spec, &plan, default_quantizer());
    let dir = folder();
    for round in 0..40 {
        // Logarithms from -12 to 4, and many near 0, where a float has the most neighbours.
        for (i, p) in parameters.list_mut().iter_mut().filter(|p| p.name.ends_with(".static")).enumerate() {
            let x = (((i * 4 + round * 71) * 7919) % 10007) as f32 / 10007.0;
            let near = (x - 0.5) * 10f32.powi(-(round as i32 % 8));
            p.values.copy_from_slice(&[x * 16.0 - 12.0, x * 20.0 - 10.0, near, near * 300.0]);
        }
        let path = dir.path().join("c");
        let none = squat_model::TokenizerFiles::none();
        let quantized = (Some(&plan), default_quantizer());
        checkpoint::save(&path, &spec, quantized, &parameters, &none, None).unwrap();
        let loaded = checkpoint::load(&path).unwrap().parameters;
        for p in parameters.iter().filter(|p| p.name.ends_with(".static")) {
            let read = &loaded.get(&p.name).unwrap().values;
            for &bits in plan.widths(if p.name.contains("lm_head_input") {
                ActPoint::LmHeadInput
            } else {
                ActPoint::Query
            }) {
                let (a, b) = (static_affine(&p.values, bits), static_affine(read, bits));
                assert_eq!(
                    (a.scale.to_bits(), a.zero_point),
                    (b.scale.to_bits(), b.zero_point),
                    "{} at {bits:?}: log {}",
                    p.name,
                    p.values[2 * ActBits::index(bits)]
                );
            }
        }
    }
}
