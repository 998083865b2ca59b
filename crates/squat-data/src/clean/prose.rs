//! Books and encyclopaedias.

use super::Domain;
use super::characters::{Group, groups, markup, tidy};

/// A sentence with one of these is about the edition, not part of the book. Case matters: `produced by` occurs in
/// prose, `Produced by` is a credit.
const BOOK_NOTICES: &[&str] = &[
    "Project Gutenberg",
    "PROJECT GUTENBERG",
    "Gutenberg-tm",
    "gutenberg.org",
    "pgdp.net",
    "Distributed Proofread",
    "Transcriber's Note",
    "TRANSCRIBER'S NOTE",
    "Transcriber Note",
    "Produced by ",
    "-text prepared",
    "Etext prepared",
    "Internet Archive",
    "archive.org",
    "inaccuracies were silently",
    "spelling has been preserved",
    "compound words have been preserved",
    "been retained as printed",
    "http:",
    "www.",
];

/// A sentence with one of these belongs to a list of references or links.
const WIKI_NOTICES: &[&str] = &[
    "ISBN",
    "ISSN",
    "doi:",
    "OCLC",
    "Retrieved ",
    "Archived from",
    "Wayback Machine",
    "External links",
    "Further reading",
    "See also",
    "References ",
    "Cite journal",
    "Project Gutenberg",
    "http:",
    "https:",
    "www.",
    "Wikimedia Commons",
];

/// The header before a Project Gutenberg book.
const BOOK_HEADER: &[&str] =
    &["title:", "author:", "release date:", "language:", "character set encoding:", "posting date:"];

pub(super) fn clean(line: &str, domain: Domain) -> String {
    let text = groups(line, '{', '}', |_| Group::Remove);
    let text = groups(&text, '[', ']', bracket);
    let text = markup(&text);
    let text: String = match domain {
        Domain::Gutenberg => {
            let lower = text.trim_start().to_lowercase();
            if BOOK_HEADER.iter().any(|h| lower.starts_with(h)) {
                return String::new();
            }
            // `_italics_`, `=bold=`, rows of stars between scenes.
            text.chars().filter(|c| !matches!(c, '_' | '=' | '*' | '~' | '|' | '#')).collect()
        }
        _ => {
            // Three cells make a table row; a backslash remains of a formula whose braces were cut by a line break.
            if text.matches('|').count() >= 3 || text.contains('\\') {
                return String::new();
            }
            text.replace("= =", " ").chars().filter(|c| !matches!(c, '_' | '|')).collect()
        }
    };
    let notices = match domain {
        Domain::Gutenberg => BOOK_NOTICES,
        _ => WIKI_NOTICES,
    };
    let text = tidy(&without_notices(&text, notices));
    match readable(&text) {
        true => text,
        false => String::new(),
    }
}

/// Square brackets: notes, pictures and edit links are removed; the words of an editor's insertion are kept.
fn bracket(inside: &str) -> Group {
    let inside = inside.trim();
    let lower = inside.to_lowercase();
    let note = inside.len() <= 3
        || inside.chars().all(|c| c.is_ascii_digit() || matches!(c, ',' | '-' | ' '))
        || [
            "illustration",
            "footnote",
            "transcriber",
            "sidenote",
            "picture",
            "frontispiece",
            "edit",
            "citation",
        ]
        .iter()
        .any(|start| lower.starts_with(start));
    match note {
        true => Group::Remove,
        false => Group::Unwrap,
    }
}

/// Drops the sentences that contain one of `notices`, and those of a list of errata.
fn without_notices(text: &str, notices: &[&str]) -> String {
    let hit =
        |s: &str| notices.iter().any(|n| s.contains(n)) || (s.contains("changed to") && s.contains("age "));
    match hit(text) {
        true => sentences(text).filter(|s| !hit(s)).collect(),
        false => text.to_owned(),
    }
}

/// Sentences with their trailing space. A sentence ends with `.`, `!` or `?`, optionally a quote, then white space.
fn sentences(text: &str) -> impl Iterator<Item = &str> {
    let mut rest = text;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let mut ended = false;
        let mut cut = rest.len();
        for (at, c) in rest.char_indices() {
            match c {
                '.' | '!' | '?' => ended = true,
                '"' | '\'' | ')' | ']' if ended => {}
                c if c.is_whitespace() && ended => {
                    cut = at + c.len_utf8();
                    break;
                }
                _ => ended = false,
            }
        }
        let (sentence, after) = rest.split_at(cut);
        rest = after;
        Some(sentence)
    })
}

/// Whether a text is mostly words of Latin letters, unlike formulas, tables of numbers and foreign scripts.
fn readable(text: &str) -> bool {
    let (mut visible, mut letters, mut foreign) = (0usize, 0usize, 0usize);
    for c in text.chars().filter(|c| !c.is_whitespace() && !"'\",.;:!?-".contains(*c)) {
        visible += 1;
        if c.is_alphabetic() {
            letters += 1;
            // Latin with all its extensions ends at U+024F; letters of other scripts come after it.
            foreign += usize::from(c > '\u{24F}');
        }
    }
    let words = text.split_whitespace().count();
    let single =
        text.split_whitespace().filter(|w| w.chars().count() == 1 && !matches!(*w, "a" | "A" | "I")).count();
    letters * 100 >= visible * 75
        && foreign * 100 <= letters * 15
        && (words < 8 || single * 100 <= words * 25)
}
