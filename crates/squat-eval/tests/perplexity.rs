//! Perplexity against sums computed by hand.

mod common;

use std::fs;
use std::io::Write;
use std::path::Path;

use common::{Bigram, Uniform, bytes, hash_words, hashed_words};
use proptest::prelude::*;
use squat_eval::table::perplexity_table;
use squat_eval::{EvalError, FnTokenizer, LanguageModel, ScoringOptions, TokenizedText, Windows, perplexity};
use squat_test::data::data;
use squat_test::tokenizer::sentencepiece;

fn text(name: &str, text: &str) -> TokenizedText {
    TokenizedText::new(name, text, &bytes()).expect("tokenized")
}

fn run(
    model: &mut dyn LanguageModel,
    texts: &[TokenizedText],
    context: Option<usize>,
) -> Result<squat_eval::PerplexityResult, EvalError> {
    slide(model, texts, context, None)
}

fn slide(
    model: &mut dyn LanguageModel,
    texts: &[TokenizedText],
    context: Option<usize>,
    stride: Option<usize>,
) -> Result<squat_eval::PerplexityResult, EvalError> {
    perplexity(model, 0, texts, Windows { context, stride }, &mut ScoringOptions::default())
}

#[test]
fn uniform_perplexity_is_the_size_of_the_vocabulary() {
    let result =
        run(&mut Uniform::new(512), &[text("t", "ten bytes.\ntwo words\n")], Some(4)).expect("scored");
    assert!((result.perplexity - 512.0).abs() < 1e-3, "{}", result.perplexity);
    assert!((result.bits_per_byte - 9.0).abs() < 1e-5, "one token per byte, 9 bits each");
    assert!(result.standard_error.expect("several windows") < 1e-3);
    let word = (21.0 * 512_f64.ln() / 4.0).exp();
    assert!((result.word_perplexity.expect("words") / word - 1.0).abs() < 1e-4);
    assert_eq!((result.n_tokens, result.n_bytes, result.n_words, result.n_windows), (21, 21, 4, 7));
    assert!(perplexity_table(&[result]).to_markdown().contains("512.000"));
}

/// Probability `1 / (1 + position)` of every token, so that a sum tells how the text was cut.
struct ByPosition;

impl LanguageModel for ByPosition {
    fn name(&self) -> String {
        "by position".to_owned()
    }
    fn form(&self) -> squat_eval::Form {
        squat_eval::Form::Fake
    }
    fn vocab_size(&self) -> usize {
        257
    }
    fn max_length(&self) -> usize {
        5
    }
    fn log_likelihoods(&mut self, sequences: &[&[u32]]) -> Result<Vec<Vec<f32>>, EvalError> {
        assert!(sequences.iter().all(|sequence| sequence[0] == 0), "BOS first");
        Ok(sequences.iter().map(|s| (1..s.len()).map(|i| -(i as f32 + 1.0).ln()).collect()).collect())
    }
}

#[test]
fn windows_begin_with_bos_and_do_not_overlap_or_cross_files() {
    // Windows of BOS and 4 tokens: 4, 4, 2 and, in the next file, 3.
    let result = run(&mut ByPosition, &[text("a", "0123456789"), text("b", "abc")], None).expect("scored");
    let sums = [120_f64.ln(), 120_f64.ln(), 6_f64.ln(), 24_f64.ln()];
    let mean = sums.iter().sum::<f64>() / 13.0;
    assert_eq!((result.n_tokens, result.n_windows), (13, 4));
    assert_eq!((result.context, result.stride), (5, 4));
    assert!((result.nll_per_token - mean).abs() < 1e-6);
    let squares: f64 =
        sums.iter().zip([4.0, 4.0, 2.0, 3.0]).map(|(sum, n)| (sum - mean * n) * (sum - mean * n)).sum();
    let error = mean.exp() * (4.0 / 3.0 * squares).sqrt() / 13.0;
    assert!((result.standard_error.expect("four windows") - error).abs() < 1e-6);
    assert!((result.texts["b"].perplexity - 24_f64.powf(1.0 / 3.0)).abs() < 1e-6);
    assert_eq!(result.texts["a"].n_tokens, 10);

    let one = run(&mut ByPosition, &[text("b", "abc")], None).expect("scored");
    assert_eq!(one.standard_error, None);
    let json = serde_json::to_value(&one).expect("serialisable");
    assert_eq!((&json["task"], &json["form"]), (&"perplexity".into(), &"fake".into()));
    assert!(json["standard_error"].is_null());
    assert_eq!(serde_json::from_value::<squat_eval::PerplexityResult>(json).expect("read back"), one);
}

