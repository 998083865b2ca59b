//! Finds the texts of a corpus and reads them line by line.

use crate::clean::{CleanOptions, Cleaner, Domain, Event};
use crate::{DataError, Result};
use flate2::bufread::MultiGzDecoder;
use std::collections::BTreeSet;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};

/// Longest line of plain text; a longer one is cut at white space, which bounds memory on files without line breaks.
const LONGEST_LINE: usize = 1 << 20;

/// Longest record of a .jsonl file.
const LONGEST_RECORD: usize = 64 << 20;

/// Which files of a folder to read, by the split in their names (`childes.train.gz`, `childes.dev.gz`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Split {
    /// Only files of this split, one of [`SPLITS`].
    Named(String),
    /// Every file; an error if training and held-out files are mixed.
    All,
}

/// Names of splits in file names. `valid` and `validation` mean `dev`.
pub const SPLITS: &[&str] = &["train", "dev", "test"];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Format {
    Text,
    JsonLines,
}

/// One file of a corpus.
#[derive(Clone, Debug)]
pub struct SourceFile {
    /// Its path.
    pub path: PathBuf,
    /// Its name relative to the given folder.
    pub name: String,
    /// The domain that its name indicates.
    pub domain: Domain,
    format: Format,
    gzip: bool,
}

/// The files of a corpus, in an order that depends only on their names.
#[derive(Clone, Debug)]
pub struct Corpus {
    files: Vec<SourceFile>,
    notes: Vec<String>,
}

/// What a walk has met.
#[derive(Default)]
struct Seen {
    folders: BTreeSet<PathBuf>,
    notes: Vec<String>,
}

/// Counts of what was read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ReadStats {
    /// Lines or records.
    pub lines: u64,
    /// Bytes after decompression.
    pub bytes: u64,
    /// Lines of invalid UTF-8; the invalid bytes are replaced, and cleaning removes the replacement characters.
    pub invalid_utf8_lines: u64,
}

impl std::str::FromStr for Split {
    type Err = DataError;

    fn from_str(name: &str) -> Result<Self> {
        match name {
            "all" => Ok(Self::All),
            "valid" | "validation" => Ok(Self::Named("dev".to_owned())),
            name if SPLITS.contains(&name) => Ok(Self::Named(name.to_owned())),
            _ => Err(DataError::unknown_name("split", name, &["train", "dev", "test", "valid", "all"])),
        }
    }
}

impl Corpus {
    /// Collects files: every readable text below a folder, and each file that is given itself.
    ///
    /// # Errors
    /// A missing path (with the nearest name), a file that is not text, no file found, or mixed splits.
    pub fn open<P: AsRef<Path>>(paths: &[P], split: &Split) -> Result<Self> {
        let mut files = Vec::new();
        let mut others = 0usize;
        let mut seen = Seen::default();
        for path in paths {
            let path = path.as_ref();
            let meta = match std::fs::metadata(path) {
                Ok(meta) => meta,
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Err(DataError::missing(path)),
                Err(e) => return Err(DataError::io("read", path)(e)),
            };
            if meta.is_dir() {
                let mut found = Vec::new();
                walk(path, path, &mut found, &mut seen)?;
                others += found.len();
                found.retain(|f| match split {
                    Split::Named(name) => split_of(&f.name) == Some(name.as_str()),
                    Split::All => true,
                });
                others -= found.len();
                files.extend(found);
            } else {
                // A file that is given itself is read whatever its name.
                let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
                let file = SourceFile::new(path, name)
                    .ok_or_else(|| DataError::UnknownFormat { path: path.to_path_buf() })?;
                files.push(file);
            }
        }
        files.sort_by(|a, b| a.name.cmp(&b.name).then_with(|| a.path.cmp(&b.path)));
        // A file counts once, by whatever names and links it is given.
        let mut real = BTreeSet::new();
        let mut notes = seen.notes;
        files.retain(|file| {
            let first = std::fs::canonicalize(&file.path).map_or(true, |path| real.insert(path));
            if !first {
                notes.push(format!("{}: given twice, read once", file.path.display()));
            }
            first
        });
        if files.is_empty() {
            let searched =
                paths.iter().map(|p| p.as_ref().display().to_string()).collect::<Vec<_>>().join(", ");
            let hint = match (split, others) {
                (Split::Named(name), 1..) => {
                    format!("; {others} files there do not belong to the split `{name}`")
                }
                _ => String::new(),
            };
            return Err(DataError::NoFiles { searched, hint });
        }
        let mut marks = files.iter().filter_map(|f| split_of(&f.name).map(|s| (s, f)));
        if let Some((first, _)) = marks.next()
            && let Some((_, file)) = marks.find(|(mark, _)| *mark != first)
        {
            return Err(DataError::MixedSplits { path: file.path.clone(), other: first.to_owned() });
        }
        Ok(Self { files, notes })
    }

