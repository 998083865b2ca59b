//! Rotary position embedding: the tables of both interpreters, and weights that were written for pairs of neighbours.

/// Cosines and sines of RoPE, each `[positions, head_dim / 2]` row-major.
///
/// Entry `(p, i)` belongs to the angle `p * theta^(-2 i / head_dim)`, which turns the pair of elements `i` and
/// `i + head_dim / 2` of a head (the Hugging Face convention). Computed in f64 with a portable library and rounded
/// once, so that every machine has the same bits.
pub fn rope_tables(positions: usize, head_dim: usize, theta: f64) -> (Vec<f32>, Vec<f32>) {
    let half = head_dim / 2;
    let frequencies: Vec<f64> =
        (0..half).map(|i| libm::pow(theta, -(2.0 * i as f64) / head_dim as f64)).collect();
    let mut cos = Vec::with_capacity(positions * half);
    let mut sin = Vec::with_capacity(positions * half);
    for position in 0..positions {
        for frequency in &frequencies {
            let (s, c) = libm::sincos(position as f64 * frequency);
            cos.push(c as f32);
            sin.push(s as f32);
        }
    }
    (cos, sin)
}

/// Reorders the rows of each head from pairs `(2i, 2i + 1)` to pairs `(i, i + head_dim / 2)`.
pub(crate) fn half_rotation(weight: &[f32], head_dim: usize, cols: usize) -> Vec<f32> {
    let mut out = Vec::with_capacity(weight.len());
    for head in weight.chunks_exact(head_dim * cols) {
        for offset in [0, 1] {
            for row in (offset..head_dim).step_by(2) {
                out.extend_from_slice(&head[row * cols..(row + 1) * cols]);
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_paired_half_a_head_apart() {
        // Two heads of four rows of two columns; a row is named by its first value.
        let weight: Vec<f32> = (0..16).map(|i| i as f32).collect();
        let rows: Vec<f32> = half_rotation(&weight, 4, 2).iter().step_by(2).copied().collect();
        assert_eq!(rows, [0.0, 4.0, 2.0, 6.0, 8.0, 12.0, 10.0, 14.0]);
    }

    #[test]
    fn angles() {
        let (cos, sin) = rope_tables(5, 8, 10_000.0);
        assert_eq!((cos.len(), sin.len()), (20, 20));
        assert_eq!((&cos[..4], &sin[..4]), (&[1.0f32; 4][..], &[0.0f32; 4][..]));
        for (p, i) in [(1, 0), (3, 2), (4, 3)] {
            let angle = p as f64 * 10_000f64.powf(-2.0 * i as f64 / 8.0);
            assert!((f64::from(cos[p * 4 + i]) - angle.cos()).abs() < 1e-7);
            assert!((f64::from(sin[p * 4 + i]) - angle.sin()).abs() < 1e-7);
        }
    }
}
