//! Keys and values of one head, each row at the width it was written at, laid out for the products.
//!
//! Rows of 8 bits are stored in one array, rows of 4 bits in another, each in the order of their positions. A block is 64
//! bytes, 16 lanes of four:
//!
//! * **Keys**: a tile is 16 rows. In block `i` of a tile, lane `r` holds codes `4 i ..+ 4` of row `r`, with 128 added; at
//!   4 bits, codes `8 i ..+ 4` in the low halves of the bytes and `8 i + 4 ..+ 4` in the high halves, with 8 added. The
//!   codes of a query are broadcast, and each lane sums one position: a vector of scores needs no reduction.
//! * **Values**: a group is 4 rows, or 8 rows of 4 bits. In block `p` of a group, lane `c` holds column `16 p + c` of
//!   rows 0..4, signed; at 4 bits, of rows 0..4 in the low halves and of rows 4..8 in the high halves, with 8 added. The
//!   codes of four probabilities are broadcast, and each lane sums one column of the output.

use crate::block::Block;
use crate::error::CacheError;
use crate::prefetch::prefetch;
use crate::rows::{CodeRow, RowsView, StaticAffines};
use alloc::vec::Vec;
use core::ops::Range;
use squat_quant::ActBits;

/// Maximum number of positions of a head: sums of 255 * 255 over them stay below 2^31.
pub const MAX_CONTEXT: usize = 32768;

/// Rows in a tile of keys, and positions whose widths are recorded in one word.
pub(crate) const TILE: usize = 16;

/// The source of the scales, and how probabilities are quantized.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum AttentionScheme {
    /// Every row has its own scale. Value scales are folded into the probabilities, which are then quantized to 8 bits
    /// relative to their largest, separately for each width of the values.
    Dynamic,
    /// Learned quantizers per width; probabilities with the fixed scale `1 / (2^b - 1)`.
    Static {
        /// Quantizers of keys.
        keys: StaticAffines,
        /// Quantizers of values.
        values: StaticAffines,
        /// Bits of probabilities; [`KvHead::new`] clamps them to 1..=8.
        probability_bits: u32,
    },
}

/// Codes of a row in one lane of a key block; also the number of rows of a value group.
pub(crate) const fn depth(bits: ActBits) -> usize {
    match bits {
        ActBits::A8 => 4,
        ActBits::A4 => 8,
    }
}

/// The offset added to stored keys, and to stored values of 4 bits.
pub(crate) const fn offset(bits: ActBits) -> i32 {
    match bits {
        ActBits::A8 => 128,
        ActBits::A4 => 8,
    }
}

/// The cached rows of one width.
#[derive(Clone, Debug, Default)]
pub(crate) struct WidthRows {
    /// Rows held. The buffers below hold whole tiles; beyond the last row they contain stale rows, or zeros.
    pub count: usize,
    /// `[tiles, dim / depth]`
    pub keys: Vec<Block>,
    /// `[groups, dim / 16]`
    pub values: Vec<Block>,
    /// One per row if the scheme is dynamic.
    pub key_scales: Vec<f32>,
    /// One per row if the scheme is dynamic.
    pub value_scales: Vec<f32>,
    /// Sum of the codes of each key if the scheme is static.
    pub key_sums: Vec<i32>,
}

/// Stores a 4-bit code in one half of a byte.
#[inline(always)]
fn put_half(byte: &mut u8, high: bool, code: i8) {
    let code = (code + 8) as u8;
    *byte = if high { (*byte & 0x0f) | (code << 4) } else { (*byte & 0xf0) | code };
}

/// Four codes with 128 added, as stored in a block of keys.
#[inline(always)]
fn bytes_of(codes: &[i8; 4]) -> [u8; 4] {
    codes.map(|code| (code as u8) ^ 0x80)
}

/// Eight 4-bit codes with 8 added, as stored in a block of keys.
#[inline(always)]
fn halves_of(codes: &[i8; 8]) -> [u8; 4] {
    core::array::from_fn(|i| ((codes[i] + 8) as u8 & 15) | ((codes[i + 4] + 8) as u8) << 4)
}

