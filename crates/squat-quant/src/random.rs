//! SplitMix64, the seeded generator of all crates: the numbers of a seed are the same on every machine and never
//! change with a library's version.
//!
//! Source: Steele, Lea, Flood, "Fast splittable pseudorandom number generators" (OOPSLA 2014), with the finalizer of
//! `java.util.SplittableRandom`.

/// SplitMix64: one multiply-xor-shift chain per number, period 2^64, every seed is good.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SplitMix64 {
    state: u64,
}

/// A bijection on 64 bits in which every input bit affects all output bits: the finalizer of SplitMix64.
#[inline]
pub const fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

impl SplitMix64 {
    /// The generator at the beginning of a seed's sequence.
    pub const fn new(seed: u64) -> Self {
        Self { state: seed }
    }

    /// Stream number `stream` of a seed, unrelated to its neighbours.
    pub const fn stream(seed: u64, stream: u64) -> Self {
        Self { state: mix(seed.wrapping_add(mix(stream ^ 0xA076_1D64_78BD_642F))) }
    }

    /// 64 random bits.
    #[inline]
    pub const fn next_u64(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        mix(self.state)
    }

    /// Uniform in [0, 1), a multiple of 2^-53.
    #[inline]
    pub const fn uniform(&mut self) -> f64 {
        (self.next_u64() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// A number in `0..n`; 0 when `n` is 0. Bias at most n / 2^64.
    #[inline]
    pub const fn below(&mut self, n: u64) -> u64 {
        ((self.next_u64() as u128 * n as u128) >> 64) as u64
    }

    /// True with a probability of `percent` in 100.
    #[inline]
    pub const fn percent(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }

    /// One item of a list that is not empty.
    ///
    /// # Panics
    /// An empty list.
    #[inline]
    pub fn pick<'a, T>(&mut self, items: &'a [T]) -> &'a T {
        &items[self.below(items.len() as u64) as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_stream() {
        // The published test vector for seed 1234567.
        let mut rng = SplitMix64::new(1_234_567);
        assert_eq!(rng.next_u64(), 6_457_827_717_110_365_317);
        assert_eq!(rng.next_u64(), 3_203_168_211_198_807_973);
        assert_eq!(SplitMix64::new(1).below(0), 0);
    }

    #[test]
    fn numbers_stay_in_their_ranges() {
        let mut rng = SplitMix64::new(0);
        let mean = (0..10_000).map(|_| rng.uniform()).sum::<f64>() / 10_000.0;
        assert!((mean - 0.5).abs() < 0.02, "{mean}");
        assert!((0..1000).all(|_| rng.below(7) < 7));
        assert_eq!((0..10_000).filter(|_| rng.percent(100)).count(), 10_000);
    }
}
