//! Several processes that train one model: data parallelism over TCP.
//!
//! Each process takes its share of a step's micro-batches. Gradients are added in an order that depends on the number
//! of micro-batches alone ([`tree`]), so a run has the same bits for any number of processes, one included. Every
//! process then makes the same optimizer step; rank 0 alone writes.
//!
//! | module | holds |
//! |---|---|
//! | [`launch`] | rank and size from torchrun, `srun` or `mpirun` |
//! | [`tree`] | the order of the sum |
//! | `connect` | how processes find each other |
//! | `link` | a connection with heartbeats |
//! | [`facts`] | results of a micro-batch other than its gradients |
//!
//! The group trusts its network: nothing is encrypted, and any process that reaches the port can take part.

mod connect;
mod error;
pub mod facts;
pub mod launch;
mod link;
pub mod tree;

pub use error::ParallelError;
pub use launch::Launch;

use link::{Link, MAX_PAYLOAD};
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;
use tree::{Gradients, Sums, add_slices};

/// Values that travel together: large enough for the network, small enough for the cache.
const CHUNK: usize = 1 << 20;

/// Longest wait for processes that stop with an error.
const PARTING: Duration = Duration::from_secs(2);

/// The processes that train together, seen from one of them. Every process must call the same operations in the same
/// order. In a group of one they cost nothing.
#[derive(Clone, Debug, Default)]
pub struct Group(Option<Arc<Members>>);

struct Members {
    rank: usize,
    links: Vec<Option<Link>>,
    operation: AtomicU32,
    failed: AtomicBool,
    silence: Duration,
    heart: Mutex<Option<(Sender<()>, JoinHandle<()>)>>,
}

impl std::fmt::Debug for Members {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "rank {} of {}", self.rank, self.links.len())
    }
}

impl Group {
    /// A process on its own.
    pub fn alone() -> Self {
        Self(None)
    }

    /// Joins the other processes. `key` must be the same for all; `patience` is how long to wait for them, and
    /// later the longest silence of a process.
    ///
    /// # Errors
    /// Processes that do not come in time, or do not belong together.
    pub fn join(launch: &Launch, key: &str, patience: Duration) -> Result<Self, ParallelError> {
        let streams = connect::connect(launch, key, patience)?;
        let broken =
            |error: std::io::Error| ParallelError::Rendezvous(format!("a connection broke: {error}"));
        let mut links = Vec::with_capacity(streams.len());
        for (peer, stream) in streams.into_iter().enumerate() {
            links.push(stream.map(|s| Link::new(peer, s, patience)).transpose().map_err(broken)?);
        }
        let pulses: Vec<_> = links.iter().flatten().map(Link::pulse).collect();
        let (stop, stopped) = channel::<()>();
        let pause = (patience / 4).min(Duration::from_secs(10));
        let heart = std::thread::Builder::new().name("heartbeats".into()).spawn(move || {
            while stopped.recv_timeout(pause) == Err(RecvTimeoutError::Timeout) {
                pulses.iter().for_each(link::Pulse::beat);
            }
        });
        let group = Self(Some(Arc::new(Members {
            rank: launch.rank,
            links,
            operation: AtomicU32::new(0),
            failed: AtomicBool::new(false),
            silence: patience,
            heart: Mutex::new(Some((stop, heart.map_err(broken)?))),
        })));
        group.barrier()?;
        Ok(group)
    }

    /// Number of this process.
    pub fn rank(&self) -> usize {
        self.0.as_ref().map_or(0, |members| members.rank)
    }

    /// Number of processes.
    pub fn world(&self) -> usize {
        self.0.as_ref().map_or(1, |members| members.links.len())
    }

    /// Whether this is rank 0, the process that writes files.
    pub fn is_rank0(&self) -> bool {
        self.rank() == 0
    }

    /// All-gather: the bytes of every process, by rank.
    ///
    /// # Errors
    /// A process that is gone or failed.
    pub fn gather(&self, mine: &[u8]) -> Result<Vec<Vec<u8>>, ParallelError> {
        let Some(members) = &self.0 else { return Ok(vec![mine.to_vec()]) };
        let operation = members.next();
        for (_, link) in members.others() {
            link.send(operation, mine)?;
        }
        let take = |(rank, link): (usize, &Option<Link>)| match link {
            Some(link) => link.receive(operation),
            None => {
                debug_assert_eq!(rank, members.rank);
                Ok(mine.to_vec())
            }
        };
        members.links.iter().enumerate().map(take).collect()
    }

