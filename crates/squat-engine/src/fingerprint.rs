//! A number that tells models apart, for files that belong to one.

use crate::linear::Weight;
use crate::model::{Model, Place};
use squat_quant::{ActPoint, WeightScheme};
use std::fmt::Write as _;
use std::ops::Range;

/// FNV-1a over 64-bit words.
pub(crate) struct Hash(u64);

impl Hash {
    pub(crate) fn new() -> Self {
        Self(0xCBF2_9CE4_8422_2325)
    }

    pub(crate) fn word(&mut self, word: u64) {
        self.0 = (self.0 ^ word).wrapping_mul(0x0000_0100_0000_01B3);
        // A multiplication alone moves bits upwards only.
        self.0 ^= self.0 >> 32;
    }

    pub(crate) fn bytes(&mut self, bytes: &[u8]) {
        let (words, rest) = bytes.as_chunks::<8>();
        words.iter().for_each(|word| self.word(u64::from_le_bytes(*word)));
        rest.iter().for_each(|&byte| self.word(u64::from(byte)));
        self.word(bytes.len() as u64);
    }

    fn debug(&mut self, value: &impl std::fmt::Debug) {
        struct Sink<'a>(&'a mut Hash);
        impl std::fmt::Write for Sink<'_> {
            fn write_str(&mut self, text: &str) -> std::fmt::Result {
                text.bytes().for_each(|byte| self.0.word(u64::from(byte)));
                Ok(())
            }
        }
        // Writing to the sink cannot fail.
        let _ = write!(Sink(self), "{value:?}");
    }

    fn floats(&mut self, values: impl Iterator<Item = f32>) {
        values.for_each(|x| self.word(u64::from(x.to_bits())));
    }

    /// Some rows of a weight `[out, cols]`.
    fn rows(&mut self, weight: &Weight, rows: Range<usize>, cols: usize, scheme: Option<WeightScheme>) {
        let (first, count) = (rows.start * cols, rows.len() * cols);
        match weight {
            Weight::Packed(matrix) => {
                let per_row = scheme.map_or(1, |scheme| scheme.num_scales(1, cols));
                let marks = matrix.row_marks().skip(rows.start * per_row).take(rows.len() * per_row);
                marks.for_each(|(scale, sum)| {
                    self.word(u64::from(scale.to_bits()) << 32 | u64::from(sum as u32));
                });
            }
            Weight::F32(values) => self.floats(values[first..first + count].iter().copied()),
            Weight::F16(values) => values[first..first + count].iter().for_each(|&x| self.word(u64::from(x))),
        }
    }

    pub(crate) fn finish(self) -> u64 {
        self.0
    }
}

impl Model {
    /// A number that tells models apart: the spec, the plan, every parameter that the spec lists and the quantizer of every
    /// point. Floats count by value, packed integers by scale and sum of codes of each row and group. It does not depend on
    /// how weights are laid out.
    pub(crate) fn fingerprint(&self) -> u64 {
        let mut hash = Hash::new();
        hash.debug(&self.spec);
        hash.debug(&self.plan);
        for (param, place) in self.places() {
            hash.debug(&param.name);
            match place {
                Place::Values(values) => hash.floats(values.iter().copied()),
                Place::Biases(linear, rows) => hash.floats(rows.map_while(|channel| linear.bias(channel))),
                Place::Rows(weight, rows) => {
                    let scheme = self.plan.scheme_of(&param);
                    hash.rows(weight, rows, param.shape[1], scheme);
                }
            }
        }
        for layer in (0..self.layers.len()).map(Some).chain([None]) {
            for point in ActPoint::ALL {
                hash.debug(&self.quantizer(point, layer));
            }
        }
        hash.finish()
    }
}
