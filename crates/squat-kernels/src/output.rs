//! A view of some columns of an output matrix: several threads can write disjoint columns of the same rows.

use crate::block::PANEL;
use core::marker::PhantomData;
use core::ops::Range;

/// Columns `range` of a row-major f32 matrix `[rows, stride]`, exclusively borrowed.
///
/// Splitting by columns yields views of the same rows that never overlap, so each can go to a thread of its own:
///
/// ```
/// use squat_kernels::ColumnsMut;
/// let mut y = vec![0.0; 2 * 5];
/// let (mut left, mut right) = ColumnsMut::new(&mut y, 2, 5).split_at(3);
/// std::thread::scope(|scope| {
///     scope.spawn(move || left.row(1).fill(1.0));
///     scope.spawn(move || right.row(0).fill(2.0));
/// });
/// assert_eq!(y, [0.0, 0.0, 0.0, 2.0, 2.0, 1.0, 1.0, 1.0, 0.0, 0.0]);
/// ```
pub struct ColumnsMut<'a> {
    base: *mut f32,
    rows: usize,
    stride: usize,
    start: usize,
    end: usize,
    borrow: PhantomData<&'a mut [f32]>,
}

/// Whole panels of some rows of a [`ColumnsMut`], exclusively borrowed: bounds are checked once for all writes.
pub(crate) struct TileMut<'a, const NP: usize> {
    base: *mut f32,
    rows: usize,
    stride: usize,
    borrow: PhantomData<&'a mut [f32]>,
}

impl<const NP: usize> TileMut<'_, NP> {
    /// Writes panel `j` of row `i`.
    #[inline(always)]
    pub(crate) fn set(&mut self, i: usize, j: usize, y: &[f32; PANEL]) {
        assert!(i < self.rows && j < NP, "row {i}, panel {j} of a tile of {} x {NP}", self.rows);
        // SAFETY: construction checked that all rows and panels lie inside the borrowed view.
        unsafe { self.base.add(i * self.stride + j * PANEL).cast::<[f32; PANEL]>().write(*y) }
    }
}

// SAFETY: a view is an exclusive borrow of its columns; no two views share an element, and f32 is Send.
unsafe impl Send for ColumnsMut<'_> {}

impl<'a> ColumnsMut<'a> {
    /// All columns of a dense matrix `[rows, cols]`.
    ///
    /// # Panics
    /// If `data` has fewer than `rows * cols` elements.
    pub fn new(data: &'a mut [f32], rows: usize, cols: usize) -> Self {
        Self::with_stride(data, rows, cols, cols)
    }

    /// The first `cols` columns of a matrix whose rows start `stride` elements apart.
    ///
    /// # Panics
    /// If `cols > stride`, or `data` ends before the last row does.
    pub fn with_stride(data: &'a mut [f32], rows: usize, cols: usize, stride: usize) -> Self {
        assert!(cols <= stride, "expected a row stride of at least {cols}, got {stride}");
        let needed = if rows == 0 { 0 } else { (rows - 1) * stride + cols };
        assert!(data.len() >= needed, "expected an output of {needed} elements, got {}", data.len());
        Self { base: data.as_mut_ptr(), rows, stride, start: 0, end: cols, borrow: PhantomData }
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// The columns this view may write, as indices into the whole matrix.
    pub fn range(&self) -> Range<usize> {
        self.start..self.end
    }

    /// The view's part of row `row`: element 0 is column `range().start`.
    ///
    /// # Panics
    /// If `row` is not below [`Self::rows`].
    #[inline(always)]
    pub fn row(&mut self, row: usize) -> &mut [f32] {
        assert!(row < self.rows, "row {row} of {}", self.rows);
        // SAFETY: construction checked that row * stride + end lies inside the borrowed slice, splits keep
        // start <= end inside it and disjoint from other views, and the result borrows self mutably.
        unsafe {
            core::slice::from_raw_parts_mut(
                self.base.add(row * self.stride + self.start),
                self.end - self.start,
            )
        }
    }

    /// Rows `row..row + rows` of the `NP` panels of channels from `column` on (an index into the whole matrix); `None`
    /// unless the view contains all of them.
    #[inline(always)]
    pub(crate) fn tile<const NP: usize>(
        &mut self,
        row: usize,
        rows: usize,
        column: usize,
    ) -> Option<TileMut<'_, NP>> {
        if row + rows > self.rows || column < self.start || column + NP * PANEL > self.end {
            return None;
        }
        // SAFETY: row and column were just checked.
        let base = unsafe { self.base.add(row * self.stride + column) };
        Some(TileMut { base, rows, stride: self.stride, borrow: PhantomData })
    }

