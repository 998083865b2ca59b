//! Packed weights: the right side of every integer product.
//!
//! Codes lie in blocks of 64 bytes, as `storage.rs` draws them. A panel is 16 output channels over all inputs; panels
//! follow each other. Missing channels and inputs hold code 0.

use crate::arena::{ArenaSlice, WeightArena};
use crate::block::{Block, PANEL};
use crate::error::MatrixError;
use crate::panels::PanelSource;
use crate::storage::Storage;
use alloc::sync::Arc;
use alloc::vec;
use alloc::vec::Vec;
use core::mem::MaybeUninit;
use squat_quant::pack::{pack_bits, packed_len, unpack_bits};
use squat_quant::{Granularity, WeightScheme};

/// Maximum number of inputs of a product: |code - zero point| <= 255 times |weight| <= 128 times this stays below 2^31.
pub const MAX_COLS: usize = 65536;

/// Integer weights `[rows, cols]` (`[out, in]`) with scales, sums and an optional bias, laid out for the kernels.
#[derive(Clone, Debug)]
pub struct PackedMatrix {
    rows: usize,
    cols: usize,
    scheme: WeightScheme,
    storage: Storage,
    /// Blocks of one panel.
    pub(crate) blocks_per_panel: usize,
    /// Groups of inputs with a scale of their own (1 for per-tensor and per-channel).
    groups: usize,
    /// `[panels, blocks_per_panel]`
    blocks: ArenaSlice<Block>,
    /// `[panels, groups, 16]`
    scales: Vec<[f32; PANEL]>,
    /// Sums of codes, `[panels, groups, 16]`
    sums: Vec<[i32; PANEL]>,
    /// `[panels, 16]`, or empty
    bias: Vec<[f32; PANEL]>,
}

impl PackedMatrix {
    /// Packs row-major codes `[rows, cols]`; `scales` as [`WeightScheme::scale_index`] orders them.
    ///
    /// # Errors
    /// Lengths that contradict the shape, codes outside the width, non-finite or negative scales, too many columns.
    pub fn from_codes(
        rows: usize,
        cols: usize,
        scheme: WeightScheme,
        codes: &[i8],
        scales: &[f32],
    ) -> Result<Self, MatrixError> {
        if codes.len() != rows * cols {
            return Err(MatrixError::Codes(rows * cols, codes.len()));
        }
        Self::from_rows(None, rows, cols, scheme, scales, |row, out: &mut [i8]| {
            out.copy_from_slice(&codes[row * cols..(row + 1) * cols]);
            Ok(())
        })
    }

    /// Packs rows that `fill(row, codes)` writes one at a time, so that a packed file is never held twice. The blocks are
    /// placed in `arena`, if there is one.
    ///
    /// # Errors
    /// What [`Self::from_codes`] refuses, and whatever `fill` returns.
    pub fn from_rows<E: From<MatrixError>>(
        arena: Option<&Arc<WeightArena>>,
        rows: usize,
        cols: usize,
        scheme: WeightScheme,
        scales: &[f32],
        mut fill: impl FnMut(usize, &mut [i8]) -> Result<(), E>,
    ) -> Result<Self, E> {
        let mut matrix = Self::shaped(rows, cols, scheme, scales)?;
        let blocks = rows.div_ceil(PANEL) * matrix.blocks_per_panel;
        let zeros = matrix.storage.zero_bytes();
        matrix.blocks = ArenaSlice::new(arena, blocks, zeros.iter().map(|&byte| Block([byte; 64])).cycle());
        let mut row_codes = vec![0i8; cols];
        for row in 0..rows {
            fill(row, &mut row_codes)?;
            matrix.set_row(row, &row_codes)?;
        }
        Ok(matrix)
    }

    /// Quantizes row-major weights `[rows, cols]` with given scales and packs them.
    ///
    /// # Errors
    /// What [`Self::from_codes`] refuses.
    pub fn quantize(
        rows: usize,
        cols: usize,
        scheme: WeightScheme,
        weight: &[f32],
        scales: &[f32],
    ) -> Result<Self, MatrixError> {
        Self::quantize_by(rows, cols, scheme, weight, scales, squat_quant::affine::quantize_row)
    }

