//! The HTML page of a report.

use squat_files::write::{NewFile, Replace};
use std::path::Path;

use minijinja::{Environment, Value, context};

use super::bars::{self, Bar};
use super::curves::{Curve, curves};
use super::data::{FormValue, QuickstartReport, format_bytes, value_of};
use super::scale::significant;
use super::{dots, heatmap};
use crate::error::EvalError;
use crate::model::Form;
use crate::table::{Table, fixed};

const TEMPLATE: &str = include_str!("page.html");
const STYLE: &str = include_str!("style.css");
/// The extension makes minijinja escape every value that is not marked as safe.
const TEMPLATE_NAME: &str = "page.html";

/// The page as text. It depends only on the report.
///
/// # Errors
/// [`EvalError::Mismatch`] if a row of token bits does not have one entry for each token.
pub fn render_html(report: &QuickstartReport) -> Result<String, EvalError> {
    report.check()?;
    let failed = |error: minijinja::Error| EvalError::Report(error.to_string());
    let mut environment = Environment::new();
    environment.add_template(TEMPLATE_NAME, TEMPLATE).map_err(failed)?;
    let template = environment.get_template(TEMPLATE_NAME).map_err(failed)?;

    let curves = curves(&report.losses);
    let bars = bar_plots(report);
    let settings: Vec<Value> = report
        .settings
        .iter()
        .enumerate()
        .map(|(i, setting)| {
            let first = i == 0 || report.settings[i - 1].section != setting.section;
            let (section, name, value) =
                (setting.section.clone(), setting.name.clone(), setting.value.clone());
            context! { first, section, name, value }
        })
        .collect();
    let samples: Vec<Value> = report
        .samples
        .iter()
        .map(|sample| {
            context! {
                class => sample.form.as_str(),
                form => sample.form.title(),
                prompt => sample.prompt.clone(),
                text => sample.text.clone(),
            }
        })
        .collect();
    let parity = report.parity.map(|parity| {
        format!(
            "Largest difference of a logit between the fake-quantized and the packed form: {}; between one prefill and \
             token-by-token decoding: {}.",
            significant(parity.max_abs_logit_diff),
            significant(parity.prefill_decode_max_abs_diff)
        )
    });
    template
        .render(context! {
            title => report.title.clone(),
            subtitle => subtitle(report),
            style => Value::from_safe_string(STYLE.to_owned()),
            tiles => tiles(report),
            summary => table(report.summary_table()),
            parity,
            accuracy => accuracy(report),
            bars,
            bars_note => bars_note(report),
            bits => token_bits(report),
            stages => stages(&curves),
            losses => table(loss_table(&curves)),
            samples,
            settings,
            footer => format!(
                "Squat {}, seed {}. One file, no external resources.",
                report.run.version, report.run.seed
            ),
        })
        .map(|page| printable(&page))
        .map_err(failed)
}

/// First bytes of a page.
const HEAD: &[u8] = b"<!doctype html>\n<html lang=\"en\">\n";

/// Writes [`render_html`] to `path` atomically. It replaces a page.
///
/// # Errors
/// Those of [`render_html`], and [`EvalError::Write`].
pub fn write_html(report: &QuickstartReport, path: &Path) -> Result<(), EvalError> {
    let page = render_html(report)?;
    Ok(NewFile::write(path, Replace::StartingWith(HEAD), page.as_bytes())?)
}

fn safe(svg: String) -> Value {
    Value::from_safe_string(svg)
}

fn table(table: Table) -> Value {
    context! { headers => table.headers, rows => table.rows }
}

/// The page without the characters that HTML forbids and generated text may contain; they are replaced.
fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() && c != '\n' && c != '\t' { '\u{fffd}' } else { c }).collect()
}

fn duration(seconds: f64) -> String {
    let whole = seconds.max(0.0).round() as u64;
    if whole < 60 { format!("{seconds:.1} s") } else { format!("{} min {} s", whole / 60, whole % 60) }
}

fn subtitle(report: &QuickstartReport) -> String {
    let run = &report.run;
    let mut parts = vec![
        format!("version {}", run.version),
        format!("seed {}", run.seed),
        duration(run.seconds),
        format!("{} thread{}", run.threads, if run.threads == 1 { "" } else { "s" }),
    ];
    parts.extend([&run.cpu, &run.kernel].into_iter().filter(|part| !part.is_empty()).cloned());
    parts.join(" · ")
}

/// The figures of the packed model, each next to that of full precision.
fn tiles(report: &QuickstartReport) -> Vec<Value> {
    let both = |values: &[FormValue]| value_of(values, Form::Packed).zip(value_of(values, Form::Fp));
    let accuracy: Vec<FormValue> =
        report.accuracy.iter().map(|result| FormValue { form: result.form, value: result.average }).collect();
    let perplexity: Vec<FormValue> = report
        .perplexity
        .iter()
        .map(|result| FormValue { form: result.form, value: result.perplexity })
        .collect();
    let tile = |name: &str, value: String, beside: String| context! { name, value, beside };
    let mut tiles = Vec::new();
    if let Some((packed, fp)) = both(&accuracy) {
        let beside = format!("full precision {fp:.1} % ({:+.2})", packed - fp);
        tiles.push(tile("accuracy, packed", format!("{packed:.1} %"), beside));
    }
    if let Some((packed, fp)) = both(&perplexity) {
        let beside = format!("full precision {fp:.2} ({:+.1} %)", 100.0 * (packed / fp - 1.0));
        tiles.push(tile("perplexity, packed", format!("{packed:.2}"), beside));
    }
    if let Some((packed, fp)) = both(&report.bytes) {
        let beside = format!("{:.1} times smaller than {}", fp / packed, format_bytes(fp));
        tiles.push(tile("size, packed", format_bytes(packed), beside));
    }
    if let Some((packed, fp)) = both(&report.decode_tokens_per_second) {
        let beside = format!("{:.2} times full precision, {fp:.0}", packed / fp);
        tiles.push(tile("decoding, packed, tokens/s", format!("{packed:.0}"), beside));
    }
    tiles
}

