//! Keys and values of one head, each row at the width it was written at.

use crate::error::CacheError;
use crate::rows::{CodeRow, StaticAffines};
use alloc::vec::Vec;
use squat_quant::ActBits;

/// Positions a head can hold: sums of 255 * 255 over them stay below 2^31.
pub const MAX_CONTEXT: usize = 32768;

/// Bytes after the last row that may be read (and are ignored) by wide loads.
pub(crate) const SLACK: usize = 128;

/// Where scales come from, and how probabilities are quantized.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum AttentionScheme {
    /// Every row has its own scale; value scales are folded into the probabilities, which are then quantized to 8 bits
    /// against their largest, for each width of values apart.
    Dynamic,
    /// Learned quantizers by width, probabilities with the fixed scale `1 / (2^b - 1)`.
    Static {
        /// Quantizers of keys.
        keys: StaticAffines,
        /// Quantizers of values.
        values: StaticAffines,
        /// Bits of probabilities, 1..=8; [`KvHead::new`] moves other numbers to the nearest of these.
        probability_bits: u32,
    },
}

/// Rows of codes in the order of their positions: 8-bit rows in one run of memory, 4-bit rows, two codes to a byte, in
/// another.
///
/// A code is stored unsigned: plus 128, or plus 8. In a 4-bit row of `h = ceil(dim / 2)` bytes, byte `b` holds code `b`
/// in its low half and code `b + h` in its high half.
#[derive(Clone, Debug)]
pub struct CodeStore {
    dim: usize,
    bits: Vec<ActBits>,
    /// By width: rows, then [`SLACK`] bytes.
    bytes: [Vec<u8>; 2],
    counts: [usize; 2],
    /// By width, one for each row when the scheme is dynamic.
    scales: [Vec<f32>; 2],
    /// By width, sums of codes, one for each row when the scheme is static.
    sums: [Vec<i32>; 2],
    dynamic: bool,
}

impl CodeStore {
    fn new(dim: usize, dynamic: bool) -> Self {
        Self {
            dim,
            bits: Vec::new(),
            bytes: [Vec::new(), Vec::new()],
            counts: [0; 2],
            scales: [Vec::new(), Vec::new()],
            sums: [Vec::new(), Vec::new()],
            dynamic,
        }
    }

    /// Rows held.
    pub fn len(&self) -> usize {
        self.bits.len()
    }

    /// Whether nothing is held.
    pub fn is_empty(&self) -> bool {
        self.bits.is_empty()
    }

    /// Width of each row, by position.
    pub fn bits(&self) -> &[ActBits] {
        &self.bits
    }

    /// Bytes of a row of that width.
    pub(crate) fn row_bytes(&self, bits: ActBits) -> usize {
        match bits {
            ActBits::A8 => self.dim,
            ActBits::A4 => self.dim.div_ceil(2),
        }
    }

    /// Rows of that width among the first `len` positions.
    pub(crate) fn count(&self, bits: ActBits, len: usize) -> usize {
        if len == self.len() {
            return self.counts[bits.index()];
        }
        self.bits[..len].iter().filter(|&&b| b == bits).count()
    }

    /// The bytes of all rows of that width, and the slack.
    #[inline(always)]
    pub(crate) fn bytes_of(&self, bits: ActBits) -> &[u8] {
        &self.bytes[bits.index()]
    }

    /// Scales of the rows of that width (dynamic), or nothing.
    #[inline(always)]
    pub(crate) fn scales_of(&self, bits: ActBits) -> &[f32] {
        &self.scales[bits.index()]
    }

    /// Sums of codes of the rows of that width (static), or nothing.
    #[inline(always)]
    pub(crate) fn sums_of(&self, bits: ActBits) -> &[i32] {
        &self.sums[bits.index()]
    }

    fn check(&self, row: &CodeRow<'_>) -> Result<(), CacheError> {
        if row.codes.len() != self.dim {
            return Err(CacheError::Dim(self.dim, row.codes.len()));
        }
        if self.len() == MAX_CONTEXT {
            return Err(CacheError::Full(MAX_CONTEXT));
        }
        if row.bits == ActBits::A4
            && let Some(index) = row.codes.iter().position(|c| !(-8..=7).contains(c))
        {
            return Err(CacheError::Code(index, row.codes[index], 4));
        }
        Ok(())
    }

    fn push(&mut self, row: &CodeRow<'_>) {
        let index = row.bits.index();
        let row_bytes = self.row_bytes(row.bits);
        let start = self.counts[index] * row_bytes;
        let bytes = &mut self.bytes[index];
        bytes.resize(start + row_bytes + SLACK, 0);
        let out = &mut bytes[start..start + row_bytes];
        match row.bits {
            ActBits::A8 => {
                for (byte, &code) in out.iter_mut().zip(row.codes) {
                    *byte = (code as u8) ^ 0x80;
                }
            }
            ActBits::A4 => {
                let (low, high) = row.codes.split_at(row_bytes);
                for (i, (byte, &code)) in out.iter_mut().zip(low).enumerate() {
                    let high = high.get(i).copied().unwrap_or(0);
                    *byte = (code + 8) as u8 | (((high + 8) as u8) << 4);
                }
            }
        }
        if self.dynamic {
            self.scales[index].push(row.scale);
        } else {
            self.sums[index].push(row.sum);
        }
        self.counts[index] += 1;
        self.bits.push(row.bits);
    }

