//! The kernel sets, the choice of one for this CPU, and the functions that it offers.

use crate::arch::functions::{kernel_functions, types::*};
use crate::arch::{self, Table};
use crate::arena::WeightArena;
use crate::attention::{
    AttentionScratch, Causal, FloatKvHead, FloatSteps, KvHead, Steps, attend, attend_float,
};
use crate::error::{MatrixError, UnknownIsa};
use crate::rows::QuantizedRows;
use crate::storage::Storage;
use alloc::string::ToString;
use alloc::sync::Arc;
use squat_quant::{WeightBits, WeightScheme};

/// The functions of one instruction set.
///
/// Every function gives the same bits in every set. Get one with [`Kernels::detect`] and pass the reference around.
pub struct Kernels {
    name: &'static str,
    supported: fn() -> bool,
    table: &'static Table,
    /// The set that may be faster, depending on the CPU.
    alternative: Option<&'static str>,
}

impl Kernels {
    const fn new(name: &'static str, supported: fn() -> bool, table: &'static Table) -> Self {
        Self { name, supported, table, alternative: None }
    }

    // WebAssembly has no set with an alternative.
    #[cfg_attr(target_family = "wasm", allow(dead_code))]
    const fn or(self, alternative: &'static str) -> Self {
        Self { alternative: Some(alternative), ..self }
    }
}

/// Every set of this build, plainest first. The last one that the CPU can run is used, unless it has an alternative that
/// measures faster.
///
/// AVX-VNNI does in one instruction what takes AVX2 three for two products kept in 16 bits, but CPUs differ in how many
/// of them they start in a cycle; likewise `usmmla` of i8mm, which does twice the work of `sdot`.
static ALL: &[Kernels] = &[
    Kernels::new("scalar", || true, &arch::SCALAR),
    #[cfg(target_arch = "x86_64")]
    Kernels::new("avx2", arch::x86_64::has_avx2, &arch::x86_64::AVX2),
    #[cfg(target_arch = "x86_64")]
    Kernels::new("avxvnni", arch::x86_64::has_avxvnni, &arch::x86_64::AVXVNNI).or("avx2"),
    #[cfg(target_arch = "x86_64")]
    Kernels::new("avx512vnni", arch::x86_64::has_avx512vnni, &arch::x86_64::AVX512VNNI),
    #[cfg(all(target_arch = "aarch64", target_endian = "little"))]
    Kernels::new("neon", arch::aarch64::has_neon, &arch::aarch64::NEON),
    #[cfg(all(target_arch = "aarch64", target_endian = "little"))]
    Kernels::new("neon-dotprod", arch::aarch64::has_dotprod, &arch::aarch64::DOTPROD),
    #[cfg(all(target_arch = "aarch64", target_endian = "little"))]
    Kernels::new("neon-i8mm", arch::aarch64::has_i8mm, &arch::aarch64::I8MM).or("neon-dotprod"),
    #[cfg(all(target_arch = "wasm32", target_feature = "simd128"))]
    Kernels::new("simd128", || true, &arch::wasm32::SIMD128),
];

macro_rules! define_methods {
    ({} $($(#[$meta:meta])* $vis:vis fn $name:ident($($arg:ident: $type:ty),*) $(-> $ret:ty)? = $body:expr;)*) => {
        /// Functions that are called as they are.
        #[allow(dead_code)]
        impl Kernels {
            $($(#[$meta])*
            $vis fn $name(&self, $($arg: $type),*) $(-> $ret)? {
                (self.table.$name)($($arg),*)
            })*
        }
    };
}
kernel_functions!(define_methods, {});

/// The choice between two sets by measurement.
#[cfg(feature = "std")]
mod autotune {
    use super::*;
    use alloc::vec;
    use std::time::{Duration, Instant};

    /// Rows, inputs and outputs of the product: some microseconds on any CPU, and everything in the first-level cache.
    const SHAPE: (usize, usize, usize) = (16, 256, 64);
    /// Each set gets its best time of this many, so that an interruption decides nothing.
    const TRIALS: usize = 15;

    /// The set with the faster W4A8 product of some rows, the usual case of a prompt. Takes well under a millisecond.
    pub(super) fn faster(a: &'static Kernels, b: &'static Kernels) -> &'static Kernels {
        let (m, k, n) = SHAPE;
        let scheme = WeightScheme::per_channel(WeightBits::W4);
        let codes = vec![3; n * k];
        let Ok(matrix) = PackedMatrix::from_codes(n, k, scheme, &codes, &vec![1.0; n]) else { return b };
        let mut rows = QuantizedRows::new();
        b.quantize_rows(&mut rows, &vec![0.5; m * k], k, &[ActBits::A8], &RowQuantizer::DYNAMIC);
        let mut y = vec![0.0; m * n];
        let mut best = [Duration::MAX; 2];
        for _ in 0..TRIALS {
            for (best, kernels) in best.iter_mut().zip([a, b]) {
                let start = Instant::now();
                kernels.linear(&matrix, rows.as_view(), ColumnsMut::new(&mut y, m, n));
                *best = start.elapsed().min(*best);
            }
        }
        if best[0] < best[1] { a } else { b }
    }
}

impl core::fmt::Debug for Kernels {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "Kernels({})", self.name)
    }
}

