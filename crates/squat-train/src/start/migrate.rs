//! Scales that move between the inputs of linears and their weights, where nothing but weights and gains has to change.
//!
//! Behind an orthogonal transform the error of a quantized row is spread evenly over its values, and so is that of a quantized
//! weight. With a factor `s_i` on input i and `1 / s_i` on column i of the weight, the errors of both, carried to the output, are
//! proportional to `|x s|^2 |w / s|^2`, which is least at `s_i^2 = |w_i| / |x_i|` (Cauchy-Schwarz). SmoothQuant (arXiv
//! 2211.10438) moves scales by the largest values, for rows that are not transformed.

use crate::basis::transform_outputs;
use crate::parameters::Parameters;
use squat_kernels::Kernels;
use squat_model::spec::bias_name;
use squat_quant::Transform;

/// Largest factor, and its inverse the smallest: channels that are almost never used tell little.
const LARGEST: f32 = 32.0;

/// Where the factors of the inputs of some linears are kept.
pub(super) enum Place {
    /// In the gain (and bias) of the norm before them, of this name.
    Norm(String),
    /// In the outputs of the linear of this name, which the inputs are a linear function of, channel by channel. `transform` is
    /// that of each head of these outputs.
    Outputs(String, Transform),
}

/// Moves scales between the inputs `x` of some linears, rows in the basis of the original, and the linears, whose
/// stored rows are transformed by each of `transforms`; returns the factor of every input.
///
/// `group` inputs in a row, `width` values each, have the same factors: the heads that share values.
pub(super) fn migrate<'a>(
    parameters: &mut Parameters,
    (readers, place): (&[String], &Place),
    transforms: &[Transform],
    (group, width): (usize, usize),
    x: impl Iterator<Item = &'a [f32]>,
) -> Vec<f32> {
    let Some(cols) = readers.first().and_then(|name| parameters.get(name)).map(|p| p.shape[1]) else {
        return Vec::new();
    };
    let mut inputs = vec![0f64; cols];
    x.for_each(|rows| add_squares(&mut inputs, rows));
    let mut weights = vec![0f64; cols];
    for name in readers {
        let Some(at) = parameters.index(name) else { continue };
        let rows = &mut parameters.list_mut()[at].values;
        transforms.iter().rev().for_each(|&t| Kernels::detect().transform(rows, cols, t));
        add_squares(&mut weights, rows);
    }
    let factors = factors(&inputs, &weights, group, width);
    for name in readers {
        let Some(at) = parameters.index(name) else { continue };
        let rows = &mut parameters.list_mut()[at].values;
        for row in rows.chunks_exact_mut(cols) {
            row.iter_mut().zip(&factors).for_each(|(w, s)| *w /= s);
        }
        transforms.iter().for_each(|&t| Kernels::detect().transform(rows, cols, t));
    }
    // One factor for each channel of the place.
    let own: Vec<f32> =
        factors.chunks_exact(group * width).flat_map(|heads| &heads[..width]).copied().collect();
    let (name, transform) = match place {
        Place::Norm(name) => (name, Transform::None),
        Place::Outputs(name, transform) => (name, *transform),
    };
    for name in [name.clone(), bias_name(name)] {
        let Some(at) = parameters.index(&name) else { continue };
        let parameter = &mut parameters.list_mut()[at];
        // Gains and biases are columns as well.
        let cols = parameter.values.len() / own.len();
        transform_outputs(&mut parameter.values, cols, transform);
        for (row, s) in parameter.values.chunks_exact_mut(cols).zip(&own) {
            row.iter_mut().for_each(|w| *w *= s);
        }
        transform_outputs(&mut parameter.values, cols, transform);
    }
    factors
}

fn add_squares(sums: &mut [f64], rows: &[f32]) {
    for row in rows.chunks_exact(sums.len()) {
        sums.iter_mut().zip(row).for_each(|(sum, x)| *sum += f64::from(*x) * f64::from(*x));
    }
}

