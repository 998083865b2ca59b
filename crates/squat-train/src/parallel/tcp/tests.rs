//! Who comes in, who does not, and how long that takes. Groups of threads that talk over real connections.

use super::channel::{Channel, MAX_MESSAGE};
use super::*;
use crate::parallel::tests::{launch, port};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::Instant;

const LONG: Duration = Duration::from_secs(20);

fn secret(text: &str) -> Secret {
    Secret::new(Some(text.to_owned())).unwrap()
}

fn visit(port: u16) -> TcpStream {
    let started = Instant::now();
    loop {
        match TcpStream::connect(("127.0.0.1", port)) {
            Ok(stream) => return stream,
            Err(error) => assert!(started.elapsed() < LONG, "{error}"),
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn a_group_forms_with_and_without_a_secret() {
    for set in [true, false] {
        let port = port();
        let of = |rank| {
            let found = launch(rank, 3, port);
            if set { found } else { Launch { secret: Secret::default(), ..found } }
        };
        std::thread::scope(|scope| {
            let threads: Vec<_> = (0..3)
                .map(|rank| {
                    let launch = of(rank);
                    scope.spawn(move || {
                        let carrier = Tcp::connect(&launch, "same", LONG).unwrap();
                        let outgoing = (0..3).map(|peer| vec![(10 * rank + peer) as u8; 5]).collect();
                        let found = carrier.exchange(1, outgoing, 5).unwrap();
                        assert_eq!(
                            found,
                            (0..3).map(|peer| vec![(10 * peer + rank) as u8; 5]).collect::<Vec<_>>()
                        );
                    })
                })
                .collect();
            threads.into_iter().for_each(|thread| thread.join().unwrap());
        });
    }
}

#[test]
fn members_that_do_not_fit_end_the_group_at_once() {
    for (other, key, word) in
        [(launch(1, 2, 0), "another", "another"), (launch(1, 3, 0), "same", "of 3 processes")]
    {
        let port = port();
        let other = Launch { port, ..other };
        let started = Instant::now();
        let (zero, one) = std::thread::scope(|scope| {
            let one = scope.spawn(move || Tcp::connect(&other, key, LONG).err().unwrap());
            (Tcp::connect(&launch(0, 2, port), "same", LONG).err().unwrap(), one.join().unwrap())
        });
        for error in [zero, one] {
            assert!(matches!(&error, ParallelError::Refused(m) if m.contains(word)), "{error}");
        }
        assert!(started.elapsed() < Duration::from_secs(10));
    }
}

/// Slow, silent, nonsensical, wrong and boastful visitors: the group forms in time, and they learn nothing.
#[test]
fn strangers_neither_enter_nor_hold_the_group_up() {
    let port = port();
    let started = Instant::now();
    std::thread::scope(|scope| {
        let zero = scope.spawn(move || Tcp::connect(&launch(0, 2, port), "the key of the recipe", LONG));
        // Silent ones stay connected until the end.
        let silent: Vec<_> = (0..20).map(|_| visit(port)).collect();
        visit(port).write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
        drop(visit(port));
        // One that speaks the protocol with another secret, or with none, is let go without an answer.
        for wrong in [secret("another secret of mine"), Secret::default()] {
            let error = Channel::call(visit(port), &wrong, Instant::now() + LONG).err().unwrap();
            assert_eq!(error.kind(), std::io::ErrorKind::PermissionDenied, "{error}");
        }
        // What rank 0 sends to a stranger is 32 random bytes.
        let mut stranger = visit(port);
        stranger.write_all(b"squat-train2").unwrap();
        stranger.write_all(&[1; 65]).unwrap();
        let mut heard = Vec::new();
        let _ = stranger.read_to_end(&mut heard);
        assert_eq!(heard.len(), 32);
        // Slowly, a byte at a time.
        let mut slow = visit(port);
        scope.spawn(move || {
            for _ in 0..40 {
                if slow.write_all(b"s").is_err() {
                    break;
                }
                std::thread::sleep(Duration::from_millis(20));
            }
        });
        let one = Tcp::connect(&launch(1, 2, port), "the key of the recipe", LONG).unwrap();
        let zero = zero.join().unwrap().unwrap();
        assert!(started.elapsed() < Duration::from_secs(15), "{:?}", started.elapsed());
        drop(silent);
        // Both close at once: neither waits for the other for long.
        let closing = scope.spawn(move || drop(one));
        drop(zero);
        closing.join().unwrap();
    });
}

/// A visitor without a secret is told that it does not fit, and not what would.
#[test]
fn a_refusal_does_not_tell_the_key() {
    let port = port();
    let open = |rank, world| Launch { secret: Secret::default(), ..launch(rank, world, port) };
    std::thread::scope(|scope| {
        let (zero, one) = (open(0, 2), open(1, 2));
        let zero = scope.spawn(move || Tcp::connect(&zero, "the key of the recipe", LONG));
        let error = Tcp::connect(&one, "a guess", LONG).err().unwrap().to_string();
        assert!(
            error.contains("another program, recipe or setting") && !error.contains("the key"),
            "{error}"
        );
        // The group was not ended by it.
        let one = Tcp::connect(&one, "the key of the recipe", LONG).unwrap();
        let zero = zero.join().unwrap().unwrap();
        let closing = scope.spawn(move || drop(one));
        drop(zero);
        closing.join().unwrap();
    });
}

#[test]
fn an_open_network_needs_a_secret() {
    let far = Launch { host: "0.0.0.0".into(), secret: Secret::default(), ..launch(0, 2, port()) };
    let error = Tcp::connect(&far, "same", LONG).err().unwrap().to_string();
    assert!(error.contains("SQUAT_SECRET is not set") && error.contains("openssl rand"), "{error}");
}

#[test]
fn an_address_in_use_is_said_at_once() {
    let held = TcpListener::bind("127.0.0.1:0").unwrap();
    let started = Instant::now();
    let error = Tcp::connect(&launch(0, 2, held.local_addr().unwrap().port()), "same", LONG).err().unwrap();
    assert!(error.to_string().contains("set MASTER_PORT"), "{error}");
    assert!(started.elapsed() < Duration::from_secs(5));
}

#[test]
fn nobody_waits_for_ever() {
    let short = Duration::from_millis(300);
    let error = Tcp::connect(&launch(0, 2, port()), "same", short).err().unwrap();
    assert!(error.to_string().contains("rank 1 of 2"), "{error}");
    let error = Tcp::connect(&launch(1, 2, port()), "same", short).err().unwrap();
    assert!(error.to_string().contains("found nobody"), "{error}");
}

#[test]
fn a_process_that_says_nothing_is_lost() {
    let port = port();
    let (error, waited) = std::thread::scope(|scope| {
        let silent = scope.spawn(move || {
            let channels = connect::connect(&launch(1, 2, port), "same", LONG).unwrap();
            // Connected, and then hung: no frame ever.
            std::thread::sleep(Duration::from_secs(4));
            drop(channels);
        });
        let started = Instant::now();
        let zero = Tcp::connect(&launch(0, 2, port), "same", Duration::from_secs(1)).unwrap();
        let error = zero.exchange(1, vec![Vec::new(); 2], 0).unwrap_err();
        let waited = started.elapsed();
        silent.join().unwrap();
        (error, waited)
    });
    assert!(error.to_string().contains("no heartbeat"), "{error}");
    assert!(waited < Duration::from_millis(3900), "{waited:?}");
}

/// A changed byte on the way, whatever its place in the frame, ends the connection; so does a message that promises more
/// than it brings.
#[test]
fn what_was_changed_on_the_way_is_not_taken() {
    let secret = secret("the secret of the group");
    let pair = || {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let until = Instant::now() + LONG;
        std::thread::scope(|scope| {
            let called =
                scope.spawn(|| Channel::call(TcpStream::connect(address).unwrap(), &secret, until).unwrap());
            let answered = Channel::answer(listener.accept().unwrap().0, &secret, until).unwrap();
            (called.join().unwrap(), answered)
        })
    };
    for at in [4, 6, 37] {
        let (mut caller, mut host) = pair();
        let text = b"\"hello\"";
        let header = (text.len() as u32).to_le_bytes();
        let tag = caller.outgoing.make(&header, text);
        let mut whole = [&header[..], text, &tag].concat();
        whole[at] ^= 1;
        caller.stream.write_all(&whole).unwrap();
        let error = host.hear::<String>(Instant::now() + Duration::from_secs(2)).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::PermissionDenied, "{error}");
    }
    let (mut caller, mut host) = pair();
    caller.stream.write_all(&(MAX_MESSAGE as u32 + 1).to_le_bytes()).unwrap();
    assert!(host.hear::<String>(Instant::now() + LONG).is_err());
    let (mut caller, mut host) = pair();
    caller.stream.write_all(&(MAX_MESSAGE as u32).to_le_bytes()).unwrap();
    drop(caller);
    assert!(host.hear::<String>(Instant::now() + LONG).is_err());
}
