//! Teachers in bf16: a model whose weights were rounded, in half the memory.
#![allow(clippy::unwrap_used)]

mod common;

use common::{FP, QAT, Run, assert_same, steps};
use squat_train::Recipe;
use squat_train::checkpoint::Loaded;
use squat_train::device::device;
use squat_train::model::{ForwardOptions, initial_parameters};
use squat_train::parameters::{Group, Parameters};
use squat_train::recipe::TeacherDtype;
use squat_train::stage::Outcome;
use squat_train::step::Teacher;

/// bf16 by its definition: the nearer of the two neighbours, the even one in a tie.
fn round(x: f32) -> f32 {
    let below = f32::from_bits(x.to_bits() & 0xFFFF_0000);
    let above = f32::from_bits((x.to_bits() & 0xFFFF_0000) + 0x1_0000);
    let (down, up) = ((f64::from(x) - f64::from(below)).abs(), (f64::from(above) - f64::from(x)).abs());
    if down < up || (down == up && below.to_bits() & 0x1_0000 == 0) { below } else { above }
}

#[test]
fn logits_are_those_of_rounded_weights_bit_for_bit() {
    for tied in [true, false] {
        let setting = format!("model.tie_word_embeddings={tied}");
        let recipe = Recipe::parse(&format!("{}{}", common::HEAD, common::FP), &[setting]).unwrap();
        let spec = recipe.model.as_ref().unwrap().spec(301).unwrap();
        let ids: Vec<u32> = (0..3 * 13).map(|i| i * i * 7 % 301).collect();
        let make = |parameters: &Parameters, dtype| {
            let loaded = Loaded::full_precision(spec.clone(), parameters.clone());
            Teacher::new(loaded, dtype, 16, &device("cpu").unwrap(), 1).unwrap()
        };
        let logits = |teacher: &Teacher| -> Vec<u32> {
            let output = teacher.model.forward(&teacher.params, &ids, (3, 13), &ForwardOptions::default());
            let logits = output.logits.into_data().try_into_vec::<f32>().unwrap();
            logits.into_iter().map(f32::to_bits).collect()
        };
        let mut parameters = initial_parameters(&spec, 0.2, 5);
        let whole = make(&parameters, TeacherDtype::F32);
        let half = make(&parameters, TeacherDtype::Bf16);
        let rounded = parameters.list_mut().iter_mut().filter(|p| p.group == Group::Weight);
        rounded.flat_map(|p| &mut p.values).for_each(|x| *x = round(*x));
        assert!(logits(&half) == logits(&make(&parameters, TeacherDtype::F32)), "tied {tied}");
        assert!(logits(&half) != logits(&whole), "tied {tied}: nothing was rounded");
        // Gains stay as they are, all else is halved.
        let gains: usize =
            parameters.iter().filter(|p| p.group == Group::Norm).map(|p| 4 * p.values.len()).sum();
        assert_eq!(whole.params.bytes() - gains, 2 * (half.params.bytes() - gains));
    }
}

#[test]
fn a_run_with_halved_teachers_resumes_bit_for_bit() {
    let dir = tempfile::tempdir().unwrap();
    let [straight, broken, whole] = ["straight", "broken", "whole"].map(|name| dir.path().join(name));
    let settings: &[&str] = &["stage.q.teacher_dtype=bf16"];
    Run { settings, ..Run::new(&straight) }.run(&[FP, QAT]).unwrap();
    let outcome = Run { settings, stop: Some(("q", 6)), ..Run::new(&broken) }.run(&[FP, QAT]);
    assert_eq!(outcome.unwrap(), Outcome::Interrupted { step: 6 });
    // The teacher's logits are part of the result, so they cannot change in the middle.
    let error = Run { resume: true, ..Run::new(&broken) }.run(&[FP, QAT]).unwrap_err().to_string();
    assert!(error.contains("another"), "{error}");
    Run { settings, resume: true, ..Run::new(&broken) }.run(&[FP, QAT]).unwrap();
    assert_same(&straight, &broken, "q");
    Run::new(&whole).run(&[FP, QAT]).unwrap();
    let divergence = |run| steps(run, "q")[0]["divergence"].as_f64().unwrap();
    let (half, whole) = (divergence(&straight), divergence(&whole));
    assert!(half != whole && (half - whole).abs() < 0.05 * whole, "{half} {whole}");
}

#[test]
fn what_cannot_be_halved_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let run = |settings: &[&str]| {
        let next = QAT.replace("\"q\"", "\"r\"").replace("teachers = [\"fp\"]", "teachers = [\"q\"]");
        Run { settings, resume: true, ..Run::new(dir.path()) }.run(&[FP, QAT, &next])
    };
    let error = run(&["stage.r.teacher_dtype=fp16"]).unwrap_err().to_string();
    assert!(error.contains("expected `f32` or `bf16`"), "{error}");
    let error = run(&["stage.r.teacher_dtype=bf61"]).unwrap_err().to_string();
    assert!(error.contains("did you mean `bf16`"), "{error}");
    let error = run(&["stage.r.teacher_dtype=bf16"]).unwrap_err().to_string();
    assert!(error.contains("stage `r`") && error.contains("full-precision teachers"), "{error}");
}