    /// [`Self::quantize`] with a compiled form of [`squat_quant::affine::quantize_row`].
    pub(crate) fn quantize_by(
        rows: usize,
        cols: usize,
        scheme: WeightScheme,
        weight: &[f32],
        scales: &[f32],
        quantize_row: impl Fn(&[f32], squat_quant::Affine, &mut [i8]),
    ) -> Result<Self, MatrixError> {
        if weight.len() != rows * cols {
            return Err(MatrixError::Codes(rows * cols, weight.len()));
        }
        let range = scheme.bits.range();
        Self::from_rows(None, rows, cols, scheme, scales, |row, codes: &mut [i8]| {
            let group = scheme.group_len(cols).max(1);
            let values = &weight[row * cols..(row + 1) * cols];
            for (index, (values, codes)) in values.chunks(group).zip(codes.chunks_mut(group)).enumerate() {
                let scale = scales[scheme.scale_index(row, index * group, cols)];
                quantize_row(values, squat_quant::Affine::symmetric(scale, range), codes);
            }
            Ok(())
        })
    }

    /// [`crate::Kernels::matrix_from_words`], given the compiled form of [`crate::panels::fill_panel`].
    pub(crate) fn from_words_by<'a>(
        fill_panel: impl Fn(&PanelSource<'_>, &mut [MaybeUninit<Block>], &mut [[i32; PANEL]]) -> bool,
        arena: Option<&Arc<WeightArena>>,
        rows: usize,
        cols: usize,
        scheme: WeightScheme,
        scales: &[f32],
        words: impl Fn(usize) -> &'a [i32],
    ) -> Result<Self, MatrixError> {
        let bits = scheme.bits.storage_bits();
        let per_row = (cols * bits as usize).div_ceil(32);
        for row in 0..rows {
            let got = words(row).len();
            if got != per_row {
                return Err(MatrixError::Words(row, per_row, got));
            }
        }
        let mut matrix = Self::shaped(rows, cols, scheme, scales)?;
        let depth = matrix.storage.depth();
        let cut = matrix.groups > 1 && !matrix.group_len().is_multiple_of(depth);
        if cols == 0 || cut || matrix.storage.bits() != bits as usize {
            let mut bytes = Vec::with_capacity(per_row * 4);
            return Self::from_rows(arena, rows, cols, scheme, scales, |row, codes: &mut [i8]| {
                bytes.clear();
                bytes.extend(words(row).iter().flat_map(|word| word.to_le_bytes()));
                unpack_bits(&bytes[..packed_len(cols, bits)], bits, codes)
                    .map_err(|_| MatrixError::Words(row, per_row, words(row).len()))
            });
        }
        let steps_per_group =
            if matrix.groups > 1 { matrix.group_len() / depth } else { cols.div_ceil(depth) };
        // Code 0 in every field, for the missing channels of the last panel.
        let mut bytes = vec![0u8; per_row * 4];
        pack_bits(&vec![0; cols], bits, &mut bytes[..packed_len(cols, bits)])
            .map_err(|_| MatrixError::Words(rows, per_row, per_row))?;
        let word = |quad: &[u8; 4]| i32::from_le_bytes(*quad);
        let zeros: Vec<i32> = bytes.as_chunks().0.iter().map(word).collect();
        let panels = rows.div_ceil(PANEL);
        let count = panels * matrix.blocks_per_panel;
        let mut blocks = ArenaSlice::uninit(arena, count);
        let sums = matrix.sums.chunks_exact_mut(matrix.groups);
        for (panel, (blocks, sums)) in blocks.chunks_exact_mut(matrix.blocks_per_panel).zip(sums).enumerate()
        {
            let row = |lane: usize| panel * PANEL + lane;
            let source = PanelSource {
                bits: scheme.bits,
                cols,
                steps_per_group,
                rows: core::array::from_fn(|lane| if row(lane) < rows { words(row(lane)) } else { &zeros }),
            };
            if !fill_panel(&source, blocks, sums) {
                return Err(invalid_code(&source, panel * PANEL));
            }
        }
        // SAFETY: `fill_panel` has written every block of every panel.
        matrix.blocks = unsafe { blocks.assume_init() };
        Ok(matrix)
    }

    /// Bytes of a [`WeightArena`] that the blocks of such a matrix take; `None` if they exceed the address space.
    pub fn bytes_needed(rows: usize, cols: usize, scheme: WeightScheme) -> Option<usize> {
        let per_panel = Self::blocks_per_panel(cols, Storage::of(scheme, cols));
        WeightArena::bytes_needed::<Block>(rows.div_ceil(PANEL).checked_mul(per_panel)?)
    }

    /// Blocks of 16 channels over all inputs.
    fn blocks_per_panel(cols: usize, storage: Storage) -> usize {
        cols.div_ceil(storage.depth()) * storage.blocks()
    }

