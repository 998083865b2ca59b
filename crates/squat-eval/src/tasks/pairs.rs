//! The pairs of a task, read from the original files of the data sets.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Map, Value};

use crate::error::{EvalError, did_you_mean};
use crate::tasks::definition::{TaskDefinition, TaskKind};
use crate::tasks::source::{SourceFile, read_jsonl_files};

const GOOD: &str = "sentence_good";
const BAD: &str = "sentence_bad";
const PARADIGM: &str = "UID";
const GROUP: &str = "linguistics_term";

/// Two sentences of which one is acceptable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MinimalPair {
    /// Index into [`PairSet::paradigms`].
    pub paradigm: usize,
    /// Line of the file, from 1.
    pub line: usize,
    /// The acceptable sentence.
    pub good: String,
    /// The other one.
    pub bad: String,
}

/// Pairs that test the same thing in the same way; BLiMP's `UID`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Paradigm {
    /// `UID`, or the name of the file without extension if records have none.
    pub name: String,
    /// The group that its accuracy is averaged into.
    pub group: String,
    /// Its file, by the path in the folder or archive.
    pub file: String,
}

/// Every pair of a task.
#[derive(Debug, Clone)]
pub struct PairSet {
    /// Name of the task.
    pub task: String,
    /// The paradigms, sorted by file, then in the order of the file.
    pub paradigms: Vec<Paradigm>,
    /// The pairs, in the same order.
    pub pairs: Vec<MinimalPair>,
    /// Files that do not belong to the task.
    pub skipped_files: Vec<String>,
}

impl PairSet {
    /// Reads the pairs of `definition` at `path`: a `.jsonl` file, a folder of them at any depth, or a `.tar`,
    /// `.tar.gz`, `.tgz` archive, which is read without unpacking it.
    ///
    /// `limit` keeps only so many pairs of each paradigm, the first ones (in BLiMP a file is a paradigm).
    ///
    /// # Errors
    /// Unreadable files, records without the fields, no pairs, a paradigm in two files.
    pub fn read(definition: &TaskDefinition, path: &Path, limit: Option<usize>) -> Result<Self, EvalError> {
        let no_pairs = |reason: String| EvalError::NoPairs {
            task: definition.name.clone(),
            path: path.display().to_string(),
            reason,
        };
        if definition.kind != TaskKind::MinimalPairs {
            return Err(no_pairs("it is not a task of minimal pairs".to_owned()));
        }
        if limit == Some(0) {
            return Err(EvalError::Option {
                option: "limit",
                got: "0".to_owned(),
                expected: "at least 1".to_owned(),
            });
        }
        let files = read_jsonl_files(path)?;
        if files.is_empty() {
            return Err(no_pairs(
                "expected .jsonl files, a folder of them or a .tar.gz archive of them, found no .jsonl"
                    .to_owned(),
            ));
        }
        let mut set = Self {
            task: definition.name.clone(),
            paradigms: Vec::new(),
            pairs: Vec::new(),
            skipped_files: Vec::new(),
        };
        let mut index = BTreeMap::new();
        for file in &files {
            if belongs(definition, file)? {
                set.add_file(definition, file, limit, &mut index)?;
            } else {
                set.skipped_files.push(file.name.clone());
            }
        }
        if set.pairs.is_empty() {
            let shown = files.iter().take(5).map(|file| file.name.as_str()).collect::<Vec<_>>().join(", ");
            let more = if files.len() > 5 { format!(" and {} more", files.len() - 5) } else { String::new() };
            return Err(no_pairs(format!(
                "none of the files belongs to it (found {shown}{more}); {}",
                expectation(definition)
            )));
        }
        Ok(set)
    }

    /// Names of the groups, sorted.
    pub fn groups(&self) -> Vec<&str> {
        let mut groups: Vec<&str> = self.paradigms.iter().map(|paradigm| paradigm.group.as_str()).collect();
        groups.sort_unstable();
        groups.dedup();
        groups
    }

