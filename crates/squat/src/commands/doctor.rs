//! `squat doctor`: what this machine can do.

use crate::args::Doctor;
use crate::{forms, printer};
use anyhow::Result;
use serde_json::json;
use squat_kernels::Kernels;
use squat_quant::{ActBits, WeightBits};
use std::process::ExitCode;
use std::time::Instant;

/// Buffer that no cache of a usual machine holds.
const LARGE: usize = 256 << 20;

pub fn run(args: &Doctor) -> Result<ExitCode> {
    let kernels = match Kernels::from_environment()? {
        Some(kernels) => kernels,
        None => Kernels::detect(),
    };
    let available: Vec<&str> = Kernels::available().map(Kernels::name).collect();
    let product = kernels.product_name(WeightBits::W4, ActBits::A8).to_string();
    let features = cpu_features();
    let bandwidth = read_bandwidth(kernels);
    if args.json {
        printer::json(
            &json!({"version": env!("CARGO_PKG_VERSION"), "cpu": cpu_name(), "threads": forms::threads(0),
            "features": features, "kernels_available": available, "kernels": kernels.name(), "w4a8": product,
            "read_bandwidth_gb_per_s": bandwidth}),
        );
        return Ok(ExitCode::SUCCESS);
    }
    let forced = if std::env::var_os("SQUAT_ISA").is_some() {
        "forced by SQUAT_ISA"
    } else {
        "the widest that this CPU has"
    };
    for (what, value) in [
        ("squat", env!("CARGO_PKG_VERSION").to_owned()),
        ("CPU", cpu_name()),
        ("threads", forms::threads(0).to_string()),
        ("features", features.join(" ")),
        ("kernels", format!("{} ({forced}); available: {}", kernels.name(), available.join(", "))),
        ("W4A8 product", product),
        ("read bandwidth, 1 thread, memory", format!("{bandwidth:.1} GB/s")),
    ] {
        printer::line(&format!("{what}: {value}"));
    }
    Ok(ExitCode::SUCCESS)
}

/// Name of the CPU, where the system tells it.
pub fn cpu_name() -> String {
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let named =
        info.lines().find_map(|line| line.strip_prefix("model name").and_then(|rest| rest.split(':').nth(1)));
    named.map_or_else(|| std::env::consts::ARCH.to_owned(), |name| name.trim().to_owned())
}

fn cpu_features() -> Vec<&'static str> {
    let mut found = Vec::new();
    #[cfg(target_arch = "x86_64")]
    {
        macro_rules! probe { ($($name:tt)*) => { $(if std::is_x86_feature_detected!($name) { found.push($name); })* } }
        probe!("sse4.2" "avx" "f16c" "fma" "avx2" "avxvnni" "avx512f" "avx512bw" "avx512vl" "avx512vnni");
    }
    #[cfg(target_arch = "aarch64")]
    {
        macro_rules! probe { ($($name:tt)*) => { $(if std::arch::is_aarch64_feature_detected!($name) { found.push($name); })* } }
        probe!("neon" "dotprod" "i8mm");
    }
    found
}

/// GB/s of reading a large buffer once, best of three.
fn read_bandwidth(kernels: &Kernels) -> f64 {
    let buffer = vec![1f32; LARGE / 4];
    let mut best = f64::MAX;
    for _ in 0..3 {
        let started = Instant::now();
        std::hint::black_box(kernels.max_abs(&buffer));
        best = best.min(started.elapsed().as_secs_f64());
    }
    LARGE as f64 / best / 1e9
}
