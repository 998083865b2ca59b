//! The inner loops of fake quantizers.

use crate::autograd::multiversion;
use squat_quant::Affine;
use squat_quant::affine::max_abs;

multiversion! {
    /// Codes minus the zero point, as exact integers.
    pub(crate) fn center(x: &[f32], affine: Affine, out: &mut [f32]) {
        for (out, &x) in out.iter_mut().zip(x) {
            *out = affine.centered(x);
        }
    }
}

multiversion! {
    /// Multiplies row `i` of `x` by `scales[i]`.
    pub fn scale_rows(x: &mut [f32], cols: usize, scales: &[f32]) {
        for (row, &scale) in x.chunks_exact_mut(cols).zip(scales) {
            for x in row {
                *x *= scale;
            }
        }
    }
}

multiversion! {
    /// Largest magnitude.
    pub(crate) fn largest(x: &[f32]) -> f32 {
        max_abs(x)
    }
}

/// Gradients of 16 elements, or of the rest: `grad` becomes that of `x`, those of scale and zero point are added.
#[inline(always)]
fn gradient_lanes(x: &[f32], affine: Affine, grad: &mut [f32], scale: &mut [f32; 16], zero: &mut [f32; 16]) {
    for i in 0..x.len() {
        let (dx, ds, dz) = affine.gradient(x[i]);
        scale[i] += grad[i] * ds;
        zero[i] += grad[i] * dz;
        grad[i] *= dx;
    }
}

multiversion! {
    /// In place: `grad` becomes the gradient of `x`; returns the summed gradients of scale and zero point.
    pub(crate) fn affine_backward(x: &[f32], affine: Affine, grad: &mut [f32]) -> (f32, f32) {
        let (mut scale, mut zero) = ([0f32; 16], [0f32; 16]);
        let (x, x_rest) = x.as_chunks::<16>();
        let (grad, grad_rest) = grad.as_chunks_mut::<16>();
        for (x, grad) in x.iter().zip(grad) {
            gradient_lanes(x, affine, grad, &mut scale, &mut zero);
        }
        gradient_lanes(x_rest, affine, grad_rest, &mut scale, &mut zero);
        (scale.iter().sum(), zero.iter().sum())
    }
}

multiversion! {
    /// Dequantized codes.
    pub(crate) fn fake_quantize(x: &[f32], affine: Affine, out: &mut [f32]) {
        for (out, &x) in out.iter_mut().zip(x) {
            *out = affine.fake_quantize(x);
        }
    }
}
