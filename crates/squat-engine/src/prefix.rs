//! Prompt cache: what a session holds, kept in a file or copied to another session.
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
//! Rows are stored as the codes that they are, not as a kernel lays them out, so a file serves every instruction set.

use crate::error::{EngineError, Result};
use crate::linear::{Linear, Weight};
use crate::model::Model;
use crate::session::Session;
use serde_json::{Value, json};
use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

const MAGIC: [u8; 8] = *b"SQUATKV\x01";

/// FNV-1a over 64-bit words.
pub(crate) struct Hash(u64);

impl Hash {
    pub(crate) fn new() -> Self {
        Self(0xCBF2_9CE4_8422_2325)
    }

    pub(crate) fn word(&mut self, word: u64) {
        self.0 = (self.0 ^ word).wrapping_mul(0x0000_0100_0000_01B3);
        // A multiplication alone never carries down.
        self.0 ^= self.0 >> 32;
    }

    fn bytes(&mut self, bytes: &[u8]) {
        let (words, rest) = bytes.as_chunks::<8>();
        words.iter().for_each(|word| self.word(u64::from_le_bytes(*word)));
        rest.iter().for_each(|&byte| self.word(u64::from(byte)));
        self.word(bytes.len() as u64);
    }

    fn text(&mut self, value: &impl std::fmt::Debug) {
        struct Sink<'a>(&'a mut Hash);
        impl std::fmt::Write for Sink<'_> {
            fn write_str(&mut self, text: &str) -> std::fmt::Result {
                text.bytes().for_each(|byte| self.0.word(u64::from(byte)));
                Ok(())
            }
        }
        // Writing to the sink cannot fail.
        let _ = write!(Sink(self), "{value:?}");
    }
}

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

impl Model {
    /// A number that tells models apart: architecture, plan, norms, biases, quantizers, and of the weights the values, or of
    /// integers each row's scales and sums of codes. It depends on no layout.
    fn fingerprint(&self) -> u64 {
        let mut hash = Hash::new();
        hash.text(&self.spec);
        hash.text(&self.plan);
        let floats = |hash: &mut Hash, values: &mut dyn Iterator<Item = f32>| {
            values.for_each(|x| hash.word(u64::from(x.to_bits())));
        };
        let weight = |hash: &mut Hash, weight: &Weight| match weight {
            Weight::Packed(matrix) => matrix.row_marks().for_each(|(scale, sum)| {
                hash.word(u64::from(scale.to_bits()) << 32 | u64::from(sum as u32));
            }),
            Weight::F32(values) => values.iter().for_each(|x| hash.word(u64::from(x.to_bits()))),
            Weight::F16(values) => values.iter().for_each(|&x| hash.word(u64::from(x))),
        };
        let linear = |hash: &mut Hash, linear: &Linear| {
            weight(hash, &linear.weight);
            floats(hash, &mut (0..linear.rows).map_while(|channel| linear.bias(channel)));
            hash.text(&linear.input);
        };
        weight(&mut hash, &self.embedding);
        floats(&mut hash, &mut self.positions.iter().flatten().copied());
        for layer in &self.layers {
            floats(&mut hash, &mut layer.attn_norm.values().chain(layer.mlp_norm.values()));
            for part in [&layer.qkv, &layer.output, &layer.gate_up, &layer.down] {
                linear(&mut hash, part);
            }
            hash.text(&layer.attention);
        }
        floats(&mut hash, &mut self.final_norm.values());
        linear(&mut hash, &self.head);
        hash.0
    }
}

impl Session {
    fn header(&self) -> Value {
        let spec = &self.model().spec;
        json!({
            "model": format!("{:016x}", self.model().fingerprint()),
            "plan": format!("{:?}", self.model().plan),
            "position": self.position(),
            "layers": spec.num_hidden_layers,
            "heads": spec.num_key_value_heads,
            "head_dim": spec.head_dim,
            "vocabulary": spec.vocab_size,
        })
    }

    /// Writes tokens, keys, values and logits to a file, which appears whole or not at all.
    ///
    /// # Errors
    /// The file system's.
    pub fn save_prefix(&self, path: impl AsRef<Path>) -> Result<()> {
        let path = path.as_ref();
        let header = self.header().to_string();
        let mut out = Vec::with_capacity(self.cache_bytes() + header.len() + 8 * self.logits().len());
        out.extend(MAGIC);
        out.extend((header.len() as u32).to_le_bytes());
        out.extend(header.as_bytes());
        out.extend(self.tokens().iter().flat_map(|token| token.to_le_bytes()));
        out.extend(self.logits().iter().flat_map(|x| x.to_le_bytes()));
        self.heads().for_each(|head| head.write(&mut out));
        let mut hash = Hash::new();
        hash.bytes(&out);
        out.extend(hash.0.to_le_bytes());
        write_atomically(path, &out)
    }

