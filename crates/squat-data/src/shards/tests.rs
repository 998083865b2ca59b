use super::*;
use crate::clean::{CleanOptions, Domain};
use crate::tokenizer::{TokenizerOptions, save, train_on_lines};
use crate::{Corpus, DataError, Split};
use std::path::{Path, PathBuf};

struct Setup {
    dir: tempfile::TempDir,
}

impl Setup {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("text")).unwrap();
        let setup = Self { dir };
        setup.text("english.txt", "The cat sat.\nThe dog ran home.\n");
        setup.text("notes.txt", "One line.\nTwo lines.\n\nA new document </s> here.\n");
        setup.text("gutenberg.txt", "The end of _one_ line\nand the next one.\n");
        setup.tokenizer(300);
        setup
    }

    fn at(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn text(&self, name: &str, text: &str) {
        std::fs::write(self.at("text").join(name), text).unwrap();
    }

    fn tokenizer(&self, vocab_size: usize) {
        let lines = ["The cat sat on the mat.", "The dog ran home, one line at a time."];
        let options = TokenizerOptions { vocab_size, min_frequency: 0, ..TokenizerOptions::default() };
        let tokenizer = train_on_lines(lines.iter().cycle().take(100), &options).unwrap();
        save(&tokenizer, &self.at("tokenizer"), 64, false).unwrap();
    }

    fn prepare(&self, options: &PrepareOptions) -> crate::Result<Prepared> {
        let corpus = Corpus::open(&[self.at("text")], &Split::All)?;
        prepare(&corpus, &self.at("tokenizer"), &self.at("out"), options)
    }

    fn decoded(&self, prepared: &Prepared) -> String {
        let tokenizer = crate::tokenizer::load(&self.at("tokenizer")).unwrap();
        let ids = prepared.shards.get(0, usize::MAX);
        ids.iter().map(|id| tokenizer.id_to_token(*id).unwrap()).collect::<String>().replace('\u{120}', " ")
    }
}

fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn separators_counts_and_lines() {
    let setup = Setup::new();
    let prepared = setup.prepare(&PrepareOptions::default()).unwrap();
    // Sorted files: documents by line, prose joined by spaces, lines joined by the newline token; `</s>` in the text
    // is text.
    assert_eq!(
        setup.decoded(&prepared),
        " The cat sat.</s> The dog ran home.</s> The end of one line and the next one.</s> One line.\u{10A} Two lines.</s> A new document </s> here.</s>"
    );
    let m = &prepared.manifest;
    assert_eq!((m.documents, m.words, m.tokens), (5, 25, prepared.shards.len()));
    assert_eq!(m.inputs[0].text_bytes, 29);
    assert_eq!(m.inputs.iter().map(|i| i.lines).collect::<Vec<_>>(), [2, 2, 3]);
    let eos = prepared.shards.get(0, usize::MAX).iter().filter(|id| **id == 2).count();
    assert_eq!(eos, 5, "typed `</s>` is not the token");
    assert_eq!(prepared.shards.lines(), 7);
    assert_eq!(prepared.shards.line_start(0), Some(0));
    let second = prepared.shards.line_start(1).unwrap();
    assert_eq!(prepared.shards.get(second - 1, 1), [2]);
    assert_eq!(prepared.shards.line_start_from(1), Some(second));
    assert_eq!(prepared.shards.line_start_from(prepared.shards.len()), None);
}

#[test]
fn the_cache_is_used_only_when_nothing_changed() {
    let setup = Setup::new();
    let options = PrepareOptions::default();
    let first = setup.prepare(&options).unwrap();
    assert!(!first.reused);
    let again = setup.prepare(&options).unwrap();
    assert!(again.reused);
    assert_eq!(again.manifest, first.manifest);

    let changed = |what: &str| {
        let prepared = setup.prepare(&options).unwrap();
        assert!(!prepared.reused, "{what}");
        let mut expected: Vec<String> = prepared.manifest.shards.iter().map(|s| s.file.clone()).collect();
        expected.extend([
            prepared.manifest.lines.file.clone(),
            "manifest.json".to_owned(),
            ".squat".to_owned(),
        ]);
        expected.sort();
        assert_eq!(names(&setup.at("out")), expected, "{what}: old shards are gone");
        assert!(setup.prepare(&options).unwrap().reused, "{what}");
    };
    setup.text("notes.txt", "One line!\n");
    changed("text");
    setup.tokenizer(290);
    changed("tokenizer");
    std::fs::rename(setup.at("text/notes.txt"), setup.at("text/english.notes.txt")).unwrap();
    changed("file name, so domain");
    let raw = CleanOptions { domain: Some(Domain::Raw), ..CleanOptions::default() };
    assert!(!setup.prepare(&PrepareOptions { clean: raw, ..PrepareOptions::default() }).unwrap().reused);
}

