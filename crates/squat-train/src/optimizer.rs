//! AdamW in one pass over each parameter, with parameter groups, gradient clipping and the learning-rate schedule.

use crate::autograd::multiversion;
use crate::basis::{Bases, Basis};
use crate::parameters::{Group, Parameters};
use crate::profile::{self, Phase};

/// Hyperparameters of AdamW.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamW {
    /// Decay of the first moment.
    pub beta1: f32,
    /// Decay of the second moment.
    pub beta2: f32,
    /// Added to the root of the second moment.
    pub eps: f32,
    /// Decoupled weight decay of matrices; norms and quantizer steps have none.
    pub weight_decay: f32,
}

/// First and second moments of every parameter, in the order of [`Parameters`].
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Moments {
    /// Running means of gradients.
    pub first: Vec<Vec<f32>>,
    /// Running means of squared gradients.
    pub second: Vec<Vec<f32>>,
}

impl Moments {
    /// Zero moments for these parameters.
    pub fn zeros(parameters: &Parameters) -> Self {
        let zeros: Vec<Vec<f32>> = parameters.iter().map(|p| vec![0.0; p.values.len()]).collect();
        Self { first: zeros.clone(), second: zeros }
    }
}

/// Constants of one update.
#[derive(Clone, Copy)]
struct Update {
    clip: f32,
    beta1: f32,
    beta2: f32,
    eps: f32,
    /// lr / (1 - beta1^step).
    rate: f32,
    /// 1 / (1 - beta2^step).
    correction: f32,
    /// 1 - lr * weight decay.
    keep: f32,
}

multiversion! {
    fn update(values: &mut [f32], grad: &[f32], first: &mut [f32], second: &mut [f32], u: Update) {
        let n = values.len();
        let (grad, first, second) = (&grad[..n], &mut first[..n], &mut second[..n]);
        for i in 0..n {
            let g = grad[i] * u.clip;
            let m = u.beta1 * first[i] + (1.0 - u.beta1) * g;
            let v = u.beta2 * second[i] + (1.0 - u.beta2) * g * g;
            first[i] = m;
            second[i] = v;
            values[i] = values[i] * u.keep - u.rate * m / ((v * u.correction).sqrt() + u.eps);
        }
    }
}

multiversion! {
    /// The step of [`update`] in place of each gradient, without moving anything.
    fn steps(grad: &mut [f32], first: &mut [f32], second: &mut [f32], u: Update) {
        let n = grad.len();
        let (first, second) = (&mut first[..n], &mut second[..n]);
        for i in 0..n {
            let g = grad[i] * u.clip;
            let m = u.beta1 * first[i] + (1.0 - u.beta1) * g;
            let v = u.beta2 * second[i] + (1.0 - u.beta2) * g * g;
            first[i] = m;
            second[i] = v;
            grad[i] = u.rate * m / ((v * u.correction).sqrt() + u.eps);
        }
    }
}

multiversion! {
    fn subtract(values: &mut [f32], step: &[f32], keep: f32) {
        let step = &step[..values.len()];
        for i in 0..values.len() {
            values[i] = values[i] * keep - step[i];
        }
    }
}

/// [`update`] in another basis: moments and steps are those of the original weight.
fn update_in(
    (basis, cols): (&Basis, usize),
    values: &mut [f32],
    grad: &[f32],
    (first, second): (&mut [f32], &mut [f32]),
    u: Update,
) {
    let mut step = grad.to_vec();
    basis.enter(&mut step, cols);
    steps(&mut step, first, second, u);
    basis.leave(&mut step, cols);
    subtract(values, &step, u.keep);
}

multiversion! {
    fn sum_of_squares(x: &[f32]) -> f64 {
        let mut lanes = [0f64; 8];
        for chunk in x.chunks(8) {
            for i in 0..chunk.len() {
                lanes[i] += chunk[i] as f64 * chunk[i] as f64;
            }
        }
        lanes.iter().sum()
    }
}

multiversion! {
    /// [`sum_of_squares`] of `x * scale`, which takes the place of x.
    fn scale_and_square(x: &mut [f32], scale: f32) -> f64 {
        let mut lanes = [0f64; 8];
        for chunk in x.chunks_mut(8) {
            for i in 0..chunk.len() {
                chunk[i] *= scale;
                lanes[i] += chunk[i] as f64 * chunk[i] as f64;
            }
        }
        lanes.iter().sum()
    }
}

/// Elements that a thread takes at a time. Sums are taken in pieces of this many whatever the number of threads.
const PIECE: usize = 1 << 18;

/// Runs `work` on every item, the items shared out over `threads`.
fn share<T: Send>(items: Vec<T>, threads: usize, work: impl Fn(T) + Sync) {
    let threads = threads.max(1).min(items.len());
    let queue = std::sync::Mutex::new(items.into_iter());
    let drain = || {
        loop {
            let next = queue.lock().unwrap_or_else(|e| e.into_inner()).next();
            let Some(item) = next else { return };
            work(item);
        }
    };
    std::thread::scope(|scope| {
        for _ in 1..threads {
            scope.spawn(|| {
                let _phase = profile::phase(Phase::Optimizer);
                drain();
            });
        }
        drain();
    });
}

