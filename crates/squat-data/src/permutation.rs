//! A seeded permutation of `0..n` in constant memory.

use squat_quant::random::{SplitMix64, mix};

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