    /// Files and folders that were found twice and are read once, one sentence each.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// The files in reading order.
    pub fn files(&self) -> &[SourceFile] {
        &self.files
    }

    /// A range of the files, in the same order.
    pub(crate) fn subset(&self, files: std::ops::Range<usize>) -> Self {
        Self { files: self.files[files].to_vec(), notes: Vec::new() }
    }

    /// Names of the files, for messages.
    pub(crate) fn describe(&self) -> String {
        let names: Vec<&str> = self.files.iter().take(4).map(|f| f.name.as_str()).collect();
        let more = if self.files.len() > 4 { ", ..." } else { "" };
        format!("{}{more}", names.join(", "))
    }

    /// Reads and cleans every file; `each` gets the index of the file and the cleaned text.
    ///
    /// # Errors
    /// Those of reading and of `each`; both stop the reading.
    pub fn for_each(
        &self,
        options: &CleanOptions,
        mut each: impl FnMut(usize, Event) -> Result<()>,
    ) -> Result<ReadStats> {
        let mut total = ReadStats::default();
        for (index, file) in self.files.iter().enumerate() {
            let stats = file.for_each(options, |event| each(index, event))?;
            total.lines += stats.lines;
            total.bytes += stats.bytes;
            total.invalid_utf8_lines += stats.invalid_utf8_lines;
        }
        Ok(total)
    }
}

impl SourceFile {
    fn new(path: &Path, name: String) -> Option<Self> {
        let lower = name.to_lowercase();
        let (plain, gzip) = match lower.strip_suffix(".gz") {
            Some(plain) => (plain, true),
            None => (lower.as_str(), false),
        };
        let format = if plain.ends_with(".jsonl") {
            Format::JsonLines
        } else if plain.ends_with(".txt") || (gzip && !plain.ends_with(".tar")) {
            Format::Text
        } else {
            return None;
        };
        let base = path.file_name()?.to_string_lossy();
        Some(Self { path: path.to_path_buf(), domain: Domain::from_file_name(&base), name, format, gzip })
    }

    /// Reads and cleans this file.
    ///
    /// # Errors
    /// Reading, a damaged gzip stream, a bad JSON record, and those of `each`.
    pub fn for_each(
        &self,
        options: &CleanOptions,
        mut each: impl FnMut(Event) -> Result<()>,
    ) -> Result<ReadStats> {
        let mut cleaner = Cleaner::new(options.domain.unwrap_or(self.domain), options);
        let mut events = Vec::new();
        let mut lines = RawLines::open(self)?;
        while let Some(raw) = lines.next_line()? {
            squat_files::interrupt::check()?;
            match self.format {
                Format::Text => cleaner.push(&raw, &mut events),
                Format::JsonLines if raw.trim().is_empty() => {}
                Format::JsonLines => {
                    let line = lines.stats.lines;
                    let text = json_text(&raw).map_err(|got| DataError::BadJson {
                        path: self.path.clone(),
                        line,
                        got,
                    })?;
                    text.lines().for_each(|line| cleaner.push(line, &mut events));
                    cleaner.end_document(&mut events);
                }
            }
            events.drain(..).try_for_each(&mut each)?;
        }
        cleaner.end_document(&mut events);
        events.drain(..).try_for_each(&mut each)?;
        Ok(lines.stats)
    }
}

