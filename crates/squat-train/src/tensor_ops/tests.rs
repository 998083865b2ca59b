//! Each tensor form against its fused form: outputs and gradients, on the CPU device, through the same tape.

use super::TensorForm;
use crate::autograd;
use crate::fake_quant::{ActQuant, TokenBits, Weight};
use crate::ops::alignment::Alignment;
use crate::ops::attention::{Attention, AttentionQuant, AttentionShape, AttentionTaps, HeadRotation};
use crate::ops::embedding::Embedding;
use crate::ops::entropy::CodeEntropy;
use crate::ops::gradient_check::noise;
use crate::ops::linear::Linear;
use crate::ops::lm_loss::LmLoss;
use crate::ops::rms_norm::RmsNorm;
use crate::ops::swiglu::SwiGlu;
use crate::ops::teacher_logits::{TeacherLogits, TopTokens};
use crate::ops::transform::TransformRows;
use crate::quantizer::{WeightQuant, default_quantizer, registry};
use burn::tensor::{Device, Tensor, TensorData};
use squat_quant::{ActBits, ActScheme, Clip, Granularity, Transform, WeightBits, WeightScheme};
use std::sync::Arc;

type Values = (Vec<f32>, [usize; 2]);

/// Output and gradients of `sum(noise * f(inputs))`.
fn run(inputs: &[Values], f: impl FnOnce(Vec<Tensor<2>>) -> Tensor<2>) -> Vec<Vec<f32>> {
    let device = Device::flex().autodiff();
    let params: Vec<Tensor<2>> = inputs
        .iter()
        .map(|(data, shape)| Tensor::from_data(TensorData::new(data.clone(), *shape), &device).require_grad())
        .collect();
    let y = f(params.clone());
    let [rows, cols] = y.dims();
    let up = Tensor::<2>::from_data(TensorData::new(noise(rows * cols, 77), [rows, cols]), &device);
    let grads = (y.clone() * up).sum().backward();
    let host = |t: Tensor<2>| t.into_data().try_into_vec::<f32>().unwrap();
    let mut out = vec![host(y)];
    for (leaf, (data, _)) in params.iter().zip(inputs) {
        out.push(leaf.grad(&grads).map_or_else(|| vec![0.0; data.len()], host));
    }
    out
}

/// Both forms of one operation agree to `tolerance` of the largest entry of each result.
fn agree<const N: usize, O: TensorForm>(make: impl Fn() -> O, inputs: [Values; N], tolerance: f32) {
    let fused = run(&inputs, |tensors| autograd::apply(make(), tensors));
    let plain = run(&inputs, |tensors| make().tensor_form(tensors));
    for (which, (a, b)) in fused.iter().zip(&plain).enumerate() {
        let largest = a.iter().fold(1e-3f32, |m, x| m.max(x.abs()));
        for (i, (a, b)) in a.iter().zip(b).enumerate() {
            assert!((a - b).abs() <= tolerance * largest, "result {which}, entry {i}: {a} {b} of {largest}");
        }
    }
}

fn learned(scheme: WeightScheme) -> Option<WeightQuant> {
    Some(WeightQuant { scheme, quantizer: default_quantizer() })
}

fn values(rows: usize, cols: usize, seed: u64) -> Values {
    (noise(rows * cols, seed), [rows, cols])
}

fn mixed(scheme: ActScheme, tokens: usize) -> ActQuant {
    let bits: Vec<ActBits> =
        (0..tokens).map(|i| if i % 3 == 1 { ActBits::A4 } else { ActBits::A8 }).collect();
    ActQuant { scheme, bits: TokenBits::PerToken(bits.into()), clip: Clip::new(0.8).unwrap() }
}

fn statics() -> Values {
    (vec![-2.1, 1.2, -4.9, -3.4], [1, 4])
}

#[test]
fn norm_and_swiglu() {
    agree(|| RmsNorm { eps: 1e-5 }, [values(5, 24, 1), values(1, 24, 2)], 1e-5);
    agree(|| SwiGlu, [values(5, 24, 3), values(5, 24, 4)], 1e-5);
}

/// Parameters of a quantizer that spread the scales a little around one value.
fn learned_values(quant: WeightQuant, (data, [rows, cols]): &Values) -> Values {
    let scales: Vec<f32> =
        (0..quant.scheme.num_scales(*rows, *cols)).map(|i| 0.11 + 0.01 * (i % 3) as f32).collect();
    let weight = Weight { values: data, cols: *cols, scheme: quant.scheme };
    let parameters = quant.quantizer.parameters(weight, &scales);
    let n = parameters.len();
    (parameters, [1, n])
}

