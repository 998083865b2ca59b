//! The engine against the fake-quantized forward as training defines it: integer-valued floats, scales applied to the
//! sums (METHOD.md sections 2, 3, 5). Written here a second time, in plain loops and without the engine's parts, and
//! compared bit for bit.
#![allow(clippy::unwrap_used)]

mod common;

use common::{bits, gemma3, gpt2, olmo2, plans, spec, specs, tensors, tokens};
use squat_engine::{Engine, EngineOptions};
use squat_kernels::float;
use squat_model::plan::scale_name;
use squat_model::spec::bias_name;
use squat_model::tensors::read_static_affine;
use squat_model::{
    LinearKind, Mlp, ModelSpec, NormKind, PackSource, QuantPlan, TensorSource, Tensors, TokenizerFiles, pack,
};
use squat_quant::token_policy::{TokenEvidence, TokenPolicy, mean_over_heads};
use squat_quant::{
    ActBits, ActPoint, ActScheme, Affine, CodeRange, WeightScheme, calibrate, dynamic_scale, math,
};

struct Fake<'a> {
    spec: &'a ModelSpec,
    plan: &'a QuantPlan,
    tensors: &'a Tensors,
}

/// Codes `[rows, cols]` as floats, and their scales by the scheme.
struct FakeWeight {
    codes: Vec<f32>,
    scales: Vec<f32>,
    scheme: Option<WeightScheme>,
}