/// The field `text` of a record, or a description of what was found instead.
fn json_text(record: &str) -> std::result::Result<String, String> {
    let value: serde_json::Value = serde_json::from_str(record).map_err(|e| e.to_string())?;
    match value {
        serde_json::Value::Object(mut map) => match map.remove("text") {
            Some(serde_json::Value::String(text)) => Ok(text),
            Some(other) => Err(format!("`text` of another type: {}", shorten(&other.to_string()))),
            None => Err(format!("an object with the fields {:?}", map.keys().take(8).collect::<Vec<_>>())),
        },
        other => Err(shorten(&other.to_string())),
    }
}

fn shorten(text: &str) -> String {
    let mut short: String = text.chars().take(60).collect();
    if short.len() < text.len() {
        short.push_str("...");
    }
    short
}

/// The split in a file name: a part between dots.
fn split_of(name: &str) -> Option<&'static str> {
    let base = name.rsplit('/').next().unwrap_or(name).to_lowercase();
    base.split('.').skip(1).find_map(|part| match part {
        "train" => Some("train"),
        "dev" | "valid" | "validation" => Some("dev"),
        "test" => Some("test"),
        _ => None,
    })
}

/// Readable files below `folder`. Hidden ones are skipped. Links are followed, but no folder is entered twice.
fn walk(root: &Path, folder: &Path, found: &mut Vec<SourceFile>, seen: &mut Seen) -> Result<()> {
    let real = std::fs::canonicalize(folder).map_err(DataError::io("read", folder))?;
    if !seen.folders.insert(real) {
        seen.notes.push(format!("{}: a link to a folder that is read already, left out", folder.display()));
        return Ok(());
    }
    for entry in std::fs::read_dir(folder).map_err(DataError::io("list the folder", folder))? {
        let path = entry.map_err(DataError::io("list the folder", folder))?.path();
        let Some(base) = path.file_name().map(|n| n.to_string_lossy().into_owned()) else { continue };
        if base.starts_with('.') {
            continue;
        }
        if path.is_dir() {
            walk(root, &path, found, seen)?;
        } else {
            let name = path.strip_prefix(root).unwrap_or(&path).to_string_lossy().replace('\\', "/");
            found.extend(SourceFile::new(&path, name));
        }
    }
    Ok(())
}

/// Lines of a plain or gzip file as text, with counts.
struct RawLines<'a> {
    file: &'a SourceFile,
    reader: Box<dyn BufRead>,
    buffer: Vec<u8>,
    stats: ReadStats,
}

impl<'a> RawLines<'a> {
    fn open(file: &'a SourceFile) -> Result<Self> {
        let raw = BufReader::with_capacity(1 << 17, squat_files::read::open(&file.path)?);
        let reader: Box<dyn BufRead> = match file.gzip {
            true => Box::new(BufReader::with_capacity(1 << 17, MultiGzDecoder::new(raw))),
            false => Box::new(raw),
        };
        Ok(Self { file, reader, buffer: Vec::new(), stats: ReadStats::default() })
    }

