//! The integer product, written once for all instruction sets.
//!
//! Definition, which every instruction set reproduces bit for bit (METHOD.md section 2, with the order of float
//! operations fixed):
//!
//! ```text
//! acc[m, n]   = sum_k qa[m, k] * qw[n, k]                                                    exact, i32
//! per tensor, per channel:  y = ((acc - z_a[m] * sum_w[n]) as f32 * s_a[m]) * s_w[n]
//! per group:                y = (sum over groups g in order of
//!                                ((acc_g - z_a[m] * sum_w[n, g]) as f32 * s_w[n, g])) * s_a[m]
//! bias:                     y + bias[n], last
//! ```
//!
//! Weights are stored with an offset that makes them unsigned, so a kernel computes `sum_k qa * (qw + offset)` and
//! takes `offset * sum_k qa` away, which is one number for each row.

use crate::matrix::{Block, PANEL, PackedMatrix};
use crate::output::ColumnsMut;
use crate::reference;
use crate::rows::RowsView;
use crate::storage::Storage;
use core::ops::Range;

/// Sixteen i32 accumulators and the dot products that feed them. A value of an implementing type proves that the CPU
/// has its instructions.
pub(crate) trait IntSimd: Copy {
    /// 16 channels: i32 accumulators, or 4 unsigned bytes each.
    type V: Copy;
    /// Sums of small products on their way to the accumulators: of 16 bits where that is what instructions add up,
    /// else accumulators themselves.
    type Small: Copy;
    /// What the largest weights of all products that a [`Self::Small`] takes may add up to.
    const SMALL_ROOM: usize = usize::MAX;
    /// What [`Self::bytes`] leaves of the offset of full bytes.
    const BYTE_OFFSET: i32 = Storage::Byte.offset();
    fn zero(self) -> Self::V;
    fn zero_small(self) -> Self::Small;
    /// 4 stored codes for each channel.
    fn load(self, block: &[u8; 64]) -> Self::V;
    /// The two nibbles of every byte, low ones first.
    fn nibbles(self, v: Self::V) -> [Self::V; 2];
    /// The four two-bit fields of every byte, low ones first.
    fn crumbs(self, v: Self::V) -> [Self::V; 4];
    /// The two three-bit fields in the low bits of every byte, low ones first.
    fn octals(self, v: Self::V) -> [Self::V; 2];
    /// The two three-bit fields in the high bits of three bytes, see [`crate::matrix`].
    fn high_octals(self, a: Self::V, b: Self::V, c: Self::V) -> [Self::V; 2];
    /// Full bytes as [`Self::dot4`] takes them: as they are stored, or signed.
    #[inline(always)]
    fn bytes(self, v: Self::V) -> Self::V {
        v
    }
    /// `acc[c] += sum_i w[c][i] * a[i]` for any [`Self::bytes`], or w <= 15.
    fn dot4<const NP: usize>(self, acc: &mut [Self::V; NP], w: &[Self::V; NP], a: &[i8; 4]);
    /// The same over eight inputs for w <= 15: `low` times `a`, `high` times `b`.
    #[inline(always)]
    fn dot8_small<const NP: usize>(
        self,
        acc: &mut [Self::V; NP],
        low: &[Self::V; NP],
        high: &[Self::V; NP],
        a: &[i8; 4],
        b: &[i8; 4],
    ) {
        if Self::SMALL_ROOM < usize::MAX {
            let mut sums = [self.zero_small(); NP];
            self.dot4_small(&mut sums, low, a);
            self.dot4_small(&mut sums, high, b);
            self.flush(acc, &sums);
        } else {
            self.dot4(acc, low, a);
            self.dot4(acc, high, b);
        }
    }
    /// `sums[c] += sum_i w[c][i] * a[i]` for w <= 15, any number of times until the largest w of each add up to
    /// [`Self::SMALL_ROOM`].
    fn dot4_small<const NP: usize>(self, sums: &mut [Self::Small; NP], w: &[Self::V; NP], a: &[i8; 4]);
    /// `sums[m][c] += sum_f sum_i fields[f][c][i] * a[m][f][i]` of `MR` rows for fields <= 15, `F` even. Instructions for
    /// several rows may keep them mixed: only [`Self::flush_rows`] knows what the sums hold.
    #[inline(always)]
    fn dot_rows<const F: usize, const MR: usize, const NP: usize>(
        self,
        sums: &mut [[Self::Small; NP]; MR],
        fields: &[[Self::V; NP]; F],
        a: &[&[Quad; F]; MR],
    ) {
        for m in 0..MR {
            for f in 0..F {
                self.dot4_small(&mut sums[m], &fields[f], &a[m][f]);
            }
        }
    }
    /// `acc += sums` of [`Self::dot_rows`]
    #[inline(always)]
    fn flush_rows<const MR: usize, const NP: usize>(
        self,
        acc: &mut [[Self::V; NP]; MR],
        sums: &[[Self::Small; NP]; MR],
    ) {
        for m in 0..MR {
            self.flush(&mut acc[m], &sums[m]);
        }
    }
    /// `a + b` of accumulators.
    fn plus(self, a: Self::V, b: Self::V) -> Self::V;
    /// `acc += sums`
    fn flush<const NP: usize>(self, acc: &mut [Self::V; NP], sums: &[Self::Small; NP]);
    fn store(self, v: Self::V) -> [i32; PANEL];
    /// `((v - shift - zero * sums) as f32 * scale) * scales`, see [`crate::product`].
    #[inline(always)]
    fn scaled(self, v: Self::V, row: RowScale, sums: &[i32; PANEL], scales: &[f32; PANEL]) -> [f32; PANEL] {
        let acc = self.store(v);
        let mut y = [0f32; PANEL];
        for c in 0..PANEL {
            y[c] = (correct(acc[c], row.shift, row.zero, sums[c]) as f32 * row.scale) * scales[c];
        }
        y
    }
    /// `y += ((v - shift) as f32) * scales`
    #[inline(always)]
    fn add_scaled(self, y: &mut Lanes, v: Self::V, shift: i32, scales: &[f32; PANEL]) {
        let acc = self.store(v);
        for c in 0..PANEL {
            y.0[c] += acc[c].wrapping_sub(shift) as f32 * scales[c];
        }
    }
    /// Asks for the cache line `ahead` bytes after `block`, which may lie anywhere.
    #[inline(always)]
    fn prefetch_beyond(self, block: &Block, ahead: usize) {
        let _ = (block, ahead);
    }
}

