//! Perplexity of running text, per token, per word and per byte.
//!
//! A text of `N` tokens is cut into `ceil(N / (w - 1))` windows, where `w` is the window's length with BOS, at most
//! the model's `max_length`. Each window is BOS followed by the next `w - 1` tokens (the last one by what is left);
//! windows do not overlap and never cross from one file to the next. BOS is given and not scored, every other token
//! is scored exactly once, so the sums cover the whole text: `perplexity = exp(sum / tokens)`, where `sum` is the
//! negative log-likelihood in nats. Tokens at the start of a window see little context; that is the price of equal
//! cost for every model, and figures are comparable only at the same window.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::error::EvalError;
use crate::file::read_text;
use crate::model::{Form, LanguageModel, Tokenize};
use crate::scoring::{ScoringOptions, sum_log_likelihoods};

/// Text that is encoded at once.
const BLOCK_BYTES: usize = 16 << 10;

/// How text becomes tokens.
#[derive(Debug, Clone, Copy)]
pub struct TextOptions {
    /// Whether line ends are part of the text. Where they are not, their bytes are not counted either.
    pub keep_line_ends: bool,
    /// Stop after the block of lines in which a file reaches so many tokens.
    pub max_tokens: Option<usize>,
}

impl Default for TextOptions {
    fn default() -> Self {
        Self { keep_line_ends: true, max_tokens: None }
    }
}

/// A text as token ids, with what perplexity is divided by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenizedText {
    /// What to call it in results and messages.
    pub name: String,
    /// Ids without BOS.
    pub tokens: Vec<u32>,
    /// UTF-8 bytes of the text that `tokens` stand for.
    pub n_bytes: usize,
    /// Words of it, separated by white space.
    pub n_words: usize,
}

impl TokenizedText {
    /// Tokenizes `text` in blocks of whole lines, so that memory stays small.
    ///
    /// # Errors
    /// [`EvalError::Tokenize`] with the line.
    pub fn new(
        name: &str,
        text: &str,
        tokenizer: &dyn Tokenize,
        options: TextOptions,
    ) -> Result<Self, EvalError> {
        let mut this = Self { name: name.to_owned(), tokens: Vec::new(), n_bytes: 0, n_words: 0 };
        let lines: Vec<&str> = text.split_inclusive('\n').collect();
        let mut first = 0;
        while first < lines.len() && options.max_tokens.is_none_or(|max| this.tokens.len() < max) {
            // Lines without their ends are separate texts. With them they are encoded in blocks: a tokenizer may treat
            // the end of a text like the beginning of another word.
            let mut last = first + 1;
            let mut block = lines[first].to_owned();
            if options.keep_line_ends {
                while last < lines.len() && block.len() < BLOCK_BYTES {
                    block.push_str(lines[last]);
                    last += 1;
                }
            } else {
                block.truncate(block.trim_end_matches(['\n', '\r']).len());
            }
            let ids = tokenizer.encode(&block).map_err(|error| EvalError::Tokenize {
                location: format!("{name}, line {}", first + 1),
                message: error.to_string(),
            })?;
            this.tokens.extend(ids);
            this.n_bytes += block.len();
            this.n_words += block.split_whitespace().count();
            first = last;
        }
        Ok(this)
    }