#[test]
fn overlapping_windows_score_only_their_last_tokens() {
    // Context 5 (BOS and 4 tokens), stride 2, ten tokens: windows 0..4, 2..6, 4..8, 6..10. The first one scores
    // positions 1 to 4, the others 3 and 4.
    let result = slide(&mut ByPosition, &[text("a", "0123456789")], None, Some(2)).expect("scored");
    let sum = 120_f64.ln() + 3.0 * 20_f64.ln();
    assert!((result.nll_per_token - sum / 10.0).abs() < 1e-6, "{}", result.nll_per_token);
    assert_eq!((result.n_tokens, result.n_windows, result.context, result.stride), (10, 4, 5, 2));
    // One token more: the last window, 8..11, scores the one that is left, at position 3.
    let result = slide(&mut ByPosition, &[text("a", "0123456789x")], None, Some(2)).expect("scored");
    let sum = sum + 4_f64.ln();
    assert!((result.nll_per_token - sum / 11.0).abs() < 1e-6, "{}", result.nll_per_token);
    assert_eq!((result.n_tokens, result.n_windows), (11, 5));
    let table = perplexity_table(&[result]).to_markdown();
    assert!(table.contains("| context |") && table.contains("| stride |"), "{table}");
    // A text that one window holds has one window, whatever the stride.
    assert_eq!(slide(&mut ByPosition, &[text("b", "abc")], None, Some(1)).expect("scored").n_windows, 1);
}

#[test]
fn the_standard_error_covers_the_spread_of_samples() {
    // Perplexities of disjoint samples of one source should scatter as their standard errors say.
    let mut state = 1_u64;
    let mut random = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as u32
    };
    let mut model = Bigram::new(257);
    model.train(&(0..3000).map(|_| 1 + random() % 7 * (random() % 5)).collect::<Vec<_>>());
    let results: Vec<_> = (0..40)
        .map(|i| {
            let tokens: Vec<u32> = (0..1000).map(|_| 1 + random() % 7 * (random() % 5)).collect();
            let sample = TokenizedText { name: i.to_string(), tokens, n_bytes: 1000, n_words: 1 };
            run(&mut model, &[sample], Some(21)).expect("scored")
        })
        .collect();
    let mean = results.iter().map(|r| r.perplexity).sum::<f64>() / 40.0;
    let spread = (results.iter().map(|r| (r.perplexity - mean).powi(2)).sum::<f64>() / 39.0).sqrt();
    let told = results.iter().filter_map(|r| r.standard_error).sum::<f64>() / 40.0;
    assert!((0.7..1.4).contains(&(told / spread)), "standard error {told}, spread {spread}");
}