    /// Number of pairs whose two sentences are the same text.
    pub fn identical(&self) -> usize {
        self.pairs.iter().filter(|pair| pair.good == pair.bad).count()
    }

    fn add_file(
        &mut self,
        definition: &TaskDefinition,
        file: &SourceFile,
        limit: Option<usize>,
        index: &mut BTreeMap<String, (usize, usize)>,
    ) -> Result<(), EvalError> {
        for (line, record) in records(file) {
            let record = record?;
            let paradigm = match record.get(PARADIGM) {
                Some(_) => text_field(file, line, &record, PARADIGM)?,
                None => file.stem(),
            };
            let group = match &definition.group_field {
                Some(field) => text_field(file, line, &record, field)?,
                None if record.contains_key(GROUP) => text_field(file, line, &record, GROUP)?,
                None => paradigm,
            };
            let group = definition.merge.get(group).map_or(group, String::as_str);
            let (good, bad) = (text_field(file, line, &record, GOOD)?, text_field(file, line, &record, BAD)?);

            let (paradigm, count) = match index.get_mut(paradigm) {
                Some(known) => known,
                None => {
                    self.paradigms.push(Paradigm {
                        name: paradigm.to_owned(),
                        group: group.to_owned(),
                        file: file.name.clone(),
                    });
                    index.entry(paradigm.to_owned()).or_insert((self.paradigms.len() - 1, 0))
                }
            };
            let known = &self.paradigms[*paradigm];
            if known.file != file.name {
                return Err(EvalError::DuplicateParadigm {
                    paradigm: known.name.clone(),
                    first: known.file.clone(),
                    second: file.name.clone(),
                });
            }
            if known.group != group {
                return Err(EvalError::Json {
                    file: file.name.clone(),
                    line,
                    message: format!(
                        "paradigm {} in group {group}, which was in group {} before",
                        known.name, known.group
                    ),
                });
            }
            if limit.is_none_or(|limit| *count < limit) {
                *count += 1;
                self.pairs.push(MinimalPair {
                    paradigm: *paradigm,
                    line,
                    good: good.to_owned(),
                    bad: bad.to_owned(),
                });
            }
        }
        Ok(())
    }
}

fn expectation(definition: &TaskDefinition) -> String {
    if !definition.files.is_empty() {
        return format!("expected files named {}", definition.files.join(", "));
    }
    let group = definition.group_field.as_ref().map_or_else(String::new, |field| format!(" and {field}"));
    format!(
        "expected records with {GOOD}, {BAD}{group}; task \"pairs\" takes any pairs, task \"supplement\" the BLiMP supplement"
    )
}

/// Whether a file is part of the task, by its name or by the fields of its first record.
fn belongs(definition: &TaskDefinition, file: &SourceFile) -> Result<bool, EvalError> {
    if !definition.files.is_empty() {
        return Ok(definition.files.iter().any(|name| name == file.stem()));
    }
    let Some((_, first)) = records(file).next() else { return Ok(false) };
    let first = first?;
    Ok(definition.group_field.as_ref().is_none_or(|field| first.contains_key(field)))
}

/// The JSON objects of a file with their line numbers; blank lines are skipped.
fn records(file: &SourceFile) -> impl Iterator<Item = (usize, Result<Map<String, Value>, EvalError>)> {
    file.text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()).map(|(i, line)| {
        let record = serde_json::from_str(line).map_err(|error| EvalError::Json {
            file: file.name.clone(),
            line: i + 1,
            message: error.to_string(),
        });
        (i + 1, record)
    })
}

fn text_field<'a>(
    file: &SourceFile,
    line: usize,
    record: &'a Map<String, Value>,
    field: &str,
) -> Result<&'a str, EvalError> {
    record.get(field).and_then(Value::as_str).ok_or_else(|| EvalError::MissingField {
        file: file.name.clone(),
        line,
        field: field.to_owned(),
        found: record.keys().map(String::as_str).collect::<Vec<_>>().join(", "),
        hint: did_you_mean(field, record.keys().map(String::as_str)),
    })
}
