//! Cleaning rules for the BabyLM corpora, one small set per domain.
//!
//! They remove what is not part of the text: speaker codes and transcription marks, wiki markup and reference lists,
//! Project Gutenberg notices, page numbers, replacement characters. Wording, spelling and case are kept. Lines are
//! processed one at a time, so memory does not grow with the corpus.

mod characters;
mod domain;
mod headings;
mod prose;
mod speech;

pub use domain::{Domain, Layout};

use serde::{Deserialize, Serialize};

/// To be raised whenever a change of the rules changes their output: it is part of every shard's identity.
pub const CLEANING_VERSION: u32 = 1;

/// Options of cleaning.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CleanOptions {
    /// Rules for every file; `None` chooses them by the name of each file.
    pub domain: Option<Domain>,
    /// Keep the speaker, as `CHI: ` or `A: ` at the start of a turn.
    pub keep_speakers: bool,
}

/// Output of a [`Cleaner`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A line of clean text: no control characters, single spaces, at least one letter or digit.
    Line(String),
    /// End of the document that the lines so far belong to. Never twice in a row, never first.
    DocumentEnd,
}

/// Cleans one file, line by line.
#[derive(Clone, Debug)]
pub struct Cleaner {
    domain: Domain,
    keep_speakers: bool,
    /// Whether lines were written since the last end of a document.
    open: bool,
    /// Whether the position is inside the licence that follows a Project Gutenberg book.
    in_licence: bool,
}

impl Cleaner {
    /// A cleaner at the start of a file.
    pub fn new(domain: Domain, options: &CleanOptions) -> Self {
        Self { domain, keep_speakers: options.keep_speakers, open: false, in_licence: false }
    }

    /// Cleans one raw line (without its line break) and appends the result to `out`.
    pub fn push(&mut self, raw: &str, out: &mut Vec<Event>) {
        match self.domain {
            Domain::Raw => self.line(collapse(raw), out),
            Domain::Generic | Domain::Documents => {
                if raw.trim().is_empty() {
                    return self.end_document(out);
                }
                let text = characters::normalise(raw, false);
                if headings::is_heading(&text) {
                    return self.end_document(out);
                }
                self.line(collapse(&text), out);
            }
            Domain::Subtitles if speech::is_cue(raw) => {}
            Domain::Gutenberg => {
                if let Some(starts) = headings::gutenberg_marker(raw) {
                    self.in_licence = !starts;
                    return self.end_document(out);
                }
                self.marked(raw, out);
            }
            _ => self.marked(raw, out),
        }
    }

    /// Ends the file, or a record that is a document of its own.
    pub fn end_document(&mut self, out: &mut Vec<Event>) {
        if std::mem::take(&mut self.open) {
            out.push(Event::DocumentEnd);
        }
    }

    /// Text with headings anywhere in its lines and the markup of its domain.
    fn marked(&mut self, raw: &str, out: &mut Vec<Event>) {
        let text = characters::normalise(raw, true);
        for piece in headings::split(&text) {
            match piece {
                headings::Piece::DocumentEnd => {
                    self.in_licence = false;
                    self.end_document(out);
                }
                headings::Piece::Text(text) if !self.in_licence => {
                    let clean = match self.domain {
                        Domain::Childes | Domain::Switchboard | Domain::Subtitles => {
                            speech::clean(text, self.domain, self.keep_speakers)
                        }
                        _ => prose::clean(text, self.domain),
                    };
                    self.line(clean, out);
                }
                headings::Piece::Text(_) => {}
            }
        }
    }

    fn line(&mut self, text: String, out: &mut Vec<Event>) {
        if !text.chars().any(char::is_alphanumeric) {
            return;
        }
        out.push(Event::Line(text));
        self.open = true;
        if self.domain.layout() == Layout::Documents {
            self.end_document(out);
        }
    }
}

/// Single spaces, none at the ends.
fn collapse(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for word in text.split_whitespace() {
        if !out.is_empty() {
            out.push(' ');
        }
        out.push_str(word);
    }
    out
}

#[cfg(test)]
mod tests;
