//! The float steps of attention between its two products: one definition for kernels, reference, trainer and the plans
//! that run outside the integer cache. [`crate::float::scaled_softmax`] is the step from sums to probabilities.

use crate::lanes::LANES;
use squat_quant::{ActBits, Affine, CodeRange, dynamic_scale, math};

/// The factor of a query's sums: `scale * (1 / sqrt(head_dim))`, where `scale` is the scale of its codes, or 1.
#[inline(always)]
pub fn query_factor(scale: f32, head_dim: usize) -> f32 {
    scale * (1.0 / math::sqrt(head_dim as f32))
}

/// Folds the scales of dynamic values into the probabilities `p` `[positions]` of a query and quantizes them in place:
/// `u_j = p_j * s_v[j]` becomes the code `round(u_j / s_u)`, where `s_u = max(u_j) / q_max` over the positions of the same
/// width. Returns `s_u` of each width ([`ActBits::index`]), `None` for a width that no position has.
///
/// # Panics
/// If `value_scales` or `bits` do not have one entry per position.
#[inline(always)]
pub fn quantize_probabilities(
    p: &mut [f32],
    value_scales: &[f32],
    bits: &[ActBits],
    range: CodeRange,
) -> [Option<f32>; 2] {
    assert!(value_scales.len() == p.len() && bits.len() == p.len(), "lengths of probabilities");
    for (p, scale) in p.iter_mut().zip(value_scales) {
        *p *= scale;
    }
    let [four, eight] = ActBits::ALL.map(|width| dynamic_scale(largest_of(p, bits, width), range));
    for (p, &bits) in p.iter_mut().zip(bits) {
        *p = Affine::symmetric(if bits == ActBits::A4 { four } else { eight }, range).centered(*p);
    }
    [(ActBits::A4, four), (ActBits::A8, eight)].map(|(width, scale)| bits.contains(&width).then_some(scale))
}

/// The largest of the values whose position has `width`, at least 0.
#[inline(always)]
fn largest_of(values: &[f32], bits: &[ActBits], width: ActBits) -> f32 {
    let mut lanes = [0f32; LANES];
    let (values, values_tail) = values.as_chunks::<LANES>();
    let (bits, bits_tail) = bits.as_chunks::<LANES>();
    for (values, bits) in values.iter().zip(bits) {
        for l in 0..LANES {
            let x = if bits[l] == width { values[l] } else { 0.0 };
            // Unlike f32::max this is one instruction; it ignores NaN, which compares false.
            lanes[l] = if x > lanes[l] { x } else { lanes[l] };
        }
    }
    let tail = values_tail.iter().zip(bits_tail).filter(|&(_, &bits)| bits == width);
    lanes.into_iter().chain(tail.map(|(&x, _)| x)).fold(0.0, f32::max)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_width_has_a_scale_of_its_own() {
        let (four, eight) = (ActBits::A4, ActBits::A8);
        let mut p = [0.5, 0.25, 0.125];
        let scales = [1.0, 8.0, 1.0];
        let found = quantize_probabilities(&mut p, &scales, &[eight, four, eight], CodeRange::unsigned(8));
        assert_eq!(found, [Some(2.0 / 255.0), Some(0.5 / 255.0)]);
        assert_eq!(p, [255.0, 255.0, 64.0]);
        let found = quantize_probabilities(&mut [1.0], &[1.0], &[eight], CodeRange::unsigned(4));
        assert_eq!(found, [None, Some(1.0 / 15.0)]);
    }
}
