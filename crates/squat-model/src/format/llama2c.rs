//! The layout of llama2.c: a checkpoint of version 0, and its tokenizer file.
//!
//! Checkpoint, little-endian: seven i32 (`dim, hidden_dim, n_layers, n_heads, n_kv_heads, vocab_size, seq_len`; a
//! negative vocabulary means an untied head), then f32 tensors, each kind for all layers together. Its RoPE turns
//! neighbouring elements; ours turns elements half a head apart, so rows of query and key weights are permuted here.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::io::{Read, Seek};
use std::path::{Path, PathBuf};

use squat_files::read::{self, Limit};

use crate::arch;
use crate::error::ModelError;
use crate::rope::half_rotation;
use crate::spec::{LinearKind, ModelSpec};
use crate::tensors::{Tensors, check_finite};
use crate::tokenizer_files::TokenizerFiles;

/// Usual name of the tokenizer file.
pub(crate) const TOKENIZER: &str = "tokenizer.bin";
/// Bytes of the header: seven i32.
const HEADER: usize = 28;
/// Id of the token that begins a sequence.
const BOS: u32 = 1;
/// Id of the token that ends a text.
const EOS: u32 = 2;
/// First of the 256 byte tokens; ids 0 to 2 are the unknown, begin and end tokens.
const FIRST_BYTE: u32 = 3;

/// A version-0 checkpoint, read.
#[derive(Debug)]
pub struct Llama2cModel {
    path: PathBuf,
    spec: ModelSpec,
    tensors: Tensors,
}

impl Llama2cModel {
    /// Reads an open checkpoint from its beginning.
    pub(crate) fn from_file(path: &Path, mut file: std::fs::File) -> Result<Self, ModelError> {
        let mut bytes = Vec::new();
        file.rewind().and_then(|()| file.read_to_end(&mut bytes)).map_err(ModelError::io("read", path))?;
        let (spec, tensors) = parse_checkpoint(path, &bytes)?;
        Ok(Self { path: path.to_path_buf(), spec, tensors })
    }

    /// Features and sizes.
    pub fn spec(&self) -> &ModelSpec {
        &self.spec
    }

    /// Parameters in f32.
    pub fn tensors(&self) -> &Tensors {
        &self.tensors
    }

    /// Bytes of the file.
    pub fn file_bytes(&self) -> u64 {
        file_bytes(&self.spec)
    }

    /// Names that its tokenizer can have beside it: `tok512.bin` for a vocabulary of 512, or `tokenizer.bin`.
    fn tokenizer_names(&self) -> [String; 2] {
        [format!("tok{}.bin", self.spec.vocab_size), TOKENIZER.to_owned()]
    }

    /// The tokenizer file beside the checkpoint.
    ///
    /// # Errors
    /// There is none.
    pub fn tokenizer_path(&self) -> Result<PathBuf, ModelError> {
        let names = self.tokenizer_names();
        let found = names.iter().map(|name| self.path.with_file_name(name)).find(|path| path.is_file());
        found.ok_or_else(|| ModelError::Tokenizer {
            place: self.path.display().to_string(),
            message: format!(
                "expected the tokenizer of the checkpoint beside it, as {} or {}; the model can be benchmarked but \
                 cannot generate text",
                names[0], names[1]
            ),
        })
    }

    /// The tokenizer file, to be copied to other folders; empty if there is none.
    ///
    /// # Errors
    /// A file that cannot be read.
    pub fn tokenizer_files(&self) -> Result<TokenizerFiles, ModelError> {
        match self.tokenizer_path() {
            Ok(path) => Ok(TokenizerFiles::from_llama2c(bytes_of(&path)?)),
            Err(_) => Ok(TokenizerFiles::none()),
        }
    }
}

/// Whether a file of `length` bytes begins with the header of a checkpoint of that length.
pub(crate) fn is_checkpoint(head: &[u8], length: u64) -> bool {
    let header = head.get(..HEADER).map(integers);
    header.and_then(|header| spec_of_header(&header).ok()).is_some_and(|spec| file_bytes(&spec) == length)
}

fn integers(header: &[u8]) -> Vec<i64> {
    header.chunks_exact(4).map(|b| i64::from(i32::from_le_bytes([b[0], b[1], b[2], b[3]]))).collect()
}

