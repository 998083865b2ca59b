//! Streaming decoding: text while tokens arrive, in time linear in their number.
//!
//! What a stream has given, joined, is what [`Tokenizer::decode`] gives for all ids at once. Decoded text does not only
//! grow: `E2 82 AC` is a euro sign until an `FF` follows in the same run of byte tokens, which turns all four into
//! replacement characters. So text is held back until no later token can change it:
//!
//! | decoder | held back |
//! |---|---|
//! | bytes (byte-level BPE, llama2.c) | the first bytes of a character |
//! | pieces (SentencePiece and others) | a run of byte tokens; what has given no text at the very beginning |
//! | any other | everything, until [`TokenStream::finish`] |

use std::collections::HashMap;
use std::sync::LazyLock;

use tokenizers::decoders::DecoderWrapper;

use crate::error::ModelError;
use crate::format::llama2c::Llama2cTokenizer;
use crate::tokenizer::{Kind, Tokenizer};

/// Decodes tokens one at a time; see [`Tokenizer::stream`].
///
/// ```no_run
/// # fn show(tokenizer: &squat_model::Tokenizer, ids: &[u32]) -> Result<(), squat_model::ModelError> {
/// let mut stream = tokenizer.stream();
/// for &id in ids {
///     print!("{}", stream.push(id)?);
/// }
/// print!("{}", stream.finish()?);
/// # Ok(()) }
/// ```
#[derive(Clone, Debug)]
pub struct TokenStream<'a> {
    tokenizer: &'a Tokenizer,
    decoder: Decoder<'a>,
}

#[derive(Clone, Debug)]
enum Decoder<'a> {
    /// A token is bytes, whatever its neighbours are.
    Bytes { bytes_of: BytesOf<'a>, pending: Vec<u8>, strip_space: bool },
    /// A token is text that depends on its neighbours only in runs of byte tokens and at the beginning.
    Pieces(Pieces<'a>),
    /// Nothing is known: decoded at the end.
    Whole(Vec<u32>),
}

#[derive(Clone, Copy, Debug)]
enum BytesOf<'a> {
    ByteLevel(&'a tokenizers::Tokenizer),
    Llama2c(&'a Llama2cTokenizer),
}

#[derive(Clone, Debug)]
struct Pieces<'a> {
    inner: &'a tokenizers::Tokenizer,
    /// A plain token that stands for all that came before: what follows it is decoded as in the middle of a text.
    anchor: u32,
    anchor_text: String,
    /// Whether `<0x41>` is a byte.
    byte_fallback: bool,
    /// Whether any text has come.
    begun: bool,
    held: Vec<u32>,
}

impl Tokenizer {
    /// A decoder for tokens that arrive one at a time.
    pub fn stream(&self) -> TokenStream<'_> {
        let decoder = match self.kind() {
            Kind::Llama2c(tokenizer) => {
                let bytes_of = BytesOf::Llama2c(tokenizer);
                Decoder::Bytes { bytes_of, pending: Vec::new(), strip_space: true }
            }
            Kind::HuggingFace(inner) => match Mode::of(inner.get_decoder()) {
                Mode::Bytes => {
                    let bytes_of = BytesOf::ByteLevel(inner);
                    Decoder::Bytes { bytes_of, pending: Vec::new(), strip_space: false }
                }
                Mode::Pieces { byte_fallback } => match anchor(inner, self.vocab_size()) {
                    Some((anchor, anchor_text)) => {
                        let (begun, held) = (false, Vec::new());
                        Decoder::Pieces(Pieces { inner, anchor, anchor_text, byte_fallback, begun, held })
                    }
                    None => Decoder::Whole(Vec::new()),
                },
                Mode::Whole => Decoder::Whole(Vec::new()),
            },
        };
        TokenStream { tokenizer: self, decoder }
    }
}

impl TokenStream<'_> {
    /// The text that is certain now that `id` has come: often that of the token, sometimes none, sometimes more.
    ///
    /// # Errors
    /// As [`Tokenizer::decode`].
    pub fn push(&mut self, id: u32) -> Result<String, ModelError> {
        self.tokenizer.check(id)?;
        if id as usize >= self.tokenizer.vocab_size() {
            return Ok(String::new());
        }
        match &mut self.decoder {
            Decoder::Bytes { bytes_of, pending, strip_space } => {
                bytes_of.append(id, pending);
                let mut text = take_characters(pending);
                if !text.is_empty() && std::mem::take(strip_space) && text.starts_with(' ') {
                    text.remove(0);
                }
                Ok(text)
            }
            Decoder::Pieces(pieces) => pieces.push(id, self.tokenizer),
            Decoder::Whole(ids) => {
                ids.push(id);
                Ok(String::new())
            }
        }
    }

    /// The text held back, now that no token follows. The stream is as new after it.
    ///
    /// # Errors
    /// As [`Tokenizer::decode`].
    pub fn finish(&mut self) -> Result<String, ModelError> {
        let text = match &mut self.decoder {
            Decoder::Bytes { pending, .. } => Ok(String::from_utf8_lossy(pending).into_owned()),
            Decoder::Pieces(pieces) => pieces.settle(self.tokenizer),
            Decoder::Whole(ids) => self.tokenizer.decode(ids),
        };
        *self = self.tokenizer.stream();
        text
    }
}