    /// Everything except the blocks; sums are 0.
    fn shaped(rows: usize, cols: usize, scheme: WeightScheme, scales: &[f32]) -> Result<Self, MatrixError> {
        if cols > MAX_COLS {
            return Err(MatrixError::Columns(MAX_COLS, cols));
        }
        let expected = scheme.num_scales(rows, cols);
        if scales.len() != expected {
            return Err(MatrixError::Scales(expected, scales.len()));
        }
        if let Some(index) = scales.iter().position(|s| !(s.is_finite() && *s >= 0.0)) {
            return Err(MatrixError::Scale(index, scales[index]));
        }
        let storage = Storage::of(scheme, cols);
        let panels = rows.div_ceil(PANEL);
        let blocks_per_panel = Self::blocks_per_panel(cols, storage);
        let groups = scheme.scales_per_row(cols).max(1);
        let mut laid_out = vec![[0f32; PANEL]; panels * groups];
        for row in 0..rows {
            for group in 0..groups {
                let index = match scheme.scales_per_row(cols) {
                    0 => 0,
                    n => row * n + group,
                };
                laid_out[(row / PANEL) * groups + group][row % PANEL] =
                    scales.get(index).copied().unwrap_or(0.0);
            }
        }
        Ok(Self {
            rows,
            cols,
            scheme,
            storage,
            blocks_per_panel,
            groups,
            blocks: ArenaSlice::new(None, 0, []),
            scales: laid_out,
            sums: vec![[0; PANEL]; panels * groups],
            bias: Vec::new(),
        })
    }

    fn set_row(&mut self, row: usize, codes: &[i8]) -> Result<(), MatrixError> {
        let range = self.scheme.bits.range();
        // One subtraction and comparison check both ends; without an early exit the loop vectorises.
        let (least, span) = (range.min as i8, (range.max - range.min) as u8);
        let mut outside = false;
        for &code in codes {
            outside |= code.wrapping_sub(least) as u8 > span;
        }
        if outside {
            let at = codes.iter().position(|&code| !range.contains(i32::from(code))).unwrap_or(0);
            return Err(MatrixError::Code(row, at, codes[at], self.scheme.bits));
        }
        let (panel, lane) = (row / PANEL, row % PANEL);
        let blocks = &mut self.blocks[panel * self.blocks_per_panel..(panel + 1) * self.blocks_per_panel];
        self.storage.store_row(blocks, lane, codes);
        let group_len = self.scheme.group_len(self.cols).max(1);
        for (group, codes) in codes.chunks(group_len).enumerate() {
            self.sums[panel * self.groups + group][lane] = codes.iter().map(|&c| i32::from(c)).sum();
        }
        Ok(())
    }

    /// Adds a bias, one value per row, which a product adds last.
    ///
    /// # Errors
    /// [`MatrixError::Bias`] if its length is not [`Self::rows`].
    pub fn with_bias(mut self, bias: &[f32]) -> Result<Self, MatrixError> {
        if bias.len() != self.rows {
            return Err(MatrixError::Bias(self.rows, bias.len()));
        }
        self.bias = vec![[0.0; PANEL]; self.rows.div_ceil(PANEL)];
        for (row, &value) in bias.iter().enumerate() {
            self.bias[row / PANEL][row % PANEL] = value;
        }
        Ok(self)
    }

    /// Output channels.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Inputs.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Width and granularity.
    pub fn scheme(&self) -> WeightScheme {
        self.scheme
    }

    /// The layout of codes in blocks.
    pub fn storage(&self) -> Storage {
        self.storage
    }

    /// Bytes held: codes, scales, sums, bias.
    pub fn bytes(&self) -> usize {
        self.blocks.len() * 64 + (self.scales.len() + self.sums.len() + self.bias.len()) * PANEL * 4
    }

    /// Whether the per-group order of float operations applies.
    pub(crate) fn grouped(&self) -> bool {
        matches!(self.scheme.granularity, Granularity::PerGroup(_))
    }

    /// Groups of inputs, at least 1.
    pub(crate) fn groups(&self) -> usize {
        self.groups
    }

    /// Inputs of a group.
    pub(crate) fn group_len(&self) -> usize {
        self.scheme.group_len(self.cols).max(1)
    }

    /// Blocks of a panel.
    #[inline(always)]
    pub(crate) fn panel(&self, panel: usize) -> &[Block] {
        &self.blocks[panel * self.blocks_per_panel..(panel + 1) * self.blocks_per_panel]
    }

    #[inline(always)]
    pub(crate) fn panel_scales(&self, panel: usize, group: usize) -> &[f32; PANEL] {
        &self.scales[panel * self.groups + group]
    }

