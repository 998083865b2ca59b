//! Sessions fed together get the bits that each gets alone, at any positions and in any combination.
#![allow(clippy::unwrap_used)]

mod common;

use common::{bits, cases, engine, tokens};
use squat_engine::{BatchEntry, EngineError, EngineOptions, Session, SessionOptions};
use squat_model::QuantPlan;

#[test]
fn results_are_bit_identical_whatever_else_is_in_the_batch() {
    for (name, spec, plan) in cases() {
        for threads in [1, 2] {
            let engine = engine(&spec, &plan, EngineOptions::threads(threads));
            let sequences: Vec<Vec<u32>> = (0..5).map(|i| tokens(engine.spec(), 30, 40 + i)).collect();
            // Logits after each token, each sequence alone.
            let alone: Vec<Vec<u32>> = sequences
                .iter()
                .map(|ids| bits(&engine.session().unwrap().prefill_all(ids).unwrap()))
                .collect();
            let vocabulary = engine.spec().vocab_size;
            let want =
                |sequence: usize, fed: usize| &alone[sequence][(fed - 1) * vocabulary..fed * vocabulary];
            let mut sessions: Vec<Session> = sequences.iter().map(|_| engine.session().unwrap()).collect();
            let mut batch = engine.batch(7).unwrap();
            // Prompts of different lengths mixed with decoded tokens, together more than the rows of the batch; some
            // sequences join late, and each pauses now and then.
            for round in 0..12usize {
                let mut entries = Vec::new();
                let mut fed = Vec::new();
                for (index, session) in sessions.iter_mut().enumerate() {
                    let at = session.position();
                    let count = match (round + index) % 5 {
                        0 => 0,
                        1 if at == 0 => 4 + 3 * index,
                        _ if round < index => 0,
                        _ => 1,
                    };
                    if count > 0 {
                        entries.push(BatchEntry::new(session, &sequences[index][at..at + count]));
                        fed.push((index, at + count));
                    }
                }
                batch.run(&mut entries).unwrap();
                for (index, held) in fed {
                    assert_eq!(sessions[index].position(), held);
                    assert_eq!(
                        bits(sessions[index].logits()),
                        want(index, held),
                        "{name}, {threads} threads, round {round}, sequence {index}"
                    );
                }
            }
            // A session leaves the batch and continues alone.
            let at = sessions[0].position();
            assert!(at > 0);
            let last = bits(sessions[0].prefill(&sequences[0][at..]).unwrap());
            assert_eq!(last, want(0, 30), "{name}");
        }
    }
}

#[test]
fn many_sequences_decode_together() {
    // More than a tile of logits and than the fewest rows of a shard.
    let engine = engine(&common::spec(true), &QuantPlan::w4a8(), EngineOptions::threads(2));
    let sequences: Vec<Vec<u32>> = (0..37).map(|i| tokens(engine.spec(), 6, i)).collect();
    let mut sessions: Vec<Session> = sequences.iter().map(|_| engine.session().unwrap()).collect();
    let mut batch = engine.batch(64).unwrap();
    for at in 0..6 {
        let entries = sessions.iter_mut().zip(&sequences).map(|(s, ids)| BatchEntry::new(s, &ids[at..=at]));
        batch.run(&mut entries.collect::<Vec<_>>()).unwrap();
    }
    for (session, ids) in sessions.iter().zip(&sequences) {
        let alone = bits(engine.session().unwrap().prefill(ids).unwrap());
        assert_eq!(bits(session.logits()), alone);
    }
    assert!(batch.scratch_bytes() > 0);
}

#[test]
fn nothing_is_fed_when_a_step_is_wrong() {
    let engine = engine(&common::spec(false), &QuantPlan::w4a8(), EngineOptions::threads(1));
    let other = common::engine(&common::spec(false), &QuantPlan::w4a8(), EngineOptions::threads(1));
    let options = SessionOptions { capacity: Some(4), ..SessionOptions::default() };
    let (mut a, mut b) = (engine.session().unwrap(), engine.session_with(options).unwrap());
    let mut stranger = other.session().unwrap();
    let mut batch = engine.batch(8).unwrap();
    let cases: [(&[u32], fn(&EngineError) -> bool); 3] = [
        (&[], |error| matches!(error, EngineError::Empty { .. })),
        (&[1, 37], |error| matches!(error, EngineError::TokenOutOfRange { id: 37, .. })),
        (&[1, 2, 3, 4, 5], |error| matches!(error, EngineError::TooLong { asked: 5, capacity: 4, .. })),
    ];
    for (tokens, expected) in cases {
        let error =
            batch.run(&mut [BatchEntry::new(&mut a, &[1]), BatchEntry::new(&mut b, tokens)]).unwrap_err();
        assert!(expected(&error), "{error}");
    }
    let error =
        batch.run(&mut [BatchEntry::new(&mut a, &[1]), BatchEntry::new(&mut stranger, &[1])]).unwrap_err();
    assert!(matches!(error, EngineError::OtherModel { .. }), "{error}");
    assert_eq!((a.position(), b.position(), stranger.position()), (0, 0, 0));
    batch.run(&mut []).unwrap();
    assert!(engine.batch(0).is_err() && engine.batch(5000).is_err());
}