    fn truncate(&mut self, len: usize) {
        if len >= self.len() {
            return;
        }
        for bits in ActBits::ALL {
            let keep = self.count(bits, len);
            let (index, row_bytes) = (bits.index(), self.row_bytes(bits));
            self.counts[index] = keep;
            if !self.bytes[index].is_empty() {
                self.bytes[index].truncate(keep * row_bytes + SLACK);
            }
            self.scales[index].truncate(keep);
            self.sums[index].truncate(keep);
        }
        self.bits.truncate(len);
    }

    fn reserve(&mut self, rows: usize, bits: ActBits) {
        let (index, row_bytes) = (bits.index(), self.row_bytes(bits));
        self.bits.reserve(rows);
        self.bytes[index].reserve(rows * row_bytes + SLACK);
        if self.dynamic {
            self.scales[index].reserve(rows);
        } else {
            self.sums[index].reserve(rows);
        }
    }

    /// Bytes held: codes, widths, scales or sums. Reserved room is not counted.
    pub fn bytes_used(&self) -> usize {
        ActBits::ALL.into_iter().map(|b| self.counts[b.index()] * (self.row_bytes(b) + 4)).sum::<usize>()
            + self.len()
    }

    /// Writes the codes of the row at `position`; for tests and inspection.
    ///
    /// # Panics
    /// When `position` is not held or `codes` has another length than the head.
    pub fn read(&self, position: usize, codes: &mut [i8]) -> ActBits {
        assert_eq!(codes.len(), self.dim, "length of a cached row");
        let bits = self.bits[position];
        let (row, row_bytes) = (self.count(bits, position), self.row_bytes(bits));
        let bytes = &self.bytes_of(bits)[row * row_bytes..][..row_bytes];
        for (i, code) in codes.iter_mut().enumerate() {
            *code = match bits {
                ActBits::A8 => (bytes[i] ^ 0x80) as i8,
                ActBits::A4 if i < row_bytes => (bytes[i] & 15) as i8 - 8,
                ActBits::A4 => (bytes[i - row_bytes] >> 4) as i8 - 8,
            };
        }
        bits
    }
}

/// The cache of one key-value head.
#[derive(Clone, Debug)]
pub struct KvHead {
    pub(crate) keys: CodeStore,
    pub(crate) values: CodeStore,
    pub(crate) scheme: AttentionScheme,
    pub(crate) head_dim: usize,
}

impl KvHead {
    /// An empty cache for heads of `head_dim` values.
    pub fn new(head_dim: usize, mut scheme: AttentionScheme) -> Self {
        if let AttentionScheme::Static { probability_bits, .. } = &mut scheme {
            *probability_bits = (*probability_bits).max(1).min(8);
        }
        let dynamic = scheme == AttentionScheme::Dynamic;
        Self {
            keys: CodeStore::new(head_dim, dynamic),
            values: CodeStore::new(head_dim, dynamic),
            scheme,
            head_dim,
        }
    }

    /// Makes room for `rows` more positions of that width, so that appending them does not allocate.
    pub fn reserve(&mut self, rows: usize, bits: ActBits) {
        self.keys.reserve(rows, bits);
        self.values.reserve(rows, bits);
    }

    /// Appends key and value of the next position. Under a static scheme scale and zero point of the rows must be those
    /// of the scheme.
    ///
    /// # Errors
    /// Rows of another length than the head, codes outside 4 bits in a 4-bit row, more than [`MAX_CONTEXT`] positions;
    /// nothing is appended then.
    pub fn push(&mut self, key: CodeRow<'_>, value: CodeRow<'_>) -> Result<(), CacheError> {
        self.keys.check(&key)?;
        self.values.check(&value)?;
        self.keys.push(&key);
        self.values.push(&value);
        Ok(())
    }

    /// Forgets all positions from `len` on.
    pub fn truncate(&mut self, len: usize) {
        self.keys.truncate(len);
        self.values.truncate(len);
    }

    /// Positions held.
    pub fn len(&self) -> usize {
        self.keys.len()
    }

    /// Whether no position is held.
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// Values in a row.
    pub fn head_dim(&self) -> usize {
        self.head_dim
    }

    /// The scheme given at construction.
    pub fn scheme(&self) -> &AttentionScheme {
        &self.scheme
    }

    /// The keys.
    pub fn keys(&self) -> &CodeStore {
        &self.keys
    }

    /// The values.
    pub fn values(&self) -> &CodeStore {
        &self.values
    }

    /// Width of the rows at `position`.
    ///
    /// # Panics
    /// When `position` is not held.
    pub fn bits(&self, position: usize) -> ActBits {
        self.keys.bits[position]
    }

    /// Writes the codes of key and value at `position` and returns their scales (1 when the scheme is static).
    ///
    /// # Panics
    /// When `position` is not held or a slice has another length than the head.
    pub fn read(&self, position: usize, key: &mut [i8], value: &mut [i8]) -> (f32, f32) {
        let scale = |store: &CodeStore, codes: &mut [i8]| {
            let bits = store.read(position, codes);
            let row = store.count(bits, position);
            store.scales[bits.index()].get(row).copied().unwrap_or(1.0)
        };
        (scale(&self.keys, key), scale(&self.values, value))
    }

    /// Bytes held; see [`CodeStore::bytes_used`].
    pub fn bytes_used(&self) -> usize {
        self.keys.bytes_used() + self.values.bytes_used()
    }
}
