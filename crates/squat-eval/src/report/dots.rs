//! Accuracy by phenomenon: one row per group, one mark per form.

use std::collections::BTreeSet;

use super::scale::{Scale, ticks};
use super::svg::{Anchor, Svg, text_width};
use crate::model::Form;
use crate::tasks::TaskResult;

const ROW: f64 = 30.0;
/// Distance of the marks of neighbouring forms in a row, so that equal values do not hide each other.
const LANE: f64 = 7.0;

/// `determiner_noun_agreement` -> `determiner noun agreement`.
pub(super) fn readable(group: &str) -> String {
    group.replace('_', " ")
}

/// Names of all groups, sorted.
pub(super) fn groups(results: &[TaskResult]) -> Vec<&str> {
    let groups: BTreeSet<&str> =
        results.iter().flat_map(|result| result.groups.keys().map(String::as_str)).collect();
    groups.into_iter().collect()
}

/// Circle, diamond, square: distinguishable without colour.
pub(super) fn mark(svg: &mut Svg, form: Form, (x, y): (f64, f64), tooltip: &str) {
    let class = format!("mark {form}");
    match form {
        Form::Fp => svg.circle(&class, (x, y), 4.2, tooltip),
        Form::Fake => {
            let points = [(x, y - 5.4), (x + 5.4, y), (x, y + 5.4), (x - 5.4, y)];
            svg.polygon(&class, &points, tooltip);
        }
        Form::Packed => svg.rect(&class, (x - 3.9, y - 3.9), (7.8, 7.8), tooltip),
    }
}

/// The plot; the row of the average comes last, separated from the others.
pub(super) fn draw(results: &[TaskResult]) -> String {
    let groups = groups(results);
    let longest = groups.iter().map(|group| text_width(&readable(group), 12.5)).fold(60.0, f64::max);
    let (left, top) = (longest + 16.0, 34.0);
    let width = left + 330.0;
    let body = ROW * groups.len() as f64;
    let bottom = top + body + ROW + 10.0;
    let mut svg = Svg::new(width, bottom + 38.0, "Accuracy by phenomenon and form");

    let values = || results.iter().flat_map(|result| result.groups.values().copied().chain([result.average]));
    let low = values().filter(|value| value.is_finite()).fold(45.0_f64, f64::min);
    let x = Scale { domain: ((low / 10.0).floor() * 10.0, 100.0), range: (left + 8.0, width - 12.0) };

    let mut legend = left;
    for result in results {
        mark(&mut svg, result.form, (legend + 5.0, 11.0), "");
        svg.text("label", (legend + 16.0, 15.0), Anchor::Start, result.form.title());
        legend += 32.0 + text_width(result.form.title(), 12.5);
    }
    for (tick, label) in ticks(x.domain, 6) {
        svg.line("grid", (x.at(tick), top - 4.0), (x.at(tick), bottom));
        svg.text("tick", (x.at(tick), bottom + 16.0), Anchor::Middle, &label);
    }
    svg.line("chance", (x.at(50.0), top - 4.0), (x.at(50.0), bottom));
    svg.text(
        "tick",
        ((x.range.0 + x.range.1) / 2.0, bottom + 32.0),
        Anchor::Middle,
        "accuracy, % (dashed: chance)",
    );

    let mut row = |class: &str, name: &str, y: f64, value: &dyn Fn(&TaskResult) -> Option<f64>| {
        svg.text(class, (left - 8.0, y + 4.0), Anchor::End, name);
        let known: Vec<f64> = results.iter().filter_map(value).map(|value| x.at(value)).collect();
        if known.len() > 1 {
            let (low, high) = known.iter().fold((f64::MAX, f64::MIN), |(l, h), v| (l.min(*v), h.max(*v)));
            svg.line("span", (low, y), (high, y));
        }
        for (i, result) in results.iter().enumerate() {
            if let Some(value) = value(result) {
                let lane = (i as f64 - (results.len() as f64 - 1.0) / 2.0) * LANE;
                let tooltip = format!("{name}, {}: {value:.1} %", result.form.title());
                mark(&mut svg, result.form, (x.at(value), y + lane), &tooltip);
            }
        }
    };
    for (i, group) in groups.iter().enumerate() {
        let y = top + ROW * (i as f64 + 0.5);
        row("label", &readable(group), y, &|result| result.groups.get(*group).copied());
    }
    row("strong", "average", top + body + ROW / 2.0 + 6.0, &|result| Some(result.average));
    svg.line("axis", (left, top + body + 4.0), (width - 12.0, top + body + 4.0));
    svg.finish()
}