    #[inline(always)]
    pub(crate) fn panel_sums(&self, panel: usize, group: usize) -> &[i32; PANEL] {
        &self.sums[panel * self.groups + group]
    }

    /// Scales of `NP` panels of a matrix without groups.
    #[inline(always)]
    pub(crate) fn panels_scales<const NP: usize>(&self, panel: usize) -> &[[f32; PANEL]; NP] {
        self.scales[panel..].first_chunk().expect("panels of the matrix")
    }

    /// Sums of codes of `NP` panels of a matrix without groups.
    #[inline(always)]
    pub(crate) fn panels_sums<const NP: usize>(&self, panel: usize) -> &[[i32; PANEL]; NP] {
        self.sums[panel..].first_chunk().expect("panels of the matrix")
    }

    #[inline(always)]
    pub(crate) fn panel_bias(&self, panel: usize) -> Option<&[f32; PANEL]> {
        self.bias.get(panel)
    }

    /// The bias of a row, if the matrix has one.
    pub fn bias(&self, row: usize) -> Option<f32> {
        self.bias.get(row / PANEL).map(|b| b[row % PANEL])
    }

    /// Code at `[row, col]`.
    ///
    /// # Panics
    /// If the position is outside the matrix.
    pub fn code(&self, row: usize, col: usize) -> i8 {
        assert!(row < self.rows && col < self.cols, "[{row}, {col}] of [{}, {}]", self.rows, self.cols);
        let depth = self.storage.depth();
        let blocks = &self.panel(row / PANEL)[col / depth * self.storage.blocks()..];
        self.storage.code(blocks, row % PANEL, col % depth) as i8
    }

    /// Scale of the element `[row, col]`.
    ///
    /// # Panics
    /// If the position is outside the matrix.
    pub fn scale(&self, row: usize, col: usize) -> f32 {
        assert!(row < self.rows && col < self.cols, "[{row}, {col}] of [{}, {}]", self.rows, self.cols);
        let group = if self.grouped() { col / self.group_len() } else { 0 };
        self.panel_scales(row / PANEL, group)[row % PANEL]
    }

    /// Scale and sum of the codes of each group of each row, in order: a fingerprint of the matrix, independent of its
    /// layout.
    pub fn row_marks(&self) -> impl Iterator<Item = (f32, i32)> {
        (0..self.rows * self.groups).map(|index| {
            let (row, group) = (index / self.groups, index % self.groups);
            let (panel, lane) = (row / PANEL, row % PANEL);
            (self.panel_scales(panel, group)[lane], self.panel_sums(panel, group)[lane])
        })
    }

    /// Writes `scale * code` of a row: the embedding lookup.
    ///
    /// # Panics
    /// If `row` is not below [`Self::rows`] or the length of `out` is not [`Self::cols`].
    pub fn dequantize_row(&self, row: usize, out: &mut [f32]) {
        assert!(row < self.rows, "row {row} of {}", self.rows);
        assert_eq!(out.len(), self.cols, "a row has {} values, the buffer {}", self.cols, out.len());
        let (panel, lane) = (row / PANEL, row % PANEL);
        let storage = self.storage;
        let group_len = self.group_len();
        let steps = self.panel(panel).chunks_exact(storage.blocks());
        for (blocks, out) in steps.zip(out.chunks_mut(storage.depth())) {
            for (i, value) in out.iter_mut().enumerate() {
                *value = storage.code(blocks, lane, i) as f32;
            }
        }
        for (group, values) in out.chunks_mut(group_len).enumerate() {
            let scale = self.panel_scales(panel, if self.grouped() { group } else { 0 })[lane];
            for value in values {
                *value *= scale;
            }
        }
    }
}

/// The error for the first code outside the width in a panel whose first row is `first`.
fn invalid_code(source: &PanelSource<'_>, first: usize) -> MatrixError {
    let (bits, range) = (source.bits.storage_bits(), source.bits.range());
    let mut codes = vec![0i8; source.cols];
    for (lane, row) in source.rows.iter().enumerate() {
        let bytes: Vec<u8> = row.iter().flat_map(|word| word.to_le_bytes()).collect();
        if unpack_bits(&bytes[..packed_len(source.cols, bits)], bits, &mut codes).is_ok()
            && let Some(col) = codes.iter().position(|&code| !range.contains(i32::from(code)))
        {
            return MatrixError::Code(first + lane, col, codes[col], source.bits);
        }
    }
    MatrixError::Code(first, 0, range.min as i8, source.bits)
}

#[cfg(test)]
mod tests;
