//! Headings, which separate documents.

/// A part of a line between headings.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Piece<'a> {
    Text(&'a str),
    DocumentEnd,
}

/// Longest title, in words, that an unpaired mark at the edge of a line is taken to belong to.
const TITLE_WORDS: usize = 12;

/// The whole line is a heading: ` = Title = `, `== Title ==`, `= = = Title = = =`.
pub(super) fn is_heading(line: &str) -> bool {
    let line = line.trim();
    line.len() > 2 && line.starts_with('=') && line.ends_with('=')
}

/// Splits a line at headings of the kind `= = = Title = = =` (article or book) and `== References ==`, which end
/// a document, and at `== Section ==`, which does not. Titles are dropped. These texts have lost line breaks, so a
/// heading may occur anywhere in a line, and half of one at its edges.
pub(super) fn split(line: &str) -> Vec<Piece<'_>> {
    let mut pieces = Vec::new();
    if !line.contains("==") && !line.contains("= =") {
        push_text(line, &mut pieces);
        return pieces;
    }
    let mut parts: Vec<&str> = line.split("= = =").collect();
    if parts.len().is_multiple_of(2) {
        // An odd number of marks: a title started on the previous line or continues on the next.
        let words = |s: &str| s.split_whitespace().count();
        if words(parts[0]) <= TITLE_WORDS {
            parts.insert(0, "");
        } else if words(parts[parts.len() - 1]) > TITLE_WORDS {
            parts.insert(parts.len() - 1, "");
        }
    }
    for (i, part) in parts.iter().enumerate() {
        match i % 2 {
            1 => pieces.push(Piece::DocumentEnd),
            _ => split_sections(part, &mut pieces),
        }
    }
    pieces
}

/// The same for `== Title ==`.
fn split_sections<'a>(text: &'a str, pieces: &mut Vec<Piece<'a>>) {
    let mut rest = text;
    while let Some(start) = rest.find("==") {
        let title = rest[start..].trim_start_matches('=');
        let Some(end) = title.find("==") else { break };
        let name = title[..end].trim();
        if name.split_whitespace().count() > TITLE_WORDS {
            break;
        }
        push_text(&rest[..start], pieces);
        if matches!(
            name.to_lowercase().as_str(),
            "references" | "external links" | "notes" | "further reading" | "see also" | "other websites"
        ) {
            pieces.push(Piece::DocumentEnd);
        }
        rest = title[end..].trim_start_matches('=');
    }
    push_text(rest, pieces);
}

fn push_text<'a>(text: &'a str, pieces: &mut Vec<Piece<'a>>) {
    // A mark that a line break has cut in two.
    let text = text.trim_matches(|c: char| c == '=' || c.is_whitespace());
    if !text.is_empty() {
        pieces.push(Piece::Text(text));
    }
}

/// `*** START OF ...` (true) and `*** END OF ...` (false) around a book of Project Gutenberg.
pub(super) fn gutenberg_marker(line: &str) -> Option<bool> {
    let line = line.trim_start().strip_prefix("***")?.trim_start();
    let starts = line.starts_with("START OF");
    (starts || line.starts_with("END OF")).then_some(starts)
}
