//! Minimal pairs on small files written by the tests.

mod common;

use std::fs;
use std::io::Write;
use std::path::Path;

use common::{Bigram, Uniform, bytes, hash_words, hashed_words};
use proptest::prelude::*;
use squat_eval::tasks::{Outcome, PairScore, average_of_groups, score_pairs, summarise};
use squat_eval::{EvalError, Form, LanguageModel, PairSet, ScoringOptions, evaluate, task};

fn record(uid: &str, term: &str, good: &str, bad: &str) -> String {
    serde_json::json!({"sentence_good": good, "sentence_bad": bad, "linguistics_term": term, "UID": uid})
        .to_string()
        + "\n"
}

fn read(name: &str, path: &Path) -> Result<PairSet, EvalError> {
    PairSet::read(task(name)?, path, None)
}

fn run(model: &mut dyn LanguageModel, set: &PairSet) -> Result<squat_eval::TaskResult, EvalError> {
    evaluate(model, &bytes(), set, &mut ScoringOptions::default())
}

/// Three paradigms in two groups; under the uniform model the shorter sentence wins.
fn example(folder: &Path) {
    let longer = |uid, term, n, better| {
        (0..n)
            .map(|i| {
                if i < better { record(uid, term, "a b", "a b c") } else { record(uid, term, "a b c", "a b") }
            })
            .collect::<String>()
    };
    fs::write(folder.join("one.jsonl"), longer("one", "s-selection", 4, 1)).expect("written");
    fs::write(folder.join("two.jsonl"), longer("two", "argument_structure", 4, 4)).expect("written");
    fs::write(
        folder.join("three.jsonl"),
        longer("three", "binding", 3, 2) + &record("three", "binding", "same", "same") + "\n",
    )
    .expect("written");
}

#[test]
fn groups_are_means_of_paradigms_and_the_average_a_mean_of_groups() {
    let folder = tempfile::tempdir().expect("a folder");
    example(folder.path());
    let set = read("blimp", folder.path()).expect("read");
    assert_eq!(set.groups(), ["argument_structure", "binding"]);
    let result = run(&mut Uniform::new(300), &set).expect("scored");

    assert_eq!((result.n, result.ties, result.identical), (12, 1, 1));
    assert_eq!(result.paradigms["one"].accuracy, 25.0);
    assert_eq!(result.paradigms["three"].accuracy, 62.5);
    assert_eq!(result.groups["argument_structure"], 62.5);
    assert_eq!(result.groups["binding"], 62.5);
    assert_eq!(result.average, 62.5);
    assert_eq!(result.paradigm_average, (25.0 + 100.0 + 62.5) / 3.0);
    // Variances of the means by hand: "one" 1/16, "two" 0, "three" (2.25 - 4 * 0.625^2) / 3 / 4.
    let expected = (0.0625 / 16.0 + 0.6875 / 12.0 / 4.0_f64).sqrt();
    assert!((result.standard_error - 100.0 * expected).abs() < 1e-9, "{}", result.standard_error);

    let json = serde_json::to_value(&result).expect("serialisable");
    for key in ["task", "form", "average", "groups", "n", "ties"] {
        assert!(json.get(key).is_some(), "{key} is missing");
    }
    assert_eq!(json["form"], "fp");
    assert_eq!(json["groups"]["binding"], 62.5);
    assert_eq!(serde_json::from_value::<squat_eval::TaskResult>(json).expect("read back"), result);
}

#[test]
fn a_folder_an_archive_and_a_file_give_the_same_pairs() {
    let folder = tempfile::tempdir().expect("a folder");
    fs::create_dir(folder.path().join("data")).expect("made");
    example(&folder.path().join("data"));
    let packed = tempfile::tempdir().expect("a folder");
    let path = packed.path().join("pairs.tar.gz");
    let gzip =
        flate2::write::GzEncoder::new(fs::File::create(&path).expect("made"), flate2::Compression::fast());
    let mut archive = tar::Builder::new(gzip);
    archive.append_dir_all("data", folder.path().join("data")).expect("packed");
    archive.into_inner().and_then(|gzip| gzip.finish()).expect("closed").flush().expect("flushed");

    let from_folder = read("blimp", folder.path()).expect("read");
    let from_archive = read("blimp", &path).expect("read");
    let from_folder_of_archives = read("blimp", packed.path()).expect("read");
    assert_eq!(from_folder.pairs, from_archive.pairs);
    assert_eq!(from_folder.paradigms, from_archive.paradigms);
    assert_eq!(from_folder.pairs, from_folder_of_archives.pairs);

    let one = read("blimp", &folder.path().join("data/one.jsonl")).expect("read");
    assert_eq!((one.pairs.len(), one.paradigms.len()), (4, 1));
    let limited = PairSet::read(task("blimp").expect("known"), &path, Some(3)).expect("read");
    assert_eq!(limited.pairs.len(), 9);
}

