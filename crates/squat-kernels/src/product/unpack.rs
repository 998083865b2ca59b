//! Stored codes of each width, to bytes in registers.

use crate::block::Block;
use crate::simd::{IntSimd, Quad};
use crate::storage::Storage;

/// How a product reads the codes of one [`Storage`]. A step is what must be unpacked together.
///
/// No closures over registers here or in the tiles, see [`crate::simd`].
pub(crate) trait Unpack: 'static {
    const STORAGE: Storage;
    /// Blocks of a step: [`Storage::blocks`] of them.
    type Blocks: AsRef<[Block]> + 'static;
    /// Activation codes of a step: [`Storage::depth`] of them.
    type Codes: 'static;
    /// The steps of a panel.
    fn blocks(panel: &[Block]) -> &[Self::Blocks];
    /// The steps of a row of activations.
    fn codes(row: &[i8]) -> &[Self::Codes];
    /// `acc + partial += blocks . a` for `NP` panels and `MR` rows: 8-bit products are added to `acc`, narrower ones to
    /// `partial`.
    fn step<S: IntSimd, const MR: usize, const NP: usize>(
        s: S,
        acc: &mut [[S::V; NP]; MR],
        partial: &mut [[S::Partial; NP]; MR],
        blocks: &[&Self::Blocks; NP],
        a: &[&Self::Codes; MR],
    );
    /// The unsigned codes of a step as bytes, 4 inputs of 16 channels to a block: `out` has a quarter of
    /// [`Storage::depth`] blocks. Sixteen of them are one operand of a tile unit, 64 inputs of 16 channels.
    #[cfg_attr(not(test), allow(dead_code))]
    fn unpack<S: IntSimd>(s: S, blocks: &Self::Blocks, out: &mut [Block]);
}

pub(crate) struct Bits8;
pub(crate) struct Bits4;
pub(crate) struct Bits3;
pub(crate) struct Bits2;

/// The bytes of a vector.
#[inline(always)]
fn bytes_of<S: IntSimd>(s: S, v: S::V) -> Block {
    Block::from_lanes(s.store(v).map(|lane| lane as u32))
}

impl Unpack for Bits8 {
    const STORAGE: Storage = Storage::Bits8;
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
        _: &mut [[S::Partial; NP]; MR],
        blocks: &[&Self::Blocks; NP],
        a: &[&Self::Codes; MR],
    ) {
        let mut w = [s.zero(); NP];
        for p in 0..NP {
            w[p] = s.unpack8(s.load(&blocks[p][0].0));
        }
        for m in 0..MR {
            s.dot4(&mut acc[m], &w, a[m]);
        }
    }

    #[inline(always)]
    fn unpack<S: IntSimd>(_: S, blocks: &Self::Blocks, out: &mut [Block]) {
        out[0] = blocks[0];
    }
}

impl Unpack for Bits4 {
    const STORAGE: Storage = Storage::Bits4;
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
        partial: &mut [[S::Partial; NP]; MR],
        blocks: &[&Self::Blocks; NP],
        a: &[&Self::Codes; MR],
    ) {
        let mut fields = [[s.zero(); NP]; 2];
        for p in 0..NP {
            [fields[0][p], fields[1][p]] = s.unpack4(s.load(&blocks[p][0].0));
        }
        s.dot_rows(partial, &fields, a);
    }

    #[inline(always)]
    fn unpack<S: IntSimd>(s: S, blocks: &Self::Blocks, out: &mut [Block]) {
        for (out, field) in out.iter_mut().zip(s.unpack4(s.load(&blocks[0].0))) {
            *out = bytes_of(s, field);
        }
    }
}

impl Unpack for Bits3 {
    const STORAGE: Storage = Storage::Bits3;
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
        partial: &mut [[S::Partial; NP]; MR],
        blocks: &[&Self::Blocks; NP],
        a: &[&Self::Codes; MR],
    ) {
        let mut w = [[s.zero(); NP]; 3];
        let mut fields = [[s.zero(); NP]; 2];
        let mut pairs = [&a[0][0]; MR];
        for i in 0..4 {
            for p in 0..NP {
                if i < 3 {
                    w[i][p] = s.load(&blocks[p][i].0);
                    [fields[0][p], fields[1][p]] = s.unpack3(w[i][p]);
                } else {
                    [fields[0][p], fields[1][p]] = s.unpack3_high(w[0][p], w[1][p], w[2][p]);
                }
            }
            for m in 0..MR {
                pairs[m] = &a[m][i];
            }
            s.dot_rows(partial, &fields, &pairs);
        }
    }

    #[inline(always)]
    fn unpack<S: IntSimd>(s: S, blocks: &Self::Blocks, out: &mut [Block]) {
        let mut w = [s.zero(); 3];
        for i in 0..3 {
            w[i] = s.load(&blocks[i].0);
        }
        for i in 0..4 {
            let fields = if i < 3 { s.unpack3(w[i]) } else { s.unpack3_high(w[0], w[1], w[2]) };
            for (f, field) in fields.into_iter().enumerate() {
                out[2 * i + f] = bytes_of(s, field);
            }
        }
    }
}

impl Unpack for Bits2 {
    const STORAGE: Storage = Storage::Bits2;
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
        partial: &mut [[S::Partial; NP]; MR],
        blocks: &[&Self::Blocks; NP],
        a: &[&Self::Codes; MR],
    ) {
        let mut fields = [[s.zero(); NP]; 4];
        for p in 0..NP {
            [fields[0][p], fields[1][p], fields[2][p], fields[3][p]] = s.unpack2(s.load(&blocks[p][0].0));
        }
        s.dot_rows(partial, &fields, a);
    }

    #[inline(always)]
    fn unpack<S: IntSimd>(s: S, blocks: &Self::Blocks, out: &mut [Block]) {
        for (out, field) in out.iter_mut().zip(s.unpack2(s.load(&blocks[0].0))) {
            *out = bytes_of(s, field);
        }
    }
}