/// Outputs of a panel on a cache line of their own: a vector across two lines takes twice as long.
#[derive(Clone, Copy)]
#[repr(align(64))]
pub(crate) struct Lanes(pub [f32; PANEL]);

/// What a row of activations brings into its outputs.
#[derive(Clone, Copy)]
pub(crate) struct RowScale {
    /// What the offset of the stored weights added to its sums.
    pub shift: i32,
    pub zero: i32,
    pub scale: f32,
}

/// How far ahead of the block in use the weights of a single row are asked for, in bytes. A CPU looks ahead by itself,
/// but not beyond the page of 4096 bytes.
#[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))]
pub(crate) const AHEAD: usize = 4096;

/// [`IntSimd::SMALL_ROOM`] where a step adds two products to a sum of 16 bits: `2 * 128 * 127 < 2^15`.
#[cfg_attr(not(any(target_arch = "x86_64", target_arch = "aarch64")), allow(dead_code))]
pub(crate) const PAIRS_IN_16_BITS: usize = 127;

/// A way of storing codes, see [`Storage`].
///
/// No closures over registers here or in the tiles: a closure is a function of its own without the target features of
/// its caller, and a vector that passes through one goes through memory.
pub(crate) trait Unpack {
    const STORAGE: Storage;
    /// Blocks that are unpacked together: [`Storage::blocks`] of them.
    type Blocks: AsRef<[Block]>;
    /// Activation codes that meet them: [`Storage::depth`] of them.
    type Codes;
    fn blocks(panel: &[Block]) -> &[Self::Blocks];
    fn codes(row: &[i8]) -> &[Self::Codes];
    /// `acc + small += blocks . a` for `NP` panels and `MR` rows.
    fn step<S: IntSimd, const MR: usize, const NP: usize>(
        s: S,
        acc: &mut [[S::V; NP]; MR],
        small: &mut [[S::Small; NP]; MR],
        blocks: &[&Self::Blocks; NP],
        a: &[&Self::Codes; MR],
    );
}

