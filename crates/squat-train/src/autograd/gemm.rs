//! Single-precision matrix product on one thread, from the `gemm` crate (AVX-512 where the CPU has it).

/// How a matrix lies in its slice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// `[rows, cols]`, row-major.
    Normal,
    /// The slice holds the transpose: `[cols, rows]`, row-major.
    Transposed,
}

impl Layout {
    /// (row stride, column stride) of a `[rows, cols]` operand.
    fn strides(self, rows: usize, cols: usize) -> (isize, isize) {
        match self {
            Self::Normal => (cols as isize, 1),
            Self::Transposed => (1, rows as isize),
        }
    }
}

/// `out = alpha * a @ b + beta * out` with `a` `[m, k]`, `b` `[k, n]`, `out` `[m, n]` row-major.
///
/// # Panics
/// When a slice has another length.
pub fn gemm(
    (m, k, n): (usize, usize, usize),
    alpha: f32,
    a: (&[f32], Layout),
    b: (&[f32], Layout),
    beta: f32,
    out: &mut [f32],
) {
    assert_eq!(out.len(), m * n, "output");
    // SAFETY: `out` has m * n elements, all initialized.
    unsafe { gemm_at((m, k, n), alpha, a, b, beta, out.as_mut_ptr()) }
}

/// `a @ b` with `a` `[m, k]` and `b` `[k, n]`, row-major, in new memory that is not cleared before.
///
/// # Panics
/// When a slice has another length.
pub fn product((m, k, n): (usize, usize, usize), a: (&[f32], Layout), b: (&[f32], Layout)) -> Vec<f32> {
    if k == 0 {
        return vec![0.0; m * n];
    }
    let mut out = Vec::with_capacity(m * n);
    // SAFETY: there is room for m * n elements; with beta = 0 and k > 0 the product writes every one of them and reads
    // none, so all are initialized when the length is set.
    unsafe {
        gemm_at((m, k, n), 1.0, a, b, 0.0, out.as_mut_ptr());
        out.set_len(m * n);
    }
    out
}

/// [`gemm`] into `m * n` elements at `out`.
///
/// # Safety
/// `out` must be valid for writing m * n elements, for reading them too unless `beta` is 0, and overlap neither operand.
unsafe fn gemm_at(
    (m, k, n): (usize, usize, usize),
    alpha: f32,
    (a, a_layout): (&[f32], Layout),
    (b, b_layout): (&[f32], Layout),
    beta: f32,
    out: *mut f32,
) {
    assert_eq!(a.len(), m * k, "left operand");
    assert_eq!(b.len(), k * n, "right operand");
    if m == 0 || n == 0 {
        return;
    }
    let (a_rs, a_cs) = a_layout.strides(m, k);
    let (b_rs, b_cs) = b_layout.strides(k, n);
    // SAFETY: the asserts hold the operands to the sizes that the strides address; the caller answers for `out`.
    unsafe {
        ::gemm::gemm(
            m,
            n,
            k,
            out,
            1,
            n as isize,
            beta != 0.0,
            a.as_ptr(),
            a_cs,
            a_rs,
            b.as_ptr(),
            b_cs,
            b_rs,
            beta,
            alpha,
            false,
            false,
            false,
            ::gemm::Parallelism::None,
        );
    }
}

/// Integers below this are exact in `f32`.
const EXACT: f32 = 16_777_216.0;

/// Columns `from..to` of a `[rows, cols]` matrix.
pub fn columns(x: &[f32], cols: usize, from: usize, to: usize) -> Vec<f32> {
    x.chunks_exact(cols).flat_map(|row| row[from..to].iter().copied()).collect()
}

/// `out = a @ b` for matrices of integers, `a` row-major: every sum is exact before it is rounded to `f32` once, as if
/// summed in integers. `largest_term` bounds the magnitude of a product of two entries.
///
/// # Panics
/// When a slice has another length.
pub fn integer_gemm(
    (m, k, n): (usize, usize, usize),
    largest_term: f32,
    a: &[f32],
    (b, b_layout): (&[f32], Layout),
    out: &mut [f32],
) {
    let exact = (EXACT / largest_term) as usize;
    if k <= exact {
        return gemm((m, k, n), 1.0, (a, Layout::Normal), (b, b_layout), 0.0, out);
    }
    // Stretches that are exact by themselves, added where much larger integers are exact.
    let (mut sums, mut partial) = (vec![0f64; m * n], vec![0f32; m * n]);
    for from in (0..k).step_by(exact.max(1)) {
        let to = (from + exact.max(1)).min(k);
        let left = columns(a, k, from, to);
        let right = match b_layout {
            Layout::Normal => b[from * n..to * n].to_vec(),
            Layout::Transposed => columns(b, k, from, to),
        };
        gemm((m, to - from, n), 1.0, (&left, Layout::Normal), (&right, b_layout), 0.0, &mut partial);
        sums.iter_mut().zip(&partial).for_each(|(sum, &part)| *sum += f64::from(part));
    }
    out.iter_mut().zip(&sums).for_each(|(out, &sum)| *out = sum as f32);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn integer_sums_are_exact_beyond_24_bits() {
        // Extreme codes, so that sums in f32 would be rounded on the way.
        let (m, k, n) = (2, 3001, 3);
        let code = |i: usize| [127i64, -128, 126, 127][i * 7 % 4];
        let a: Vec<f32> = (0..m * k).map(|i| code(i).abs() as f32).collect();
        let b: Vec<f32> = (0..n * k).map(|i| code(i + 1).abs() as f32).collect();
        let mut want = vec![0f32; m * n];
        for i in 0..m {
            for j in 0..n {
                let sum: i64 = (0..k).map(|t| a[i * k + t] as i64 * b[j * k + t] as i64).sum();
                assert!(sum > 1 << 24);
                want[i * n + j] = sum as i32 as f32;
            }
        }
        let mut out = vec![0f32; m * n];
        integer_gemm((m, k, n), 128.0 * 128.0, &a, (&b, Layout::Transposed), &mut out);
        assert_eq!(out, want);
        let transposed: Vec<f32> = (0..k * n).map(|i| b[(i % n) * k + i / n]).collect();
        integer_gemm((m, k, n), 128.0 * 128.0, &a, (&transposed, Layout::Normal), &mut out);
        assert_eq!(out, want);
    }

    #[test]
    fn all_layouts_match_the_definition() {
        let (m, k, n) = (5, 7, 3);
        let a: Vec<f32> = (0..m * k).map(|i| (i * 37 % 11) as f32 - 5.0).collect();
        let b: Vec<f32> = (0..k * n).map(|i| (i * 17 % 13) as f32 - 6.0).collect();
        let transpose = |x: &[f32], rows: usize, cols: usize| -> Vec<f32> {
            (0..cols * rows).map(|i| x[(i % rows) * cols + i / rows]).collect()
        };
        let mut want = vec![0f32; m * n];
        for i in 0..m {
            for j in 0..n {
                want[i * n + j] = 2.0 + 3.0 * (0..k).map(|t| a[i * k + t] * b[t * n + j]).sum::<f32>();
            }
        }
        let (at, bt) = (transpose(&a, m, k), transpose(&b, k, n));
        for (a, la) in [(&a, Layout::Normal), (&at, Layout::Transposed)] {
            for (b, lb) in [(&b, Layout::Normal), (&bt, Layout::Transposed)] {
                let mut out = vec![1f32; m * n];
                gemm((m, k, n), 3.0, (a, la), (b, lb), 2.0, &mut out);
                assert_eq!(out, want);
            }
        }
    }
}
