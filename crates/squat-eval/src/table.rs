//! Markdown tables of results, for terminals and documents.

use std::collections::BTreeSet;

use crate::model::Form;
use crate::perplexity::PerplexityResult;
use crate::tasks::TaskResult;

/// A table whose first column is text and whose others are numbers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Table {
    /// Titles of the columns.
    pub headers: Vec<String>,
    /// Cells; short rows are padded with empty cells, long ones are truncated.
    pub rows: Vec<Vec<String>>,
}

impl Table {
    /// A table without rows.
    pub fn new(headers: impl IntoIterator<Item = impl Into<String>>) -> Self {
        Self { headers: headers.into_iter().map(Into::into).collect(), rows: Vec::new() }
    }

    /// Adds a row.
    pub fn push(&mut self, cells: impl IntoIterator<Item = impl Into<String>>) {
        self.rows.push(cells.into_iter().map(Into::into).collect());
    }

    /// The table in Markdown, with padded columns so that it is readable as plain text. Ends with a line break.
    pub fn to_markdown(&self) -> String {
        let columns = self.headers.len();
        let escape = |cells: &[String]| -> Vec<String> {
            let cell = |i| cells.get(i).map_or("", String::as_str);
            (0..columns).map(|i| cell(i).replace('|', "\\|").replace(['\n', '\r'], " ")).collect()
        };
        let lines: Vec<Vec<String>> =
            std::iter::once(&self.headers).chain(&self.rows).map(|cells| escape(cells)).collect();
        let width = |i: usize| lines.iter().map(|cells| cells[i].chars().count()).max().unwrap_or(0).max(3);
        let widths: Vec<usize> = (0..columns).map(width).collect();

        let mut text = String::new();
        for (number, cells) in lines.iter().enumerate() {
            for (i, (cell, &width)) in cells.iter().zip(&widths).enumerate() {
                let padded = if i == 0 { format!("| {cell:<width$} ") } else { format!("| {cell:>width$} ") };
                text.push_str(&padded);
            }
            text.push_str("|\n");
            if number == 0 {
                for (i, &width) in widths.iter().enumerate() {
                    let dashes = "-".repeat(width);
                    text.push_str(&if i == 0 { format!("|:{dashes}-") } else { format!("|-{dashes}:") });
                }
                text.push_str("|\n");
            }
        }
        text
    }
}

impl std::fmt::Display for Table {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.to_markdown())
    }
}

/// Column titles of several results: the forms, with the name of the model if there is more than one.
pub(crate) fn column_titles(models: &[(&str, Form)]) -> Vec<String> {
    let one_model = models.windows(2).all(|pair| pair[0].0 == pair[1].0);
    let title = |&(model, form): &(&str, Form)| {
        if one_model { form.title().to_owned() } else { format!("{model}, {}", form.title()) }
    };
    models.iter().map(title).collect()
}

/// `54.0`, or a dash for none.
pub(crate) fn fixed(value: Option<f64>, decimals: usize) -> String {
    value.map_or_else(|| "-".to_owned(), |value| format!("{value:.decimals$}"))
}

/// One row per group, one column per result, in percent; then the average with its standard error, pairs and ties.
pub fn accuracy_table(results: &[TaskResult]) -> Table {
    let models: Vec<(&str, Form)> =
        results.iter().map(|result| (result.model.as_str(), result.form)).collect();
    let first = results.first().map_or("group", |result| result.task.as_str()).to_owned();
    let mut table = Table::new(std::iter::once(first).chain(column_titles(&models)));
    let groups: BTreeSet<&str> =
        results.iter().flat_map(|result| result.groups.keys()).map(String::as_str).collect();
    let mut row = |title: &str, cell: &dyn Fn(&TaskResult) -> String| {
        table.push(std::iter::once(title.to_owned()).chain(results.iter().map(cell)));
    };
    for group in groups {
        row(group, &|result| fixed(result.groups.get(group).copied(), 1));
    }
    row("average", &|result| format!("{:.2}", result.average));
    row("standard error", &|result| format!("{:.2}", result.standard_error));
    row("pairs", &|result| result.n.to_string());
    row("ties", &|result| result.ties.to_string());
    table
}

/// One row per result.
pub fn perplexity_table(results: &[PerplexityResult]) -> Table {
    let models: Vec<(&str, Form)> =
        results.iter().map(|result| (result.model.as_str(), result.form)).collect();
    let mut table = Table::new([
        "form",
        "perplexity",
        "standard error",
        "bits per byte",
        "word perplexity",
        "tokens",
        "context",
        "stride",
    ]);
    for (result, title) in results.iter().zip(column_titles(&models)) {
        table.push([
            title,
            format!("{:.3}", result.perplexity),
            fixed(result.standard_error, 3),
            format!("{:.4}", result.bits_per_byte),
            fixed(result.word_perplexity, 1),
            result.n_tokens.to_string(),
            result.context.to_string(),
            result.stride.to_string(),
        ]);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned_and_cells_cannot_break_the_table() {
        let mut table = Table::new(["name", "a|b"]);
        table.push(["é\nx", "1.5", "cut"]);
        table.push(["longer name"]);
        assert_eq!(
            table.to_markdown(),
            "| name        | a\\|b |\n\
             |:------------|-----:|\n\
             | é x         |  1.5 |\n\
             | longer name |      |\n"
        );
    }
}
