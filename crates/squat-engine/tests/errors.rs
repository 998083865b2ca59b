//! Bad input: a clear error that says what to do, and a session as if nothing had happened.
#![allow(clippy::unwrap_used)]

mod common;

use common::{bits, engine, mixed, spec, tensors, tokens};
use squat_engine::{
    Engine, EngineError, EngineOptions, FinishReason, GenerateOptions, Sampling, SessionOptions,
};
use squat_model::{ModelSpec, QuantPlan};
use squat_quant::token_policy::TokenPolicy;

fn small() -> Engine {
    engine(&common::spec(false), &QuantPlan::w4a8(), EngineOptions::threads(2))
}

#[test]
fn wrong_tokens_are_refused_and_change_nothing() {
    let engine = small();
    let ids = tokens(engine.spec(), 20, 1);
    let mut session = engine.session_with(SessionOptions { capacity: Some(24), block: 8 }).unwrap();
    assert!(matches!(session.prefill(&[]), Err(EngineError::Empty { .. })));
    session.prefill(&ids[..10]).unwrap();
    let error = session.prefill(&[1, 2, 37]).unwrap_err();
    assert!(matches!(error, EngineError::TokenOutOfRange { id: 37, position: 2, vocab_size: 37 }));
    assert!(error.to_string().contains("tokenizer"), "{error}");
    let error = session.prefill(&tokens(engine.spec(), 15, 2)).unwrap_err();
    assert!(matches!(error, EngineError::TooLong { asked: 25, capacity: 24, max_positions: 96 }), "{error}");
    assert!(matches!(session.truncate(11), Err(EngineError::Truncate { asked: 11, held: 10 })));
    assert_eq!(session.position(), 10);
    let got = bits(session.prefill(&ids[10..]).unwrap());
    assert_eq!(got, bits(engine.session().unwrap().prefill(&ids).unwrap()));
}

#[test]
fn options_are_checked() {
    let engine = small();
    for options in [
        SessionOptions { capacity: Some(0), block: 8 },
        SessionOptions { capacity: Some(97), block: 8 },
        SessionOptions { capacity: None, block: 0 },
    ] {
        assert!(matches!(engine.session_with(options), Err(EngineError::Option { .. })), "{options:?}");
    }
    let generate = |sampling| {
        engine.generate(&[1], &GenerateOptions { sampling, ..Default::default() }, |_| true).unwrap_err()
    };
    assert!(
        generate(Sampling { temperature: f32::NAN, ..Default::default() })
            .to_string()
            .contains("temperature")
    );
    assert!(generate(Sampling { top_p: 0.0, ..Default::default() }).to_string().contains("top_p"));
    assert!(matches!(
        engine.generate(&[], &GenerateOptions::default(), |_| true),
        Err(EngineError::Empty { .. })
    ));
}

#[test]
fn sequences_to_score_are_checked() {
    let engine = small();
    assert!(engine.log_likelihoods(&[]).unwrap().is_empty());
    assert!(matches!(engine.log_likelihoods(&[&[1]]), Err(EngineError::Empty { .. })));
    assert!(matches!(engine.log_likelihoods(&[&[1, 2], &[1, 99]]), Err(EngineError::TokenOutOfRange { .. })));
    let long = tokens(engine.spec(), 97, 1);
    assert!(matches!(engine.log_likelihoods(&[&long]), Err(EngineError::TooLong { .. })));
    assert_eq!(engine.log_likelihoods(&[&long[..96]]).unwrap()[0].len(), 95);
}

#[test]
fn logits_that_are_not_finite_are_an_error() {
    let spec = spec(false);
    let mut tensors = tensors(&spec, 11);
    // Finite weights whose product overflows.
    tensors.get_mut(ModelSpec::FINAL_NORM).unwrap()[3] = f32::MAX;
    tensors.get_mut(ModelSpec::HEAD).unwrap().fill(f32::MAX);
    let plan = QuantPlan::full_precision();
    let engine = Engine::from_parts(&spec, &plan, &tensors, EngineOptions::threads(1)).unwrap();
    let mut session = engine.session().unwrap();
    assert!(matches!(session.prefill(&[1, 2]), Err(EngineError::NotFinite { position: 1, .. })));
    assert!(matches!(engine.log_likelihoods(&[&[1, 2, 3]]), Err(EngineError::NotFinite { position: 0, .. })));
}

