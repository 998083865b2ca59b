//! Seeded numbers for weights and texts.

use squat_quant::random::{SplitMix64, mix};

/// SplitMix64 with the floats that random weights are made of.
pub struct Rng(SplitMix64);

impl Rng {
    pub fn new(seed: u64) -> Self {
        Self(SplitMix64::new(seed))
    }

    pub fn next_u64(&mut self) -> u64 {
        self.0.next_u64()
    }

    /// Uniform in [-1, 1), a multiple of 2^-23.
    pub fn signed(&mut self) -> f32 {
        signed(self.next_u64())
    }

    /// Roughly normal, standard deviation 1.
    pub fn normal(&mut self) -> f32 {
        let sum: f32 = (0..4).map(|_| (self.next_u64() >> 40) as f32 / (1u64 << 24) as f32 - 0.5).sum();
        sum * 1.732
    }
}

fn signed(bits: u64) -> f32 {
    (bits >> 40) as f32 / (1u64 << 23) as f32 - 1.0
}

/// A number in [-1, 1) from a seed and an index.
pub fn noise(seed: u64, index: u64) -> f32 {
    signed(mix((seed << 32).wrapping_add(index).wrapping_mul(0x9E37_79B9_7F4A_7C15)))
}

/// `count` numbers in [-1, 1) that depend on a name alone: SplitMix64 seeded with FNV-1a of the name. The scripts that
/// make golden files do the same.
pub fn noise_of_name(name: &str, count: usize) -> Vec<f32> {
    let fnv = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01B3);
    let mut rng = Rng::new(name.bytes().fold(0xCBF2_9CE4_8422_2325, fnv));
    (0..count).map(|_| rng.signed()).collect()
}
