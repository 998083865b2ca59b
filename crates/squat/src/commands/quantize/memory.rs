//! How much memory a quantization takes, before it begins.

use super::text::Text;
use anyhow::{Result, bail};
use squat_model::ModelSpec;

/// Bytes that are needed at one time, about.
///
/// The original runs in f32 beside two copies of its weights while codes are found, and every token of calibration keeps its rows
/// of the residual stream and of the inputs of a layer. Training holds the original twice, the student with two moments and
/// gradients for each thread, and the logits of a micro-batch several times over.
pub fn needed(spec: &ModelSpec, calibration: &Text, trains: bool, threads: usize) -> u64 {
    let parameters = 4 * spec.num_parameters() as u64;
    let (hidden, inner, vocabulary) =
        (spec.hidden_size as u64, spec.intermediate_size as u64, spec.vocab_size as u64);
    let tokens: u64 = calibration.calibration.iter().map(|window| window.len() as u64).sum();
    let finding = 3 * parameters + 4 * tokens * (5 * hidden + 2 * inner);
    let micro_batch = 2 * 256;
    let training = (5 + 2 * threads as u64) * parameters
        + threads as u64
            * 4
            * micro_batch
            * (6 * vocabulary + spec.num_hidden_layers as u64 * (12 * hidden + 5 * inner));
    if trains { finding.max(training) } else { finding }
}

/// Says what is needed, and refuses what cannot fit.
pub fn check(needed: u64, available: Option<u64>) -> Result<String> {
    let gigabytes = |bytes: u64| bytes as f64 / 1e9;
    match available {
        Some(available) if available < needed => bail!(
            "the quantization needs about {:.1} GB of memory, and {:.1} GB are available; give fewer --tokens or --threads, leave \
             --minutes out, or take a machine with more",
            gigabytes(needed),
            gigabytes(available)
        ),
        Some(available) => Ok(format!(
            "needs about {:.1} GB of memory; {:.1} GB are available",
            gigabytes(needed),
            gigabytes(available)
        )),
        None => Ok(format!("needs about {:.1} GB of memory", gigabytes(needed))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_fit_is_refused_with_both_figures() {
        let error = check(5_000_000_000, Some(4_000_000_000)).unwrap_err().to_string();
        assert!(
            error.contains("5.0 GB") && error.contains("4.0 GB") && error.contains("--tokens"),
            "{error}"
        );
        assert!(check(1_000_000, Some(2_000_000)).unwrap().contains("available"));
        check(u64::MAX, None).unwrap();
    }
}