/// The offset that is in the sums of products of stored weights.
const fn offset<S: IntSimd, U: Unpack>() -> i32 {
    match U::STORAGE {
        Storage::Byte => S::BYTE_OFFSET,
        storage => storage.offset(),
    }
}

/// Whether products of `U` are added to small sums.
const fn has_small<U: Unpack>() -> bool {
    !matches!(U::STORAGE, Storage::Byte)
}

/// Steps after which the small sums of `S` must be flushed, if they are not accumulators themselves.
const fn run<S: IntSimd, U: Unpack>() -> Option<usize> {
    match U::STORAGE {
        _ if S::SMALL_ROOM == usize::MAX => None,
        Storage::Byte => None,
        Storage::Nibble => Some(S::SMALL_ROOM / (15 * 2)),
        Storage::Octal => Some(S::SMALL_ROOM / (7 * 8)),
        Storage::Crumb => Some(S::SMALL_ROOM / (3 * 4)),
    }
}

pub(crate) struct Bytes;
pub(crate) struct Nibbles;
pub(crate) struct Octals;
pub(crate) struct Crumbs;

/// Four consecutive codes.
pub(crate) type Quad = [i8; 4];

impl Unpack for Bytes {
    const STORAGE: Storage = Storage::Byte;
    type Blocks = [Block; 1];
    type Codes = Quad;

    #[inline(always)]
    fn blocks(panel: &[Block]) -> &[Self::Blocks] {
        panel.as_chunks().0
    }

    #[inline(always)]
    fn codes(row: &[i8]) -> &[Self::Codes] {
        row.as_chunks().0
    }

    #[inline(always)]
    fn step<S: IntSimd, const MR: usize, const NP: usize>(
        s: S,
        acc: &mut [[S::V; NP]; MR],
        _: &mut [[S::Small; NP]; MR],
        blocks: &[&Self::Blocks; NP],
        a: &[&Self::Codes; MR],
    ) {
        let mut w = [s.zero(); NP];
        for p in 0..NP {
            w[p] = s.bytes(s.load(&blocks[p][0].0));
        }
        for m in 0..MR {
            s.dot4(&mut acc[m], &w, a[m]);
        }
    }
}

impl Unpack for Nibbles {
    const STORAGE: Storage = Storage::Nibble;
    type Blocks = [Block; 1];
    type Codes = [Quad; 2];

    #[inline(always)]
    fn blocks(panel: &[Block]) -> &[Self::Blocks] {
        panel.as_chunks().0
    }

    #[inline(always)]
    fn codes(row: &[i8]) -> &[Self::Codes] {
        row.as_chunks::<4>().0.as_chunks().0
    }

    #[inline(always)]
    fn step<S: IntSimd, const MR: usize, const NP: usize>(
        s: S,
        _: &mut [[S::V; NP]; MR],
        small: &mut [[S::Small; NP]; MR],
        blocks: &[&Self::Blocks; NP],
        a: &[&Self::Codes; MR],
    ) {
        let mut parts = [[s.zero(); NP]; 2];
        for p in 0..NP {
            [parts[0][p], parts[1][p]] = s.nibbles(s.load(&blocks[p][0].0));
        }
        s.dot_rows(small, &parts, a);
    }
}

impl Unpack for Octals {
    const STORAGE: Storage = Storage::Octal;
    type Blocks = [Block; 3];
    type Codes = [[Quad; 2]; 4];

    #[inline(always)]
    fn blocks(panel: &[Block]) -> &[Self::Blocks] {
        panel.as_chunks().0
    }

    #[inline(always)]
    fn codes(row: &[i8]) -> &[Self::Codes] {
        row.as_chunks::<4>().0.as_chunks::<2>().0.as_chunks().0
    }

