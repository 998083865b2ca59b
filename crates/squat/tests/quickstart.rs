//! The main job: its figures at full size, and the same result for any number of threads.

use std::process::Command;

/// Steps and words that make the job small: every stage still warms up, saves, evaluates and freezes thresholds.
const SMALL: [&str; 5] = [
    "data.generated_words=60_000",
    "stage.teacher.steps=20",
    "stage.student.steps=20",
    "stage.qat.steps=20",
    "stage.qat.eval_every=10",
];

/// Runs `squat quickstart` and returns its JSON object.
fn quickstart(threads: usize, settings: &[&str]) -> serde_json::Value {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let out = folder.path().join("out");
    let output = Command::new(env!("CARGO_BIN_EXE_squat"))
        .args(["quickstart", "--seed", "1", "--json", "--threads", &threads.to_string(), "--out"])
        .arg(&out)
        .args(settings.iter().flat_map(|setting| ["--set", setting]))
        .output()
        .expect("the binary runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let page = std::fs::read_to_string(out.join("report.html")).expect("the report is there");
    assert!(page.contains("<svg") && !page.contains("src=\"http"), "the report is self-contained");
    serde_json::from_slice(&output.stdout).expect("one JSON object")
}

/// What holds however long the job trains.
fn check(report: &serde_json::Value) {
    let number = |value: &serde_json::Value| value.as_f64().expect("a number");
    let accuracy = |form: &str| number(&report["accuracy"][form]);
    assert_eq!(accuracy("fake"), accuracy("packed"));
    assert_eq!(number(&report["parity"]["max_abs_logit_diff"]), 0.0, "packed == fake-quantized");
    assert_eq!(number(&report["parity"]["prefill_decode_max_abs_diff"]), 0.0, "prefill == decoding");
    assert!(number(&report["bytes"]["packed"]) * 5.0 < number(&report["bytes"]["fp"]));
    assert!(report["samples"].as_array().is_some_and(|s| s.len() >= 3));
}

#[test]
#[ignore = "a minute; `cargo test --release -p squat --test quickstart -- --ignored`"]
fn another_number_of_threads_gives_the_same_result_to_the_last_bit() {
    let (first, second) = (quickstart(2, &SMALL), quickstart(1, &SMALL));
    check(&first);
    for key in ["accuracy", "perplexity", "bytes", "samples", "parity"] {
        assert_eq!(first[key], second[key], "{key}");
    }
}

#[test]
#[ignore = "minutes; `cargo test --release -p squat --test quickstart -- --ignored`"]
fn reaches_its_figures() {
    let report = quickstart(2, &[]);
    println!("{report}");
    check(&report);
    let accuracy = |form: &str| report["accuracy"][form].as_f64().expect("a number");
    assert!(accuracy("fp") >= 90.0, "full precision: {}", accuracy("fp"));
    assert!((accuracy("fp") - accuracy("packed")).abs() <= 2.0, "packed: {}", accuracy("packed"));
}
