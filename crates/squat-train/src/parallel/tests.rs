//! Collective operations between threads that talk over real connections.

use super::*;
use std::net::TcpListener;

/// A port that was free a moment ago.
pub(super) fn port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// A process of a group whose members know the secret of the tests.
pub(super) fn launch(rank: usize, world: usize, port: u16) -> Launch {
    let secret = Secret::new(Some("a secret of the tests".into())).unwrap();
    Launch {
        rank,
        world,
        local_rank: rank,
        local_world: world,
        host: "127.0.0.1".into(),
        port,
        secret,
        mpi: false,
    }
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
        for length in [0, 1, PIECE - 1, PIECE, 2 * PIECE] {
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
fn more_than_agreed_is_refused() {
    let errors = together(2, |group| {
        let members = group.0.as_ref().unwrap();
        let outgoing = vec![vec![1; if group.is_rank0() { 9 } else { 8 }]; 2];
        let found = members.exchange(outgoing, 8);
        group.stop("test");
        found.err()
    });
    assert!(errors[0].is_none());
    assert!(errors[1].as_ref().unwrap().to_string().contains("more than 8 bytes"), "{errors:?}");
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
fn different_operations_are_noticed() {
    let errors = together(2, |group| {
        if group.rank() == 0 {
            // One operation ahead.
            group.0.as_ref().unwrap().operation.fetch_add(1, Ordering::Relaxed);
        }
        let error = group.barrier().unwrap_err();
        group.stop(&error.to_string());
        error
    });
    assert!(errors.iter().any(|e| e.to_string().contains("operation")), "{errors:?}");
}
