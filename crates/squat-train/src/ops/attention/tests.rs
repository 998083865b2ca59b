use super::*;
use crate::fake_quant::TokenBits;
use crate::ops::gradient_check::{noise, worst_errors};
use squat_quant::{ActBits, Clip};

const SHAPE: AttentionShape = AttentionShape { batch: 2, seq: 5, heads: 4, kv_heads: 2, head_dim: 6 };

fn rope() -> Arc<HeadRotation> {
    let angles: Vec<f32> = (0..5 * 3).map(|i| (i / 3) as f32 * 0.7f32.powi(i % 3)).collect();
    Arc::new(HeadRotation {
        cos: angles.iter().map(|a| a.cos()).collect(),
        sin: angles.iter().map(|a| a.sin()).collect(),
        transform: Transform::Hadamard(2),
    })
}

fn op(quant: AttentionQuant) -> Attention {
    Attention { shape: SHAPE, rope: rope(), quant, taps: Arc::default() }
}

fn inputs() -> [(Vec<f32>, Vec<usize>); 3] {
    let n = SHAPE.batch * SHAPE.seq;
    let kv = SHAPE.kv_heads * SHAPE.head_dim;
    let q = SHAPE.heads * SHAPE.head_dim;
    let big: Vec<f32> = noise(n * q, 1).iter().map(|x| x * 2.0).collect();
    [(big, vec![n, q]), (noise(n * kv, 2), vec![n, kv]), (noise(n * kv, 3), vec![n, kv])]
}

#[test]
fn gradients_match_numeric_ones() {
    let make = || -> Box<dyn FusedOp> { Box::new(op(AttentionQuant::default())) };
    for error in worst_errors(&make, &inputs(), 1e-2) {
        assert!(error < 3e-3, "{error:e}");
    }
}

fn views(inputs: &[(Vec<f32>, Vec<usize>)]) -> Vec<Input<'_>> {
    inputs.iter().map(|(data, shape)| Input { data, shape }).collect()
}

fn mixed(scheme: ActScheme) -> ActQuant {
    let bits: Vec<ActBits> = (0..10).map(|i| if i % 3 == 1 { ActBits::A4 } else { ActBits::A8 }).collect();
    ActQuant { scheme, bits: TokenBits::PerToken(bits.into()), clip: Clip::new(0.8).unwrap() }
}

/// At 8 bits everywhere the quantized output and gradients stay near the unquantized ones; at mixed bits farther.
#[test]
fn quantized_attention_stays_near_the_plain_one() {
    let inputs = inputs();
    let up = noise(inputs[0].0.len(), 9);
    let plain = op(AttentionQuant::default());
    let (y, _) = plain.forward(&views(&inputs));
    let g = plain.backward(&views(&inputs), &up, &[true; 3]);
    let eight =
        ActQuant { scheme: ActScheme::Dynamic, bits: TokenBits::Uniform(ActBits::A8), clip: Clip::default() };
    for (point, tolerance) in [(eight, 0.03), (mixed(ActScheme::Dynamic), 0.4)] {
        let quant = AttentionQuant {
            query: Some(point.clone()),
            key: Some(point.clone()),
            value: Some(point),
            probs: Some(8),
        };
        let quantized = op(quant);
        let (yq, _) = quantized.forward(&views(&inputs));
        assert!(y.iter().zip(&yq).all(|(a, b)| (a - b).abs() < tolerance));
        assert!(y.iter().zip(&yq).any(|(a, b)| a != b));
        let gq = quantized.backward(&views(&inputs), &up, &[true; 3]);
        for (a, b) in g.iter().zip(&gq) {
            let largest = a.as_ref().unwrap().iter().fold(0f32, |m, x| m.max(x.abs()));
            for (a, b) in a.as_ref().unwrap().iter().zip(b.as_ref().unwrap()) {
                assert!((a - b).abs() < 2.0 * tolerance * largest, "{a} {b}");
            }
        }
    }
}

#[test]
fn static_points_take_their_parameters_in_order() {
    let mut all = inputs().to_vec();
    for (log4, log8) in [(-1.2f32, -4.0f32), (-2.0, -4.8), (-2.0, -4.8)] {
        all.push((vec![log4, 0.0, log8, 2.0], vec![1, 4]));
    }
    let quant = AttentionQuant {
        query: Some(mixed(ActScheme::Static)),
        key: Some(mixed(ActScheme::Static)),
        value: Some(mixed(ActScheme::Static)),
        probs: Some(8),
    };
    let (y, _) = op(AttentionQuant::default()).forward(&views(&inputs()));
    let quantized = op(quant);
    let (yq, _) = quantized.forward(&views(&all));
    assert!(y.iter().zip(&yq).all(|(a, b)| (a - b).abs() < 0.5), "{y:?} {yq:?}");
    let up = noise(y.len(), 9);
    let g = quantized.backward(&views(&all), &up, &[true; 6]);
    assert_eq!(g.len(), 6);
    for g in &g[3..] {
        assert!(g.as_ref().unwrap().iter().all(|x| x.is_finite()));
        assert!(g.as_ref().unwrap().iter().any(|x| *x != 0.0));
    }
}

#[test]
fn later_tokens_never_change_earlier_ones() {
    let point = mixed(ActScheme::Dynamic);
    let quant = AttentionQuant {
        query: Some(point.clone()),
        key: Some(point.clone()),
        value: Some(point),
        probs: Some(8),
    };
    let mut all = inputs();
    let (before, _) = op(quant.clone()).forward(&views(&all));
    let width = SHAPE.heads * SHAPE.head_dim;
    for (data, shape) in &mut all {
        // Change the last token of both sequences.
        for token in [4, 9] {
            for x in &mut data[token * shape[1]..(token + 1) * shape[1]] {
                *x = -*x * 3.0;
            }
        }
    }
    let (after, _) = op(quant).forward(&views(&all));
    for token in [0, 1, 2, 3, 5, 6, 7, 8] {
        assert_eq!(before[token * width..(token + 1) * width], after[token * width..(token + 1) * width]);
    }
}
