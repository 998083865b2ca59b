//! A token's logits depend on the tokens before it and on nothing else: not on the block it was fed in, the threads,
//! the instruction set, the other sequences, or earlier contents of the session. All comparisons are exact.
#![allow(clippy::unwrap_used)]

mod common;

use common::{bits, cases, engine, mixed, spec, tokens};
use squat_engine::{Engine, EngineOptions, SessionOptions};
use squat_kernels::Kernels;
use squat_quant::ActBits;
use squat_quant::token_policy::TokenPolicy;

fn all_logits(engine: &Engine, ids: &[u32], block: usize) -> Vec<u32> {
    let options = SessionOptions { capacity: None, block };
    bits(&engine.session_with(options).unwrap().prefill_all(ids).unwrap())
}

#[test]
fn prefill_equals_token_by_token_decoding() {
    for (name, spec, plan) in cases() {
        let engine = engine(&spec, &plan, EngineOptions::threads(1));
        let ids = tokens(engine.spec(), 45, 5);
        let mut session = engine.session().unwrap();
        let one_by_one: Vec<u32> = ids.iter().flat_map(|&id| bits(session.decode(id).unwrap())).collect();
        assert_eq!(all_logits(&engine, &ids, 64), one_by_one, "{name}");
        let mut session = engine.session().unwrap();
        let last = bits(session.prefill(&ids).unwrap());
        assert_eq!(last[..], one_by_one[one_by_one.len() - last.len()..], "{name}: last token");
    }
}

#[test]
fn block_sizes_and_threads_do_not_matter() {
    for (name, spec, plan) in cases() {
        let solo = engine(&spec, &plan, EngineOptions::threads(1));
        let ids = tokens(solo.spec(), 80, 6);
        let want = all_logits(&solo, &ids, 64);
        for block in [1, 3, 32] {
            assert_eq!(all_logits(&solo, &ids, block), want, "{name}, blocks of {block}");
        }
        for threads in [2, 3] {
            let shared = engine(&spec, &plan, EngineOptions::threads(threads));
            assert_eq!(all_logits(&shared, &ids, 20), want, "{name}, {threads} threads");
            let mut session = shared.session().unwrap();
            session.prefill(&ids[..50]).unwrap();
            let decoded: Vec<u32> =
                ids[50..].iter().flat_map(|&id| bits(session.decode(id).unwrap())).collect();
            assert_eq!(
                decoded[..],
                want[50 * shared.spec().vocab_size..],
                "{name}, {threads} threads decoding"
            );
        }
    }
}

#[test]
fn every_instruction_set_gives_the_same_bits() {
    for (name, spec, plan) in cases() {
        let with = |kernels| {
            let engine = engine(
                &spec,
                &plan,
                EngineOptions { threads: 1, kernels: Some(kernels), ..Default::default() },
            );
            all_logits(&engine, &tokens(engine.spec(), 40, 7), 16)
        };
        let want = with(Kernels::scalar());
        for kernels in Kernels::available() {
            assert_eq!(with(kernels), want, "{name} on {}", kernels.name());
        }
    }
}

#[test]
fn a_truncated_session_is_as_if_the_rest_had_never_been() {
    for (name, spec, plan) in cases() {
        let engine = engine(&spec, &plan, EngineOptions::threads(1));
        let (ids, other) = (tokens(engine.spec(), 30, 8), tokens(engine.spec(), 30, 9));
        let mut session = engine.session().unwrap();
        let want = bits(session.prefill(&ids).unwrap());
        session.truncate(12).unwrap();
        session.prefill(&other).unwrap();
        session.truncate(12).unwrap();
        assert_eq!(bits(session.prefill(&ids[12..]).unwrap()), want, "{name}");
        session.reset();
        assert_eq!((session.position(), session.cache_bytes()), (0, 0));
        assert_eq!(bits(session.prefill(&ids).unwrap()), want, "{name} after a reset");
    }
}

#[test]
fn log_likelihoods_do_not_depend_on_threads_or_other_sequences() {
    for (name, spec, plan) in cases() {
        let solo = engine(&spec, &plan, EngineOptions::threads(1));
        let sequences: Vec<Vec<u32>> =
            (0..9).map(|i| tokens(solo.spec(), 2 + 7 * i % 40, i as u64)).collect();
        let views: Vec<&[u32]> = sequences.iter().map(Vec::as_slice).collect();
        let alone: Vec<Vec<f32>> =
            views.iter().map(|view| solo.log_likelihoods(&[view]).unwrap().remove(0)).collect();
        assert_eq!(solo.log_likelihoods(&views).unwrap(), alone, "{name}");
        let shared = engine(&spec, &plan, EngineOptions::threads(3));
        assert_eq!(shared.log_likelihoods(&views).unwrap(), alone, "{name}, 3 threads");
        // They agree with the logits.
        let logits = solo.session().unwrap().prefill_all(&sequences[8]).unwrap();
        for (i, &value) in alone[8].iter().enumerate() {
            let row = &logits[i * solo.spec().vocab_size..][..solo.spec().vocab_size];
            let total: f64 = row.iter().map(|&x| f64::from(x).exp()).sum();
            let want = f64::from(row[sequences[8][i + 1] as usize]) - total.ln();
            assert!((f64::from(value) - want).abs() < 1e-4, "{name}: {value} {want}");
        }
    }
}

#[test]
fn policies_mix_widths_and_the_cache_shrinks_with_them() {
    let bytes = |plan| {
        let engine = engine(&spec(false), &plan, EngineOptions::threads(1));
        let mut session = engine.session().unwrap();
        session.prefill(&tokens(engine.spec(), 60, 10)).unwrap();
        session.cache_bytes()
    };
    let wide = bytes(squat_model::QuantPlan::w4a8());
    let narrow = bytes(squat_model::QuantPlan::w4a4());
    for policy in [
        TokenPolicy::SinkAttention,
        TokenPolicy::Random { rho: 0.5, seed: 3 },
        TokenPolicy::First { count: 7 },
        TokenPolicy::ActivationNorm,
    ] {
        let engine = engine(&common::spec(false), &mixed(policy), EngineOptions::threads(1));
        let ids = tokens(engine.spec(), 60, 10);
        let trace = engine.token_bits(&ids).unwrap();
        assert_eq!(trace.len(), engine.spec().num_hidden_layers);
        assert!(trace[0].iter().all(|&bits| bits == ActBits::A8), "{policy:?}: layer 0");
        let mut shares = Vec::new();
        for layer in &trace {
            assert_eq!((layer.len(), layer[0]), (ids.len(), ActBits::A8), "{policy:?}: token 0");
            shares.push(layer.iter().filter(|&&bits| bits == ActBits::A8).count());
        }
        // The thresholds of the tests straddle what random models do; a trace of one width would test nothing.
        assert!(shares[1..].iter().any(|&n| n > 3 && n < 57), "{policy:?}: {shares:?}");
        let mixed = bytes(mixed(policy));
        assert!(narrow < mixed && mixed < wide, "{policy:?}: {narrow} < {mixed} < {wide}");
        // Token by token, in blocks, with threads: the same decisions.
        let mut session = engine.session().unwrap();
        session.record_token_bits(true);
        ids.iter().for_each(|&id| {
            session.decode(id).unwrap();
        });
        assert_eq!(session.token_bits().unwrap(), trace);
    }
}