/// `sqrt(|w_i| / |x_i|)` from the sums of squares, with a geometric mean of 1.
fn factors(inputs: &[f64], weights: &[f64], group: usize, width: usize) -> Vec<f32> {
    let mut logs = vec![0f64; inputs.len()];
    for (at, log) in logs.iter_mut().enumerate() {
        let first = at / (group * width) * (group * width) + at % width;
        let sum = |of: &[f64]| (0..group).map(|head| of[first + head * width]).sum::<f64>();
        let ratio = sum(weights) / sum(inputs);
        // A channel that is always zero, or never read, keeps its scale.
        *log = if ratio > 0.0 && ratio.is_finite() { ratio.ln() / 4.0 } else { f64::NAN };
    }
    let known: Vec<f64> = logs.iter().copied().filter(|log| !log.is_nan()).collect();
    let mean = known.iter().sum::<f64>() / known.len().max(1) as f64;
    let limit = f64::from(LARGEST).ln();
    let factor = |log: f64| if log.is_nan() { 1.0 } else { (log - mean).clamp(-limit, limit).exp() as f32 };
    logs.into_iter().map(factor).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::gradient_check::noise;
    use crate::parameters::Group;

    const COLS: usize = 16;

    /// Stored under the transforms; the values of heads of 4, two of which share each.
    fn parameters(transforms: &[Transform]) -> Parameters {
        let mut all = Parameters::default();
        let mut reader = noise(3 * COLS, 1);
        // One input is read far more strongly than others.
        reader.iter_mut().skip(5).step_by(COLS).for_each(|w| *w *= 50.0);
        transforms.iter().for_each(|&t| Kernels::detect().transform(&mut reader, COLS, t));
        all.push("reader".into(), [3, COLS], reader, Group::Weight);
        let mut values = noise(8 * 5, 2);
        transform_outputs(&mut values, 5, Transform::Hadamard(4));
        all.push("values".into(), [8, 5], values, Group::Weight);
        all.push("norm".into(), [1, COLS], noise(COLS, 3), Group::Weight);
        all
    }

    /// The reader in the basis of the original.
    fn reader(all: &Parameters, transforms: &[Transform]) -> Vec<f32> {
        let mut rows = all.get("reader").unwrap().values.clone();
        transforms.iter().rev().for_each(|&t| Kernels::detect().transform(&mut rows, COLS, t));
        rows
    }

    /// The errors of the two operands against each other, as [`migrate`] makes them small.
    fn cost(rows: &[f32], x: &[f32]) -> f64 {
        let squares = |v: &[f32]| v.iter().map(|x| f64::from(x * x)).sum::<f64>();
        squares(rows) * squares(x)
    }

    #[test]
    fn the_product_stays_and_the_cost_falls_in_a_norm() {
        let transforms = [Transform::Hadamard(16)];
        let mut all = parameters(&transforms);
        let (gain, before) = (all.get("norm").unwrap().values.clone(), reader(&all, &transforms));
        let x = noise(4 * COLS, 4);
        let place = Place::Norm("norm".into());
        let names = ["reader".to_owned()];
        let factors = migrate(&mut all, (&names, &place), &transforms, (1, 1), [&x[..]].into_iter());
        let after = reader(&all, &transforms);
        assert!(factors.iter().any(|s| (s - 1.0).abs() > 0.1), "{factors:?}");
        for (i, s) in factors.iter().enumerate() {
            assert!((all.get("norm").unwrap().values[i] - gain[i] * s).abs() < 1e-6);
            for row in 0..3 {
                let (a, b) = (after[row * COLS + i] * s, before[row * COLS + i]);
                assert!((a - b).abs() < 1e-4 * b.abs().max(1.0), "{a} {b}");
            }
        }
        let moved: Vec<f32> = x.iter().enumerate().map(|(i, x)| x * factors[i % COLS]).collect();
        assert!(cost(&after, &moved) < 0.9 * cost(&before, &x));
        // Nowhere is it less.
        for i in 0..COLS {
            let mut other = factors.clone();
            other[i] *= 1.05;
            let scaled = |f: &dyn Fn(usize) -> f32, v: &[f32]| -> Vec<f32> {
                v.iter().enumerate().map(|(at, v)| v * f(at % COLS)).collect()
            };
            let with = cost(&scaled(&|i| 1.0 / other[i], &before), &scaled(&|i| other[i], &x));
            assert!(with >= 0.999_999 * cost(&after, &moved), "input {i}");
        }
    }

    #[test]
    fn values_that_heads_share_move_together() {
        let transforms = [Transform::Hadamard(4), Transform::Hadamard(16)];
        let mut all = parameters(&transforms);
        let turned = |all: &Parameters| {
            let mut values = all.get("values").unwrap().values.clone();
            transform_outputs(&mut values, 5, Transform::Hadamard(4));
            values
        };
        let (before, rows) = (turned(&all), reader(&all, &transforms));
        let place = Place::Outputs("values".into(), Transform::Hadamard(4));
        let names = ["reader".to_owned()];
        let x = noise(4 * COLS, 4);
        let factors = migrate(&mut all, (&names, &place), &transforms, (2, 4), [&x[..]].into_iter());
        let (after, moved) = (turned(&all), reader(&all, &transforms));
        for i in 0..COLS {
            // Heads 0 and 1 share values 0 to 3, heads 2 and 3 share 4 to 7.
            let own = i / 8 * 4 + i % 4;
            assert_eq!(factors[i].to_bits(), factors[i / 8 * 8 + i % 4].to_bits());
            for k in 0..5 {
                let (a, b) = (after[own * 5 + k], before[own * 5 + k] * factors[i]);
                assert!((a - b).abs() < 1e-5 * b.abs().max(1.0), "{a} {b}");
            }
            for row in 0..3 {
                let (a, b) = (moved[row * COLS + i] * factors[i], rows[row * COLS + i]);
                assert!((a - b).abs() < 1e-4 * b.abs().max(1.0), "{a} {b}");
            }
        }
    }

    #[test]
    fn channels_without_values_keep_their_scale() {
        let found = factors(&[0.0, 4.0, 4.0], &[1.0, 0.0, 4.0], 1, 1);
        assert_eq!(found, [1.0, 1.0, 1.0]);
    }
}
