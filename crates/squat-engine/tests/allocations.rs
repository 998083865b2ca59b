//! Decoding a token allocates nothing: a counting allocator watches.
#![allow(clippy::unwrap_used)]

mod common;

use common::{engine, gpt2, mixed, qwen3, spec, tokens};
use squat_engine::{BatchEntry, EngineOptions, SessionOptions};
use squat_model::QuantPlan;
use squat_quant::token_policy::TokenPolicy;
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

struct Counting;

thread_local! {
    /// Of this thread alone: allocations of a new worker thread for itself do not belong to decoding, and workers run the
    /// same code as their caller.
    static ALLOCATIONS: Cell<usize> = const { Cell::new(0) };
}

// SAFETY: every call is passed on to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        // SAFETY: as the caller promised.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: as the caller promised.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

#[test]
fn decoding_allocates_nothing() {
    for plan in [
        QuantPlan::w4a8(),
        QuantPlan::w4a4(),
        mixed(TokenPolicy::SinkAttention),
        common::make_static(mixed(TokenPolicy::SinkAttention)),
        QuantPlan::full_precision(),
    ] {
        for (spec, threads) in [(spec(false), 1), (spec(false), 2), (gpt2(), 1), (gpt2(), 2), (qwen3(), 1)] {
            let engine = engine(&spec, &plan, EngineOptions::threads(threads));
            let ids = tokens(engine.spec(), 60, 1);
            let mut session = engine.session_with(SessionOptions { capacity: Some(64), block: 16 }).unwrap();
            // The first tokens may size what depends on the plan.
            session.prefill(&ids[..3]).unwrap();
            let before = ALLOCATIONS.get();
            for &id in &ids[3..] {
                session.decode(id).unwrap();
            }
            let count = ALLOCATIONS.get() - before;
            assert_eq!(count, 0, "{plan:?}, {:?}, {threads} threads", spec.architecture);

            // Several sequences together, at different positions.
            let mut others: [_; 3] = std::array::from_fn(|_| engine.session().unwrap());
            let mut batch = engine.batch(8).unwrap();
            for (index, session) in others.iter_mut().enumerate() {
                batch.run(&mut [BatchEntry::new(session, &ids[..2 + index])]).unwrap();
            }
            let [a, b, c] = &mut others;
            let mut together = |at: usize| {
                let mut entries = [
                    BatchEntry::new(a, &ids[at..at + 1]),
                    BatchEntry::new(b, &ids[at..at + 1]),
                    BatchEntry::new(c, &ids[at..at + 1]),
                ];
                batch.run(&mut entries).unwrap();
            };
            together(5);
            let before = ALLOCATIONS.get();
            (6..40).for_each(together);
            assert_eq!(
                ALLOCATIONS.get() - before,
                0,
                "batch, {plan:?}, {:?}, {threads} threads",
                spec.architecture
            );
            // The counter counts.
            drop(std::hint::black_box(vec![1u8; 100]));
            assert!(ALLOCATIONS.get() > before);
        }
    }
}
