//! All output: data on stdout, everything else on stderr.
//!
//! Names from files are foreign text: control characters are escaped and long words cut, so that no file can move the
//! cursor or forge a line. Only generated text goes out as it is, and only where nobody looks at it on a terminal.

use indicatif::{ProgressBar, ProgressDrawTarget};
use std::io::{ErrorKind, IsTerminal, Write};

/// Longest word of a message, in characters.
const LONGEST_WORD: usize = 400;
/// Longest message, in characters.
const LONGEST_MESSAGE: usize = 6000;

/// Exit code of a command that failed.
pub const FAILED: u8 = 1;

/// Prints data that people read.
pub fn data(text: &str) {
    raw(&visible(text));
}

/// Prints a line of data.
pub fn line(text: &str) {
    data(&format!("{text}\n"));
}

/// Prints generated text: to the byte in a file or pipe, with its control characters escaped at a terminal.
pub fn generated(text: &str) {
    match std::io::stdout().is_terminal() {
        true => data(text),
        false => raw(text),
    }
}

/// Prints a JSON value, indented at a terminal and on one line otherwise.
pub fn json(value: &serde_json::Value) {
    let text = match std::io::stdout().is_terminal() {
        true => serde_json::to_string_pretty(value),
        false => serde_json::to_string(value),
    };
    // JSON escapes some control characters of its own; the others can only stand in strings.
    let text: String = text.unwrap_or_default().chars().fold(String::new(), |mut text, c| {
        match c {
            c if is_control(c) && c != '\n' => text.push_str(&format!("\\u{:04x}", u32::from(c))),
            c => text.push(c),
        }
        text
    });
    raw(&(text + "\n"));
}

/// Prints bytes of data as they are. A reader that went away (`squat ... | head`) is no error; any other failure ends the
/// program with a message.
pub fn raw(text: &str) {
    let mut out = std::io::stdout().lock();
    if let Err(error) = out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        drop(out);
        not_written(&error);
    }
}

/// Ends the program after a write error on stdout.
pub fn not_written(error: &std::io::Error) -> ! {
    if error.kind() == ErrorKind::BrokenPipe {
        std::process::exit(0);
    }
    note(&format!(
        "error: cannot write the result to standard output: {error}; make room, or write it elsewhere"
    ));
    std::process::exit(i32::from(FAILED));
}

/// Prints a message on stderr.
pub fn note(text: &str) {
    let _ = writeln!(std::io::stderr(), "{}", message(text));
}

/// A message as it may appear on a terminal.
pub fn message(text: &str) -> String {
    let mut out = String::new();
    let (mut word, mut cut) = (0, 0);
    for c in visible(text).chars() {
        word = if c.is_whitespace() { 0 } else { word + 1 };
        if word <= LONGEST_WORD {
            if cut > 0 {
                out.push_str(&format!("...[{cut} more]"));
                cut = 0;
            }
            out.push(c);
        } else {
            cut += 1;
        }
    }
    if cut > 0 {
        out.push_str(&format!("...[{cut} more]"));
    }
    let length = out.chars().count();
    if length <= LONGEST_MESSAGE {
        return out;
    }
    // What to do stands at the end.
    let half = LONGEST_MESSAGE / 2;
    let (start, end): (String, String) =
        (out.chars().take(half).collect(), out.chars().skip(length - half).collect());
    format!("{start}...[{} more]...{end}", length - 2 * half)
}

/// Prints an error and its causes, each once.
pub fn error(error: &anyhow::Error) {
    let mut text = String::new();
    for cause in error.chain().map(ToString::to_string) {
        if text.is_empty() {
            text = cause;
        } else if !text.contains(&cause) {
            text = format!("{text}: {cause}");
        }
    }
    let full = |error: &std::io::Error| {
        use std::io::ErrorKind::{FileTooLarge, QuotaExceeded, StorageFull};
        matches!(error.kind(), StorageFull | QuotaExceeded | FileTooLarge)
    };
    if error.chain().filter_map(|cause| cause.downcast_ref()).any(full) {
        text += "; nothing was replaced: make room and run the same command again";
    }
    note(&format!("error: {text}"));
}

/// A bar on stderr; hidden where that is no terminal.
pub fn bar(length: u64) -> ProgressBar {
    match std::io::stderr().is_terminal() {
        true => ProgressBar::with_draw_target(Some(length), ProgressDrawTarget::stderr()),
        false => ProgressBar::hidden(),
    }
}

/// The same text with control characters, except line ends and tabs, written out.
fn visible(text: &str) -> std::borrow::Cow<'_, str> {
    let harmless = |c: char| !is_control(c) || c == '\n' || c == '\t';
    if text.chars().all(harmless) {
        return text.into();
    }
    let mut out = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        if harmless(c) { out.push(c) } else { out.extend(c.escape_default()) }
    }
    out.into()
}

/// Characters that a terminal obeys, and those that reverse the order of others.
fn is_control(c: char) -> bool {
    c.is_control() || matches!(c, '\u{200E}' | '\u{200F}' | '\u{202A}'..='\u{202E}' | '\u{2066}'..='\u{2069}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_are_written_out_and_long_words_cut() {
        assert_eq!(
            message("a\u{1b}[31mb\r\u{9b}c\td\n\u{202e}e é"),
            "a\\u{1b}[31mb\\r\\u{9b}c\td\n\\u{202e}e é"
        );
        let long = format!("tensor {} is wrong; do this", "x".repeat(1_000_000));
        let shown = message(&long);
        assert!(
            shown.starts_with("tensor xxx") && shown.ends_with("[999600 more] is wrong; do this"),
            "{shown}"
        );
        let many = "name ".repeat(100_000) + "do this";
        assert!(message(&many).len() < 7000 && message(&many).ends_with("do this"));
        assert_eq!(message("short"), "short");
    }
}
