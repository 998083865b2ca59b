//! Several processes that train one model: data parallelism.
//!
//! Each process takes its share of a step's micro-batches. Gradients are added in an order that depends on the number
//! of micro-batches alone ([`tree`]), so a run has the same bits for any number of processes, one included, whoever
//! carries the bytes. Every process then makes the same optimizer step; rank 0 alone writes.
//!
//! | module | holds |
//! |---|---|
//! | [`launch`] | rank and size from torchrun, `srun` or `mpirun` |
//! | [`tree`] | the order of the sum |
//! | `carrier` | what a carrier of bytes does |
//! | `mpi` | the one for clusters (feature `mpi`) |
//! | `tcp` | the one for a few computers: a connection between every pair, closed to strangers |
//! | [`facts`] | results of a micro-batch other than its gradients |

mod carrier;
mod error;
pub mod facts;
pub mod launch;
#[cfg(feature = "mpi")]
mod mpi;
mod tcp;
pub mod tree;

pub use error::ParallelError;
pub use launch::Launch;
pub use tcp::{SECRET_VARIABLE, Secret};

use carrier::Carrier;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;
use tree::{Gradients, Sums, add_slices};

/// Most values of one list that travel together: enough for any network, and few enough for the cache.
const CHUNK: usize = 1 << 20;

/// Most values that a process sends in one exchange.
const ROUND: usize = 1 << 25;

/// Most bytes that a process tells all others in one message, besides gradients.
const LONGEST: usize = 1 << 28;

/// Bytes of rank 0 that travel together.
const PIECE: usize = 1 << 22;

/// The processes that train together, seen from one of them. Every process must call the same operations in the same
/// order. In a group of one they cost nothing.
#[derive(Clone, Debug, Default)]
pub struct Group(Option<Arc<Members>>);

struct Members {
    carrier: Box<dyn Carrier>,
    operation: AtomicU32,
}