#[test]
fn supplement_and_blimp_are_told_apart() {
    let folder = tempfile::tempdir().expect("a folder");
    example(folder.path());
    let plain = r#"{"sentence_good": "x", "sentence_bad": "xyz", "row": 1}"#;
    for name in ["hypernym", "turn_taking"] {
        fs::write(folder.path().join(format!("{name}.jsonl")), plain).expect("written");
    }
    let blimp = read("blimp", folder.path()).expect("read");
    assert_eq!(blimp.skipped_files, ["hypernym.jsonl", "turn_taking.jsonl"]);
    let supplement = read("supplement", folder.path()).expect("read");
    assert_eq!(supplement.groups(), ["hypernym", "turn_taking"]);
    assert_eq!(supplement.skipped_files.len(), 3);
    assert_eq!(read("pairs", folder.path()).expect("read").groups().len(), 5);

    let mut model = Uniform::new(300);
    let (a, b) = (run(&mut model, &blimp).expect("scored"), run(&mut model, &supplement).expect("scored"));
    assert_eq!(average_of_groups(&[&a, &b]).expect("one model"), (62.5 + 62.5 + 100.0 + 100.0) / 4.0);
    assert!(average_of_groups(&[&a, &a]).is_err());
    let mut other = a.clone();
    other.form = Form::Packed;
    assert!(average_of_groups(&[&other, &b]).is_err());
    assert!(average_of_groups(&[]).is_err());
}

