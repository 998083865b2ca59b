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
    (a, a_layout): (&[f32], Layout),
    (b, b_layout): (&[f32], Layout),
    beta: f32,
    out: &mut [f32],
) {
    assert_eq!(a.len(), m * k, "left operand");
    assert_eq!(b.len(), k * n, "right operand");
    assert_eq!(out.len(), m * n, "output");
    if m == 0 || n == 0 {
        return;
    }
    let (a_rs, a_cs) = a_layout.strides(m, k);
    let (b_rs, b_cs) = b_layout.strides(k, n);
    // SAFETY: the asserts above hold the three slices to the sizes that the strides address, and `out` is borrowed
    // mutably, so it overlaps neither operand.
    unsafe {
        ::gemm::gemm(
            m,
            n,
            k,
            out.as_mut_ptr(),
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

#[cfg(test)]
mod tests {
    use super::*;

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