    #[inline(always)]
    fn step<S: IntSimd, const MR: usize, const NP: usize>(
        s: S,
        _: &mut [[S::V; NP]; MR],
        small: &mut [[S::Small; NP]; MR],
        blocks: &[&Self::Blocks; NP],
        a: &[&Self::Codes; MR],
    ) {
        let mut w = [[s.zero(); NP]; 3];
        let mut parts = [[s.zero(); NP]; 2];
        let mut pairs = [&a[0][0]; MR];
        for i in 0..4 {
            for p in 0..NP {
                if i < 3 {
                    w[i][p] = s.load(&blocks[p][i].0);
                    [parts[0][p], parts[1][p]] = s.octals(w[i][p]);
                } else {
                    [parts[0][p], parts[1][p]] = s.high_octals(w[0][p], w[1][p], w[2][p]);
                }
            }
            for m in 0..MR {
                pairs[m] = &a[m][i];
            }
            s.dot_rows(small, &parts, &pairs);
        }
    }
}

impl Unpack for Crumbs {
    const STORAGE: Storage = Storage::Crumb;
    type Blocks = [Block; 1];
    type Codes = [Quad; 4];

    #[inline(always)]
    fn blocks(panel: &[Block]) -> &[Self::Blocks] {
        panel.as_chunks().0
    }

    #[inline(always)]
    fn codes(row: &[i8]) -> &[Self::Codes] {
        row.as_chunks::<4>().0.as_chunks().0
    }

    #[inline(always)]
    fn step<S: IntSimd, const MR: usize, const NP: usize>(
        s: S,
        _: &mut [[S::V; NP]; MR],
        small: &mut [[S::Small; NP]; MR],
        blocks: &[&Self::Blocks; NP],
        a: &[&Self::Codes; MR],
    ) {
        let mut parts = [[s.zero(); NP]; 4];
        for p in 0..NP {
            [parts[0][p], parts[1][p], parts[2][p], parts[3][p]] = s.crumbs(s.load(&blocks[p][0].0));
        }
        s.dot_rows(small, &parts, a);
    }
}

/// Asks for what lies `ahead` bytes behind `blocks`.
#[inline(always)]
fn prefetch<S: IntSimd>(s: S, blocks: &impl AsRef<[Block]>, ahead: usize) {
    for block in blocks.as_ref() {
        s.prefetch_beyond(block, ahead);
    }
}

/// `MR` rows against the same blocks of `NP` panels; asks for what lies `ahead` bytes behind them.
#[inline(always)]
fn tile<S: IntSimd, U: Unpack, const MR: usize, const NP: usize>(
    s: S,
    a: &[&[U::Codes]; MR],
    w: &[&[U::Blocks]; NP],
    ahead: Option<usize>,
) -> [[S::V; NP]; MR] {
    let mut acc = [[s.zero(); NP]; MR];
    // Slices of one length: no index below needs a check.
    let end = w[0].len();
    let (mut a_blocks, mut w_blocks) = (*a, *w);
    for m in 0..MR {
        a_blocks[m] = &a[m][..end];
    }
    for p in 0..NP {
        w_blocks[p] = &w[p][..end];
    }
    let run = const { run::<S, U>() }.unwrap_or(usize::MAX);
    let mut i = 0;
    while i < end {
        let mut small = [[s.zero_small(); NP]; MR];
        for i in i..end.min(i.saturating_add(run)) {
            let mut blocks = [&w_blocks[0][i]; NP];
            for p in 0..NP {
                blocks[p] = &w_blocks[p][i];
                if let Some(ahead) = ahead {
                    prefetch(s, blocks[p], ahead);
                }
            }
            let mut at = [&a_blocks[0][i]; MR];
            for m in 1..MR {
                at[m] = &a_blocks[m][i];
            }
            U::step(s, &mut acc, &mut small, &blocks, &at);
        }
        if const { has_small::<U>() } {
            s.flush_rows(&mut acc, &small);
        }
        i = i.saturating_add(run);
    }
    acc
}

