//! Which kernels there are, which this CPU can run, and the functions they offer.

use crate::arch::{self, Table};
use crate::arena::WeightArena;
use crate::attention::{AttentionScratch, Causal, FloatKvHead, KvHead, attend, attend_float};
use crate::error::{MatrixError, UnknownIsa};
use crate::matrix::PackedMatrix;
use crate::output::ColumnsMut;
use crate::paired::PairedMatrix;
use crate::rows::{Grid, QuantizedRows, RowQuantizer, RowsMut, RowsView};
use alloc::string::ToString;
use alloc::sync::Arc;
use squat_quant::{ActBits, WeightBits, WeightScheme};

/// The functions of one instruction set.
///
/// Every function gives the same bits in every set. Get one with [`Kernels::detect`], and hand the reference around.
pub struct Kernels {
    name: &'static str,
    supported: fn() -> bool,
    table: &'static Table,
}

static SCALAR: Kernels = Kernels { name: "scalar", supported: || true, table: &arch::SCALAR };
#[cfg(target_arch = "x86_64")]
static AVX2: Kernels =
    Kernels { name: "avx2", supported: arch::x86_64::has_avx2, table: &arch::x86_64::AVX2 };
#[cfg(target_arch = "x86_64")]
static AVXVNNI: Kernels =
    Kernels { name: "avxvnni", supported: arch::x86_64::has_avxvnni, table: &arch::x86_64::AVXVNNI };
#[cfg(target_arch = "x86_64")]
static AVX512VNNI: Kernels =
    Kernels { name: "avx512vnni", supported: arch::x86_64::has_avx512vnni, table: &arch::x86_64::AVX512VNNI };
#[cfg(all(target_arch = "aarch64", target_endian = "little"))]
static NEON: Kernels =
    Kernels { name: "neon", supported: arch::aarch64::has_neon, table: &arch::aarch64::NEON };
#[cfg(all(target_arch = "aarch64", target_endian = "little"))]
static DOTPROD: Kernels =
    Kernels { name: "neon-dotprod", supported: arch::aarch64::has_dotprod, table: &arch::aarch64::DOTPROD };
#[cfg(all(target_arch = "aarch64", target_endian = "little"))]
static I8MM: Kernels =
    Kernels { name: "neon-i8mm", supported: arch::aarch64::has_i8mm, table: &arch::aarch64::I8MM };
#[cfg(all(target_arch = "wasm32", target_feature = "simd128"))]
static SIMD128: Kernels = Kernels { name: "simd128", supported: || true, table: &arch::wasm32::SIMD128 };

/// Every set of this build, plainest first. The last one that the CPU can run is used, unless it has an alternative.
static ALL: &[&Kernels] = &[
    &SCALAR,
    #[cfg(target_arch = "x86_64")]
    &AVX2,
    #[cfg(target_arch = "x86_64")]
    &AVXVNNI,
    #[cfg(target_arch = "x86_64")]
    &AVX512VNNI,
    #[cfg(all(target_arch = "aarch64", target_endian = "little"))]
    &NEON,
    #[cfg(all(target_arch = "aarch64", target_endian = "little"))]
    &DOTPROD,
    #[cfg(all(target_arch = "aarch64", target_endian = "little"))]
    &I8MM,
    #[cfg(all(target_arch = "wasm32", target_feature = "simd128"))]
    &SIMD128,
];

/// What is measured where two sets compete.
#[cfg(feature = "std")]
mod autotune {
    use super::Kernels;
    use crate::matrix::PackedMatrix;
    use crate::output::ColumnsMut;
    use crate::rows::{QuantizedRows, RowQuantizer};
    use alloc::vec;
    use squat_quant::{ActBits, WeightBits, WeightScheme};
    use std::time::{Duration, Instant};

    /// Rows, inputs and outputs of the product: some microseconds on any CPU, and everything in the first cache.
    const SHAPE: (usize, usize, usize) = (16, 256, 64);
    /// Each set takes the best of so many turns, so that an interruption decides nothing.
    const TURNS: usize = 15;

    /// The set with the faster W4A8 product of some rows: the usual case of a prompt. Takes well under a millisecond.
    pub(super) fn faster(a: &'static Kernels, b: &'static Kernels) -> &'static Kernels {
        let (m, k, n) = SHAPE;
        let scheme = WeightScheme::per_channel(WeightBits::W4);
        let codes = vec![3; n * k];
        let Ok(matrix) = PackedMatrix::from_codes(n, k, scheme, &codes, &vec![1.0; n]) else { return b };
        let mut rows = QuantizedRows::new();
        b.quantize_rows(&mut rows, &vec![0.5; m * k], k, &[ActBits::A8], &RowQuantizer::Dynamic);
        let mut y = vec![0.0; m * n];
        let mut best = [Duration::MAX; 2];
        for _ in 0..TURNS {
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

/// Name of a product kernel such as `avx512vnni-w4a8`.
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
        &SCALAR
    }