    /// The bytes of rank 0; those of the others are ignored.
    ///
    /// # Errors
    /// A process that is gone or failed.
    pub fn broadcast(&self, mine: Vec<u8>) -> Result<Vec<u8>, ParallelError> {
        let Some(members) = &self.0 else { return Ok(mine) };
        let operation = members.next();
        match &members.links[0] {
            None => {
                for (_, link) in members.others() {
                    for piece in pieces(&mine) {
                        link.send(operation, piece)?;
                    }
                }
                Ok(mine)
            }
            Some(leader) => {
                let mut all = Vec::new();
                loop {
                    let piece = leader.receive(operation)?;
                    all.extend_from_slice(&piece);
                    // The last piece is a short one.
                    if piece.len() < PIECE {
                        return Ok(all);
                    }
                }
            }
        }
    }

    /// Waits for all processes.
    ///
    /// # Errors
    /// A process that is gone or failed.
    pub fn barrier(&self) -> Result<(), ParallelError> {
        self.gather(&[]).map(drop)
    }

    /// Whether the answer of any process is true.
    ///
    /// # Errors
    /// A process that is gone or failed.
    pub fn any(&self, mine: bool) -> Result<bool, ParallelError> {
        Ok(self.gather(&[u8::from(mine)])?.iter().any(|answer| answer.first() == Some(&1)))
    }

    /// Checks that all processes have the same `digest` of what `what` names.
    ///
    /// # Errors
    /// [`ParallelError::Disagree`]; a process that is gone or failed.
    pub fn assert_equal(&self, what: &'static str, digest: &[u8]) -> Result<(), ParallelError> {
        match self.gather(digest)?.iter().position(|other| other != digest) {
            Some(rank) => Err(ParallelError::Disagree { what, rank, own: self.rank() }),
            None => Ok(()),
        }
    }

    /// This process's share of `count` micro-batches.
    pub fn share(&self, count: usize) -> Range<usize> {
        tree::share(count, self.rank(), self.world())
    }

    /// The sum over all processes, in the order of [`tree`]. Each owns a part of the values, gets that part from all
    /// others, adds it up and hands it round. `sums` holds the micro-batches of this process's share of `count`.
    ///
    /// # Errors
    /// A process that is gone, failed, or has gradients of other sizes.
    pub fn all_reduce(&self, count: usize, sums: Sums<Gradients>) -> Result<Gradients, ParallelError> {
        let mut own = sums.into_nodes();
        let Some(members) = &self.0 else { return Ok(own.pop().map(|(_, sum)| sum).unwrap_or_default()) };
        let operation = members.next();
        let (rank, world) = (members.rank, members.links.len());
        let total: usize = own.first().map_or(0, |(_, g)| g.iter().map(Vec::len).sum());
        let part = |rank: usize| chunks(total * rank / world..total * (rank + 1) / world);
        let mut bytes = Vec::new();
        // Each starts with its neighbour, so that not all send to the same process at once.
        for (peer, link) in members.others() {
            for chunk in part(peer) {
                for (_, gradients) in &own {
                    bytes.clear();
                    visit(gradients, chunk.clone(), |values| encode(values, &mut bytes));
                    link.send(operation, &bytes)?;
                }
            }
        }
        let mut mine = Vec::with_capacity(part(rank).map(|chunk| chunk.len()).sum());
        for chunk in part(rank) {
            let mut sums: Sums<Vec<f32>> = Sums::new(count, |sum, addend| add_slices(sum, addend));
            for (peer, link) in members.links.iter().enumerate() {
                match link {
                    Some(link) => {
                        for node in tree::nodes(count, tree::share(count, peer, world)) {
                            sums.push(node, decode(link.receive(operation)?, chunk.len(), peer, rank)?);
                        }
                    }
                    None => {
                        for (node, gradients) in &own {
                            let mut values = Vec::with_capacity(chunk.len());
                            visit(gradients, chunk.clone(), |slice| values.extend_from_slice(slice));
                            sums.push(node.clone(), values);
                        }
                    }
                }
            }
            mine.extend(sums.into_nodes().pop().map(|(_, sum)| sum).unwrap_or_default());
        }
        let start = part(rank).next().map_or(0, |chunk| chunk.start);
        for (_, link) in members.others() {
            for chunk in part(rank) {
                bytes.clear();
                encode(&mine[chunk.start - start..chunk.end - start], &mut bytes);
                link.send(operation, &bytes)?;
            }
        }
        own.truncate(1);
        let mut all = own.pop().map(|(_, gradients)| gradients).unwrap_or_default();
        for (peer, link) in members.links.iter().enumerate() {
            for chunk in part(peer) {
                let values = match link {
                    Some(link) => decode(link.receive(operation)?, chunk.len(), peer, rank)?,
                    None => mine[chunk.start - start..chunk.end - start].to_vec(),
                };
                let mut rest = values.as_slice();
                visit_mut(&mut all, chunk, |slice| {
                    let (now, later) = rest.split_at(slice.len());
                    slice.copy_from_slice(now);
                    rest = later;
                });
            }
        }
        Ok(all)
    }

