//! Ctrl-C and its kin.
//!
//! The first signal ends a command at once, unless the command has said with [`tidy_up`] that it leaves something
//! half-made; then the flag of [`squat_files::interrupt`] is set, which every long loop polls, and the second signal ends it.

use crate::printer;
use anyhow::{Context, Result};
use squat_files::interrupt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Exit code after a signal.
pub const INTERRUPTED: u8 = 130;

/// Signals within this time count as one: a launcher forwards the signal that the terminal already sent to all processes.
const ONE_SIGNAL: Duration = Duration::from_secs(1);

static TIDY: AtomicBool = AtomicBool::new(false);

/// Handles SIGINT, SIGTERM and SIGHUP.
pub fn install() -> Result<()> {
    let mut first: Option<Instant> = None;
    ctrlc::set_handler(move || {
        let at_once = || std::process::exit(i32::from(INTERRUPTED));
        match first {
            _ if !TIDY.load(Ordering::Relaxed) => at_once(),
            Some(first) if first.elapsed() > ONE_SIGNAL => at_once(),
            Some(_) => {}
            None => {
                first = Some(Instant::now());
                interrupt::request();
                printer::note("stopping; press Ctrl-C again to stop at once");
            }
        }
    })
    .context("cannot install the handler of Ctrl-C")
}

/// From here on a signal asks the work to stop and to remove what is half-made.
pub fn tidy_up() {
    TIDY.store(true, Ordering::Relaxed);
}

/// Work that leaves nothing half-made, during which a signal ends the program at once.
pub fn while_waiting<T>(wait: impl FnOnce() -> T) -> T {
    let before = TIDY.swap(false, Ordering::Relaxed);
    let result = wait();
    TIDY.store(before, Ordering::Relaxed);
    result
}