    /// The sets this CPU can run, plainest first. Without the feature `std` only what the compiler was told the CPU has.
    pub fn available() -> impl DoubleEndedIterator<Item = &'static Self> {
        ALL.iter().copied().filter(|kernels| (kernels.supported)())
    }

    /// The best set of this CPU, or the one that the environment variable `SQUAT_ISA` names.
    ///
    /// With the feature `std` the choice is made once; a name in `SQUAT_ISA` that cannot be used is ignored here, so
    /// programs that want to report it call [`Self::from_environment`] first.
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
    /// [`UnknownIsa`] when no such set exists or this CPU cannot run it.
    #[cfg(feature = "std")]
    pub fn from_environment() -> Result<Option<&'static Self>, UnknownIsa> {
        match std::env::var("SQUAT_ISA") {
            Ok(name) if !name.is_empty() => Self::by_name(&name).map(Some),
            _ => Ok(None),
        }
    }

    #[cfg(feature = "std")]
    pub(crate) fn table(&self) -> &'static Table {
        self.table
    }

    /// The last set that the CPU can run, or its alternative if that one measures faster.
    fn best() -> &'static Self {
        let last = Self::available().next_back().unwrap_or(&SCALAR);
        #[cfg(feature = "std")]
        if let Some(alternative) = last.alternative() {
            return autotune::faster(alternative, last);
        }
        last
    }

    /// Another set that this CPU can run and that may be the faster one, depending on the CPU: AVX-VNNI is one
    /// instruction where AVX2 needs three for two products kept in 16 bits, but CPUs differ in how many of them they
    /// start in a cycle; so they do in `usmmla` of i8mm, which does twice what `sdot` does.
    pub fn alternative(&self) -> Option<&'static Self> {
        let name = match self.name {
            "avxvnni" => "avx2",
            "neon-i8mm" => "neon-dotprod",
            _ => return None,
        };
        Self::available().find(|kernels| kernels.name == name)
    }

    /// The set of that name.
    ///
    /// # Errors
    /// [`UnknownIsa`] when no such set exists or this CPU cannot run it.
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

    /// Name of the product kernel of these widths, such as `avx512vnni-w4a8`.
    pub fn product_name(&self, weights: WeightBits, activations: ActBits) -> ProductName {
        ProductName { isa: self.name, weights, activations }
    }

    /// See [`crate::float::dot`].
    pub fn dot(&self, a: &[f32], b: &[f32]) -> f32 {
        (self.table.dot)(a, b)
    }

    /// See [`crate::float::sum_squares`].
    pub fn sum_squares(&self, x: &[f32]) -> f32 {
        (self.table.sum_squares)(x)
    }

    /// See [`crate::float::max_abs`].
    pub fn max_abs(&self, x: &[f32]) -> f32 {
        (self.table.max_abs)(x)
    }

    /// See [`crate::float::argmax`].
    pub fn argmax(&self, x: &[f32]) -> Option<usize> {
        (self.table.argmax)(x)
    }

    /// See [`crate::float::rms_norm`].
    pub fn rms_norm(&self, x: &[f32], gain: &[f32], eps: f32, out: &mut [f32]) {
        (self.table.rms_norm)(x, gain, eps, out);
    }

    /// See [`crate::float::layer_norm`].
    pub fn layer_norm(&self, x: &[f32], gain: &[f32], bias: &[f32], eps: f32, out: &mut [f32]) {
        (self.table.layer_norm)(x, gain, bias, eps, out);
    }

    /// See [`crate::float::softmax`].
    pub fn softmax(&self, row: &mut [f32]) {
        (self.table.softmax)(row);
    }

    /// See [`crate::float::exp`].
    pub fn exp(&self, x: &mut [f32]) {
        (self.table.exp)(x);
    }

    /// See [`crate::float::silu_mul`].
    pub fn silu_mul(&self, gate: &[f32], up: &[f32], out: &mut [f32]) {
        (self.table.silu_mul)(gate, up, out);
    }

    /// See [`crate::float::gelu`].
    pub fn gelu(&self, x: &[f32], out: &mut [f32]) {
        (self.table.gelu)(x, out);
    }

    /// See [`crate::float::rope`].
    pub fn rope(&self, row: &mut [f32], cos: &[f32], sin: &[f32]) {
        (self.table.rope)(row, cos, sin);
    }

    /// See [`crate::float::add`].
    pub fn add(&self, x: &mut [f32], y: &[f32]) {
        (self.table.add)(x, y);
    }

    /// See [`crate::float::log_softmax_at`].
    pub fn log_softmax_at(&self, logits: &[f32], index: usize) -> f64 {
        (self.table.log_softmax_at)(logits, index)
    }

    /// `y[m, n] = dot(x[m], w[n]) (+ bias[n])` for the columns of `out`: x `[m, k]`, w `[n, k]` row major.
    ///
    /// Each element has the order of [`crate::float::dot`], whatever `m` is, so that one prefill equals decoding
    /// token by token.
    ///
    /// # Panics
    /// When shapes do not fit.
    pub fn matmul_f32(&self, x: &[f32], w: &[f32], bias: Option<&[f32]>, k: usize, mut out: ColumnsMut<'_>) {
        (self.table.matmul_f32)(x, w, bias, k, &mut out);
    }

    /// [`Self::matmul_f32`] with weights given by the bits of half-precision numbers.
    ///
    /// # Panics
    /// When shapes do not fit.
    pub fn matmul_f16(&self, x: &[f32], w: &[u16], bias: Option<&[f32]>, k: usize, mut out: ColumnsMut<'_>) {
        (self.table.matmul_f16)(x, w, bias, k, &mut out);
    }

    /// Quantizes rows x `[m, k]` into `rows`, row `i` at `bits[i]`, with the codes of
    /// [`squat_quant::affine::quantize_row_dynamic`] or [`squat_quant::affine::quantize_row`].
    ///
    /// `bits` may also hold a single width for all rows.
    ///
    /// # Panics
    /// When `x` is no whole number of rows, or `bits` has neither one entry nor one for each row.
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

    /// [`Self::quantize_rows`] into rows that were made ready by [`QuantizedRows::reset`] and perhaps split over threads.
    ///
    /// # Panics
    /// When shapes do not fit.
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
        (self.table.quantize_rows)(&mut rows, x, bits, quantizer);
    }

    /// [`Self::rms_norm`] of each row of x `[m, k]` and [`Self::quantize_into`] of the result in one call, with the same
    /// bits; the normalised values are kept nowhere.
    ///
    /// # Panics
    /// When shapes do not fit.
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
            rows.fill(i, bits, quantizer, |grid, codes| {
                (self.table.rms_norm_quantize)(x, gain, eps, grid, codes)
            });
        }
    }

    /// [`Self::silu_mul`] of the halves of each row of `gate_up` `[m, 2 k]` (gate first) and [`Self::quantize_into`] of
    /// the result in one call, with the same bits. `scratch` `[k]` is overwritten.
    ///
    /// # Panics
    /// When shapes do not fit.
    pub fn silu_mul_quantize_into(
        &self,
        mut rows: RowsMut<'_>,
        gate_up: &[f32],
        scratch: &mut [f32],
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
                (self.table.silu_mul_quantize)(gate, up, scratch, grid, codes)
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
            (self.table.quantize)(row, Grid::Fixed(affine), codes);
        })
    }

    /// The exact integer product of all `rows` with the output channels that `out` covers; see [`crate::product`] for
    /// the definition. `out` is `[rows, channels]`: a thread gets its share of the channels as a part of the columns.
    ///
    /// # Panics
    /// When shapes do not fit.
    pub fn linear(&self, matrix: &PackedMatrix, rows: RowsView<'_>, mut out: ColumnsMut<'_>) {
        (self.table.linear[matrix.storage() as usize])(matrix, rows, &mut out);
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

    /// See [`crate::paired::product`].
    ///
    /// # Panics
    /// When shapes or codes do not fit.
    pub fn paired_product(&self, matrix: &PairedMatrix, codes: &[i8], out: &mut [i32]) {
        (self.table.paired)(matrix, codes, out);
    }

    /// Attention of rows of queries (the codes of heads that share this key-value head, of one token or several):
    /// row `r` over the first `causal.len_of(r)` cached positions, its result in row `r` of `out` `[rows, head_dim]`,
    /// the probability of position 0 in `column_0[r]`. See [`crate::attention`] for the definition; what a row gives
    /// does not depend on the others.
    ///
    /// # Panics
    /// When a row attends to no position or to more than the cache holds, or lengths do not fit.
    pub fn attend(
        &self,
        head: &KvHead,
        causal: Causal,
        queries: RowsView<'_>,
        scratch: &mut AttentionScratch,
        out: &mut [f32],
        column_0: &mut [f32],
    ) {
        let Table { attention, large, .. } = self.table;
        attend(attention, *large, head, causal, queries, scratch, out, column_0);
    }

    /// [`Self::attend`] of the unquantized model; queries `[rows, head_dim]`.
    ///
    /// # Panics
    /// When a row attends to no position or to more than the cache holds, or lengths do not fit.
    pub fn attend_float(
        &self,
        head: &FloatKvHead,
        causal: Causal,
        queries: &[f32],
        scratch: &mut AttentionScratch,
        out: &mut [f32],
        column_0: &mut [f32],
    ) {
        attend_float(&self.table.float_attention, head, causal, queries, scratch, out, column_0);
    }
}

/// One width for each row, or one for all.
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
