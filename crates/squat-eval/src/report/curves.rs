//! Loss curves: one panel per stage and term, because each term has its own scale.

use super::data::LossPoint;
use super::scale::{Scale, domain, significant, ticks};
use super::svg::{Anchor, Svg};

const WIDTH: f64 = 330.0;
const HEIGHT: f64 = 190.0;
/// Largest number of points; longer curves are averaged over as many intervals of equal length.
const MAX_POINTS: usize = 240;

/// Every value of one term in one stage, by step.
pub(super) struct Curve {
    pub stage: String,
    pub term: String,
    pub points: Vec<(u64, f64)>,
}

/// The curves in the order in which stages and terms first occur. Non-finite values are skipped.
pub(super) fn curves(losses: &[LossPoint]) -> Vec<Curve> {
    let mut curves: Vec<Curve> = Vec::new();
    let mut stages: Vec<&str> = Vec::new();
    for point in losses {
        if !stages.contains(&point.stage.as_str()) {
            stages.push(&point.stage);
        }
        let curve =
            match curves.iter_mut().find(|curve| curve.stage == point.stage && curve.term == point.term) {
                Some(curve) => curve,
                None => {
                    let (stage, term) = (point.stage.clone(), point.term.clone());
                    curves.push(Curve { stage, term, points: Vec::new() });
                    let last = curves.len() - 1;
                    &mut curves[last]
                }
            };
        if point.value.is_finite() {
            curve.points.push((point.step, point.value));
        }
    }
    curves.retain(|curve| !curve.points.is_empty());
    for curve in &mut curves {
        curve.points.sort_by_key(|(step, _)| *step);
    }
    curves.sort_by_key(|curve| stages.iter().position(|stage| *stage == curve.stage));
    curves
}

impl Curve {
    /// First, lowest and last value.
    pub fn extremes(&self) -> (f64, f64, f64) {
        let values = || self.points.iter().map(|(_, value)| *value);
        (
            values().next().unwrap_or(f64::NAN),
            values().fold(f64::INFINITY, f64::min),
            values().next_back().unwrap_or(f64::NAN),
        )
    }

    fn thinned(&self) -> Vec<(f64, f64)> {
        let stretch = self.points.len().div_ceil(MAX_POINTS).max(1);
        self.points
            .chunks(stretch)
            .map(|chunk| {
                let n = chunk.len() as f64;
                let step = chunk.iter().map(|(step, _)| *step as f64).sum::<f64>() / n;
                (step, chunk.iter().map(|(_, value)| value).sum::<f64>() / n)
            })
            .collect()
    }

    /// The panel.
    pub fn draw(&self) -> String {
        let points = self.thinned();
        let title = format!("{} · {}", self.stage, self.term);
        let mut svg =
            Svg::new(WIDTH, HEIGHT, &format!("Loss term {} by step of stage {}", self.term, self.stage));
        let (left, right, top, bottom) = (46.0, WIDTH - 10.0, 30.0, HEIGHT - 34.0);
        let x =
            Scale { domain: domain(self.points.iter().map(|point| point.0 as f64)), range: (left, right) };
        let y = Scale { domain: domain(points.iter().map(|point| point.1)), range: (bottom, top + 4.0) };

        svg.text("strong", (left, 16.0), Anchor::Start, &title);
        let last = self.extremes().2;
        svg.text("muted", (right, 16.0), Anchor::End, &significant(last));
        for (tick, label) in ticks(y.domain, 4) {
            svg.line("grid", (left, y.at(tick)), (right, y.at(tick)));
            svg.text("tick", (left - 6.0, y.at(tick) + 4.0), Anchor::End, &label);
        }
        for (tick, label) in ticks(x.domain, 5) {
            svg.line("axis", (x.at(tick), bottom), (x.at(tick), bottom + 4.0));
            svg.text("tick", (x.at(tick), bottom + 16.0), Anchor::Middle, &label);
        }
        svg.line("axis", (left, bottom), (right, bottom));
        svg.text("tick", ((left + right) / 2.0, HEIGHT - 4.0), Anchor::Middle, "step");
        let drawn: Vec<(f64, f64)> = points.iter().map(|point| (x.at(point.0), y.at(point.1))).collect();
        match drawn.as_slice() {
            [only] => svg.circle("point", *only, 3.0, &significant(last)),
            _ => svg.polyline("curve", &drawn),
        }
        svg.finish()
    }
}
