//! Distribution-alignment loss: the student's attention maps look like the teacher's (METHOD.md section 4).
//!
//! `L_D = mean(1 - cos)` over the causal post-softmax rows. Identical maps give the minimum, 0. (The published formula
//! has the wrong sign and compares scores before mask and softmax.) Row 0 has a single entry and is left out.

use crate::autograd::{FusedOp, Input, Layout, gemm, multiversion};
use crate::fake_quant::ActQuant;
use crate::ops::attention::{
    AttentionShape, HeadRotation, Prepared, gather, gather_scales, head_probabilities, prepare,
    prepare_backward, scatter_add, softmax_backward,
};
use squat_kernels::attention::query_factor;
use squat_quant::ActScheme;
use std::sync::Arc;

/// `q [tokens, heads * d] x k [tokens, kv_heads * d] (x static parameters of query, key) -> [1, 1]`.
#[derive(Debug)]
pub struct Alignment {
    /// Sizes.
    pub shape: AttentionShape,
    /// Rotary tables.
    pub rope: Arc<HeadRotation>,
    /// Quantizer of queries after RoPE.
    pub query: Option<ActQuant>,
    /// Quantizer of keys after RoPE.
    pub key: Option<ActQuant>,
    /// The teacher's softmax rows, `[batch, heads, seq, seq]`.
    pub teacher: Arc<Vec<f32>>,
}

#[inline(always)]
fn dot_lanes(a: &[f32], b: &[f32], sums: &mut [[f32; 16]; 3]) {
    for i in 0..a.len() {
        sums[0][i] += a[i] * b[i];
        sums[1][i] += a[i] * a[i];
        sums[2][i] += b[i] * b[i];
    }
}

multiversion! {
    /// `a . b`, `a . a`, `b . b`.
    fn dots(a: &[f32], b: &[f32]) -> (f32, f32, f32) {
        let mut sums = [[0f32; 16]; 3];
        let (a, a_rest) = a.as_chunks::<16>();
        let (b, b_rest) = b.as_chunks::<16>();
        for (a, b) in a.iter().zip(b) {
            dot_lanes(a, b, &mut sums);
        }
        dot_lanes(a_rest, b_rest, &mut sums);
        let [ab, aa, bb] = sums;
        (ab.iter().sum(), aa.iter().sum(), bb.iter().sum())
    }
}

multiversion! {
    /// `out = weight * (along * p - norm * target)`.
    fn map_gradient(p: &[f32], target: &[f32], weight: f32, along: f32, norm: f32, out: &mut [f32]) {
        for ((d, &p), &target) in out.iter_mut().zip(p).zip(target) {
            *d = weight * (along * p - norm * target);
        }
    }
}

impl Alignment {
    fn prepared(&self, inputs: &[Input<'_>]) -> (Prepared, Prepared, [Option<Vec<f32>>; 2]) {
        let mut rest = inputs[2..].iter().map(|input| input.data.to_vec());
        let parameters = [&self.query, &self.key].map(|quant| match quant {
            Some(ActQuant { scheme: ActScheme::Static, .. }) => rest.next(),
            _ => None,
        });
        let rope = Some(self.rope.as_ref());
        let q = prepare(
            inputs[0].data,
            self.shape,
            self.shape.heads,
            rope,
            self.query.as_ref(),
            parameters[0].as_deref(),
        );
        let k = prepare(
            inputs[1].data,
            self.shape,
            self.shape.kv_heads,
            rope,
            self.key.as_ref(),
            parameters[1].as_deref(),
        );
        (q, k, parameters)
    }

    /// Rows that count: every position but the first of each sequence, for each head.
    fn rows(&self) -> f32 {
        (self.shape.batch * self.shape.heads * (self.shape.seq - 1)).max(1) as f32
    }

    fn each_head(
        &self,
        q: &Prepared,
        k: &Prepared,
        mut visit: impl FnMut(usize, usize, &[f32], &[f32], &[f32]),
    ) {
        let AttentionShape { batch, seq: t, heads, kv_heads, head_dim: d } = self.shape;
        let (mut qh, mut kh, mut p) = (vec![0f32; t * d], vec![0f32; t * d], vec![0f32; t * t]);
        for b in 0..batch {
            for h in 0..heads {
                let kv = h / (heads / kv_heads);
                gather(&q.rows.codes, self.shape, heads, b, h, &mut qh);
                gather(&k.rows.codes, self.shape, kv_heads, b, kv, &mut kh);
                let q_scales = gather_scales(&q.rows.scales, self.shape, heads, b, h);
                let k_scales = gather_scales(&k.rows.scales, self.shape, kv_heads, b, kv);
                head_probabilities((&qh, &q_scales), (&kh, &k_scales), self.shape, &mut p);
                crate::fake_quant::scale_rows(&mut qh, d, &q_scales);
                crate::fake_quant::scale_rows(&mut kh, d, &k_scales);
                visit(b, h, &p, &qh, &kh);
            }
        }
    }
}

impl FusedOp for Alignment {
    fn name(&self) -> &'static str {
        "alignment"
    }

