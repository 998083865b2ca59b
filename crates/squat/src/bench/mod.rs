//! What `squat bench` measures: contestants, tests, the work that is in a test, and what the machine allows.

pub mod contestant;
pub mod limits;
pub mod measure;
pub mod report;
#[cfg(feature = "train")]
pub mod train;
pub mod work;
