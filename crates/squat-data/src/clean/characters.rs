//! Characters and bracketed marks, the same for every domain.

/// Removes control, formatting and replacement characters and, with `plain`, writes typographic quotes and dashes in
/// ASCII, as BLiMP and most tests of small models do.
pub(super) fn normalise(raw: &str, plain: bool) -> String {
    let mut out = String::with_capacity(raw.len() + 8);
    for c in raw.chars() {
        match c {
            // Replacement character, byte order mark, soft hyphen, zero-width and directional marks.
            '\u{FFFD}'
            | '\u{FEFF}'
            | '\u{AD}'
            | '\u{200B}'..='\u{200F}'
            | '\u{202A}'..='\u{202E}'
            | '\u{2060}' => {}
            c if c.is_control() || c.is_whitespace() => out.push(' '),
            '\u{2018}' | '\u{2019}' | '\u{201B}' | '`' | '\u{B4}' if plain => {
                // Two single quotes stand for a double one.
                if c == '`' && out.ends_with('\'') {
                    out.pop();
                    out.push('"');
                } else {
                    out.push('\'');
                }
            }
            '\u{201C}' | '\u{201D}' | '\u{201E}' | '\u{201F}' if plain => out.push('"'),
            '\u{2014}' | '\u{2015}' if plain => out.push_str(" -- "),
            '-' if plain && out.ends_with('-') => {
                while out.ends_with('-') {
                    out.pop();
                }
                out.push_str(" -- ");
            }
            // The third of a row of dashes: the two before it are already written.
            '-' if plain && out.ends_with("-- ") => {}
            c => out.push(c),
        }
    }
    out
}

/// Calls `keep` with the inside of each `open ... close` group (outermost, not across lines), which decides whether the
/// group, only its brackets, or nothing is removed. A group that never closes loses its opening bracket, or everything
/// after it.
pub(super) fn groups(text: &str, open: char, close: char, rule: impl Fn(&str) -> Group) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(start) = rest.find([open, close]) {
        out.push_str(&rest[..start]);
        let after = &rest[start + open.len_utf8()..];
        if rest[start..].starts_with(close) {
            // A closing bracket without an opening one: its group began on another line.
            rest = &rest[start + close.len_utf8()..];
            continue;
        }
        match closing(after, open, close) {
            Some(end) => {
                let inside = &after[..end];
                match rule(inside) {
                    Group::Remove => out.push(' '),
                    Group::Unwrap => {
                        out.push_str(inside);
                    }
                    Group::Keep => {
                        out.push(open);
                        out.push_str(inside);
                        out.push(close);
                    }
                }
                rest = &after[end + close.len_utf8()..];
            }
            None => match rule(after) {
                Group::Remove => return out,
                Group::Unwrap | Group::Keep => rest = after,
            },
        }
    }
    out.push_str(rest);
    out
}

/// What to do with a bracketed group.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Group {
    Remove,
    Unwrap,
    Keep,
}

/// Byte position of the bracket that closes an open group.
fn closing(text: &str, open: char, close: char) -> Option<usize> {
    let mut depth = 0usize;
    for (at, c) in text.char_indices() {
        if c == open {
            depth += 1;
        } else if c == close {
            match depth.checked_sub(1) {
                Some(d) => depth = d,
                None => return Some(at),
            }
        }
    }
    None
}

/// Tags and entities that occur in web and subtitle text; anything else in angle brackets is kept.
pub(super) fn markup(text: &str) -> String {
    const TAGS: &[&str] = &[
        "b", "br", "center", "div", "em", "font", "i", "nowiki", "p", "ref", "small", "span", "strong",
        "sub", "sup", "table", "td", "th", "tr", "u",
    ];
    const ENTITIES: &[(&str, &str)] =
        &[("&amp;", "&"), ("&quot;", "\""), ("&nbsp;", " "), ("&lt;", "<"), ("&gt;", ">"), ("&#39;", "'")];
    if !text.contains(['<', '&']) {
        return text.to_owned();
    }
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(start) = rest.find(['<', '&']) {
        out.push_str(&rest[..start]);
        rest = &rest[start..];
        if let Some((entity, plain)) = ENTITIES.iter().find(|(e, _)| rest.starts_with(e)) {
            out.push_str(plain);
            rest = &rest[entity.len()..];
            continue;
        }
        let tag = rest[1..].trim_start_matches('/');
        let name_end = tag.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(tag.len());
        match rest.find('>') {
            Some(end) if rest.starts_with('<') && TAGS.contains(&tag[..name_end].to_lowercase().as_str()) => {
                out.push(' ');
                rest = &rest[end + 1..];
            }
            _ => {
                out.push_str(&rest[..1]);
                rest = &rest[1..];
            }
        }
    }
    out.push_str(rest);
    out
}

/// Closes the gaps that removals leave: no space before a full stop, no empty parentheses, single spaces.
pub(super) fn tidy(text: &str) -> String {
    let text = groups(text, '(', ')', |inside| {
        let inside = inside.trim();
        match inside.chars().any(char::is_alphanumeric) && !inside.ends_with(':') {
            true => Group::Keep,
            false => Group::Remove,
        }
    });
    let mut out = String::with_capacity(text.len());
    for word in text.split_whitespace() {
        // Not `.45` or `:-`: punctuation at the start of a word belongs to it.
        let mut rest = word.chars().skip_while(|c| matches!(c, ',' | '.' | ';' | ':' | '!' | '?' | ')'));
        let marks = word.starts_with([',', '.', ';', ':', '!', '?', ')']);
        let sticks = (marks && !rest.next().is_some_and(char::is_alphanumeric))
            || matches!(word, "'s" | "n't" | "'re" | "'ll" | "'ve" | "'m" | "'d");
        // "..." may start a sentence.
        let sticks = sticks && !word.starts_with("..");
        if !out.is_empty() && !sticks && !out.ends_with('(') {
            out.push(' ');
        }
        out.push_str(word);
    }
    let start = out.trim_start_matches([',', '.', ';', ':', ' ']).len();
    match out.starts_with("...") {
        true => out,
        false => out.split_off(out.len() - start),
    }
}