    fn forward(&self, inputs: &[Input<'_>]) -> (Vec<f32>, Vec<usize>) {
        let (q, k, _) = self.prepared(inputs);
        let (t, heads) = (self.shape.seq, self.shape.heads);
        let mut total = 0f64;
        self.each_head(&q, &k, |b, h, p, _, _| {
            let teacher = &self.teacher[(b * heads + h) * t * t..(b * heads + h + 1) * t * t];
            for i in 1..t {
                let (ab, aa, bb) = dots(&p[i * t..i * t + i + 1], &teacher[i * t..i * t + i + 1]);
                total += 1.0 - f64::from(ab) / (f64::from(aa) * f64::from(bb)).sqrt();
            }
        });
        (vec![(total / f64::from(self.rows())) as f32], vec![1, 1])
    }

    fn backward(&self, inputs: &[Input<'_>], grad: &[f32], _needed: &[bool]) -> Vec<Option<Vec<f32>>> {
        let (q, k, parameters) = self.prepared(inputs);
        let AttentionShape { seq: t, heads, kv_heads, head_dim: d, .. } = self.shape;
        let (mut dq, mut dk) = (vec![0f32; inputs[0].data.len()], vec![0f32; inputs[1].data.len()]);
        let (mut ds, mut part) = (vec![0f32; t * t], vec![0f32; t * d]);
        let weight = grad[0] / self.rows();
        let inv = query_factor(1.0, d);
        self.each_head(&q, &k, |b, h, p, qh, kh| {
            let teacher = &self.teacher[(b * heads + h) * t * t..(b * heads + h + 1) * t * t];
            ds.fill(0.0);
            for i in 1..t {
                let (row, target) = (&p[i * t..i * t + i + 1], &teacher[i * t..i * t + i + 1]);
                let (ab, aa, bb) = dots(row, target);
                // d(1 - cos)/dp = -target / (|p||t|) + cos p / |p|^2.
                let norm = 1.0 / (aa * bb).sqrt();
                let along = ab * norm / aa;
                let out = &mut ds[i * t..i * t + i + 1];
                map_gradient(row, target, weight, along, norm, out);
                softmax_backward(row, out, inv);
            }
            gemm((t, t, d), 1.0, (&ds, Layout::Normal), (kh, Layout::Normal), 0.0, &mut part);
            scatter_add(&part, self.shape, heads, b, h, &mut dq);
            gemm((t, t, d), 1.0, (&ds, Layout::Transposed), (qh, Layout::Normal), 0.0, &mut part);
            scatter_add(&part, self.shape, kv_heads, b, h / (heads / kv_heads), &mut dk);
        });
        let rope = Some(self.rope.as_ref());
        let [pq, pk] = &parameters;
        let gq = prepare_backward(&q, self.shape, heads, rope, self.query.as_ref(), pq.as_deref(), &mut dq);
        let gk = prepare_backward(&k, self.shape, kv_heads, rope, self.key.as_ref(), pk.as_deref(), &mut dk);
        [Some(dq), Some(dk)].into_iter().chain([gq, gk].into_iter().flatten().map(Some)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::attention::{Attention, AttentionQuant};
    use crate::ops::gradient_check::{noise, worst_errors};
    use squat_quant::Transform;

    const SHAPE: AttentionShape = AttentionShape { batch: 2, seq: 5, heads: 2, kv_heads: 1, head_dim: 4 };

    fn rope() -> Arc<HeadRotation> {
        let angles: Vec<f32> = (0..10).map(|i| (i / 2) as f32 * 0.4).collect();
        Arc::new(HeadRotation {
            cos: angles.iter().map(|a| a.cos()).collect(),
            sin: angles.iter().map(|a| a.sin()).collect(),
            transform: Transform::Hadamard(2),
        })
    }

    fn maps(seed: u64) -> Arc<Vec<f32>> {
        let taps: Arc<std::sync::Mutex<crate::ops::attention::AttentionTaps>> = Arc::default();
        let op =
            Attention { shape: SHAPE, rope: rope(), quant: AttentionQuant::default(), taps: taps.clone() };
        let (q, k) = qk(seed);
        let (qs, ks) = ([10, 8], [10, 4]);
        let v = noise(40, 3);
        op.forward(&[
            Input { data: &q, shape: &qs },
            Input { data: &k, shape: &ks },
            Input { data: &v, shape: &ks },
        ]);
        let taps = taps.lock().unwrap();
        taps.probabilities.clone()
    }

    fn qk(seed: u64) -> (Vec<f32>, Vec<f32>) {
        (noise(80, seed).iter().map(|x| x * 2.0).collect(), noise(40, seed + 1))
    }

    fn op(teacher: Arc<Vec<f32>>) -> Alignment {
        Alignment { shape: SHAPE, rope: rope(), query: None, key: None, teacher }
    }

    #[test]
    fn identical_maps_give_the_minimum() {
        let teacher = maps(1);
        let loss = |seed: u64| {
            let (q, k) = qk(seed);
            let (qs, ks) = ([10, 8], [10, 4]);
            op(teacher.clone()).forward(&[Input { data: &q, shape: &qs }, Input { data: &k, shape: &ks }]).0
                [0]
        };
        assert!(loss(1).abs() < 1e-6);
        for seed in 5..15 {
            assert!(loss(seed) > 1e-3);
        }
    }

    #[test]
    fn gradients_match_numeric_ones() {
        let (q, k) = qk(7);
        let teacher = maps(1);
        let make = || -> Box<dyn FusedOp> { Box::new(op(teacher.clone())) };
        for error in worst_errors(&make, &[(q, vec![10, 8]), (k, vec![10, 4])], 1e-2) {
            assert!(error < 5e-3, "{error:e}");
        }
    }
}
