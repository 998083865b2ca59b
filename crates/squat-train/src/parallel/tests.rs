//! Collective operations between threads that talk over real connections.

use super::*;
use std::net::TcpListener;

/// A port that was free a moment ago.
fn port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

fn launch(rank: usize, world: usize, port: u16) -> Launch {
    Launch { rank, world, local_rank: rank, local_world: world, host: "127.0.0.1".into(), port }
}

/// Runs `act` as every rank at once.
fn together<R: Send>(world: usize, act: impl Fn(Group) -> R + Sync) -> Vec<R> {
    let (port, act) = (port(), &act);
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..world)
            .map(|rank| {
                scope.spawn(move || {
                    act(Group::join(&launch(rank, world, port), "same", Duration::from_secs(20)).unwrap())
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}

/// Gradients of one micro-batch: three parameters whose ends are not ends of parts.
fn gradients(index: usize, n: usize) -> Gradients {
    let value =
        |i: usize| ((i * 7919 + index * 104_729) % 10_007) as f32 * 1e-3 - 4.0 + 1e4 * (index % 3) as f32;
    let all: Vec<f32> = (0..n).map(value).collect();
    let (a, b) = (n / 5, n / 2);
    vec![all[..a].to_vec(), all[a..b].to_vec(), all[b..].to_vec()]
}

#[test]
fn the_sum_has_the_bits_of_one_process() {
    // A part longer than a chunk; parts of no values; uneven shares.
    for (world, count, n) in [(2, 4, 2 * CHUNK + 4321), (3, 7, 1000), (4, 5, 10), (3, 3, 2)] {
        let alone = {
            let mut sums = Sums::new(count, tree::add_gradients);
            (0..count).for_each(|i| sums.push(i..i + 1, gradients(i, n)));
            Group::alone().all_reduce(count, sums).unwrap()
        };
        let found = together(world, |group| {
            let mut sums = Sums::new(count, tree::add_gradients);
            group.share(count).for_each(|i| sums.push(i..i + 1, gradients(i, n)));
            group.all_reduce(count, sums).unwrap()
        });
        for (rank, found) in found.iter().enumerate() {
            assert!(*found == alone, "rank {rank} of {world}, {count} micro-batches, {n} values");
        }
    }
}

#[test]
fn gathering_and_agreeing() {
    let long: Vec<u8> = (0..2 * PIECE).map(|i| (i % 251) as u8).collect();
    together(3, |group| {
        let rank = group.rank();
        assert_eq!((group.world(), group.is_rank0()), (3, rank == 0));
        assert_eq!(group.gather(&[rank as u8; 3]).unwrap(), [[0; 3], [1; 3], [2; 3]]);
        assert!(group.any(rank == 2).unwrap());
        assert!(!group.any(false).unwrap());
        for length in [0, 1, PIECE, 2 * PIECE] {
            let mine = if rank == 0 { long[..length].to_vec() } else { Vec::new() };
            assert!(group.broadcast(mine).unwrap() == long[..length]);
        }
        group.assert_equal("names", b"same").unwrap();
        let error = group.assert_equal("parameters", &[u8::from(rank == 1)]).unwrap_err();
        assert!(matches!(error, ParallelError::Disagree { what: "parameters", .. }), "{error}");
        group.barrier().unwrap();
    });
}

#[test]
fn what_does_not_belong_together_is_refused() {
    for (other, key, word) in
        [(launch(1, 2, 0), "another", "another"), (launch(1, 3, 0), "same", "of 3 processes")]
    {
        let port = port();
        let other = Launch { port, ..other };
        let (zero, one) = std::thread::scope(|scope| {
            let one = scope.spawn(move || Group::join(&other, key, Duration::from_secs(20)).unwrap_err());
            let zero = Group::join(&launch(0, 2, port), "same", Duration::from_secs(20)).unwrap_err();
            (zero, one.join().unwrap())
        });
        for error in [zero, one] {
            assert!(matches!(&error, ParallelError::Refused(m) if m.contains(word)), "{error}");
        }
    }
}

#[test]
fn nobody_waits_for_ever() {
    let short = Duration::from_millis(300);
    let error = Group::join(&launch(0, 2, port()), "same", short).unwrap_err();
    assert!(error.to_string().contains("rank 1 of 2"), "{error}");
    let error = Group::join(&launch(1, 2, port()), "same", short).unwrap_err();
    assert!(error.to_string().contains("found nobody"), "{error}");
    // A visitor that says nothing, and one that talks nonsense, do not keep the others out.
    let port = port();
    std::thread::scope(|scope| {
        let zero = scope.spawn(move || Group::join(&launch(0, 2, port), "same", Duration::from_secs(20)));
        let visit = || loop {
            if let Ok(stream) = std::net::TcpStream::connect(("127.0.0.1", port)) {
                return stream;
            }
            std::thread::sleep(Duration::from_millis(5));
        };
        std::io::Write::write_all(&mut visit(), b"GET / HTTP/1.1\r\n\r\n").unwrap();
        drop(visit());
        let one = Group::join(&launch(1, 2, port), "same", Duration::from_secs(20)).unwrap();
        let zero = zero.join().unwrap().unwrap();
        // Both close at once: neither waits for the other for long.
        let closing = scope.spawn(move || drop(one));
        drop(zero);
        closing.join().unwrap();
    });
}

#[test]
fn a_failure_reaches_everybody() {
    let errors = together(3, |group| {
        if group.rank() == 1 {
            group.stop("the disk is full");
            return None;
        }
        Some((0..3).find_map(|_| group.barrier().err()).expect("an error"))
    });
    for error in errors.into_iter().flatten() {
        assert!(
            error.to_string().contains("the disk is full") || error.to_string().contains("lost rank"),
            "{error}"
        );
    }
}

#[test]
fn a_process_that_says_nothing_is_lost() {
    let port = port();
    let patience = Duration::from_secs(1);
    let (error, waited) = std::thread::scope(|scope| {
        let silent = scope.spawn(move || {
            let streams = connect::connect(&launch(1, 2, port), "same", Duration::from_secs(20)).unwrap();
            // Connected, and then hung: no frame ever.
            std::thread::sleep(Duration::from_secs(4));
            drop(streams);
        });
        let started = std::time::Instant::now();
        let error = Group::join(&launch(0, 2, port), "same", patience).unwrap_err();
        let waited = started.elapsed();
        silent.join().unwrap();
        (error, waited)
    });
    assert!(error.to_string().contains("no heartbeat"), "{error}");
    assert!(waited < Duration::from_millis(3900), "{waited:?}");
}

#[test]
fn different_operations_are_noticed() {
    let errors = together(2, |group| {
        if group.rank() == 0 {
            // One operation ahead.
            group.0.as_ref().unwrap().next();
        }
        let error = group.barrier().unwrap_err();
        group.stop(&error.to_string());
        error
    });
    assert!(errors.iter().any(|e| e.to_string().contains("operation")), "{errors:?}");
}
