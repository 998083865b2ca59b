//! Linear scales with round ticks.

/// A linear map of `domain` onto `range`.
#[derive(Clone, Copy)]
pub(super) struct Scale {
    pub domain: (f64, f64),
    pub range: (f64, f64),
}

impl Scale {
    pub fn at(&self, value: f64) -> f64 {
        let (low, high) = self.domain;
        self.range.0 + (value - low) / (high - low) * (self.range.1 - self.range.0)
    }
}

/// A domain that contains every value and is never empty.
pub(super) fn domain(values: impl Iterator<Item = f64>) -> (f64, f64) {
    let (mut low, mut high) = (f64::INFINITY, f64::NEG_INFINITY);
    for value in values.filter(|value| value.is_finite()) {
        low = low.min(value);
        high = high.max(value);
    }
    if low > high {
        return (0.0, 1.0);
    }
    if high - low <= 1e-9 * high.abs().max(1e-12) {
        let margin = (0.1 * high.abs()).max(1e-6);
        return (low - margin, high + margin);
    }
    (low, high)
}

/// Distance of ticks: 1, 2 or 5 times a power of ten, for about `count` ticks.
pub(super) fn tick_step((low, high): (f64, f64), count: usize) -> f64 {
    let rough = (high - low) / count.max(1) as f64;
    let power = 10_f64.powf(rough.log10().floor());
    let factor =
        [1.0, 2.0, 5.0, 10.0].into_iter().find(|factor| factor * power >= rough * 0.999).unwrap_or(10.0);
    factor * power
}

/// Round ticks inside the domain, with as many decimals as they need.
pub(super) fn ticks(domain: (f64, f64), count: usize) -> Vec<(f64, String)> {
    // The step is at most 2.5 times the rough one: from 3 on, at least one tick is inside.
    let count = count.max(3);
    let step = tick_step(domain, count);
    if !step.is_finite() || step <= 0.0 {
        return Vec::new();
    }
    let decimals = (-step.log10().floor()).clamp(0.0, 9.0) as usize;
    let first = (domain.0 / step - 1e-6).ceil();
    // Twice the requested number bounds the loop for any figures.
    (0..2 * count + 2)
        .map(|i| (first + i as f64) * step)
        .take_while(|tick| *tick <= domain.1 + step * 1e-6)
        .map(|tick| {
            // Adding 0 turns -0 into 0.
            let tick = tick + 0.0;
            let label = match tick.abs() {
                v if v >= 1e6 => format!("{}M", trim(format!("{:.2}", tick / 1e6))),
                v if v >= 1e4 => format!("{}k", trim(format!("{:.2}", tick / 1e3))),
                _ => format!("{tick:.decimals$}"),
            };
            (tick, label)
        })
        .collect()
}

fn trim(text: String) -> String {
    if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').to_owned() } else { text }
}

/// About four significant digits, with an exponent only if it is needed.
pub(super) fn significant(value: f64) -> String {
    match value.abs() {
        _ if !value.is_finite() => "-".to_owned(),
        0.0 => "0".to_owned(),
        v if !(1e-4..1e7).contains(&v) => format!("{value:.2e}"),
        v => format!("{value:.decimals$}", decimals = (3.0 - v.log10().floor()).clamp(0.0, 7.0) as usize),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn ticks_are_round() {
        let labels =
            |domain, count| ticks(domain, count).into_iter().map(|(_, label)| label).collect::<Vec<_>>();
        assert_eq!(labels((0.0, 10.0), 5), ["0", "2", "4", "6", "8", "10"]);
        assert_eq!(labels((0.13, 0.47), 4), ["0.2", "0.3", "0.4"]);
        assert_eq!(labels((-0.1, 0.1), 3), ["-0.1", "0.0", "0.1"]);
        assert_eq!(labels((0.0, 30_000.0), 3), ["0", "10k", "20k", "30k"]);
        assert_eq!(significant(0.012_341), "0.01234");
        assert_eq!(significant(123.456), "123.5");
        assert_eq!(significant(1.5e-7), "1.50e-7");
    }

    proptest! {
        #[test]
        fn any_domain_has_some_ticks_inside(low in -1e6f64..1e6, width in 1e-3f64..1e6, count in 3usize..10) {
            let domain = domain([low, low + width].into_iter());
            let ticks = ticks(domain, count);
            prop_assert!(!ticks.is_empty() && ticks.len() <= 2 * count + 2, "{:?}", ticks);
            prop_assert!(ticks.iter().all(|(tick, _)| (domain.0 - width * 0.01..=domain.1 + width * 0.01).contains(tick)));
        }
    }
}