#[test]
fn damage_is_detected_and_repaired() {
    let setup = Setup::new();
    let options = PrepareOptions::default();
    let first = setup.prepare(&options).unwrap();
    let tokens = first.shards.get(0, usize::MAX);
    let shard = setup.at("out").join(&first.manifest.shards[0].file);
    let bytes = std::fs::read(&shard).unwrap();
    let mut altered = bytes.clone();
    altered[7] ^= 1;
    for wrong in [&bytes[..bytes.len() - 2], &altered[..], &[]] {
        // A new file, as `first` still maps the old one.
        std::fs::remove_file(&shard).unwrap();
        std::fs::write(&shard, wrong).unwrap();
        let error = TokenShards::open(&setup.at("out")).unwrap_err();
        assert!(matches!(error, DataError::DamagedShards { .. }), "{error}");
        let repaired = setup.prepare(&options).unwrap();
        assert!(!repaired.reused);
        assert_eq!(repaired.shards.get(0, usize::MAX), tokens);
    }
    std::fs::remove_file(&shard).unwrap();
    assert!(TokenShards::open(&setup.at("out")).unwrap_err().to_string().contains("does not exist"));
    std::fs::write(setup.at("out/manifest.json"), "{").unwrap();
    assert!(TokenShards::open(&setup.at("out")).unwrap_err().to_string().contains("manifest"));
    assert!(setup.prepare(&options).is_ok());
    assert!(matches!(TokenShards::open(&setup.at("outt")), Err(DataError::Missing { .. })));
}

#[test]
fn a_failure_leaves_the_folder_as_it_was() {
    let setup = Setup::new();
    setup.text("x.jsonl", "{\"text\": \"good\"}\n{bad\n");
    assert!(matches!(setup.prepare(&PrepareOptions::default()), Err(DataError::BadJson { line: 2, .. })));
    assert!(!setup.at("out").exists(), "nothing half-written");

    std::fs::remove_file(setup.at("text/x.jsonl")).unwrap();
    setup.prepare(&PrepareOptions::default()).unwrap();
    let before = names(&setup.at("out"));
    setup.text("x.jsonl", "[1]\n");
    assert!(setup.prepare(&PrepareOptions::default()).is_err());
    assert_eq!(names(&setup.at("out")), before);
    assert!(TokenShards::open(&setup.at("out")).is_ok());
}

#[test]
fn an_empty_corpus_is_refused() {
    let setup = Setup::new();
    for name in names(&setup.at("text")) {
        setup.text(&name, " \n\n***\n");
    }
    assert!(matches!(setup.prepare(&PrepareOptions::default()), Err(DataError::EmptyCorpus { .. })));
    assert!(!setup.at("out").exists());
}

/// Shards of any size read back as one sequence.
#[test]
fn many_shards_are_one_sequence() {
    let setup = Setup::new();
    let whole = setup.prepare(&PrepareOptions::default()).unwrap().shards.get(0, usize::MAX);
    for shard_tokens in [1, 2, 7, 1000] {
        let options = PrepareOptions { shard_tokens, ..PrepareOptions::default() };
        let prepared = setup.prepare(&options).unwrap();
        let count = (whole.len() as u64).div_ceil(shard_tokens);
        assert_eq!(prepared.manifest.shards.len() as u64, count);
        assert_eq!(prepared.shards.get(0, usize::MAX), whole);
        for start in 0..whole.len() {
            assert_eq!(prepared.shards.get(start as u64, 5), whole[start..(start + 5).min(whole.len())]);
        }
    }
}

#[test]
fn wide_ids_for_large_vocabularies() {
    assert_eq!(TokenType::for_vocab(65_536), TokenType::U16);
    assert_eq!(TokenType::for_vocab(65_537), TokenType::U32);
    let setup = Setup::new();
    // A tokenizer padded with 66,000 added tokens, one of which occurs.
    let path = setup.at("tokenizer/tokenizer.json");
    let mut json: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    let first = json["model"]["vocab"].as_object().unwrap().len();
    let added = json["added_tokens"].as_array_mut().unwrap();
    for i in 0..66_000 {
        let content = if i == 65_999 { "ran h".to_owned() } else { format!("<unused{i}>") };
        added.push(
            serde_json::json!({"id": first + i, "content": content, "single_word": false, "lstrip": false,
            "rstrip": false, "normalized": false, "special": false}),
        );
    }
    std::fs::write(&path, json.to_string()).unwrap();
    let prepared = setup.prepare(&PrepareOptions::default()).unwrap();
    assert_eq!(prepared.manifest.token_type, TokenType::U32);
    assert!(prepared.shards.get(0, usize::MAX).contains(&((first + 65_999) as u32)));
}

