//! The files of a tokenizer, copied between folders.

use std::path::Path;

use squat_files::read::{self, Limit};

use crate::error::ModelError;
use crate::format::gguf::{self, GgufFile, is_gguf};
use crate::format::{llama2c, sentencepiece};

/// Files of a tokenizer, as bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TokenizerFiles {
    files: Vec<(String, Vec<u8>)>,
}

impl TokenizerFiles {
    /// File names of a tokenizer.
    pub const NAMES: [&'static str; 5] = [
        "tokenizer.json",
        "tokenizer_config.json",
        "special_tokens_map.json",
        "chat_template.jinja",
        llama2c::TOKENIZER,
    ];

    /// No tokenizer.
    pub fn none() -> Self {
        Self::default()
    }

    /// A `tokenizer.json` in memory.
    pub fn from_tokenizer_json(text: impl Into<Vec<u8>>) -> Self {
        Self { files: vec![(Self::NAMES[0].to_owned(), text.into())] }
    }

    /// A llama2.c tokenizer in memory.
    pub fn from_llama2c(bytes: Vec<u8>) -> Self {
        Self { files: vec![(llama2c::TOKENIZER.to_owned(), bytes)] }
    }

    /// The same with a chat template.
    pub fn with_chat_template(mut self, text: impl Into<Vec<u8>>) -> Self {
        self.files.push((Self::NAMES[3].to_owned(), text.into()));
        self
    }

    /// The tokenizer files of a folder (those that exist; a lone `tokenizer.model` as `tokenizer.json`), one
    /// `tokenizer.json` or `tokenizer.model`, or those in a GGUF file.
    ///
    /// # Errors
    /// A path that does not exist, a file that cannot be read.
    pub fn read(path: &Path) -> Result<Self, ModelError> {
        let read = |path: &Path| read::whole(path, Limit::Tokenizer);
        if path.is_dir() {
            let mut files = Vec::new();
            for name in Self::NAMES {
                let file = path.join(name);
                if file.is_file() {
                    files.push((name.to_owned(), read(&file)?));
                }
            }
            let has = |name: &str| files.iter().any(|(found, _)| found == name);
            let file = path.join(sentencepiece::FILE);
            if !has(Self::NAMES[0]) && !has(llama2c::TOKENIZER) && file.is_file() {
                files.push((Self::NAMES[0].to_owned(), sentencepiece_json(&file)?));
            }
            return Ok(Self { files });
        }
        if !path.exists() {
            return Err(ModelError::not_found(path));
        }
        if is_gguf(path) {
            return gguf::tokenizer::files(&GgufFile::open(path)?);
        }
        if is_sentencepiece(path) {
            return Ok(Self::from_tokenizer_json(sentencepiece_json(path)?));
        }
        Ok(Self::from_tokenizer_json(read(path)?))
    }

    /// Content of a file.
    pub fn get(&self, name: &str) -> Option<&[u8]> {
        self.iter().find(|(found, _)| *found == name).map(|(_, bytes)| bytes)
    }

    /// Name and content of each file.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &[u8])> {
        self.files.iter().map(|(name, bytes)| (name.as_str(), bytes.as_slice()))
    }
}

/// Whether a file is one of SentencePiece, by its name.
pub(crate) fn is_sentencepiece(file: &Path) -> bool {
    file.extension().is_some_and(|extension| extension == "model")
}

/// A `tokenizer.model` as `tokenizer.json`.
///
/// # Errors
/// A file that cannot be read, or is no SentencePiece model of a kind that is read here.
pub(crate) fn sentencepiece_json(file: &Path) -> Result<Vec<u8>, ModelError> {
    let bytes = read::whole(file, Limit::Tokenizer)?;
    sentencepiece::tokenizer_json(&bytes).map_err(|message| ModelError::Tokenizer {
        place: file.display().to_string(),
        message: format!(
            "{message}; {}",
            crate::open::lone_sentencepiece(file.parent().unwrap_or(Path::new(".")))
        ),
    })
}
