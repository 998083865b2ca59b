//! The order of every float sum: 16 lanes, reduced in halves.

/// Lanes of every sum.
pub(crate) const LANES: usize = 16;

/// Sum of the lanes: lane `i` plus lane `i + 8`, then `+ 4`, `+ 2`, `+ 1`.
#[inline(always)]
pub(crate) fn reduce(mut lanes: [f32; LANES]) -> f32 {
    let mut half = LANES / 2;
    while half > 0 {
        for i in 0..half {
            lanes[i] += lanes[i + half];
        }
        half /= 2;
    }
    lanes[0]
}

/// The largest lane; NaNs are ignored, except in lane 0.
#[inline(always)]
pub(crate) fn reduce_max(mut lanes: [f32; LANES]) -> f32 {
    let mut half = LANES / 2;
    while half > 0 {
        for i in 0..half {
            lanes[i] = if lanes[i + half] > lanes[i] { lanes[i + half] } else { lanes[i] };
        }
        half /= 2;
    }
    lanes[0]
}

/// Largest magnitude of `f(a[k], b[k])`; NaNs are ignored.
#[inline(always)]
pub(crate) fn max_abs_of(a: &[f32], b: &[f32], f: impl Fn(f32, f32) -> f32) -> f32 {
    let mut lanes = [0f32; LANES];
    let (a, a_tail) = a.as_chunks::<LANES>();
    let (b, b_tail) = b.as_chunks::<LANES>();
    for (a, b) in a.iter().zip(b) {
        for l in 0..LANES {
            let magnitude = f(a[l], b[l]).abs();
            // NaN compares false.
            lanes[l] = if magnitude > lanes[l] { magnitude } else { lanes[l] };
        }
    }
    for (lane, (&a, &b)) in lanes.iter_mut().zip(a_tail.iter().zip(b_tail)) {
        let magnitude = f(a, b).abs();
        *lane = if magnitude > *lane { magnitude } else { *lane };
    }
    reduce_max(lanes)
}

/// The tail of a slice, padded with zeros, which change neither sums nor magnitudes.
#[inline(always)]
pub(crate) fn padded<T: Copy + Default>(tail: &[T]) -> [T; LANES] {
    let mut lanes = [T::default(); LANES];
    lanes[..tail.len()].copy_from_slice(tail);
    lanes
}
