//! Text to token ids and back, for models of both origins.

use std::fmt;
use std::path::{Path, PathBuf};

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use squat_files::contain::contain;
use squat_files::read::{self, Limit};

use crate::error::ModelError;
use crate::format::llama2c::{self, Llama2cTokenizer};
use crate::format::sentencepiece;
use crate::spec::ModelSpec;
use crate::tokenizer_files::{is_sentencepiece, sentencepiece_json};

/// A tokenizer that belongs to a model.
#[derive(Clone, Debug)]
pub struct Tokenizer {
    kind: Kind,
    place: String,
    /// Largest id plus one: ids may have gaps, so counting entries is not enough.
    size: usize,
    /// Ids that the model knows.
    rows: usize,
    bos_id: Option<u32>,
    eos_ids: Vec<u32>,
    pad_id: Option<u32>,
}

#[derive(Clone, Debug)]
pub(crate) enum Kind {
    HuggingFace(Box<tokenizers::Tokenizer>),
    Llama2c(Llama2cTokenizer),
}

impl Tokenizer {
    /// Reads `tokenizer.json` of a folder (else `tokenizer.bin` of llama2.c, else `tokenizer.model`), or the file itself, and checks it against the
    /// model. [`crate::OpenedModel::tokenizer`] finds the tokenizer of any model.
    ///
    /// # Errors
    /// A missing file, a file that is not a tokenizer, or a vocabulary that does not match the model.
    pub fn open(path: impl AsRef<Path>, spec: &ModelSpec) -> Result<Self, ModelError> {
        let path = path.as_ref();
        if !path.exists() {
            return Err(ModelError::not_found(path));
        }
        let file: PathBuf = if path.is_dir() { path.join("tokenizer.json") } else { path.to_path_buf() };
        if !file.exists() {
            let llama2c = path.join(llama2c::TOKENIZER);
            if llama2c.is_file() {
                return Self::open_llama2c(llama2c, spec);
            }
            if path.join(sentencepiece::FILE).is_file() {
                let file = path.join(sentencepiece::FILE);
                return Self::from_json(&sentencepiece_json(&file)?, &file.display().to_string(), spec);
            }
            let advice = "copy it from the folder the model came from";
            return Err(ModelError::folder(path, format!("tokenizer.json is missing; {advice}")));
        }
        if is_sentencepiece(&file) {
            return Self::from_json(&sentencepiece_json(&file)?, &file.display().to_string(), spec);
        }
        let bytes = read::whole(&file, Limit::Tokenizer)?;
        Self::from_json(&bytes, &file.display().to_string(), spec)
    }

    /// A tokenizer from the content of a `tokenizer.json`; `place` is its name in messages.
    ///
    /// # Errors
    /// No valid tokenizer, or one with another vocabulary than the model.
    pub fn from_json(bytes: &[u8], place: &str, spec: &ModelSpec) -> Result<Self, ModelError> {
        let wrong = |error: String| ModelError::Tokenizer {
            place: place.to_owned(),
            message: format!("invalid tokenizer.json ({error}); copy or train it again"),
        };
        // The library panics on some files that are not JSON, so JSON is checked first.
        check_json(bytes).map_err(|error| wrong(error.to_string()))?;
        let tokenizer = crate::tokenizer_guard::build(bytes).map_err(wrong)?;
        Self::new(Kind::HuggingFace(Box::new(tokenizer)), place, spec)
    }

    /// Reads a llama2.c tokenizer file.
    ///
    /// # Errors
    /// No such file, or one with another vocabulary than the model.
    pub fn open_llama2c(path: impl AsRef<Path>, spec: &ModelSpec) -> Result<Self, ModelError> {
        let path = path.as_ref();
        let tokenizer = Llama2cTokenizer::load(path, spec.vocab_size)?;
        Self::new(Kind::Llama2c(tokenizer), &path.display().to_string(), spec)
    }

    fn new(kind: Kind, place: &str, spec: &ModelSpec) -> Result<Self, ModelError> {
        let size = match &kind {
            // Walking over the vocabulary takes longer than a token of a small model: once.
            Kind::HuggingFace(tokenizer) => {
                tokenizer.get_vocab(true).into_values().max().map_or(0, |id| id as usize + 1)
            }
            Kind::Llama2c(tokenizer) => tokenizer.vocab_size(),
        };
        let (rows, filled) = (spec.vocab_size, filled(spec.vocab_size));
        if size > rows + filled {
            return Err(ModelError::Tokenizer {
                place: place.to_owned(),
                message: format!(
                    "expected the model's vocabulary of {rows} tokens, got {size}; use the tokenizer the model was trained with"
                ),
            });
        }
        Ok(Self {
            kind,
            place: place.to_owned(),
            size,
            rows,
            bos_id: spec.bos_token_id,
            eos_ids: spec.eos_token_ids.clone(),
            pad_id: spec.pad_token_id,
        })
    }

    /// Where the tokenizer has more ids than the model, or many fewer: a sentence that says so. Such a pair runs, unless a
    /// text has an id that is missing.
    pub fn size_note(&self) -> Option<String> {
        let differ = self.size > self.rows || self.size + filled(self.rows) < self.rows;
        differ.then(|| {
            format!(
                "the tokenizer has {} ids, the model {}: is it the model's own tokenizer?",
                self.size, self.rows
            )
        })
    }

    /// Number of ids the tokenizer can give: its largest id plus one.
    pub fn vocab_size(&self) -> usize {
        self.size
    }

