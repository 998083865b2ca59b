//! Running text as token ids.

use std::path::{Path, PathBuf};

use crate::error::EvalError;
use crate::file::read_text;
use crate::model::Tokenize;

/// A text as token ids, with the counts that perplexity is divided by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenizedText {
    /// Name in results and messages.
    pub name: String,
    /// Ids without BOS.
    pub tokens: Vec<u32>,
    /// UTF-8 bytes of the text that `tokens` encode.
    pub n_bytes: usize,
    /// Words of the text, separated by white space.
    pub n_words: usize,
}

impl TokenizedText {
    /// Tokenizes `text`, line ends included, in one call: a tokenizer may add a prefix to each text that it gets, or
    /// join line ends, so the ids of two parts need not be those of the whole.
    ///
    /// # Errors
    /// [`EvalError::Tokenize`].
    pub fn new(name: &str, text: &str, tokenizer: &dyn Tokenize) -> Result<Self, EvalError> {
        let tokens = tokenizer
            .encode(text)
            .map_err(|error| EvalError::Tokenize { location: name.to_owned(), message: error.to_string() })?;
        let n_words = text.split_whitespace().count();
        Ok(Self { name: name.to_owned(), tokens, n_bytes: text.len(), n_words })
    }

    /// Reads and tokenizes `path`: a plain or gzipped UTF-8 file, or a folder, of which every `.txt`, `.raw` and
    /// `.gz` file is one text, sorted by name (archives and subfolders are skipped).
    ///
    /// # Errors
    /// Unreadable files, a folder without such a file, text that is not UTF-8, and the tokenizer's own.
    pub fn read(path: &Path, tokenizer: &dyn Tokenize) -> Result<Vec<Self>, EvalError> {
        text_files(path)?
            .iter()
            .map(|file| {
                let name = file.file_name().unwrap_or(file.as_os_str()).to_string_lossy();
                Self::new(&name, &read_text(file)?, tokenizer)
            })
            .collect()
    }
}

fn text_files(path: &Path) -> Result<Vec<PathBuf>, EvalError> {
    let error = |source| EvalError::io("read", path, source);
    if !std::fs::metadata(path).map_err(error)?.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let mut files = Vec::new();
    for entry in std::fs::read_dir(path).map_err(error)? {
        let file = entry.map_err(error)?.path();
        let name = file.to_string_lossy();
        let text = [".txt", ".raw", ".gz"].iter().any(|suffix| name.ends_with(suffix));
        if text && !name.ends_with(".tar.gz") && file.is_file() {
            files.push(file);
        }
    }
    if files.is_empty() {
        return Err(EvalError::EmptyText(format!("{} (no .txt, .raw or .gz file)", path.display())));
    }
    files.sort();
    Ok(files)
}