impl BytesOf<'_> {
    /// Appends the bytes of a token; none for special and unknown ones.
    fn append(self, id: u32, bytes: &mut Vec<u8>) {
        match self {
            Self::Llama2c(tokenizer) => bytes.extend(tokenizer.token_bytes(id)),
            Self::ByteLevel(tokenizer) => {
                let Some(token) = plain_token(tokenizer, id) else { return };
                let start = bytes.len();
                for character in token.chars() {
                    match BYTE_OF.get(&character) {
                        Some(&byte) => bytes.push(byte),
                        None => {
                            // An added token is written as it is.
                            bytes.truncate(start);
                            bytes.extend(token.as_bytes());
                            return;
                        }
                    }
                }
            }
        }
    }
}

impl Pieces<'_> {
    fn push(&mut self, id: u32, tokenizer: &Tokenizer) -> Result<String, ModelError> {
        let Some(token) = plain_token(self.inner, id) else { return Ok(String::new()) };
        self.held.push(id);
        if self.byte_fallback && is_byte_token(&token) {
            return Ok(String::new());
        }
        self.settle(tokenizer)
    }

    /// Text of the tokens held, of which the last ends a run of bytes.
    fn settle(&mut self, tokenizer: &Tokenizer) -> Result<String, ModelError> {
        if self.held.is_empty() {
            return Ok(String::new());
        }
        if !self.begun {
            let text = tokenizer.decode(&self.held)?;
            if !text.is_empty() {
                self.begun = true;
                self.held.clear();
            }
            return Ok(text);
        }
        self.held.insert(0, self.anchor);
        let text = tokenizer.decode(&self.held)?;
        self.held.clear();
        match text.strip_prefix(&self.anchor_text) {
            Some(text) => Ok(text.to_owned()),
            None => Err(ModelError::Tokenizer {
                place: tokenizer.place().to_owned(),
                message: format!("expected text that begins with {:?}, got {text:?}", self.anchor_text),
            }),
        }
    }
}

/// How the tokens of a decoder depend on each other.
enum Mode {
    Bytes,
    Pieces { byte_fallback: bool },
    Whole,
}

impl Mode {
    fn of(decoder: Option<&DecoderWrapper>) -> Self {
        let steps = match decoder {
            // Tokens are joined by spaces.
            None => return Self::Pieces { byte_fallback: false },
            Some(DecoderWrapper::Sequence(sequence)) => sequence.get_decoders(),
            Some(single) => std::slice::from_ref(single),
        };
        if let Some((DecoderWrapper::ByteLevel(_), rest)) = steps.split_first()
            && rest.iter().all(|step| matches!(step, DecoderWrapper::Fuse(_)))
        {
            return Self::Bytes;
        }
        let (mut fused, mut byte_fallback) = (false, false);
        for step in steps {
            match step {
                DecoderWrapper::Fuse(_) => fused = true,
                // Cuts the beginning of the whole text, or of each token.
                DecoderWrapper::Strip(strip) if strip.stop == 0 || !fused => {}
                DecoderWrapper::ByteFallback(_) if !fused => byte_fallback = true,
                DecoderWrapper::Replace(_) | DecoderWrapper::Metaspace(_) | DecoderWrapper::WordPiece(_)
                    if !fused => {}
                _ => return Self::Whole,
            }
        }
        Self::Pieces { byte_fallback }
    }
}

/// A token of letters that decodes to itself, at the beginning and followed by others.
fn anchor(tokenizer: &tokenizers::Tokenizer, vocab_size: usize) -> Option<(u32, String)> {
    (0..vocab_size as u32).find_map(|id| {
        let token = plain_token(tokenizer, id)?;
        let plain = !token.is_empty() && token.chars().all(char::is_alphanumeric);
        let decodes =
            |ids: &[u32]| plain && tokenizer.decode(ids, true).is_ok_and(|text| text.starts_with(&token));
        (decodes(&[id]) && decodes(&[id, id])).then(|| (id, token.clone()))
    })
}

/// A token as it stands in the vocabulary, unless it is special.
fn plain_token(tokenizer: &tokenizers::Tokenizer, id: u32) -> Option<String> {
    tokenizer.id_to_token(id).filter(|token| !tokenizer.get_added_vocabulary().is_special_token(token))
}

/// Whether a token stands for one byte, such as `<0x0A>`.
fn is_byte_token(token: &str) -> bool {
    token.len() == 6
        && token.starts_with("<0x")
        && token.ends_with('>')
        && token.get(3..5).is_some_and(|digits| u8::from_str_radix(digits, 16).is_ok())
}

/// Takes the text of all bytes except a last character that is not complete.
fn take_characters(bytes: &mut Vec<u8>) -> String {
    let (mut text, mut rest) = (String::with_capacity(bytes.len()), 0);
    for chunk in bytes.utf8_chunks() {
        text.push_str(chunk.valid());
        rest += chunk.valid().len();
        let invalid = chunk.invalid();
        let ends_here = rest + invalid.len() == bytes.len();
        if ends_here && std::str::from_utf8(invalid).is_err_and(|error| error.error_len().is_none()) {
            break;
        }
        if !invalid.is_empty() {
            text.push(char::REPLACEMENT_CHARACTER);
        }
        rest += invalid.len();
    }
    bytes.drain(..rest);
    text
}

/// The byte that each character of a byte-level vocabulary stands for: printable Latin-1 characters for themselves, the
/// characters from U+0100 on for the other bytes in their order.
static BYTE_OF: LazyLock<HashMap<char, u8>> = LazyLock::new(|| {
    let mut others = 0x100u32..;
    (0..=255u8)
        .filter_map(|byte| {
            let code = match byte {
                b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF => u32::from(byte),
                _ => others.next()?,
            };
            Some((char::from_u32(code)?, byte))
        })
        .collect()
});
