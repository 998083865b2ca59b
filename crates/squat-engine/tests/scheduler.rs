//! Requests that run together get the tokens that each gets alone; they queue, leave and fail by themselves.
#![allow(clippy::unwrap_used)]

mod common;

use common::{cases, engine, gpt2, spec, tensors, tokens};
use squat_engine::{
    Engine, EngineError, EngineOptions, Event, FinishReason, GenerateOptions, RequestId, Sampling, Scheduler,
    SchedulerOptions,
};
use squat_model::{ModelSpec, QuantPlan};
use std::collections::BTreeMap;

/// The events of a request.
#[derive(Debug, Default, PartialEq)]
struct Text {
    tokens: Vec<u32>,
    end: Option<String>,
}

fn step(scheduler: &mut Scheduler, texts: &mut BTreeMap<RequestId, Text>) -> bool {
    scheduler.step(|request, event| {
        let text = texts.entry(request).or_default();
        assert_eq!(text.end, None, "no event after the end");
        match event {
            Event::Token(token) => text.tokens.push(token),
            Event::Finished(reason) => text.end = Some(format!("{reason:?}")),
            Event::Failed(error) => text.end = Some(error.to_string()),
        }
    })
}

/// The same request alone.
fn alone(engine: &Engine, prompt: &[u32], options: &GenerateOptions) -> Text {
    let mut tokens = Vec::new();
    let end = engine.generate(prompt, options, |token| {
        tokens.push(token);
        true
    });
    let end = end.map_or_else(|error| error.to_string(), |generation| format!("{:?}", generation.finish));
    Text { tokens, end: Some(end) }
}

/// Prompts and options that differ in everything.
fn requests(engine: &Engine) -> Vec<(Vec<u32>, GenerateOptions)> {
    (0..9u64)
        .map(|i| {
            let prompt = tokens(engine.spec(), 1 + (i as usize * 7) % 23, 50 + i);
            let temperature = if i % 3 == 0 { 0.0 } else { 0.9 };
            let sampling = Sampling { temperature, top_k: (i % 2) as usize * 9, top_p: 0.95, seed: i };
            // One text without a token, one that fills the model.
            let max_tokens = [12, 5, 0, 30, 200][i as usize % 5];
            (prompt, GenerateOptions { max_tokens, sampling, stop_ids: vec![2, 3], vocabulary: None })
        })
        .collect()
}

#[test]
fn requests_get_the_tokens_that_each_gets_alone() {
    for (name, spec, plan) in cases() {
        let engine = engine(&spec, &plan, EngineOptions::threads(1 + name.len() % 2));
        let requests = requests(&engine);
        let options = SchedulerOptions { max_sequences: 4, max_step_tokens: 6 };
        let mut scheduler = engine.scheduler(options).unwrap();
        let (mut texts, mut want) = (BTreeMap::new(), BTreeMap::new());
        for (index, (prompt, options)) in requests.iter().enumerate() {
            let id = scheduler.submit(prompt.clone(), options.clone()).unwrap();
            want.insert(id, alone(&engine, prompt, options));
            // Some come while others run.
            if index % 4 == 3 {
                step(&mut scheduler, &mut texts);
                assert!(scheduler.num_running() <= 4);
            }
        }
        while step(&mut scheduler, &mut texts) {}
        assert_eq!(texts, want, "{name}");
        assert_eq!((scheduler.num_waiting(), scheduler.num_running(), scheduler.cache_bytes()), (0, 0, 0));
        assert!(!step(&mut scheduler, &mut texts), "nothing is left to do");
    }
}

