//! The domain of a text, which decides how its lines are cleaned and joined.

use crate::DataError;
use serde::{Deserialize, Serialize};

/// The kind of a text; decides which cleaning rules apply.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Domain {
    /// Transcripts of child-directed speech in the format of CHILDES (`*CHI: text [mark]`).
    Childes,
    /// Transcripts of telephone calls (`A: text`), and other spoken corpora without annotation.
    Switchboard,
    /// Film subtitles.
    Subtitles,
    /// Project Gutenberg books.
    Gutenberg,
    /// Simple English Wikipedia.
    SimpleWiki,
    /// English Wikipedia.
    Wikipedia,
    /// Any other text: only white space, control and replacement characters are cleaned; an empty line ends a document.
    Generic,
    /// One document per line, like the generated English.
    Documents,
    /// Only white space is normalized.
    Raw,
}

/// How the lines of a document are joined.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// Line breaks carry no meaning: lines are joined by a space.
    Prose,
    /// Each line is a turn or a paragraph: lines are joined by a line break.
    Lines,
    /// Each line is a document.
    Documents,
}

/// Beginnings of file names (up to the first dot, lower case); the first match wins.
const NAMES: &[(&str, Domain)] = &[
    ("childes", Domain::Childes),
    ("aochildes", Domain::Childes),
    ("switchboard", Domain::Switchboard),
    ("bnc_spoken", Domain::Switchboard),
    ("open_subtitles", Domain::Subtitles),
    ("opensubtitles", Domain::Subtitles),
    ("subtitles", Domain::Subtitles),
    ("qed", Domain::Subtitles),
    ("gutenberg", Domain::Gutenberg),
    ("children_stories", Domain::Gutenberg),
    ("cbt", Domain::Gutenberg),
    ("simple_wiki", Domain::SimpleWiki),
    ("simplewiki", Domain::SimpleWiki),
    ("wiki", Domain::Wikipedia),
    ("english", Domain::Documents),
];

const ALL: &[Domain] = &[
    Domain::Childes,
    Domain::Switchboard,
    Domain::Subtitles,
    Domain::Gutenberg,
    Domain::SimpleWiki,
    Domain::Wikipedia,
    Domain::Generic,
    Domain::Documents,
    Domain::Raw,
];

impl Domain {
    /// The domain that a file name indicates: `childes.train.gz` is [`Domain::Childes`], an unknown name is generic.
    pub fn from_file_name(name: &str) -> Self {
        let stem = name.split('.').next().unwrap_or_default().to_lowercase();
        NAMES.iter().find(|(prefix, _)| stem.starts_with(prefix)).map_or(Self::Generic, |(_, domain)| *domain)
    }

    /// How its lines are joined.
    pub fn layout(self) -> Layout {
        match self {
            Self::Gutenberg | Self::SimpleWiki | Self::Wikipedia => Layout::Prose,
            Self::Childes | Self::Switchboard | Self::Subtitles | Self::Generic | Self::Raw => Layout::Lines,
            Self::Documents => Layout::Documents,
        }
    }

    /// Its name in options and manifests.
    pub fn name(self) -> &'static str {
        match self {
            Self::Childes => "childes",
            Self::Switchboard => "switchboard",
            Self::Subtitles => "subtitles",
            Self::Gutenberg => "gutenberg",
            Self::SimpleWiki => "simple_wiki",
            Self::Wikipedia => "wikipedia",
            Self::Generic => "generic",
            Self::Documents => "documents",
            Self::Raw => "raw",
        }
    }
}

impl std::str::FromStr for Domain {
    type Err = DataError;

    fn from_str(name: &str) -> Result<Self, DataError> {
        ALL.iter().copied().find(|d| d.name() == name).ok_or_else(|| {
            let names: Vec<&str> = ALL.iter().map(|d| d.name()).collect();
            DataError::unknown_name("cleaning domain", name, &names)
        })
    }
}

impl std::fmt::Display for Domain {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}
