//! Thresholds of the token policy during training: a running estimate of each layer's quantile.

/// Weight of the newest batch in the running estimate.
const MOMENTUM: f32 = 0.05;

/// The `(1 - rho)` quantile of `scores`: the share `rho` of them is at or above it.
///
/// Empty scores give infinity (no token passes); rho = 1 gives the smallest score.
pub fn quantile(scores: &[f32], rho: f32) -> f32 {
    if scores.is_empty() {
        return f32::INFINITY;
    }
    let mut sorted = scores.to_vec();
    sorted.sort_by(f32::total_cmp);
    let passing = (f64::from(rho) * sorted.len() as f64).round() as usize;
    if passing == 0 {
        // Just above everything seen.
        return sorted[sorted.len() - 1] * 1.000_1 + f32::MIN_POSITIVE;
    }
    sorted[sorted.len() - passing.min(sorted.len())]
}

/// Moves the running thresholds towards this batch's quantiles. Scores of the first token of each sequence, which is
/// always 8-bit, are left out.
pub fn follow(thresholds: &mut [f32], scores: &[Vec<f32>], seq: usize, rho: f32) {
    for (theta, scores) in thresholds.iter_mut().zip(scores) {
        if let Some(now) = batch_quantile(scores, seq, rho) {
            *theta += MOMENTUM * (now - *theta);
        }
    }
}

/// Thresholds from one batch, without memory.
pub fn initial(scores: &[Vec<f32>], seq: usize, rho: f32) -> Vec<f32> {
    scores.iter().map(|scores| batch_quantile(scores, seq, rho).unwrap_or(0.0)).collect()
}

fn batch_quantile(scores: &[f32], seq: usize, rho: f32) -> Option<f32> {
    let eligible: Vec<f32> =
        scores.iter().enumerate().filter(|(i, _)| i % seq != 0).map(|(_, &score)| score).collect();
    (!eligible.is_empty()).then(|| quantile(&eligible, rho))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_asked_share_passes() {
        let scores: Vec<f32> = (0..1000).map(|i| ((i * 7919) % 1000) as f32).collect();
        for rho in [0.0, 0.1, 0.5, 0.9, 1.0] {
            let theta = quantile(&scores, rho);
            let passing = scores.iter().filter(|&&s| s >= theta).count();
            assert_eq!(passing, (rho * 1000.0) as usize, "rho {rho}");
        }
    }

    #[test]
    fn the_estimate_follows_and_skips_first_tokens() {
        let mut thetas = vec![0.0];
        // First tokens of both sequences of 4 have huge scores.
        let scores = vec![vec![1e9, 1.0, 2.0, 3.0, 1e9, 4.0, 5.0, 6.0]];
        for _ in 0..400 {
            follow(&mut thetas, &scores, 4, 0.5);
        }
        assert!((thetas[0] - 4.0).abs() < 1e-3, "{thetas:?}");
        assert_eq!(initial(&scores, 4, 0.5), [4.0]);
    }
}