/// The 16 columns of a value from `first` on, padded with zeros.
#[inline(always)]
fn from_column(value: &[i8], first: usize) -> [i8; TILE] {
    let rest = &value[first..];
    rest.first_chunk().copied().unwrap_or_else(|| {
        let mut columns = [0; TILE];
        columns[..rest.len()].copy_from_slice(rest);
        columns
    })
}

impl WidthRows {
    /// Appends rows `range`, which all have width `bits`.
    fn push<'a>(
        &mut self,
        bits: ActBits,
        dim: usize,
        dynamic: bool,
        key: &impl Fn(usize) -> CodeRow<'a>,
        value: &impl Fn(usize) -> CodeRow<'a>,
        range: Range<usize>,
    ) {
        self.grow(bits, range.len(), dim, dynamic);
        let mut row = range.start;
        while row < range.end {
            // The values of a whole group are written at once.
            let whole = self.count.is_multiple_of(depth(bits)) && range.end - row >= depth(bits);
            let count = if whole { depth(bits) } else { 1 };
            match bits {
                ActBits::A8 if whole => self.put_group_wide(core::array::from_fn(|i| value(row + i).codes)),
                ActBits::A4 if whole => self.put_group_narrow(core::array::from_fn(|i| value(row + i).codes)),
                _ => self.put_value(bits, value(row).codes),
            }
            for (key, value) in (row..row + count).map(|row| (key(row), value(row))) {
                self.put_key(bits, key.codes);
                if dynamic {
                    self.key_scales[self.count] = key.scale;
                    self.value_scales[self.count] = value.scale;
                } else {
                    self.key_sums[self.count] = key.sum;
                }
                self.count += 1;
            }
            row += count;
        }
    }

    /// Writes the key of row `count`.
    #[inline(always)]
    fn put_key(&mut self, bits: ActBits, key: &[i8]) {
        let (depth, lane) = (depth(bits), self.count % TILE);
        let blocks = &mut self.keys[self.count / TILE * key.len().div_ceil(depth)..];
        let quads = blocks.iter_mut().map(|block| &mut block.0.as_chunks_mut::<4>().0[lane]);
        match bits {
            ActBits::A8 => {
                let (whole, rest) = key.as_chunks();
                let mut last = [0; 4];
                last[..rest.len()].copy_from_slice(rest);
                let last = Some(&last).filter(|_| !rest.is_empty());
                quads.zip(whole.iter().chain(last)).for_each(|(quad, codes)| *quad = bytes_of(codes));
            }
            ActBits::A4 => {
                let (whole, rest) = key.as_chunks();
                let mut last = [0; 8];
                last[..rest.len()].copy_from_slice(rest);
                let last = Some(&last).filter(|_| !rest.is_empty());
                quads.zip(whole.iter().chain(last)).for_each(|(quad, codes)| *quad = halves_of(codes));
            }
        }
    }

    /// Writes the value of row `count`.
    fn put_value(&mut self, bits: ActBits, value: &[i8]) {
        let row = self.count;
        let (at, high) = (row % 4, row % 8 >= 4);
        let blocks = &mut self.values[row / depth(bits) * value.len().div_ceil(TILE)..];
        for (block, codes) in blocks.iter_mut().zip(value.chunks(TILE)) {
            for (quad, &code) in block.0.as_chunks_mut::<4>().0.iter_mut().zip(codes) {
                match bits {
                    ActBits::A8 => quad[at] = code as u8,
                    ActBits::A4 => put_half(&mut quad[at], high, code),
                }
            }
        }
    }

    /// Writes the values of rows `count..count + 4`, a whole group of 8 bits.
    fn put_group_wide(&mut self, values: [&[i8]; 4]) {
        let dim = values[0].len();
        let blocks = &mut self.values[self.count / 4 * dim.div_ceil(TILE)..];
        for (block, first) in blocks.iter_mut().zip((0..dim).step_by(TILE)) {
            let rows = values.map(|value| from_column(value, first));
            let word = |c: usize, row: usize| u32::from(rows[row][c] as u8) << (8 * row);
            let words = core::array::from_fn(|c| word(c, 0) | word(c, 1) | word(c, 2) | word(c, 3));
            *block = Block::from_lanes(words);
        }
    }

    /// Writes the values of rows `count..count + 8`, a whole group of 4 bits.
    fn put_group_narrow(&mut self, values: [&[i8]; 8]) {
        let dim = values[0].len();
        let blocks = &mut self.values[self.count / 8 * dim.div_ceil(TILE)..];
        for (block, first) in blocks.iter_mut().zip((0..dim).step_by(TILE)) {
            let rows = values.map(|value| from_column(value, first));
            let half = |c: usize, row: usize| u32::from((rows[row][c] as u8).wrapping_add(8) & 15);
            let byte = |c: usize, row: usize| (half(c, row) | half(c, row + 4) << 4) << (8 * row);
            let words = core::array::from_fn(|c| byte(c, 0) | byte(c, 1) | byte(c, 2) | byte(c, 3));
            *block = Block::from_lanes(words);
        }
    }

    /// Grows the buffers for `rows` more rows.
    fn grow(&mut self, bits: ActBits, rows: usize, dim: usize, dynamic: bool) {
        let tiles = (self.count + rows).div_ceil(TILE);
        let (keys, values) = blocks_of_tile(bits, dim);
        if self.keys.len() < tiles * keys {
            self.keys.resize(tiles * keys, Block([0; 64]));
        }
        if self.values.len() < tiles * values {
            self.values.resize(tiles * values, Block([0; 64]));
        }
        let (scales, sums) = if dynamic { (tiles * TILE, 0) } else { (0, tiles * TILE) };
        if self.key_scales.len() < scales {
            self.key_scales.resize(scales, 0.0);
            self.value_scales.resize(scales, 0.0);
        }
        if self.key_sums.len() < sums {
            self.key_sums.resize(sums, 0);
        }
    }
}

