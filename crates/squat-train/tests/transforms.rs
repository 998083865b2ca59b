//! Weights rewritten for the transforms of a plan compute what they did.
#![allow(clippy::unwrap_used)]

use squat_model::{ModelSpec, QuantPlan};
use squat_quant::{ActPoint, Transform};
use squat_test::model::{llama, qwen2, qwen3, tokens};
use squat_train::Parameters;
use squat_train::model::{
    ForwardOptions, Model, ParamTensors, initial_parameters, transform_values, transform_weights,
    undo_transforms,
};
use squat_train::parameters::Group;

fn logits(spec: &ModelSpec, parameters: &Parameters, plan: Option<&QuantPlan>) -> Vec<f32> {
    let model = Model::new(spec.clone(), plan.cloned(), 16);
    let ids = tokens(spec, 12, 3);
    let params = ParamTensors::constant(parameters);
    let found = model.forward(&params, &ids, (1, ids.len()), &ForwardOptions::default()).logits;
    found.into_data().try_into_vec().unwrap()
}

fn close(a: &[f32], b: &[f32]) -> bool {
    squat_test::max_abs_diff(a, b) < 2e-5 * a.iter().map(|x| x.abs()).fold(0.0, f32::max)
}

#[test]
fn transformed_weights_compute_the_same() {
    for spec in [llama(true), llama(false), qwen2(), qwen3()] {
        let spec = ModelSpec { intermediate_size: 44, ..spec };
        let mut parameters = initial_parameters(&spec, 0.25, 7);
        // Gains and biases that are not those of a fresh model.
        for (i, p) in parameters.list_mut().iter_mut().filter(|p| p.group == Group::Norm).enumerate() {
            p.values.iter_mut().enumerate().for_each(|(j, x)| *x += 0.3 * ((i * 31 + j * 17) as f32).sin());
        }
        let want = logits(&spec, &parameters, None);
        let mut plan = QuantPlan { residual: Transform::Largest, ..QuantPlan::full_precision() };
        for point in [ActPoint::DownProjInput, ActPoint::AttnIn, ActPoint::OProjInput] {
            plan.transforms[point.index()] = Transform::Hadamard(4);
        }
        plan.transforms[ActPoint::MlpIn.index()] = Transform::Interleaved(4);
        let plan = plan.for_model(&spec);
        plan.validate(&spec).unwrap();
        assert_ne!(plan.residual, Transform::None);

        let class = &spec.architecture.class;
        let mut rewritten = parameters.clone();
        transform_values(&mut rewritten, &spec);
        assert_ne!(rewritten.digest(), parameters.digest(), "{class}");
        assert!(close(&want, &logits(&spec, &rewritten, None)), "{class}: values");
        transform_weights(&mut rewritten, &spec, &plan);
        assert!(close(&want, &logits(&spec, &rewritten, Some(&plan))), "{class}");
        assert!(!close(&want, &logits(&spec, &rewritten, None)), "{class}: the plan is needed");

        // Norms that were trained since.
        let norm = rewritten.index(&spec.attn_norm_name(0)).unwrap();
        rewritten.list_mut()[norm]
            .values
            .iter_mut()
            .enumerate()
            .for_each(|(i, x)| *x *= 1.0 + 0.02 * i as f32);
        let moved = logits(&spec, &rewritten, Some(&plan));
        undo_transforms(&mut rewritten, &spec, &plan);
        assert!(close(&moved, &logits(&spec, &rewritten, None)), "{class}: undone");
    }
}