#[test]
fn linears() {
    let (x, w, bias) = (values(6, 20, 1), values(9, 20, 2), values(1, 9, 3));
    agree(Linear::default, [x.clone(), w.clone()], 1e-5);
    agree(|| Linear { bias: true, ..Linear::default() }, [x.clone(), w.clone(), bias.clone()], 1e-5);
    for transform in [Transform::Hadamard(4), Transform::Interleaved(4), Transform::Hadamard(20)] {
        agree(|| Linear { transform, ..Linear::default() }, [x.clone(), w.clone()], 1e-5);
        agree(|| TransformRows { transform }, [x.clone()], 1e-5);
    }
    for &quantizer in registry() {
        for granularity in [Granularity::PerTensor, Granularity::PerChannel, Granularity::PerGroup(8)] {
            let quant = WeightQuant { scheme: WeightScheme { bits: WeightBits::W4, granularity }, quantizer };
            let learned = learned_values(quant, &w);
            let op = |scheme, bias| Linear {
                weight: Some(quant),
                input: Some(mixed(scheme, 6)),
                bias,
                ..Linear::default()
            };
            let dynamic = || op(ActScheme::Dynamic, false);
            agree(dynamic, [x.clone(), w.clone(), learned.clone()], 1e-5);
            let fixed = || op(ActScheme::Static, true);
            agree(fixed, [x.clone(), w.clone(), learned, statics(), bias.clone()], 1e-5);
        }
    }
}

/// `|a - b|` over `|b|`, of all entries together.
fn distance(a: &[f32], b: &[f32]) -> f32 {
    let norm = |values: &mut dyn Iterator<Item = f32>| values.map(|x| x * x).sum::<f32>().sqrt();
    norm(&mut a.iter().zip(b).map(|(a, b)| a - b)) / norm(&mut b.iter().copied())
}

#[test]
fn linears_in_bf16() {
    // bf16 rounds to 8 bits: errors of up to 2^-8, 0.0017 in the mean. Codes are not rounded, so the output of quantized
    // operands is rounded once; without quantizers the operands are as well.
    let scheme = WeightScheme::per_channel(WeightBits::W4);
    let logs = (vec![(0.11f32).ln(); 9], [1, 9]);
    let quantized =
        Linear { weight: learned(scheme), input: Some(mixed(ActScheme::Dynamic, 6)), ..Linear::default() };
    let cases = [
        (Linear::default(), vec![values(6, 200, 1), values(9, 200, 2)], [5e-3; 3]),
        (quantized, vec![values(6, 200, 1), values(9, 200, 2), logs], [2e-3, 5e-3, 5e-3]),
    ];
    for (op, inputs, limits) in cases {
        let exact = run(&inputs, |tensors| op.tensor_form(tensors));
        let rounded = run(&inputs, |tensors| Linear { bf16: true, ..op.clone() }.tensor_form(tensors));
        for (which, limit) in limits.into_iter().enumerate() {
            let found = distance(&rounded[which], &exact[which]);
            assert!(found > 0.0 && found < limit, "result {which}: {found}, at most {limit}");
        }
    }
}

#[test]
fn embeddings() {
    let ids: Arc<[u32]> = [3, 1, 3, 0].into();
    agree(|| Embedding { ids: ids.clone(), weight: None }, [values(5, 12, 1)], 1e-5);
    let scheme = WeightScheme::per_channel(WeightBits::W4);
    let logs = (vec![-2.0, -2.2, -1.9, -2.4, -2.0], [1, 5]);
    agree(|| Embedding { ids: ids.clone(), weight: learned(scheme) }, [values(5, 12, 1), logs], 1e-5);
}

const SHAPE: AttentionShape = AttentionShape { batch: 2, seq: 6, heads: 4, kv_heads: 2, head_dim: 8 };

fn rope() -> Arc<HeadRotation> {
    let angles: Vec<f32> = (0..24).map(|i| (i / 4) as f32 * 0.5f32.powi(i % 4)).collect();
    Arc::new(HeadRotation {
        cos: angles.iter().map(|a| a.cos()).collect(),
        sin: angles.iter().map(|a| a.sin()).collect(),
        transform: Transform::Hadamard(2),
    })
}