    /// Ids of `text`, without BOS and EOS. Special tokens written out in the text, as chat templates do, become their
    /// ids, as in Hugging Face.
    ///
    /// # Errors
    /// A token that the model does not know, and the tokenizer's own.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, ModelError> {
        let ids = match &self.kind {
            Kind::HuggingFace(tokenizer) => contain(|| tokenizer.encode(text, false))
                .unwrap_or_else(|panic| Err(panic.into()))
                .map(|encoding| encoding.get_ids().to_vec())
                .map_err(|error| self.error("encode", error))?,
            Kind::Llama2c(tokenizer) => tokenizer.encode(text),
        };
        if let Some(&id) = ids.iter().find(|&&id| id as usize >= self.rows) {
            let token = self.token(id).unwrap_or_default();
            let message = format!(
                "the text contains the token {token:?} with the id {id}, but the model knows ids below {}; leave that token \
                 out, or use the tokenizer the model was trained with",
                self.rows
            );
            return Err(ModelError::Tokenizer { place: self.place.clone(), message });
        }
        Ok(ids)
    }

    /// The ids that a model is fed for `text`: BOS, then the ids of the text. A text that begins with BOS written out, as
    /// chat templates do, gets no second one. The empty text is BOS alone.
    ///
    /// # Errors
    /// A model without a BOS token, and the tokenizer's own.
    pub fn encode_prompt(&self, text: &str) -> Result<Vec<u32>, ModelError> {
        let bos = self.required_bos_id()?;
        let mut ids = if text.is_empty() { Vec::new() } else { self.encode(text)? };
        if ids.first() != Some(&bos) {
            ids.insert(0, bos);
        }
        Ok(ids)
    }

    /// The token that begins every sequence.
    ///
    /// # Errors
    /// A model without one.
    pub fn required_bos_id(&self) -> Result<u32, ModelError> {
        self.bos_id.ok_or_else(|| ModelError::Tokenizer {
            place: self.place.clone(),
            message:
                "the model names no BOS token, and every sequence must begin with one; set bos_token_id in \
                      config.json"
                    .to_owned(),
        })
    }

    /// Text of `ids`; special tokens are left out. For tokens that arrive one at a time: [`Tokenizer::stream`].
    ///
    /// # Errors
    /// An id outside the vocabulary, and the tokenizer's own.
    pub fn decode(&self, ids: &[u32]) -> Result<String, ModelError> {
        ids.iter().try_for_each(|&id| self.check(id))?;
        // Rows that fill up a table stand for no text.
        let known: Vec<u32> = ids.iter().copied().filter(|&id| (id as usize) < self.size).collect();
        let ids = &known[..];
        match &self.kind {
            Kind::HuggingFace(tokenizer) => {
                let decoded =
                    contain(|| tokenizer.decode(ids, true)).unwrap_or_else(|panic| Err(panic.into()));
                decoded.map_err(|error| self.error("decode", error))
            }
            Kind::Llama2c(tokenizer) => Ok(tokenizer.decode(ids)),
        }
    }

    /// Refuses an id outside the vocabulary.
    pub(crate) fn check(&self, id: u32) -> Result<(), ModelError> {
        let limit = self.size.max(self.rows);
        if (id as usize) < limit {
            return Ok(());
        }
        let message = format!("expected token ids below {limit}, got {id}");
        Err(ModelError::Tokenizer { place: self.place.clone(), message })
    }

    pub(crate) fn kind(&self) -> &Kind {
        &self.kind
    }

    /// A token as written in the vocabulary, for display.
    pub fn token(&self, id: u32) -> Option<String> {
        match &self.kind {
            Kind::HuggingFace(tokenizer) => tokenizer.id_to_token(id),
            Kind::Llama2c(tokenizer) => {
                tokenizer.piece(id).map(|piece| String::from_utf8_lossy(piece).into_owned())
            }
        }
    }

    /// Id of a token of the vocabulary.
    pub fn id(&self, token: &str) -> Option<u32> {
        match &self.kind {
            Kind::HuggingFace(tokenizer) => tokenizer.token_to_id(token),
            Kind::Llama2c(tokenizer) => tokenizer.id(token.as_bytes()),
        }
    }

    /// The model's token that begins every sequence.
    pub fn bos_id(&self) -> Option<u32> {
        self.bos_id
    }

    /// The model's tokens that end a text.
    pub fn eos_ids(&self) -> &[u32] {
        &self.eos_ids
    }

    /// The model's token that fills batches.
    pub fn pad_id(&self) -> Option<u32> {
        self.pad_id
    }

    /// Where it came from, for messages.
    pub fn place(&self) -> &str {
        &self.place
    }

    fn error(&self, verb: &str, error: tokenizers::Error) -> ModelError {
        ModelError::Tokenizer { place: self.place.clone(), message: format!("cannot {verb}: {error}") }
    }
}

/// Rows by which tables are filled up to a round number: less than 2 %, or up to the next 64. Tokens that were added later
/// without a row are as few.
fn filled(rows: usize) -> usize {
    (rows / 50).max(63)
}

/// Parses JSON completely and keeps nothing: strings, escapes and all, since the tokenizers library takes some of them
/// for granted.
fn check_json(bytes: &[u8]) -> Result<(), serde_json::Error> {
    serde_json::from_slice::<Checked>(bytes).map(|_| ())
}

/// Any JSON value, read and forgotten.
struct Checked;

impl<'de> Deserialize<'de> for Checked {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Checked)
    }
}

impl<'de> Visitor<'de> for Checked {
    type Value = Self;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any JSON value")
    }

    fn visit_bool<E>(self, _: bool) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_i64<E>(self, _: i64) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_u64<E>(self, _: u64) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_f64<E>(self, _: f64) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_str<E>(self, _: &str) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_unit<E>(self) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Self, A::Error> {
        while items.next_element::<Self>()?.is_some() {}
        Ok(self)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Self, A::Error> {
        while entries.next_entry::<Self, Self>()?.is_some() {}
        Ok(self)
    }
}
