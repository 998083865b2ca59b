//! The tokenizer in the metadata of a GGUF file, as the files that Hugging Face programs read.

use super::{GgufFile, Value, splitting};
use crate::error::ModelError;
use crate::tokenizer_files::TokenizerFiles;
use crate::tokenizer_json::{self, Normalization, PieceKind, Pieces, Token};

/// `tokenizer.json`, and the chat template if there is one; empty if the metadata states that the file has no tokenizer.
///
/// The kinds `gpt2` (byte-level BPE; the splittings of `splitting.rs`), `llama` (SentencePiece's BPE by scores, Llama 2 to
/// Gemma 3) and `gemma4` (the same with merges) are read.
///
/// # Errors
/// Metadata without a tokenizer, one of another kind, or one that is damaged.
pub fn files(file: &GgufFile) -> Result<TokenizerFiles, ModelError> {
    // Files for measuring speed say that they have none.
    if file.metadata("tokenizer.ggml.model").and_then(Value::as_str) == Some("none") {
        return Ok(TokenizerFiles::none());
    }
    let json = tokenizer_json(file).map_err(|message| ModelError::Tokenizer {
        place: file.path().display().to_string(),
        message: format!("{message}; pack the model with a tokenizer.json beside it, or convert it again"),
    })?;
    let files = TokenizerFiles::from_tokenizer_json(json);
    let template = file.metadata("tokenizer.chat_template").and_then(Value::as_str);
    Ok(match template {
        Some(template) => files.with_chat_template(template),
        None => files,
    })
}

fn tokenizer_json(file: &GgufFile) -> Result<Vec<u8>, String> {
    let get = |name: &str| file.metadata(&format!("tokenizer.ggml.{name}"));
    let text = |name: &str| get(name).and_then(Value::as_str);
    let array = |name: &str| {
        let list = get(name).and_then(Value::as_array);
        list.ok_or_else(|| format!("tokenizer.ggml.{name} is missing"))
    };
    let kind = text("model");
    if !matches!(kind, Some("gpt2" | "llama" | "gemma4")) {
        let got = kind.map_or("none".to_owned(), |kind| format!("\"{kind}\""));
        return Err(format!(
            "expected a tokenizer of the kind \"gpt2\" (byte-level BPE), \"llama\" (SentencePiece) or \"gemma4\", got {got}"
        ));
    }
    let kinds = array("token_type").unwrap_or_default();
    let kind_of =
        |id: usize| kinds.get(id).and_then(Value::as_u64).map_or(PieceKind::Normal, PieceKind::of_number);
    let texts = array("tokens")?.iter().map(Value::as_str).collect::<Option<Vec<&str>>>();
    let texts = texts.ok_or("tokenizer.ggml.tokens: expected texts")?;
    let tokens: Vec<Token<'_>> =
        texts.into_iter().enumerate().map(|(id, text)| (text, kind_of(id))).collect();
    let merges = || {
        let merges: Option<Vec<_>> = file_merges(file)?.iter().map(pair).collect();
        merges.ok_or("tokenizer.ggml.merges: expected pairs of tokens".to_owned())
    };
    if kind == Some("gpt2") {
        let (steps, ignore_merges) = splitting::byte_level(text("pre").unwrap_or("default"))?;
        return tokenizer_json::byte_level(steps, &tokens, &merges()?, ignore_merges);
    }
    let flag = |name: &str| get(name).and_then(Value::as_bool);
    let normalization = Normalization {
        charsmap: Vec::new(),
        add_prefix: flag("add_space_prefix").unwrap_or(kind == Some("llama")),
        remove_extra_spaces: flag("remove_extra_whitespaces").unwrap_or(false),
    };
    let unknown =
        get("unknown_token_id").and_then(Value::as_u64).map(|id| usize::try_from(id).unwrap_or(usize::MAX));
    let unknown = unknown.or_else(|| tokens.iter().position(|(_, kind)| *kind == PieceKind::Unknown));
    if kind == Some("gemma4") {
        return tokenizer_json::sentencepiece(&tokens, &Pieces::Merges(&merges()?), unknown, &normalization);
    }
    let scores = array("scores")?.iter().map(|score| score.as_f64().map(|score| score as f32));
    let scores = scores.collect::<Option<Vec<f32>>>().ok_or("tokenizer.ggml.scores: expected numbers")?;
    tokenizer_json::sentencepiece(&tokens, &Pieces::Scores(&scores), unknown, &normalization)
}

fn file_merges(file: &GgufFile) -> Result<&[Value], String> {
    let merges = file.metadata("tokenizer.ggml.merges").and_then(Value::as_array);
    merges.ok_or_else(|| "tokenizer.ggml.merges is missing".to_owned())
}

/// The two parts of a merge. A space that begins it belongs to its left part.
fn pair(merge: &Value) -> Option<(&str, &str)> {
    let text = merge.as_str()?;
    let at = 1 + text.as_bytes().iter().skip(1).position(|&byte| byte == b' ')?;
    Some((&text[..at], &text[at + 1..]))
}