/// One row against one panel, `UNROLL` steps at a time with sums of their own: memory is fastest when it is read in
/// order, and slow where several panels come to the ends of their pages together.
#[inline(always)]
fn row_tile<S: IntSimd, U: Unpack, const UNROLL: usize>(s: S, a: &[U::Codes], w: &[U::Blocks]) -> S::V {
    let mut acc = [[[s.zero()]]; UNROLL];
    let run = const { run::<S, U>() };
    let stretch = run.unwrap_or(usize::MAX).saturating_mul(UNROLL);
    for (a, w) in a[..w.len()].chunks(stretch).zip(w.chunks(stretch)) {
        let mut small = [[[s.zero_small()]]; UNROLL];
        let (mut a_steps, mut w_steps) = (a.chunks_exact(UNROLL), w.chunks_exact(UNROLL));
        for (a, w) in a_steps.by_ref().zip(w_steps.by_ref()) {
            for u in 0..UNROLL {
                prefetch(s, &w[u], AHEAD);
                U::step(s, &mut acc[u], &mut small[u], &[&w[u]], &[&a[u]]);
            }
        }
        let (a, w) = (a_steps.remainder(), w_steps.remainder());
        for u in 0..UNROLL {
            if u < w.len() {
                prefetch(s, &w[u], AHEAD);
                U::step(s, &mut acc[u], &mut small[u], &[&w[u]], &[&a[u]]);
            }
        }
        if const { has_small::<U>() } {
            for u in 0..UNROLL {
                s.flush_rows(&mut acc[u], &small[u]);
            }
        }
    }
    let mut sum = acc[0][0][0];
    for u in 1..UNROLL {
        sum = s.plus(sum, acc[u][0][0]);
    }
    sum
}

/// What [`linear`] was called with.
struct Job<'a, 'b> {
    matrix: &'a PackedMatrix,
    rows: RowsView<'a>,
    out: &'a mut ColumnsMut<'b>,
    /// Sums of the codes of each group of rows `block`, `[groups, rows]`; nothing where scales are not for groups.
    group_sums: &'a [i32],
    /// The rows to compute.
    block: Range<usize>,
}

/// Sums of codes of groups that are held together.
const GROUP_SUMS: usize = 2048;

impl Job<'_, '_> {
    /// Rows `m..m + MR` times panels `p..p + NP`.
    #[inline(always)]
    fn tile<S: IntSimd, U: Unpack, const MR: usize, const NP: usize>(&mut self, s: S, m: usize, p: usize) {
        let (matrix, rows) = (self.matrix, self.rows);
        let a: [&[U::Codes]; MR] = core::array::from_fn(|i| U::codes(rows.padded(m + i)));
        let w: [&[U::Blocks]; NP] = core::array::from_fn(|j| U::blocks(matrix.panel(p + j)));
        if matrix.grouped() {
            return self.grouped_tile::<S, U, MR, NP>(s, &a, &w, m, p);
        }
        // The first rows of a strip wait for memory, unless those of the strip before have asked for it.
        let acc = if m == 0 {
            tile::<S, U, MR, NP>(s, &a, &w, Some(NP * size_of_val(w[0])))
        } else {
            tile::<S, U, MR, NP>(s, &a, &w, None)
        };
        self.finish::<S, U, MR, NP>(s, &acc, m, p);
    }

    /// Panel `p` of the only row.
    #[inline(always)]
    fn row<S: IntSimd, U: Unpack, const UNROLL: usize>(&mut self, s: S, p: usize) {
        let acc = row_tile::<S, U, UNROLL>(s, U::codes(self.rows.padded(0)), U::blocks(self.matrix.panel(p)));
        self.finish::<S, U, 1, 1>(s, &[[acc]], 0, p);
    }

    /// [`Self::row`] with a scale for each group of inputs.
    #[inline(always)]
    fn grouped_row<S: IntSimd, U: Unpack, const UNROLL: usize>(&mut self, s: S, p: usize) {
        let (matrix, zero) = (self.matrix, self.rows.zero_points[0]);
        let (a, w) = (U::codes(self.rows.padded(0)), U::blocks(matrix.panel(p)));
        let mut y = [[Lanes([0.0; PANEL])]];
        let steps = matrix.group_len().div_ceil(U::STORAGE.depth());
        for (group, (a, w)) in a[..w.len()].chunks(steps).zip(w.chunks(steps)).enumerate() {
            let acc = row_tile::<S, U, UNROLL>(s, a, w);
            let sums = &self.group_sums[group..group + 1];
            add_group::<S, U, 1, 1>(s, &mut y, &[[acc]], matrix, (p, group), sums, &[zero]);
        }
        self.finish_groups(&mut y, 0, p);
    }

