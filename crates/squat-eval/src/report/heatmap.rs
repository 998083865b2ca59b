//! Activation bits by token and layer.

use super::data::TokenBits;
use super::svg::{Anchor, Svg, text_width};

const CELL: (f64, f64) = (26.0, 20.0);
const LABEL: f64 = 12.0;
const MAX_LABEL: usize = 16;

/// A token as a label: `␣` for a leading space, `↵` for line breaks; long tokens are truncated.
fn label(token: &str) -> String {
    let mut text: String = token
        .chars()
        .map(|c| match c {
            ' ' | 'Ġ' | '▁' => '␣',
            '\n' | '\r' | 'Ċ' => '↵',
            '\t' => '⇥',
            c => c,
        })
        .collect();
    if text.chars().count() > MAX_LABEL {
        text = text.chars().take(MAX_LABEL - 1).chain(['…']).collect();
    }
    text
}

/// Share of the tokens of a layer with `bits` bits, in percent.
pub(super) fn share_of(bits: u8, row: &[u8]) -> f64 {
    100.0 * row.iter().filter(|value| **value == bits).count() as f64 / row.len().max(1) as f64
}

/// Every number of bits that occurs, largest first.
pub(super) fn widths(grids: &[TokenBits]) -> Vec<u8> {
    let mut widths: Vec<u8> = grids.iter().flat_map(|grid| grid.layers.iter().flatten().copied()).collect();
    widths.sort_unstable_by(|a, b| b.cmp(a));
    widths.dedup();
    widths
}

/// CSS class of a number of bits.
pub(super) fn class(bits: u8) -> &'static str {
    match bits {
        8.. => "bits8",
        5..8 => "bits6",
        _ => "bits4",
    }
}

/// Tokens as columns, layers as rows, layer 0 at the top; at the right the share of `high`-bit tokens of each row.
pub(super) fn draw(grid: &TokenBits, high: u8) -> String {
    let labels: Vec<String> = grid.tokens.iter().map(|token| label(token)).collect();
    let slope = 60_f64.to_radians();
    let longest = labels.iter().map(|label| text_width(label, LABEL)).fold(0.0, f64::max);
    let (left, top) = (62.0, longest * slope.sin() + 18.0);
    let right = left + CELL.0 * labels.len() as f64;
    // The last label extends over the column of shares.
    let overhang = labels.last().map_or(0.0, |label| text_width(label, LABEL) * slope.cos());
    let width = right + overhang.max(54.0) + 6.0;
    let height = top + CELL.1 * grid.layers.len() as f64 + 6.0;
    let mut svg = Svg::new(width, height, "Activation bits by token and layer");

    for (i, label) in labels.iter().enumerate() {
        let x = left + CELL.0 * (i as f64 + 0.5) + 3.0;
        svg.rotated_text("token", (x, top - 6.0), Anchor::Start, -60.0, label);
    }
    for (layer, row) in grid.layers.iter().enumerate() {
        let y = top + CELL.1 * layer as f64;
        svg.text("tick", (left - 8.0, y + CELL.1 * 0.7), Anchor::End, &format!("layer {layer}"));
        for (i, bits) in row.iter().enumerate() {
            let tooltip = format!("layer {layer}, token {i} “{}”: {bits} bits", labels[i]);
            let corner = (left + CELL.0 * i as f64 + 1.0, y + 1.0);
            svg.rect(class(*bits), corner, (CELL.0 - 2.0, CELL.1 - 2.0), &tooltip);
        }
        let share = format!("{:.0} %", share_of(high, row));
        svg.text("tick", (right + 44.0, y + CELL.1 * 0.7), Anchor::End, &share);
    }
    svg.finish()
}