/// Blocks of keys and of values per 16 rows.
fn blocks_of_tile(bits: ActBits, dim: usize) -> (usize, usize) {
    (dim.div_ceil(depth(bits)), TILE / depth(bits) * dim.div_ceil(TILE))
}

/// Blocks of keys and of values that [`KvHead::prefetch`] prefetches; attention itself prefetches those that follow.
const FIRST_BLOCKS: usize = 64;

/// The cache of one key-value head.
#[derive(Clone, Debug)]
pub struct KvHead {
    scheme: AttentionScheme,
    head_dim: usize,
    len: usize,
    /// By width ([`ActBits::index`]).
    widths: [WidthRows; 2],
    /// One word per 16 positions: bit `i` is set if the row of position `i` has 4 bits.
    narrow: Vec<u16>,
    /// Per word of `narrow`: rows of 4 bits before it.
    narrow_before: Vec<u32>,
}

impl KvHead {
    /// An empty cache for heads of `head_dim` values.
    pub fn new(head_dim: usize, mut scheme: AttentionScheme) -> Self {
        if let AttentionScheme::Static { probability_bits, .. } = &mut scheme {
            *probability_bits = (*probability_bits).max(1).min(8);
        }
        Self {
            scheme,
            head_dim,
            len: 0,
            widths: [WidthRows::default(), WidthRows::default()],
            narrow: Vec::new(),
            narrow_before: Vec::new(),
        }
    }

    fn dynamic(&self) -> bool {
        self.scheme == AttentionScheme::Dynamic
    }

    /// Reserves memory for `rows` more positions of width `bits`, so that appending them does not allocate.
    pub fn reserve(&mut self, rows: usize, bits: ActBits) {
        // They may start and end inside a tile.
        let tiles = rows.div_ceil(TILE) + 1;
        let (keys, values) = blocks_of_tile(bits, self.head_dim);
        let dynamic = self.dynamic();
        let stored = &mut self.widths[bits.index()];
        stored.keys.reserve(tiles * keys);
        stored.values.reserve(tiles * values);
        if dynamic {
            stored.key_scales.reserve(tiles * TILE);
            stored.value_scales.reserve(tiles * TILE);
        } else {
            stored.key_sums.reserve(tiles * TILE);
        }
        self.narrow.reserve(tiles);
        self.narrow_before.reserve(tiles);
    }