    /// The next line without its line break, or a part of it if it is longer than the limit.
    fn next_line(&mut self) -> Result<Option<String>> {
        self.buffer.clear();
        let limit = match self.file.format {
            Format::Text => LONGEST_LINE,
            Format::JsonLines => LONGEST_RECORD,
        };
        loop {
            let available = match self.reader.fill_buf() {
                Ok(bytes) => bytes,
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(e) => return Err(read_error(self.file, self.stats.bytes, e)),
            };
            if available.is_empty() {
                if self.buffer.is_empty() {
                    return Ok(None);
                }
                break;
            }
            let room = limit.saturating_sub(self.buffer.len()).max(1).min(available.len());
            let (taken, ended) = match available[..room].iter().position(|b| *b == b'\n') {
                Some(at) => (at + 1, true),
                None => (room, false),
            };
            self.buffer.extend_from_slice(&available[..taken]);
            self.reader.consume(taken);
            self.stats.bytes += taken as u64;
            if ended {
                break;
            }
            if self.buffer.len() >= limit {
                if self.file.format == Format::JsonLines {
                    let line = self.stats.lines + 1;
                    return Err(DataError::LineTooLong { path: self.file.path.clone(), line, limit });
                }
                // Never inside a word (or, beyond a second limit, at least never inside a character).
                let last = self.buffer[self.buffer.len() - 1];
                if last.is_ascii_whitespace() || (self.buffer.len() >= 2 * limit && last.is_ascii()) {
                    break;
                }
            }
        }
        self.stats.lines += 1;
        while matches!(self.buffer.last(), Some(b'\n' | b'\r')) {
            self.buffer.pop();
        }
        Ok(Some(match std::str::from_utf8(&self.buffer) {
            Ok(text) => text.to_owned(),
            Err(_) => {
                self.stats.invalid_utf8_lines += 1;
                String::from_utf8_lossy(&self.buffer).into_owned()
            }
        }))
    }
}

