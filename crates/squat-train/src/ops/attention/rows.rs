//! Rows of queries, keys and values: RoPE, quantization, and the way between token-major rows and the rows of one head.

use super::{AttentionShape, HeadRotation};
use crate::autograd::multiversion;
use crate::fake_quant::{ActQuant, Rows, quantize_rows, quantize_rows_backward};
use squat_kernels::Kernels;

/// Queries or keys after RoPE and quantization, token-major `[tokens, heads, d]`.
pub(crate) struct Prepared {
    /// Values after RoPE and transform.
    pub rotated: Vec<f32>,
    /// Codes and scales of each (token, head) row; scale 1 and the values themselves if unquantized.
    pub rows: Rows,
}

multiversion! {
    fn rotate_back(row: &mut [f32], cos: &[f32], sin: &[f32]) {
        let half = row.len() / 2;
        let (a, b) = row.split_at_mut(half);
        for i in 0..half {
            let (x, y) = (a[i], b[i]);
            a[i] = x * cos[i] + y * sin[i];
            b[i] = y * cos[i] - x * sin[i];
        }
    }
}

/// Rotates and quantizes `[tokens, heads * d]`.
pub(crate) fn prepare(
    x: &[f32],
    shape: AttentionShape,
    heads: usize,
    rope: Option<&HeadRotation>,
    quant: Option<&ActQuant>,
    parameters: Option<&[f32]>,
) -> Prepared {
    let d = shape.head_dim;
    let mut rotated = x.to_vec();
    if let Some(rope) = rope {
        for (token, heads) in rotated.chunks_exact_mut(heads * d).enumerate() {
            let at = token % shape.seq * (d / 2);
            let (cos, sin) = (&rope.cos[at..at + d / 2], &rope.sin[at..at + d / 2]);
            for head in heads.chunks_exact_mut(d) {
                Kernels::detect().rope(head, cos, sin);
            }
        }
        Kernels::detect().transform(&mut rotated, d, rope.transform);
    }
    let rows = match quant {
        Some(quant) => quantize_rows(&rotated, d, quant, parameters, heads),
        None => Rows { codes: rotated.clone(), scales: vec![1.0; x.len() / d] },
    };
    Prepared { rotated, rows }
}

/// Backward of [`prepare`], from the gradient of the dequantized rows, in place; returns that of the parameters.
pub(crate) fn prepare_backward(
    prepared: &Prepared,
    shape: AttentionShape,
    heads: usize,
    rope: Option<&HeadRotation>,
    quant: Option<&ActQuant>,
    parameters: Option<&[f32]>,
    grad: &mut [f32],
) -> Option<Vec<f32>> {
    let d = shape.head_dim;
    let found =
        quant.and_then(|quant| quantize_rows_backward(&prepared.rotated, d, quant, parameters, heads, grad));
    if let Some(rope) = rope {
        Kernels::detect().transform(grad, d, rope.transform);
        for (token, heads) in grad.chunks_exact_mut(heads * d).enumerate() {
            let at = token % shape.seq * (d / 2);
            for head in heads.chunks_exact_mut(d) {
                rotate_back(head, &rope.cos[at..at + d / 2], &rope.sin[at..at + d / 2]);
            }
        }
    }
    found
}

/// Rows of one head, contiguous: `[seq, d]` from token-major `[tokens, heads, d]`.
pub(crate) fn gather(
    x: &[f32],
    shape: AttentionShape,
    heads: usize,
    batch: usize,
    head: usize,
    out: &mut [f32],
) {
    let d = shape.head_dim;
    for (t, out) in out.chunks_exact_mut(d).enumerate() {
        let at = ((batch * shape.seq + t) * heads + head) * d;
        out.copy_from_slice(&x[at..at + d]);
    }
}

/// Adds contiguous rows of one head back to token-major storage.
pub(crate) fn scatter_add(
    rows: &[f32],
    shape: AttentionShape,
    heads: usize,
    batch: usize,
    head: usize,
    out: &mut [f32],
) {
    let d = shape.head_dim;
    for (t, row) in rows.chunks_exact(d).enumerate() {
        let at = ((batch * shape.seq + t) * heads + head) * d;
        for (out, x) in out[at..at + d].iter_mut().zip(row) {
            *out += x;
        }
    }
}

/// Scales of one head's rows, `[seq]`.
pub(crate) fn gather_scales(
    scales: &[f32],
    shape: AttentionShape,
    heads: usize,
    batch: usize,
    head: usize,
) -> Vec<f32> {
    (0..shape.seq).map(|t| scales[(batch * shape.seq + t) * heads + head]).collect()
}
