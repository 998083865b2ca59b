//! Who carries bytes between processes. The order of every sum is defined by [`super::tree`], so a carrier only has to
//! deliver what processes have for each other.

use super::ParallelError;

/// Connections to all other processes of a group.
pub(super) trait Carrier: Send + Sync {
    /// Number of this process.
    fn rank(&self) -> usize;

    /// Number of processes.
    fn world(&self) -> usize;

    /// All-to-all: gives `outgoing[p]` to each process `p` and returns, by process, what all of them had for this one; its
    /// own is handed back. `operation` is the number of the call, the same for all processes. A process may have at most
    /// `longest` bytes for another.
    ///
    /// # Errors
    /// A process that is gone, failed, is at another operation or sends more.
    fn exchange(
        &self,
        operation: u32,
        outgoing: Vec<Vec<u8>>,
        longest: usize,
    ) -> Result<Vec<Vec<u8>>, ParallelError>;

    /// Tells all others why this process stops; they fail with that message, or are ended.
    fn stop(&self, message: &str);
}
