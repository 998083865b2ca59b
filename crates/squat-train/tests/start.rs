//! First codes of a model whose tokens differ in bits.
#![allow(clippy::unwrap_used)]

use squat_model::QuantPlan;
use squat_quant::ActBits;
use squat_test::model::llama;
use squat_train::checkpoint::Loaded;
use squat_train::fake_quant::TokenBits;
use squat_train::model::{ForwardOptions, Model, ParamTensors, initial_parameters};
use squat_train::start::{Methods, start};

fn windows() -> Vec<Vec<u32>> {
    let text: Vec<u32> = (0..600u32).map(|i| 3 + (i * i * 7 + i * 3 + i / 5) % 30).collect();
    text.chunks(24).map(|w| [&[1], w].concat()).collect()
}

/// Thresholds of the text that they were found on let as many tokens pass as the plan says, in every layer but the first,
/// whatever the methods are and however many threads there are.
#[test]
fn the_asked_share_of_tokens_gets_eight_bits() {
    let spec = llama(true);
    let original = Loaded::full_precision(spec.clone(), initial_parameters(&spec, 0.3, 5));
    let windows = windows();
    for (methods, rho) in [(Methods::default(), 0.5f32), (Methods::NONE, 0.25)] {
        let plan = methods.plan(QuantPlan { head: None, ..QuantPlan::with_rho(rho) }, &spec);
        let one = start(&original, &plan, &windows, &methods, 1, &mut |_| {}).unwrap().loaded;
        let two = start(&original, &plan, &windows, &methods, 2, &mut |_| {}).unwrap().loaded;
        assert_eq!(one.plan, two.plan);
        assert!(one.parameters.iter().zip(two.parameters.iter()).all(|(a, b)| a.values == b.values));
        let plan = one.plan.clone().unwrap();
        assert_eq!(plan.thresholds.len(), spec.num_hidden_layers);
        let mut model = Model::new(spec.clone(), one.plan.clone(), 32);
        model.quantizer = one.quantizer;
        let params = ParamTensors::constant(&one.parameters);
        let mut wide = vec![0usize; spec.num_hidden_layers];
        let mut tokens = 0;
        for window in &windows {
            let out = model.forward(&params, window, (1, window.len()), &ForwardOptions::default());
            tokens += window.len() - 1;
            for (wide, bits) in wide.iter_mut().zip(&out.bits) {
                assert!(matches!(bits, TokenBits::PerToken(_)));
                *wide += (1..window.len()).filter(|&t| bits.get(t) == ActBits::A8).count();
            }
        }
        assert_eq!(wide[0], tokens, "layer 0 has 8 bits");
        for (layer, &wide) in wide.iter().enumerate().skip(1) {
            let share = wide as f32 / tokens as f32;
            assert!((share - rho).abs() < 0.01, "{methods}: layer {layer}: {share}");
        }
    }
}
