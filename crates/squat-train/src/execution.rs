//! Where and with whom training runs.

use crate::parallel::Group;
use burn::tensor::Device;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Threads, device and processes of a run, and how it begins and ends.
#[derive(Clone, Debug)]
pub struct Execution {
    /// Threads of this process.
    pub threads: usize,
    /// Where forward and backward run; parameters and optimizer stay on the CPU.
    pub device: Device,
    /// The processes that train together.
    pub group: Group,
    /// Continue from the files of an earlier call.
    pub resume: bool,
    /// Set from outside to stop after the current step, with a checkpoint; [`squat_files::interrupt`] does the same.
    pub stop: Arc<AtomicBool>,
}

impl Execution {
    /// One process on the CPU, from the beginning.
    pub fn on_cpu(threads: usize) -> Self {
        Self { threads, device: Device::flex(), group: Group::alone(), resume: false, stop: Arc::default() }
    }

    /// Whether it was told to stop.
    pub fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed) || squat_files::interrupt::requested()
    }
}