/// Name of a product kernel, such as `avx512vnni-w4a8`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProductName {
    isa: &'static str,
    weights: WeightBits,
    activations: ActBits,
}

impl core::fmt::Display for ProductName {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "{}-w{}a{}", self.isa, self.weights.name(), self.activations.bits())
    }
}

impl Kernels {
    /// The portable kernels.
    pub fn scalar() -> &'static Self {
        &ALL[0]
    }

    /// The sets that this CPU can run, plainest first. Without the feature `std`, those whose target features the compiler
    /// was given.
    pub fn available() -> impl DoubleEndedIterator<Item = &'static Self> {
        ALL.iter().filter(|kernels| (kernels.supported)())
    }

    /// The best set of this CPU, or the one named by the environment variable `SQUAT_ISA`.
    ///
    /// With the feature `std` the choice is made once. An unusable name in `SQUAT_ISA` is ignored here; programs call
    /// [`Self::from_environment`] first to report it.
    pub fn detect() -> &'static Self {
        #[cfg(feature = "std")]
        {
            static CHOICE: std::sync::OnceLock<&'static Kernels> = std::sync::OnceLock::new();
            CHOICE.get_or_init(|| match Self::from_environment() {
                Ok(Some(kernels)) => kernels,
                _ => Self::best(),
            })
        }
        #[cfg(not(feature = "std"))]
        Self::best()
    }

    /// The set that `SQUAT_ISA` names, if it is set and not empty.
    ///
    /// # Errors
    /// [`UnknownIsa`] if no such set exists or this CPU cannot run it.
    #[cfg(feature = "std")]
    pub fn from_environment() -> Result<Option<&'static Self>, UnknownIsa> {
        match std::env::var("SQUAT_ISA") {
            Ok(name) if !name.is_empty() => Self::by_name(&name).map(Some),
            _ => Ok(None),
        }
    }

    /// The last set that the CPU can run, or its alternative if that one measures faster.
    fn best() -> &'static Self {
        let last = Self::available().next_back().unwrap_or(&ALL[0]);
        #[cfg(feature = "std")]
        if let Some(alternative) = last.alternative() {
            return autotune::faster(alternative, last);
        }
        last
    }

    /// Another set that this CPU can run and that may be the faster one, depending on the CPU.
    pub fn alternative(&self) -> Option<&'static Self> {
        Self::available().find(|kernels| Some(kernels.name) == self.alternative)
    }

    /// The set with a given name.
    ///
    /// # Errors
    /// [`UnknownIsa`] if no such set exists or this CPU cannot run it.
    pub fn by_name(name: &str) -> Result<&'static Self, UnknownIsa> {
        Self::available().find(|kernels| kernels.name == name).ok_or_else(|| UnknownIsa {
            name: name.to_string(),
            available: Self::available().map(|kernels| kernels.name).collect(),
            exists: ALL.iter().any(|kernels| kernels.name == name),
        })
    }

    /// Name of the set: `scalar`; `avx2`, `avxvnni`, `avx512vnni`; `neon`, `neon-dotprod`, `neon-i8mm`; `simd128`.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// Name of the product kernel for these widths, such as `avx512vnni-w4a8`.
    pub fn product_name(&self, weights: WeightBits, activations: ActBits) -> ProductName {
        ProductName { isa: self.name, weights, activations }
    }

    /// Quantizes the rows of x `[m, k]` into `rows`, row `i` at `bits[i]`, with the codes of
    /// [`squat_quant::affine::quantize_row_dynamic`] or [`squat_quant::affine::quantize_row`].
    ///
    /// `bits` may also hold a single width for all rows.
    ///
    /// # Panics
    /// If `x` is not a whole number of rows, or `bits` has neither one entry nor one per row.
    pub fn quantize_rows(
        &self,
        rows: &mut QuantizedRows,
        x: &[f32],
        k: usize,
        bits: &[ActBits],
        quantizer: &RowQuantizer,
    ) {
        let m = x.len().checked_div(k).unwrap_or(bits.len());
        rows.reset(m, k);
        self.quantize_into(rows.as_mut(), x, bits, quantizer);
    }

    /// [`Self::quantize_rows`] into rows that [`QuantizedRows::reset`] has sized, and that may be split among threads.
    ///
    /// # Panics
    /// If the shapes do not match.
    pub fn quantize_into(
        &self,
        mut rows: RowsMut<'_>,
        x: &[f32],
        bits: &[ActBits],
        quantizer: &RowQuantizer,
    ) {
        let k = rows.cols();
        assert_eq!(x.len(), rows.rows() * k, "values of {} rows of {k}", rows.rows());
        check_widths(bits, rows.rows());
        self.quantize_each_row(&mut rows, x, bits, quantizer);
    }

    /// [`Self::rms_norm`] of each row of x `[m, k]` and [`Self::quantize_into`] of the result in one call, with the same
    /// bits; the normalised values are not stored.
    ///
    /// # Panics
    /// If the shapes do not match.
    pub fn rms_norm_quantize_into(
        &self,
        mut rows: RowsMut<'_>,
        x: &[f32],
        gain: &[f32],
        eps: f32,
        bits: &[ActBits],
        quantizer: &RowQuantizer,
    ) {
        let k = rows.cols();
        assert_eq!(x.len(), rows.rows() * k, "values of {} rows of {k}", rows.rows());
        assert_eq!(gain.len(), k, "gains of rows of {k}");
        check_widths(bits, rows.rows());
        for (i, x) in x.chunks_exact(k.max(1)).enumerate() {
            rows.fill(i, bits, quantizer, |grid, codes| self.rms_norm_quantize(x, gain, eps, grid, codes));
        }
    }

    /// [`Self::silu_mul`] of the halves of each row of `gate_up` `[m, 2 k]` (gate first), [`Self::transform`] and
    /// [`Self::quantize_into`] of the result in one call, with the same bits. `scratch` `[k]` is overwritten.
    ///
    /// # Panics
    /// If the shapes do not match.
    pub fn silu_mul_quantize_into(
        &self,
        mut rows: RowsMut<'_>,
        gate_up: &[f32],
        scratch: &mut [f32],
        transform: Transform,
        bits: &[ActBits],
        quantizer: &RowQuantizer,
    ) {
        let k = rows.cols();
        assert_eq!(gate_up.len(), 2 * rows.rows() * k, "values of {} rows of twice {k}", rows.rows());
        assert_eq!(scratch.len(), k, "scratch for rows of {k}");
        check_widths(bits, rows.rows());
        for (i, gate_up) in gate_up.chunks_exact((2 * k).max(1)).enumerate() {
            let (gate, up) = gate_up.split_at(k);
            rows.fill(i, bits, quantizer, |grid, codes| {
                if transform.is_none() {
                    return self.silu_mul_quantize(gate, up, scratch, grid, codes);
                }
                // Three calls, while the row is near: a transform within the one function would double the program's share of it.
                self.silu_mul(gate, up, scratch);
                self.transform(scratch, k, transform);
                self.quantize_row(scratch, grid, codes)
            });
        }
    }

    /// [`PackedMatrix::quantize`], the same matrix, with the vector instructions of this set.
    ///
    /// # Errors
    /// What [`PackedMatrix::from_codes`] refuses.
    pub fn quantize_matrix(
        &self,
        rows: usize,
        cols: usize,
        scheme: WeightScheme,
        weight: &[f32],
        scales: &[f32],
    ) -> Result<PackedMatrix, MatrixError> {
        PackedMatrix::quantize_by(rows, cols, scheme, weight, scales, |row, affine, codes| {
            self.quantize_row(row, Grid::Fixed(affine), codes);
        })
    }

    /// The exact integer product of all `rows` with the output channels that `out` covers; [`crate::product`] has the
    /// definition. `out` is `[rows, channels]`: a thread gets its share of the channels as a range of columns.
    ///
    /// # Panics
    /// If the shapes do not match.
    pub fn linear(&self, matrix: &PackedMatrix, rows: RowsView<'_>, mut out: ColumnsMut<'_>) {
        match matrix.storage() {
            Storage::Bits8 => self.linear_bits8(matrix, rows, &mut out),
            Storage::Bits4 => self.linear_bits4(matrix, rows, &mut out),
            Storage::Bits3 => self.linear_bits3(matrix, rows, &mut out),
            Storage::Bits2 => self.linear_bits2(matrix, rows, &mut out),
        }
    }

    /// Packs rows of dense words, the layout of weight files: code plus `2^(b-1)`, lowest bits first, each row on a new
    /// word. `words(row)` returns the words of a row; the blocks are placed in `arena`, if there is one.
    ///
    /// The same matrix as [`PackedMatrix::from_rows`] makes of the codes, many times as fast.
    ///
    /// # Errors
    /// What [`PackedMatrix::from_codes`] refuses, and rows with another number of words.
    pub fn matrix_from_words<'a>(
        &self,
        arena: Option<&Arc<WeightArena>>,
        rows: usize,
        cols: usize,
        scheme: WeightScheme,
        scales: &[f32],
        words: impl Fn(usize) -> &'a [i32],
    ) -> Result<PackedMatrix, MatrixError> {
        PackedMatrix::from_words_by(self.table.fill_panel, arena, rows, cols, scheme, scales, words)
    }

    /// Attention of rows of queries (codes of the query heads that share this key-value head, of one or several tokens):
    /// row `r` attends to the first `causal.len_of(r)` cached positions. Its result goes to row `r` of `out`
    /// `[rows, head_dim]`, the probability of position 0 to `sink_probs[r]`. `attention/attend.rs` has the definition; rows
    /// do not influence each other.
    ///
    /// # Panics
    /// If a row attends to no position or to more than the cache holds, or lengths do not match.
    pub fn attend(
        &self,
        head: &KvHead,
        causal: Causal,
        queries: RowsView<'_>,
        scratch: &mut AttentionScratch,
        out: &mut [f32],
        sink_probs: &mut [f32],
    ) {
        let table = self.table;
        let steps = Steps {
            score: [table.score_narrow, table.score_wide],
            probability_codes: table.probability_codes,
            weigh: [table.weigh_narrow, table.weigh_wide],
            wide_tiles: table.wide_tiles,
        };
        attend(&steps, head, causal, queries, scratch, out, sink_probs);
    }

    /// [`Self::attend`] of an unquantized model; queries `[rows, head_dim]`.
    ///
    /// # Panics
    /// If a row attends to no position or to more than the cache holds, or lengths do not match.
    pub fn attend_float(
        &self,
        head: &FloatKvHead,
        causal: Causal,
        queries: &[f32],
        scratch: &mut AttentionScratch,
        out: &mut [f32],
        sink_probs: &mut [f32],
    ) {
        let table = self.table;
        let steps = FloatSteps { matmul: table.matmul_f32, softmax: table.softmax, weigh: table.weigh_float };
        attend_float(&steps, head, causal, queries, scratch, out, sink_probs);
    }
}

/// Checks for one width per row, or one for all.
fn check_widths(bits: &[ActBits], rows: usize) {
    assert!(bits.len() == 1 || bits.len() == rows, "{rows} rows need one width each, got {}", bits.len());
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;

    #[test]
    fn names() {
        assert_eq!(Kernels::by_name("scalar").unwrap().name(), "scalar");
        assert!(!Kernels::by_name("scaler").unwrap_err().exists);
        for kernels in Kernels::available() {
            assert!(core::ptr::eq(Kernels::by_name(kernels.name()).unwrap(), kernels));
        }
        #[cfg(all(target_arch = "x86_64", feature = "std"))]
        assert_eq!(
            Kernels::by_name("avx2").is_ok(),
            std::is_x86_feature_detected!("avx2") && std::is_x86_feature_detected!("f16c")
        );
        let name = Kernels::scalar().product_name(WeightBits::W4, ActBits::A8).to_string();
        assert_eq!(name, "scalar-w4a8");
        assert!(Kernels::available().any(|kernels| core::ptr::eq(kernels, Kernels::detect())));
    }
}