    fn check(&self, row: &CodeRow<'_>) -> Result<(), CacheError> {
        if row.codes.len() != self.head_dim {
            return Err(CacheError::Dim(self.head_dim, row.codes.len()));
        }
        if row.bits == ActBits::A4
            && let Some(index) = row.codes.iter().position(|c| !(-8..=7).contains(c))
        {
            return Err(CacheError::Code(index, row.codes[index], 4));
        }
        Ok(())
    }

    /// Appends key and value of the next position, both of the same width. Under a static scheme, scale and zero point of
    /// the rows must be those of the scheme.
    ///
    /// # Errors
    /// Rows whose length differs from `head_dim`, a key and a value of different widths, codes outside 4 bits in a 4-bit
    /// row, more than [`MAX_CONTEXT`] positions. On an error nothing is appended.
    pub fn push(&mut self, key: CodeRow<'_>, value: CodeRow<'_>) -> Result<(), CacheError> {
        self.append(1, |_| key, |_| value)
    }

    /// [`Self::push`] of several positions: the same result in less time.
    ///
    /// # Errors
    /// What `push` refuses, and different numbers of keys and values. On an error nothing is appended.
    pub fn extend(&mut self, keys: RowsView<'_>, values: RowsView<'_>) -> Result<(), CacheError> {
        if keys.rows() != values.rows() {
            return Err(CacheError::Count(keys.rows(), values.rows()));
        }
        self.append(keys.rows(), |row| keys.row(row), |row| values.row(row))
    }

