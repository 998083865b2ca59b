use super::*;
use crate::ops::gradient_check::noise;
use squat_quant::{Granularity, WeightBits};
use std::collections::BTreeSet;

const ROWS: usize = 3;
const COLS: usize = 10;

fn schemes() -> impl Iterator<Item = WeightScheme> {
    let granularities = [Granularity::PerTensor, Granularity::PerChannel, Granularity::PerGroup(4)];
    granularities.into_iter().flat_map(|granularity| {
        WeightBits::ALL.into_iter().map(move |bits| WeightScheme { bits, granularity })
    })
}

/// Scales of which some clip and some do not.
fn scales(scheme: WeightScheme) -> Vec<f32> {
    let step = 0.9 / scheme.bits.range().max as f32;
    (0..scheme.num_scales(ROWS, COLS)).map(|i| step * (0.6 + 0.2 * (i % 4) as f32)).collect()
}

/// Every file of this folder is a quantizer with a line in the registry, named as its file.
#[test]
fn every_file_is_registered() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src/quantizer");
    let files: BTreeSet<String> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().to_string_lossy().trim_end_matches(".rs").replace('_', "-"))
        .filter(|name| name != "mod" && name != "tests")
        .collect();
    let names: BTreeSet<String> = registry().iter().map(|quantizer| quantizer.name().to_owned()).collect();
    assert_eq!(files, names, "files of src/quantizer on the left, REGISTRY on the right");
    assert_eq!(registry()[0].name(), default_quantizer().name());
    for name in &names {
        assert_eq!(named(name).unwrap().name(), name);
    }
    assert!(named("lsq-lg").unwrap_err().to_string().contains("did you mean `lsq-log`"));
}

/// Parameters made from scales give these scales back, exactly where they are the scales, else to a few units.
#[test]
fn parameters_stand_for_their_scales() {
    let values = noise(ROWS * COLS, 1);
    for (quantizer, scheme) in registry().iter().flat_map(|q| schemes().map(move |s| (q, s))) {
        let (weight, scales) = (Weight { values: &values, cols: COLS, scheme }, scales(scheme));
        let found = quantizer.scales(weight, &quantizer.parameters(weight, &scales));
        assert_eq!(found.len(), scales.len());
        for (a, b) in found.iter().zip(&scales) {
            let limit = if quantizer.stores_scales() { 0.0 } else { 1e-6 * b };
            assert!((a - b).abs() <= limit, "{}: {a} {b}", quantizer.name());
        }
    }
}

/// The straight-through gradient is by definition that with the residues of rounding held constant: inside the range
/// `w^ = w + s r`, outside `w^ = s q_limit`. Its derivative by the parameters is taken numerically here.
#[test]
fn gradients_match_numeric_ones() {
    let (values, up) = (noise(ROWS * COLS, 1), noise(ROWS * COLS, 2));
    for (quantizer, scheme) in registry().iter().flat_map(|q| schemes().map(move |s| (q, s))) {
        let weight = Weight { values: &values, cols: COLS, scheme };
        let parameters = quantizer.parameters(weight, &scales(scheme));
        let base = quantizer.scales(weight, &parameters);
        let range = scheme.bits.range();
        let (low, high) = (range.min as f32, range.max as f32);
        let value = |parameters: &[f32]| -> f64 {
            let scales = quantizer.scales(weight, parameters);
            let held = |i: usize, &w: &f32| {
                let index = scheme.scale_index(i / COLS, i % COLS, COLS);
                let v = w * (1.0 / base[index]);
                let residue = v.clamp(low, high).round_ties_even() - v;
                let s = f64::from(scales[index]);
                if v < low || v > high {
                    s * f64::from(v.clamp(low, high))
                } else {
                    f64::from(w) + s * f64::from(residue)
                }
            };
            values.iter().enumerate().map(|(i, w)| held(i, w) * f64::from(up[i])).sum()
        };
        let mut grad = up.clone();
        let found = quantizer.backward(weight, &parameters, &mut grad);
        for (i, (&got, &w)) in grad.iter().zip(&values).enumerate() {
            let v = w * (1.0 / base[scheme.scale_index(i / COLS, i % COLS, COLS)]);
            assert_eq!(got, if v < low || v > high { 0.0 } else { up[i] }, "weight {i}");
        }
        let counts = weight.weights_per_scale();
        for (i, &got) in found.iter().enumerate() {
            // The published LSQ scales its gradient on purpose (section 2.2).
            let factor = match quantizer.name() {
                "lsq" => 1.0 / (counts[i] as f64 * f64::from(high)).sqrt(),
                _ => 1.0,
            };
            let step = 1e-3 * parameters[i].abs().max(0.1);
            let mut moved = parameters.clone();
            moved[i] = parameters[i] + step;
            let above = value(&moved);
            moved[i] = parameters[i] - step;
            let want = factor * (above - value(&moved)) / (2.0 * f64::from(step));
            let name = quantizer.name();
            assert!(
                (f64::from(got) - want).abs() < 2e-3 * want.abs().max(0.1),
                "{name} {scheme:?}: {got} {want}"
            );
        }
    }
}

/// Scales are positive after any step of the optimizer, and NaN stays visible.
#[test]
fn scales_stay_positive() {
    let values = noise(ROWS * COLS, 3);
    let scheme = WeightScheme::per_channel(WeightBits::W4);
    let weight = Weight { values: &values, cols: COLS, scheme };
    for quantizer in registry() {
        let mut parameters = quantizer.parameters(weight, &scales(scheme));
        parameters[0] -= 1.0;
        parameters[1] -= 30.0;
        quantizer.project(&mut parameters);
        for scale in quantizer.scales(weight, &parameters) {
            assert!(scale > 0.0 && scale.is_normal(), "{}: {scale:e}", quantizer.name());
        }
        let mut broken = [f32::NAN];
        quantizer.project(&mut broken);
        assert!(broken[0].is_nan());
    }
}