/// Distinguishes a truncated gzip stream from a damaged one and from an I/O error.
fn read_error(file: &SourceFile, read: u64, e: std::io::Error) -> DataError {
    let path = file.path.clone();
    match e.kind() {
        std::io::ErrorKind::UnexpectedEof if file.gzip => DataError::TruncatedGzip { path, read },
        std::io::ErrorKind::InvalidInput | std::io::ErrorKind::InvalidData if file.gzip => {
            DataError::CorruptGzip { path, reason: e.to_string() }
        }
        _ => DataError::io("read", &path)(e),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use flate2::{Compression, write::GzEncoder};
    use std::io::Write;

    fn gz(path: &Path, text: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
        encoder.write_all(text).unwrap();
        let bytes = encoder.finish().unwrap();
        std::fs::write(path, &bytes).unwrap();
        bytes
    }

    fn read(corpus: &Corpus) -> Result<(Vec<String>, ReadStats)> {
        let mut lines = Vec::new();
        let stats = corpus.for_each(&CleanOptions::default(), |_, event| {
            if let Event::Line(line) = event {
                lines.push(line);
            }
            Ok(())
        })?;
        Ok((lines, stats))
    }

    #[test]
    fn all_formats_in_sorted_order() {
        let dir = tempfile::tempdir().unwrap();
        let at = |n: &str| dir.path().join(n);
        std::fs::create_dir(at("b")).unwrap();
        std::fs::write(at("b/two.txt"), "second\r\nline").unwrap();
        gz(&at("a.gz"), b"first\n");
        std::fs::write(at("c.jsonl"), "{\"text\": \"third\\nline\"}\n\n{\"text\":\"fourth\"}\n").unwrap();
        gz(&at("d.jsonl.gz"), b"{\"text\":\"fifth\"}");
        std::fs::write(at("ignored.bin"), [0, 1, 2]).unwrap();
        std::fs::write(at(".hidden.txt"), "no").unwrap();
        let corpus = Corpus::open(&[dir.path()], &Split::All).unwrap();
        let (lines, stats) = read(&corpus).unwrap();
        assert_eq!(lines, ["first", "second", "line", "third", "line", "fourth", "fifth"]);
        assert_eq!(stats.invalid_utf8_lines, 0);
    }

    #[test]
    fn splits_are_never_mixed() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["x.train.txt", "x.dev.txt", "y.valid.txt"] {
            std::fs::write(dir.path().join(name), name).unwrap();
        }
        let error = Corpus::open(&[dir.path()], &Split::All).unwrap_err();
        assert!(matches!(error, DataError::MixedSplits { .. }), "{error}");
        let train = Corpus::open(&[dir.path()], &"train".parse().unwrap()).unwrap();
        assert_eq!(train.files().len(), 1);
        assert_eq!(Corpus::open(&[dir.path()], &"dev".parse().unwrap()).unwrap().files().len(), 2);
        let error = Corpus::open(&[dir.path()], &"test".parse().unwrap()).unwrap_err().to_string();
        assert!(error.contains("3 files there do not belong to the split `test`"), "{error}");
        assert!("trian".parse::<Split>().unwrap_err().to_string().contains("did you mean `train`"));
    }

    #[test]
    fn bad_input_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let at = |n: &str| dir.path().join(n);
        assert!(matches!(Corpus::open(&[at("x.txt")], &Split::All), Err(DataError::Missing { .. })));
        assert!(matches!(Corpus::open(&[dir.path()], &Split::All), Err(DataError::NoFiles { .. })));
        std::fs::write(at("x.pdf"), "x").unwrap();
        assert!(matches!(Corpus::open(&[at("x.pdf")], &Split::All), Err(DataError::UnknownFormat { .. })));

        let bytes = gz(&at("cut.gz"), "some longer text to be cut off, ".repeat(500).as_bytes());
        std::fs::write(at("cut.gz"), &bytes[..bytes.len() - 20]).unwrap();
        let error = read(&Corpus::open(&[at("cut.gz")], &Split::All).unwrap()).unwrap_err();
        assert!(matches!(error, DataError::TruncatedGzip { .. }), "{error}");
        std::fs::write(at("no.gz"), "plain text, no gzip at all").unwrap();
        let error = read(&Corpus::open(&[at("no.gz")], &Split::All).unwrap()).unwrap_err();
        assert!(matches!(error, DataError::CorruptGzip { .. }), "{error}");

        std::fs::write(at("bad.jsonl"), "{\"text\":\"a\"}\n{\"txt\":\"b\"}\n").unwrap();
        let error = read(&Corpus::open(&[at("bad.jsonl")], &Split::All).unwrap()).unwrap_err().to_string();
        assert!(error.contains("line 2") && error.contains("txt"), "{error}");
        std::fs::write(at("bad.jsonl"), "{\"text\":\"a\n").unwrap();
        let error = read(&Corpus::open(&[at("bad.jsonl")], &Split::All).unwrap()).unwrap_err().to_string();
        assert!(error.contains("line 1"), "{error}");
    }

    #[test]
    fn invalid_utf8_is_counted_and_gone() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("x.txt"), b"caf\xC3\xA9\nbro\xFFken\n").unwrap();
        let (lines, stats) = read(&Corpus::open(&[dir.path()], &Split::All).unwrap()).unwrap();
        assert_eq!(lines, ["caf\u{e9}", "broken"]);
        assert_eq!(stats.invalid_utf8_lines, 1);
    }

    #[test]
    fn a_file_without_line_breaks_is_cut_between_words() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("x.txt"), "word ".repeat(500_000)).unwrap();
        let (lines, _) = read(&Corpus::open(&[dir.path()], &Split::All).unwrap()).unwrap();
        assert!(lines.len() >= 2);
        assert_eq!(
            lines.iter().map(|l| l.split(' ').filter(|w| *w == "word").count()).sum::<usize>(),
            500_000
        );
    }

    #[cfg(unix)]
    #[test]
    fn links_are_followed_once() {
        let dir = tempfile::tempdir().unwrap();
        let at = |n: &str| dir.path().join(n);
        std::fs::create_dir(at("b")).unwrap();
        std::fs::write(at("a.txt"), "one line\n").unwrap();
        std::os::unix::fs::symlink(dir.path(), at("b/loop")).unwrap();
        std::os::unix::fs::symlink(at("a.txt"), at("z.txt")).unwrap();
        let corpus = Corpus::open(&[dir.path()], &Split::All).unwrap();
        assert_eq!(read(&corpus).unwrap().0, ["one line"]);
        let notes = corpus.notes().join("\n");
        assert!(notes.contains("loop: a link to a folder that is read already"), "{notes}");
        assert!(notes.contains("z.txt: given twice, read once"), "{notes}");
        // The same file through two arguments.
        let twice = Corpus::open(&[at("a.txt"), at("z.txt")], &Split::All).unwrap();
        assert_eq!((twice.files().len(), twice.notes().len()), (1, 1));
    }
}