fn qkv() -> [Values; 3] {
    [values(12, 32, 1), values(12, 16, 2), values(12, 16, 3)]
}

#[test]
fn attention() {
    let op = |quant: AttentionQuant| Attention { shape: SHAPE, rope: rope(), quant, taps: Arc::default() };
    agree(|| op(AttentionQuant::default()), qkv(), 1e-4);
    for probs in [None, Some(8), Some(4)] {
        let point = Some(mixed(ActScheme::Dynamic, 12));
        let quant = AttentionQuant { query: point.clone(), key: point.clone(), value: point, probs };
        agree(|| op(quant.clone()), qkv(), 1e-4);
        let point = Some(mixed(ActScheme::Static, 12));
        let quant = AttentionQuant { query: point.clone(), key: point.clone(), value: point, probs };
        let [q, k, v] = qkv();
        agree(|| op(quant.clone()), [q, k, v, statics(), statics(), statics()], 1e-4);
    }
}

#[test]
fn attention_leaves_the_same_scores() {
    let taps = |plain: bool| {
        let op =
            Attention { shape: SHAPE, rope: rope(), quant: AttentionQuant::default(), taps: Arc::default() };
        let taps = op.taps.clone();
        *taps.lock().unwrap() =
            AttentionTaps { wants_sink: true, wants_probabilities: true, ..AttentionTaps::default() };
        let tensors: Vec<Tensor<2>> = qkv()
            .into_iter()
            .map(|(data, shape)| Tensor::from_data(TensorData::new(data, shape), &Device::flex()))
            .collect();
        if plain {
            op.tensor_form(tensors);
        } else {
            autograd::apply(op, tensors);
        }
        let taps = taps.lock().unwrap();
        (taps.sink_probs.clone(), taps.probabilities.clone())
    };
    let (a, b) = (taps(false), taps(true));
    assert_eq!((b.0.len(), b.1.len()), (2 * 6, 2 * 4 * 6 * 6));
    assert!(a.0.iter().zip(&b.0).all(|(a, b)| (a - b).abs() < 1e-5));
    assert!(a.1.iter().zip(b.1.iter()).all(|(a, b)| (a - b).abs() < 1e-5));
}

#[test]
fn attention_losses() {
    let teacher: Vec<f32> = {
        // Any causal rows that sum to one.
        let raw = noise(2 * 4 * 36, 9);
        let mut out = vec![0f32; raw.len()];
        for (row, (raw, out)) in raw.chunks(6).zip(out.chunks_mut(6)).enumerate() {
            let live = row % 6 + 1;
            let sum: f32 = raw[..live].iter().map(|x| x.exp()).sum();
            out.iter_mut().zip(raw).take(live).for_each(|(o, r)| *o = r.exp() / sum);
        }
        out
    };
    let teacher = Arc::new(teacher);
    for quant in [None, Some(mixed(ActScheme::Dynamic, 12))] {
        let op = || Alignment {
            shape: SHAPE,
            rope: rope(),
            query: quant.clone(),
            key: quant.clone(),
            teacher: teacher.clone(),
        };
        let [q, k, _] = qkv();
        agree(op, [q, k], 1e-3);
    }
    let entropy =
        |scheme: ActScheme| CodeEntropy { shape: SHAPE, heads: 4, rope: rope(), quant: mixed(scheme, 12) };
    agree(|| entropy(ActScheme::Dynamic), [values(12, 32, 5)], 1e-3);
}

#[test]
fn losses() {
    let targets: Arc<[Option<u32>]> = [Some(3), None, Some(0), Some(18)].into();
    let whole = TeacherLogits::Whole(Arc::new(noise(4 * 19, 6)));
    let top = |k: usize| {
        let mut top = TopTokens::new(k);
        top.extend(&noise(4 * 19, 6), 19, 2.0);
        TeacherLogits::Top(Arc::new(top))
    };
    for (teacher, gamma) in [
        (None, 0.0),
        (Some(whole.clone()), 0.5),
        (Some(whole), 1.0),
        (Some(top(3)), 0.7),
        (Some(top(19)), 1.0),
    ] {
        let op = || LmLoss::new(targets.clone(), teacher.clone(), gamma, 2.0, Arc::default());
        agree(op, [values(4, 19, 7)], 1e-4);
    }
}
