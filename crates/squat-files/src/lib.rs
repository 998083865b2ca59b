//! The one way files are written, locked and read, and the flag that asks long work to stop.
//!
//! Writing: [`write`], with [`lock`]. Reading what others wrote: [`read`]. Stopping: [`interrupt`].

pub mod interrupt;
pub mod lock;
pub mod read;
pub mod sums;
pub mod write;
