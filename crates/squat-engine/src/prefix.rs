//! Prompt cache: what a session holds, kept in a file.
//!
//! A file is, little-endian:
//!
//! ```text
//! magic        8 bytes, the last one the version
//! header       u32 length, then JSON: model (fingerprint), plan, position, layers, heads, head_dim, vocabulary
//! tokens       u32 for each position
//! logits       f32 for each entry of the vocabulary
//! cache        each layer's key-value heads in order, each position's rows in order (attention/store.rs)
//! checksum     u64 over everything before
//! ```
//!
//! Rows are stored as codes, independent of a kernel's layout, so a file serves every instruction set.

use crate::error::{EngineError, Result};
use crate::fingerprint::Hash;
use crate::sequence::{Sequence, check_ids};
use crate::session::Session;
use serde_json::{Value, json};
use squat_files::read::{self, Limit, ReadError};
use squat_files::write::{NewFile, Replace};
use std::path::Path;

/// Version 2: the fingerprint covers every parameter by name.
const MAGIC: [u8; 8] = *b"SQUATKV\x02";

/// Reads little-endian numbers; `None` where the bytes end too early.
pub(crate) struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    pub(crate) fn bytes(&mut self, count: usize) -> Option<&'a [u8]> {
        let (bytes, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(bytes)
    }

    pub(crate) fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.bytes(N)?.try_into().ok()
    }

    pub(crate) fn f32(&mut self) -> Option<f32> {
        self.array().map(f32::from_le_bytes)
    }

    pub(crate) fn floats(&mut self, out: &mut [f32]) -> Option<()> {
        let bytes = self.bytes(4 * out.len())?;
        for (out, quad) in out.iter_mut().zip(bytes.as_chunks::<4>().0) {
            *out = f32::from_le_bytes(*quad);
        }
        Some(())
    }
}

/// The header: the model and the sizes of the contents.
fn header(sequence: &Sequence) -> Value {
    let model = sequence.model();
    let spec = &model.spec;
    json!({
        "model": format!("{:016x}", model.fingerprint()),
        "plan": format!("{:?}", model.plan),
        "position": sequence.position(),
        "layers": spec.num_hidden_layers,
        "heads": spec.num_key_value_heads,
        "head_dim": spec.head_dim,
        "vocabulary": spec.vocab_size,
    })
}

/// The bytes of a file with what `sequence` holds.
fn encode(sequence: &Sequence) -> Vec<u8> {
    let header = header(sequence).to_string();
    let mut out = Vec::with_capacity(sequence.cache_bytes() + header.len() + 8 * sequence.logits().len());
    out.extend(MAGIC);
    out.extend((header.len() as u32).to_le_bytes());
    out.extend(header.as_bytes());
    out.extend(sequence.tokens().iter().flat_map(|token| token.to_le_bytes()));
    out.extend(sequence.logits().iter().flat_map(|x| x.to_le_bytes()));
    sequence.heads().for_each(|head| head.write(&mut out));
    let mut hash = Hash::new();
    hash.bytes(&out);
    out.extend(hash.finish().to_le_bytes());
    out
}

/// A sequence of the model and capacity of `held` with the contents of a file, or the reason the file is refused.
fn decode(bytes: &[u8], held: &Sequence) -> std::result::Result<Sequence, String> {
    let damaged = || "it is truncated or damaged; save the prefix again".to_owned();
    if !bytes.starts_with(&MAGIC[..7]) {
        return Err("expected a saved prefix, got something else".to_owned());
    }
    if bytes.get(7) != Some(&MAGIC[7]) {
        let found = bytes.get(7).map_or("none".to_owned(), u8::to_string);
        return Err(format!(
            "expected version {} of the format, got {found}; save the prefix again with this program",
            MAGIC[7]
        ));
    }
    let (body, checksum) = bytes.split_last_chunk::<8>().ok_or_else(damaged)?;
    let mut hash = Hash::new();
    hash.bytes(body);
    if hash.finish() != u64::from_le_bytes(*checksum) {
        return Err(damaged());
    }
    let mut reader = Reader(&body[MAGIC.len()..]);
    let length = reader.array().map(u32::from_le_bytes).ok_or_else(damaged)?;
    let found = reader.bytes(length as usize).ok_or_else(damaged)?;
    let found: Value = serde_json::from_slice(found).map_err(|_| damaged())?;
    let own = header(held);
    for key in ["layers", "heads", "head_dim", "vocabulary", "plan", "model"] {
        if found[key] != own[key] {
            return Err(format!(
                "it was made by another model: expected {key} {}, got {}; feed the prompt to this model",
                own[key], found[key]
            ));
        }
    }
    let position = found["position"].as_u64().and_then(|n| usize::try_from(n).ok()).ok_or_else(damaged)?;
    if position > held.capacity() {
        return Err(format!(
            "it holds {position} tokens, the session at most {}; open a session with more room",
            held.capacity()
        ));
    }
    let tokens = reader.bytes(4 * position).ok_or_else(damaged)?;
    let tokens: Vec<u32> = tokens.as_chunks().0.iter().map(|quad| u32::from_le_bytes(*quad)).collect();
    let model = held.model().clone();
    check_ids(&tokens, model.spec.vocab_size).map_err(|_| damaged())?;
    let mut fresh = Sequence::new(model, Some(held.capacity())).map_err(|error| error.to_string())?;
    reader.floats(fresh.logits_mut()).ok_or_else(damaged)?;
    for head in fresh.heads_mut() {
        head.read(&mut reader, position).ok_or_else(damaged)?;
    }
    if !reader.0.is_empty() {
        return Err(damaged());
    }
    fresh.advance(&tokens);
    Ok(fresh)
}

impl Session {
    /// Writes tokens, keys, values and logits to a file, which appears whole or not at all. It replaces a saved prefix.
    ///
    /// # Errors
    /// A file that is not a saved prefix, another writer, and the file system's.
    pub fn save_prefix(&self, path: impl AsRef<Path>) -> Result<()> {
        let same_kind = Replace::StartingWith(&MAGIC[..MAGIC.len() - 1]);
        NewFile::write(path.as_ref(), same_kind, &encode(&self.sequence)).map_err(EngineError::prefix)
    }

    /// Replaces all that the session holds by what [`Session::save_prefix`] wrote: the same bits follow as if the
    /// tokens had been fed. On an error the session is as it was.
    ///
    /// # Errors
    /// A file that cannot be read, is not a saved prefix, is damaged or truncated, was made by another model or under
    /// another plan, or is longer than the session's capacity; a session that records token bits.
    pub fn load_prefix(&mut self, path: impl AsRef<Path>) -> Result<()> {
        let path = path.as_ref();
        let refuse = |problem: String| EngineError::Prefix { path: path.to_path_buf(), problem };
        if self.token_bits().is_some() {
            return Err(refuse("the session records token bits, which the file does not hold".to_owned()));
        }
        let bytes = read::whole(path, Limit::Weights).map_err(|error| match error {
            ReadError::Io { source, .. } => {
                EngineError::PrefixFile { verb: "read", path: path.to_path_buf(), source }
            }
            ReadError::Missing(path) => {
                EngineError::PrefixFile { verb: "read", path, source: std::io::ErrorKind::NotFound.into() }
            }
            error => refuse(error.to_string()),
        })?;
        self.sequence = decode(&bytes, &self.sequence).map_err(refuse)?;
        Ok(())
    }
}