impl std::fmt::Debug for Members {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "rank {} of {}", self.carrier.rank(), self.carrier.world())
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
        let group = Self(Some(Arc::new(Members {
            carrier: carrier_of(launch, key, patience)?,
            operation: AtomicU32::new(0),
        })));
        // The first exchange, and with MPI the only look at the keys.
        match group.gather(key.as_bytes())?.iter().position(|other| other != key.as_bytes()) {
            None => Ok(group),
            Some(rank) => {
                let error = ParallelError::Refused(format!(
                    "rank {rank} was started with another program, recipe or setting than rank {}; all processes need \
                     the same program, recipe and settings",
                    group.rank()
                ));
                group.stop(&error.to_string());
                Err(error)
            }
        }
    }

    /// Number of this process.
    pub fn rank(&self) -> usize {
        self.0.as_ref().map_or(0, |members| members.carrier.rank())
    }

    /// Number of processes.
    pub fn world(&self) -> usize {
        self.0.as_ref().map_or(1, |members| members.carrier.world())
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
        match &self.0 {
            None => Ok(vec![mine.to_vec()]),
            Some(members) => members.exchange(vec![mine.to_vec(); self.world()], LONGEST),
        }
    }

    /// The bytes of rank 0; those of the others are ignored.
    ///
    /// # Errors
    /// A process that is gone or failed.
    pub fn broadcast(&self, mine: Vec<u8>) -> Result<Vec<u8>, ParallelError> {
        let Some(members) = &self.0 else { return Ok(mine) };
        let from_rank0 = |bytes: &[u8]| match self.is_rank0() {
            true => vec![bytes.to_vec(); self.world()],
            false => vec![Vec::new(); self.world()],
        };
        let length = members.exchange(from_rank0(&(mine.len() as u64).to_le_bytes()), 8)?.swap_remove(0);
        let disagree = ParallelError::Disagree { what: "lengths of a message", rank: 0, own: self.rank() };
        let length: [u8; 8] = length.try_into().map_err(|_| disagree.clone())?;
        let length = u64::from_le_bytes(length) as usize;
        let mut all = Vec::new();
        // Parameters of a model may be gigabytes: what travels together, and is copied for each process, is bounded.
        for start in (0..length).step_by(PIECE) {
            let piece = start..length.min(start + PIECE);
            let found = members
                .exchange(from_rank0(mine.get(piece.clone()).unwrap_or_default()), PIECE)?
                .swap_remove(0);
            if found.len() != piece.len() {
                return Err(disagree);
            }
            if !self.is_rank0() {
                all.extend(found);
            }
        }
        Ok(if self.is_rank0() { mine } else { all })
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
        let (rank, world) = (self.rank(), self.world());
        let total: usize = own.first().map_or(0, |(_, g)| g.iter().map(Vec::len).sum());
        let nodes: Vec<_> =
            (0..world).map(|peer| tree::nodes(count, tree::share(count, peer, world))).collect();
        let most_nodes = nodes.iter().map(Vec::len).max().unwrap_or(0);
        let chunk = CHUNK.min(ROUND / (world * most_nodes.max(1))).max(1);
        // The part of a process that a round is about; empty where it has fewer rounds than others.
        let part = |rank: usize, round: usize| {
            let (start, end) = (total * rank / world, total * (rank + 1) / world);
            let first = (start + round * chunk).min(end);
            first..(first + chunk).min(end)
        };
        let rounds = total.div_ceil(world).div_ceil(chunk);
        for round in 0..rounds {
            let outgoing = (0..world)
                .map(|peer| {
                    let mut bytes = Vec::with_capacity(4 * own.len() * part(peer, round).len());
                    for (_, gradients) in &own {
                        visit(gradients, part(peer, round), |values| encode(values, &mut bytes));
                    }
                    bytes
                })
                .collect();
            let length = part(rank, round).len();
            let mut sums: Sums<Vec<f32>> = Sums::new(count, |sum, addend| add_slices(sum, addend));
            let incoming = members.exchange(outgoing, 4 * most_nodes * chunk)?;
            for (peer, (bytes, nodes)) in incoming.into_iter().zip(&nodes).enumerate() {
                let values = decode(&bytes, length * nodes.len(), peer, rank)?;
                for (index, node) in nodes.iter().enumerate() {
                    sums.push(node.clone(), values[index * length..(index + 1) * length].to_vec());
                }
            }
            let mut bytes = Vec::with_capacity(4 * length);
            encode(&sums.into_nodes().pop().map(|(_, sum)| sum).unwrap_or_default(), &mut bytes);
            let incoming = members.exchange(vec![bytes; world], 4 * chunk)?;
            for (peer, bytes) in incoming.into_iter().enumerate() {
                let range = part(peer, round);
                let values = decode(&bytes, range.len(), peer, rank)?;
                let mut rest = values.as_slice();
                // Sums take the place of what was sent in this round.
                let Some((_, all)) = own.first_mut() else { continue };
                visit_mut(all, range, |slice| {
                    let (now, later) = rest.split_at(slice.len());
                    slice.copy_from_slice(now);
                    rest = later;
                });
            }
        }
        own.truncate(1);
        Ok(own.pop().map(|(_, sum)| sum).unwrap_or_default())
    }

    /// Tells the others why this process stops; they fail with that message, or are ended.
    pub fn stop(&self, message: &str) {
        if let Some(members) = &self.0 {
            members.carrier.stop(message);
        }
    }
}

impl Members {
    fn exchange(&self, outgoing: Vec<Vec<u8>>, longest: usize) -> Result<Vec<Vec<u8>>, ParallelError> {
        let operation = self.operation.fetch_add(1, Ordering::Relaxed).wrapping_add(1);
        self.carrier.exchange(operation, outgoing, longest)
    }
}

/// MPI where it started this process and this program has it, and TCP otherwise.
fn carrier_of(launch: &Launch, key: &str, patience: Duration) -> Result<Box<dyn Carrier>, ParallelError> {
    #[cfg(feature = "mpi")]
    if launch.mpi {
        return Ok(Box::new(mpi::Mpi::connect(launch)?));
    }
    Ok(Box::new(tcp::Tcp::connect(launch, key, patience)?))
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

fn decode(bytes: &[u8], length: usize, rank: usize, own: usize) -> Result<Vec<f32>, ParallelError> {
    if bytes.len() != 4 * length {
        return Err(ParallelError::Disagree { what: "numbers of values", rank, own });
    }
    Ok(bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect())
}

/// Reads bytes as each thing that another process sends: for fuzzing.
#[doc(hidden)]
pub fn read_foreign(bytes: &[u8], _: &std::path::Path) {
    let Some((&kind, rest)) = bytes.split_first() else { return };
    match kind {
        b'f' => tcp::read_frames(rest),
        b'm' => tcp::read_message(rest),
        _ => {
            facts::read_all(rest);
        }
    }
}

/// Valid inputs of [`read_foreign`].
#[doc(hidden)]
pub fn foreign_seeds() -> Vec<Vec<u8>> {
    let [frames, message] = tcp::seeds();
    vec![[&b"f"[..], &frames].concat(), [&b"m"[..], &message].concat(), [&b"x"[..], &facts::seed()].concat()]
}

#[cfg(test)]
mod tests;