#[test]
fn bad_files_are_refused_with_their_place() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("x.jsonl");
    let message = |text: &str, task: &str| {
        fs::write(&file, text).expect("written");
        read(task, &file).expect_err("refused").to_string()
    };
    let good = record("x", "binding", "a", "b");
    let missing = message(
        &(good.clone() + r#"{"sentence_god": "a", "sentence_bad": "b", "linguistics_term": "binding"}"#),
        "blimp",
    );
    assert!(missing.contains("x.jsonl, line 2") && missing.contains("\"sentence_good\""), "{missing}");
    assert!(missing.contains("did you mean \"sentence_god\"?"), "{missing}");
    let number =
        message(r#"{"sentence_good": 3, "sentence_bad": "b", "linguistics_term": "binding"}"#, "blimp");
    assert!(number.contains("expected a text field"), "{number}");
    let broken = message(&(good.clone() + "{\"sentence_good\": \"a"), "blimp");
    assert!(broken.contains("line 2: expected one JSON object per line"), "{broken}");
    assert!(message("[1]", "pairs").contains("line 1"));
    assert!(message("", "pairs").contains("no pairs"));
    let other = message(r#"{"sentence_good": "a", "sentence_bad": "b"}"#, "blimp");
    assert!(other.contains("linguistics_term") && other.contains("\"pairs\""), "{other}");
    assert!(message(&good, "supplement").contains("hypernym"));
    assert!(message(&good, "perplexity").contains("not a task of minimal pairs"));
    let two_groups = message(&(good.clone() + &record("x", "islands", "a", "b")), "blimp");
    assert!(two_groups.contains("islands"), "{two_groups}");

    fs::write(&file, b"{\"sentence_good\": \"\xff\"}").expect("written");
    assert!(matches!(read("pairs", &file), Err(EvalError::NotUtf8 { offset: 19, .. })));
    fs::write(&file, &good).expect("written");
    fs::write(folder.path().join("y.jsonl"), &good).expect("written");
    let twice = read("blimp", folder.path()).expect_err("refused").to_string();
    assert!(twice.contains("x.jsonl") && twice.contains("y.jsonl"), "{twice}");
    assert!(matches!(read("blimp", Path::new("/nowhere")), Err(EvalError::Missing { .. })));
    fs::write(folder.path().join("z.tar.gz"), b"no archive at all").expect("written");
    assert!(matches!(read("blimp", &folder.path().join("z.tar.gz")), Err(EvalError::Io { .. })));
    assert!(matches!(
        PairSet::read(task("blimp").expect("known"), &file, Some(0)),
        Err(EvalError::Option { .. })
    ));
}

/// Output of a broken model.
struct Broken(fn(&[u32]) -> Vec<f32>);

impl LanguageModel for Broken {
    fn name(&self) -> String {
        "broken".to_owned()
    }
    fn form(&self) -> Form {
        Form::Packed
    }
    fn vocab_size(&self) -> usize {
        257
    }
    fn max_length(&self) -> usize {
        8
    }
    fn log_likelihoods(&mut self, sequences: &[&[u32]]) -> Result<Vec<Vec<f32>>, EvalError> {
        if sequences.iter().any(|sequence| sequence.contains(&(u32::from(b'!') + 1))) {
            return Err(EvalError::model("no memory"));
        }
        Ok(sequences.iter().map(|sequence| self.0(sequence)).collect())
    }
}

#[test]
fn a_broken_model_fails_the_run_and_says_where() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("x.jsonl");
    let failure = |text: String, answer: fn(&[u32]) -> Vec<f32>| {
        fs::write(&file, text).expect("written");
        run(&mut Broken(answer), &read("blimp", &file).expect("read")).expect_err("refused")
    };
    let lines = |bad| record("x", "binding", "aa", "bb") + &record("x", "binding", "cc", bad);
    let fine = |sequence: &[u32]| vec![-1.0; sequence.len() - 1];

    for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let answer = match value {
            v if v.is_nan() => {
                |s: &[u32]| s[1..].iter().map(|&t| if t == 101 { f32::NAN } else { -1.0 }).collect()
            }
            f32::INFINITY => {
                |s: &[u32]| s[1..].iter().map(|&t| if t == 101 { f32::INFINITY } else { -1.0 }).collect()
            }
            _ => |s: &[u32]| -> Vec<f32> {
                s[1..].iter().map(|&t| if t == 101 { f32::NEG_INFINITY } else { -1.0 }).collect()
            },
        };
        let error = failure(lines("cd"), answer);
        let text = error.to_string();
        assert!(matches!(error, EvalError::NonFinite { position: 2, .. }), "{text}");
        assert!(text.contains("x.jsonl, line 2, sentence_bad \"cd\""), "{text}");
    }
    assert!(matches!(failure(lines("d"), |s| vec![0.5; s.len() - 1]), EvalError::NotLogProbability { .. }));
    assert!(matches!(failure(lines("d"), |s| vec![-1.0; s.len()]), EvalError::Output { .. }));
    assert!(matches!(failure(lines("12345678"), fine), EvalError::TooLong { got: 9, max: 8, .. }));
    assert!(matches!(failure(lines(""), fine), EvalError::Empty { .. }));
    assert!(matches!(failure(lines("é\u{ff}!"), fine), EvalError::Model(_)));

    let set = read("blimp", &file).expect("read");
    let error = run(&mut Uniform::new(100), &set).expect_err("byte ids exceed the vocabulary");
    assert!(matches!(error, EvalError::TokenOutOfRange { position: 1, .. }), "{error}");
    let refuse = squat_eval::FnTokenizer::new(0, |_: &str| Err::<Vec<u32>, _>("no such character"));
    let error =
        evaluate(&mut Uniform::new(9), &refuse, &set, &mut ScoringOptions::default()).expect_err("refused");
    assert!(error.to_string().contains("x.jsonl, line 1") && error.to_string().contains("no such character"));
    assert!(summarise(&Uniform::new(9), &set, &[]).is_err());
}

#[test]
fn ties_count_one_half_and_a_zero_has_no_sign() {
    assert_eq!(PairScore { good: -0.0, bad: 0.0 }.outcome(), Outcome::Tie);
    assert_eq!(PairScore { good: 0.0, bad: -0.0 }.outcome(), Outcome::Tie);
    assert_eq!(PairScore { good: -1.0, bad: -2.0 }.outcome(), Outcome::Good);
    assert_eq!(PairScore { good: -2.0, bad: -1.0 }.outcome(), Outcome::Bad);
}

/// Returns another constant for each call, like an arithmetic that depends on the other sequences of a batch.
struct Drifting(f32);

