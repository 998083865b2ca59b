//! Tokenizer and token shards of a run.

use super::RunEvent;
use super::fingerprint::hex;
use crate::error::TrainError;
use crate::recipe::{Recipe, expand};
use sha2::{Digest, Sha256};
use squat_data::shards::{PrepareOptions, Prepared, prepare};
use squat_data::tokenizer::{
    TokenizerOptions, locate as locate_tokenizer, save as save_tokenizer, train_tokenizer,
};
use squat_data::{Chunks, Corpus, Manifest, Sequential, Split, TokenShards};
use squat_files::write::{NewFile, Replace};
use std::path::{Path, PathBuf};

/// Word in a recipe's `data.train` for the built-in English.
pub const GENERATED: &str = "generated";

/// Prepared data of a run.
pub struct RunData {
    /// Training shards.
    pub train: Prepared,
    /// Held-out shards.
    pub valid: Prepared,
    /// Tokenizer folder.
    pub tokenizer: PathBuf,
}

impl RunData {
    /// Identities of the training and held-out shards.
    pub(super) fn identities(&self) -> [&str; 2] {
        [&self.train.manifest.identity, &self.valid.manifest.identity]
    }
}

/// Tokenizer and shards of a recipe, reused where nothing changed.
///
/// # Errors
/// Missing or empty corpora, a tokenizer that cannot be read.
pub fn prepare_data(
    recipe: &Recipe,
    folder: &Path,
    report: &mut dyn FnMut(RunEvent),
) -> Result<RunData, TrainError> {
    let config = &recipe.data;
    let data = folder.join("data");
    let open = |names: &[String], split: &str| -> Result<Corpus, TrainError> {
        if names.len() == 1 && names[0] == GENERATED {
            let text = data.join("generated");
            let words = config.generated_words as u64;
            let path = match split {
                "train" => squat_data::english::write_corpus(&text.join(split), recipe.seed, words)?,
                _ => squat_data::english::write_held_out(
                    &text.join(split),
                    recipe.seed,
                    (words / 20).max(2_000),
                )?,
            };
            return Ok(Corpus::open(&[path], &Split::All)?);
        }
        let paths = names.iter().map(|name| expand(name)).collect::<Result<Vec<_>, _>>()?;
        Ok(Corpus::open(&paths, &split.parse::<Split>()?)?)
    };
    let train = open(&config.train, "train")?;
    let valid = open(&config.valid, "dev")?;
    for note in train.notes().iter().chain(valid.notes()) {
        report(RunEvent::Note(note.clone()));
    }
    let tokenizer = match &config.tokenizer {
        Some(path) => expand(path)?,
        None => {
            let place = folder.join("tokenizer");
            let key = tokenizer_key(recipe, &train)?;
            let key_file = place.join("made_from.txt");
            if squat_files::read::text(&key_file, squat_files::read::Limit::Config)
                .is_ok_and(|text| text == key)
                && locate_tokenizer(&place).is_ok()
                && squat_files::sums::verify(&place).is_ok()
            {
                report(RunEvent::Note(format!("tokenizer: {} (unchanged)", place.display())));
            } else {
                report(RunEvent::Note(format!("tokenizer: training, vocabulary {}", config.vocab_size)));
                let options = TokenizerOptions {
                    vocab_size: config.vocab_size,
                    max_length: max_length(recipe),
                    ..TokenizerOptions::default()
                };
                let trained = train_tokenizer(&train, &options)?;
                save_tokenizer(&trained, &place, options.max_length, false)?;
                NewFile::write(&key_file, Replace::Any, key.as_bytes())?;
            }
            place
        }
    };
    let options = PrepareOptions::default();
    let train = prepare(&train, &tokenizer, &data.join("train"), &options)?;
    let valid = prepare(&valid, &tokenizer, &data.join("valid"), &options)?;
    // Too little text is an error here, before anything is trained.
    Chunks::new(&train.shards, recipe.data.seq_len, recipe.seed)?;
    Sequential::new(&valid.shards, recipe.data.seq_len)?;
    report(RunEvent::Note(format!(
        "data: {} words, {} tokens to train on; {} tokens held out{}",
        train.manifest.words,
        train.manifest.tokens,
        valid.manifest.tokens,
        if train.reused { " (unchanged)" } else { "" }
    )));
    Ok(RunData { train, valid, tokenizer })
}

/// The data that [`prepare_data`] wrote, for a process that does not write.
pub(super) fn open_data(recipe: &Recipe, folder: &Path) -> Result<RunData, TrainError> {
    let tokenizer = match &recipe.data.tokenizer {
        Some(path) => expand(path)?,
        None => folder.join("tokenizer"),
    };
    let open = |name: &str| -> Result<Prepared, TrainError> {
        let folder = folder.join("data").join(name);
        Ok(Prepared { manifest: Manifest::read(&folder)?, reused: true, shards: TokenShards::open(&folder)? })
    };
    Ok(RunData { train: open("train")?, valid: open("valid")?, tokenizer })
}

/// Longest sequence that a tokenizer trained here is meant for.
fn max_length(recipe: &Recipe) -> usize {
    recipe.model.as_ref().map_or(recipe.data.seq_len, |model| model.max_position_embeddings)
}

/// Hash of everything that a tokenizer trained here depends on.
fn tokenizer_key(recipe: &Recipe, corpus: &Corpus) -> Result<String, TrainError> {
    let mut hasher = Sha256::new();
    hasher.update(squat_data::clean::CLEANING_VERSION.to_le_bytes());
    hasher.update((recipe.data.vocab_size as u64).to_le_bytes());
    hasher.update((max_length(recipe) as u64).to_le_bytes());
    for file in corpus.files() {
        hasher.update(file.name.as_bytes());
        hasher.update(squat_data::file_digest(&file.path)?);
    }
    Ok(hex(&hasher.finalize()))
}
