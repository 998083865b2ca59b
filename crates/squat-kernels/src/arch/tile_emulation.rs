//! A tile unit in plain Rust, of the shape of Intel's AMX: the proof that [`MicroKernel`] fits an instruction set with
//! tile registers, and the pattern of such a set. Its table replaces the products of another set.

use super::{SCALAR, Table};
use crate::block::{Block, PANEL};
use crate::matrix::PackedMatrix;
use crate::output::ColumnsMut;
use crate::portable::Portable;
use crate::product::{self, Bits2, Bits3, Bits4, Bits8, MicroKernel, Strips, Tiles, Unpack, Vectors};
use crate::rows::RowsView;
use crate::storage::Storage;
use alloc::borrow::Cow;
use alloc::vec;
use alloc::vec::Vec;
use core::ops::Range;

/// Most rows of a tile.
const ROWS: usize = 16;
/// Most inputs of a tile, and blocks that hold them as bytes.
const DEPTH: usize = 64;
const BLOCKS: usize = DEPTH / 4;

/// Few rows, which go to vectors as the only row does.
const FEW: usize = 3;

type Fallback = Vectors<Portable, 1, 1, 1>;

/// `c[m][n] += sum_k a[m][k] * b[k][n]`: `rows` rows of `4 * b.len()` signed bytes, unsigned bytes of 16 channels.
fn multiply_tile(c: &mut [[i32; PANEL]; ROWS], a: &[[i8; DEPTH]; ROWS], rows: usize, b: &[Block]) {
    assert!(rows <= ROWS && b.len() <= BLOCKS, "a tile register");
    for (c, a) in c.iter_mut().zip(a).take(rows) {
        for (block, quad) in b.iter().zip(a.as_chunks::<4>().0) {
            for (c, channel) in c.iter_mut().zip(block.0.as_chunks::<4>().0) {
                for (&a, &w) in quad.iter().zip(channel) {
                    *c += i32::from(a) * i32::from(w);
                }
            }
        }
    }
}

/// Tiles of 16 rows and one or two panels.
#[derive(Clone, Copy)]
struct TileUnit;

