//! `squat doctor`: what this machine can do, and which kernels are used.

use crate::args::Doctor;
use crate::bench::limits::{read_bandwidth, together};
use crate::machine::{binary_size, caches, cpu_features, cpu_name};
use crate::{forms, printer};
use anyhow::Result;
use serde_json::json;
use squat_eval::table::Table;
use squat_kernels::{Kernels, probe};
use squat_quant::{ActBits, WeightBits};
use std::process::ExitCode;
use std::time::Duration;

/// Duration of one measurement.
const MOMENT: Duration = Duration::from_millis(100);

/// Buffer for the bandwidth of memory if the size of the last cache is unknown.
const LARGE: usize = 256 << 20;

/// One measured figure, by number of threads.
struct Figure {
    key: &'static str,
    what: String,
    bytes: Option<usize>,
    /// Per second, in billions.
    values: Vec<f64>,
}

pub fn run(args: &Doctor) -> Result<ExitCode> {
    let forced = Kernels::from_environment()?;
    let kernels = forced.unwrap_or_else(Kernels::detect);
    let available: Vec<&str> = Kernels::available().map(Kernels::name).collect();
    let product = kernels.product_name(WeightBits::W4, ActBits::A8).to_string();
    let (features, caches) = (cpu_features(), caches());
    let all = forms::threads(0);
    let threads: Vec<usize> = if all > 1 { vec![1, all] } else { vec![1] };
    let figures = measure(kernels, &threads);
    let peaks: Vec<(&str, f64)> =
        Kernels::available().map(|set| (set.name(), probe::integer_peak(set, MOMENT) / 1e9)).collect();
    if args.json {
        let caches: Vec<_> = caches
            .iter()
            .map(|c| json!({"level": c.level, "kind": c.kind, "bytes": c.bytes, "shared_by": c.shared_by}))
            .collect();
        let limits: Vec<_> = figures
            .iter()
            .flat_map(|figure| threads.iter().zip(&figure.values).map(move |(threads, value)| (figure, threads, value)))
            .map(|(f, threads, value)| json!({"limit": f.key, "bytes": f.bytes, "threads": threads, "giga_per_second": value}))
            .collect();
        let memory = figures.iter().rfind(|figure| figure.key == "read").map(|figure| figure.values[0]);
        let peaks: Vec<_> = peaks
            .iter()
            .map(|(name, peak)| json!({"kernels": name, "integer_gop_per_second": peak}))
            .collect();
        printer::json(
            &json!({"version": env!("CARGO_PKG_VERSION"), "cpu": cpu_name(), "threads": all, "features": features,
            "caches": caches, "kernels_available": available, "kernels": kernels.name(), "forced": forced.is_some(),
            "w4a8": product, "peaks": peaks, "limits": limits, "read_bandwidth_gb_per_s": memory}),
        );
        return Ok(ExitCode::SUCCESS);
    }
    let last = Kernels::available().next_back();
    let why = match (forced, last.and_then(|last| Some((last, last.alternative()?)))) {
        (Some(_), _) => "forced by SQUAT_ISA".to_owned(),
        (None, Some((last, alternative))) => {
            let other = if kernels.name() == last.name() { alternative } else { last };
            format!("measured faster than {}", other.name())
        }
        (None, None) => "the last one that this CPU can run".to_owned(),
    };
    let caches: Vec<String> = caches.iter().map(|cache| cache.describe()).collect();
    for (what, value) in [
        ("squat", env!("CARGO_PKG_VERSION").to_owned()),
        ("CPU", cpu_name()),
        ("threads", all.to_string()),
        ("features", features.join(" ")),
        ("caches", if caches.is_empty() { "unknown".to_owned() } else { caches.join(", ") }),
        ("kernels", format!("{} ({why}); available: {}", kernels.name(), available.join(", "))),
        ("W4A8 product", product),
    ] {
        printer::line(&format!("{what}: {value}"));
    }
    let peaks: Vec<String> = peaks.iter().map(|(name, peak)| format!("{name} {peak:.0}")).collect();
    printer::line(&format!("integer peak by kernels, 1 thread, GOP/s: {}\n", peaks.join(", ")));
    let titles = threads.iter().map(|n| if *n == 1 { "1 thread".to_owned() } else { format!("{n} threads") });
    let mut table = Table::new(std::iter::once("measured".to_owned()).chain(titles));
    for figure in figures {
        let values = figure
            .values
            .iter()
            .map(|value| if *value < 100.0 { format!("{value:.1}") } else { format!("{value:.0}") });
        table.push(std::iter::once(figure.what.clone()).chain(values));
    }
    printer::data(&table.to_markdown());
    Ok(ExitCode::SUCCESS)
}

/// Peaks, and read bandwidth from buffers of half the size of each cache (shared caches by all threads together) and
/// from memory.
fn measure(kernels: &Kernels, threads: &[usize]) -> Vec<Figure> {
    let peak = |key, what: &str, rate: &(dyn Fn() -> f64 + Sync)| Figure {
        key,
        what: what.to_owned(),
        bytes: None,
        values: threads.iter().map(|&n| together(n, || (), |()| rate()) / 1e9).collect(),
    };
    let mut figures = vec![
        peak("integer", "integer products (4 x 8 bits), GOP/s", &|| probe::integer_peak(kernels, MOMENT)),
        peak("float", "float products, GFLOP/s", &|| probe::float_peak(kernels, MOMENT)),
    ];
    let caches: Vec<_> = caches().into_iter().filter(|cache| cache.kind != "Instruction").collect();
    let mut read = |what: String, bytes: usize, shared: bool| {
        let total = |n: usize| if shared { bytes } else { n * bytes };
        figures.push(Figure {
            key: "read",
            what: format!("read {what}, GB/s"),
            bytes: Some(bytes),
            values: threads.iter().map(|&n| read_bandwidth(kernels, n, total(n)) / 1e9).collect(),
        });
    };
    for cache in &caches {
        let half = cache.bytes / 2;
        read(
            format!("{} from L{}", binary_size(half), cache.level),
            half,
            cache.shared_by.parse::<u32>().is_err(),
        );
    }
    let large = caches.last().map_or(LARGE, |cache| (8 * cache.bytes).clamp(64 << 20, 1 << 30));
    read(format!("{} from memory", binary_size(large)), large, true);
    figures
}