#[test]
fn requests_wait_for_a_place_and_can_be_cancelled() {
    let engine = engine(&gpt2(), &QuantPlan::w4a8(), EngineOptions::threads(1));
    let mut scheduler = engine.scheduler(SchedulerOptions { max_sequences: 2, max_step_tokens: 2 }).unwrap();
    let options = GenerateOptions { max_tokens: 6, ..GenerateOptions::default() };
    let ids: Vec<RequestId> =
        (0..4).map(|_| scheduler.submit(vec![1, 4], options.clone()).unwrap()).collect();
    assert_eq!((scheduler.num_waiting(), scheduler.num_running()), (4, 0));
    let mut texts = BTreeMap::new();
    for _ in 0..3 {
        assert!(step(&mut scheduler, &mut texts));
    }
    assert_eq!((scheduler.num_waiting(), scheduler.num_running()), (2, 2));
    // One that runs, one that waits, one that is gone.
    assert!(scheduler.cancel(ids[0]) && scheduler.cancel(ids[3]) && !scheduler.cancel(ids[0]));
    let before = texts[&ids[0]].tokens.len();
    while step(&mut scheduler, &mut texts) {}
    assert_eq!(texts[&ids[0]].tokens.len(), before);
    assert!(!texts.contains_key(&ids[3]));
    let want = alone(&engine, &[1, 4], &options);
    assert!(texts[&ids[1]] == want && texts[&ids[2]] == want);
}

#[test]
fn a_request_that_fails_leaves_the_others_alone() {
    let spec = spec(false);
    let mut tensors = tensors(&spec, 11);
    // Overflows where the third number of the last norm is beyond 1, after some tokens and not after others.
    tensors.get_mut(ModelSpec::FINAL_NORM).unwrap()[3] = f32::MAX;
    let hidden = spec.hidden_size;
    for row in tensors.get_mut(ModelSpec::HEAD).unwrap().chunks_exact_mut(hidden) {
        row[3] = 1e-38;
    }
    let plan = QuantPlan::full_precision();
    let engine = Engine::from_parts(&spec, &plan, &tensors, EngineOptions::threads(1)).unwrap();
    let mut scheduler = engine.scheduler(SchedulerOptions { max_sequences: 5, max_step_tokens: 16 }).unwrap();
    let (mut texts, mut want) = (BTreeMap::new(), BTreeMap::new());
    for (prompt, options) in requests(&engine) {
        want.insert(
            scheduler.submit(prompt.clone(), options.clone()).unwrap(),
            alone(&engine, &prompt, &options),
        );
    }
    while step(&mut scheduler, &mut texts) {}
    assert_eq!(texts, want);
    let failed = texts.values().filter(|text| text.end.as_ref().unwrap().contains("not finite")).count();
    assert!(failed > 0 && failed < texts.len(), "{texts:?}");
}

#[test]
fn wrong_requests_and_limits_are_refused() {
    let engine = engine(&spec(false), &QuantPlan::w4a8(), EngineOptions::threads(1));
    for (max_sequences, max_step_tokens) in [(0, 8), (9, 8), (2, 5000)] {
        let result = engine.scheduler(SchedulerOptions { max_sequences, max_step_tokens });
        assert!(matches!(result, Err(EngineError::Option { .. })));
    }
    let mut scheduler = engine.scheduler(SchedulerOptions::default()).unwrap();
    let options = GenerateOptions::default();
    let mut error = |prompt: Vec<u32>| scheduler.submit(prompt, options.clone()).unwrap_err();
    assert!(matches!(error(vec![]), EngineError::Empty { .. }));
    assert!(matches!(error(vec![1, 99]), EngineError::TokenOutOfRange { id: 99, position: 1, .. }));
    assert!(matches!(error(vec![1; 97]), EngineError::TooLong { asked: 97, capacity: 96, .. }));
    let hot = Sampling { temperature: -1.0, ..Sampling::default() };
    let wrong = scheduler.submit(vec![1], GenerateOptions { sampling: hot, ..options }).unwrap_err();
    assert!(matches!(wrong, EngineError::Option { option: "temperature", .. }));
    // A prompt as long as the model takes gives one token.
    let id = scheduler.submit(vec![1; 96], GenerateOptions::default()).unwrap();
    let mut texts = BTreeMap::new();
    while step(&mut scheduler, &mut texts) {}
    assert_eq!((texts[&id].tokens.len(), texts[&id].end.as_deref()), (1, Some("Capacity")));
    assert_eq!(format!("{:?}", FinishReason::Capacity), "Capacity");
}
