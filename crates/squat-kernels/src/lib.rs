//! Integer products on SIMD, chosen at run time, and the float functions around them.
#![no_std]
#![warn(missing_docs)]

extern crate alloc;
#[cfg(feature = "std")]
extern crate std;

mod arch;
pub mod attention;
mod dispatch;
mod error;
pub mod float;
mod matrix;
mod output;
pub mod product;
pub mod reference;
mod rows;

pub use attention::{AttentionScheme, AttentionScratch, CodeStore, FloatKvHead, KvHead, MAX_CONTEXT};
pub use dispatch::{Kernels, ProductName};
pub use error::{CacheError, MatrixError, UnknownIsa};
pub use matrix::{MAX_COLS, PANEL, PackedMatrix, Storage};
pub use output::ColumnsMut;
pub use rows::{CodeRow, QuantizedRows, ROW_ALIGN, RowQuantizer, RowsMut, RowsView, StaticAffines};
