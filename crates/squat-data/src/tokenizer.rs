//! Byte-level BPE: trained with the `tokenizers` crate, saved in the format that Hugging Face loads.
//!
//! The pipeline in `tokenizer.json`: NFKC; a space before every line (so that a word has the same token at the start of
//! a line as inside it, which saves ids in a small vocabulary); byte-level splitting; BPE; `<s>` in front. Decoding
//! removes those spaces.

use crate::clean::{CleanOptions, Event};
use crate::{Corpus, DataError, Result};
use serde::{Deserialize, Serialize};
use squat_files::contain::contain;
use squat_files::read::{self, Limit};
use squat_files::write::{FolderKind, NewFolder};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::time::Duration;
use tokenizers::decoders::{DecoderWrapper, sequence::Sequence as DecoderSequence, strip::Strip};
use tokenizers::models::ModelWrapper;
use tokenizers::models::bpe::{BPE, BpeTrainerBuilder};
use tokenizers::normalizers::{NFKC, NormalizerWrapper, replace::Replace, utils::Sequence};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::processors::template::TemplateProcessing;
use tokenizers::{AddedToken, PostProcessorWrapper, Tokenizer, TokenizerBuilder};

/// Padding; id 0.
pub const PAD: &str = "<pad>";
/// Start of every sequence; id 1.
pub const BOS: &str = "<s>";
/// End of a document; id 2.
pub const EOS: &str = "</s>";

/// Smallest vocabulary: the special tokens and 256 bytes.
const SMALLEST: usize = 3 + 256;

/// Largest vocabulary.
pub const LARGEST: usize = 1 << 24;

/// How to train a tokenizer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TokenizerOptions {
    /// Number of ids, special tokens and bytes included. A small corpus may yield fewer.
    pub vocab_size: usize,
    /// Pairs that occur less often are not merged.
    pub min_frequency: u64,
    /// `model_max_length` in tokenizer_config.json, in tokens.
    pub max_length: usize,
    /// Cleaning rules, applied first.
    pub clean: CleanOptions,
}

impl Default for TokenizerOptions {
    /// 16,000 ids, as in METHOD.md section 7.
    fn default() -> Self {
        Self { vocab_size: 16_000, min_frequency: 2, max_length: 1024, clean: CleanOptions::default() }
    }
}

/// Trains on the cleaned text of `corpus`. The same text gives the same tokenizer, byte for byte.
///
/// # Errors
/// A vocabulary smaller than the byte alphabet, an empty corpus, and those of reading.
pub fn train_tokenizer(corpus: &Corpus, options: &TokenizerOptions) -> Result<Tokenizer> {
    // The library cannot be interrupted while it merges: that thread is left to itself when the work is to stop.
    let (sender, finished) = sync_channel(1);
    let (own, wanted) = (corpus.clone(), options.clone());
    std::thread::spawn(move || {
        // Nobody waits any more where the work was to stop.
        let _ = sender.send(train_on_corpus(&own, &wanted));
    });
    loop {
        match finished.recv_timeout(Duration::from_millis(20)) {
            Ok(trained) => return trained,
            Err(RecvTimeoutError::Timeout) => squat_files::interrupt::check()?,
            Err(RecvTimeoutError::Disconnected) => {
                return Err(DataError::Tokenizer {
                    path: None,
                    reason: "the library that trains it failed".into(),
                });
            }
        }
    }
}

fn train_on_corpus(corpus: &Corpus, options: &TokenizerOptions) -> Result<Tokenizer> {
    // The trainer pulls lines and the corpus pushes them, so they run on two threads with a bounded channel between.
    let (sender, receiver) = sync_channel::<String>(4096);
    std::thread::scope(|scope| {
        let reader = scope.spawn(move || {
            corpus.for_each(&options.clean, |_, event| {
                if let Event::Line(line) = event {
                    // The trainer closes the channel only after an error, and that error is the one to report.
                    let _ = sender.send(line);
                }
                Ok(())
            })
        });
        let trained = train_on_lines(receiver.into_iter(), options);
        match reader.join() {
            Ok(read) => read?,
            Err(panic) => std::panic::resume_unwind(panic),
        };
        trained.map_err(|e| match e {
            DataError::EmptyCorpus { .. } => DataError::EmptyCorpus { searched: corpus.describe() },
            e => e,
        })
    })
}

