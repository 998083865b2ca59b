//! One flag that every long loop polls.
//!
//! A program that handles signals calls [`request`]; loops that leave something half-made call [`check`] and return its
//! error, so that what they made is removed on the way out. Libraries never set the flag.

use std::sync::atomic::{AtomicBool, Ordering};

static REQUESTED: AtomicBool = AtomicBool::new(false);

/// Long work was asked to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Interrupted;

impl std::fmt::Display for Interrupted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("interrupted")
    }
}

impl std::error::Error for Interrupted {}

/// Asks all long work of this process to stop.
pub fn request() {
    REQUESTED.store(true, Ordering::Relaxed);
}

/// Forgets the wish: for what has to be done after the work has stopped.
pub fn forget() {
    REQUESTED.store(false, Ordering::Relaxed);
}

/// Whether work was asked to stop.
pub fn requested() -> bool {
    REQUESTED.load(Ordering::Relaxed)
}

/// Goes on, or stops.
///
/// # Errors
/// [`Interrupted`] once [`request`] was called.
pub fn check() -> Result<(), Interrupted> {
    if requested() { Err(Interrupted) } else { Ok(()) }
}
