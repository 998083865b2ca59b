//! All output: data on stdout, everything else on stderr.

use std::io::Write;

/// Prints data. A reader that closes the pipe (`squat ... | head`) is not an error.
pub fn data(text: &str) {
    let mut out = std::io::stdout().lock();
    if out.write_all(text.as_bytes()).and_then(|()| out.flush()).is_err() {
        std::process::exit(0);
    }
}

/// Prints a line of data.
pub fn line(text: &str) {
    data(&format!("{text}\n"));
}

/// Prints a JSON value, indented at a terminal and on one line otherwise.
pub fn json(value: &serde_json::Value) {
    use std::io::IsTerminal;
    let text = if std::io::stdout().is_terminal() {
        serde_json::to_string_pretty(value)
    } else {
        serde_json::to_string(value)
    };
    line(&text.unwrap_or_default());
}

/// Prints a message on stderr.
pub fn note(text: &str) {
    let _ = writeln!(std::io::stderr(), "{text}");
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