/// Elements of the two tables of RoPE frequencies between the last norm and the head; their size follows from the header.
fn num_frequencies(spec: &ModelSpec) -> usize {
    spec.max_position_embeddings * spec.head_dim
}

fn file_bytes(spec: &ModelSpec) -> u64 {
    (HEADER + 4 * (spec.num_parameters() + num_frequencies(spec))) as u64
}

/// Reads a version-0 checkpoint: its spec, and tensors with Hugging Face names and RoPE convention.
///
/// # Errors
/// No such file; a header that describes no model; a file of another length than the header says; NaN.
pub fn load_checkpoint(path: impl AsRef<Path>) -> Result<(ModelSpec, Tensors), ModelError> {
    let path = path.as_ref();
    parse_checkpoint(path, &bytes_of(path)?)
}

fn parse_checkpoint(path: &Path, bytes: &[u8]) -> Result<(ModelSpec, Tensors), ModelError> {
    let header = bytes.get(..HEADER).ok_or_else(|| {
        ModelError::file(path, format!("expected a header of {HEADER} bytes, got {} bytes", bytes.len()))
    })?;
    let spec = spec_of_header(&integers(header)).map_err(|error| {
        ModelError::file(path, format!("not a llama2.c checkpoint of version 0: {error}"))
    })?;
    let expected = file_bytes(&spec);
    if bytes.len() as u64 != expected {
        return Err(ModelError::file(
            path,
            format!(
                "expected {expected} bytes for the sizes in the header, got {}; copy the file again",
                bytes.len()
            ),
        ));
    }
    let mut floats = Floats { bytes: &bytes[HEADER..] };
    let mut tensors = Tensors::new();
    let layers = 0..spec.num_hidden_layers;
    let hidden = [spec.hidden_size];
    let table = [spec.vocab_size, spec.hidden_size];
    tensors.insert(ModelSpec::EMBEDDING, &table, floats.take(&table))?;
    for layer in layers.clone() {
        tensors.insert(spec.attn_norm_name(layer), &hidden, floats.take(&hidden))?;
    }
    let linears = |kinds: &[LinearKind], floats: &mut Floats<'_>, tensors: &mut Tensors| {
        for &kind in kinds {
            let shape = spec.linear_shape(kind);
            for layer in layers.clone() {
                let values = floats.take(&shape);
                let values = match kind {
                    LinearKind::Q | LinearKind::K => half_rotation(&values, spec.head_dim, shape[1]),
                    _ => values,
                };
                tensors.insert(spec.linear_name(layer, kind), &shape, values)?;
            }
        }
        Ok::<(), ModelError>(())
    };
    linears(&[LinearKind::Q, LinearKind::K, LinearKind::V, LinearKind::O], &mut floats, &mut tensors)?;
    for layer in layers.clone() {
        tensors.insert(spec.mlp_norm_name(layer), &hidden, floats.take(&hidden))?;
    }
    linears(&[LinearKind::Gate, LinearKind::Down, LinearKind::Up], &mut floats, &mut tensors)?;
    tensors.insert(ModelSpec::FINAL_NORM, &hidden, floats.take(&hidden))?;
    floats.take(&[num_frequencies(&spec)]);
    if !spec.tie_word_embeddings {
        tensors.insert(ModelSpec::HEAD, &table, floats.take(&table))?;
    }
    for param in spec.parameters() {
        let values = tensors.get(&param.name).unwrap_or_default();
        check_finite(values, &param.name, || path.display().to_string())?;
    }
    Ok((spec, tensors))
}

fn bytes_of(path: &Path) -> Result<Vec<u8>, ModelError> {
    Ok(read::whole(path, Limit::Weights)?)
}

