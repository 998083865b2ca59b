//! Reading files that somebody else wrote: regular files only, of bounded size, with errors that name them.
//!
//! [`whole`] and [`text`] copy a file, [`open`] streams it, [`map`] and [`map_file`] map it. A file that is cut while it is mapped raises a
//! signal wherever it is touched next; a program calls [`report_cut_maps`] once to end with a line about that file instead.

use std::fmt;
use std::fs::{File, Metadata};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

mod cut;
mod map;

pub use cut::report_cut_maps;
pub use map::{Map, map, map_file};

/// Most bytes of a file that is read as a whole, by what it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Limit {
    /// Configurations, indices, recipes, records: 64 MiB.
    Config,
    /// Tokenizers and lists of shards: 512 MiB.
    Tokenizer,
    /// Texts that are processed as one: 2 GiB.
    Text,
    /// Weights and states that are copied: as large as the system can hold.
    Weights,
}

impl Limit {
    /// The same in bytes.
    pub const fn bytes(self) -> u64 {
        match self {
            Self::Config => 64 << 20,
            Self::Tokenizer => 512 << 20,
            Self::Text => 2 << 30,
            Self::Weights => u64::MAX,
        }
    }
}

/// Why a file cannot be read.
#[derive(Debug)]
pub enum ReadError {
    /// No such path.
    Missing(PathBuf),
    /// A link whose target does not exist.
    Dangling {
        /// The link.
        path: PathBuf,
        /// Where it leads.
        target: PathBuf,
    },
    /// Something else than a regular file.
    NotRegular {
        /// The path.
        path: PathBuf,
        /// What it is.
        found: &'static str,
    },
    /// More bytes than such a file can have.
    TooLarge {
        /// The path.
        path: PathBuf,
        /// Most bytes.
        limit: u64,
    },
    /// Not UTF-8.
    NotText {
        /// The path.
        path: PathBuf,
        /// First bad byte.
        offset: usize,
    },
    /// The system refused.
    Io {
        /// What was tried: `open`, `read`, `map`.
        action: &'static str,
        /// The path.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
}

impl ReadError {
    /// The file.
    pub fn path(&self) -> &Path {
        match self {
            Self::Missing(path)
            | Self::Dangling { path, .. }
            | Self::NotRegular { path, .. }
            | Self::TooLarge { path, .. }
            | Self::NotText { path, .. }
            | Self::Io { path, .. } => path,
        }
    }
}

impl fmt::Display for ReadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let place = self.path().display();
        match self {
            Self::Missing(_) => write!(f, "{place} does not exist"),
            Self::Dangling { target, .. } => write!(
                f,
                "{place}: a link to {}, which does not exist: finish the download, or copy the file itself",
                target.display()
            ),
            Self::NotRegular { found, .. } => {
                write!(f, "{place}: expected a regular file, got a {found}; give the file itself")
            }
            Self::TooLarge { limit, .. } => {
                write!(
                    f,
                    "{place}: expected at most {limit} bytes, got more; give the right file, or a part of it"
                )
            }
            Self::NotText { offset, .. } => {
                write!(
                    f,
                    "{place}: expected UTF-8 text, got another byte at offset {offset}; convert it to UTF-8"
                )
            }
            Self::Io { action, source, .. } => write!(f, "cannot {action} {place}: {source}"),
        }
    }
}

impl std::error::Error for ReadError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Io { source, .. } => Some(source),
            _ => None,
        }
    }
}

/// Opens a regular file to be read as a stream; a pipe is refused without waiting for a writer.
///
/// # Errors
/// No such file, something else than a regular file, and the system's.
pub fn open(path: &Path) -> Result<File, ReadError> {
    regular(path).map(|(file, _)| file)
}

/// The bytes of a file.
///
/// # Errors
/// As [`open`], and a file larger than the limit.
pub fn whole(path: &Path, limit: Limit) -> Result<Vec<u8>, ReadError> {
    let (file, metadata) = regular(path)?;
    let too_large = || ReadError::TooLarge { path: path.to_path_buf(), limit: limit.bytes() };
    if metadata.len() > limit.bytes() {
        return Err(too_large());
    }
    let mut bytes = Vec::with_capacity(usize::try_from(metadata.len()).unwrap_or(0));
    // Files of some file systems are longer than they say.
    let read = file.take(limit.bytes().saturating_add(1)).read_to_end(&mut bytes);
    read.map_err(failed("read", path))?;
    if bytes.len() as u64 > limit.bytes() {
        return Err(too_large());
    }
    Ok(bytes)
}

/// The text of a file.
///
/// # Errors
/// As [`whole`], and bytes that are not UTF-8.
pub fn text(path: &Path, limit: Limit) -> Result<String, ReadError> {
    String::from_utf8(whole(path, limit)?).map_err(|error| ReadError::NotText {
        path: path.to_path_buf(),
        offset: error.utf8_error().valid_up_to(),
    })
}