    /// From sums to outputs: the scales of rows `m..` and of the channels of panels `p..`.
    #[inline(always)]
    fn finish<S: IntSimd, U: Unpack, const MR: usize, const NP: usize>(
        &mut self,
        s: S,
        acc: &[[S::V; NP]; MR],
        m: usize,
        p: usize,
    ) {
        let (matrix, rows) = (self.matrix, self.rows);
        let (scales, zeros, sums) =
            (&rows.scales[m..m + MR], &rows.zero_points[m..m + MR], &rows.sums[m..m + MR]);
        let (w_sums, w_scales) = (matrix.panels_sums::<NP>(p), matrix.panels_scales::<NP>(p));
        let of_row = |i: usize| {
            let shift = const { offset::<S, U>() }.wrapping_mul(sums[i]);
            RowScale { shift, zero: zeros[i], scale: scales[i] }
        };
        if matrix.panel_bias(p).is_none()
            && let Some(mut tile) = self.out.tile::<MR, NP>(m, p * PANEL)
        {
            for i in 0..MR {
                let row = of_row(i);
                for j in 0..NP {
                    tile.set(i, j, &s.scaled(acc[i][j], row, &w_sums[j], &w_scales[j]));
                }
            }
            return;
        }
        for i in 0..MR {
            let row = of_row(i);
            for j in 0..NP {
                self.write(m + i, p + j, s.scaled(acc[i][j], row, &w_sums[j], &w_scales[j]));
            }
        }
    }

    /// [`Self::tile`] with a scale for each group of inputs.
    #[inline(always)]
    fn grouped_tile<S: IntSimd, U: Unpack, const MR: usize, const NP: usize>(
        &mut self,
        s: S,
        a: &[&[U::Codes]; MR],
        w: &[&[U::Blocks]; NP],
        m: usize,
        p: usize,
    ) {
        let (matrix, rows) = (self.matrix, self.rows);
        let mut y = [[Lanes([0.0; PANEL]); NP]; MR];
        let (groups, steps) = (matrix.groups(), matrix.group_len().div_ceil(U::STORAGE.depth()));
        let (first, zeros) = (m - self.block.start, &rows.zero_points[m..m + MR]);
        // The first rows of a strip wait for memory, unless those of the strip before have asked for it.
        let ahead = (m == self.block.start).then_some(NP * size_of_val(w[0]));
        let (mut a_group, mut w_group) = (*a, *w);
        for group in 0..groups {
            let range = group * steps..((group + 1) * steps).min(w[0].len());
            for i in 0..MR {
                a_group[i] = &a[i][range.clone()];
            }
            for j in 0..NP {
                w_group[j] = &w[j][range.clone()];
            }
            let acc = tile::<S, U, MR, NP>(s, &a_group, &w_group, ahead);
            let sums = &self.group_sums[group * self.block.len() + first..][..MR];
            add_group::<S, U, MR, NP>(s, &mut y, &acc, matrix, (p, group), sums, zeros);
        }
        self.finish_groups(&mut y, m, p);
    }

    /// From sums over all groups to outputs: the scales of rows `m..`.
    #[inline(always)]
    fn finish_groups<const MR: usize, const NP: usize>(
        &mut self,
        y: &mut [[Lanes; NP]; MR],
        m: usize,
        p: usize,
    ) {
        for i in 0..MR {
            for j in 0..NP {
                for c in 0..PANEL {
                    y[i][j].0[c] *= self.rows.scales[m + i];
                }
                self.write(m + i, p + j, y[i][j].0);
            }
        }
    }

    /// Adds the bias and writes the channels of panel `p` that were asked for.
    #[inline(always)]
    fn write(&mut self, m: usize, p: usize, mut y: [f32; PANEL]) {
        if let Some(bias) = self.matrix.panel_bias(p) {
            for c in 0..PANEL {
                y[c] += bias[c];
            }
        }
        let range = self.out.range();
        let to = self.out.row(m);
        let first = p * PANEL;
        if first >= range.start && first + PANEL <= range.end {
            to[first - range.start..][..PANEL].copy_from_slice(&y);
        } else {
            for c in 0..PANEL {
                if range.contains(&(first + c)) {
                    to[first + c - range.start] = y[c];
                }
            }
        }
    }