fn spec_of_header(header: &[i64]) -> Result<ModelSpec, ModelError> {
    let size = |index: usize, name: &str| {
        usize::try_from(header[index])
            .map_err(|_| ModelError::config(name, "a positive number", header[index].to_string(), ""))
    };
    let hidden_size = size(0, "dim")?;
    let heads = size(3, "n_heads")?;
    if heads == 0 || !hidden_size.is_multiple_of(heads) {
        return Err(ModelError::config(
            "n_heads",
            format!("a divisor of dim = {hidden_size}"),
            heads.to_string(),
            "",
        ));
    }
    let vocab_size = usize::try_from(header[5].unsigned_abs()).unwrap_or(usize::MAX);
    let spec = ModelSpec {
        vocab_size,
        hidden_size,
        intermediate_size: size(1, "hidden_dim")?,
        num_hidden_layers: size(2, "n_layers")?,
        num_attention_heads: heads,
        num_key_value_heads: size(4, "n_kv_heads")?,
        head_dim: hidden_size / heads,
        max_position_embeddings: size(6, "seq_len")?,
        norm_eps: 1e-5,
        tie_word_embeddings: header[5] > 0,
        bos_token_id: Some(BOS),
        eos_token_ids: vec![EOS],
        pad_token_id: None,
        ..arch::llama::base()
    };
    spec.validate()?;
    Ok(spec)
}

/// Little-endian floats, taken from the front.
struct Floats<'a> {
    bytes: &'a [u8],
}

impl Floats<'_> {
    /// The next tensor; the caller has checked the total length.
    fn take(&mut self, shape: &[usize]) -> Vec<f32> {
        let (head, rest) = self.bytes.split_at(4 * shape.iter().product::<usize>());
        self.bytes = rest;
        head.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
    }
}

/// A llama2.c tokenizer: byte-pair merging by the score of the merged piece, single bytes where a character is not in
/// the vocabulary.
#[derive(Clone, Debug)]
pub struct Llama2cTokenizer {
    /// Bytes of each piece, and its score.
    pieces: Vec<(Vec<u8>, f32)>,
    ids: HashMap<Vec<u8>, u32>,
}

impl Llama2cTokenizer {
    /// Reads a tokenizer file of `vocab_size` pieces.
    ///
    /// Layout, little-endian: i32 longest piece, then for each piece f32 score, i32 length, its bytes.
    ///
    /// # Errors
    /// No such file, or one with another number of pieces.
    pub fn load(path: impl AsRef<Path>, vocab_size: usize) -> Result<Self, ModelError> {
        let path = path.as_ref();
        let bytes = bytes_of(path)?;
        Self::parse(&bytes, vocab_size).map_err(|message| ModelError::Tokenizer {
            place: path.display().to_string(),
            message: format!("{message}; use the tokenizer file that belongs to the checkpoint"),
        })
    }

    fn parse(bytes: &[u8], vocab_size: usize) -> Result<Self, String> {
        let mut rest = bytes;
        let mut take = |n: usize| {
            let (head, tail) = rest.split_at_checked(n)?;
            rest = tail;
            Some(head)
        };
        take(4).ok_or("the file is empty")?;
        let mut pieces = Vec::with_capacity(vocab_size.min(1 << 20));
        for id in 0..vocab_size {
            let end = || format!("expected {vocab_size} pieces, got {id}");
            let head = take(8).ok_or_else(end)?;
            let score = f32::from_le_bytes([head[0], head[1], head[2], head[3]]);
            let length = i32::from_le_bytes([head[4], head[5], head[6], head[7]]);
            let length = usize::try_from(length).map_err(|_| format!("piece {id} has length {length}"))?;
            pieces.push((take(length).ok_or_else(end)?.to_vec(), score));
        }
        if !rest.is_empty() {
            return Err(format!("expected {vocab_size} pieces, got {} bytes more", rest.len()));
        }
        // Where a piece occurs twice (a byte's own token prints as that byte), the first one wins.
        let mut ids = HashMap::with_capacity(pieces.len());
        for (id, (piece, _)) in pieces.iter().enumerate() {
            ids.entry(piece.clone()).or_insert(id as u32);
        }
        Ok(Self { pieces, ids })
    }

    /// Number of tokens.
    pub fn vocab_size(&self) -> usize {
        self.pieces.len()
    }

    /// Bytes of a piece.
    pub fn piece(&self, id: u32) -> Option<&[u8]> {
        self.pieces.get(id as usize).map(|(bytes, _)| bytes.as_slice())
    }

    /// Pieces and scores, by id.
    pub fn pieces(&self) -> &[(Vec<u8>, f32)] {
        &self.pieces
    }

