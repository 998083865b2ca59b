//! The order of a product: strips of panels, tiles of rows, groups of inputs.
//!
//! * **Many rows**: a tile of rows and panels keeps its sums in registers (8 x 3 with AVX-512). A block is unpacked once
//!   for the rows of a tile, and each group of four activations is broadcast once for its panels: 48 dot products for 16
//!   broadcasts and 12 instructions of unpacking. The first tile of a strip prefetches the next strip. ARM's `usmmla`
//!   multiplies two channels by two rows: one `zip` puts eight inputs of a channel side by side.
//! * **One row** is bound by reading weights, so it reads them in memory order, a panel at a time, several blocks with
//!   sums of their own, and prefetches what lies 4096 bytes ahead: the hardware prefetcher does not cross its page.
//!   Several panels at once were twice as slow from memory.

use super::epilogue::Epilogue;
use super::kernel::{MicroKernel, Strips, Tiles};
use super::unpack::Unpack;
use crate::block::PANEL;
use crate::matrix::PackedMatrix;
use crate::output::ColumnsMut;
use crate::reference;
use crate::rows::RowsView;
use crate::simd::PanelOutputs;
use crate::storage::Storage;
use core::marker::PhantomData;
use core::ops::Range;

/// Capacity for sums of codes of groups: [groups, rows] of one block of rows.
const GROUP_SUMS: usize = 2048;

/// The product of some rows with the output channels that `out` covers.
struct Job<'a, 'b, K, U> {
    kernel: K,
    epilogue: Epilogue<'a, 'b>,
    /// Sums of the codes of each group of the rows of `block`, `[groups, rows]`; empty unless scales are per group.
    group_sums: &'a [i32],
    /// The rows to compute.
    block: Range<usize>,
    unpack: PhantomData<U>,
}

/// The offset of the stored weights in the sums.
const fn offset<K: MicroKernel, U: Unpack>() -> i32 {
    match U::STORAGE {
        Storage::Bits8 => K::BYTE_OFFSET,
        storage => storage.offset(),
    }
}

impl<K: MicroKernel, U: Unpack> Job<'_, '_, K, U> {
    /// The rows of the block times all panels.
    #[inline(always)]
    fn run(&mut self) {
        let range = self.epilogue.out.range();
        let panels = range.start / PANEL..range.end.div_ceil(PANEL);
        if self.epilogue.rows.rows() > 1 {
            let kernel = self.kernel;
            return kernel.panels(panels, self);
        }
        for p in panels {
            if self.epilogue.matrix.grouped() {
                self.grouped_row(p);
            } else {
                self.row(p);
            }
        }
    }

    /// Panel `p` of the only row.
    #[inline(always)]
    fn row(&mut self, p: usize) {
        let (matrix, rows) = (self.epilogue.matrix, self.epilogue.rows);
        let acc = self.kernel.row::<U>(U::blocks(matrix.panel(p)), U::codes(rows.padded(0)));
        self.epilogue.write_tile::<K, 1, 1>(self.kernel, &[[acc]], const { offset::<K, U>() }, (0, 1), p);
    }

    /// [`Self::row`] with one scale per group of inputs.
    #[inline(always)]
    fn grouped_row(&mut self, p: usize) {
        let (matrix, rows) = (self.epilogue.matrix, self.epilogue.rows);
        let (a, w) = (U::codes(rows.padded(0)), U::blocks(matrix.panel(p)));
        let mut y = [[PanelOutputs([0.0; PANEL])]];
        let steps = matrix.group_len().div_ceil(U::STORAGE.depth());
        for (group, (a, w)) in a[..w.len()].chunks(steps).zip(w.chunks(steps)).enumerate() {
            let acc = self.kernel.row::<U>(w, a);
            let (sums, zeros) = (&self.group_sums[group..group + 1], &rows.zero_points[..1]);
            let offset = const { offset::<K, U>() };
            self.epilogue.add_group::<K, 1, 1>(
                self.kernel,
                &mut y,
                &[[acc]],
                offset,
                (p, group),
                sums,
                zeros,
            );
        }
        self.epilogue.write_groups(&mut y, (0, 1), p);
    }
}

impl<'a, K: MicroKernel, U: Unpack> Strips for Job<'a, '_, K, U> {
    #[inline(always)]
    fn strip<const NP: usize>(&mut self, panel: usize) {
        let (matrix, kernel, rows): (&'a PackedMatrix, _, _) =
            (self.epilogue.matrix, self.kernel, self.block.clone());
        let panels: [&'a [U::Blocks]; NP] = core::array::from_fn(|j| U::blocks(matrix.panel(panel + j)));
        let steps = panels[0].len();
        let weights = kernel.weights::<U, NP>(panels, rows.len());
        kernel.rows(rows, &mut Strip { job: self, weights, steps, panel });
    }
}

/// `NP` panels from `panel` on, for all rows of a block.
struct Strip<'j, 'a, 'b, K: MicroKernel, U: Unpack, const NP: usize> {
    job: &'j mut Job<'a, 'b, K, U>,
    weights: K::Weights<'a, U, NP>,
    steps: usize,
    panel: usize,
}

