//! Products and attention in plain loops: every kernel is tested against them.

use crate::attention::{AttentionScheme, KvHead, quantize_probabilities, query_factor};
use crate::float;
use crate::matrix::PackedMatrix;
use crate::output::ColumnsMut;
use crate::rows::{CodeRow, RowsView};
use alloc::vec;
use alloc::vec::Vec;
use core::ops::Range;
use squat_quant::{ActBits, Affine, CodeRange};

/// The product as [`crate::Kernels::linear`] defines it, element by element.
///
/// # Panics
/// If the shapes do not match.
pub fn linear(matrix: &PackedMatrix, rows: RowsView<'_>, out: &mut ColumnsMut<'_>) {
    let range = out.range();
    for m in 0..rows.rows() {
        let row = rows.row(m);
        for (n, y) in range.clone().zip(out.row(m)) {
            // Over a group of inputs: the sum of codes times weights, and the sum of the weights.
            let group_sums = |from: usize, to: usize| {
                (from..to).fold((0i32, 0i32), |(acc, sum), k| {
                    let w = i32::from(matrix.code(n, k));
                    (acc + i32::from(row.codes[k]) * w, sum + w)
                })
            };
            let mut value;
            if matrix.grouped() {
                value = 0.0;
                let mut from = 0;
                while from < matrix.cols() {
                    let to = (from + matrix.group_len()).min(matrix.cols());
                    let (acc, sum) = group_sums(from, to);
                    value += (acc - row.zero_point * sum) as f32 * matrix.scale(n, from);
                    from = to;
                }
                value *= row.scale;
            } else {
                let (acc, sum) = group_sums(0, matrix.cols());
                let scale = if matrix.cols() == 0 { 0.0 } else { matrix.scale(n, 0) };
                value = ((acc - row.zero_point * sum) as f32 * row.scale) * scale;
            }
            *y = match matrix.bias(n) {
                Some(bias) => value + bias,
                None => value,
            };
        }
    }
}

/// Attention of one query over some positions as [`crate::Kernels::attend`] defines it, position by position. Returns output
/// `[head_dim]` and probabilities `[positions.end]`, 0 before the first of them.
///
/// # Panics
/// If there are no positions or more than the cache holds, or the length of the query is not `head_dim`.
pub fn attend(head: &KvHead, positions: Range<usize>, q: CodeRow<'_>) -> (Vec<f32>, Vec<f32>) {
    let (dim, len) = (head.head_dim(), positions.end);
    let (mut key, mut value) = (vec![0i8; dim], vec![0i8; dim]);
    let bits: Vec<ActBits> = (0..len).map(|j| head.bits(j)).collect();
    let (mut p, mut key_scales, mut value_scales) = (Vec::new(), Vec::new(), Vec::new());
    for (j, &bits) in bits.iter().enumerate() {
        let (scale, value_scale) = head.read(j, &mut key, &mut value);
        let (z_q, z_k, s_k) = match head.scheme() {
            AttentionScheme::Dynamic => (0, 0, scale),
            AttentionScheme::Static { keys, .. } => {
                (q.zero_point, keys.get(bits).zero_point, keys.get(bits).scale)
            }
        };
        let sum: i32 =
            q.codes.iter().zip(&key).map(|(&q, &k)| (i32::from(q) - z_q) * (i32::from(k) - z_k)).sum();
        p.push(sum as f32);
        key_scales.push(s_k);
        value_scales.push(value_scale);
    }
    p[..positions.start].fill(f32::NEG_INFINITY);
    float::scaled_softmax(&mut p, query_factor(q.scale, dim), &key_scales);
    let mut codes = p.clone();
    let (scales, zeros) = match head.scheme() {
        AttentionScheme::Dynamic => {
            (quantize_probabilities(&mut codes, &value_scales, &bits, CodeRange::unsigned(8)), [0; 2])
        }
        AttentionScheme::Static { values, probability_bits, .. } => {
            let quantizer = Affine::probability(*probability_bits);
            codes.iter_mut().for_each(|p| *p = quantizer.centered(*p));
            let scale = |width| bits.contains(&width).then(|| quantizer.scale * values.get(width).scale);
            (ActBits::ALL.map(scale), ActBits::ALL.map(|width| values.get(width).zero_point))
        }
    };
    let part = |width: ActBits| -> Option<Vec<f32>> {
        let scale = scales[width.index()]?;
        let (mut key, mut value, mut sums) = (vec![0i8; dim], vec![0i8; dim], vec![0i32; dim]);
        for j in (0..len).filter(|&j| bits[j] == width) {
            head.read(j, &mut key, &mut value);
            for (sum, &v) in sums.iter_mut().zip(&value) {
                *sum += codes[j] as i32 * (i32::from(v) - zeros[width.index()]);
            }
        }
        Some(sums.into_iter().map(|sum| sum as f32 * scale).collect())
    };
    let out = match ActBits::ALL.map(part) {
        [Some(narrow), Some(wide)] => wide.iter().zip(&narrow).map(|(a, b)| a + b).collect(),
        [narrow, wide] => wide.or(narrow).unwrap_or_default(),
    };
    (out, p)
}
