//! One figure by form, as labelled horizontal bars.

use super::scale::Scale;
use super::svg::{Anchor, Svg, text_width};
use crate::model::Form;

/// One bar.
pub(super) struct Bar {
    pub form: Form,
    pub value: f64,
    /// Half the length of the error bar.
    pub error: Option<f64>,
    /// Its label.
    pub text: String,
}

const WIDTH: f64 = 330.0;
const ROW: f64 = 26.0;

/// Bars from 0, under a title.
pub(super) fn draw(title: &str, bars: &[Bar]) -> String {
    let top = 28.0;
    let mut svg = Svg::new(WIDTH, top + ROW * bars.len() as f64 + 6.0, title);
    let left = 104.0;
    let room = bars.iter().map(|bar| text_width(&bar.text, 12.5)).fold(0.0, f64::max) + 12.0;
    let high = bars
        .iter()
        .map(|bar| bar.value + bar.error.unwrap_or(0.0))
        .filter(|v| v.is_finite())
        .fold(0.0, f64::max);
    let x = Scale { domain: (0.0, if high > 0.0 { high } else { 1.0 }), range: (left, WIDTH - room) };

    svg.text("strong", (0.0, 16.0), Anchor::Start, title);
    for (i, bar) in bars.iter().enumerate() {
        let y = top + ROW * i as f64;
        svg.text("label", (left - 8.0, y + 17.0), Anchor::End, bar.form.title());
        let end = if bar.value.is_finite() { x.at(bar.value.max(0.0)) } else { left };
        svg.rect(&format!("bar {}", bar.form), (left, y + 4.0), ((end - left).max(1.0), ROW - 8.0), "");
        let mut label = end;
        if let Some(error) = bar.error.filter(|error| error.is_finite()) {
            let (low, high) = (x.at((bar.value - error).max(0.0)), x.at(bar.value + error));
            let middle = y + ROW / 2.0;
            svg.line("error", (low, middle), (high, middle));
            for end in [low, high] {
                svg.line("error", (end, middle - 4.0), (end, middle + 4.0));
            }
            label = high;
        }
        svg.text("label", (label + 6.0, y + 17.0), Anchor::Start, &bar.text);
    }
    svg.line("axis", (left, top), (left, top + ROW * bars.len() as f64));
    svg.finish()
}
