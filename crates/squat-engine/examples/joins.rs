//! What handing work to the threads costs: nanoseconds for an empty job, and the speed-up of jobs of known length.
//!
//! `cargo run --release -p squat-engine --example joins`

use squat_engine::pool::Pool;
use std::hint::black_box;
use std::time::Instant;

/// Turns of a loop that takes a nanosecond or less.
fn work(turns: usize) {
    (0..turns).for_each(|i| {
        black_box(i);
    });
}

/// Nanoseconds of a call, the best of some rounds.
fn time(calls: usize, mut call: impl FnMut()) -> f64 {
    let round = |_| {
        let start = Instant::now();
        (0..calls).for_each(|_| call());
        start.elapsed().as_nanos() as f64 / calls as f64
    };
    (0..9).map(round).fold(f64::INFINITY, f64::min)
}

fn main() -> squat_engine::Result<()> {
    eprintln!("threads   work in a job   parts   alone ns   pool ns   ratio");
    for threads in [1, 2] {
        let pool = Pool::new(threads)?;
        for turns in [0, 1000, 10_000, 50_000] {
            for parts in [2, 4, 8, 16] {
                let alone = time(500, || work(turns));
                let shared = time(500, || pool.for_each(0..parts, |_, _| work(turns / parts)));
                eprintln!(
                    "{threads:7} {turns:15} {parts:7} {alone:10.0} {shared:9.0} {:7.2}",
                    alone / shared
                );
            }
        }
    }
    Ok(())
}
