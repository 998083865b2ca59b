//! Training after quantization, within a time.
#![allow(clippy::unwrap_used)]

mod common;

use squat_model::{QuantPlan, TokenizerFiles};
use squat_test::model::llama;
use squat_train::checkpoint::{self, Loaded};
use squat_train::execution::Execution;
use squat_train::model::initial_parameters;
use squat_train::stage::{Event, Outcome};
use squat_train::start::{Methods, start};
use squat_train::tune::{Settings, Tuning, tune};
use std::path::Path;
use std::time::{Duration, Instant};

fn text(length: usize, seed: u32) -> Vec<u32> {
    (0..length as u32).map(|i| 3 + (i * i * 7 + i * seed + i / 5) % 30).collect()
}

fn models() -> (Loaded, Loaded) {
    let spec = llama(true);
    let original = Loaded::full_precision(spec.clone(), initial_parameters(&spec, 0.3, 5));
    let mut plan = QuantPlan::named("w2a8").unwrap();
    plan.head = plan.embedding;
    let windows: Vec<Vec<u32>> = text(128, 3).chunks(16).map(|w| [&[1], w].concat()).collect();
    let started = start(&original, &plan, &windows, &Methods::default(), 1, &mut |_| {}).unwrap().loaded;
    (original, started)
}

fn tuning(folder: &Path, until: Duration, threads: usize) -> Tuning<'_> {
    let (original, started) = models();
    Tuning {
        original,
        started,
        text: [text(2000, 3), text(200, 4)],
        bos: 1,
        tokenizer: TokenizerFiles::none(),
        folder,
        fingerprint: "the test".to_owned(),
        until: Instant::now() + until,
        seed: 2,
        settings: Settings { step_tokens: 64, seq_len: 16, rate: 0.01, ..Settings::default() },
        execution: Execution::on_cpu(threads),
    }
}

/// Held-out cross-entropies, and the step that each is of.
fn run(tuning: Tuning<'_>, mut stop_at: Option<u64>) -> (Outcome, Vec<(u64, f64)>) {
    let stop = tuning.execution.stop.clone();
    let mut found = Vec::new();
    let (outcome, best) = tune(tuning, &mut |event| match event {
        Event::Evaluated { step, cross_entropy, .. } => found.push((step, cross_entropy)),
        Event::Step { step, .. } if Some(step) == stop_at => {
            stop_at = None;
            stop.store(true, std::sync::atomic::Ordering::Relaxed);
        }
        _ => {}
    })
    .unwrap();
    assert!(best.join("config.json").is_file());
    (outcome, found)
}

/// The start counts as a checkpoint, training makes it better, and the best is what is left.
#[test]
fn training_improves_on_the_start_within_the_time() {
    let dir = tempfile::tempdir().unwrap();
    let began = Instant::now();
    let (outcome, found) = run(tuning(dir.path(), Duration::from_secs(4), 2), None);
    assert!(began.elapsed() < Duration::from_secs(20));
    let Outcome::Finished { best } = outcome else { panic!("{outcome:?}") };
    assert_eq!(found[0].0, 0);
    assert!(found.len() >= 2 && best < found[0].1, "{found:?}");
    let loaded = checkpoint::load(&dir.path().join("best")).unwrap();
    assert!(loaded.plan.is_some());
}

/// What was found without training survives the change of the quantizer's parameters: the first evaluation is that of the start.
#[test]
fn no_time_gives_the_start() {
    let dir = tempfile::tempdir().unwrap();
    let (_, found) = run(
        Tuning {
            settings: Settings {
                rate: 0.0,
                scale_learning_rate: 0.0,
                ..tuning(dir.path(), Duration::ZERO, 1).settings
            },
            ..tuning(dir.path(), Duration::ZERO, 1)
        },
        None,
    );
    assert!(found.iter().all(|(_, loss)| *loss == found[0].1), "{found:?}");
    let (_, started) = models();
    let best = checkpoint::load(&dir.path().join("best")).unwrap();
    // The same codes, and scales that differ by the rounding of a logarithm.
    for (ours, theirs) in best.parameters.iter().zip(started.parameters.iter()) {
        assert_eq!(ours.name, theirs.name);
        for (a, b) in ours.values.iter().zip(&theirs.values) {
            assert!(
                (a - b).abs() <= 1e-5 * b.abs() || ours.name.ends_with("quantizer"),
                "{}: {a} {b}",
                ours.name
            );
        }
    }
}

/// Interrupted anywhere and with another number of threads, it ends with the same bits.
#[test]
fn an_interrupted_tuning_goes_on_bit_for_bit() {
    let (straight, broken) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let long = Duration::from_secs(600);
    for dir in [&straight, &broken] {
        // As if it had been decided by the time of the first steps.
        std::fs::write(dir.path().join("steps"), "12\n").unwrap();
    }
    let (outcome, all) = run(tuning(straight.path(), long, 2), None);
    assert!(matches!(outcome, Outcome::Finished { .. }));
    let (outcome, mut first) = run(tuning(broken.path(), long, 1), Some(7));
    assert_eq!(outcome, Outcome::Interrupted { step: 7 });
    let (outcome, rest) = run(tuning(broken.path(), long, 2), None);
    assert!(matches!(outcome, Outcome::Finished { .. }));
    first.extend(rest);
    assert_eq!(first, all);
    for name in ["best/model.safetensors", "last/model.safetensors", "last/optimizer_state.bin"] {
        let read = |dir: &tempfile::TempDir| std::fs::read(dir.path().join(name)).unwrap();
        assert!(read(&straight) == read(&broken), "{name}");
    }
}
