//! A number that tells models apart, for files that belong to one.

use crate::linear::{Linear, Weight};
use crate::model::Model;
use std::fmt::Write as _;

/// FNV-1a over 64-bit words.
pub(crate) struct Hash(u64);

impl Hash {
    pub(crate) fn new() -> Self {
        Self(0xCBF2_9CE4_8422_2325)
    }

    pub(crate) fn word(&mut self, word: u64) {
        self.0 = (self.0 ^ word).wrapping_mul(0x0000_0100_0000_01B3);
        // A multiplication alone never carries down.
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

    pub(crate) fn finish(self) -> u64 {
        self.0
    }
}

impl Model {
    /// A number that tells models apart: architecture, plan, norms, biases, quantizers, and of the weights the values, or of
    /// integers each row's scales and sums of codes. It depends on no layout.
    pub(crate) fn fingerprint(&self) -> u64 {
        let mut hash = Hash::new();
        hash.debug(&self.spec);
        hash.debug(&self.plan);
        let floats = |hash: &mut Hash, values: &mut dyn Iterator<Item = f32>| {
            values.for_each(|x| hash.word(u64::from(x.to_bits())));
        };
        let weight = |hash: &mut Hash, weight: &Weight| match weight {
            Weight::Packed(matrix) => matrix.row_marks().for_each(|(scale, sum)| {
                hash.word(u64::from(scale.to_bits()) << 32 | u64::from(sum as u32));
            }),
            Weight::F32(values) => values.iter().for_each(|x| hash.word(u64::from(x.to_bits()))),
            Weight::F16(values) => values.iter().for_each(|&x| hash.word(u64::from(x))),
        };
        let linear = |hash: &mut Hash, linear: &Linear| {
            weight(hash, &linear.weight);
            floats(hash, &mut (0..linear.rows).map_while(|channel| linear.bias(channel)));
            hash.debug(&linear.input);
        };
        weight(&mut hash, &self.embedding);
        floats(&mut hash, &mut self.positions.iter().flatten().copied());
        for layer in &self.layers {
            floats(&mut hash, &mut layer.attn_norm.values().chain(layer.mlp_norm.values()));
            for part in [&layer.qkv, &layer.output, &layer.gate_up, &layer.down] {
                linear(&mut hash, part);
            }
            hash.debug(&layer.attention);
        }
        floats(&mut hash, &mut self.final_norm.values());
        linear(&mut hash, &self.head);
        hash.0
    }
}
