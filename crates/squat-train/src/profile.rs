//! Where the time and the memory of a step go.
//!
//! Switched off, a span costs one relaxed load. Switched on, it reads the clock of its thread twice and takes a lock
//! once; there are some hundred spans in a step.

use crate::process;
use std::cell::Cell;
use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

static ENABLED: AtomicBool = AtomicBool::new(false);
static ROWS: Mutex<BTreeMap<(Phase, &'static str), Row>> = Mutex::new(BTreeMap::new());

thread_local! {
    static PHASE: Cell<Phase> = const { Cell::new(Phase::Other) };
}

/// The parts of a step, in the order in which they run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// Parameters become tensors; weights are quantized once for all micro-batches.
    Parameters,
    /// Forward of the teachers.
    Teacher,
    /// Forward of the student with its losses.
    Forward,
    /// Backward of the student.
    Backward,
    /// Gradients of micro-batches are added, clipped, and move the parameters.
    Optimizer,
    /// Outside a step: evaluation, checkpoints.
    Other,
}

impl Phase {
    /// Its name in tables and JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::Parameters => "parameters",
            Self::Teacher => "teacher",
            Self::Forward => "forward",
            Self::Backward => "backward",
            Self::Optimizer => "optimizer",
            Self::Other => "other",
        }
    }
}

/// What was spent under one name.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Row {
    /// Times it ran.
    pub calls: u64,
    /// Seconds of CPU time, over all threads.
    pub seconds: f64,
    /// Bytes of results that it made.
    pub bytes: u64,
    /// Largest resident memory of the process at its end, in bytes; only for phases.
    pub resident: u64,
}

/// A phase, or an operation in it, and its cost.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    /// Part of the step.
    pub phase: Phase,
    /// Operation, `operation: part` for a part of it, or empty for the whole phase.
    pub operation: &'static str,
    /// Cost.
    pub row: Row,
}

/// Starts counting, from nothing.
pub fn start() {
    rows().clear();
    ENABLED.store(true, Ordering::Relaxed);
}

/// Stops counting and returns what was counted: phases in order, each with its operations, the costliest first.
pub fn finish() -> Vec<Entry> {
    ENABLED.store(false, Ordering::Relaxed);
    let mut entries: Vec<Entry> = std::mem::take(&mut *rows())
        .into_iter()
        .map(|((phase, operation), row)| Entry { phase, operation, row })
        .collect();
    entries.sort_by(|a, b| {
        let whole = |entry: &Entry| !entry.operation.is_empty();
        (a.phase, whole(a)).cmp(&(b.phase, whole(b))).then(b.row.seconds.total_cmp(&a.row.seconds))
    });
    entries
}

fn rows() -> std::sync::MutexGuard<'static, BTreeMap<(Phase, &'static str), Row>> {
    ROWS.lock().unwrap_or_else(|e| e.into_inner())
}

/// Counts until it is dropped.
pub(crate) struct Span {
    /// Name and clock at the start, if counting is on.
    started: Option<(&'static str, f64)>,
    /// Phase to return to, if this span is a phase.
    outer: Option<Phase>,
    bytes: u64,
}

/// A part of the step on this thread.
pub(crate) fn phase(phase: Phase) -> Span {
    if !ENABLED.load(Ordering::Relaxed) {
        return Span { started: None, outer: None, bytes: 0 };
    }
    let outer = PHASE.replace(phase);
    Span { started: Some(("", process::thread_seconds())), outer: Some(outer), bytes: 0 }
}

/// An operation in the phase that runs on this thread.
pub(crate) fn operation(name: &'static str) -> Span {
    let on = ENABLED.load(Ordering::Relaxed);
    Span { started: on.then(|| (name, process::thread_seconds())), outer: None, bytes: 0 }
}

impl Span {
    /// Notes that `values` numbers in single precision were made.
    pub fn made(&mut self, values: usize) {
        self.bytes += 4 * values as u64;
    }
}

impl Drop for Span {
    fn drop(&mut self) {
        let Some((name, from)) = self.started else { return };
        let seconds = process::thread_seconds() - from;
        let phase = PHASE.get();
        let resident = if self.outer.is_some() { process::resident_bytes().unwrap_or(0) } else { 0 };
        {
            let mut rows = rows();
            let row = rows.entry((phase, name)).or_default();
            row.calls += 1;
            row.seconds += seconds;
            row.bytes += self.bytes;
            row.resident = row.resident.max(resident);
        }
        if let Some(outer) = self.outer {
            PHASE.set(outer);
        }
    }
}