    /// Tells the others why this process stops; they fail with that message.
    pub fn stop(&self, message: &str) {
        if let Some(members) = &self.0 {
            members.failed.store(true, Ordering::Relaxed);
            members.links.iter().flatten().for_each(|link| link.stop(message));
        }
    }
}

impl Members {
    fn next(&self) -> u32 {
        self.operation.fetch_add(1, Ordering::Relaxed).wrapping_add(1)
    }

    /// The other processes, from the next rank on.
    fn others(&self) -> impl Iterator<Item = (usize, &Link)> {
        let world = self.links.len();
        (1..world)
            .map(move |step| (self.rank + step) % world)
            .filter_map(|peer| self.links[peer].as_ref().map(|link| (peer, link)))
    }
}

impl Drop for Members {
    fn drop(&mut self) {
        let heart = self.heart.get_mut().unwrap_or_else(PoisonError::into_inner).take();
        if let Some((stop, thread)) = heart {
            drop(stop);
            let _ = thread.join();
        }
        self.links.iter().flatten().for_each(Link::leave);
        let limit = if self.failed.load(Ordering::Relaxed) { PARTING } else { self.silence };
        self.links.iter().flatten().for_each(|link| link.close(limit));
    }
}

/// Bytes of one piece of a long message.
const PIECE: usize = 1 << 22;
const _: () = assert!(PIECE <= MAX_PAYLOAD && 4 * CHUNK <= MAX_PAYLOAD);

/// A message in pieces, of which the last one is short, if need be empty.
fn pieces(bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
    let whole = bytes.len() / PIECE * PIECE;
    bytes[..whole].chunks(PIECE).chain([&bytes[whole..]])
}

fn chunks(range: Range<usize>) -> impl Iterator<Item = Range<usize>> {
    let end = range.end;
    range.step_by(CHUNK).map(move |start| start..end.min(start + CHUNK))
}

/// Shows the stretches of `lists`, laid end to end, that lie in `range`.
fn visit<'a>(lists: &'a [Vec<f32>], range: Range<usize>, mut show: impl FnMut(&'a [f32])) {
    let mut first = 0;
    for list in lists {
        let (start, end) = (range.start.max(first), range.end.min(first + list.len()));
        if start < end {
            show(&list[start - first..end - first]);
        }
        first += list.len();
    }
}

fn visit_mut(lists: &mut [Vec<f32>], range: Range<usize>, mut show: impl FnMut(&mut [f32])) {
    let mut first = 0;
    for list in lists {
        let length = list.len();
        let (start, end) = (range.start.max(first), range.end.min(first + length));
        if start < end {
            show(&mut list[start - first..end - first]);
        }
        first += length;
    }
}

/// Appends values as bytes, little endian.
pub fn encode(values: &[f32], bytes: &mut Vec<u8>) {
    bytes.extend(values.iter().flat_map(|x| x.to_le_bytes()));
}

fn decode(bytes: Vec<u8>, length: usize, rank: usize, own: usize) -> Result<Vec<f32>, ParallelError> {
    if bytes.len() != 4 * length {
        return Err(ParallelError::Disagree { what: "numbers of values", rank, own });
    }
    Ok(bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect())
}

#[cfg(test)]
mod tests;
