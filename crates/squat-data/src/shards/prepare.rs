//! From text to shards: one thread reads and cleans, all cores tokenize, one thread writes.

use super::manifest::{FILE_NAME, Manifest, ShardRecord, TokenType};
use super::tokens::TokenShards;
use crate::clean::{CleanOptions, Event, Layout};
use crate::tokenizer::{SpecialTokens, load, locate};
use crate::{Corpus, DataError, Result};
use serde::{Deserialize, Serialize};
use squat_files::write::{NewFile, OutputFolder, WrittenFile};
use std::path::Path;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
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
    /// Write into a folder that holds a `manifest.json` of somebody else's, and replace that.
    #[serde(skip)]
    pub force: bool,
}

impl Default for PrepareOptions {
    fn default() -> Self {
        Self { clean: CleanOptions::default(), shard_tokens: 1 << 26, force: false }
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
/// A folder that may not be written (see [`PrepareOptions::force`]), reading, tokenizing, writing, or a corpus that is empty
/// after cleaning. The folder is then left unchanged.
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
        // What a killed writer left is removed, if that is possible: nothing here depends on it.
        let _ = claim(folder, false);
        return Ok(Prepared { manifest: old.clone(), reused: true, shards });
    }
    let output = claim(folder, options.force)?;
    let manifest = match write_all(corpus, &tokenizer, plan, &output, options, old.as_ref(), may_be_empty) {
        Ok(manifest) => manifest,
        Err(error) => {
            output.abandon();
            return Err(error);
        }
    };
    Ok(Prepared { shards: TokenShards::open(folder)?, manifest, reused: false })
}

/// Takes a folder for shards, and keeps other writers out.
pub(super) fn claim(folder: &Path, force: bool) -> Result<OutputFolder> {
    let is_ours = |folder: &Path| Manifest::read(folder).is_ok();
    Ok(OutputFolder::claim(folder, "token shards", &[FILE_NAME], is_ours, force)?)
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
    output: &OutputFolder,
    options: &PrepareOptions,
    old: Option<&Manifest>,
    may_be_empty: bool,
) -> Result<Manifest> {
    let mut out = Writer::new(output, &manifest)?;
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

/// Shards and line starts under temporary names; they are removed if dropped before [`Writer::finish`].
pub(super) struct Writer<'a> {
    folder: &'a OutputFolder,
    /// First part of the names: the beginning of the identity.
    id: String,
    token_type: TokenType,
    shard_tokens: u64,
    position: u64,
    bytes: Vec<u8>,
    done: Vec<(WrittenFile, ShardRecord)>,
    /// The shard that is being written, and its tokens so far.
    shard: Option<(NewFile, u64)>,
    lines: NewFile,
    line_count: u64,
}

impl<'a> Writer<'a> {
    /// Begins the files of a manifest whose identity is known.
    pub(super) fn new(folder: &'a OutputFolder, manifest: &Manifest) -> Result<Self> {
        let id = manifest.identity[..12].to_owned();
        let lines = folder.file(&format!("lines-{id}.bin"))?;
        Ok(Self {
            folder,
            id,
            token_type: manifest.token_type,
            shard_tokens: manifest.shard_tokens,
            position: 0,
            bytes: Vec::new(),
            done: Vec::new(),
            shard: None,
            lines,
            line_count: 0,
        })
    }

    pub(super) fn line(&mut self, ids: &[u32]) -> Result<()> {
        self.lines.put(&self.position.to_le_bytes())?;
        self.line_count += 1;
        self.position += ids.len() as u64;
        let mut rest = ids;
        while !rest.is_empty() {
            let (shard, count) = match &mut self.shard {
                Some(shard) => shard,
                none => {
                    let name = format!("tokens-{}-{:05}.bin", self.id, self.done.len());
                    none.insert((self.folder.file(&name)?, 0))
                }
            };
            let room = (self.shard_tokens - *count).min(rest.len() as u64) as usize;
            let (now, later) = rest.split_at(room);
            self.bytes.clear();
            match self.token_type {
                // `TokenType::for_vocab` chose u16 because every id is below 65,536.
                TokenType::U16 => self.bytes.extend(now.iter().flat_map(|id| (*id as u16).to_le_bytes())),
                TokenType::U32 => self.bytes.extend(now.iter().flat_map(|id| id.to_le_bytes())),
            }
            shard.put(&self.bytes)?;
            *count += room as u64;
            rest = later;
            if *count == self.shard_tokens {
                self.close_shard()?;
            }
        }
        Ok(())
    }

    fn close_shard(&mut self) -> Result<()> {
        if let Some((shard, count)) = self.shard.take() {
            self.done.push(closed(shard, count)?);
        }
        Ok(())
    }

    /// Renames the files into place, then the manifest, then removes the files of the old manifest.
    pub(super) fn finish(mut self, mut manifest: Manifest, old: Option<&Manifest>) -> Result<Manifest> {
        self.close_shard()?;
        let (lines, record) = closed(self.lines, self.line_count)?;
        manifest.lines = record;
        let mut files = vec![lines];
        for (file, record) in self.done {
            manifest.shards.push(record);
            files.push(file);
        }
        let is_kept = |name: &str| old.iter().flat_map(|old| old.files()).any(|kept| kept == name);
        let result = files.into_iter().try_for_each(|file| Ok(file.place()?)).and_then(|()| {
            let path = self.folder.path().join(FILE_NAME);
            let mut text =
                serde_json::to_vec_pretty(&manifest).map_err(|e| DataError::io("write", &path)(e.into()))?;
            text.push(b'\n');
            Ok(self.folder.write(FILE_NAME, &text)?)
        });
        if let Err(error) = result {
            // The failure is the one to report. Files of the old manifest may have the same names.
            manifest.files().filter(|name| !is_kept(name)).for_each(|name| {
                let _ = self.folder.remove(name);
            });
            return Err(error);
        }
        for stale in old.iter().flat_map(|m| m.files()).filter(|f| !manifest.files().any(|now| now == *f)) {
            // The name comes from a file on disk, so only a plain name in this folder is accepted.
            if Path::new(stale).file_name() == Some(stale.as_ref()) {
                let _ = self.folder.remove(stale);
            }
        }
        Ok(manifest)
    }
}

/// A file that is complete, and its record.
fn closed(file: NewFile, count: u64) -> Result<(WrittenFile, ShardRecord)> {
    let name = file.path().file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let written = file.finish()?;
    let sha256 = written.sha256().to_owned();
    Ok((written, ShardRecord { file: name, count, sha256 }))
}
