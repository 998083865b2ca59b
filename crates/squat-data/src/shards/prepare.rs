//! From text to shards: one thread reads and cleans, all cores tokenize, one thread writes.

use super::manifest::{FILE_NAME, Manifest, ShardRecord, TokenType};
use super::tokens::TokenShards;
use crate::clean::{CleanOptions, Event, Layout};
use crate::files::{create_folder, persist, temp_in, write_atomic};
use crate::hash::hex;
use crate::tokenizer::{SpecialTokens, load, locate};
use crate::{Corpus, DataError, Result};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use tempfile::NamedTempFile;
use tokenizers::Tokenizer;

/// Bytes of clean text in one tokenizer batch. At most three batches exist at a time.
const BATCH_BYTES: usize = 1 << 20;

/// How to prepare a corpus.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PrepareOptions {
    /// Cleaning rules.
    pub clean: CleanOptions,
    /// Largest number of tokens in one shard.
    pub shard_tokens: u64,
}

impl Default for PrepareOptions {
    fn default() -> Self {
        Self { clean: CleanOptions::default(), shard_tokens: 1 << 26 }
    }
}

/// Result of [`prepare`].
#[derive(Clone, Debug)]
pub struct Prepared {
    /// The manifest in the folder.
    pub manifest: Manifest,
    /// Whether the folder already held exactly this corpus.
    pub reused: bool,
    /// The tokens, opened and verified.
    pub shards: TokenShards,
}

/// Cleans and tokenizes `corpus` into `folder`, unless that was done already.
///
/// Lines of prose are joined by a space, turns and paragraphs by the newline token, and `</s>` ends each document.
/// `<s>` is not stored: it is added in front of every sequence when batches are formed.
///
/// # Errors
/// Reading, tokenizing, writing, or a corpus that is empty after cleaning. The folder is then left unchanged.
pub fn prepare(
    corpus: &Corpus,
    tokenizer: &Path,
    folder: &Path,
    options: &PrepareOptions,
) -> Result<Prepared> {
    prepare_files(corpus, tokenizer, folder, options, false)
}

/// [`prepare`] of a corpus that may be empty after cleaning.
pub(super) fn prepare_files(
    corpus: &Corpus,
    tokenizer: &Path,
    folder: &Path,
    options: &PrepareOptions,
    may_be_empty: bool,
) -> Result<Prepared> {
    if options.shard_tokens == 0 {
        return Err(DataError::BadOption {
            what: "shard_tokens",
            got: "0".into(),
            expected: "at least 1".into(),
        });
    }
    let file = locate(tokenizer)?;
    let mut tokenizer = load(&file)?;
    // `</s>` written in a text is five characters, not the end of a document.
    tokenizer.set_encode_special_tokens(true);
    let special = SpecialTokens::find(&tokenizer, &file)?;
    let plan = Manifest::plan(
        corpus,
        &options.clean,
        crate::hash::sha256_file(&file)?.0,
        tokenizer.get_vocab_size(true),
        special,
        options.shard_tokens,
    )?;
    let old = Manifest::read(folder).ok();
    if let Some(old) = &old
        && old.identity == plan.identity
        && let Ok(shards) = TokenShards::open(folder)
    {
        return Ok(Prepared { manifest: old.clone(), reused: true, shards });
    }
    let existed = folder.is_dir();
    create_folder(folder)?;
    let result = write_all(corpus, &tokenizer, plan, folder, options, old.as_ref(), may_be_empty);
    if result.is_err() && !existed {
        // Fails unless the folder is empty, which is intended.
        let _ = std::fs::remove_dir(folder);
    }
    let manifest = result?;
    Ok(Prepared { shards: TokenShards::open(folder)?, manifest, reused: false })
}

/// Lines of one file, ready to be tokenized.
struct Batch {
    file: usize,
    lines: Vec<String>,
    /// After each line: nothing, the newline token, or the end of the document.
    ends: Vec<End>,
    bytes: usize,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    Nothing,
    Newline,
    Document,
}

