//! Text that comes with the program.

/// English of several kinds, written for this purpose: what quantizing costs is measured on it where there is no other text.
pub const TEXT: &str = include_str!("built_in_text.txt");
