//! Integer products on SIMD, chosen at run time, and the float functions around them.
//!
//! Everything here gives the same bits on every instruction set: integer sums are exact, and float sums have one fixed
//! order ([`float`]). So a model generates the same text on every CPU and with any number of threads, the trainer can
//! call the same functions as the engine, and one prefill equals decoding token by token.
//!
//! # A product
//!
//! Weights are packed once, activations are quantized row by row, and the product writes the columns it is given:
//!
//! ```
//! use squat_kernels::{ColumnsMut, Kernels, PackedMatrix, QuantizedRows, RowQuantizer};
//! use squat_quant::{ActBits, WeightBits, WeightScheme};
//!
//! // Two outputs, three inputs, 4-bit codes, one scale for each output.
//! let scheme = WeightScheme::per_channel(WeightBits::W4);
//! let matrix = PackedMatrix::from_codes(2, 3, scheme, &[1, 2, 3, -4, 0, 7], &[0.5, 0.25])?;
//!
//! let kernels = Kernels::detect();
//! let mut rows = QuantizedRows::new();
//! kernels.quantize_rows(&mut rows, &[127.0, -1.0, 0.0], 3, &[ActBits::A8], &RowQuantizer::Dynamic);
//!
//! let mut y = [0.0; 2];
//! kernels.linear(&matrix, rows.as_view(), ColumnsMut::new(&mut y, 1, 2));
//! assert_eq!(y, [62.5, -127.0]);
//! # Ok::<(), squat_kernels::MatrixError>(())
//! ```
//!
//! Threads share a product by output channels: [`ColumnsMut::split_even`] gives each its columns.
//!
//! # How it works
//!
//! A dot-product instruction multiplies four unsigned by four signed bytes and adds them to a 32-bit lane. So weights
//! are stored unsigned (plus 128, 8, 4 or 2), sixteen channels side by side, four inputs of a channel in each lane; the
//! activations of a row are broadcast, four at a time. What the offset added is `offset * sum(row)`, known when
//! the row is quantized; what a zero point adds is `z * sum(weights)`, known when the matrix is packed. With scales per
//! channel the inner loop is nothing but these instructions: 4-bit weights cost one shift and two masks for 128 codes.
//! Three bits do not fill a byte, so three blocks go together: six fields of 3 bits in the low bits of their bytes, the other two
//! in the bits that are left (`matrix.rs` draws it).
//!
//! Rows of 4-bit and of 8-bit activations go through the same loop: their codes are bytes in memory, and a dot-product
//! instruction takes the same time for both. What 4-bit activations save is the cache: [`KvHead`] stores such rows in
//! half the bytes.
//!
//! AVX2 has no such instruction: `vpmaddubsw` adds two products in 16 bits and saturates at 32767. That is safe while
//! one side is at most 15 (4, 3 and 2-bit weights), and then sums of 8 steps (42 at 2 bits) fit in 16 bits before they
//! must be widened; full bytes are widened first.
//!
//! # Where things are
//!
//! | | |
//! |---|---|
//! | [`Kernels`] | the functions of an instruction set: `scalar`; `avx2`, `avxvnni`, `avx512vnni`; `neon`, `neon-dotprod`, `neon-i8mm`; `simd128` |
//! | [`PackedMatrix`] | weights, their layout, embedding lookup |
//! | [`QuantizedRows`], [`RowQuantizer`] | activations |
//! | [`ColumnsMut`] | outputs, divisible over threads |
//! | [`product`] | the definition of the product and its one algorithm |
//! | [`attention`], [`KvHead`], [`FloatKvHead`] | attention over an integer cache of mixed precision, or over floats |
//! | `probe` | the limits of the CPU: peaks of its instructions, speed of its memory |
//! | [`paired`] | the paper's packed multiplier, for comparison |
//! | [`float`] | norms, softmax, activation, rotary embedding, float products |
//! | [`mod@reference`] | the same in plain loops, for tests |
//!
//! A new instruction set is one file in `arch/`: a token type that implements the three small traits `IntSimd`,
//! `CodeSimd` and `FloatSimd`, one `kernel_table!`, and one line in the list of `dispatch`; the tests find it there.
//!
//! # How a product is walked through
//!
//! * **Many rows**: a tile of rows and panels keeps its sums in registers (8 x 3 with AVX-512). A block is unpacked once
//!   for the rows of a tile, and each group of four activations is broadcast once for its panels: 48 dot products for 16
//!   broadcasts and 12 instructions of unpacking. The first tile of a strip of panels asks for the next strip. ARM's `usmmla`
//!   multiplies two channels with two rows: one `zip` puts eight inputs of a channel side by side.
//! * **One row** is bound by reading weights, so it reads them in the order in which they lie, a panel at a time, several
//!   blocks with sums of their own, and asks for what lies 4096 bytes ahead: the CPU looks ahead by itself, but not beyond
//!   its page. Several panels at once were twice as slow from memory.
//! * **Float products** have one accumulator for each output (the order of sums is fixed), so a single row takes four
//!   outputs at once, from places a quarter of the matrix apart. Multiplication and addition are fused; the few
//!   CPUs without such an instruction compute the same bits by way of f64, slowly.
//!
//! # When it is slow
//!
//! `cargo run --release -p squat-kernels --example speed` prints every kernel's speed after the limits of the core,
//! measured in the same run (module `probe`; figures without it say little on a shared machine). Then:
//!
//! 1. [`Kernels::name`]: `scalar` on a CPU that has more means a build without the feature `std`.
//! 2. A single row: divide [`PackedMatrix::bytes`] by the time and hold it against the speed of reading a buffer of the size
//!    of the model. Nine tenths of it is what to expect.
//! 3. Many rows: hold operations against the peak. Scales for groups take a quarter of it, because sums are converted and
//!    scaled for every group; so do rows too few for a tile.
//! 4. `benches/instructions` counts the instructions of each kernel, which a loaded machine does not change.
//!
#![no_std]
#![warn(missing_docs)]

extern crate alloc;
#[cfg(feature = "std")]
extern crate std;

mod arch;
mod arena;
pub mod attention;
mod dispatch;
mod error;
pub mod float;
mod matrix;
mod output;
pub mod paired;
mod panels;
#[cfg(feature = "std")]
pub mod probe;
pub mod product;
pub mod reference;
mod rows;
mod storage;

pub use arch::prefetch;
pub use arena::{ArenaSlice, WeightArena};
pub use attention::{AttentionScheme, AttentionScratch, Causal, FloatKvHead, KvHead, MAX_CONTEXT};
pub use dispatch::{Kernels, ProductName};
pub use error::{CacheError, MatrixError, UnknownIsa};
pub use matrix::{MAX_COLS, PANEL, PackedMatrix};
pub use output::ColumnsMut;
pub use rows::{CodeRow, QuantizedRows, ROW_ALIGN, RowQuantizer, RowsMut, RowsView, StaticAffines};
pub use storage::Storage;