fn write_all(
    corpus: &Corpus,
    tokenizer: &Tokenizer,
    mut manifest: Manifest,
    folder: &Path,
    options: &PrepareOptions,
    old: Option<&Manifest>,
    may_be_empty: bool,
) -> Result<Manifest> {
    let mut out = Writer::new(folder, manifest.token_type, options.shard_tokens)?;
    let (sender, receiver) = sync_channel::<Batch>(1);
    let invalid = std::thread::scope(|scope| {
        let reader = scope.spawn(|| read_batches(corpus, &options.clean, sender));
        let written = tokenize_batches(receiver, tokenizer, &mut manifest, &mut out);
        match reader.join() {
            // The writer closes the channel to the reader when it fails, so its error is the cause.
            Ok(read) => written.and(read),
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })?;
    for (input, count) in manifest.inputs.iter_mut().zip(invalid) {
        input.invalid_utf8_lines = count;
    }
    manifest.tokens = manifest.inputs.iter().map(|i| i.tokens).sum();
    manifest.words = manifest.inputs.iter().map(|i| i.words).sum();
    if manifest.tokens == 0 && !may_be_empty {
        return Err(DataError::EmptyCorpus { searched: corpus.describe() });
    }
    out.finish(manifest, old)
}

/// Reads every file; returns the number of lines of invalid UTF-8 by file. Ends early, without an error, if the
/// receiver is gone.
fn read_batches(corpus: &Corpus, clean: &CleanOptions, sender: SyncSender<Batch>) -> Result<Vec<u64>> {
    let mut invalid = Vec::new();
    for (index, file) in corpus.files().iter().enumerate() {
        let join = match clean.domain.unwrap_or(file.domain).layout() {
            Layout::Prose => End::Nothing,
            Layout::Lines | Layout::Documents => End::Newline,
        };
        let empty = || Batch { file: index, lines: Vec::new(), ends: Vec::new(), bytes: 0 };
        let mut batch = empty();
        let stats = file.for_each(clean, |event| {
            match event {
                // A batch is sent before the next line, not right after one: the end of the document may still follow.
                Event::Line(line) => {
                    if batch.bytes >= BATCH_BYTES {
                        let _ = sender.send(std::mem::replace(&mut batch, empty()));
                    }
                    batch.bytes += line.len();
                    batch.lines.push(line);
                    batch.ends.push(join);
                }
                Event::DocumentEnd => {
                    if let Some(end) = batch.ends.last_mut() {
                        *end = End::Document;
                    }
                }
            }
            Ok(())
        })?;
        if sender.send(batch).is_err() {
            break;
        }
        invalid.push(stats.invalid_utf8_lines);
    }
    Ok(invalid)
}

fn tokenize_batches(
    receiver: Receiver<Batch>,
    tokenizer: &Tokenizer,
    manifest: &mut Manifest,
    out: &mut Writer,
) -> Result<()> {
    let special = manifest.special_tokens;
    let mut ids = Vec::new();
    for batch in receiver {
        let input = &mut manifest.inputs[batch.file];
        input.lines += batch.lines.len() as u64;
        input.text_bytes += batch.bytes as u64;
        input.words += batch.lines.iter().map(|l| l.split_whitespace().count() as u64).sum::<u64>();
        let encodings = tokenizer
            .encode_batch_fast(batch.lines, false)
            .map_err(|e| DataError::Tokenizer { path: None, reason: e.to_string() })?;
        for (encoding, end) in encodings.iter().zip(&batch.ends) {
            ids.clear();
            ids.extend_from_slice(encoding.get_ids());
            match end {
                End::Nothing => {}
                End::Newline => ids.extend(special.newline),
                End::Document => {
                    manifest.documents += 1;
                    ids.push(special.eos);
                }
            }
            input.tokens += ids.len() as u64;
            out.line(&ids)?;
        }
    }
    Ok(())
}

/// A file that is hashed while it is written.
struct Output {
    writer: BufWriter<NamedTempFile>,
    hasher: Sha256,
    count: u64,
}

impl Output {
    fn new(folder: &Path) -> Result<Self> {
        Ok(Self {
            writer: BufWriter::with_capacity(1 << 18, temp_in(folder)?),
            hasher: Sha256::new(),
            count: 0,
        })
    }

    fn write(&mut self, bytes: &[u8], count: u64, folder: &Path) -> Result<()> {
        self.hasher.update(bytes);
        self.count += count;
        self.writer.write_all(bytes).map_err(DataError::io("write token shards in", folder))
    }

    fn close(self, name: &Path) -> Result<(NamedTempFile, u64, String)> {
        let Self { writer, hasher, count } = self;
        let file = writer.into_inner().map_err(|e| DataError::io("write", name)(e.into_error()))?;
        Ok((file, count, hex(&hasher.finalize())))
    }
}

/// Shards and line starts under temporary names; they are removed if dropped before [`Writer::finish`].
pub(super) struct Writer {
    folder: PathBuf,
    token_type: TokenType,
    shard_tokens: u64,
    position: u64,
    bytes: Vec<u8>,
    done: Vec<(NamedTempFile, u64, String)>,
    shard: Output,
    lines: Output,
}

impl Writer {
    pub(super) fn new(folder: &Path, token_type: TokenType, shard_tokens: u64) -> Result<Self> {
        Ok(Self {
            folder: folder.to_path_buf(),
            token_type,
            shard_tokens,
            position: 0,
            bytes: Vec::new(),
            done: Vec::new(),
            shard: Output::new(folder)?,
            lines: Output::new(folder)?,
        })
    }

    pub(super) fn line(&mut self, ids: &[u32]) -> Result<()> {
        self.lines.write(&self.position.to_le_bytes(), 1, &self.folder)?;
        self.position += ids.len() as u64;
        let mut rest = ids;
        while !rest.is_empty() {
            let room = (self.shard_tokens - self.shard.count).min(rest.len() as u64) as usize;
            let (now, later) = rest.split_at(room);
            self.bytes.clear();
            match self.token_type {
                // `TokenType::for_vocab` chose u16 because every id is below 65,536.
                TokenType::U16 => self.bytes.extend(now.iter().flat_map(|id| (*id as u16).to_le_bytes())),
                TokenType::U32 => self.bytes.extend(now.iter().flat_map(|id| id.to_le_bytes())),
            }
            self.shard.write(&self.bytes, room as u64, &self.folder)?;
            rest = later;
            if self.shard.count == self.shard_tokens {
                let full = std::mem::replace(&mut self.shard, Output::new(&self.folder)?);
                self.done.push(full.close(&self.folder)?);
            }
        }
        Ok(())
    }

    /// Renames the files into place, then the manifest, then removes the files of the old manifest.
    pub(super) fn finish(mut self, mut manifest: Manifest, old: Option<&Manifest>) -> Result<Manifest> {
        if self.shard.count > 0 {
            self.done.push(self.shard.close(&self.folder)?);
        }
        let id = &manifest.identity[..12];
        let mut named = Vec::new();
        let (lines, count, sha256) = self.lines.close(&self.folder)?;
        manifest.lines = ShardRecord { file: format!("lines-{id}.bin"), count, sha256 };
        named.push((lines, self.folder.join(&manifest.lines.file)));
        for (index, (file, count, sha256)) in self.done.into_iter().enumerate() {
            let record = ShardRecord { file: format!("tokens-{id}-{index:05}.bin"), count, sha256 };
            named.push((file, self.folder.join(&record.file)));
            manifest.shards.push(record);
        }
        let mut placed: Vec<PathBuf> = Vec::new();
        let result = named
            .into_iter()
            .try_for_each(|(file, path)| {
                persist(file, &path)?;
                placed.push(path);
                Ok(())
            })
            .and_then(|()| {
                let path = self.folder.join(FILE_NAME);
                let mut text = serde_json::to_vec_pretty(&manifest)
                    .map_err(|e| DataError::io("write", &path)(e.into()))?;
                text.push(b'\n');
                write_atomic(&path, &text)
            });
        if let Err(error) = result {
            for path in placed {
                let _ = std::fs::remove_file(path);
            }
            return Err(error);
        }
        for stale in old.iter().flat_map(|m| m.files()).filter(|f| !manifest.files().any(|now| now == *f)) {
            // The name comes from a file on disk, so only a plain name in this folder is accepted.
            if Path::new(stale).file_name() == Some(stale.as_ref()) {
                let _ = std::fs::remove_file(self.folder.join(stale));
            }
        }
        Ok(manifest)
    }
}
