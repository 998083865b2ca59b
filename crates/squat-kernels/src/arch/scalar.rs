//! Plain Rust, for every CPU.

use super::table::kernel_table;
use crate::portable::Portable;

kernel_table! {
    /// Kernels for every CPU.
    pub(crate) static SCALAR = [], token: Portable, float: (2, 2), int: (1, 1, 1), wide_tiles: false
}
