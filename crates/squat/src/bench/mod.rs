//! The parts of `squat bench`: contestants, tests, the work of a test, and the limits of the machine.

pub mod contestant;
pub mod limits;
pub mod measure;
pub mod report;
#[cfg(feature = "train")]
pub mod train;
pub mod work;
