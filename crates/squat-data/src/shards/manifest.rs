//! `manifest.json`: the inputs that shards were made from, and the sizes and hashes of the shards.

use crate::clean::CLEANING_VERSION;
use crate::hash::sha256;
use crate::source::Corpus;
use crate::tokenizer::SpecialTokens;
use crate::{CleanOptions, DataError, Domain, Result};
use serde::{Deserialize, Serialize};
use std::path::Path;

/// To be raised whenever the layout of the files changes.
const FORMAT_VERSION: u32 = 1;

/// Name of the file.
pub(super) const FILE_NAME: &str = "manifest.json";

/// Width of one token id in a shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TokenType {
    /// Two bytes, for vocabularies up to 65,536 ids.
    U16,
    /// Four bytes.
    U32,
}

impl TokenType {
    /// The narrowest type for ids below `vocab_size`.
    pub fn for_vocab(vocab_size: usize) -> Self {
        if vocab_size <= 1 << 16 { Self::U16 } else { Self::U32 }
    }

    /// Bytes per id.
    pub fn size(self) -> u64 {
        match self {
            Self::U16 => 2,
            Self::U32 => 4,
        }
    }
}

/// One input file. The first four fields are part of the identity, the others are counts.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct InputRecord {
    /// Name below the folder that was given.
    pub name: String,
    /// Cleaning rules that were applied.
    pub domain: Domain,
    /// Bytes on disk.
    pub bytes: u64,
    /// SHA-256 of the file on disk.
    pub sha256: String,
    /// Clean lines.
    #[serde(default)]
    pub lines: u64,
    /// Words after cleaning, separated by white space.
    #[serde(default)]
    pub words: u64,
    /// UTF-8 bytes after cleaning, line breaks not counted.
    #[serde(default)]
    pub text_bytes: u64,
    /// Tokens, separators included.
    #[serde(default)]
    pub tokens: u64,
    /// Raw lines of invalid UTF-8.
    #[serde(default)]
    pub invalid_utf8_lines: u64,
}

/// One file of token ids or line starts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShardRecord {
    /// Name in the folder.
    pub file: String,
    /// Number of token ids or line starts.
    pub count: u64,
    /// SHA-256 of the file.
    pub sha256: String,
}

impl ShardRecord {
    /// The record of a file that is still to be written.
    pub(super) fn empty() -> Self {
        Self { file: String::new(), count: 0, sha256: String::new() }
    }
}

/// The contents of `manifest.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// Layout of the files.
    pub format_version: u32,
    /// SHA-256 of everything that the tokens depend on.
    pub identity: String,
    /// [`CLEANING_VERSION`] at that time.
    pub cleaning_version: u32,
    /// The requested cleaning.
    pub cleaning: CleanOptions,
    /// SHA-256 of `tokenizer.json`.
    pub tokenizer_sha256: String,
    /// Ids, special tokens included.
    pub vocab_size: usize,
    /// Ids of the special tokens that sequences need.
    pub special_tokens: SpecialTokens,
    /// Largest number of tokens in one shard.
    pub shard_tokens: u64,
    /// Width of the ids.
    pub token_type: TokenType,
    /// Input files, in reading order.
    pub inputs: Vec<InputRecord>,
    /// All token ids.
    pub tokens: u64,
    /// All words.
    pub words: u64,
    /// All documents.
    pub documents: u64,
    /// Files of token ids, in order.
    pub shards: Vec<ShardRecord>,
    /// File of line starts.
    pub lines: ShardRecord,
}

impl Manifest {
    /// The manifest of a preparation that has not begun: counts and files are still empty.
    pub(super) fn plan(
        corpus: &Corpus,
        cleaning: &CleanOptions,
        tokenizer_sha256: String,
        vocab_size: usize,
        special_tokens: SpecialTokens,
        shard_tokens: u64,
    ) -> Result<Self> {
        let mut inputs = Vec::with_capacity(corpus.files().len());
        for file in corpus.files() {
            let (sha256, bytes) = crate::hash::sha256_file(&file.path)?;
            inputs.push(InputRecord {
                name: file.name.clone(),
                domain: cleaning.domain.unwrap_or(file.domain),
                bytes,
                sha256,
                lines: 0,
                words: 0,
                text_bytes: 0,
                tokens: 0,
                invalid_utf8_lines: 0,
            });
        }
        let mut plan = Self {
            format_version: FORMAT_VERSION,
            identity: String::new(),
            cleaning_version: CLEANING_VERSION,
            cleaning: cleaning.clone(),
            tokenizer_sha256,
            vocab_size,
            special_tokens,
            shard_tokens,
            token_type: TokenType::for_vocab(vocab_size),
            inputs,
            tokens: 0,
            words: 0,
            documents: 0,
            shards: Vec::new(),
            lines: ShardRecord::empty(),
        };
        plan.identify(Path::new(FILE_NAME))?;
        Ok(plan)
    }

    /// Sets the identity of a manifest without shards: the hash of the inputs and options, which the tokens depend on.
    /// `path` is for error messages.
    pub(super) fn identify(&mut self, path: &Path) -> Result<()> {
        let mut plan = Self { identity: String::new(), ..self.clone() };
        for input in &mut plan.inputs {
            *input = InputRecord {
                lines: 0,
                words: 0,
                text_bytes: 0,
                tokens: 0,
                invalid_utf8_lines: 0,
                ..input.clone()
            };
        }
        let text = serde_json::to_vec(&plan).map_err(|e| DataError::io("describe", path)(e.into()))?;
        self.identity = sha256(&text);
        Ok(())
    }

    /// Whether another corpus was prepared with the same options and tokenizer.
    pub(super) fn same_settings(&self, other: &Self) -> bool {
        let settings = |m: &Self| {
            (m.cleaning_version, m.cleaning.clone(), m.tokenizer_sha256.clone(), m.shard_tokens, m.token_type)
        };
        settings(self) == settings(other)
    }

    /// Reads the manifest of a prepared folder.
    ///
    /// # Errors
    /// No folder, no manifest, or one that cannot be parsed.
    pub fn read(folder: &Path) -> Result<Self> {
        let path = folder.join(FILE_NAME);
        if !path.is_file() {
            return Err(if folder.is_dir() {
                DataError::DamagedShards {
                    path: folder.to_path_buf(),
                    problem: "no manifest.json in this folder".into(),
                }
            } else {
                DataError::missing(folder)
            });
        }
        let bytes = squat_files::read::whole(&path, squat_files::read::Limit::Tokenizer)?;
        let manifest: Self = serde_json::from_slice(&bytes).map_err(|e| DataError::DamagedShards {
            path: path.clone(),
            problem: format!("not a manifest ({e})"),
        })?;
        if manifest.format_version != FORMAT_VERSION {
            let problem = format!("format {}, this version reads {FORMAT_VERSION}", manifest.format_version);
            return Err(DataError::DamagedShards { path, problem });
        }
        Ok(manifest)
    }

    /// Every file of the folder except the manifest.
    pub(super) fn files(&self) -> impl Iterator<Item = &str> {
        self.shards.iter().map(|s| s.file.as_str()).chain([self.lines.file.as_str()])
    }
}
