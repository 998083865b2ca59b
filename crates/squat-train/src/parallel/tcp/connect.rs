//! How the processes of a group find each other: all of them go to rank 0, which checks that they belong together and
//! tells each where the others listen; then every pair connects. All of it happens before one deadline.

use super::channel::Channel;
use super::door::{Door, Visitor};
use super::secret::SECRET_VARIABLE;
use crate::parallel::{Launch, ParallelError};
use serde::{Deserialize, Serialize};
use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, ToSocketAddrs};
use std::time::{Duration, Instant};

/// How long a new connection may take until it has said what it is.
pub(super) const PATIENCE: Duration = Duration::from_secs(5);

/// Pause between two looks at a listener or two attempts to connect.
pub(super) const PAUSE: Duration = Duration::from_millis(20);

#[derive(Serialize, Deserialize)]
pub(super) struct Hello {
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

/// The time until which everything must be done.
struct Limits {
    patience: Duration,
    deadline: Instant,
}

impl Limits {
    fn over(&self) -> bool {
        Instant::now() >= self.deadline
    }
}

fn failed(message: String) -> ParallelError {
    ParallelError::Rendezvous(message)
}

/// Connections to every other process, by rank.
pub(super) fn connect(
    launch: &Launch,
    key: &str,
    patience: Duration,
) -> Result<Vec<Option<Channel>>, ParallelError> {
    let limits = Limits { patience, deadline: Instant::now() + patience };
    if !launch.secret.is_set() {
        let addresses: Vec<SocketAddr> =
            (launch.host.as_str(), launch.port).to_socket_addrs().map(Iterator::collect).unwrap_or_default();
        if !addresses.iter().all(|address| address.ip().is_loopback()) || addresses.is_empty() {
            return Err(failed(format!(
                "{SECRET_VARIABLE} is not set, and {} is not this machine alone, so that anybody on the network could \
                 take part; set it to the same value for all processes, made with: openssl rand -hex 32",
                launch.host
            )));
        }
    }
    if launch.rank == 0 { host(launch, key, &limits) } else { join(launch, key, &limits) }
}

/// Why a visitor has no place in this group: in full, and in words that tell a stranger nothing.
fn problem(
    hello: &Hello,
    launch: &Launch,
    key: &str,
    taken: &[Option<Channel>],
) -> Option<(String, &'static str)> {
    if hello.world != launch.world {
        let full = format!("was told of {} processes, rank 0 of {}", hello.world, launch.world);
        Some((full, "was told of another number of processes than rank 0"))
    } else if hello.key != key {
        let full = format!("was started with [{}], rank 0 with [{key}]", hello.key);
        Some((full, "was started with another program, recipe or setting than rank 0"))
    } else if hello.rank == 0 || hello.rank >= launch.world || taken[hello.rank].is_some() {
        let short = "is there twice or has no place";
        Some((short.to_owned(), short))
    } else {
        None
    }
}

const ALL_ALIKE: &str = "all processes need the same program, recipe and settings";

fn host(launch: &Launch, key: &str, limits: &Limits) -> Result<Vec<Option<Channel>>, ParallelError> {
    let listener = TcpListener::bind((launch.host.as_str(), launch.port)).map_err(|error| {
        let advice = match error.kind() {
            ErrorKind::AddrInUse => {
                "another program, perhaps a run that still goes on, has this port: set MASTER_PORT"
            }
            _ => "MASTER_ADDR must be an address of the machine of rank 0",
        };
        failed(format!("rank 0 cannot listen at {}:{} ({error}); {advice}", launch.host, launch.port))
    })?;
    let door = Door::open(listener, &launch.secret)
        .map_err(|error| failed(format!("rank 0 cannot accept connections: {error}")))?;
    let mut members: Vec<Option<Channel>> = (0..launch.world).map(|_| None).collect();
    let mut addresses = vec![SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)); launch.world];
    let tell_all = |members: &mut [Option<Channel>], message: &str| {
        for member in members.iter_mut().flatten() {
            let _ = member.say(&Reply::Refused(message.to_owned()), Instant::now() + PATIENCE);
        }
    };
    let mut turned_away = String::new();
    while members.iter().flatten().count() + 1 < launch.world {
        if limits.over() {
            let missing: Vec<String> =
                (1..launch.world).filter(|&r| members[r].is_none()).map(|r| r.to_string()).collect();
            let message = format!(
                "after {} s rank {} of {} processes had not come{turned_away}; start them all, with the same \
                 MASTER_ADDR, MASTER_PORT and {SECRET_VARIABLE}, or wait longer with --peer-timeout",
                limits.patience.as_secs_f64(),
                missing.join(", "),
                launch.world
            );
            tell_all(&mut members, &message);
            return Err(failed(message));
        }
        let Some(Visitor { mut channel, hello, from }) = door.next() else { continue };
        if let Some((full, short)) = problem(&hello, launch, key, &members) {
            let describe = |text: &str| format!("rank {} (from {from}) {text}; {ALL_ALIKE}", hello.rank);
            let until = Instant::now() + PATIENCE;
            if channel.proven() {
                // It has the secret: one of us, started wrongly. Nobody need wait for it.
                let message = describe(&full);
                let _ = channel.say(&Reply::Refused(message.clone()), until);
                tell_all(&mut members, &message);
                return Err(ParallelError::Refused(message));
            }
            let _ = channel.say(&Reply::Refused(describe(short)), until);
            turned_away = format!(" ({} was turned away: it {full})", describe_rank(hello.rank));
            continue;
        }
        addresses[hello.rank] = SocketAddr::new(from.ip(), hello.port);
        members[hello.rank] = Some(channel);
    }
    let group = new_group();
    for member in members.iter_mut().flatten() {
        member
            .say(&Reply::Welcome { group, addresses: addresses.clone() }, Instant::now() + PATIENCE)
            .map_err(|error| failed(format!("a process went away while the group was formed: {error}")))?;
    }
    Ok(members)
}

