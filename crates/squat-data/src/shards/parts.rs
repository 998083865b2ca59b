//! Prepares a corpus in parts, on any machines and in any order, and joins them.
//!
//! Part `I/N` is a range of consecutive files, chosen by the sizes of all files; it is written to `OUT/parts-of-N/I`, a
//! prepared folder of its own. [`merge_parts`] copies the tokens of all parts into `OUT`, with the same bytes and the
//! same manifest as [`super::prepare`], so a later preparation in one piece finds nothing to do.

use super::manifest::{Manifest, ShardRecord};
use super::prepare::{Prepared, Writer, claim, prepare_files};
use super::{PrepareOptions, TokenShards};
use crate::hash::sha256;
use crate::{Corpus, DataError, Result};
use serde::{Deserialize, Serialize};
use squat_files::read::{self, Limit};
use squat_files::write::{NewFile, Replace};
use std::path::{Path, PathBuf};

/// Name of the file that records which part a folder holds.
const FILE_NAME: &str = "part.json";

/// One of several parts, counted from 0, written `I/N`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    index: usize,
    count: usize,
}

/// The content of that file.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct PartRecord {
    index: usize,
    count: usize,
    /// SHA-256 over names and sizes of all files of the corpus.
    listing: String,
}

impl Part {
    /// Part `index` of `count`.
    ///
    /// # Errors
    /// An index that is not less than the count.
    pub fn new(index: usize, count: usize) -> Result<Self> {
        match index < count {
            true => Ok(Self { index, count }),
            false => Err(bad_part(&format!("{index}/{count}"))),
        }
    }

    fn folder(self, out: &Path) -> PathBuf {
        out.join(format!("parts-of-{}", self.count)).join(self.index.to_string())
    }
}

fn bad_part(got: &str) -> DataError {
    DataError::BadOption {
        what: "shard",
        got: got.to_owned(),
        expected: "I/N with I from 0 to N - 1, such as 3/16".into(),
    }
}

impl std::str::FromStr for Part {
    type Err = DataError;

    fn from_str(text: &str) -> Result<Self> {
        let (index, count) = text.split_once('/').ok_or_else(|| bad_part(text))?;
        match (index.trim().parse(), count.trim().parse()) {
            (Ok(index), Ok(count)) => Self::new(index, count),
            _ => Err(bad_part(text)),
        }
    }
}

/// Prepares one part of `corpus` for `out`, unless that was done already. If there are more parts than files, some are
/// empty.
///
/// # Errors
/// As [`super::prepare`].
pub fn prepare_part(
    corpus: &Corpus,
    tokenizer: &Path,
    out: &Path,
    options: &PrepareOptions,
    part: Part,
) -> Result<Prepared> {
    let sizes = sizes(corpus)?;
    let mut listing = Vec::new();
    for (file, size) in corpus.files().iter().zip(&sizes) {
        listing.extend_from_slice(file.name.as_bytes());
        listing.push(0);
        listing.extend_from_slice(&size.to_le_bytes());
    }
    let record = PartRecord { index: part.index, count: part.count, listing: sha256(&listing) };
    let folder = part.folder(out);
    let own = corpus.subset(share(&sizes, part));
    let prepared = prepare_files(&own, tokenizer, &folder, options, true)?;
    let path = folder.join(FILE_NAME);
    let text = serde_json::to_vec_pretty(&record).map_err(|e| DataError::io("write", &path)(e.into()))?;
    if read::whole(&path, Limit::Config).ok().as_ref() != Some(&text) {
        NewFile::write(&path, Replace::Any, &text)?;
    }
    Ok(prepared)
}

fn sizes(corpus: &Corpus) -> Result<Vec<u64>> {
    let size = |path: &Path| Ok(std::fs::metadata(path).map_err(DataError::io("read", path))?.len());
    corpus.files().iter().map(|file| size(&file.path)).collect()
}

/// The files of a part: those whose middle lies in its range of all bytes.
fn share(sizes: &[u64], part: Part) -> std::ops::Range<usize> {
    // Counted in half bytes, at least one for each file, so that empty files belong to a part too.
    let total: u128 = sizes.iter().map(|&s| 2 * (u128::from(s) + 1)).sum();
    let mut before = 0u128;
    let mut of = sizes.iter().map(|&size| {
        let middle = before + u128::from(size) + 1;
        before += 2 * (u128::from(size) + 1);
        (middle * part.count as u128 / total) as usize
    });
    let mut files = (0..sizes.len()).filter(|_| of.next() == Some(part.index));
    files.next().map_or(0..0, |first| first..files.last().unwrap_or(first) + 1)
}