/// Multiplies every gradient by `scale` and returns the Euclidean norm over all of them, in one pass over memory.
pub fn scale_and_norm(gradients: &mut [Vec<f32>], scale: f32, threads: usize) -> f64 {
    let _span = profile::operation("mean and norm");
    let pieces: Vec<&mut [f32]> = gradients.iter_mut().flat_map(|g| g.chunks_mut(PIECE)).collect();
    let mut sums = vec![0f64; pieces.len()];
    share(sums.iter_mut().zip(pieces).collect(), threads, |(sum, piece)| {
        *sum = if scale == 1.0 { sum_of_squares(piece) } else { scale_and_square(piece, scale) };
    });
    sums.iter().sum::<f64>().sqrt()
}

impl AdamW {
    /// One step (`step` counts from 1): clips gradients to `max_norm` (their norm is `norm`) and moves the parameters, those
    /// that have one in their basis.
    ///
    /// Work is shared out over `threads`; the result does not depend on their number.
    ///
    /// # Panics
    /// When gradients and parameters are not of one shape.
    pub fn step(
        &self,
        parameters: &mut Parameters,
        gradients: &[Vec<f32>],
        moments: &mut Moments,
        (step, norm, max_norm): (u64, f64, f64),
        (rate, scale_rate): (f32, f32),
        bases: &Bases,
        threads: usize,
    ) {
        assert_eq!(parameters.len(), gradients.len(), "one gradient for each parameter");
        let clip = if max_norm > 0.0 && norm > max_norm { (max_norm / norm) as f32 } else { 1.0 };
        let powi = |base: f32| 1.0 - f64::from(base).powi(i32::try_from(step).unwrap_or(i32::MAX));
        let of = |group: Group| {
            let lr = if group == Group::Scale { scale_rate } else { rate };
            let decay = if group == Group::Weight { self.weight_decay } else { 0.0 };
            Update {
                clip,
                beta1: self.beta1,
                beta2: self.beta2,
                eps: self.eps,
                rate: (f64::from(lr) / powi(self.beta1)) as f32,
                correction: (1.0 / powi(self.beta2)) as f32,
                keep: 1.0 - lr * decay,
            }
        };
        let _span = profile::operation("adamw");
        let moments = moments.first.iter_mut().zip(moments.second.iter_mut());
        let work = parameters.list_mut().iter_mut().zip(gradients).zip(moments).flat_map(
            |((parameter, grad), (first, second))| {
                assert_eq!(parameter.values.len(), grad.len(), "the gradient of {}", parameter.name);
                let update = of(parameter.group);
                let cols = parameter.shape[1];
                let basis = bases.get(&parameter.name).map(|basis| (basis, cols));
                let piece = match basis {
                    None => PIECE,
                    Some((basis, cols)) if basis.outputs.is_none() => (PIECE / cols).max(1) * cols,
                    // Outputs are transformed together.
                    Some(_) => parameter.values.len().max(1),
                };
                let values = parameter.values.chunks_mut(piece).zip(grad.chunks(piece));
                let moments = first.chunks_mut(piece).zip(second.chunks_mut(piece));
                values.zip(moments).map(move |(values, moments)| (values, moments, update, basis))
            },
        );
        share(work.collect(), threads, |((values, grad), (first, second), constants, basis)| match basis {
            None => update(values, grad, first, second, constants),
            Some(basis) => update_in(basis, values, grad, (first, second), constants),
        });
    }
}

/// Cosine schedule with linear warm-up: the factor on the peak learning rate at `step` (from 0) of `total`.
pub fn schedule(step: u64, total: u64, warmup: u64, final_ratio: f32) -> f32 {
    if step < warmup {
        return (step + 1) as f32 / warmup as f32;
    }
    let span = total.saturating_sub(warmup).max(1) as f64;
    let done = ((step - warmup) as f64 / span).min(1.0);
    let cosine = 0.5 * (1.0 + (std::f64::consts::PI * done).cos());
    final_ratio + (1.0 - final_ratio) * cosine as f32
}

#[cfg(test)]
mod tests {
    use super::*;
    use squat_quant::Transform;

    fn parameters() -> Parameters {
        let mut p = Parameters::default();
        p.push("w".into(), [1, 3], vec![1.0, -2.0, 0.5], Group::Weight);
        p.push("g".into(), [1, 1], vec![1.0], Group::Norm);
        p.push("s".into(), [1, 1], vec![-3.0], Group::Scale);
        p
    }