#[test]
fn chunks_can_start_at_lines() {
    use crate::batch::{Chunks, Start};
    let setup = Setup::new();
    let shards = setup.prepare(&PrepareOptions::default()).unwrap().shards;
    let starts: Vec<u64> = (0..shards.lines()).filter_map(|i| shards.line_start(i)).collect();
    let all = shards.get(0, usize::MAX);
    // Where a chunk begins is told by its tokens: long enough to be unique in this small text.
    let position = |chunk: &[u32]| all.windows(chunk.len()).position(|w| w == chunk).unwrap() as u64;
    let (mut at_lines, mut total) = (0, 0);
    for seed in 0..20 {
        let plain = Chunks::new(&shards, 12, seed).unwrap();
        let aligned = plain.clone().starting(Start::Line);
        for step in 0..plain.per_epoch() {
            let (before, after) =
                (position(&plain.batch(step, 1)[0][1..]), position(&aligned.batch(step, 1)[0][1..]));
            assert!((before..=before + 6).contains(&after));
            assert!(after == before || starts.contains(&after));
            at_lines += u64::from(starts.contains(&after));
            total += 1;
        }
    }
    assert!(at_lines * 2 > total, "{at_lines} of {total}");
}

/// Parts made in any order give the bytes of a preparation in one piece, and follow the same rules.
#[test]
fn parts_merge_to_the_whole() {
    let setup = Setup::new();
    setup.text("empty.txt", "\n");
    let options = PrepareOptions { shard_tokens: 7, ..PrepareOptions::default() };
    let whole = setup.prepare(&options).unwrap();
    let files = |folder: &Path| -> Vec<(String, Vec<u8>)> {
        let names = names(folder).into_iter().filter(|name| !name.starts_with("parts-of-"));
        names.map(|name| (name.clone(), std::fs::read(folder.join(&name)).unwrap())).collect()
    };
    let expected = files(&setup.at("out"));
    let corpus = || Corpus::open(&[setup.at("text")], &Split::All).unwrap();
    // Fewer parts than files, as many, more.
    for count in [1, 2, 4, 9] {
        let out = setup.at(&format!("merged-{count}"));
        let part = |index: usize| {
            let part = Part::new(index, count).unwrap();
            prepare_part(&corpus(), &setup.at("tokenizer"), &out, &options, part).unwrap()
        };
        for index in (0..count).rev() {
            if index == 0 && count > 1 {
                let error = merge_parts(&out, false).unwrap_err().to_string();
                assert!(error.contains("is missing") && error.contains("/0"), "{error}");
            }
            assert!(!part(index).reused);
        }
        let merged = merge_parts(&out, false).unwrap();
        assert!(!merged.reused);
        assert_eq!(merged.manifest, whole.manifest);
        assert!(files(&out) == expected, "{count} parts");
        // Nothing to do: for a part, for the merge, and for a preparation in one piece.
        assert!((0..count).all(|index| part(index).reused));
        assert!(merge_parts(&out, false).unwrap().reused);
        let again = prepare(&corpus(), &setup.at("tokenizer"), &out, &options).unwrap();
        assert!(again.reused && files(&out) == expected);
    }
    // Parts that do not belong together.
    let out = setup.at("merged-2");
    let one = |options: &PrepareOptions| {
        prepare_part(&corpus(), &setup.at("tokenizer"), &out, options, Part::new(1, 2).unwrap()).unwrap()
    };
    one(&PrepareOptions::default());
    let error = merge_parts(&out, false).unwrap_err().to_string();
    assert!(error.contains("a different tokenizer, cleaning or shard size"), "{error}");
    setup.text("notes.txt", "Something else.\n");
    one(&options);
    let error = merge_parts(&out, false).unwrap_err().to_string();
    assert!(error.contains("a different list of files"), "{error}");
    std::fs::create_dir(out.join("parts-of-3")).unwrap();
    assert!(merge_parts(&out, false).unwrap_err().to_string().contains("[2, 3]"));
    assert!(merge_parts(&setup.at("text"), false).unwrap_err().to_string().contains("--shard"));
    // What was merged before is still whole.
    assert!(TokenShards::open(&out).is_ok());
}