    /// The rows of the block times all panels.
    #[inline(always)]
    fn run<S: IntSimd, U: Unpack, const MR: usize, const NP: usize, const UNROLL: usize>(&mut self, s: S) {
        let range = self.out.range();
        let (mut p, end) = (range.start / PANEL, range.end.div_ceil(PANEL));
        if self.rows.rows() == 1 {
            while p < end {
                if self.matrix.grouped() {
                    self.grouped_row::<S, U, UNROLL>(s, p);
                } else {
                    self.row::<S, U, UNROLL>(s, p);
                }
                p += 1;
            }
        } else if const { NP > 1 } {
            while p + NP <= end {
                self.strip::<S, U, MR, NP>(s, p);
                p += NP;
            }
        }
        while p < end {
            self.strip::<S, U, MR, 1>(s, p);
            p += 1;
        }
    }

    /// The rows of the block times panels `p..p + NP`.
    #[inline(always)]
    fn strip<S: IntSimd, U: Unpack, const MR: usize, const NP: usize>(&mut self, s: S, p: usize) {
        let (mut m, rows) = (self.block.start, self.block.end);
        while m + MR <= rows {
            self.tile::<S, U, MR, NP>(s, m, p);
            m += MR;
        }
        // Tiles that cannot be needed are not compiled.
        if const { MR > 4 } {
            while m + 4 <= rows {
                self.tile::<S, U, 4, NP>(s, m, p);
                m += 4;
            }
        }
        if const { MR > 2 } {
            while m + 2 <= rows {
                self.tile::<S, U, 2, NP>(s, m, p);
                m += 2;
            }
        }
        if const { MR > 1 } && m < rows {
            self.tile::<S, U, 1, NP>(s, m, p);
        }
    }
}

/// Adds the sums of a group of inputs to outputs `y` of `NP` panels from `p` on: `sums` and `zeros` are sums of codes and zero
/// points of the rows.
#[inline(always)]
fn add_group<S: IntSimd, U: Unpack, const MR: usize, const NP: usize>(
    s: S,
    y: &mut [[Lanes; NP]; MR],
    acc: &[[S::V; NP]; MR],
    matrix: &PackedMatrix,
    (p, group): (usize, usize),
    sums: &[i32],
    zeros: &[i32],
) {
    let mut scales = [matrix.panel_scales(p, group); NP];
    for j in 1..NP {
        scales[j] = matrix.panel_scales(p + j, group);
    }
    let (sums, zeros) = (&sums[..MR], &zeros[..MR]);
    if zeros.iter().all(|&zero| zero == 0) {
        // Short enough for the compiler to leave no loop at all: sums stay in registers then.
        for i in 0..MR {
            let shift = const { offset::<S, U>() }.wrapping_mul(sums[i]);
            for j in 0..NP {
                s.add_scaled(&mut y[i][j], acc[i][j], shift, scales[j]);
            }
        }
        return;
    }
    for i in 0..MR {
        let shift = const { offset::<S, U>() }.wrapping_mul(sums[i]);
        for j in 0..NP {
            let (acc, w_sums) = (s.store(acc[i][j]), matrix.panel_sums(p + j, group));
            for c in 0..PANEL {
                y[i][j].0[c] += correct(acc[c], shift, zeros[i], w_sums[c]) as f32 * scales[j][c];
            }
        }
    }
}

/// Takes the offset of the stored weights (`shift`, times the row's sum) and the zero point of the activations out of
/// an accumulator.
///
/// Intermediate sums may wrap; the result is exact because it fits (see [`crate::MAX_COLS`]).
#[inline(always)]
fn correct(acc: i32, shift: i32, zero: i32, weight_sum: i32) -> i32 {
    acc.wrapping_sub(shift).wrapping_sub(zero.wrapping_mul(weight_sum))
}

/// Checks shapes; returns whether there is anything to do.
fn check(matrix: &PackedMatrix, rows: &RowsView<'_>, out: &ColumnsMut<'_>) -> bool {
    let (inputs, outputs) = (matrix.cols(), matrix.rows());
    assert_eq!(rows.cols(), inputs, "the matrix takes rows of {inputs} inputs, got {}", rows.cols());
    assert_eq!(out.rows(), rows.rows(), "{} rows need as many output rows, got {}", rows.rows(), out.rows());
    assert!(
        out.range().end <= outputs,
        "the matrix has {outputs} outputs, but columns {:?} were asked for",
        out.range()
    );
    !out.range().is_empty() && rows.rows() > 0
}

