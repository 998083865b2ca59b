//! AVX2 with AVX-VNNI, `vpdpbusd` for CPUs without AVX-512: four products added in 32 bits without saturation.

use super::avx2::Avx2;
use crate::arch::table::kernel_table;

impl Avx2<true> {
    /// For functions compiled with these target features, which only run where the CPU has them.
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c,avxvnni")]
    fn new() -> Self {
        Self(())
    }
}

kernel_table! {
    /// Kernels for AVX2, F16C and AVX-VNNI.
    pub(crate) static AVXVNNI = ["avx2,fma,f16c,avxvnni"], token: Avx2<true>, float: (2, 2), int: (4, 1, 4), wide_tiles: false
}
