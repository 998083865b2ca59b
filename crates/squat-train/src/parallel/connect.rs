//! How the processes of a group find each other: all of them go to rank 0, which checks that they belong together and
//! tells each where the others listen; then every pair connects.

use super::{Launch, ParallelError};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, ToSocketAddrs};
use std::time::{Duration, Instant};

/// Raise it whenever frames or collective operations change.
const PROTOCOL: u32 = 1;

/// First word of every message, so that a stray connection is noticed.
const GREETING: &str = "squat-train";

/// Longest message while connecting.
const MAX_MESSAGE: usize = 1 << 20;

/// How long a new connection may take for its first message.
const PATIENCE: Duration = Duration::from_secs(5);

/// Pause between two looks at a listener or two attempts to connect.
const PAUSE: Duration = Duration::from_millis(20);

#[derive(Serialize, Deserialize)]
struct Hello {
    greeting: String,
    protocol: u32,
    rank: usize,
    world: usize,
    /// What must be the same everywhere.
    key: String,
    /// Where this process listens.
    port: u16,
    /// The group that rank 0 opened; 0 to rank 0 itself.
    group: u64,
}

#[derive(Serialize, Deserialize)]
enum Reply {
    Welcome { group: u64, addresses: Vec<SocketAddr> },
    Refused(String),
}

fn failed(message: String) -> ParallelError {
    ParallelError::Rendezvous(message)
}

/// Connections to every other process, by rank.
pub(super) fn connect(
    launch: &Launch,
    key: &str,
    patience: Duration,
) -> Result<Vec<Option<TcpStream>>, ParallelError> {
    let deadline = Instant::now() + patience;
    if launch.rank == 0 {
        host(launch, key, deadline, patience)
    } else {
        join(launch, key, deadline, patience)
    }
}

fn host(
    launch: &Launch,
    key: &str,
    deadline: Instant,
    patience: Duration,
) -> Result<Vec<Option<TcpStream>>, ParallelError> {
    let listener = listen(launch, deadline)?;
    let mut streams: Vec<Option<TcpStream>> = (0..launch.world).map(|_| None).collect();
    let mut addresses = vec![SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)); launch.world];
    let refuse = |streams: &mut [Option<TcpStream>], message: String| {
        for stream in streams.iter_mut().flatten() {
            let _ = write(stream, &Reply::Refused(message.clone()));
        }
        ParallelError::Refused(message)
    };
    while streams.iter().flatten().count() + 1 < launch.world {
        let Some((mut stream, from)) = accept(&listener, deadline)? else {
            let missing: Vec<String> =
                (1..launch.world).filter(|&r| streams[r].is_none()).map(|r| r.to_string()).collect();
            let message = format!(
                "after {} s rank {} of {} processes had not come; start them all, with the same MASTER_ADDR and \
                 MASTER_PORT, or wait longer with --peer-timeout",
                patience.as_secs_f64(),
                missing.join(", "),
                launch.world
            );
            return Err(match refuse(&mut streams, message) {
                ParallelError::Refused(message) => failed(message),
                other => other,
            });
        };
        let _ = stream.set_read_timeout(Some(PATIENCE));
        // A connection without a greeting does not belong to the group.
        let Ok(hello) = read::<Hello>(&mut stream) else { continue };
        if hello.greeting != GREETING {
            continue;
        }
        let problem = if hello.protocol != PROTOCOL {
            Some(format!("speaks protocol {}, rank 0 speaks {PROTOCOL}", hello.protocol))
        } else if hello.world != launch.world {
            Some(format!("was told of {} processes, rank 0 of {}", hello.world, launch.world))
        } else if hello.key != key {
            Some(format!("was started with [{}], rank 0 with [{key}]", hello.key))
        } else if hello.rank == 0 || hello.rank >= launch.world || streams[hello.rank].is_some() {
            Some("is there twice or has no place".to_owned())
        } else {
            None
        };
        if let Some(problem) = problem {
            let message = format!(
                "rank {} (from {from}) {problem}; all processes need the same program, recipe and settings",
                hello.rank
            );
            let _ = write(&mut stream, &Reply::Refused(message.clone()));
            return Err(refuse(&mut streams, message));
        }
        addresses[hello.rank] = SocketAddr::new(from.ip(), hello.port);
        streams[hello.rank] = Some(stream);
    }
    let group = new_group();
    for stream in streams.iter_mut().flatten() {
        write(stream, &Reply::Welcome { group, addresses: addresses.clone() })
            .map_err(|error| failed(format!("a process went away while the group was formed: {error}")))?;
    }
    Ok(streams)
}

