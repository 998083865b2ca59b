//! The carrier of clusters: the collective operations of MPI, over whatever network it was built for.
//!
//! MPI ends all processes when one of them exits without its farewell, which is how a failure reaches the others.

use super::carrier::Carrier;
use super::{Launch, ParallelError};
use mpi::Count;
use mpi::Threading;
use mpi::datatype::{Partition, PartitionMut};
use mpi::environment::Universe;
use mpi::traits::{Communicator, CommunicatorCollectives};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

/// All processes that one `mpirun` or `srun` started.
pub(super) struct Mpi {
    rank: usize,
    world: usize,
    /// MPI is told goodbye when this is dropped. Its calls are made by one thread at a time.
    universe: Mutex<Option<Universe>>,
    failed: AtomicBool,
}

impl Mpi {
    /// Joins the processes of `launch`.
    ///
    /// # Errors
    /// A library that is older than MPI 2 or was begun already; other numbers than those of the launcher.
    pub(super) fn connect(launch: &Launch) -> Result<Self, ParallelError> {
        let failed = |problem: String| ParallelError::Launch { launcher: "MPI", problem };
        let (universe, threading) = mpi::initialize_with_threading(Threading::Serialized)
            .ok_or_else(|| failed("MPI is in use by this process already".to_owned()))?;
        let (rank, world) = (universe.world().rank() as usize, universe.world().size() as usize);
        if (rank, world) != (launch.rank, launch.world) {
            return Err(failed(format!(
                "the launcher says rank {} of {}, the MPI library says rank {rank} of {world}; this program was built \
                 with another MPI than the one that started it",
                launch.rank, launch.world
            )));
        }
        if threading < Threading::Serialized {
            return Err(failed(
                "this MPI serves programs of one thread only; use one built with threads".to_owned(),
            ));
        }
        Ok(Self { rank, world, universe: Mutex::new(Some(universe)), failed: AtomicBool::new(false) })
    }
}

/// Where each of several lists starts when they lie end to end.
fn starts(lengths: &[Count]) -> Vec<Count> {
    let mut next = 0;
    lengths
        .iter()
        .map(|length| {
            let start = next;
            next += length;
            start
        })
        .collect()
}

impl Carrier for Mpi {
    fn rank(&self) -> usize {
        self.rank
    }

    fn world(&self) -> usize {
        self.world
    }

    fn exchange(
        &self,
        operation: u32,
        outgoing: Vec<Vec<u8>>,
        longest: usize,
    ) -> Result<Vec<Vec<u8>>, ParallelError> {
        let universe = self.universe.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(universe) = universe.as_ref() else {
            return Err(ParallelError::Rendezvous("MPI is closed".to_owned()));
        };
        let world = universe.world();
        // Who is at another operation, or has too much, is noticed before anything of that size is sent.
        let mine: Vec<[u64; 2]> =
            outgoing.iter().map(|bytes| [u64::from(operation), bytes.len() as u64]).collect();
        let mut theirs = vec![[0u64; 2]; self.world];
        world.all_to_all_into(mine.as_flattened(), theirs.as_flattened_mut());
        let most = longest.min(Count::MAX as usize / self.world);
        let mut lengths = Vec::with_capacity(self.world);
        for (peer, [found, length]) in theirs.into_iter().enumerate() {
            let lost = |reason| Err(ParallelError::Lost { rank: peer, reason });
            if found != u64::from(operation) {
                return lost(format!("it is at operation {found}, this process at {operation}"));
            }
            if length > most as u64 || outgoing[peer].len() > most {
                return lost(format!("it has {length} bytes where {most} are the most"));
            }
            lengths.push(length as Count);
        }
        let counts: Vec<Count> = outgoing.iter().map(|bytes| bytes.len() as Count).collect();
        let (from, to) = (starts(&counts), starts(&lengths));
        // Never without memory: the address of an empty list of bytes is 1, which Open MPI takes for MPI_IN_PLACE.
        let mut sent = Vec::with_capacity(1 + outgoing.iter().map(Vec::len).sum::<usize>());
        outgoing.iter().for_each(|bytes| sent.extend_from_slice(bytes));
        let total: usize = lengths.iter().map(|&length| length as usize).sum();
        let mut received = Vec::with_capacity(1 + total);
        received.resize(total, 0u8);
        world.all_to_all_varcount_into(
            &Partition::new(&sent[..], &counts[..], &from[..]),
            &mut PartitionMut::new(&mut received[..], &lengths[..], &to[..]),
        );
        let part = |(&start, &length): (&Count, &Count)| {
            received[start as usize..(start + length) as usize].to_vec()
        };
        Ok(to.iter().zip(&lengths).map(part).collect())
    }

    fn stop(&self, _message: &str) {
        self.failed.store(true, Ordering::Relaxed);
    }
}

impl Drop for Mpi {
    fn drop(&mut self) {
        let universe = self.universe.get_mut().unwrap_or_else(PoisonError::into_inner).take();
        if self.failed.load(Ordering::Relaxed) || std::thread::panicking() {
            // A farewell would wait for the others, which wait for this process.
            std::mem::forget(universe);
        }
    }
}
