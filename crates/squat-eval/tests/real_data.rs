//! The real data sets, in the folder that SQUAT_DATA names.

mod common;

use common::{Bigram, Uniform, hash_words, hashed_words};
use squat_eval::{LanguageModel, PairSet, ScoringOptions, evaluate, task};
use squat_test::data::data;

const VOCAB: usize = 1 << 16;

#[test]
fn blimp_has_67_paradigms_in_12_groups_and_7_identical_pairs() {
    let Some(archive) = data("blimp/blimp.tar.gz") else { return };
    let blimp = task("blimp").expect("registered");
    let set = PairSet::read(blimp, &archive, None).expect("read");
    assert_eq!((set.paradigms.len(), set.pairs.len(), set.identical()), (67, 67_000, 7));
    assert_eq!(set.groups(), blimp.groups);
    assert!(set.skipped_files.is_empty());
    let count = |group: &str| set.paradigms.iter().filter(|paradigm| paradigm.group == group).count();
    assert_eq!(
        blimp.groups.iter().map(|group| count(group)).collect::<Vec<_>>(),
        [2, 9, 7, 5, 8, 2, 7, 2, 8, 7, 4, 6]
    );
    let identical = |name: &str| {
        set.pairs
            .iter()
            .filter(|pair| pair.good == pair.bad && set.paradigms[pair.paradigm].name == name)
            .count()
    };
    assert_eq!((identical("principle_A_case_2"), identical("passive_1")), (5, 2));

    // The folder of the archive works like the archive.
    let limited = PairSet::read(blimp, archive.parent().expect("a folder"), Some(10)).expect("read");
    assert_eq!((limited.paradigms.len(), limited.pairs.len()), (67, 670));
}

#[test]
fn filtered_and_fast_sets_hold_blimp_and_supplement() {
    let Some(folder) = data("supplement") else { return };
    let (blimp, supplement) = (task("blimp").expect("registered"), task("supplement").expect("registered"));
    for (archive, n_blimp, counts, identical) in [
        ("babylm2025_blimp_filtered_supplement", 59_875, [842, 64, 165, 3867, 280], 7),
        ("babylm2025_fast", 13_400, [50; 5], 3),
    ] {
        let path = folder.join(format!("{archive}.tar.gz"));
        let set = PairSet::read(blimp, &path, None).expect("read");
        assert_eq!(
            (set.paradigms.len(), set.pairs.len(), set.identical()),
            (67, n_blimp, identical),
            "{archive}"
        );
        assert_eq!(
            (set.groups(), set.skipped_files.len()),
            (blimp.groups.iter().map(String::as_str).collect(), 5)
        );
        let set = PairSet::read(supplement, &path, None).expect("read");
        assert_eq!(set.groups(), supplement.groups);
        let count = |i: usize| set.pairs.iter().filter(|pair| pair.paradigm == i).count();
        assert_eq!((0..5).map(count).collect::<Vec<_>>(), counts, "{archive}");
    }
    // A folder of both archives would count every paradigm twice.
    let error = PairSet::read(blimp, &folder, None).expect_err("two data sets").to_string();
    assert!(error.contains("occurs in both"), "{error}");
}

/// Counting pairs of words in real text is a little better than chance on BLiMP as a whole.
#[test]
fn a_bigram_model_is_between_chance_and_grammar() {
    let (Some(archive), Some(text)) = (data("blimp/blimp.tar.gz"), data("text")) else { return };
    let tokenizer = hashed_words(VOCAB);
    let blimp = task("blimp").expect("registered");
    let set = PairSet::read(blimp, &archive, None).expect("read");

    let chance =
        evaluate(&mut Uniform::new(VOCAB), &tokenizer, &set, &mut ScoringOptions::default()).expect("scored");
    assert!(chance.ties > set.pairs.len() / 3, "sentences of equal length tie under the uniform model");

    let mut model = Bigram::new(VOCAB);
    for domain in ["simple_wiki", "childes", "switchboard"] {
        let file = text.join(format!("{domain}.train.gz"));
        let mut text = String::new();
        let gzip = std::fs::File::open(file).map(flate2::read::MultiGzDecoder::new);
        std::io::Read::read_to_string(&mut gzip.expect("there"), &mut text).expect("UTF-8");
        for line in text.lines() {
            let mut ids = vec![0];
            ids.extend(hash_words(line, VOCAB));
            model.train(&ids);
        }
    }
    let result = evaluate(&mut model, &tokenizer, &set, &mut ScoringOptions::default()).expect("scored");
    println!(
        "bigram: {:.2} +- {:.2}, {} ties, {:?}",
        result.average, result.standard_error, result.ties, result.groups
    );
    println!("uniform: {:.2}, {} ties", chance.average, chance.ties);
    assert_eq!(model.name(), result.model);
    assert!((52.0..75.0).contains(&result.average), "{}", result.average);
    // It knows only neighbours: the agreement of a determiner and its noun, unless an adjective is between them.
    let accuracy = |paradigm: &str| result.paradigms[paradigm].accuracy;
    let (adjacent, apart) = ("determiner_noun_agreement_1", "determiner_noun_agreement_with_adjective_1");
    assert!(accuracy(adjacent) > accuracy(apart) + 2.0, "{} {}", accuracy(adjacent), accuracy(apart));
}