fn describe_rank(rank: usize) -> String {
    format!("one that calls itself rank {rank}")
}

fn join(launch: &Launch, key: &str, limits: &Limits) -> Result<Vec<Option<Channel>>, ParallelError> {
    let (rank, world) = (launch.rank, launch.world);
    let place = format!("{}:{} (MASTER_ADDR, MASTER_PORT)", launch.host, launch.port);
    let mut first = loop {
        let error = match dial(&launch.host, launch.port).and_then(|stream| {
            Channel::call(stream, &launch.secret, (Instant::now() + PATIENCE).min(limits.deadline))
        }) {
            Ok(channel) => break channel,
            Err(error) => error,
        };
        if error.kind() == ErrorKind::PermissionDenied {
            return Err(ParallelError::Refused(format!("rank {rank} is not let in at {place}: {error}")));
        }
        if limits.over() {
            return Err(failed(format!(
                "rank {rank} found nobody at {place} within {} s: {error}",
                limits.patience.as_secs_f64()
            )));
        }
        std::thread::sleep(PAUSE);
    };
    let gone = |error: std::io::Error| {
        failed(format!("rank 0 at {place} went away while the group was formed ({error}); see what it says"))
    };
    let own = first.stream.local_addr().map_err(gone)?.ip();
    let listener = TcpListener::bind((own, 0))
        .map_err(|error| failed(format!("rank {rank} cannot listen at {own}: {error}")))?;
    let port = listener.local_addr().map_err(gone)?.port();
    let door = Door::open(listener, &launch.secret)
        .map_err(|error| failed(format!("rank {rank} cannot accept connections: {error}")))?;
    let hello = |group| Hello { rank, world, key: key.to_owned(), port, group };
    first.say(&hello(0), Instant::now() + PATIENCE).map_err(gone)?;
    // Rank 0 answers when all processes have come, or with the reason why not; its deadline may be a little later.
    let (group, addresses) = match reply(&mut first, limits).map_err(gone)? {
        Reply::Refused(message) => return Err(ParallelError::Refused(message)),
        Reply::Welcome { group, addresses } if addresses.len() == world => (group, addresses),
        Reply::Welcome { .. } => return Err(failed(format!("rank 0 at {place} counts other processes"))),
    };
    let master = first.stream.peer_addr().map_err(gone)?.ip();
    let mut members: Vec<Option<Channel>> = (0..world).map(|_| None).collect();
    members[0] = Some(first);
    for peer in 1..rank {
        let mut address = addresses[peer];
        if address.ip().is_loopback() {
            // That process is on the machine of rank 0, which may be another one than this.
            address.set_ip(master);
        }
        let until = Instant::now() + PATIENCE;
        let mut channel = TcpStream::connect_timeout(&address, PATIENCE)
            .and_then(|stream| Channel::call(stream, &launch.secret, until))
            .map_err(|error| failed(format!("rank {rank} cannot reach rank {peer} at {address}: {error}")))?;
        channel
            .say(&hello(group), until)
            .map_err(|error| failed(format!("rank {rank} lost rank {peer} at {address}: {error}")))?;
        members[peer] = Some(channel);
    }
    let last = Instant::now() + 2 * PATIENCE;
    while members.iter().flatten().count() + 1 < world {
        if Instant::now() >= last {
            return Err(failed(format!("rank {rank} waited in vain for the ranks after it")));
        }
        let Some(Visitor { channel, hello, .. }) = door.next() else { continue };
        if hello.group == group && hello.rank > rank && hello.rank < world && members[hello.rank].is_none() {
            members[hello.rank] = Some(channel);
        }
    }
    Ok(members)
}

/// Rank 0's answer, which may take as long as the slowest process needs to start.
fn reply(first: &mut Channel, limits: &Limits) -> std::io::Result<Reply> {
    let last = limits.deadline + 2 * PATIENCE;
    // Nothing is taken from the stream until something has come.
    first.stream.set_read_timeout(Some(last.saturating_duration_since(Instant::now()).max(PAUSE)))?;
    while let Err(error) = first.stream.peek(&mut [0]) {
        if error.kind() != ErrorKind::Interrupted {
            return Err(error);
        }
    }
    first.hear(Instant::now() + PATIENCE)
}

/// A number that is unlikely to occur in another group.
fn new_group() -> u64 {
    use std::hash::{BuildHasher, RandomState};
    RandomState::new().hash_one(std::process::id()) | 1
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

/// Reads a greeting or an answer, for fuzzing.
pub(super) fn read_message(bytes: &[u8]) {
    let _ = serde_json::from_slice::<Hello>(bytes);
    let _ = serde_json::from_slice::<Reply>(bytes);
}

/// A greeting.
pub(super) fn seed() -> Vec<u8> {
    let hello = Hello { rank: 1, world: 2, key: "recipe".to_owned(), port: 29_501, group: 0 };
    serde_json::to_vec(&hello).unwrap_or_default()
}
