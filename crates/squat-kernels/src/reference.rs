//! Products and attention in plain loops: what every kernel is tested against.

use crate::attention::{AttentionScheme, KvHead};
use crate::matrix::PackedMatrix;
use crate::output::ColumnsMut;
use crate::rows::{CodeRow, RowsView};
use alloc::vec;
use alloc::vec::Vec;
use squat_quant::{ActBits, Affine, CodeRange, dynamic_scale, math};

/// The product as [`crate::Kernels::linear`] defines it, element by element.
///
/// # Panics
/// When shapes do not fit.
pub fn linear(matrix: &PackedMatrix, rows: RowsView<'_>, out: &mut ColumnsMut<'_>) {
    let range = out.range();
    for m in 0..rows.rows() {
        let row = rows.row(m);
        for (n, y) in range.clone().zip(out.row(m)) {
            // The sum over a group of codes times weights, and over the weights alone.
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

/// Attention of one query over the first `len` positions as [`crate::Kernels::attend`] defines it, position by position.
/// Returns the output and the probabilities.
///
/// # Panics
/// When `len` is 0 or more than the cache holds, or the query has another length than the head.
pub fn attend(head: &KvHead, len: usize, q: CodeRow<'_>) -> (Vec<f32>, Vec<f32>) {
    let dim = head.head_dim();
    let (mut key, mut value) = (vec![0i8; dim], vec![0i8; dim]);
    let q_scale = q.scale * (1.0 / math::sqrt(dim as f32));
    let mut p: Vec<f32> = (0..len)
        .map(|j| {
            let (scale, _) = head.read(j, &mut key, &mut value);
            let (z_q, z_k, s_k) = match head.scheme() {
                AttentionScheme::Dynamic => (0, 0, scale),
                AttentionScheme::Static { keys, .. } => {
                    let keys = keys.get(head.bits(j));
                    (q.zero_point, keys.zero_point, keys.scale)
                }
            };
            let sum: i32 =
                q.codes.iter().zip(&key).map(|(&q, &k)| (i32::from(q) - z_q) * (i32::from(k) - z_k)).sum();
            (sum as f32 * q_scale) * s_k
        })
        .collect();
    crate::float::softmax(&mut p);
    let mut parts: [Option<Vec<f32>>; 2] = [None, None];
    for bits in ActBits::ALL {
        let of_width: Vec<usize> = (0..len).filter(|&j| head.bits(j) == bits).collect();
        if of_width.is_empty() {
            continue;
        }
        let (u, quantizer, scale, zero): (Vec<f32>, Affine, f32, i32) = match head.scheme() {
            AttentionScheme::Dynamic => {
                let u: Vec<f32> =
                    of_width.iter().map(|&j| p[j] * head.read(j, &mut key, &mut value).1).collect();
                let largest = u.iter().fold(0f32, |a, &b| a.max(b));
                let range = CodeRange::unsigned(8);
                let quantizer = Affine::symmetric(dynamic_scale(largest, range), range);
                (u, quantizer, quantizer.scale, 0)
            }
            AttentionScheme::Static { values, probability_bits, .. } => {
                let (quantizer, values) = (Affine::probability(*probability_bits), values.get(bits));
                let u = of_width.iter().map(|&j| p[j]).collect();
                (u, quantizer, quantizer.scale * values.scale, values.zero_point)
            }
        };
        let mut sums = vec![0i32; dim];
        for (&j, &u) in of_width.iter().zip(&u) {
            head.read(j, &mut key, &mut value);
            for (sum, &v) in sums.iter_mut().zip(&value) {
                *sum += quantizer.quantize(u) * (i32::from(v) - zero);
            }
        }
        parts[bits.index()] = Some(sums.into_iter().map(|sum| sum as f32 * scale).collect());
    }
    let out = match parts {
        [Some(narrow), Some(wide)] => wide.iter().zip(&narrow).map(|(a, b)| a + b).collect(),
        [narrow, wide] => wide.or(narrow).unwrap_or_default(),
    };
    (out, p)
}