fn accuracy(report: &QuickstartReport) -> Option<Value> {
    let results = &report.accuracy;
    let first = results.first()?;
    let forms = results.iter().map(|result| result.form.title());
    let mut rows = Table::new(std::iter::once("phenomenon").chain(forms));
    for group in dots::groups(results) {
        let cells = results.iter().map(|result| fixed(result.groups.get(group).copied(), 1));
        rows.push(std::iter::once(dots::readable(group)).chain(cells));
    }
    let averages = results.iter().map(|result| format!("{:.2}", result.average));
    rows.push(std::iter::once("average".to_owned()).chain(averages));
    let note = format!(
        "Task {}: share of {} pairs whose good sentence is the more probable one. Equal scores ({}) count one half. \
         The average is the mean over the phenomena.",
        first.task,
        first.n,
        results.iter().map(|result| result.ties.to_string()).collect::<Vec<_>>().join(", ")
    );
    Some(context! { note, plot => safe(dots::draw(results)), table => table(rows) })
}

fn bar_plots(report: &QuickstartReport) -> Vec<Value> {
    let plain = |values: &[FormValue], text: &dyn Fn(f64) -> String| -> Vec<Bar> {
        let bar = |value: &FormValue| Bar {
            form: value.form,
            value: value.value,
            error: None,
            text: text(value.value),
        };
        values.iter().map(bar).collect()
    };
    let perplexity: Vec<Bar> = report
        .perplexity
        .iter()
        .map(|result| Bar {
            form: result.form,
            value: result.perplexity,
            error: result.standard_error,
            text: format!("{:.2}", result.perplexity),
        })
        .collect();
    [
        ("Perplexity (less is better)", perplexity),
        ("Size on disk (less is better)", plain(&report.bytes, &format_bytes)),
        (
            "Decoding, tokens/s (more is better)",
            plain(&report.decode_tokens_per_second, &|value| format!("{value:.0}")),
        ),
    ]
    .into_iter()
    .filter(|(_, bars)| !bars.is_empty())
    .map(|(title, bars)| safe(bars::draw(title, &bars)))
    .collect()
}

fn bars_note(report: &QuickstartReport) -> String {
    let mut note = String::new();
    if let Some(first) = report.perplexity.first() {
        note = format!(
            "Perplexity of {} held-out tokens in windows of {}, with its standard error. ",
            first.n_tokens, first.context
        );
    }
    if !report.decode_tokens_per_second.is_empty() {
        let threads = report.run.threads;
        note += &format!(
            "Decoding one token at a time on {threads} thread{}.",
            if threads == 1 { "" } else { "s" }
        );
    }
    note
}

fn token_bits(report: &QuickstartReport) -> Option<Value> {
    let grids = &report.token_bits;
    let widths = heatmap::widths(grids);
    let high = *widths.first()?;
    let layers = grids.iter().map(|grid| grid.layers.len()).max()?;
    let mut shares = Table::new(
        std::iter::once("sentence".to_owned())
            .chain(std::iter::once("tokens".to_owned()))
            .chain((0..layers).map(|layer| format!("layer {layer}"))),
    );
    for (i, grid) in grids.iter().enumerate() {
        let cells = grid.layers.iter().map(|row| format!("{:.0} %", heatmap::share_of(high, row)));
        shares.push([(i + 1).to_string(), grid.tokens.len().to_string()].into_iter().chain(cells));
    }
    let keys: Vec<Value> =
        widths.iter().map(|bits| context! { bits, class => heatmap::class(*bits) }).collect();
    let plots: Vec<Value> = grids.iter().map(|grid| safe(heatmap::draw(grid, high))).collect();
    // Only if the picture shows it: a uniform or random policy has other rules.
    let sure = grids.iter().all(|grid| {
        grid.layers.iter().all(|row| row.first() == Some(&high))
            && grid.layers.first().is_none_or(|row| row.iter().all(|bits| *bits == high))
    });
    let sure = if sure {
        format!(" The first token and layer 0 have {high} bits throughout.")
    } else {
        String::new()
    };
    let note = format!(
        "Activation bits of every token (columns) in every layer (rows).{sure} At the right: share of {high}-bit tokens."
    );
    Some(context! { high, note, keys, plots, table => table(shares) })
}

fn stages(curves: &[Curve]) -> Vec<Value> {
    curves
        .chunk_by(|a, b| a.stage == b.stage)
        .map(|curves| {
            let plots: Vec<Value> = curves.iter().map(|curve| safe(curve.draw())).collect();
            context! { name => curves[0].stage.clone(), plots }
        })
        .collect()
}

fn loss_table(curves: &[Curve]) -> Table {
    let mut table = Table::new(["stage · term", "values", "first", "lowest", "last"]);
    for curve in curves {
        let (first, lowest, last) = curve.extremes();
        table.push([
            format!("{} · {}", curve.stage, curve.term),
            curve.points.len().to_string(),
            significant(first),
            significant(lowest),
            significant(last),
        ]);
    }
    table
}
