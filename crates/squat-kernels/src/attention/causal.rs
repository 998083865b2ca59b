//! The causal mask of a block of queries.

/// The positions that the rows of a block of queries attend to. `group` consecutive rows belong to one token: the first
/// `group` rows attend to the first `len` positions, the next `group` rows to one position more, and so on; with a window, to
/// the latest of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Causal {
    /// Positions that the first row attends to.
    pub len: usize,
    /// Query heads that share the key-value head.
    pub group: usize,
    /// Positions that a row attends to at most: the latest ones. `usize::MAX` for no limit.
    pub window: usize,
}

impl Causal {
    /// Number of positions that a row attends to.
    pub fn len_of(&self, row: usize) -> usize {
        self.len + row / self.group.max(1)
    }

    /// First position that a row attends to.
    pub fn start_of(&self, row: usize) -> usize {
        self.len_of(row).saturating_sub(self.window)
    }
}