    /// Replaces all that the session holds by what [`Session::save_prefix`] wrote: the same bits follow as if the
    /// tokens had been fed. On an error the session is as it was.
    ///
    /// # Errors
    /// A file that cannot be read, is no such file, damaged or truncated, made by another model or under another plan,
    /// or longer than the session's capacity; a session that records token bits.
    pub fn load_prefix(&mut self, path: impl AsRef<Path>) -> Result<()> {
        let path = path.as_ref();
        let io = |source| EngineError::PrefixFile { verb: "read", path: path.to_path_buf(), source };
        let refuse = |problem: String| EngineError::Prefix { path: path.to_path_buf(), problem };
        if self.token_bits().is_some() {
            return Err(refuse("the session records token bits, which the file has not".to_owned()));
        }
        let bytes = fs::read(path).map_err(io)?;
        let damaged = || refuse("it is truncated or damaged; save the prefix again".to_owned());
        if !bytes.starts_with(&MAGIC[..7]) {
            return Err(refuse("expected a saved prefix, got something else".to_owned()));
        }
        if bytes.get(7) != Some(&MAGIC[7]) {
            let message = format!("expected version {} of the format, got {:?}", MAGIC[7], bytes.get(7));
            return Err(refuse(message + "; save the prefix again"));
        }
        let (body, checksum) = bytes.split_last_chunk::<8>().ok_or_else(damaged)?;
        let mut hash = Hash::new();
        hash.bytes(body);
        if hash.0 != u64::from_le_bytes(*checksum) {
            return Err(damaged());
        }
        let mut reader = Reader(&body[MAGIC.len()..]);
        let length = reader.array().map(u32::from_le_bytes).ok_or_else(damaged)?;
        let header = reader.bytes(length as usize).ok_or_else(damaged)?;
        let header: Value = serde_json::from_slice(header).map_err(|_| damaged())?;
        let own = self.header();
        for key in ["layers", "heads", "head_dim", "vocabulary", "plan", "model"] {
            if header[key] != own[key] {
                return Err(refuse(format!(
                    "it was made by another model: expected {key} {}, got {}; feed the prompt to this model",
                    own[key], header[key]
                )));
            }
        }
        let position =
            header["position"].as_u64().and_then(|n| usize::try_from(n).ok()).ok_or_else(damaged)?;
        if position > self.capacity() {
            return Err(refuse(format!(
                "it holds {position} tokens, the session at most {}; open a session with more room",
                self.capacity()
            )));
        }
        let tokens = reader.bytes(4 * position).ok_or_else(damaged)?;
        let tokens: Vec<u32> = tokens.as_chunks().0.iter().map(|quad| u32::from_le_bytes(*quad)).collect();
        let mut fresh = self.empty_twin()?;
        crate::session::check_ids(&tokens, self.model().spec.vocab_size).map_err(|_| damaged())?;
        reader.floats(fresh.logits_mut()).ok_or_else(damaged)?;
        for head in fresh.heads_mut() {
            head.read(&mut reader, position).ok_or_else(damaged)?;
        }
        if !reader.0.is_empty() {
            return Err(damaged());
        }
        fresh.advance(&tokens);
        self.take_from(fresh);
        Ok(())
    }

    /// Another session that holds the same: continuations of one prefix.
    ///
    /// # Errors
    /// None for a session that exists, but for memory.
    pub fn fork(&self) -> Result<Self> {
        let mut fork = self.empty_twin()?;
        fork.copy_from(self);
        Ok(fork)
    }
}

/// Writes a sibling of `path`, syncs it and renames it.
fn write_atomically(path: &Path, bytes: &[u8]) -> Result<()> {
    /// Removes the file unless it was renamed.
    struct Scratch(PathBuf);
    impl Drop for Scratch {
        fn drop(&mut self) {
            // After the rename it is gone, and this does nothing.
            let _ = fs::remove_file(&self.0);
        }
    }
    static COUNTER: AtomicU64 = AtomicU64::new(0);
    let failed = |source| EngineError::PrefixFile { verb: "write", path: path.to_path_buf(), source };
    let name = path.file_name().ok_or_else(|| failed(std::io::ErrorKind::InvalidFilename.into()))?;
    let unique = format!("{}-{}", std::process::id(), COUNTER.fetch_add(1, Ordering::Relaxed));
    let scratch = Scratch(path.with_file_name(format!(".{}.new-{unique}", name.to_string_lossy())));
    let mut file = File::create_new(&scratch.0).map_err(failed)?;
    file.write_all(bytes).and_then(|()| file.sync_all()).map_err(failed)?;
    drop(file);
    fs::rename(&scratch.0, path).map_err(failed)
}