/// The product of `rows` with the output channels that `out` covers; `MR` rows and `NP` panels at a time; for a
/// single row `UNROLL` steps of one panel.
///
/// # Panics
/// When shapes do not fit.
#[inline(always)]
pub(crate) fn linear<S: IntSimd, U: Unpack, const MR: usize, const NP: usize, const UNROLL: usize>(
    s: S,
    matrix: &PackedMatrix,
    rows: RowsView<'_>,
    out: &mut ColumnsMut<'_>,
) {
    if !check(matrix, &rows, out) {
        return;
    }
    let depth = U::STORAGE.depth();
    if matrix.groups() > 1 && !matrix.group_len().is_multiple_of(depth) {
        // Groups that cut a block: rare enough for the plain loops.
        return reference::linear(matrix, rows, out);
    }
    let (of, groups) = (rows.rows(), matrix.groups());
    if !matrix.grouped() {
        let mut job = Job { matrix, rows, out, group_sums: &[], block: 0..of };
        return job.run::<S, U, MR, NP, UNROLL>(s);
    }
    if groups > GROUP_SUMS {
        return reference::linear(matrix, rows, out);
    }
    // Every strip of panels needs the sums: they are computed once for as many rows as there is room for.
    let mut sums = [0i32; GROUP_SUMS];
    let padded_len = matrix.group_len().next_multiple_of(depth);
    let room = GROUP_SUMS / groups;
    let together = if room > MR { room - room % MR } else { room };
    for from in (0..of).step_by(together) {
        let block = from..of.min(from + together);
        for (index, row) in block.clone().enumerate() {
            for (codes, sums) in
                rows.padded(row).chunks(padded_len).zip(sums.chunks_mut(block.len())).take(groups)
            {
                sums[index] = codes.iter().map(|&code| i32::from(code)).sum();
            }
        }
        Job { matrix, rows, out, group_sums: &sums, block }.run::<S, U, MR, NP, UNROLL>(s);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Kernels, QuantizedRows, RowQuantizer};
    use alloc::vec;
    use squat_quant::{ActBits, Granularity, WeightBits, WeightScheme};

    /// Small enough for an interpreter; `tests/products.rs` has all shapes.
    #[test]
    fn storages_and_groups_on_a_small_odd_shape() {
        let (m, k, n) = (3, 37, 19);
        let x: vec::Vec<f32> = (0..m * k).map(|i| (i * 37 % 101) as f32 / 50.0 - 1.0).collect();
        for bits in [WeightBits::W8, WeightBits::W4, WeightBits::W3, WeightBits::W2] {
            for granularity in
                [16, 32].map(Granularity::PerGroup).into_iter().chain([Granularity::PerChannel])
            {
                let scheme = WeightScheme { bits, granularity };
                let span = (bits.range().max - bits.range().min + 1) as usize;
                let codes: vec::Vec<i8> =
                    (0..n * k).map(|i| (bits.range().min + (i * 7 % span) as i32) as i8).collect();
                let scales = vec![0.25; scheme.num_scales(n, k)];
                let matrix = PackedMatrix::from_codes(n, k, scheme, &codes, &scales).unwrap();
                for kernels in Kernels::available() {
                    let mut rows = QuantizedRows::new();
                    let widths = [ActBits::A8, ActBits::A4, ActBits::A8];
                    kernels.quantize_rows(&mut rows, &x, k, &widths, &RowQuantizer::Dynamic);
                    let (mut got, mut expected) = (vec![0.0; m * n], vec![0.0; m * n]);
                    kernels.linear(&matrix, rows.as_view(), ColumnsMut::new(&mut got, m, n));
                    reference::linear(&matrix, rows.as_view(), &mut ColumnsMut::new(&mut expected, m, n));
                    assert_eq!(got, expected, "{} {scheme:?}", kernels.name());
                }
            }
        }
    }
}
