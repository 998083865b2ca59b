//! Transcripts and subtitles: one turn per line, with annotation that was not spoken.

use super::Domain;
use super::characters::{Group, groups, markup, tidy};

/// Codes for speech that could not be understood or transcribed.
const UNINTELLIGIBLE: &[&str] = &["xxx", "xx", "yyy", "yy", "www"];

/// Marks of overlap, latching, stress and the like.
const MARKS: &[char] =
    &['\u{2308}', '\u{2309}', '\u{230A}', '\u{230B}', '\u{21AB}', '^', '#', '+', '<', '>', '|'];

pub(super) fn clean(line: &str, domain: Domain, keep_speakers: bool) -> String {
    // `%mor:` and similar tiers are annotation, not speech; `@Begin` is a header.
    if line.starts_with(['%', '@']) {
        return String::new();
    }
    if domain == Domain::Subtitles {
        return subtitle(line);
    }
    let (speaker, said) = split_speaker(line, domain);
    // Text after an asterisk is a remark of the transcriber; ` %add:` starts an annotation.
    let said = said.split('*').next().unwrap_or_default();
    let said = said.split(" %").next().unwrap_or_default();
    let said = groups(said, '[', ']', |_| Group::Remove);
    let said = groups(&said, '{', '}', |_| Group::Remove);
    let said = markup(&said);
    let mut words = String::with_capacity(said.len());
    for word in said.split_whitespace() {
        let core = word.trim_matches(|c: char| !c.is_alphanumeric());
        if UNINTELLIGIBLE.contains(&core) {
            // Its punctuation still ends the sentence.
            words.extend(word.chars().filter(|c| matches!(c, '.' | ',' | '?' | '!')));
            continue;
        }
        // `&um`, `&=laughs`: fillers and events; `word@c`: a word with its class.
        if word.starts_with("&=") {
            continue;
        }
        let word = word.split('@').next().unwrap_or_default().trim_start_matches('&');
        words.push(' ');
        words.extend(word.chars().filter(|c| !MARKS.contains(c)).map(|c| if c == '_' { ' ' } else { c }));
    }
    let said = tidy(&words);
    match speaker {
        Some(name) if keep_speakers && said.chars().any(char::is_alphanumeric) => format!("{name}: {said}"),
        _ => said,
    }
}

/// Splits `*CHI: text` and `A: text` into speaker and speech.
fn split_speaker(line: &str, domain: Domain) -> (Option<&str>, &str) {
    let line = line.trim_start();
    let (starred, rest) = match line.strip_prefix('*') {
        Some(rest) => (true, rest),
        None => (false, line),
    };
    let Some((name, said)) = rest.split_once(':') else { return (None, line) };
    let longest = if starred { 8 } else { 1 };
    let code = !name.is_empty()
        && name.len() <= longest
        && name.chars().all(|c| c.is_ascii_uppercase() || c.is_ascii_digit())
        && (starred || domain == Domain::Switchboard);
    match code {
        true => (Some(name), said),
        false => (None, line),
    }
}

/// The number or the times above a subtitle.
pub(super) fn is_cue(line: &str) -> bool {
    line.contains("-->") || line.trim().chars().all(|c| c.is_ascii_digit())
}

/// Removes sounds, music and credits.
fn subtitle(line: &str) -> String {
    const CREDITS: &[&str] =
        &["subtitle", "captioned by", "captioning", "synced", "sync by", "opensubtitles", "www.", "http"];
    let lower = line.to_lowercase();
    if CREDITS.iter().any(|c| lower.contains(c)) {
        return String::new();
    }
    let text = groups(line, '[', ']', |_| Group::Remove);
    let text = groups(&text, '(', ')', |_| Group::Remove);
    let text = groups(&text, '{', '}', |_| Group::Remove);
    let text = markup(&text);
    let text: String = text.chars().filter(|c| !matches!(c, '\u{2669}'..='\u{266F}' | '*' | '#')).collect();
    tidy(text.trim_start_matches(['-', ' ']))
}