/// [`train_tokenizer`] on lines in memory.
///
/// # Errors
/// A vocabulary smaller than the byte alphabet, or no text.
pub fn train_on_lines<S: AsRef<str> + Send>(
    lines: impl Iterator<Item = S> + Send,
    options: &TokenizerOptions,
) -> Result<Tokenizer> {
    if !(SMALLEST..=LARGEST).contains(&options.vocab_size) {
        return Err(DataError::BadOption {
            what: "vocab_size",
            got: options.vocab_size.to_string(),
            expected: format!("at least {SMALLEST} (3 special tokens and 256 bytes) and at most {LARGEST}"),
        });
    }
    let special = |name: &str| AddedToken::from(name.to_owned(), true);
    let mut trainer = BpeTrainerBuilder::new()
        .vocab_size(options.vocab_size)
        .min_frequency(options.min_frequency)
        .show_progress(false)
        .special_tokens(vec![special(PAD), special(BOS), special(EOS)])
        .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
        .build();
    let byte_level = ByteLevel::new(true, true, true);
    let normalizer = Sequence::new(vec![
        NormalizerWrapper::NFKC(NFKC),
        Replace::new("\n", "\n ").map_err(refused)?.into(),
    ]);
    let decoder = DecoderSequence::new(vec![
        DecoderWrapper::ByteLevel(byte_level),
        Replace::new("\n ", "\n").map_err(refused)?.into(),
        Strip::new(' ', 1, 0).into(),
    ]);
    let mut tokenizer =
        TokenizerBuilder::<BPE, Sequence, ByteLevel, PostProcessorWrapper, DecoderSequence>::new()
            .with_model(BPE::default())
            .with_normalizer(Some(normalizer))
            .with_pre_tokenizer(Some(byte_level))
            .with_decoder(Some(decoder))
            .build()
            .map_err(refused)?;
    let mut any = false;
    tokenizer.train(&mut trainer, lines.inspect(|_| any = true)).map_err(refused)?;
    if !any {
        return Err(DataError::EmptyCorpus { searched: "the given lines".to_owned() });
    }
    let post = TemplateProcessing::builder()
        .try_single(format!("{BOS} $A"))
        .and_then(|b| b.try_pair(format!("{BOS} $A {BOS}:1 $B:1")))
        .map_err(|e| refused(e.into()))?
        .special_tokens(vec![(BOS, 1)])
        .build()
        .map_err(|e| refused(e.to_string().into()))?;
    tokenizer.with_post_processor(Some(PostProcessorWrapper::Template(post)));
    // Through the file format, so that this tokenizer is the one that every reader of the file gets.
    let json = tokenizer.to_string(false).map_err(refused)?;
    json.parse().map_err(refused)
}

fn refused(e: tokenizers::Error) -> DataError {
    DataError::Tokenizer { path: None, reason: e.to_string() }
}

/// A folder with a tokenizer that was trained here; one from before there were checksums is known in a run.
const FOLDER: FolderKind = FolderKind {
    name: "tokenizer",
    files: &["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"],
    recognize: |folder| folder.join("made_from.txt").is_file(),
};

/// Writes `tokenizer.json`, `tokenizer_config.json` and `special_tokens_map.json` into `folder`, in one step. A tokenizer
/// that was written here is replaced; with `force`, any files of these names.
///
/// # Errors
/// A folder that may not be replaced, and the file system's.
pub fn save(tokenizer: &Tokenizer, folder: &Path, max_length: usize, force: bool) -> Result<()> {
    let mut folder = NewFolder::create(folder, &FOLDER, force)?;
    let mut json = tokenizer.to_string(true).map_err(refused)?;
    json.push('\n');
    let added: serde_json::Map<String, serde_json::Value> = [PAD, BOS, EOS]
        .iter()
        .filter_map(|name| Some((name, tokenizer.token_to_id(name)?)))
        .map(|(name, id)| {
            let token = serde_json::json!({"content": name, "lstrip": false, "normalized": false, "rstrip": false,
                "single_word": false, "special": true});
            (id.to_string(), token)
        })
        .collect();
    let config = serde_json::json!({
        "add_bos_token": true,
        "add_eos_token": false,
        "add_prefix_space": true,
        "added_tokens_decoder": added,
        "bos_token": BOS,
        "clean_up_tokenization_spaces": false,
        "eos_token": EOS,
        "model_max_length": max_length,
        "pad_token": PAD,
        "tokenizer_class": "PreTrainedTokenizerFast",
    });
    let map = serde_json::json!({"bos_token": BOS, "eos_token": EOS, "pad_token": PAD});
    folder.write("tokenizer.json", json.as_bytes())?;
    folder.write("tokenizer_config.json", format!("{config:#}\n").as_bytes())?;
    folder.write("special_tokens_map.json", format!("{map:#}\n").as_bytes())?;
    Ok(folder.place()?)
}

