//! `tokenizer.model`, the file of SentencePiece: a protobuf message with pieces, their scores, and how texts are
//! normalized. Field numbers are those of its `sentencepiece_model.proto`.

use crate::tokenizer_json::{Normalization, PieceKind, Pieces, SPACE, sentencepiece};

/// Name of the file.
pub const FILE: &str = "tokenizer.model";

/// Kinds of models in the file.
const UNIGRAM: u64 = 1;
const BPE: u64 = 2;

/// A piece as it stands in the file.
#[derive(Debug)]
struct Piece {
    text: String,
    score: f32,
    kind: PieceKind,
}

/// What is read of a file.
#[derive(Debug)]
struct Model {
    pieces: Vec<Piece>,
    kind: u64,
    normalization: Normalization,
    /// Whether spaces become visible marks; every model of text has it.
    escape_spaces: bool,
    /// Whether the mark of a space ends a word instead of beginning it.
    suffix: bool,
}

/// The same tokenizer as `tokenizer.json`: BPE or Unigram.
///
/// # Errors
/// Damaged bytes; a model of words or characters, or one with a rule that is not read here; no pieces, or one twice.
pub fn tokenizer_json(bytes: &[u8]) -> Result<Vec<u8>, String> {
    let model = parse(bytes)?;
    if model.pieces.is_empty() {
        return Err("no pieces: the file is no SentencePiece model, or truncated".to_owned());
    }
    if !model.escape_spaces || model.suffix {
        let rule = if model.suffix { "treat_whitespace_as_suffix" } else { "escape_whitespaces: false" };
        return Err(format!("the rule {rule} is not supported"));
    }
    if let Some(piece) = model.pieces.iter().find(|piece| piece.kind == PieceKind::Unused) {
        return Err(format!("the piece {:?} is marked as unused, which is not supported", piece.text));
    }
    let texts: Vec<String> = model
        .pieces
        .iter()
        .map(|piece| match piece.kind {
            // These are looked for in the text as it is.
            PieceKind::UserDefined => piece.text.replace(SPACE, " "),
            _ => piece.text.clone(),
        })
        .collect();
    let tokens: Vec<_> =
        texts.iter().map(String::as_str).zip(model.pieces.iter().map(|piece| piece.kind)).collect();
    let scores: Vec<f32> = model.pieces.iter().map(|piece| piece.score).collect();
    let unknown = model.pieces.iter().position(|piece| piece.kind == PieceKind::Unknown);
    let pieces = match model.kind {
        UNIGRAM => Pieces::Unigram(&scores),
        BPE => Pieces::Scores(&scores),
        kind => return Err(format!("expected a model of the type 1 (Unigram) or 2 (BPE), got {kind}")),
    };
    sentencepiece(&tokens, &pieces, unknown, &model.normalization)
}

/// A value of a protobuf field.
enum Field<'a> {
    Number(u64),
    Fixed32([u8; 4]),
    Bytes(&'a [u8]),
    Other,
}

impl Field<'_> {
    fn flag(&self) -> Result<bool, String> {
        match self {
            Self::Number(number) => Ok(*number != 0),
            _ => Err("a field has another type than it should".to_owned()),
        }
    }
}

/// Fields of one message, in the order of the bytes.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn varint(&mut self) -> Result<u64, String> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let (&byte, rest) = self.0.split_first().ok_or("the file is truncated")?;
            self.0 = rest;
            value |= u64::from(byte & 127) << shift;
            if byte < 128 {
                return Ok(value);
            }
        }
        Err("the file is damaged: a number of more than 64 bits".to_owned())
    }

    fn take(&mut self, count: u64) -> Result<&'a [u8], String> {
        let count = usize::try_from(count).ok().filter(|&count| count <= self.0.len());
        let (taken, rest) = self.0.split_at(count.ok_or("the file is truncated or damaged")?);
        self.0 = rest;
        Ok(taken)
    }

    fn next(&mut self) -> Result<Option<(u64, Field<'a>)>, String> {
        if self.0.is_empty() {
            return Ok(None);
        }
        let key = self.varint()?;
        let field = match key & 7 {
            0 => Field::Number(self.varint()?),
            1 => self.take(8).map(|_| Field::Other)?,
            2 => {
                let length = self.varint()?;
                Field::Bytes(self.take(length)?)
            }
            5 => {
                let bytes = self.take(4)?;
                Field::Fixed32([bytes[0], bytes[1], bytes[2], bytes[3]])
            }
            kind => return Err(format!("the file is damaged: a field of the kind {kind}")),
        };
        Ok(Some((key >> 3, field)))
    }
}

fn parse(bytes: &[u8]) -> Result<Model, String> {
    let mut model = Model {
        pieces: Vec::new(),
        kind: UNIGRAM,
        normalization: Normalization { charsmap: Vec::new(), add_prefix: true, remove_extra_spaces: true },
        escape_spaces: true,
        suffix: false,
    };
    let mut fields = Fields(bytes);
    while let Some(field) = fields.next()? {
        match field {
            (1, Field::Bytes(bytes)) => model.pieces.push(piece(bytes)?),
            (2, Field::Bytes(bytes)) => {
                let mut fields = Fields(bytes);
                while let Some((number, field)) = fields.next()? {
                    match (number, field) {
                        (3, Field::Number(kind)) => model.kind = kind,
                        (24, field) => model.suffix = field.flag()?,
                        _ => {}
                    }
                }
            }
            (3, Field::Bytes(bytes)) => {
                let mut fields = Fields(bytes);
                while let Some((number, field)) = fields.next()? {
                    match (number, field) {
                        (2, Field::Bytes(bytes)) => model.normalization.charsmap = bytes.to_vec(),
                        (3, field) => model.normalization.add_prefix = field.flag()?,
                        (4, field) => model.normalization.remove_extra_spaces = field.flag()?,
                        (5, field) => model.escape_spaces = field.flag()?,
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    Ok(model)
}

fn piece(bytes: &[u8]) -> Result<Piece, String> {
    let mut piece = Piece { text: String::new(), score: 0.0, kind: PieceKind::Normal };
    let mut fields = Fields(bytes);
    while let Some(field) = fields.next()? {
        match field {
            (1, Field::Bytes(bytes)) => {
                let text = std::str::from_utf8(bytes).map_err(|_| "a piece that is not UTF-8".to_owned())?;
                piece.text = text.to_owned();
            }
            (2, Field::Fixed32(bytes)) => piece.score = f32::from_le_bytes(bytes),
            (3, Field::Number(kind)) => piece.kind = PieceKind::of_number(kind),
            _ => {}
        }
    }
    Ok(piece)
}