#[test]
fn files_gzip_and_folders_are_read() {
    let folder = tempfile::tempdir().expect("a folder");
    let body = "\u{feff}first line\r\nsecond line\n\nlast";
    fs::write(folder.path().join("b.txt"), body).expect("written");
    let mut gzip = flate2::write::GzEncoder::new(
        fs::File::create(folder.path().join("a.gz")).expect("made"),
        flate2::Compression::fast(),
    );
    gzip.write_all(body.as_bytes()).expect("packed");
    gzip.finish().expect("closed");
    fs::write(folder.path().join("notes.md"), "not read").expect("written");

    let texts = TokenizedText::read(folder.path(), &bytes()).expect("read");
    assert_eq!(texts.iter().map(|text| text.name.as_str()).collect::<Vec<_>>(), ["a.gz", "b.txt"]);
    assert_eq!(texts[0].tokens, texts[1].tokens);
    assert_eq!(
        (texts[0].n_bytes, texts[0].n_words, texts[0].tokens.len()),
        (body.len() - 3, 5, body.len() - 3)
    );

    let empty = tempfile::tempdir().expect("a folder");
    let read = |path: &Path| TokenizedText::read(path, &bytes());
    assert!(matches!(read(empty.path()), Err(EvalError::EmptyText(_))));
    assert!(matches!(read(&empty.path().join("x")), Err(EvalError::Missing { .. })));
    fs::write(empty.path().join("x.txt"), b"ab\xffcd").expect("written");
    assert!(matches!(read(empty.path()), Err(EvalError::NotUtf8 { offset: 2, .. })));
}

#[test]
fn senseless_questions_are_refused() {
    let mut model = Uniform::new(257);
    let one = text("a", "abc");
    assert!(matches!(run(&mut model, &[], None), Err(EvalError::EmptyText(_))));
    assert!(matches!(run(&mut model, &[text("a", "")], None), Err(EvalError::EmptyText(_))));
    assert!(matches!(run(&mut model, &[one.clone(), one.clone()], None), Err(EvalError::Option { .. })));
    assert!(matches!(run(&mut model, std::slice::from_ref(&one), Some(1)), Err(EvalError::Option { .. })));
    assert!(matches!(run(&mut model, std::slice::from_ref(&one), Some(1000)), Err(EvalError::Option { .. })));
    for stride in [0, 16, 17] {
        let error =
            slide(&mut model, std::slice::from_ref(&one), Some(16), Some(stride)).expect_err("refused");
        assert!(error.to_string().contains("expected 1 to 15"), "{error}");
    }
    let error = run(&mut Uniform::new(5), &[one], None).expect_err("ids beyond the vocabulary").to_string();
    assert!(error.contains("a, window 1"), "{error}");
}

/// A tokenizer like that of SentencePiece adds a prefix to each text that it gets, and merges cross line ends: the ids
/// must be those of the whole text, however long it is.
#[test]
fn a_long_text_is_tokenized_at_once() {
    let inner = tokenizers::Tokenizer::from_bytes(sentencepiece()).expect("a tokenizer");
    let encode = |text: &str| inner.encode(text, false).map(|encoding| encoding.get_ids().to_vec());
    let lines = ["a ab b\n", "ab ab a\n\n", "b\n\n\n", "a b a\n"];
    let body: String = (0..8000_usize).map(|i| lines[i * i % 7 % 4]).collect();
    assert!(body.len() > 40_000, "{}", body.len());
    let whole = encode(&body).expect("encoded");
    let parts: usize = body.split_inclusive('\n').map(|line| encode(line).expect("encoded").len()).sum();
    assert!(parts > whole.len(), "the tokenizer tells a text from its lines: {parts} {}", whole.len());
    let text = TokenizedText::new("t", &body, &FnTokenizer::new(0, encode)).expect("encoded");
    assert_eq!(text.tokens, whole);
    assert_eq!(text.n_bytes, body.len());
}

/// Needs SQUAT_DATA: the public test text of WikiText-2 has 241,211 words.
#[test]
fn real_text_is_counted_whole() {
    let Some(file) = data("wikitext2/wiki.test.raw.gz") else { return };
    let texts = TokenizedText::read(&file, &hashed_words(1 << 15)).expect("read");
    let mut model = Bigram::new(1 << 15);
    model.train(&hash_words("the game of the game", 1 << 15));
    let result = run(&mut model, &texts, Some(128)).expect("scored");
    assert_eq!(result.n_words, 241_211);
    assert_eq!(result.n_windows, result.n_tokens.div_ceil(127));
    assert!(result.perplexity > 100.0 && result.bits_per_byte > 0.5);
    println!("{}", perplexity_table(&[result]));
}