impl LanguageModel for Drifting {
    fn name(&self) -> String {
        "drifting".to_owned()
    }
    fn form(&self) -> Form {
        Form::Fp
    }
    fn vocab_size(&self) -> usize {
        257
    }
    fn max_length(&self) -> usize {
        64
    }
    fn log_likelihoods(&mut self, sequences: &[&[u32]]) -> Result<Vec<Vec<f32>>, EvalError> {
        Ok(sequences
            .iter()
            .map(|sequence| {
                self.0 -= 1e-3;
                vec![self.0; sequence.len() - 1]
            })
            .collect())
    }
}

#[test]
fn identical_sentences_tie_whatever_the_model_does() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("x.jsonl");
    let text: String = (0..9).map(|i| record("x", "binding", &format!("s{i}"), &format!("s{i}"))).collect();
    fs::write(&file, text).expect("written");
    let set = read("blimp", &file).expect("read");
    let mut options = ScoringOptions { batch_tokens: 1, ..ScoringOptions::default() };
    let result = evaluate(&mut Drifting(-1.0), &bytes(), &set, &mut options).expect("scored");
    assert_eq!((result.n, result.ties, result.identical, result.average), (9, 9, 9, 50.0));
}

#[test]
fn batches_hold_similar_lengths_within_the_budget() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("x.jsonl");
    let words = |n: usize| vec!["w"; n].join(" ");
    let text: String = (1..20).map(|i| record("x", "b", &words(20 - i), &(words(i) + " z"))).collect();
    fs::write(&file, text).expect("written");
    let set = read("blimp", &file).expect("read");
    let mut model = Bigram::new(1000);
    let mut progress = Vec::new();
    let mut options = ScoringOptions {
        batch_tokens: 50,
        on_progress: Some(Box::new(|done, all| progress.push((done, all)))),
    };
    evaluate(&mut model, &hashed_words(1000), &set, &mut options).expect("scored");
    drop(options);
    assert!(model.calls.iter().all(|&(n, longest)| n == 1 || n * longest <= 50), "{:?}", model.calls);
    assert!(model.calls.is_sorted_by_key(|&(_, longest)| longest));
    assert_eq!(progress.last(), Some(&(38, 38)));
    assert_eq!(progress.len(), model.calls.len());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    /// The score of a sentence does not depend on its batch, and permuting the pairs permutes the scores.
    #[test]
    fn scores_depend_on_the_sentence_alone(
        sentences in prop::collection::vec(("[a-d]( [a-d]){0,6}", "[a-d]( [a-d]){0,6}"), 1..20),
        batch_tokens in 1usize..60,
    ) {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("x.jsonl");
        let text: String = sentences.iter().map(|(good, bad)| record("x", "b", good, bad)).collect();
        fs::write(&file, text).expect("written");
        let mut set = read("blimp", &file).expect("read");
        let mut model = Bigram::new(500);
        model.train(&hash_words("a b c d a a b d c a b d d c b a", 500));

        let mut options = ScoringOptions { batch_tokens, ..ScoringOptions::default() };
        let tokenizer = hashed_words(500);
        let scores = score_pairs(&mut model, &tokenizer, &set, &mut options).expect("scored");
        let alone = |text: &str| {
            let mut ids = vec![0];
            ids.extend(hash_words(text, 500));
            ids.windows(2).map(|pair| f64::from(model.probability(pair[0], pair[1]).ln() as f32)).sum::<f64>()
        };
        for ((good, bad), score) in sentences.iter().zip(&scores) {
            prop_assert_eq!(score.good, alone(good));
            prop_assert_eq!(score.bad, alone(bad));
        }
        let result = summarise(&model, &set, &scores).expect("as many");
        set.pairs.reverse();
        let mut reversed = score_pairs(&mut model, &tokenizer, &set, &mut ScoringOptions::default()).expect("scored");
        prop_assert_eq!(summarise(&model, &set, &reversed).expect("as many"), result);
        reversed.reverse();
        prop_assert_eq!(reversed, scores);
    }

    /// No bytes make the reader panic.
    #[test]
    fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..200), archive in any::<bool>()) {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join(if archive { "x.tar" } else { "x.jsonl" });
        fs::write(&file, bytes).expect("written");
        let _ = read("pairs", &file);
    }
}