#[test]
fn damaged_models_are_refused() {
    let spec = spec(false);
    let load = |plan: &QuantPlan, change: fn(&mut squat_model::Tensors)| {
        let mut tensors = tensors(&spec, 11);
        change(&mut tensors);
        let error = Engine::from_parts(&spec, plan, &tensors, EngineOptions::threads(1)).err();
        error.expect("an error").to_string()
    };
    let plan = QuantPlan::w4a8();
    let missing = load(&plan, |t| {
        t.remove("model.layers.1.mlp.up_proj.weight");
    });
    assert!(missing.contains("up_proj") && missing.contains("nearest"), "{missing}");
    let nan = load(&plan, |t| t.get_mut("model.layers.2.self_attn.k_proj.weight").unwrap()[5] = f32::NAN);
    assert!(nan.contains("k_proj") && nan.contains("element 5"), "{nan}");
    let unfrozen = load(&QuantPlan { thresholds: Vec::new(), ..mixed(TokenPolicy::SinkAttention) }, |_| ());
    assert!(unfrozen.contains("thresholds"), "{unfrozen}");
    let no_threads = Engine::from_parts(&spec, &plan, &tensors(&spec, 11), EngineOptions::threads(9999));
    assert!(no_threads.err().unwrap().to_string().contains("threads"));
    let nowhere = Engine::load("no/such/model", 1).err().unwrap().to_string();
    assert!(nowhere.contains("no/such/model"), "{nowhere}");
}

#[test]
fn generation_ends_for_the_right_reason() {
    let engine = small();
    // Ids beyond a tokenizer's are never drawn, however hot the sampling.
    let sampling = Sampling { temperature: 50.0, top_k: 0, top_p: 1.0, seed: 3 };
    let few = GenerateOptions { max_tokens: 60, sampling, vocabulary: Some(5), ..Default::default() };
    let drawn = engine.generate(&[1, 3], &few, |_| true).unwrap().tokens;
    assert!(drawn.iter().all(|&id| id < 5) && drawn.contains(&4), "{drawn:?}");
    let none = GenerateOptions { vocabulary: Some(0), ..few };
    assert!(engine.generate(&[1], &none, |_| true).unwrap_err().to_string().contains("vocabulary"));
    let options = |max_tokens| GenerateOptions { max_tokens, ..Default::default() };
    let all = engine.generate(&[1, 5], &options(30), |_| true).unwrap();
    assert_eq!((all.tokens.len(), all.finish), (30, FinishReason::Length));
    let stop = all.tokens[9];
    let first = all.tokens.iter().position(|&t| t == stop).unwrap();
    let stopped =
        engine.generate(&[1, 5], &GenerateOptions { stop_ids: vec![stop], ..options(30) }, |_| true).unwrap();
    assert_eq!((&stopped.tokens[..], stopped.finish), (&all.tokens[..first], FinishReason::Stop));
    let mut seen = 0;
    let cancelled = engine
        .generate(&[1, 5], &options(30), |_| {
            seen += 1;
            seen < 4
        })
        .unwrap();
    assert_eq!((&cancelled.tokens[..], cancelled.finish), (&all.tokens[..4], FinishReason::Cancelled));
    let mut session = engine.session_with(SessionOptions { capacity: Some(12), block: 8 }).unwrap();
    let full = session.generate(&[1, 5], &options(30), |_| true).unwrap();
    assert_eq!((full.tokens.len(), full.finish), (11, FinishReason::Capacity));
    assert_eq!(full.tokens, all.tokens[..11]);
    assert!(engine.generate(&[1], &options(0), |_| true).unwrap().tokens.is_empty());
}

#[test]
fn sampling_is_the_same_for_the_same_seed_and_any_threads() {
    let run = |seed, threads| {
        let engine =
            engine(&common::spec(false), &mixed(TokenPolicy::SinkAttention), EngineOptions::threads(threads));
        let sampling = Sampling { temperature: 0.9, top_k: 20, top_p: 0.95, seed };
        let options = GenerateOptions { max_tokens: 40, sampling, ..Default::default() };
        engine.generate(&[1], &options, |_| true).unwrap().tokens
    };
    assert_eq!(run(1, 1), run(1, 2));
    assert_ne!(run(1, 1), run(2, 1));
}

#[test]
fn engines_and_sessions_can_move_to_other_threads() {
    fn assert_send<T: Send>() {}
    fn assert_sync<T: Sync>() {}
    assert_send::<squat_engine::Session>();
    assert_send::<Engine>();
    assert_sync::<Engine>();
    assert_send::<EngineError>();
}
