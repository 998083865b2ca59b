//! Files mapped into memory.

use super::{ReadError, cut, failed, regular};
use memmap2::Mmap;
use std::fs::File;
use std::path::Path;

/// A file mapped into memory, read-only; its bytes by `Deref`.
#[derive(Debug)]
pub struct Map {
    map: Mmap,
    /// Its name for the line about a file that was cut.
    _watched: Option<cut::Watched>,
}

/// Maps a regular file.
///
/// The file must not be cut by others while it is mapped: reading a page that is gone raises a signal, which a program
/// turns into an error line with [`super::report_cut_maps`].
///
/// # Errors
/// As [`super::open`].
pub fn map(path: &Path) -> Result<Map, ReadError> {
    map_file(path, &regular(path)?.0)
}

/// [`map()`] of a file that [`super::open`] gave; `path` is its name in messages.
///
/// # Errors
/// The system refuses.
pub fn map_file(path: &Path, file: &File) -> Result<Map, ReadError> {
    // SAFETY: the mapping is read-only. Other processes may change the bytes, as with any file that is read while it is
    // written: every reader checks values, and none relies on reading a byte twice. Cutting is documented above.
    let map = unsafe { Mmap::map(file) }.map_err(failed("map", path))?;
    let watched = cut::Watched::new(path, &map);
    Ok(Map { map, _watched: watched })
}

impl std::ops::Deref for Map {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.map
    }
}

impl Map {
    /// Lets the system take the pages of a range out of this process; they come back from the file when they are read
    /// again. A hint, which some systems do not know.
    pub fn release(&self, range: std::ops::Range<usize>) {
        #[cfg(unix)]
        if range.start <= range.end && range.end <= self.map.len() {
            let advice = memmap2::UncheckedAdvice::DontNeed;
            // SAFETY: the mapping is shared with the file and never written, so dropped pages read the same again.
            let _ = unsafe { self.map.unchecked_advise_range(advice, range.start, range.len()) };
        }
        #[cfg(not(unix))]
        let _ = range;
    }
}