    /// Id of a piece.
    pub fn id(&self, piece: &[u8]) -> Option<u32> {
        self.ids.get(piece).copied()
    }

    /// Ids of `text`, without the tokens of begin and end. A space is put in front of a text that is not empty.
    pub fn encode(&self, text: &str) -> Vec<u32> {
        let mut tokens: Vec<u32> = Vec::new();
        let spaced = if text.is_empty() { String::new() } else { format!(" {text}") };
        let mut buffer = [0u8; 4];
        for character in spaced.chars() {
            let bytes = character.encode_utf8(&mut buffer).as_bytes();
            match self.id(bytes) {
                Some(id) => tokens.push(id),
                None => tokens.extend(bytes.iter().map(|&b| u32::from(b) + FIRST_BYTE)),
            }
        }
        tokens.retain(|&id| (id as usize) < self.pieces.len());
        self.merge(tokens)
    }

    /// Merges neighbours: at each step the pair whose joined piece has the highest score, the leftmost of equals.
    /// `O(n log n)` for `n` tokens.
    fn merge(&self, mut tokens: Vec<u32>) -> Vec<u32> {
        let n = tokens.len();
        // Neighbours of the tokens that are left; `n` means none. Tokens merged into their left neighbour are dead.
        let mut next: Vec<usize> = (1..=n).collect();
        let mut previous: Vec<usize> = (0..n).map(|at| at.checked_sub(1).unwrap_or(n)).collect();
        let mut dead = vec![false; n];
        let mut joined = Vec::new();
        let mut candidate = |tokens: &[u32], left: usize, right: usize| {
            joined.clear();
            joined.extend_from_slice(&self.pieces[tokens[left] as usize].0);
            joined.extend_from_slice(&self.pieces[tokens[right] as usize].0);
            let id = self.id(&joined)?;
            Some((ordered(self.pieces[id as usize].1), Reverse(left), tokens[left], tokens[right], id))
        };
        let mut heap: BinaryHeap<_> =
            (1..n).filter_map(|right| candidate(&tokens, right - 1, right)).collect();
        while let Some((_, Reverse(left), left_id, right_id, id)) = heap.pop() {
            let right = next[left];
            // Entries of pairs that have changed since are skipped.
            if dead[left] || right == n || (tokens[left], tokens[right]) != (left_id, right_id) {
                continue;
            }
            tokens[left] = id;
            dead[right] = true;
            next[left] = next[right];
            if next[left] != n {
                previous[next[left]] = left;
                heap.extend(candidate(&tokens, left, next[left]));
            }
            if previous[left] != n {
                heap.extend(candidate(&tokens, previous[left], left));
            }
        }
        let mut dead = dead.into_iter();
        tokens.retain(|_| dead.next() != Some(true));
        tokens
    }

    /// Bytes of a token in a text: those of its piece, or the byte that a piece such as `<0x0A>` stands for; nothing
    /// for the begin, end and unknown tokens.
    pub fn token_bytes(&self, id: u32) -> Vec<u8> {
        match self.piece(id) {
            Some(piece) if id >= FIRST_BYTE => match byte_piece(piece) {
                Some(byte) => vec![byte],
                None => piece.to_vec(),
            },
            _ => Vec::new(),
        }
    }

    /// Text of ids; begin and end are left out, and so is the space in front of the first piece.
    pub fn decode(&self, ids: &[u32]) -> String {
        let bytes: Vec<u8> = ids.iter().flat_map(|&id| self.token_bytes(id)).collect();
        let text = String::from_utf8_lossy(&bytes);
        text.strip_prefix(' ').unwrap_or(&text).to_owned()
    }
}

/// A score as an integer of the same order.
fn ordered(score: f32) -> i32 {
    // Adding 0 turns -0 into 0.
    let bits = (score + 0.0).to_bits() as i32;
    if bits < 0 { bits ^ i32::MAX } else { bits }
}