proptest! {
    /// Every token is scored exactly once, whatever the window and the batches.
    #[test]
    fn every_token_counts_once(tokens in prop::collection::vec(1u32..50, 1..200), window in 2usize..40, batch in 1usize..300) {
        struct ById;
        impl LanguageModel for ById {
            fn name(&self) -> String { "by id".to_owned() }
            fn form(&self) -> squat_eval::Form { squat_eval::Form::Fp }
            fn vocab_size(&self) -> usize { 50 }
            fn max_length(&self) -> usize { 40 }
            fn log_likelihoods(&mut self, sequences: &[&[u32]]) -> Result<Vec<Vec<f32>>, EvalError> {
                Ok(sequences.iter().map(|s| s[1..].iter().map(|&id| -(id as f32)).collect()).collect())
            }
        }
        let windows = Windows { context: Some(window), stride: None };
        let expected = tokens.iter().map(|&id| f64::from(id)).sum::<f64>() / tokens.len() as f64;
        let n = tokens.len();
        let text = TokenizedText { name: "t".to_owned(), tokens, n_bytes: n, n_words: 1 };
        let mut options = ScoringOptions { batch_tokens: batch, ..ScoringOptions::default() };
        let result = perplexity(&mut ById, 0, &[text], windows, &mut options).expect("scored");
        prop_assert!((result.nll_per_token - expected).abs() < 1e-9);
        prop_assert_eq!(result.n_windows, n.div_ceil(window - 1));
    }

    /// Windows are those of Hugging Face's "Perplexity of fixed-length models", with BOS in front of each. A model that
    /// gives every token in every context another probability shows it.
    #[test]
    fn windows_slide_as_in_the_reference(
        tokens in prop::collection::vec(1u32..50, 1..120), context in 2usize..20, stride in 1usize..20,
    ) {
        fn score(context: &[u32], id: u32) -> f32 {
            let sum: u32 = context.iter().enumerate().map(|(i, &id)| (i as u32 + 1) * id).sum();
            -((sum % 97 + id) as f32) / 16.0
        }
        struct ByContext;
        impl LanguageModel for ByContext {
            fn name(&self) -> String { "by context".to_owned() }
            fn form(&self) -> squat_eval::Form { squat_eval::Form::Fp }
            fn vocab_size(&self) -> usize { 50 }
            fn max_length(&self) -> usize { 20 }
            fn log_likelihoods(&mut self, sequences: &[&[u32]]) -> Result<Vec<Vec<f32>>, EvalError> {
                Ok(sequences.iter().map(|s| (1..s.len()).map(|i| score(&s[..i], s[i])).collect()).collect())
            }
        }
        let stride = 1 + (stride - 1) % (context - 1);
        let max_length = context - 1;
        let (mut sum, mut n_windows, mut prev_end) = (0.0, 0, 0);
        for begin in (0..tokens.len()).step_by(stride) {
            let end = (begin + max_length).min(tokens.len());
            let scored = end - prev_end;
            let input: Vec<u32> = std::iter::once(0).chain(tokens[begin..end].iter().copied()).collect();
            for i in input.len() - scored..input.len() {
                sum -= f64::from(score(&input[..i], input[i]));
            }
            n_windows += 1;
            prev_end = end;
            if end == tokens.len() {
                break;
            }
        }
        let n = tokens.len();
        let text = TokenizedText { name: "t".to_owned(), tokens, n_bytes: n, n_words: 1 };
        let result = slide(&mut ByContext, &[text], Some(context), Some(stride)).expect("scored");
        prop_assert!((result.nll_per_token - sum / n as f64).abs() < 1e-9);
        prop_assert_eq!((result.n_tokens, result.n_windows), (n, n_windows));
    }
}