/// The `tokenizer.json` of a path: the file itself, or the one in the folder.
///
/// # Errors
/// Neither exists.
pub fn locate(path: &Path) -> Result<PathBuf> {
    let file = if path.is_dir() { path.join("tokenizer.json") } else { path.to_path_buf() };
    match file.is_file() {
        true => Ok(file),
        false => Err(DataError::missing(&file)),
    }
}

/// Loads a `tokenizer.json`, given as the file or as its folder.
///
/// # Errors
/// A missing or unreadable file.
pub fn load(path: &Path) -> Result<Tokenizer> {
    let file = locate(path)?;
    let bytes = read::whole(&file, Limit::Tokenizer)?;
    // The library panics on some files that are not JSON, so they are parsed as JSON first.
    let mut tokenizer = serde_json::from_slice::<serde_json::Value>(&bytes)
        .map_err(tokenizers::Error::from)
        .and_then(|_| contain(|| Tokenizer::from_bytes(&bytes)).unwrap_or_else(|panic| Err(panic.into())))
        .map_err(|e| DataError::Tokenizer { path: Some(file.clone()), reason: e.to_string() })?;
    // With dropout a text has other ids each time.
    if let ModelWrapper::BPE(bpe) = tokenizer.get_model()
        && bpe.dropout.is_some()
    {
        let mut bpe = bpe.clone();
        bpe.dropout = None;
        tokenizer.with_model(bpe);
    }
    Ok(tokenizer)
}

/// Ids of the special tokens that sequences need.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SpecialTokens {
    /// Start of every sequence.
    pub bos: u32,
    /// End of a document.
    pub eos: u32,
    /// Padding, if the tokenizer has such a token.
    pub pad: Option<u32>,
    /// Separator of the lines of a document, if the vocabulary has a line break as one token.
    pub newline: Option<u32>,
}

