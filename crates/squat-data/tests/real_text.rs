//! From real text, in the folder that `SQUAT_DATA` names, to shards.

#![allow(clippy::unwrap_used)]

use squat_data::tokenizer::{save, train_tokenizer};
use squat_data::{CleanOptions, Corpus, PrepareOptions, Split, TokenizerOptions, clean::Event, prepare};
use squat_test::data::data;
use std::collections::HashSet;
use std::time::Instant;

fn run(split: &str, vocab_size: usize) {
    let Some(folder) = data("text") else { return };
    let dir = tempfile::tempdir().unwrap();
    let corpus = Corpus::open(&[folder], &split.parse::<Split>().unwrap()).unwrap();
    assert_eq!(corpus.files().len(), 5);

    let start = Instant::now();
    let options = TokenizerOptions { vocab_size, ..TokenizerOptions::default() };
    let tokenizer = train_tokenizer(&corpus, &options).unwrap();
    assert_eq!(tokenizer.get_vocab_size(true), vocab_size);
    save(&tokenizer, &dir.path().join("tokenizer"), 1024, false).unwrap();
    eprintln!("{split}: tokenizer of {vocab_size} trained in {:.1} s", start.elapsed().as_secs_f64());

    let start = Instant::now();
    let (tokenizer, out) = (dir.path().join("tokenizer"), dir.path().join("shards"));
    let prepared = prepare(&corpus, &tokenizer, &out, &PrepareOptions::default()).unwrap();
    let seconds = start.elapsed().as_secs_f64();
    eprintln!(
        "{split}: {} words, {} tokens, {} documents in {seconds:.1} s",
        prepared.manifest.words, prepared.manifest.tokens, prepared.manifest.documents
    );
    for input in &prepared.manifest.inputs {
        eprintln!("  {}: {} lines, {} words, {} tokens", input.name, input.lines, input.words, input.tokens);
        assert!(input.tokens > input.words, "{}", input.name);
    }
    let start = Instant::now();
    assert!(prepare(&corpus, &tokenizer, &out, &PrepareOptions::default()).unwrap().reused);
    eprintln!("{split}: found again in {:.2} s", start.elapsed().as_secs_f64());
}

#[test]
fn held_out_text_is_prepared() {
    run("dev", 4000);
}

#[test]
fn known_flaws_are_gone() {
    let Some(folder) = data("text") else { return };
    let corpus = Corpus::open(std::slice::from_ref(&folder), &Split::All);
    assert!(corpus.is_err(), "train and dev files are mixed in one folder");
    let corpus = Corpus::open(&[folder], &"train".parse().unwrap()).unwrap();
    let mut kept = vec![0u64; corpus.files().len()];
    let mut wrong: HashSet<String> = HashSet::new();
    corpus
        .for_each(&CleanOptions::default(), |file, event| {
            let Event::Line(line) = event else { return Ok(()) };
            kept[file] += line.split(' ').count() as u64;
            let speech = corpus.files()[file].name.starts_with("childes");
            let flawed = line.contains(['\u{FFFD}', '\u{2019}', '\u{201C}', '\t'])
                || line.contains("= =")
                || line.contains("{\\")
                || line.contains("Project Gutenberg")
                || line.contains("[Illustration")
                || (speech && (line.starts_with('*') || line.contains(['[', ']']) || line.contains("xxx ")));
            if flawed {
                wrong.insert(line);
            }
            Ok(())
        })
        .unwrap();
    assert!(wrong.is_empty(), "{} flawed lines, such as {:?}", wrong.len(), wrong.iter().next());
    eprintln!("words kept: {kept:?}");
    // Raw words by file are 1.21, 3.49, 1.45, 0.43 and 0.94 million: cleaning removes noise, not the text.
    for (file, raw) in [1_207_139u64, 3_494_717, 1_453_287, 434_294, 944_339].into_iter().enumerate() {
        assert!(
            kept[file] * 100 > raw * 70,
            "{}: {} of {raw} words kept",
            corpus.files()[file].name,
            kept[file]
        );
    }
}
