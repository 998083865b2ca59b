//! The real model `stories260K` in the trainer's forward, against its known continuation and the reference.
#![allow(clippy::unwrap_used)]

use squat_model::format::llama2c::{Llama2cTokenizer, load_checkpoint};
use squat_model::reference;
use squat_test::data::{KNOWN_STORY, stories};
use squat_train::checkpoint;
use squat_train::evaluate::Evaluator;
use squat_train::model::{Model, ParamTensors};

#[test]
fn the_training_forward_continues_the_story() {
    let Some(path) = stories() else { return };
    let (spec, tensors) = load_checkpoint(path.join("stories260K.bin")).unwrap();
    let tokenizer = Llama2cTokenizer::load(path.join("tok512.bin"), spec.vocab_size).unwrap();
    // As a recipe's `init` or `teachers` would read it.
    let loaded = checkpoint::load(&path.join("stories260K.bin")).unwrap();
    assert!(loaded.spec == spec && loaded.plan.is_none());
    let parameters = loaded.parameters;
    let max_seq = spec.max_position_embeddings;
    let model = Model::new(spec.clone(), None, max_seq);
    let evaluator = Evaluator::new(model, ParamTensors::constant(&parameters), 1, max_seq);

    let mut ids = vec![1u32];
    let known = tokenizer.encode(KNOWN_STORY);
    while ids.len() <= known.len() {
        let logits = evaluator.logits(&ids).unwrap();
        let last = &logits[logits.len() - spec.vocab_size..];
        let best = (0..last.len()).max_by(|&a, &b| last[a].total_cmp(&last[b])).unwrap();
        ids.push(best as u32);
    }
    assert_eq!(tokenizer.decode(&ids), KNOWN_STORY);
    assert_eq!(&ids[1..], known);

    let got = evaluator.logits(&ids).unwrap();
    let want = reference::forward(&spec, &tensors, &ids).unwrap();
    assert_eq!(got.len(), want.len());
    let low = want.iter().copied().fold(f32::INFINITY, f32::min);
    let high = want.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let worst = got.iter().zip(&want).map(|(a, b)| (a - b).abs()).fold(0f32, f32::max);
    assert!(worst <= 1e-3 * (high - low), "{worst:e} of a range of {}", high - low);
    // As log-likelihoods: a story it would tell itself is likely.
    let nats: f32 = evaluator.log_likelihoods(&[&ids]).unwrap()[0].iter().sum();
    assert!(nats / known.len() as f32 > -1.0, "{nats}");
}
