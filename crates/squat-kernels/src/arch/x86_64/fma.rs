//! Fused multiply-add, only to measure what the hardware could do: no kernel uses it, see [`crate::float`].

use crate::probe::{OPERANDS, Work};
use core::arch::x86_64::*;

const REPEATS: usize = 64;

macro_rules! fma_loop {
    ($name:ident, $features:literal, $lanes:literal, $acc:literal, $load:ident, $zero:ident, $fma:ident, $store:ident) => {
        #[target_feature(enable = $features)]
        fn $name(a: &[[f32; 16]; OPERANDS]) -> Work {
            let mut acc = [$zero(); $acc];
            // Not all the same: equal sums would be computed once.
            for (acc, a) in acc.iter_mut().zip(a) {
                // SAFETY: reads the first lanes of an array of 16, no alignment needed.
                *acc = unsafe { $load(a.as_ptr()) };
            }
            // SAFETY: reads the first lanes of an array of 16, no alignment needed.
            let w = unsafe { $load(a[1].as_ptr()) };
            for _ in 0..REPEATS {
                for a in a {
                    // SAFETY: as above.
                    let a = unsafe { $load(a.as_ptr()) };
                    for acc in &mut acc {
                        *acc = $fma(a, w, *acc);
                    }
                }
            }
            let mut sum = 0u64;
            for acc in acc {
                let mut lanes = [0f32; 16];
                // SAFETY: writes the first lanes of an array of 16, no alignment needed.
                unsafe { $store(lanes.as_mut_ptr(), acc) };
                sum = lanes.iter().fold(sum, |sum, x| sum.wrapping_add(u64::from(x.to_bits())));
            }
            ((REPEATS * OPERANDS * $acc * 2 * $lanes) as u64, sum)
        }
    };
}

fma_loop!(wide, "avx512f", 16, 12, _mm512_loadu_ps, _mm512_setzero_ps, _mm512_fmadd_ps, _mm512_storeu_ps);
fma_loop!(narrow, "avx,fma", 8, 12, _mm256_loadu_ps, _mm256_setzero_ps, _mm256_fmadd_ps, _mm256_storeu_ps);

/// The loop of the widest fused multiply-add that goes with the kernels of that name, if this CPU has it.
pub(crate) fn fma_work(isa: &str) -> Option<fn(&[[f32; 16]; OPERANDS]) -> Work> {
    if isa.starts_with("avx512") && std::arch::is_x86_feature_detected!("avx512f") {
        // SAFETY: the CPU has AVX-512 F.
        return Some(|a| unsafe { wide(a) });
    }
    let has = isa.starts_with("avx")
        && std::arch::is_x86_feature_detected!("avx")
        && std::arch::is_x86_feature_detected!("fma");
    // SAFETY: the CPU has AVX and FMA.
    has.then_some(|a: &[[f32; 16]; OPERANDS]| unsafe { narrow(a) })
}