/// Checks that a path is a regular file, without opening it.
///
/// # Errors
/// As [`open`].
pub fn check_regular(path: &Path) -> Result<(), ReadError> {
    let metadata = std::fs::metadata(path).map_err(|error| absent(path, error))?;
    check(path, &metadata)
}

fn regular(path: &Path) -> Result<(File, Metadata), ReadError> {
    let mut options = File::options();
    options.read(true);
    #[cfg(unix)]
    {
        use std::os::unix::fs::OpenOptionsExt;
        // Opening a pipe waits for a writer otherwise, opening a terminal could make it ours.
        options.custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY);
    }
    // What is not regular is not opened where that is known before; what was exchanged meanwhile is found after.
    check_regular(path)?;
    let file = options.open(path).map_err(|error| absent(path, error))?;
    let metadata = file.metadata().map_err(failed("read", path))?;
    check(path, &metadata)?;
    Ok((file, metadata))
}

fn check(path: &Path, metadata: &Metadata) -> Result<(), ReadError> {
    match metadata.is_file() {
        true => Ok(()),
        false => Err(ReadError::NotRegular { path: path.to_path_buf(), found: what(metadata) }),
    }
}

fn what(metadata: &Metadata) -> &'static str {
    if metadata.is_dir() { "folder" } else { "pipe, socket or device" }
}

fn absent(path: &Path, error: io::Error) -> ReadError {
    match (error.kind(), std::fs::read_link(path)) {
        (io::ErrorKind::NotFound, Ok(target)) => ReadError::Dangling { path: path.to_path_buf(), target },
        (io::ErrorKind::NotFound, Err(_)) => ReadError::Missing(path.to_path_buf()),
        _ => failed("open", path)(error),
    }
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> ReadError {
    let path = path.to_path_buf();
    move |source| ReadError::Io { action, path, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_regular_files_of_bounded_size() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        std::fs::write(at("a"), "text").unwrap();
        assert_eq!(whole(&at("a"), Limit::Config).unwrap(), b"text");
        assert_eq!(text(&at("a"), Limit::Config).unwrap(), "text");
        assert_eq!(&map(&at("a")).unwrap()[..], b"text");
        assert!(matches!(whole(&at("b"), Limit::Config), Err(ReadError::Missing(path)) if path == at("b")));
        assert!(matches!(open(dir.path()), Err(ReadError::NotRegular { found: "folder", .. })));
        std::fs::write(at("bytes"), [b'x', 0xFF]).unwrap();
        assert!(matches!(text(&at("bytes"), Limit::Config), Err(ReadError::NotText { offset: 1, .. })));
        // Sparse: a size is refused before anything is read.
        File::create(at("large")).unwrap().set_len(Limit::Config.bytes() + 1).unwrap();
        assert!(matches!(whole(&at("large"), Limit::Config), Err(ReadError::TooLarge { .. })));
        std::fs::write(at("empty"), "").unwrap();
        assert!(map(&at("empty")).unwrap().is_empty());
    }

    /// Runs itself again: a signal concerns the whole process.
    #[cfg(target_os = "linux")]
    #[test]
    fn a_file_that_is_cut_while_mapped_ends_with_a_line() {
        const CHILD: &str = "SQUAT_TEST_CUT_FILE";
        if let Some(path) = std::env::var_os(CHILD) {
            report_cut_maps();
            let map = map(Path::new(&path)).unwrap();
            File::options().write(true).open(&path).unwrap().set_len(0).unwrap();
            // Read past the optimizer: the page is gone.
            std::process::exit(10 + i32::from(std::hint::black_box(&map)[100_000] > 100));
        }
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("weights");
        std::fs::write(&path, vec![7; 200_000]).unwrap();
        let output = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "read::tests::a_file_that_is_cut_while_mapped_ends_with_a_line", "--nocapture"])
            .env(CHILD, &path)
            .output()
            .unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{stderr}");
        assert!(stderr.contains(&format!("error: {}: the file was cut", path.display())), "{stderr}");
    }

    #[cfg(unix)]
    #[test]
    fn pipes_devices_and_links_to_nothing_are_named_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let pipe = dir.path().join("pipe");
        assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
        for path in [pipe.as_path(), Path::new("/dev/zero")] {
            for error in
                [open(path).unwrap_err(), map(path).unwrap_err(), whole(path, Limit::Config).unwrap_err()]
            {
                assert!(
                    error.to_string().contains("expected a regular file, got a pipe, socket or device"),
                    "{error}"
                );
            }
        }
        let link = dir.path().join("link");
        std::os::unix::fs::symlink("nowhere", &link).unwrap();
        let error = open(&link).unwrap_err().to_string();
        assert!(error.contains("a link to nowhere") && error.contains("finish the download"), "{error}");
    }
}
