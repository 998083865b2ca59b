//! Tokens of a corpus, from memory-mapped shards or from memory, behind one interface.

use super::manifest::{Manifest, ShardRecord, TokenType};
use crate::{DataError, Result};
use squat_files::read::{self, Map, ReadError};
use std::path::Path;
use std::sync::Arc;

/// All tokens of a corpus as one sequence. Clones share the memory.
#[derive(Clone, Debug)]
pub struct TokenShards {
    storage: Arc<Storage>,
    bos: u32,
    eos: u32,
    vocab_size: usize,
}

#[derive(Debug)]
enum Storage {
    Memory { tokens: Vec<u32> },
    Mapped { token_type: TokenType, shards: Vec<(u64, Map)>, lines: Option<Map>, len: u64 },
}

impl TokenShards {
    /// Opens a prepared folder and verifies every file against the manifest's hashes.
    ///
    /// # Errors
    /// A missing, truncated or altered file.
    pub fn open(folder: &Path) -> Result<Self> {
        let manifest = Manifest::read(folder)?;
        let size = manifest.token_type.size();
        let mut shards = Vec::with_capacity(manifest.shards.len());
        let mut len = 0u64;
        for record in &manifest.shards {
            if let Some(map) = map_verified(folder, record, size)? {
                shards.push((len, map));
            }
            len = len.saturating_add(record.count);
        }
        if len != manifest.tokens {
            let problem = format!("the shards hold {len} tokens, but the manifest lists {}", manifest.tokens);
            return Err(DataError::DamagedShards { path: folder.to_path_buf(), problem });
        }
        let lines = map_verified(folder, &manifest.lines, 8)?;
        Ok(Self {
            storage: Arc::new(Storage::Mapped { token_type: manifest.token_type, shards, lines, len }),
            bos: manifest.special_tokens.bos,
            eos: manifest.special_tokens.eos,
            vocab_size: manifest.vocab_size,
        })
    }

    /// Tokens in memory, without line starts; `<s>` is 1 and `</s>` is 2, as in tokenizers trained by this crate.
    pub fn from_tokens(tokens: Vec<u32>) -> Self {
        let vocab_size = tokens.iter().max().map_or(0, |m| *m as usize + 1).max(3);
        Self { storage: Arc::new(Storage::Memory { tokens }), bos: 1, eos: 2, vocab_size }
    }

    /// The same tokens with another id at the start of sequences.
    pub fn with_bos(mut self, bos: u32) -> Self {
        self.bos = bos;
        self.vocab_size = self.vocab_size.max(bos as usize + 1);
        self
    }

    /// Number of tokens.
    pub fn len(&self) -> u64 {
        match &*self.storage {
            Storage::Memory { tokens, .. } => tokens.len() as u64,
            Storage::Mapped { len, .. } => *len,
        }
    }

    /// Whether there are no tokens.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Id of the start of every sequence.
    pub fn bos(&self) -> u32 {
        self.bos
    }

    /// Id of the end of a document.
    pub fn eos(&self) -> u32 {
        self.eos
    }

    /// Number of ids: every id is less than this.
    pub fn vocab_size(&self) -> usize {
        self.vocab_size
    }

    /// Appends tokens `start..start + count`, as far as they exist.
    pub fn extend_into(&self, start: u64, count: usize, out: &mut Vec<u32>) {
        let start = start.min(self.len());
        let end = start.saturating_add(count as u64).min(self.len());
        match &*self.storage {
            Storage::Memory { tokens, .. } => out.extend_from_slice(&tokens[start as usize..end as usize]),
            Storage::Mapped { token_type, shards, .. } => {
                let size = token_type.size();
                let mut shard = shards.partition_point(|(first, _)| *first <= start).saturating_sub(1);
                let mut at = start;
                while at < end {
                    let (first, map) = &shards[shard];
                    let stop = end.min(first + map.len() as u64 / size);
                    let bytes = &map[((at - first) * size) as usize..((stop - first) * size) as usize];
                    match token_type {
                        TokenType::U16 => {
                            out.extend(
                                bytes.chunks_exact(2).map(|b| u32::from(u16::from_le_bytes([b[0], b[1]]))),
                            );
                        }
                        TokenType::U32 => {
                            out.extend(
                                bytes.chunks_exact(4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]])),
                            );
                        }
                    }
                    at = stop;
                    shard += 1;
                }
            }
        }
    }

    /// Tokens `start..start + count`, as far as they exist.
    pub fn get(&self, start: u64, count: usize) -> Vec<u32> {
        let mut out = Vec::with_capacity(count.min(self.len() as usize));
        self.extend_into(start, count, &mut out);
        out
    }

    /// Number of lines whose starts are known; 0 for tokens from memory.
    pub fn lines(&self) -> u64 {
        match &*self.storage {
            Storage::Memory { .. } => 0,
            Storage::Mapped { lines, .. } => lines.as_ref().map_or(0, |map| map.len() as u64 / 8),
        }
    }

    /// Position of the first token of line `index`.
    pub fn line_start(&self, index: u64) -> Option<u64> {
        match &*self.storage {
            Storage::Memory { .. } => None,
            Storage::Mapped { lines, .. } => {
                let at = usize::try_from(index).ok()?.checked_mul(8)?;
                let bytes = lines.as_ref()?.get(at..at.checked_add(8)?)?;
                Some(u64::from_le_bytes(bytes.try_into().ok()?))
            }
        }
    }

    /// The first line start at or after a position.
    pub fn line_start_from(&self, position: u64) -> Option<u64> {
        let (mut low, mut high) = (0, self.lines());
        while low < high {
            let middle = low + (high - low) / 2;
            if self.line_start(middle)? < position {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        self.line_start(low)
    }
}

/// Maps a file after checking its length and hash; `None` for an empty one, which cannot be mapped.
fn map_verified(folder: &Path, record: &ShardRecord, size: u64) -> Result<Option<Map>> {
    let path = folder.join(&record.file);
    if Path::new(&record.file).file_name() != Some(record.file.as_ref()) {
        let problem = format!("the manifest names a file {:?}, expected a plain name", record.file);
        return Err(DataError::DamagedShards { path: folder.to_path_buf(), problem });
    }
    let damaged = |problem: String| DataError::DamagedShards { path: path.clone(), problem };
    let map = match read::map(&path) {
        Ok(map) => map,
        Err(ReadError::Missing(_)) => {
            return Err(damaged("the manifest lists this file, but it does not exist".to_owned()));
        }
        Err(error) => return Err(error.into()),
    };
    let length = map.len() as u64;
    // A name or count from a file on disk may be anything.
    let expected =
        record.count.checked_mul(size).ok_or_else(|| damaged(format!("{} tokens", record.count)))?;
    if length != expected {
        return Err(damaged(format!("{length} bytes long, expected {expected} according to the manifest")));
    }
    if length == 0 {
        return Ok(None);
    }
    if crate::hash::sha256(&map) != record.sha256 {
        return Err(damaged(
            "altered since it was written (its SHA-256 is not that of the manifest)".to_owned(),
        ));
    }
    Ok(Some(map))
}
