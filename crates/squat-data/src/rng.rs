//! The random numbers of this crate: small, seeded, the same on every machine for ever.
//!
//! Written here because a corpus, a batch order and a run that resumes must not change with a library's version.

/// SplitMix64: one multiply-xor-shift chain per number, 2^64 period, any seed is good.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SplitMix64 {
    state: u64,
}

/// A bijection on 64 bits that spreads every input bit over all output bits.
#[inline]
pub fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

impl SplitMix64 {
    /// A stream of its own for each seed.
    pub fn new(seed: u64) -> Self {
        Self { state: seed }
    }

    /// The stream number `stream` of a seed, unrelated to the streams beside it.
    pub fn stream(seed: u64, stream: u64) -> Self {
        Self { state: mix(seed.wrapping_add(mix(stream ^ 0xA076_1D64_78BD_642F))) }
    }

    /// 64 random bits.
    #[inline]
    pub fn next_u64(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        mix(self.state)
    }

    /// A number in `0..n`; 0 when `n` is 0. Bias at most n / 2^64.
    #[inline]
    pub fn below(&mut self, n: u64) -> u64 {
        ((u128::from(self.next_u64()) * u128::from(n)) >> 64) as u64
    }

    /// True once in `100 / percent` times.
    #[inline]
    pub fn percent(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }

    /// One item of a list that is not empty.
    #[inline]
    pub(crate) fn pick<'a, T>(&mut self, items: &'a [T]) -> &'a T {
        &items[self.below(items.len() as u64) as usize]
    }
}

/// A seeded permutation of `0..n` with access to any position in constant time and no memory:
/// a Feistel network over the next even power of two, walked until it lands inside the range.
#[derive(Clone, Debug)]
pub struct Permutation {
    n: u64,
    half_bits: u32,
    keys: [u64; 6],
}

impl Permutation {
    /// The permutation of `0..n` that belongs to `seed`.
    pub fn new(n: u64, seed: u64) -> Self {
        let bits = 64 - n.saturating_sub(1).leading_zeros();
        let mut rng = SplitMix64::stream(seed, n);
        Self { n, half_bits: bits.div_ceil(2).max(1), keys: std::array::from_fn(|_| rng.next_u64()) }
    }

    /// Where position `i` goes; one that is not below `n` stays.
    pub fn get(&self, i: u64) -> u64 {
        if i >= self.n {
            return i;
        }
        let mask = (1u64 << self.half_bits) - 1;
        let mut x = i;
        // The network permutes at most 4 n values, so the expected walk is under four steps.
        loop {
            let (mut left, mut right) = (x >> self.half_bits, x & mask);
            for key in self.keys {
                (left, right) = (right, left ^ (mix(right ^ key) & mask));
            }
            x = (left << self.half_bits) | right;
            if x < self.n {
                return x;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn known_stream() {
        // The published test vector of SplitMix64 with seed 1234567.
        let mut rng = SplitMix64::new(1_234_567);
        assert_eq!(rng.next_u64(), 6_457_827_717_110_365_317);
        assert_eq!(rng.next_u64(), 3_203_168_211_198_807_973);
        assert_eq!(SplitMix64::new(1).below(0), 0);
    }

    proptest! {
        #[test]
        fn permutation_is_a_bijection(n in 1u64..3000, seed: u64) {
            let p = Permutation::new(n, seed);
            let mut seen = vec![false; n as usize];
            for i in 0..n {
                let j = p.get(i) as usize;
                prop_assert!(!seen[j]);
                seen[j] = true;
            }
        }
    }

    #[test]
    fn permutation_is_spread() {
        // Mean distance of neighbours under a uniform permutation is n / 3.
        let n = 10_000;
        let p = Permutation::new(n, 7);
        let mean = (1..n).map(|i| p.get(i).abs_diff(p.get(i - 1))).sum::<u64>() / (n - 1);
        assert!((3000..3700).contains(&mean), "{mean}");
    }
}