    /// Reads and tokenizes `path`: a plain or gzipped UTF-8 file, or a folder, of which every `.txt`, `.raw` and
    /// `.gz` file is one text, sorted by name (archives and folders inside are left alone).
    ///
    /// # Errors
    /// Unreadable files, no file, text that is no UTF-8, and the tokenizer's own.
    pub fn read(path: &Path, tokenizer: &dyn Tokenize, options: TextOptions) -> Result<Vec<Self>, EvalError> {
        text_files(path)?
            .iter()
            .map(|file| {
                let name = file.file_name().unwrap_or(file.as_os_str()).to_string_lossy();
                Self::new(&name, &read_text(file)?, tokenizer, options)
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

/// Perplexity of one of the texts.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TextPerplexity {
    /// `exp` of the mean negative log-likelihood of a token.
    pub perplexity: f64,
    /// Negative log-likelihood in bits, divided by the bytes of the text.
    pub bits_per_byte: f64,
    /// Number of scored tokens.
    pub n_tokens: usize,
}

/// Perplexity of all texts together.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PerplexityResult {
    /// Always "perplexity".
    pub task: String,
    /// Name of the model.
    pub model: String,
    /// In which arithmetic it ran.
    pub form: Form,
    /// `exp` of the mean negative log-likelihood of a token. It depends on the tokenizer.
    pub perplexity: f64,
    /// Standard error of `perplexity`, over the windows; none where there is one window.
    pub standard_error: Option<f64>,
    /// Mean negative log-likelihood of a token, in nats.
    pub nll_per_token: f64,
    /// `exp` of the negative log-likelihood divided by the number of words; none without words, or beyond f64.
    pub word_perplexity: Option<f64>,
    /// Negative log-likelihood in bits, divided by the bytes of the text. It does not depend on the tokenizer.
    pub bits_per_byte: f64,
    /// Standard error of `bits_per_byte`, with the number of tokens per byte taken as given.
    pub bits_per_byte_standard_error: Option<f64>,
    /// Number of scored tokens.
    pub n_tokens: usize,
    /// Number of words, separated by white space.
    pub n_words: usize,
    /// Number of UTF-8 bytes.
    pub n_bytes: usize,
    /// Number of windows.
    pub n_windows: usize,
    /// Longest window, BOS included.
    pub window: usize,
    /// By text.
    pub texts: BTreeMap<String, TextPerplexity>,
}

/// Perplexity of `texts`, in windows as the module's documentation says.
///
/// `window` is the length of a window with BOS, by default the model's `max_length`.
///
/// # Errors
/// A window below 2 or above `max_length`, texts without a token or of the same name, and those of
/// [`sum_log_likelihoods`].
pub fn perplexity(
    model: &mut dyn LanguageModel,
    bos_id: u32,
    texts: &[TokenizedText],
    window: Option<usize>,
    options: &mut ScoringOptions<'_>,
) -> Result<PerplexityResult, EvalError> {
    let window = window.unwrap_or(model.max_length());
    if !(2..=model.max_length()).contains(&window) {
        return Err(EvalError::Option {
            option: "window",
            got: window.to_string(),
            expected: format!("2 to {}, the longest sequence of the model", model.max_length()),
        });
    }
    let mut names: Vec<&str> = texts.iter().map(|text| text.name.as_str()).collect();
    names.sort_unstable();
    if let Some(twice) = names.windows(2).find(|pair| pair[0] == pair[1]) {
        return Err(EvalError::Option {
            option: "texts",
            got: format!("{} twice", twice[0]),
            expected: "each name once".to_owned(),
        });
    }

    // Index of the text, and the number of the window in it.
    let mut origin = Vec::new();
    let mut sequences = Vec::new();
    for (i, text) in texts.iter().enumerate() {
        if text.tokens.is_empty() {
            return Err(EvalError::EmptyText(text.name.clone()));
        }
        for (number, tokens) in text.tokens.chunks(window - 1).enumerate() {
            origin.push((i, number));
            sequences.push(std::iter::once(bos_id).chain(tokens.iter().copied()).collect::<Vec<u32>>());
        }
    }
    if sequences.is_empty() {
        return Err(EvalError::EmptyText("the list of texts".to_owned()));
    }
    let location = |i: usize| format!("{}, window {}", texts[origin[i].0].name, origin[i].1 + 1);
    let nats: Vec<f64> =
        sum_log_likelihoods(model, &sequences, options, &location)?.into_iter().map(|sum| -sum).collect();

    let mut by_text = vec![0.0; texts.len()];
    for ((text, _), nats) in origin.iter().zip(&nats) {
        by_text[*text] += nats;
    }
    let n_tokens: usize = texts.iter().map(|text| text.tokens.len()).sum();
    let n_words: usize = texts.iter().map(|text| text.n_words).sum();
    let n_bytes: usize = texts.iter().map(|text| text.n_bytes).sum();
    let total: f64 = by_text.iter().sum();
    let mean = total / n_tokens as f64;
    let error = standard_error_of_ratio(&nats, sequences.iter().map(|sequence| sequence.len() - 1), mean);
    let word_perplexity = (total / n_words as f64).exp();
    let bits_per_nat = std::f64::consts::LOG2_E;

    Ok(PerplexityResult {
        task: "perplexity".to_owned(),
        model: model.name(),
        form: model.form(),
        perplexity: mean.exp(),
        standard_error: error.map(|error| mean.exp() * error),
        nll_per_token: mean,
        word_perplexity: Some(word_perplexity).filter(|value| n_words > 0 && value.is_finite()),
        bits_per_byte: total * bits_per_nat / n_bytes as f64,
        bits_per_byte_standard_error: error
            .map(|error| error * bits_per_nat * n_tokens as f64 / n_bytes as f64),
        n_tokens,
        n_words,
        n_bytes,
        n_windows: sequences.len(),
        window,
        texts: texts
            .iter()
            .zip(&by_text)
            .map(|(text, nats)| {
                let (n_tokens, n_bytes) = (text.tokens.len(), text.n_bytes as f64);
                let perplexity = (nats / n_tokens as f64).exp();
                (
                    text.name.clone(),
                    TextPerplexity { perplexity, bits_per_byte: nats * bits_per_nat / n_bytes, n_tokens },
                )
            })
            .collect(),
    })
}

/// Standard error of `ratio = sum(s_i) / sum(n_i)` over independent windows, by linearisation:
/// `sqrt(W / (W - 1) * sum((s_i - ratio * n_i)^2)) / sum(n_i)`.
///
/// The delta method then gives `exp(ratio) * error` for the perplexity.
fn standard_error_of_ratio(sums: &[f64], counts: impl Iterator<Item = usize>, ratio: f64) -> Option<f64> {
    if sums.len() < 2 {
        return None;
    }
    let (mut squares, mut total) = (0.0, 0.0);
    for (sum, count) in sums.iter().zip(counts) {
        squares += (sum - ratio * count as f64).powi(2);
        total += count as f64;
    }
    let windows = sums.len() as f64;
    Some((windows / (windows - 1.0) * squares).sqrt() / total)
}