impl Fake<'_> {
    fn weight(&self, name: &str, cols: usize, scheme: Option<WeightScheme>) -> FakeWeight {
        let mut codes = self.tensors.read_f32(name).unwrap();
        let Some(s) = scheme else { return FakeWeight { codes, scales: Vec::new(), scheme } };
        let mut scales = vec![0.0; s.num_scales(codes.len() / cols, cols)];
        let param = self.spec.parameters().into_iter().find(|param| param.name == name).unwrap();
        match self.tensors.get(&scale_name(&param)) {
            Some(learned) => scales.copy_from_slice(learned),
            None => calibrate::weight_scales(&codes, codes.len() / cols, cols, s, &mut scales),
        }
        for (i, x) in codes.iter_mut().enumerate() {
            let scale = scales[s.scale_index(i / cols, i % cols, cols)];
            *x = Affine::symmetric(scale, s.bits.range()).centered(*x);
        }
        FakeWeight { codes, scales, scheme }
    }

    /// Centered codes and scale of a row; itself and none if the point is not quantized.
    fn row(
        &self,
        x: &[f32],
        point: ActPoint,
        layer: Option<usize>,
        bits: ActBits,
    ) -> (Vec<f32>, Option<f32>) {
        let affine = match self.plan.point(point) {
            None => return (x.to_vec(), None),
            Some(ActScheme::Static) => read_static_affine(self.tensors, point, layer, bits).unwrap(),
            Some(ActScheme::Dynamic) => self.plan.clip.affine(float::max_abs(x), bits),
        };
        (x.iter().map(|&x| affine.centered(x)).collect(), Some(affine.scale))
    }

    fn linear(
        &self,
        x: &[f32],
        name: &str,
        point: ActPoint,
        layer: Option<usize>,
        bits: ActBits,
    ) -> Vec<f32> {
        let cols = x.len();
        let scheme = if layer.is_some() { self.plan.weight } else { self.plan.head };
        let weight = self.weight(name, cols, scheme);
        let (a, scale) = self.row(x, point, layer, bits);
        let rows = weight.codes.chunks_exact(cols).enumerate();
        let products = rows.map(|(row, w)| match (weight.scheme, scale) {
            (None, None) => float::dot(&a, w),
            (None, Some(scale)) => float::dot(&a, w) * scale,
            (Some(s), None) => {
                let dequantized: Vec<f32> = w
                    .iter()
                    .enumerate()
                    .map(|(col, &code)| weight.scales[s.scale_index(row, col, cols)] * code)
                    .collect();
                float::dot(&a, &dequantized)
            }
            (Some(s), Some(scale)) => {
                // Sums of integers below 2^24 are exact in any order.
                let group = s.group_len(cols);
                let sums: Vec<f32> =
                    a.chunks(group).zip(w.chunks(group)).map(|(a, w)| float::dot(a, w)).collect();
                let w_scale = |index: usize| weight.scales[s.scale_index(row, index * group, cols)];
                match s.granularity {
                    squat_quant::Granularity::PerGroup(_) => {
                        sums.iter().enumerate().fold(0.0, |y, (index, sum)| y + sum * w_scale(index)) * scale
                    }
                    _ => (sums[0] * scale) * w_scale(0),
                }
            }
        });
        match self.tensors.get(&bias_name(name)) {
            Some(bias) => products.zip(bias).map(|(y, bias)| y + bias).collect(),
            None => products.collect(),
        }
    }

    /// The value product of one query, from its softmax row; values are codes with scales, by position.
    fn values(
        &self,
        p: &[f32],
        values: &[(Vec<f32>, Option<f32>)],
        widths: &[ActBits],
        layer: usize,
    ) -> Vec<f32> {
        let probs = self.plan.point(ActPoint::AttnProbs).map(|_| self.plan.attn_probs_bits);
        let value = self.plan.point(ActPoint::Value);
        let d = values[0].0.len();
        // A cache of floats is read by fused multiply-add; other sums are exact, or those of the general form.
        let points = [ActPoint::Query, ActPoint::Key, ActPoint::Value, ActPoint::AttnProbs];
        let fused = points.iter().all(|&point| self.plan.point(point).is_none());
        let sum = |weights: &[f32], dequantize: bool| -> Vec<f32> {
            let mut out = vec![0f32; d];
            for (w, (v, s)) in weights.iter().zip(values) {
                let s = if dequantize { s.unwrap_or(1.0) } else { 1.0 };
                for (out, v) in out.iter_mut().zip(v) {
                    *out = if fused { w.mul_add(v * s, *out) } else { *out + w * (v * s) };
                }
            }
            out
        };
        let p_affine = probs.map(Affine::probability);
        let code = |p: f32| p_affine.map_or(p, |affine| affine.centered(p));
        if value.is_none() || (value == Some(ActScheme::Dynamic) && probs.is_none()) {
            let codes: Vec<f32> = p.iter().map(|&p| code(p)).collect();
            return sum(&codes, true)
                .iter()
                .map(|y| y * p_affine.map_or(1.0, |affine| affine.scale))
                .collect();
        }
        let mut out: Option<Vec<f32>> = None;
        for bits in [ActBits::A8, ActBits::A4] {
            if !widths.contains(&bits) {
                continue;
            }
            let here = |j: usize| widths[j] == bits;
            let (codes, factor): (Vec<f32>, f32) = if value == Some(ActScheme::Dynamic) {
                let folded: Vec<f32> = p.iter().zip(values).map(|(p, (_, s))| p * s.unwrap()).collect();
                let range = CodeRange::unsigned(probs.unwrap());
                let largest = (0..p.len()).filter(|&j| here(j)).fold(0f32, |a, j| a.max(folded[j]));
                let affine = Affine::symmetric(dynamic_scale(largest, range), range);
                let codes = (0..p.len()).map(|j| if here(j) { affine.centered(folded[j]) } else { 0.0 });
                (codes.collect(), affine.scale)
            } else {
                let affine = read_static_affine(self.tensors, ActPoint::Value, Some(layer), bits).unwrap();
                let codes = (0..p.len()).map(|j| if here(j) { code(p[j]) } else { 0.0 });
                (codes.collect(), p_affine.map_or(1.0, |a| a.scale) * affine.scale)
            };
            let part: Vec<f32> = sum(&codes, false).iter().map(|y| y * factor).collect();
            out = Some(match out {
                None => part,
                Some(wide) => wide.iter().zip(&part).map(|(a, b)| a + b).collect(),
            });
        }
        out.unwrap()
    }

    fn forward(&self, ids: &[u32]) -> Vec<f32> {
        let (spec, plan) = (self.spec, self.plan);
        let (d, hidden, eps) = (spec.head_dim, spec.hidden_size, spec.norm_eps as f32);
        let group = spec.num_attention_heads / spec.num_key_value_heads;
        let table = self.weight(ModelSpec::EMBEDDING, hidden, plan.embedding);
        let lookup = |id: u32| -> Vec<f32> {
            let row = id as usize;
            (0..hidden)
                .map(|col| match plan.embedding {
                    None => table.codes[row * hidden + col],
                    Some(s) => {
                        table.scales[s.scale_index(row, col, hidden)] * table.codes[row * hidden + col]
                    }
                })
                .collect()
        };
        let mut x: Vec<Vec<f32>> = ids.iter().map(|&id| lookup(id)).collect();
        if let Some(positions) = self.tensors.get(ModelSpec::POSITIONS) {
            x.iter_mut().zip(positions.chunks_exact(hidden)).for_each(|(x, row)| float::add(x, row));
        }
        let norm = |x: &[f32], name: &str| {
            let (mut out, gain) = (vec![0.0; hidden], self.tensors.get(name).unwrap());
            match self.tensors.get(&bias_name(name)) {
                None => float::rms_norm(x, gain, eps, &mut out),
                Some(bias) => float::layer_norm(x, gain, bias, eps, &mut out),
            }
            out
        };
        let block_norm = |x: &[f32], layer, kind| match spec.block_norm_name(layer, kind) {
            Some(name) => norm(x, &name),
            None => x.to_vec(),
        };
        let mut sink = vec![0f32; ids.len()];
        for layer in 0..spec.num_hidden_layers {
            let at = Some(layer);
            let rope = spec.rope_of(layer).map(|rope| rope.tables(ids.len(), d));
            let widths: Vec<ActBits> = (0..ids.len())
                .map(|i| {
                    let input_norm = match plan.policy {
                        TokenPolicy::ActivationNorm => math::sqrt(float::sum_squares(&x[i])),
                        _ => 0.0,
                    };
                    let evidence = TokenEvidence { position: i, sink_probability: sink[i], input_norm };
                    plan.policy.decide(layer, plan.threshold(layer), &evidence)
                })
                .collect();
            let name = |kind| spec.linear_name(layer, kind);
            let (mut keys, mut values) = (Vec::new(), Vec::new());
            for i in 0..ids.len() {
                let bits = widths[i];
                let h = block_norm(&x[i], layer, NormKind::Attn);
                let [mut q, mut k, v] = [LinearKind::Q, LinearKind::K, LinearKind::V]
                    .map(|kind| self.linear(&h, &name(kind), ActPoint::AttnIn, at, bits));
                for (kind, x) in [(LinearKind::Q, &mut q), (LinearKind::K, &mut k)] {
                    if let Some((_, width)) = spec.qk_norm_of(kind) {
                        let gain = self.tensors.get(&ModelSpec::head_norm_name(layer, kind)).unwrap();
                        for head in x.chunks_exact_mut(width) {
                            let before = head.to_vec();
                            float::rms_norm(&before, gain, eps, head);
                        }
                    }
                }
                if let Some((cos, sin)) = &rope {
                    for head in q.chunks_exact_mut(d).chain(k.chunks_exact_mut(d)) {
                        float::rope(head, &cos[i * d / 2..][..d / 2], &sin[i * d / 2..][..d / 2]);
                    }
                }
                let rows = |x: &[f32], point| -> Vec<_> {
                    x.chunks_exact(d).map(|row| self.row(row, point, at, bits)).collect()
                };
                keys.push(rows(&k, ActPoint::Key));
                values.push(rows(&v, ActPoint::Value));
                let (mut attended, mut column) = (Vec::new(), Vec::new());
                for (head, (q, q_scale)) in rows(&q, ActPoint::Query).into_iter().enumerate() {
                    let factor = q_scale.unwrap_or(1.0) * (1.0 / (d as f32).sqrt());
                    let mut p: Vec<f32> = keys
                        .iter()
                        .map(|key| {
                            (float::dot(&q, &key[head / group].0) * factor)
                                * key[head / group].1.unwrap_or(1.0)
                        })
                        .collect();
                    let before = p.len().saturating_sub(spec.window_of(layer).unwrap_or(usize::MAX));
                    p[..before].fill(f32::NEG_INFINITY);
                    float::softmax(&mut p);
                    column.push(p[0]);
                    let values: Vec<_> =
                        values.iter().map(|value: &Vec<_>| value[head / group].clone()).collect();
                    attended.extend(self.values(&p, &values, &widths[..=i], layer));
                }
                sink[i] = mean_over_heads(&column);
                let y = self.linear(&attended, &name(LinearKind::O), ActPoint::OProjInput, at, bits);
                float::add(&mut x[i], &block_norm(&y, layer, NormKind::AttnOutput));
                let h = block_norm(&x[i], layer, NormKind::Mlp);
                let project = |kind| self.linear(&h, &name(kind), ActPoint::MlpIn, at, bits);
                let mut mid = vec![0.0; spec.intermediate_size];
                match spec.mlp {
                    Mlp::SwiGlu => {
                        float::silu_mul(&project(LinearKind::Gate), &project(LinearKind::Up), &mut mid);
                    }
                    Mlp::GeGlu => {
                        float::gelu_mul(&project(LinearKind::Gate), &project(LinearKind::Up), &mut mid);
                    }
                    Mlp::Gelu => float::gelu(&project(LinearKind::Up), &mut mid),
                }
                let y = self.linear(&mid, &name(LinearKind::Down), ActPoint::DownProjInput, at, bits);
                float::add(&mut x[i], &block_norm(&y, layer, NormKind::MlpOutput));
            }
        }
        x.iter()
            .flat_map(|x| {
                let h = norm(x, ModelSpec::FINAL_NORM);
                self.linear(&h, spec.head_name(), ActPoint::LmHeadInput, None, ActBits::A8)
            })
            .collect()
    }
}

