//! The main job, twice with the same seed. Takes minutes in release and far longer in debug, so debug builds skip it.

use std::process::Command;

/// Runs `squat quickstart` and returns its JSON object.
fn quickstart(threads: usize) -> serde_json::Value {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let out = folder.path().join("out");
    let output = Command::new(env!("CARGO_BIN_EXE_squat"))
        .args(["quickstart", "--seed", "1", "--json", "--threads", &threads.to_string(), "--out"])
        .arg(&out)
        .output()
        .expect("the binary runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let page = std::fs::read_to_string(out.join("report.html")).expect("the report is there");
    assert!(page.contains("<svg") && !page.contains("src=\"http"), "the report is self-contained");
    serde_json::from_slice(&output.stdout).expect("one JSON object")
}

#[test]
fn reaches_its_figures_and_repeats_itself() {
    if cfg!(debug_assertions) {
        eprintln!("skipped: run with --release");
        return;
    }
    let first = quickstart(2);
    println!("{first}");
    let number = |value: &serde_json::Value| value.as_f64().expect("a number");
    let accuracy = |form: &str| number(&first["accuracy"][form]);
    assert!(accuracy("fp") >= 90.0, "full precision: {}", accuracy("fp"));
    assert!((accuracy("fp") - accuracy("packed")).abs() <= 2.0, "packed: {}", accuracy("packed"));
    assert_eq!(accuracy("fake"), accuracy("packed"));
    assert_eq!(number(&first["parity"]["max_abs_logit_diff"]), 0.0, "packed == fake-quantized");
    assert_eq!(number(&first["parity"]["prefill_decode_max_abs_diff"]), 0.0, "prefill == decoding");
    assert!(number(&first["bytes"]["packed"]) * 5.0 < number(&first["bytes"]["fp"]));
    assert!(first["samples"].as_array().is_some_and(|s| s.len() >= 3));
    // Another number of threads, the same result to the last bit.
    let second = quickstart(1);
    for key in ["accuracy", "perplexity", "bytes", "samples", "parity"] {
        assert_eq!(first[key], second[key], "{key}");
    }
}