/// Joins all parts in `out`, with the result of a preparation in one piece. The parts are kept and can be deleted.
///
/// # Errors
/// A folder that may not be written (see [`PrepareOptions::force`]); parts that are missing, damaged, or made from other files, with other options or another tokenizer.
pub fn merge_parts(out: &Path, force: bool) -> Result<Prepared> {
    let folders = part_folders(out)?;
    let wrong = |path: &Path, problem: &str| DataError::BadPart {
        path: path.to_path_buf(),
        problem: problem.to_owned(),
    };
    let mut parts: Vec<(PathBuf, Manifest, TokenShards)> = Vec::with_capacity(folders.len());
    let mut listing: Option<String> = None;
    for folder in folders {
        let path = folder.join(FILE_NAME);
        let text =
            read::whole(&path, Limit::Config).map_err(|_| wrong(&folder, "is missing or not finished"))?;
        let record: PartRecord =
            serde_json::from_slice(&text).map_err(|e| wrong(&path, &format!("is damaged ({e})")))?;
        if listing.get_or_insert_with(|| record.listing.clone()) != &record.listing {
            return Err(wrong(&folder, "was made from a different list of files than the part before it"));
        }
        let manifest = Manifest::read(&folder)?;
        if let Some((_, first, _)) = parts.first()
            && !first.same_settings(&manifest)
        {
            return Err(wrong(
                &folder,
                "was made with a different tokenizer, cleaning or shard size than part 0",
            ));
        }
        let shards = TokenShards::open(&folder)?;
        parts.push((folder, manifest, shards));
    }
    let Some((_, first, _)) = parts.first() else { return Err(wrong(out, "has no parts")) };
    let mut plan = first.clone();
    plan.inputs = parts.iter().flat_map(|(_, m, _)| m.inputs.iter().cloned()).collect();
    (plan.tokens, plan.words, plan.documents) = (0, 0, 0);
    (plan.shards, plan.lines) = (Vec::new(), ShardRecord::empty());
    plan.identify(out)?;
    let old = Manifest::read(out).ok();
    if let Some(old) = &old
        && old.identity == plan.identity
        && let Ok(shards) = TokenShards::open(out)
    {
        // What a killed writer left is removed, if that is possible: nothing here depends on it.
        let _ = claim(out, false);
        return Ok(Prepared { manifest: old.clone(), reused: true, shards });
    }
    let output = claim(out, force)?;
    let mut writer = Writer::new(&output, &plan)?;
    let mut ids = Vec::new();
    for (folder, manifest, shards) in &parts {
        for line in 0..shards.lines() {
            squat_files::interrupt::check()?;
            let start = shards.line_start(line).unwrap_or(0);
            let end = shards.line_start(line + 1).unwrap_or_else(|| shards.len());
            if end < start {
                return Err(wrong(folder, "has line starts out of order"));
            }
            ids.clear();
            shards.extend_into(start, (end - start) as usize, &mut ids);
            writer.line(&ids)?;
        }
        plan.tokens += manifest.tokens;
        plan.words += manifest.words;
        plan.documents += manifest.documents;
    }
    if plan.tokens == 0 {
        return Err(DataError::EmptyCorpus { searched: format!("the parts in {}", out.display()) });
    }
    let manifest = writer.finish(plan, old.as_ref())?;
    Ok(Prepared { shards: TokenShards::open(out)?, manifest, reused: false })
}

/// Folders of all parts in order, existing or not.
fn part_folders(out: &Path) -> Result<Vec<PathBuf>> {
    let mut counts = Vec::new();
    for entry in std::fs::read_dir(out).map_err(|_| DataError::missing(out))?.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if let Some(count) = name.strip_prefix("parts-of-").and_then(|n| n.parse::<usize>().ok()) {
            counts.push(count);
        }
    }
    counts.sort_unstable();
    match *counts.as_slice() {
        [count] => (0..count).map(|index| Ok(Part::new(index, count)?.folder(out))).collect(),
        [] => Err(DataError::BadPart {
            path: out.to_path_buf(),
            problem: "contains no parts; make them with --shard I/N".into(),
        }),
        _ => Err(DataError::BadPart {
            path: out.to_path_buf(),
            problem: format!(
                "contains parts of different counts ({counts:?}); delete the folders that are not needed"
            ),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// Every file is in one part, parts follow one another, and none is much larger than its share.
        #[test]
        fn parts_cover_all_files(sizes in prop::collection::vec(0u64..1000, 1..30), count in 1usize..12) {
            let mut next = 0;
            for index in 0..count {
                let share = share(&sizes, Part::new(index, count).unwrap());
                if share.is_empty() {
                    continue;
                }
                prop_assert_eq!(share.start, next);
                let bytes: u64 = sizes[share.clone()].iter().map(|s| s + 1).sum();
                let total: u64 = sizes.iter().map(|s| s + 1).sum();
                let largest = sizes.iter().max().unwrap() + 1;
                prop_assert!(bytes <= total.div_ceil(count as u64) + largest);
                next = share.end;
            }
            prop_assert_eq!(next, sizes.len());
        }
    }

    #[test]
    fn parts_are_written_as_fractions() {
        assert_eq!("3/16".parse::<Part>().unwrap(), Part { index: 3, count: 16 });
        for text in ["16/16", "1", "a/2", "-1/2", "0/0", ""] {
            assert!(text.parse::<Part>().unwrap_err().to_string().contains("such as 3/16"), "{text}");
        }
    }
}
