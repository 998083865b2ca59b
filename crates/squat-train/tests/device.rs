//! A training step on another device gives the CPU's numbers.
//!
//! Runs in a build with the feature `cuda`, `vulkan`, `metal` or `wgpu` on a machine that has such a device; otherwise it says
//! that it skips. Limits of the tolerance: other devices sum in another order and dequantize before they multiply.
#![allow(clippy::unwrap_used)]

mod common;

use burn::tensor::FloatDType;
use squat_model::{ModelSpec, QuantPlan};
use squat_train::Recipe;
use squat_train::device::{NAMES, device, is_cpu};
use squat_train::model::{Model, ParamTensors, add_quantizer_parameters, initial_parameters};
use squat_train::quantizer::default_quantizer;
use squat_train::recipe::{LossConfig, MixedPrecision};
use squat_train::step::{MicroResult, Teacher, micro_step};
use std::panic::catch_unwind;

/// Share of the largest entry of each gradient by which the devices may differ.
const TOLERANCE: f32 = 2e-3;

/// A device of this name that computes; a line that says why there is none.
fn present(name: &str) -> Result<burn::tensor::Device, String> {
    let found = device(name).map_err(|error| error.to_string())?;
    let probe = found.clone();
    // Backends find out that there is no device when they first use it, and panic.
    let sum = catch_unwind(move || {
        let ones = burn::tensor::Tensor::<2>::ones([4, 4], &probe);
        ones.clone().matmul(ones).sum().into_scalar::<f32>()
    });
    match sum {
        Ok(64.0) => Ok(found),
        Ok(other) => panic!("{name}: 4 x 4 ones multiplied and summed give {other}"),
        Err(_) => Err(format!("this machine has no {name} device")),
    }
}

fn step(
    device: &burn::tensor::Device,
    spec: &ModelSpec,
    plan: Option<QuantPlan>,
    recompute: bool,
    mixed_precision: MixedPrecision,
) -> MicroResult {
    let mut parameters = initial_parameters(spec, 0.2, 5);
    let teacher = ParamTensors::on(&parameters, device);
    let teacher = Teacher { model: Model::new(spec.clone(), None, 16), params: teacher };
    if let Some(plan) = &plan {
        add_quantizer_parameters(&mut parameters, spec, plan, default_quantizer());
        // Calibration puts a channel's largest weight on the limit of the codes, where the gradient of the scale jumps: the
        // last bit of an exponential decides.
        for parameter in parameters.list_mut().iter_mut().filter(|p| p.name.ends_with("weight_quantizer")) {
            parameter.values.iter_mut().for_each(|log_scale| *log_scale += 0.03);
        }
    }
    let mut model = Model::new(spec.clone(), plan, 16);
    model.recompute = recompute;
    model.mixed_precision = mixed_precision;
    // The CPU multiplies in bf16 in this form alone.
    model.tensor_forms = mixed_precision == MixedPrecision::Bf16;
    let constant = ParamTensors::on(&parameters, device);
    let config = LossConfig { entropy: 0.01, alignment: 0.1, ..LossConfig::default() };
    let batch: Vec<Vec<u32>> = (0..3u32)
        .map(|b| (0..=12u32).map(|t| if t == 0 { 1 } else { (b * 31 + t * t * 7) % 90 }).collect())
        .collect();
    micro_step(&model, &parameters, &constant, &[teacher], &config, &batch)
}

#[test]
fn a_step_on_each_device_is_that_of_the_cpu() {
    let recipe = Recipe::parse(&format!("{}{}", common::HEAD, common::FP), &[]).unwrap();
    let spec = recipe.model.as_ref().unwrap().spec(90).unwrap();
    let cpu = device("cpu").unwrap();
    assert!(is_cpu(&cpu));
    let mut compared = 0;
    for name in NAMES.into_iter().filter(|&name| name != "cpu") {
        let other = match present(name) {
            Ok(other) => other,
            Err(reason) => {
                eprintln!("SKIPPED {name}: {reason}");
                continue;
            }
        };
        for plan in [None, Some(QuantPlan::with_rho(1.0))] {
            if other.supports_dtype(FloatDType::BF16) {
                let [want, got] = [&cpu, &other]
                    .map(|device| step(device, &spec, plan.clone(), false, MixedPrecision::Bf16));
                let what = format!("{name}, bf16, quantized {}", plan.is_some());
                for ((term, a), (_, b)) in want.loss.terms().zip(got.loss.terms()) {
                    assert!((a - b).abs() <= 1e-2 * a.abs().max(0.1), "{what}: {term} {a} {b}");
                }
                let norm =
                    |gradients: &mut dyn Iterator<Item = f32>| gradients.map(|g| g * g).sum::<f32>().sqrt();
                for (index, (a, b)) in want.gradients.iter().zip(&got.gradients).enumerate() {
                    let apart = norm(&mut a.iter().zip(b).map(|(a, b)| a - b));
                    assert!(apart <= 0.1 * norm(&mut a.iter().copied()), "{what}: parameter {index}");
                }
            } else {
                eprintln!("{name} has no bf16");
            }
            for recompute in [false, true] {
                let what = format!("{name}, quantized {}, recomputed {recompute}", plan.is_some());
                let [want, got] = [&cpu, &other]
                    .map(|device| step(device, &spec, plan.clone(), recompute, MixedPrecision::No));
                for ((term, a), (_, b)) in want.loss.terms().zip(got.loss.terms()) {
                    assert!((a - b).abs() <= 1e-3 * a.abs().max(0.1), "{what}: {term} {a} {b}");
                }
                for (index, (a, b)) in want.gradients.iter().zip(&got.gradients).enumerate() {
                    let largest = a.iter().fold(1e-6f32, |m, g| m.max(g.abs()));
                    // A value next to a rounding boundary may fall on the other side: a few entries may differ.
                    let far = a.iter().zip(b).filter(|(a, b)| (*a - *b).abs() > TOLERANCE * largest).count();
                    let allowed = if plan.is_some() { a.len() / 50 } else { 0 };
                    assert!(far <= allowed, "{what}: parameter {index}, {far} of {} entries", a.len());
                }
            }
        }
        compared += 1;
    }
    eprintln!("{compared} devices compared with the CPU");
}