    #[test]
    fn follows_the_textbook() {
        let adam = AdamW { beta1: 0.9, beta2: 0.95, eps: 1e-8, weight_decay: 0.1 };
        let mut p = parameters();
        let mut m = Moments::zeros(&p);
        let (mut first, mut second, mut x) = ([0f64; 3], [0f64; 3], [1.0f64, -2.0, 0.5]);
        for step in 1..=5u64 {
            let g = vec![vec![0.3, -0.1 * step as f32, 2.0], vec![0.0], vec![1.0]];
            adam.step(&mut p, &g, &mut m, (step, 1.0, 0.0), (1e-2, 1e-3), &Bases::new(), 2);
            for i in 0..3 {
                let g = f64::from(g[0][i]);
                first[i] = 0.9 * first[i] + 0.1 * g;
                second[i] = 0.95 * second[i] + 0.05 * g * g;
                let (mh, vh) = (
                    first[i] / (1.0 - 0.9f64.powi(step as i32)),
                    second[i] / (1.0 - 0.95f64.powi(step as i32)),
                );
                x[i] -= 1e-2 * (0.1 * x[i] + mh / (vh.sqrt() + 1e-8));
            }
        }
        for (got, want) in p.get("w").unwrap().values.iter().zip(x) {
            assert!((f64::from(*got) - want).abs() < 1e-5, "{got} {want}");
        }
        // No gradient and no decay: the norm stays. Steps move by their own rate.
        assert_eq!(p.get("g").unwrap().values, [1.0]);
        assert!((p.get("s").unwrap().values[0] + 3.005).abs() < 1e-5);
    }

    /// The stored weight follows the original one, on which the textbook's steps are made.
    #[test]
    fn a_basis_is_that_of_the_original_weight() {
        let (rows, cols) = (8, 12);
        let noise = |seed| crate::ops::gradient_check::noise(rows * cols, seed);
        let basis = Basis {
            gain: (0..cols).map(|i| 0.1 + i as f32 / 6.0).collect(),
            inputs: vec![Transform::Hadamard(12)],
            outputs: Transform::Hadamard(8),
        };
        let stored = |original: &[f32]| {
            let mut values = original.to_vec();
            basis.leave(&mut values, cols);
            values
        };
        let mut original = Parameters::default();
        original.push("w".into(), [rows, cols], noise(1), Group::Weight);
        let mut turned = Parameters::default();
        turned.push("w".into(), [rows, cols], stored(&noise(1)), Group::Weight);
        let adam = AdamW { beta1: 0.9, beta2: 0.95, eps: 1e-8, weight_decay: 0.01 };
        let (mut a, mut b) = (Moments::zeros(&original), Moments::zeros(&turned));
        let bases = Bases::from([("w".to_owned(), basis.clone())]);
        for step in 1..=4 {
            let gradient = noise(10 + step);
            let mut of_original = gradient.clone();
            basis.enter(&mut of_original, cols);
            let size = (step, 1.0, 0.0);
            adam.step(&mut original, &[of_original], &mut a, size, (1e-2, 1.0), &Bases::new(), 1);
            adam.step(&mut turned, &[gradient], &mut b, size, (1e-2, 1.0), &bases, 2);
        }
        let want = stored(&original.get("w").unwrap().values);
        for (got, want) in turned.get("w").unwrap().values.iter().zip(want) {
            assert!((got - want).abs() < 1e-5, "{got} {want}");
        }
    }

    #[test]
    fn clipping_scales_to_the_norm() {
        let mut g = vec![vec![3.0, 4.0, 0.0], vec![0.0], vec![0.0]];
        assert!((scale_and_norm(&mut g, 1.0, 2) - 5.0).abs() < 1e-12);
        let adam = AdamW { beta1: 0.0, beta2: 0.0, eps: 1e9, weight_decay: 0.0 };
        let mut p = parameters();
        let mut m = Moments::zeros(&p);
        adam.step(&mut p, &g, &mut m, (1, 5.0, 1.0), (1.0, 1.0), &Bases::new(), 1);
        assert!((m.first[0][0] - 0.6).abs() < 1e-6 && (m.first[0][1] - 0.8).abs() < 1e-6);
    }

    #[test]
    fn threads_change_no_bit() {
        let long = |seed: u64| {
            vec![crate::ops::gradient_check::noise(2 * PIECE + 77, seed), vec![0.5 * seed as f32; 3]]
        };
        let a = long(1);
        for scale in [1.0, 0.3] {
            let mut norms = Vec::new();
            for threads in [1, 3] {
                let mut scaled = a.clone();
                norms.push(scale_and_norm(&mut scaled, scale, threads).to_bits());
                assert!(scaled.iter().flatten().zip(a.iter().flatten()).all(|(x, a)| *x == a * scale));
                let again = scale_and_norm(&mut scaled, 1.0, threads);
                assert_eq!(again.to_bits(), norms[0], "the norm of what was scaled");
            }
            assert_eq!(norms[0], norms[1]);
        }
    }

    #[test]
    fn the_schedule_warms_up_and_decays() {
        assert!((schedule(0, 100, 10, 0.1) - 0.1).abs() < 1e-6);
        assert_eq!(schedule(9, 100, 10, 0.1), 1.0);
        assert_eq!(schedule(10, 100, 10, 0.1), 1.0);
        assert!((schedule(100, 100, 10, 0.1) - 0.1).abs() < 1e-6);
        assert!((schedule(55, 100, 10, 0.0) - 0.5).abs() < 1e-6);
    }
}