impl MicroKernel for TileUnit {
    type Simd = Portable;
    /// The blocks of each panel as bytes: 8-bit codes as they lie in the matrix, others unpacked once for all rows.
    type Weights<'a, U: Unpack, const NP: usize> = [Cow<'a, [Block]>; NP];
    /// All rows, and those of the tile.
    type Activations<'a, U: Unpack, const MR: usize> = (RowsView<'a>, Range<usize>);
    const ROWS: usize = ROWS;

    fn simd(self) -> Portable {
        Portable
    }

    fn panels(self, panels: Range<usize>, strips: &mut impl Strips) {
        let (pairs, end) = (panels.start..panels.end - panels.len() % 2, panels.end);
        pairs.clone().step_by(2).for_each(|panel| strips.strip::<2>(panel));
        (pairs.end..end).for_each(|panel| strips.strip::<1>(panel));
    }

    fn rows(self, rows: Range<usize>, tiles: &mut impl Tiles) {
        for row in rows.clone().step_by(ROWS) {
            match rows.end - row {
                few @ ..=FEW => (row..row + few).for_each(|row| tiles.tile::<1>(row, 1)),
                left => tiles.tile::<ROWS>(row, left.min(ROWS)),
            }
        }
    }

    fn weights<'a, U: Unpack, const NP: usize>(
        self,
        panels: [&'a [U::Blocks]; NP],
        rows: usize,
    ) -> [Cow<'a, [Block]>; NP] {
        assert!(rows > 0, "a strip is read by some rows");
        panels.map(|steps| {
            let blocks = U::STORAGE.depth() / 4;
            if let (Storage::Bits8, Some(first)) = (U::STORAGE, steps.first()) {
                // SAFETY: a step of 8-bit codes is an array of one block.
                let lie = unsafe { core::slice::from_raw_parts(first.as_ref().as_ptr(), steps.len()) };
                return Cow::Borrowed(lie);
            }
            let mut bytes = vec![Block([0xEE; 64]); steps.len() * blocks];
            for (step, out) in steps.iter().zip(bytes.chunks_exact_mut(blocks)) {
                U::unpack(Portable, step, out);
            }
            Cow::Owned(bytes)
        })
    }

    fn activations<'a, U: Unpack, const MR: usize>(
        self,
        rows: RowsView<'a>,
        range: Range<usize>,
    ) -> (RowsView<'a>, Range<usize>) {
        assert!(range.len() <= MR && range.end <= rows.rows(), "rows of a tile");
        (rows, range)
    }

    fn tile<U: Unpack, const MR: usize, const NP: usize>(
        self,
        weights: &[Cow<'_, [Block]>; NP],
        (view, range): &(RowsView<'_>, Range<usize>),
        steps: Range<usize>,
        _: Option<usize>,
    ) -> [[[i32; PANEL]; NP]; MR] {
        // The rows beyond those of the tile hold garbage, which must not be read.
        let mut sums = [[[i32::MIN; PANEL]; NP]; MR];
        let depth = U::STORAGE.depth();
        let inputs = steps.start * depth..steps.end * depth;
        for (p, blocks) in weights.iter().enumerate() {
            let mut c = [[0; PANEL]; ROWS];
            for first in inputs.clone().step_by(DEPTH) {
                let taken = DEPTH.min(inputs.end - first);
                let mut a = [[0i8; DEPTH]; ROWS];
                for (a, row) in a.iter_mut().zip(range.clone()) {
                    a[..taken].copy_from_slice(&view.padded(row)[first..first + taken]);
                }
                multiply_tile(&mut c, &a, range.len(), &blocks[first / 4..][..taken / 4]);
            }
            for (sums, c) in sums.iter_mut().zip(c).take(range.len()) {
                sums[p] = c;
            }
        }
        sums
    }

    fn row<U: Unpack>(self, weights: &[U::Blocks], codes: &[U::Codes]) -> [i32; PANEL] {
        Fallback::row::<U>(Vectors(Portable), weights, codes)
    }
}

fn linear<U: Unpack>(matrix: &PackedMatrix, rows: RowsView<'_>, out: &mut ColumnsMut<'_>) {
    product::linear::<_, U>(TileUnit, matrix, rows, out);
}

/// Products by tiles, everything else as the set has it that this one builds on.
static TILES: Table = Table {
    linear_bits8: linear::<Bits8>,
    linear_bits4: linear::<Bits4>,
    linear_bits3: linear::<Bits3>,
    linear_bits2: linear::<Bits2>,
    ..SCALAR
};

mod tests {
    use super::*;
    use crate::{QuantizedRows, reference};
    use proptest::prelude::*;
    use squat_quant::{ActBits, Granularity, WeightBits, WeightScheme};

    fn check(
        scheme: WeightScheme,
        (m, k, n): (usize, usize, usize),
        bias: bool,
        (seed, cut): (u64, usize),
    ) -> Result<(), TestCaseError> {
        let mut state = seed;
        let mut next = |low: i32, high: i32| {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            low + ((state >> 33) as u32 % (high - low + 1) as u32) as i32
        };
        let range = scheme.bits.range();
        let codes: Vec<i8> = (0..n * k).map(|_| next(range.min, range.max) as i8).collect();
        let scales: Vec<f32> = (0..scheme.num_scales(n, k)).map(|_| next(1, 1000) as f32 / 1000.0).collect();
        let mut matrix = PackedMatrix::from_codes(n, k, scheme, &codes, &scales).unwrap();
        if bias {
            let bias: Vec<f32> = (0..n).map(|_| next(-9, 9) as f32).collect();
            matrix = matrix.with_bias(&bias).unwrap();
        }
        let mut rows = QuantizedRows::new();
        rows.reset(m, k);
        let symmetric = next(0, 1) == 0;
        for row in 0..m {
            let codes: Vec<i8> = (0..k).map(|_| next(-128, 127) as i8).collect();
            let zero = if symmetric { 0 } else { next(-128, 127) };
            rows.as_mut().set(row, &codes, next(1, 99) as f32 / 100.0, zero, ActBits::A8);
        }
        let linear = match matrix.storage() {
            Storage::Bits8 => TILES.linear_bits8,
            Storage::Bits4 => TILES.linear_bits4,
            Storage::Bits3 => TILES.linear_bits3,
            Storage::Bits2 => TILES.linear_bits2,
        };
        let (mut got, mut want) = (vec![f32::NAN; m * n], vec![f32::NAN; m * n]);
        reference::linear(&matrix, rows.as_view(), &mut ColumnsMut::new(&mut want, m, n));
        let (mut left, mut right) = ColumnsMut::new(&mut got, m, n).split_at(cut);
        linear(&matrix, rows.as_view(), &mut left);
        linear(&matrix, rows.as_view(), &mut right);
        let bits = |y: &[f32]| y.iter().map(|y| y.to_bits()).collect::<Vec<_>>();
        prop_assert_eq!(bits(&got), bits(&want), "{:?}", scheme);
        Ok(())
    }

    proptest! {
        #[test]
        fn tiles_equal_the_reference(
            bits in 0..WeightBits::ALL.len(),
            granularity in prop_oneof![
                Just(Granularity::PerTensor),
                Just(Granularity::PerChannel),
                prop_oneof![Just(16usize), Just(32), Just(64), Just(96), 1usize..50]
                    .prop_map(Granularity::PerGroup),
            ],
            shape in (1usize..40, 1usize..300, 1usize..71),
            bias: bool,
            seed: u64,
            cut in 0usize..70,
        ) {
            check(WeightScheme { bits: WeightBits::ALL[bits], granularity }, shape, bias, (seed, cut))?;
        }
    }

    #[test]
    fn whole_tiles_and_rests_of_every_width() {
        for bits in WeightBits::ALL {
            for rows in [1, 2, FEW, FEW + 1, ROWS, ROWS + 1, 2 * ROWS + FEW + 1] {
                for shape in [(rows, 64, 32), (rows, 128, 48), (rows, 77, 19)] {
                    check(WeightScheme::per_channel(bits), shape, true, (rows as u64, 16)).unwrap();
                }
            }
        }
    }

    /// Sixteen blocks of 8-bit codes are a tile operand: 4 inputs of 16 channels to each of its 16 rows.
    #[test]
    fn a_panel_of_bytes_is_a_sequence_of_tile_operands() {
        let (n, k) = (PANEL, 2 * DEPTH);
        let code = |row: usize, col: usize| (row * 31 + col * 7) as u8 as i8;
        let codes: Vec<i8> = (0..n * k).map(|i| code(i / k, i % k)).collect();
        let scheme = WeightScheme::per_channel(WeightBits::W8);
        let matrix = PackedMatrix::from_codes(n, k, scheme, &codes, &[1.0; PANEL]).unwrap();
        let panel = Bits8::blocks(matrix.panel(0));
        let [bytes] = TileUnit.weights::<Bits8, 1>([panel], ROWS);
        assert_eq!(bytes.as_ptr(), matrix.panel(0).as_ptr(), "nothing is copied");
        for (tile, operand) in bytes.chunks_exact(BLOCKS).enumerate() {
            for (i, row) in operand.iter().enumerate() {
                for (at, &byte) in row.0.iter().enumerate() {
                    let want = code(at / 4, tile * DEPTH + 4 * i + at % 4);
                    assert_eq!(byte, want.wrapping_add(-128) as u8);
                }
            }
        }
    }
}
