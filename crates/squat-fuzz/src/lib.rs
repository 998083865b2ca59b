//! Everything that reads what others wrote, as one function of bytes for each kind.
//!
//! `cargo fuzz run TARGET` (see `fuzz/README.md`) looks for bytes that make one panic, hang or take memory; `tests/replay.rs`
//! feeds each the corpora that this found, the seeds, and seeds with random damage, on the stable compiler.
//!
//! | module | holds |
//! |---|---|
//! | [`targets`] | the functions and their seeds |
//! | [`memory`] | the allocator that counts |
#![allow(clippy::unwrap_used, reason = "a test that cannot be set up fails")]

pub mod memory;
pub mod targets;

use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

pub use targets::TARGETS;

/// One kind of foreign bytes.
pub struct Target {
    /// Name, as of its file in `fuzz/targets`.
    pub name: &'static str,
    /// Reads them as the program does; it must return, whatever they are. The folder is for files, and its own.
    pub read: fn(&[u8], &Path),
    /// Valid inputs.
    pub seeds: fn(&Path) -> Vec<Vec<u8>>,
    /// Memory that reading the smallest input takes, in bytes: tables of a library, a tiny model beside it.
    pub floor: usize,
}

/// Most memory for each byte of an input, beside [`Target::floor`].
pub const MEMORY_PER_BYTE: usize = 20;

/// What reading an input took.
#[derive(Clone, Copy, Debug)]
pub struct Use {
    /// Most bytes that were allocated at once.
    pub peak: usize,
    /// How long it took.
    pub time: Duration,
}

impl Target {
    /// The target of a name.
    ///
    /// # Panics
    /// There is none.
    pub fn named(name: &str) -> &'static Self {
        TARGETS.iter().find(|target| target.name == name).expect("a target of that name")
    }

    /// Reads an input.
    ///
    /// # Panics
    /// It takes more memory than its size allows.
    pub fn run(&self, bytes: &[u8]) -> Use {
        let folder = self.folder();
        let started = Instant::now();
        let before = memory::begin();
        (self.read)(bytes, &folder);
        let peak = memory::peak().saturating_sub(before);
        let used = Use { peak, time: started.elapsed() };
        let most = self.floor + MEMORY_PER_BYTE * bytes.len();
        assert!(
            peak <= most,
            "{}: {} bytes take {peak} bytes of memory, more than {most}",
            self.name,
            bytes.len()
        );
        used
    }

    /// Valid inputs, made in the target's folder.
    pub fn seeds(&self) -> Vec<Vec<u8>> {
        (self.seeds)(&self.folder())
    }

    /// The folder of this target in this process, in memory where the system has such a place.
    fn folder(&self) -> PathBuf {
        static ROOT: OnceLock<tempfile::TempDir> = OnceLock::new();
        let root = ROOT.get_or_init(|| {
            // Panics inside a library that are caught are no findings.
            squat_files::contain::quiet(|message| eprintln!("{message}"));
            let place = Path::new("/dev/shm");
            let made = if place.is_dir() { tempfile::tempdir_in(place) } else { tempfile::tempdir() };
            made.expect("a folder for temporary files")
        });
        let folder = root.path().join(self.name);
        std::fs::create_dir_all(&folder).expect("a folder in a temporary folder");
        folder
    }
}