impl SpecialTokens {
    /// Looks them up by the names in `tokenizer_config.json` next to the tokenizer, otherwise by the usual names.
    ///
    /// # Errors
    /// No token for the start of a sequence or the end of a document.
    pub fn find(tokenizer: &Tokenizer, file: &Path) -> Result<Self> {
        let config: serde_json::Value =
            read::whole(&file.with_file_name("tokenizer_config.json"), Limit::Config)
                .ok()
                .and_then(|bytes| serde_json::from_slice(&bytes).ok())
                .unwrap_or_default();
        // A token is written as its text, or as an object with `content`.
        let named = |key: &str| {
            let entry = config.get(key)?;
            let text = entry.as_str().or_else(|| entry.get("content")?.as_str())?;
            tokenizer.token_to_id(text)
        };
        let usual = |names: &[&str]| names.iter().find_map(|n| tokenizer.token_to_id(n));
        const BOS_NAMES: &[&str] = &[BOS, "<bos>", "<|begin_of_text|>", "<|endoftext|>", "[CLS]"];
        const EOS_NAMES: &[&str] = &[EOS, "<eos>", "<|end_of_text|>", "<|endoftext|>", "[SEP]"];
        let absent = |role, expected: &[&str]| DataError::NoSpecialToken {
            path: file.to_path_buf(),
            role,
            expected: expected.join(", "),
        };
        Ok(Self {
            bos: named("bos_token")
                .or_else(|| usual(BOS_NAMES))
                .ok_or_else(|| absent("beginning-of-sequence", BOS_NAMES))?,
            eos: named("eos_token")
                .or_else(|| usual(EOS_NAMES))
                .ok_or_else(|| absent("end-of-sequence", EOS_NAMES))?,
            pad: named("pad_token").or_else(|| usual(&[PAD, "[PAD]"])),
            newline: usual(&["\u{10A}", "<0x0A>", "\n"]),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &[&str] = &[
        "The cat sat on the mat.",
        "The dog sat on the log, and the cat can't see it.",
        "Dogs and cats: caf\u{e9} \u{fb01}ne \u{1F600}",
    ];

    fn options(vocab_size: usize) -> TokenizerOptions {
        TokenizerOptions { vocab_size, ..TokenizerOptions::default() }
    }

    fn tokenizer() -> Tokenizer {
        train_on_lines(TEXT.iter().cycle().take(300), &options(300)).unwrap()
    }

    fn ids(t: &Tokenizer, text: &str, special: bool) -> Vec<u32> {
        t.encode(text, special).unwrap().get_ids().to_vec()
    }

    #[test]
    fn special_ids_and_round_trip() {
        let t = tokenizer();
        assert_eq!([PAD, BOS, EOS].map(|n| t.token_to_id(n)), [Some(0), Some(1), Some(2)]);
        assert_eq!(t.get_vocab_size(true), 300);
        assert_eq!(ids(&t, "The cat", true)[0], 1);
        assert_eq!(ids(&t, "The cat", true)[1..], ids(&t, "The cat", false));
        for text in [
            "The cat sat.",
            "Who?\nThe dog.\nIt sat.",
            "caf\u{e9} \u{1F600}  two  spaces",
            "\u{4F60}\u{597D}",
            "",
        ] {
            assert_eq!(t.decode(&ids(&t, text, true), true).unwrap(), text);
        }
        // NFKC: the ligature is two letters.
        assert_eq!(t.decode(&ids(&t, "\u{fb01}ne", false), true).unwrap(), "fine");
    }

    #[test]
    fn a_word_is_the_same_token_at_the_start_of_a_line() {
        let t = tokenizer();
        let inside = ids(&t, "on the mat", false);
        let first = ids(&t, "the mat", false);
        assert_eq!(inside[inside.len() - first.len()..], first);
        let lines = ids(&t, "on\nthe mat", false);
        assert_eq!(lines[lines.len() - first.len()..], first);
        let newline = SpecialTokens::find(&t, Path::new("tokenizer.json")).unwrap().newline;
        assert_eq!(newline, Some(lines[lines.len() - first.len() - 1]));
    }

    #[test]
    fn deterministic_and_saved() {
        let dir = tempfile::tempdir().unwrap();
        save(&tokenizer(), &dir.path().join("a"), 128, false).unwrap();
        save(&tokenizer(), &dir.path().join("b"), 128, false).unwrap();
        for name in ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"] {
            let read = |d: &str| std::fs::read(dir.path().join(d).join(name)).unwrap();
            assert_eq!(read("a"), read("b"), "{name}");
        }
        let loaded = load(&dir.path().join("a")).unwrap();
        assert_eq!(ids(&loaded, TEXT[1], true), ids(&tokenizer(), TEXT[1], true));
        assert!(matches!(load(&dir.path().join("c.json")), Err(DataError::Missing { .. })));
        std::fs::write(dir.path().join("d.json"), "{}").unwrap();
        assert!(load(&dir.path().join("d.json")).unwrap_err().to_string().contains("d.json"));
        // Truncated anywhere, the decoder section included, it is an error and never a panic.
        let whole = std::fs::read(dir.path().join("a/tokenizer.json")).unwrap();
        for at in (0..whole.len() - 1).step_by(41) {
            std::fs::write(dir.path().join("d.json"), &whole[..at]).unwrap();
            assert!(load(&dir.path().join("d.json")).unwrap_err().to_string().contains("d.json"), "{at}");
        }
    }

    #[test]
    fn bad_options() {
        let error = train_on_lines(TEXT.iter(), &options(100)).unwrap_err().to_string();
        assert!(error.contains("259"), "{error}");
        assert!(matches!(
            train_on_lines(std::iter::empty::<&str>(), &options(300)),
            Err(DataError::EmptyCorpus { .. })
        ));
    }
}
