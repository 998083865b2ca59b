//! Random numbers for tests.
#![allow(dead_code)]

use squat_kernels::Kernels;

/// A small generator; the seed comes from proptest.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u32 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.0 >> 33) as u32
    }

    /// A number in `low..=high`.
    pub fn between(&mut self, low: i32, high: i32) -> i32 {
        low + (self.next() % (high - low + 1) as u32) as i32
    }

    /// Mode 0: anywhere in the range; 1: only its ends; 2: all at the low end; 3: all at the high end.
    pub fn code(&mut self, low: i32, high: i32, mode: u8) -> i8 {
        (match mode {
            0 => self.between(low, high),
            1 if self.next().is_multiple_of(2) => low,
            1 | 3 => high,
            _ => low,
        }) as i8
    }

    pub fn codes(&mut self, n: usize, low: i32, high: i32, mode: u8) -> Vec<i8> {
        (0..n).map(|_| self.code(low, high, mode)).collect()
    }

    pub fn float(&mut self, largest: f32) -> f32 {
        (self.next() as f32 / (1u32 << 31) as f32 * 2.0 - 1.0) * largest
    }

    pub fn floats(&mut self, n: usize, largest: f32) -> Vec<f32> {
        (0..n).map(|_| self.float(largest)).collect()
    }
}

pub fn bits(x: &[f32]) -> Vec<u32> {
    x.iter().map(|x| x.to_bits()).collect()
}

pub fn kernels() -> Vec<&'static Kernels> {
    let all: Vec<_> = Kernels::available().collect();
    assert!(!all.is_empty());
    all
}
