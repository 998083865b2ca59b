//! A prefix that was saved and loaded, or forked, continues with the same bits.
#![allow(clippy::unwrap_used)]

mod common;

use common::{bits, cases, engine, mixed, spec, specs, tensors, tokens};
use squat_engine::{Engine, EngineError, EngineOptions, SessionOptions};
use squat_kernels::Kernels;
use squat_model::QuantPlan;
use squat_quant::token_policy::TokenPolicy;
use std::fs;

#[test]
fn loaded_and_forked_prefixes_continue_with_the_same_bits() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("prefix.kv");
    for (name, spec, plan) in cases() {
        let engine = engine(&spec, &plan, EngineOptions::threads(1));
        let ids = tokens(engine.spec(), 50, 21);
        let mut session = engine.session().unwrap();
        let first = bits(session.prefill(&ids[..33]).unwrap());
        session.save_prefix(&path).unwrap();
        let mut fork = session.fork().unwrap();
        let want = bits(session.prefill(&ids[33..]).unwrap());

        // Another process would have another engine, perhaps another instruction set and other sizes.
        let options = EngineOptions { threads: 2, kernels: Some(Kernels::scalar()), ..Default::default() };
        let elsewhere = common::engine(&spec, &plan, options);
        let sizes = SessionOptions { capacity: Some(60), block: 5 };
        let mut loaded = elsewhere.session_with(sizes).unwrap();
        loaded.prefill(&tokens(engine.spec(), 9, 3)).unwrap();
        loaded.load_prefix(&path).unwrap();
        assert_eq!((loaded.tokens(), loaded.position()), (&ids[..33], 33), "{name}");
        for other in [&mut loaded, &mut fork] {
            assert_eq!(bits(other.logits()), first, "{name}: logits of the prefix");
            // One token at a time, and again after going back.
            for &id in &ids[33..] {
                other.decode(id).unwrap();
            }
            assert_eq!(bits(other.logits()), want, "{name}");
            other.truncate(20).unwrap();
            assert_eq!(bits(other.prefill(&ids[20..]).unwrap()), want, "{name}: truncated");
        }
    }
}

#[test]
fn forks_are_independent() {
    let engine = engine(&common::spec(true), &mixed(TokenPolicy::SinkAttention), EngineOptions::threads(2));
    let ids = tokens(engine.spec(), 60, 22);
    let mut session = engine.session().unwrap();
    session.record_token_bits(true);
    session.prefill(&ids[..20]).unwrap();
    let mut forks = [session.fork().unwrap(), session.fork().unwrap()];
    let ends = [&ids[20..40], &ids[40..60]];
    let got: Vec<Vec<u32>> =
        forks.iter_mut().zip(ends).map(|(fork, end)| bits(fork.prefill(end).unwrap())).collect();
    assert_eq!(session.position(), 20);
    for (index, end) in ends.iter().enumerate() {
        session.truncate(20).unwrap();
        assert_eq!(bits(session.prefill(end).unwrap()), got[index]);
        assert_eq!(session.token_bits(), forks[index].token_bits());
    }
}

fn refused(engine: &Engine, path: &std::path::Path, options: SessionOptions) -> String {
    let mut session = engine.session_with(options).unwrap();
    let ids = tokens(engine.spec(), 5, 1);
    let before = bits(session.prefill(&ids).unwrap());
    let error = session.load_prefix(path).unwrap_err();
    assert!(matches!(error, EngineError::Prefix { .. }), "{error}");
    // As it was.
    assert_eq!((bits(session.logits()), session.tokens()), (before, &ids[..]));
    session.decode(2).unwrap();
    error.to_string()
}

#[test]
fn a_change_of_any_parameter_makes_another_model() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("prefix.kv");
    for (name, spec) in specs() {
        for plan in [QuantPlan::full_precision(), QuantPlan::w4a8()] {
            let tensors = tensors(&spec, 11);
            let options = EngineOptions::threads(1);
            let engine = Engine::from_parts(&spec, &plan, &tensors, options).unwrap();
            let mut session = engine.session().unwrap();
            session.prefill(&[1, 2]).unwrap();
            session.save_prefix(&path).unwrap();
            for param in spec.parameters() {
                let mut changed = tensors.clone();
                // The last row alone: of joined matrices each part counts.
                let values = changed.get_mut(&param.name).unwrap();
                let row = values.len() - param.shape.get(1).copied().unwrap_or(1);
                values[row..].iter_mut().for_each(|x| *x *= 1.25);
                let engine = Engine::from_parts(&spec, &plan, &changed, options).unwrap();
                let error = engine.session().unwrap().load_prefix(&path).unwrap_err().to_string();
                assert!(error.contains("expected model"), "{name}, {}: {error}", param.name);
            }
        }
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("prefix.kv");
    let own = engine(&common::spec(false), &QuantPlan::w4a8(), EngineOptions::threads(1));
    let mut session = own.session().unwrap();
    session.prefill(&tokens(own.spec(), 12, 2)).unwrap();
    session.save_prefix(&path).unwrap();
    let all = SessionOptions::default();

    let plan = engine(&common::spec(false), &QuantPlan::w4a4(), EngineOptions::threads(1));
    assert!(refused(&plan, &path, all).contains("expected plan"));
    // The same shapes and plan, other weights.
    let weights = Engine::from_parts(
        &spec(false),
        &QuantPlan::w4a8(),
        &tensors(&spec(false), 12),
        EngineOptions::threads(1),
    );
    assert!(refused(&weights.unwrap(), &path, all).contains("expected model"));
    let small = SessionOptions { capacity: Some(11), ..all };
    assert!(refused(&own, &path, small).contains("12 tokens, the session at most 11"));

    let good = fs::read(&path).unwrap();
    // A file of the first version, which is no longer read.
    let mut old = good.clone();
    old[7] = 1;
    fs::write(&path, &old).unwrap();
    let error = refused(&own, &path, all);
    assert!(error.contains("version 2") && error.contains("got 1") && error.contains("again"), "{error}");
    for cut in [0, 5, 8, 11, 40, good.len() / 2, good.len() - 9, good.len() - 1] {
        fs::write(&path, &good[..cut]).unwrap();
        refused(&own, &path, all);
    }
    for at in (0..good.len()).step_by(97) {
        let mut bad = good.clone();
        bad[at] ^= 0x10;
        fs::write(&path, &bad).unwrap();
        refused(&own, &path, all);
    }
    let mut recording = own.session().unwrap();
    recording.record_token_bits(true);
    fs::write(&path, &good).unwrap();
    assert!(recording.load_prefix(&path).is_err());
    session.load_prefix(&path).unwrap();

    let missing = session.load_prefix(folder.path().join("nothing")).unwrap_err();
    assert!(matches!(missing, EngineError::PrefixFile { verb: "read", .. }), "{missing}");
    let unwritable = session.save_prefix(folder.path().join("no/folder")).unwrap_err();
    assert!(matches!(unwritable, EngineError::PrefixFile { verb: "write", .. }), "{unwritable}");
    // Nothing but the file itself is left.
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
}
