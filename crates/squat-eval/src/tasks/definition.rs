//! The registered task definitions.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use serde::Deserialize;

use crate::error::EvalError;

/// The metric of a task.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TaskKind {
    /// Accuracy: share of pairs whose good sentence is more probable than the bad one.
    MinimalPairs,
    /// Perplexity of running text.
    Perplexity,
}

/// One file of `tasks/`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TaskDefinition {
    /// Name on the command line and in results.
    pub name: String,
    /// Name in tables.
    pub title: String,
    /// Its metric.
    pub kind: TaskKind,
    /// Field that a file must have to belong to the task, and whose value is the group. If absent, the group is
    /// `linguistics_term` if a record has it, otherwise the paradigm.
    pub group_field: Option<String>,
    /// Names of the files of the task, without extension; empty means any.
    #[serde(default)]
    pub files: Vec<String>,
    /// Every group of the complete task; empty if any group is allowed.
    #[serde(default)]
    pub groups: Vec<String>,
    /// Groups in the data that are counted as part of another group.
    #[serde(default)]
    pub merge: BTreeMap<String, String>,
}

/// Every file of `tasks/` has a line here.
const SOURCES: [(&str, &str); 4] = [
    ("blimp", include_str!("../../tasks/blimp.toml")),
    ("supplement", include_str!("../../tasks/supplement.toml")),
    ("pairs", include_str!("../../tasks/pairs.toml")),
    ("perplexity", include_str!("../../tasks/perplexity.toml")),
];

static DEFINITIONS: LazyLock<Vec<TaskDefinition>> = LazyLock::new(|| {
    SOURCES
        .iter()
        .map(|(_, text)| {
            toml::from_str(text).expect("the task definitions inside the crate are valid, a test reads them")
        })
        .collect()
});

/// Names of the registered tasks.
pub fn task_names() -> Vec<&'static str> {
    SOURCES.iter().map(|(name, _)| *name).collect()
}

/// The task called `name`.
///
/// # Errors
/// [`EvalError::UnknownName`] with the known names and the nearest one.
pub fn task(name: &str) -> Result<&'static TaskDefinition, EvalError> {
    DEFINITIONS
        .iter()
        .find(|definition| definition.name == name)
        .ok_or_else(|| EvalError::unknown_name("task", name, &task_names()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_file_is_registered_under_its_name() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tasks");
        let mut files: Vec<String> = std::fs::read_dir(folder)
            .expect("the folder of tasks")
            .map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned())
            .collect();
        files.sort();
        let mut registered: Vec<String> = task_names().iter().map(|name| format!("{name}.toml")).collect();
        registered.sort();
        assert_eq!(files, registered, "each file of tasks/ needs one line in SOURCES");
        for (definition, (name, _)) in DEFINITIONS.iter().zip(SOURCES) {
            assert_eq!(definition.name, name);
        }
    }

    #[test]
    fn unknown_name_gets_a_hint() {
        let error = task("blimb").expect_err("no such task").to_string();
        assert!(error.contains("did you mean \"blimp\"?"), "{error}");
        let error = task("glue").expect_err("no such task").to_string();
        assert!(error.contains("blimp, supplement, pairs, perplexity") && !error.contains("mean"), "{error}");
    }

    #[test]
    fn blimp_has_the_twelve_phenomena_of_the_paper() {
        let blimp = task("blimp").expect("registered");
        assert_eq!(blimp.groups.len(), 12);
        assert!(blimp.merge.values().all(|group| blimp.groups.contains(group)));
    }
}