#[test]
fn every_plan_gives_the_bits_of_the_fake_quantized_forward() {
    for (model, spec) in specs() {
        let tensors = tensors(&spec, 11);
        let ids = tokens(&spec, 24, 12);
        for (name, plan) in plans() {
            let want = Fake { spec: &spec, plan: &plan, tensors: &tensors }.forward(&ids);
            let engine = Engine::from_parts(&spec, &plan, &tensors, EngineOptions::threads(2)).unwrap();
            let got = engine.session().unwrap().prefill_all(&ids).unwrap();
            assert_eq!(bits(&got), bits(&want), "{name}, {model}");
        }
    }
}

/// The way through files: learned scales in a checkpoint, packed to a folder, mapped and run.
#[test]
fn a_packed_folder_gives_the_same_bits() {
    packed_folders(&spec(true));
}

#[test]
fn a_packed_folder_of_gpt2_gives_the_same_bits() {
    packed_folders(&gpt2());
}

#[test]
fn packed_folders_of_gemma3_and_olmo2_give_the_same_bits() {
    packed_folders(&gemma3());
    packed_folders(&olmo2());
}

fn packed_folders(spec: &ModelSpec) {
    let mut tensors = tensors(spec, 11);
    let ids = tokens(spec, 24, 12);
    for (name, plan) in plans().into_iter().filter(|(_, plan)| !plan.is_full_precision()) {
        for param in spec.parameters() {
            if let Some(scheme) = plan.scheme_of(&param) {
                let (rows, cols) = (param.shape[0], param.shape[1]);
                let mut scales = vec![0.0; scheme.num_scales(rows, cols)];
                calibrate::weight_scales(tensors.get(&param.name).unwrap(), rows, cols, scheme, &mut scales);
                // As training would have left them: not where calibration put them.
                scales.iter_mut().for_each(|scale| *scale *= 1.05);
                tensors.insert(scale_name(&param), &[scales.len()], scales).unwrap();
            } else {
                tensors.remove(&scale_name(&param));
            }
        }
        if plan.weight.is_none() && plan.embedding.is_none() {
            continue;
        }
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path().join("packed");
        let tokenizer = TokenizerFiles::none();
        let source =
            PackSource { spec, plan: &plan, tensors: &tensors, tokenizer: &tokenizer, generation: None };
        pack(&source, &out).unwrap();
        let engine = Engine::load(&out, 2).unwrap();
        assert_eq!((engine.spec(), engine.plan()), (spec, &plan), "{name}");
        let got = engine.session().unwrap().prefill_all(&ids).unwrap();
        let want = Fake { spec, plan: &plan, tensors: &tensors }.forward(&ids);
        assert_eq!(bits(&got), bits(&want), "{name}");
    }
}