    /// A shorter borrow of the same view.
    pub fn reborrow(&mut self) -> ColumnsMut<'_> {
        ColumnsMut { borrow: PhantomData, ..*self }
    }

    /// Splits into columns below `column` (an index into the whole matrix) and the rest. A column outside the range is
    /// clamped to it.
    pub fn split_at(self, column: usize) -> (Self, Self) {
        let column = column.max(self.start).min(self.end);
        (Self { end: column, ..self }, Self { start: column, ..self })
    }

    /// The columns of part `index`, as a range into the whole matrix, if the columns are split among `parts` workers in
    /// multiples of `align`. The parts cover the range in order; the last ones may be empty.
    pub fn part_range(&self, index: usize, parts: usize, align: usize) -> Range<usize> {
        let (align, parts) = (align.max(1), parts.max(1));
        let units = (self.end - self.start).div_ceil(align);
        let cut = |i: usize| (self.start + (units * i.min(parts) / parts) * align).min(self.end);
        cut(index)..cut(index + 1)
    }

    /// Parts for `workers` that each take the next one when they are free; all but the last are multiples of `align`
    /// columns. Large parts come first, so that there are few, and ever smaller ones towards the end, so that all workers
    /// finish together whatever their speed (guided self-scheduling).
    pub fn split_guided(self, workers: usize, align: usize) -> impl Iterator<Item = ColumnsMut<'a>> {
        let mut rest = Some(self).filter(|whole| !whole.range().is_empty());
        core::iter::from_fn(move || {
            let whole = rest.take()?;
            let units = whole.range().len().div_ceil(align.max(1));
            let take = units.div_ceil(2 * workers.max(1)) * align.max(1);
            let end = whole.range().start.saturating_add(take);
            let (part, tail) = whole.split_at(end);
            rest = Some(tail).filter(|tail| !tail.range().is_empty());
            Some(part)
        })
    }

    /// Splits the columns into `parts` parts; all but the last are multiples of `align` columns.
    pub fn split_even(self, parts: usize, align: usize) -> impl Iterator<Item = ColumnsMut<'a>> {
        let mut rest = Some(self);
        let mut index = 0;
        core::iter::from_fn(move || {
            let whole = rest.take()?;
            let remaining = parts.max(1) - index;
            index += 1;
            if remaining == 1 {
                return Some(whole);
            }
            let end = whole.part_range(0, remaining, align).end;
            let (part, tail) = whole.split_at(end);
            rest = Some(tail);
            Some(part)
        })
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use std::vec;
    use std::vec::Vec;

    #[test]
    fn parts_cover_every_column_once() {
        for cols in [0, 1, 15, 16, 17, 70, 128] {
            for parts in 1..6 {
                let mut y = vec![0f32; 3 * cols];
                let mut ends = Vec::new();
                for (i, mut part) in ColumnsMut::new(&mut y, 3, cols).split_even(parts, 16).enumerate() {
                    ends.push(part.range());
                    for row in 0..3 {
                        for v in part.row(row) {
                            *v += (i + 1) as f32;
                        }
                    }
                }
                assert_eq!(ends.len(), parts);
                assert!(ends.windows(2).all(|w| w[0].end == w[1].start));
                assert_eq!((ends[0].start, ends[parts - 1].end), (0, cols));
                assert!(y.iter().all(|&v| v >= 1.0 && v <= parts as f32));
            }
        }
    }

    #[test]
    fn guided_parts_cover_every_column_once_and_shrink() {
        for cols in [0, 1, 15, 16, 17, 70, 128, 1000] {
            for workers in 1..5 {
                let mut y = vec![0f32; 2 * cols];
                let mut widths = Vec::new();
                for mut part in ColumnsMut::new(&mut y, 2, cols).split_guided(workers, 16) {
                    assert!(part.range().start.is_multiple_of(16));
                    widths.push(part.range().len());
                    (0..2).for_each(|row| part.row(row).iter_mut().for_each(|v| *v += 1.0));
                }
                assert!(y.iter().all(|&v| v == 1.0), "{cols} {workers}");
                assert!(widths.windows(2).all(|w| w[0] >= w[1]) && !widths.contains(&0), "{widths:?}");
                assert!(widths.last().is_none_or(|&last| last <= 16), "{widths:?}");
            }
        }
    }

    #[test]
    #[should_panic(expected = "expected an output of 6 elements, got 5")]
    fn short_outputs_are_refused() {
        let _ = ColumnsMut::new(&mut [0.0; 5], 2, 3);
    }
}