/// The byte of a piece written `<0x..>`.
fn byte_piece(piece: &[u8]) -> Option<u8> {
    let digits = piece.strip_prefix(b"<0x")?.strip_suffix(b">")?;
    if digits.len() != 2 {
        return None;
    }
    u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn tokenizer(pieces: &[(&str, f32)]) -> Vec<u8> {
        let mut bytes = 9i32.to_le_bytes().to_vec();
        for (piece, score) in pieces {
            bytes.extend(score.to_le_bytes());
            bytes.extend((piece.len() as i32).to_le_bytes());
            bytes.extend(piece.as_bytes());
        }
        bytes
    }

    #[test]
    fn merging_follows_scores_and_falls_back_to_bytes() {
        let bytes_pieces: Vec<String> = (0..256).map(|b| format!("<0x{b:02X}>")).collect();
        let mut pieces = vec![("<unk>", 0.0), ("<s>", 0.0), ("</s>", 0.0)];
        pieces.extend(bytes_pieces.iter().map(|p| (p.as_str(), 0.0)));
        let base = pieces.len() as u32;
        pieces.extend([(" ", -9.0), ("a", -8.0), ("b", -7.0), ("ab", -2.0), (" a", -1.0), ("bb", -3.0)]);
        let file = tokenizer(&pieces);
        let t = Llama2cTokenizer::parse(&file, pieces.len()).unwrap();
        // " a" is better than "ab", then "bb" joins what is left.
        assert_eq!(t.encode("abb"), [base + 4, base + 5]);
        assert_eq!(t.decode(&t.encode("abb")), "abb");
        assert_eq!(t.encode("é"), [base, 3 + 0xC3, 3 + 0xA9]);
        assert_eq!(t.decode(&[1, base, 3 + 0xC3, 3 + 0xA9, 2]), "é");
        assert!(t.encode("").is_empty());
        assert!(Llama2cTokenizer::parse(&file, pieces.len() + 1).unwrap_err().contains("got 265"));
        assert!(Llama2cTokenizer::parse(&file, pieces.len() - 1).unwrap_err().contains("more"));
    }

    /// The definition: the whole list is searched for the best pair at each step.
    fn merge_by_definition(tokenizer: &Llama2cTokenizer, mut tokens: Vec<u32>) -> Vec<u32> {
        loop {
            let mut best: Option<(f32, usize, u32)> = None;
            for at in 0..tokens.len().saturating_sub(1) {
                let [a, b] = [at, at + 1].map(|at| tokenizer.piece(tokens[at]).unwrap());
                if let Some(id) = tokenizer.id(&[a, b].concat()) {
                    let score = tokenizer.pieces()[id as usize].1;
                    if best.is_none_or(|(highest, _, _)| score > highest) {
                        best = Some((score, at, id));
                    }
                }
            }
            let Some((_, at, id)) = best else { return tokens };
            tokens[at] = id;
            tokens.remove(at + 1);
        }
    }

    proptest! {
        #[test]
        fn merges_are_those_of_the_definition(
            text in "[ab ]{0,60}",
            merges in prop::collection::vec(("[ab ]{2,4}", -3i8..3), 0..20),
        ) {
            let mut pieces = vec![("<unk>", 0.0), ("a", 0.0), ("b", 0.0), (" ", -0.0)];
            pieces.extend(merges.iter().map(|(piece, score)| (piece.as_str(), f32::from(*score) / 2.0)));
            let t = Llama2cTokenizer::parse(&tokenizer(&pieces), pieces.len()).unwrap();
            let singles: Vec<u32> = text.bytes().map(|byte| t.id(&[byte]).unwrap()).collect();
            prop_assert_eq!(t.merge(singles.clone()), merge_by_definition(&t, singles));
        }
    }

    #[test]
    fn long_texts_are_tokenized_quickly() {
        let pieces =
            [("<unk>", 0.0), ("a", 0.0), ("b", 0.0), (" ", 0.0), ("ab", 1.0), ("abab", 2.0), (" ab", 3.0)];
        let t = Llama2cTokenizer::parse(&tokenizer(&pieces), pieces.len()).unwrap();
        let text = "abab ab b a".repeat(50_000);
        let ids = t.encode(&text);
        let bytes: Vec<u8> = ids.iter().flat_map(|&id| t.piece(id).unwrap()).copied().collect();
        assert!(bytes == format!(" {text}").as_bytes() && ids.len() < text.len() * 2 / 3, "{}", ids.len());
    }
}