    fn append<'a>(
        &mut self,
        count: usize,
        key: impl Fn(usize) -> CodeRow<'a>,
        value: impl Fn(usize) -> CodeRow<'a>,
    ) -> Result<(), CacheError> {
        for (key, value) in (0..count).map(|row| (key(row), value(row))) {
            self.check(&key)?;
            self.check(&value)?;
            if key.bits != value.bits {
                return Err(CacheError::Widths(key.bits.bits(), value.bits.bits()));
            }
        }
        if self.len + count > MAX_CONTEXT {
            return Err(CacheError::Full(MAX_CONTEXT));
        }
        let (dim, dynamic, mut row) = (self.head_dim, self.dynamic(), 0);
        while row < count {
            let bits = key(row).bits;
            let end = (row..count).find(|&row| key(row).bits != bits).unwrap_or(count);
            let narrow = self.widths[ActBits::A4.index()].count;
            for index in 0..end - row {
                self.note_width(bits, narrow + if bits == ActBits::A4 { index } else { 0 });
            }
            self.widths[bits.index()].push(bits, dim, dynamic, &key, &value, row..end);
            row = end;
        }
        Ok(())
    }

    /// Records the width of the next position; `narrow` rows of 4 bits precede it.
    fn note_width(&mut self, bits: ActBits, narrow: usize) {
        if self.len.is_multiple_of(TILE) {
            self.narrow.push(0);
            self.narrow_before.push(narrow as u32);
        }
        if bits == ActBits::A4
            && let Some(word) = self.narrow.last_mut()
        {
            *word |= 1 << (self.len % TILE);
        }
        self.len += 1;
    }

    /// Prefetches most of what appending a position and attending to all positions touch first. A cache that was last used
    /// a layer, a token or a sequence ago is in memory, and without this its parts would be waited for one after another.
    pub fn prefetch(&self) {
        for bits in ActBits::ALL.into_iter().filter(|&bits| self.rows_of(bits).count > 0) {
            let stored = self.rows_of(bits);
            let (keys, values) = blocks_of_tile(bits, self.head_dim);
            for (blocks, per_tile) in [(&stored.keys, keys), (&stored.values, values)] {
                let first = FIRST_BLOCKS.min(blocks.len());
                prefetch(&blocks[..first]);
                // The last tile: the next position is written to it, or just after it.
                let last = (stored.count - 1) / TILE * per_tile;
                prefetch(&blocks[last.max(first)..(last + per_tile).max(first)]);
            }
            for floats in [&stored.key_scales, &stored.value_scales] {
                prefetch(&floats[..floats.len().min(FIRST_BLOCKS)]);
            }
            prefetch(&stored.key_sums[..stored.key_sums.len().min(FIRST_BLOCKS)]);
        }
        prefetch(&self.narrow[self.narrow.len().saturating_sub(1)..]);
        prefetch(&self.narrow_before[self.narrow_before.len().saturating_sub(1)..]);
    }

    /// Drops all positions from `len` on.
    pub fn truncate(&mut self, len: usize) {
        if len >= self.len {
            return;
        }
        let counts = self.counts(len);
        for (stored, count) in self.widths.iter_mut().zip(counts) {
            stored.count = count;
        }
        self.narrow.truncate(len.div_ceil(TILE));
        self.narrow_before.truncate(len.div_ceil(TILE));
        if let Some(word) = self.narrow.last_mut().filter(|_| !len.is_multiple_of(TILE)) {
            *word &= (1 << (len % TILE)) - 1;
        }
        self.len = len;
    }

    /// Rows of each width ([`ActBits::index`]) among the first `len` positions.
    pub(crate) fn counts(&self, len: usize) -> [usize; 2] {
        let narrow = if len == self.len {
            self.widths[ActBits::A4.index()].count
        } else {
            let within = self.narrow[len / TILE] & ((1 << (len % TILE)) - 1);
            self.narrow_before[len / TILE] as usize + within.count_ones() as usize
        };
        [narrow, len - narrow]
    }

    /// The rows of a width.
    pub(crate) fn rows_of(&self, bits: ActBits) -> &WidthRows {
        &self.widths[bits.index()]
    }

    /// One word per 16 positions: a bit is set if the position has 4 bits.
    pub(crate) fn narrow(&self) -> &[u16] {
        &self.narrow
    }

    /// Positions held.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether the cache is empty.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Values in a row.
    pub fn head_dim(&self) -> usize {
        self.head_dim
    }

    /// The scheme given at construction.
    pub fn scheme(&self) -> &AttentionScheme {
        &self.scheme
    }

    /// Width of the rows at `position`.
    ///
    /// # Panics
    /// If `position` is not held.
    pub fn bits(&self, position: usize) -> ActBits {
        assert!(position < self.len, "position {position} of {}", self.len);
        match self.narrow[position / TILE] >> (position % TILE) & 1 {
            0 => ActBits::A8,
            _ => ActBits::A4,
        }
    }

    /// Bytes of the rows held: codes, scales or sums, and the record of widths. Reserved memory and the unused rest of the
    /// last tile are not counted.
    pub fn bytes_used(&self) -> usize {
        let bytes = ActBits::ALL.into_iter().map(|bits| {
            let (keys, values) = blocks_of_tile(bits, self.head_dim);
            let per_row = if self.dynamic() { 8 } else { 4 };
            self.rows_of(bits).count * ((keys + values) * size_of::<Block>() / TILE + per_row)
        });
        bytes.sum::<usize>() + self.narrow.len() * 6
    }

    /// Writes the codes of key and value at `position` and returns their scales (1 if the scheme is static); for tests and
    /// inspection.
    ///
    /// # Panics
    /// If `position` is not held or the length of a slice is not `head_dim`.
    pub fn read(&self, position: usize, key: &mut [i8], value: &mut [i8]) -> (f32, f32) {
        let dim = self.head_dim;
        assert!(key.len() == dim && value.len() == dim, "lengths of cached rows");
        let bits = self.bits(position);
        let (stored, row, depth) = (self.rows_of(bits), self.counts(position)[bits.index()], depth(bits));
        let half = |byte: u8, high: bool| (if high { byte >> 4 } else { byte & 15 }) as i8 - 8;
        for (d, code) in key.iter_mut().enumerate() {
            let block = &stored.keys[row / TILE * dim.div_ceil(depth) + d / depth];
            let byte = block.0[row % TILE * 4 + d % 4];
            *code = match bits {
                ActBits::A8 => (byte ^ 0x80) as i8,
                ActBits::A4 => half(byte, d % 8 >= 4),
            };
        }
        for (d, code) in value.iter_mut().enumerate() {
            let block = &stored.values[row / depth * dim.div_ceil(TILE) + d / TILE];
            let byte = block.0[d % TILE * 4 + row % 4];
            *code = match bits {
                ActBits::A8 => byte as i8,
                ActBits::A4 => half(byte, row % 8 >= 4),
            };
        }
        if self.dynamic() { (stored.key_scales[row], stored.value_scales[row]) } else { (1.0, 1.0) }
    }
}