fn join(
    launch: &Launch,
    key: &str,
    deadline: Instant,
    patience: Duration,
) -> Result<Vec<Option<TcpStream>>, ParallelError> {
    let (rank, world) = (launch.rank, launch.world);
    let place = format!("{}:{}", launch.host, launch.port);
    let mut first = loop {
        match dial(&launch.host, launch.port) {
            Ok(stream) => break stream,
            Err(error) if Instant::now() >= deadline => {
                return Err(failed(format!(
                    "rank {rank} found nobody at {place} (MASTER_ADDR, MASTER_PORT) within {} s: {error}",
                    patience.as_secs_f64()
                )));
            }
            Err(_) => std::thread::sleep(PAUSE),
        }
    };
    let gone = |error: std::io::Error| {
        failed(format!("rank 0 at {place} went away while the group was formed ({error}); see what it says"))
    };
    let own = first.local_addr().map_err(gone)?.ip();
    let listener = TcpListener::bind((own, 0))
        .map_err(|error| failed(format!("rank {rank} cannot listen at {own}: {error}")))?;
    let port = listener.local_addr().map_err(gone)?.port();
    let hello = |group| Hello {
        greeting: GREETING.into(),
        protocol: PROTOCOL,
        rank,
        world,
        key: key.to_owned(),
        port,
        group,
    };
    write(&mut first, &hello(0)).map_err(gone)?;
    // Rank 0 answers when all processes have come, or with the reason why not.
    let left = deadline.saturating_duration_since(Instant::now()) + 2 * PATIENCE;
    first.set_read_timeout(Some(left)).map_err(gone)?;
    let (group, addresses) = match read::<Reply>(&mut first).map_err(gone)? {
        Reply::Refused(message) => return Err(ParallelError::Refused(message)),
        Reply::Welcome { group, addresses } if addresses.len() == world => (group, addresses),
        Reply::Welcome { .. } => return Err(failed(format!("rank 0 at {place} counts other processes"))),
    };
    let master = first.peer_addr().map_err(gone)?.ip();
    let mut streams: Vec<Option<TcpStream>> = (0..world).map(|_| None).collect();
    streams[0] = Some(first);
    for peer in 1..rank {
        let mut address = addresses[peer];
        if address.ip().is_loopback() {
            // That process is on the machine of rank 0, which may be another one than this.
            address.set_ip(master);
        }
        let unreachable =
            |error| failed(format!("rank {rank} cannot reach rank {peer} at {address}: {error}"));
        let mut stream = TcpStream::connect_timeout(&address, PATIENCE).map_err(unreachable)?;
        write(&mut stream, &hello(group)).map_err(unreachable)?;
        streams[peer] = Some(stream);
    }
    while streams.iter().flatten().count() + 1 < world {
        let Some((mut stream, _)) = accept(&listener, deadline.max(Instant::now() + PATIENCE))? else {
            return Err(failed(format!("rank {rank} waited in vain for the ranks after it")));
        };
        let _ = stream.set_read_timeout(Some(PATIENCE));
        let Ok(hello) = read::<Hello>(&mut stream) else { continue };
        if hello.group == group && hello.rank > rank && hello.rank < world {
            streams[hello.rank] = Some(stream);
        }
    }
    Ok(streams)
}

/// A number that is unlikely to occur in another group.
fn new_group() -> u64 {
    use std::hash::{BuildHasher, RandomState};
    RandomState::new().hash_one(std::process::id()) | 1
}

fn listen(launch: &Launch, deadline: Instant) -> Result<TcpListener, ParallelError> {
    loop {
        let error = match TcpListener::bind((launch.host.as_str(), launch.port)) {
            Ok(listener) => return Ok(listener),
            // A name for the outside of this machine: listen everywhere.
            Err(error) if error.kind() == ErrorKind::AddrNotAvailable => {
                match TcpListener::bind((IpAddr::from(Ipv4Addr::UNSPECIFIED), launch.port)) {
                    Ok(listener) => return Ok(listener),
                    Err(error) => error,
                }
            }
            Err(error) => error,
        };
        // A run that has just ended may still hold the port.
        let wait = error.kind() == ErrorKind::AddrInUse && Instant::now() + PATIENCE < deadline;
        if !wait {
            return Err(failed(format!(
                "rank 0 cannot listen at {}:{} ({error}); MASTER_ADDR must be its own machine and MASTER_PORT free",
                launch.host, launch.port
            )));
        }
        std::thread::sleep(PAUSE);
    }
}

/// The next connection; `None` when time is up.
fn accept(
    listener: &TcpListener,
    deadline: Instant,
) -> Result<Option<(TcpStream, SocketAddr)>, ParallelError> {
    let broken = |error: std::io::Error| failed(format!("cannot accept connections: {error}"));
    listener.set_nonblocking(true).map_err(broken)?;
    loop {
        match listener.accept() {
            Ok((stream, from)) => {
                stream.set_nonblocking(false).map_err(broken)?;
                return Ok(Some((stream, from)));
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                if Instant::now() >= deadline {
                    return Ok(None);
                }
                std::thread::sleep(PAUSE);
            }
            Err(error) if matches!(error.kind(), ErrorKind::Interrupted | ErrorKind::ConnectionAborted) => {}
            Err(error) => return Err(broken(error)),
        }
    }
}

fn dial(host: &str, port: u16) -> std::io::Result<TcpStream> {
    let mut last = ErrorKind::AddrNotAvailable.into();
    for address in (host, port).to_socket_addrs()? {
        match TcpStream::connect_timeout(&address, PATIENCE) {
            Ok(stream) => return Ok(stream),
            Err(error) => last = error,
        }
    }
    Err(last)
}

fn write<T: Serialize>(stream: &mut TcpStream, message: &T) -> std::io::Result<()> {
    let text = serde_json::to_vec(message)?;
    stream.write_all(&(text.len() as u32).to_le_bytes())?;
    stream.write_all(&text)
}

fn read<T: DeserializeOwned>(stream: &mut TcpStream) -> std::io::Result<T> {
    let mut length = [0; 4];
    stream.read_exact(&mut length)?;
    let length = u32::from_le_bytes(length) as usize;
    if length > MAX_MESSAGE {
        return Err(ErrorKind::InvalidData.into());
    }
    let mut text = vec![0; length];
    stream.read_exact(&mut text)?;
    Ok(serde_json::from_slice(&text)?)
}