impl<K: MicroKernel, U: Unpack, const NP: usize> Tiles for Strip<'_, '_, '_, K, U, NP> {
    #[inline(always)]
    fn tile<const MR: usize>(&mut self, row: usize, rows: usize) {
        let activations = self.job.kernel.activations::<U, MR>(self.job.epilogue.rows, row..row + rows);
        if self.job.epilogue.matrix.grouped() {
            return self.grouped_tile::<MR>(&activations, row, rows);
        }
        let kernel = self.job.kernel;
        // The first rows of a strip wait for memory, unless the strip before has prefetched it.
        let acc = if row == 0 {
            kernel.tile::<U, MR, NP>(&self.weights, &activations, 0..self.steps, Some(self.bytes()))
        } else {
            kernel.tile::<U, MR, NP>(&self.weights, &activations, 0..self.steps, None)
        };
        let offset = const { offset::<K, U>() };
        self.job.epilogue.write_tile::<K, MR, NP>(kernel, &acc, offset, (row, rows), self.panel);
    }
}

impl<K: MicroKernel, U: Unpack, const NP: usize> Strip<'_, '_, '_, K, U, NP> {
    /// Distance of the next strip in memory.
    #[inline(always)]
    fn bytes(&self) -> usize {
        NP * self.steps * size_of::<U::Blocks>()
    }

    /// [`Tiles::tile`] with one scale per group of inputs.
    #[inline(always)]
    fn grouped_tile<const MR: usize>(
        &mut self,
        activations: &K::Activations<'_, U, MR>,
        row: usize,
        rows: usize,
    ) {
        let (kernel, matrix) = (self.job.kernel, self.job.epilogue.matrix);
        let mut y = [[PanelOutputs([0.0; PANEL]); NP]; MR];
        let (groups, steps) = (matrix.groups(), matrix.group_len().div_ceil(U::STORAGE.depth()));
        let block = self.job.block.clone();
        let zeros = &self.job.epilogue.rows.zero_points[row..row + rows];
        // The first rows of a strip wait for memory, unless the strip before has prefetched it.
        let prefetch = (row == block.start).then_some(self.bytes());
        for group in 0..groups {
            let range = group * steps..((group + 1) * steps).min(self.steps);
            let acc = kernel.tile::<U, MR, NP>(&self.weights, activations, range, prefetch);
            let sums = &self.job.group_sums[group * block.len() + row - block.start..][..rows];
            let offset = const { offset::<K, U>() };
            let at = (self.panel, group);
            self.job.epilogue.add_group::<K, MR, NP>(kernel, &mut y, &acc, offset, at, sums, zeros);
        }
        self.job.epilogue.write_groups(&mut y, (row, rows), self.panel);
    }
}

/// Checks shapes; returns whether there is anything to do.
fn check(matrix: &PackedMatrix, rows: &RowsView<'_>, out: &ColumnsMut<'_>) -> bool {
    let (inputs, outputs) = (matrix.cols(), matrix.rows());
    assert_eq!(rows.cols(), inputs, "the matrix takes rows of {inputs} inputs, got {}", rows.cols());
    assert_eq!(out.rows(), rows.rows(), "{} rows need as many output rows, got {}", rows.rows(), out.rows());
    assert!(out.range().end <= outputs, "the matrix has {outputs} outputs, got columns {:?}", out.range());
    !out.range().is_empty() && rows.rows() > 0
}

/// The product of `rows` with the output channels that `out` covers.
///
/// # Panics
/// If the shapes do not match.
#[inline(always)]
pub(crate) fn linear<K: MicroKernel, U: Unpack>(
    kernel: K,
    matrix: &PackedMatrix,
    rows: RowsView<'_>,
    out: &mut ColumnsMut<'_>,
) {
    if !check(matrix, &rows, out) {
        return;
    }
    let depth = U::STORAGE.depth();
    if matrix.groups() > 1 && !matrix.group_len().is_multiple_of(depth) {
        // Groups that cut a step: rare enough for the plain loops.
        return reference::linear(matrix, rows, out);
    }
    let (count, groups) = (rows.rows(), matrix.groups());
    if !matrix.grouped() {
        let epilogue = Epilogue { matrix, rows, out };
        let mut job = Job::<K, U> { kernel, epilogue, group_sums: &[], block: 0..count, unpack: PhantomData };
        return job.run();
    }
    if groups > GROUP_SUMS {
        return reference::linear(matrix, rows, out);
    }
    // Every strip of panels needs the sums of codes: they are computed once, for as many rows as fit.
    let mut sums = [0i32; GROUP_SUMS];
    let padded_len = matrix.group_len().next_multiple_of(depth);
    let fit = GROUP_SUMS / groups;
    let together = if fit > K::ROWS { fit - fit % K::ROWS } else { fit };
    for from in (0..count).step_by(together) {
        let block = from..count.min(from + together);
        for (index, row) in block.clone().enumerate() {
            for (codes, sums) in
                rows.padded(row).chunks(padded_len).zip(sums.chunks_mut(block.len())).take(groups)
            {
                sums[index] = codes.iter().map(|&code| i32::from(code)).sum();
            }
        }
        let epilogue = Epilogue { matrix, rows, out: &mut *out };
        Job::<K, U> { kernel, epilogue, group_sums: &sums, block, unpack: PhantomData }.run();
    }
}
