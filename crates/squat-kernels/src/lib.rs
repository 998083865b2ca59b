//! Integer products on SIMD, selected at run time, and the float functions around them.
//!
//! Everything here gives the same bits on every instruction set: integer sums are exact, and float sums have one fixed
//! order ([`float`]). So a model generates the same text on every CPU and with any number of threads, trainer and engine
//! call the same functions, and one prefill equals decoding token by token.
//!
//! # A product
//!
//! Weights are packed once, activations are quantized row by row, and a product writes the columns of the view it is
//! given:
//!
//! ```
//! use squat_kernels::{ColumnsMut, Kernels, PackedMatrix, QuantizedRows, RowQuantizer};
//! use squat_quant::{ActBits, WeightBits, WeightScheme};
//!
//! // Two outputs, three inputs, 4-bit codes, one scale per output.
//! let scheme = WeightScheme::per_channel(WeightBits::W4);
//! let matrix = PackedMatrix::from_codes(2, 3, scheme, &[1, 2, 3, -4, 0, 7], &[0.5, 0.25])?;
//!
//! let kernels = Kernels::detect();
//! let mut rows = QuantizedRows::new();
//! kernels.quantize_rows(&mut rows, &[127.0, -1.0, 0.0], 3, &[ActBits::A8], &RowQuantizer::DYNAMIC);
//!
//! let mut y = [0.0; 2];
//! kernels.linear(&matrix, rows.as_view(), ColumnsMut::new(&mut y, 1, 2));
//! assert_eq!(y, [62.5, -127.0]);
//! # Ok::<(), squat_kernels::MatrixError>(())
//! ```
//!
//! Threads split a product by output channels: [`ColumnsMut::split_even`] gives each its columns.
//!
//! # How it works
//!
//! A dot-product instruction multiplies four unsigned bytes by four signed bytes and adds the products to a 32-bit lane.
//! So weights are stored unsigned (with 128, 8, 4 or 2 added), sixteen channels side by side, four inputs of a channel in
//! each lane; the activations of a row are broadcast, four at a time. The sum then exceeds the true one by
//! `offset * sum(row)`, known when the row is quantized; a zero point `z` adds `z * sum(weights)`, known when the matrix
//! is packed. With scales per channel the inner loop consists of these instructions alone: unpacking 4-bit weights costs
//! one shift and two masks per 128 codes. Three bits do not divide a byte, so three blocks form a step: six 3-bit fields
//! in the low bits of their bytes, the other two in the remaining bits (`storage.rs` shows the layout).
//!
//! Rows of 4-bit and of 8-bit activations take the same path: their codes are bytes in memory, and a dot-product
//! instruction takes the same time for both. What 4-bit activations save is cache memory: [`KvHead`] stores such rows in
//! half the bytes.
//!
//! AVX2 has no such instruction: `vpmaddubsw` adds two products in 16 bits and saturates at 32767. That is safe while one
//! side is at most 15 (4, 3 and 2-bit weights): the sums of 8 steps (42 at 2 bits) fit in 16 bits before they must be
//! widened. Full bytes are widened first.
//!
//! # Where things are
//!
//! | | |
//! |---|---|
//! | [`Kernels`] | the functions of an instruction set: `scalar`; `avx2`, `avxvnni`, `avx512vnni`; `neon`, `neon-dotprod`, `neon-i8mm`; `simd128` |
//! | [`PackedMatrix`] | weights, their layout, embedding lookup |
//! | [`QuantizedRows`], [`RowQuantizer`] | activations |
//! | [`ColumnsMut`] | outputs, divisible among threads |
//! | [`product`] | the definition of the product and its one algorithm |
//! | [`attention`], [`KvHead`], [`FloatKvHead`] | attention over an integer cache of mixed precision, or over floats |
//! | `probe` | the limits of the CPU: peaks of its instructions, speed of its memory |
//! | [`paired`] | the paper's packed multiplier, for comparison |
//! | [`float`] | norms, softmax, activation functions, rotary embedding, float products |
//! | [`mod@reference`] | the same in plain loops, for tests |
//!
//! # Layers
//!
//! A module imports only modules above it in this list; `tests/layers.rs` checks that there are no cycles.
//!
//! | | |
//! |---|---|
//! | `block`, `lanes`, `storage` | layouts and the order of sums |
//! | `simd`, `portable` | the traits of registers, and their implementation in plain Rust |
//! | `arena`, `output`, [`float`], `rows`, `panels`, `matrix` | operands |
//! | [`attention`], [`mod@reference`], [`product`], [`paired`], `probe_loops` | algorithms, generic over the traits |
//! | `arch` | the algorithms compiled for each instruction set |
//! | `dispatch`, `probe` | the choice of a set, and measurements |
//!
//! # Adding an instruction set, or a function
//!
//! * **An instruction set** is one file in `arch/` and one line in the list of `dispatch`: a token type that implements
//!   the traits `IntSimd`, `CodeSimd` and `FloatSimd`, and one `kernel_table!`. The tests run every set of the list.
//! * **A set with tile registers** implements `MicroKernel` in its file, and takes the rest of its table from the set whose
//!   vectors it shares. `arch/tile_emulation.rs` shows it, with a tile unit in plain Rust.
//! * **A function of every set** is one line in `arch/functions.rs`: it makes field, instances, entries and method.
//!
//! # Why single rows and float products look the way they do
//!
//! * **One row** is bound by reading weights, see `product/schedule.rs`.
//! * **Float products** have one accumulator per output (the order of sums is fixed), so a single row takes four outputs
//!   at once, from places a quarter of the matrix apart. Multiplication and addition are fused; the few CPUs without such
//!   an instruction compute the same bits by way of f64, slowly.
//!
//! # If it is slow
//!
//! `cargo run --release -p squat-kernels --example speed` prints the speed of every kernel after the limits of the core,
//! measured in the same run (module `probe`; speeds from different runs on a shared machine are hard to compare). Then:
//!
//! 1. [`Kernels::name`]: `scalar` on a CPU that has more means a build without the feature `std`.
//! 2. A single row: divide [`PackedMatrix::bytes`] by the time and compare it with the speed of reading a buffer of the
//!    size of the model. Expect nine tenths of it.
//! 3. Many rows: compare operations per second with the peak. Scales per group take a quarter of it, because sums are
//!    converted and scaled for every group; so do rows too few for a tile.
//! 4. `benches/instructions` counts the instructions of each kernel, which do not depend on the load of the machine.
//!
#![no_std]
#![warn(missing_docs)]

extern crate alloc;
#[cfg(feature = "std")]
extern crate std;

mod arch;
mod arena;
pub mod attention;
mod block;
mod dispatch;
mod error;
pub mod float;
mod half;
mod lanes;
mod matrix;
mod output;
pub mod paired;
mod panels;
mod portable;
mod prefetch;
#[cfg(feature = "std")]
pub mod probe;
mod probe_loops;
pub mod product;
pub mod reference;
mod rows;
mod simd;
mod storage;

pub use arena::{ArenaSlice, WeightArena};
pub use attention::{AttentionScheme, AttentionScratch, Causal, FloatKvHead, KvHead, MAX_CONTEXT};
pub use block::PANEL;
pub use dispatch::{Kernels, ProductName};
pub use error::{CacheError, MatrixError, UnknownIsa};
pub use matrix::{MAX_COLS, PackedMatrix};
pub use output::ColumnsMut;
pub use prefetch::prefetch;
pub use rows::{CodeRow, QuantizedRows, ROW_ALIGN, RowQuantizer, RowsMut, RowsView, StaticAffines};
pub use storage::Storage;
