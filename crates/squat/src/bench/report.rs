//! Results as a table, as comma-separated values or as JSON.

use super::contestant::Contestant;
use super::limits::Limits;
use super::measure::{Samples, Test};
use super::work::Work;
use serde_json::{Value, json};
use squat_eval::table::Table;

/// One test of one contestant.
pub struct Row {
    pub model: String,
    pub test: Test,
    pub threads: usize,
    pub samples: Samples,
    /// Ratio of tokens per second to the first contestant, if there are several.
    pub ratio: Option<f64>,
    kernel: String,
    model_bytes: usize,
    work: Work,
    limits: Limits,
}

impl Row {
    pub fn new(
        contestant: &Contestant,
        test: Test,
        threads: usize,
        samples: Samples,
        ratio: Option<f64>,
        limits: Limits,
    ) -> Self {
        Self {
            model: contestant.name.clone(),
            test,
            threads,
            samples,
            ratio,
            kernel: contestant.engine.kernel_name(),
            model_bytes: contestant.engine.memory(None).weights,
            work: Work::of(contestant, &test),
            limits,
        }
    }

    /// Median seconds of one run.
    fn seconds(&self) -> f64 {
        self.test.all_tokens() as f64 / self.samples.median()
    }

    /// Median tokens per second of each sequence.
    fn per_sequence(&self) -> f64 {
        self.samples.median() / self.test.batch as f64
    }

    fn gb_per_second(&self) -> f64 {
        self.work.bytes / self.seconds() / 1e9
    }

    fn gop_per_second(&self) -> f64 {
        self.work.operations / self.seconds() / 1e9
    }

    /// Speed as a share of what the binding limit of the machine allows, and the name of that limit.
    fn of_limit(&self) -> (f64, &'static str) {
        let (floor, bound) = self.limits.floor(&self.work);
        (floor / self.seconds(), bound.name())
    }

    fn to_json(&self) -> Value {
        let (share, bound) = self.of_limit();
        json!({
            "model": self.model, "test": self.test.name(), "depth": self.test.depth, "batch": self.test.batch,
            "threads": self.threads, "tokens_per_second": self.samples.median(), "min": self.samples.min(),
            "max": self.samples.max(), "tokens_per_second_each": self.per_sequence(),
            "samples": self.samples.values(), "kernel": self.kernel, "model_bytes": self.model_bytes,
            "gb_per_second": self.gb_per_second(), "gop_per_second": self.gop_per_second(),
            "share_of_limit": share, "bound_by": bound,
            "limits": {"read_gb_per_second": self.limits.read / 1e9,
                "integer_gop_per_second": self.limits.integer / 1e9,
                "float_gflop_per_second": self.limits.float / 1e9},
            "ratio": self.ratio,
        })
    }

    fn cells(&self, compared: bool, batched: bool) -> Vec<String> {
        let (share, bound) = self.of_limit();
        let mut cells = vec![
            self.test.name(),
            self.threads.to_string(),
            format!("{:.1}", self.samples.median()),
            format!("{:.1} .. {:.1}", self.samples.min(), self.samples.max()),
            format!("{:.2}", self.gb_per_second()),
            format!("{:.1}", self.gop_per_second()),
            format!("{:.0} %", 100.0 * share),
            bound.to_owned(),
            self.kernel.clone(),
            self.model_bytes.to_string(),
        ];
        if batched {
            cells.insert(3, format!("{:.1}", self.per_sequence()));
            cells.insert(1, self.test.batch.to_string());
        }
        if compared {
            cells.insert(0, self.model.clone());
            cells.push(self.ratio.map(|ratio| format!("{ratio:.2}")).unwrap_or_default());
        }
        cells
    }
}

/// A JSON list with one object for each row.
pub fn json(rows: &[Row]) -> Value {
    Value::Array(rows.iter().map(Row::to_json).collect())
}

/// Markdown; columns for models, ratios and batch sizes only if there are several.
pub fn markdown(rows: &[Row]) -> String {
    let compared = rows.iter().any(|row| row.ratio.is_some());
    let batched = rows.iter().any(|row| row.test.batch > 1);
    let mut headers = vec![
        "test",
        "threads",
        "tokens/s",
        "min .. max",
        "GB/s",
        "GOP/s",
        "of limit",
        "bound by",
        "kernel",
        "model bytes",
    ];
    if batched {
        headers.insert(3, "of each");
        headers.insert(1, "batch");
    }
    if compared {
        headers.insert(0, "model");
        headers.push("ratio");
    }
    let mut table = Table::new(headers);
    rows.iter().for_each(|row| table.push(row.cells(compared, batched)));
    table.to_markdown()
}

/// Comma-separated values with a header line; the columns are always the same.
pub fn csv(rows: &[Row]) -> String {
    let mut text = String::from(
        "model,test,depth,batch,threads,tokens_per_second,tokens_per_second_each,min,max,gb_per_second,gop_per_second,share_of_limit,bound_by,\
         kernel,model_bytes,ratio\n",
    );
    for row in rows {
        let (share, bound) = row.of_limit();
        let cells = [
            quoted(&row.model),
            row.test.name(),
            row.test.depth.to_string(),
            row.test.batch.to_string(),
            row.threads.to_string(),
            row.samples.median().to_string(),
            row.per_sequence().to_string(),
            row.samples.min().to_string(),
            row.samples.max().to_string(),
            row.gb_per_second().to_string(),
            row.gop_per_second().to_string(),
            share.to_string(),
            bound.to_owned(),
            row.kernel.clone(),
            row.model_bytes.to_string(),
            row.ratio.map(|ratio| ratio.to_string()).unwrap_or_default(),
        ];
        text.push_str(&cells.join(","));
        text.push('\n');
    }
    text
}

/// A field that may contain commas and quotes.
fn quoted(text: &str) -> String {
    if text.contains([',', '"', '\n', '\r']) {
        format!("\"{}\"", text.replace('"', "\"\""))
    } else {
        text.to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_with_commas_are_quoted() {
        assert_eq!(quoted("plain name"), "plain name");
        assert_eq!(quoted("a,\"b\""), "\"a,\"\"b\"\"\"");
    }
}
