//! Attention in floats for any combination of quantized points (METHOD.md sections 2, 3).
//!
//! Codes are exact integers in f32, with separate scales. This path serves plans that leave some of the points in full
//! precision, or mix static and dynamic ones; the usual plans run on the integer cache.

use crate::prefix::Reader;
use squat_kernels::attention::query_factor;
use squat_kernels::{Kernels, RowQuantizer, float};
use squat_quant::{ActBits, Affine, CodeRange};

/// Quantizers of one layer's attention; `None` leaves a point in full precision.
#[derive(Clone, Debug, Default)]
pub(crate) struct AttentionPoints {
    /// Queries after RoPE.
    pub query: Option<RowQuantizer>,
    /// Keys after RoPE.
    pub key: Option<RowQuantizer>,
    /// Values.
    pub value: Option<RowQuantizer>,
    /// Bits of the probabilities.
    pub probs: Option<u32>,
}

/// Quantizer of a row at `bits`.
fn row_affine(row: &[f32], quantizer: &RowQuantizer, bits: ActBits) -> Affine {
    match quantizer {
        RowQuantizer::Static(affines) => affines.get(bits),
        RowQuantizer::Dynamic(clip) => clip.affine(float::max_abs(row), bits),
    }
}

/// Replaces a row by its centered codes and returns the scale; 1 and the row itself without a quantizer.
fn quantize(row: &mut [f32], quantizer: Option<&RowQuantizer>, bits: ActBits) -> f32 {
    let Some(quantizer) = quantizer else { return 1.0 };
    let affine = row_affine(row, quantizer, bits);
    for x in row {
        *x = affine.centered(*x);
    }
    affine.scale
}

/// Keys and values of one head as floats.
#[derive(Clone, Debug)]
pub(crate) struct GeneralHead {
    head_dim: usize,
    points: AttentionPoints,
    /// Codes (or values) `[positions, head_dim]`.
    keys: Vec<f32>,
    key_scales: Vec<f32>,
    /// What enters the value product, `[positions, head_dim]`: codes, or dequantized values.
    values: Vec<f32>,
    value_scales: Vec<f32>,
    bits: Vec<ActBits>,
}

/// Buffers of one query row.
#[derive(Clone, Debug, Default)]
pub(crate) struct GeneralScratch {
    query: Vec<f32>,
    probabilities: Vec<f32>,
    narrow: Vec<f32>,
}

impl GeneralScratch {
    /// Bytes held.
    pub(crate) fn bytes(&self) -> usize {
        4 * (self.query.capacity() + self.probabilities.capacity() + self.narrow.capacity())
    }
}

impl GeneralHead {
    pub(crate) fn new(head_dim: usize, points: AttentionPoints) -> Self {
        Self {
            head_dim,
            points,
            keys: Vec::new(),
            key_scales: Vec::new(),
            values: Vec::new(),
            value_scales: Vec::new(),
            bits: Vec::new(),
        }
    }

    /// Whether value scales are folded into the probabilities before these are quantized.
    fn folded(&self) -> bool {
        self.points.probs.is_some() && self.dynamic_values()
    }

    fn dynamic_values(&self) -> bool {
        matches!(self.points.value, Some(RowQuantizer::Dynamic(_)))
    }

    /// Positions held.
    pub(crate) fn len(&self) -> usize {
        self.bits.len()
    }

    /// Appends a key (after RoPE) and a value at the token's width.
    pub(crate) fn push(&mut self, key: &[f32], value: &[f32], bits: ActBits) {
        let start = self.keys.len();
        self.keys.extend_from_slice(key);
        self.key_scales.push(quantize(&mut self.keys[start..], self.points.key.as_ref(), bits));
        let start = self.values.len();
        self.values.extend_from_slice(value);
        let unfolded = self.dynamic_values() && !self.folded();
        let row = &mut self.values[start..];
        let scale = quantize(row, self.points.value.as_ref(), bits);
        if unfolded {
            // The probabilities are not quantized, so they cannot absorb the scale.
            row.iter_mut().for_each(|x| *x *= scale);
        }
        self.value_scales.push(scale);
        self.bits.push(bits);
    }

    /// Forgets all positions from `len` on.
    pub(crate) fn truncate(&mut self, len: usize) {
        self.keys.truncate(len * self.head_dim);
        self.values.truncate(len * self.head_dim);
        self.key_scales.truncate(len);
        self.value_scales.truncate(len);
        self.bits.truncate(len);
    }

    /// Bytes of codes and scales held.
    pub(crate) fn bytes(&self) -> usize {
        4 * (self.keys.len() + self.values.len() + 2 * self.bits.len()) + self.bits.len()
    }

    /// Appends all rows to `out`.
    pub(crate) fn write(&self, out: &mut Vec<u8>) {
        out.extend(self.bits.iter().map(|bits| bits.bits() as u8));
        for floats in [&self.keys, &self.key_scales, &self.values, &self.value_scales] {
            out.extend(floats.iter().flat_map(|x| x.to_le_bytes()));
        }
    }

    /// Reads `positions` rows into an empty head; `None` if the bytes are not valid rows.
    pub(crate) fn read(&mut self, reader: &mut Reader<'_>, positions: usize) -> Option<()> {
        let width = |&byte: &u8| ActBits::ALL.into_iter().find(|bits| bits.bits() == u32::from(byte));
        self.bits = reader.bytes(positions)?.iter().map(width).collect::<Option<_>>()?;
        let rows = positions * self.head_dim;
        let parts = [
            (&mut self.keys, rows),
            (&mut self.key_scales, positions),
            (&mut self.values, rows),
            (&mut self.value_scales, positions),
        ];
        for (floats, len) in parts {
            floats.resize(len, 0.0);
            reader.floats(floats)?;
        }
        Some(())
    }

    /// Attention of a query (after RoPE) over the latest `window` positions held; returns the probability of position 0.
    pub(crate) fn attend(
        &self,
        kernels: &Kernels,
        query: &[f32],
        (bits, window): (ActBits, usize),
        scratch: &mut GeneralScratch,
        out: &mut [f32],
    ) -> f32 {
        let d = self.head_dim;
        scratch.query.clear();
        scratch.query.extend_from_slice(query);
        let q_scale = quantize(&mut scratch.query, self.points.query.as_ref(), bits);
        let p = &mut scratch.probabilities;
        p.clear();
        p.extend(self.keys.chunks_exact(d).map(|key| kernels.dot(&scratch.query, key)));
        let before = p.len().saturating_sub(window);
        p[..before].fill(f32::NEG_INFINITY);
        kernels.scaled_softmax(p, query_factor(q_scale, d), &self.key_scales);
        let sink_prob = p.first().copied().unwrap_or(0.0);
        // `p` becomes what enters the value product; the factor of the product by width of the value rows.
        let factors = if self.folded() {
            let range = CodeRange::unsigned(self.points.probs.unwrap_or(8));
            kernels.quantize_probabilities(p, &self.value_scales, &self.bits, range)
        } else {
            let probability = self.points.probs.map(Affine::probability);
            let p_scale = probability.map_or(1.0, |affine| affine.scale);
            if let Some(affine) = probability {
                p.iter_mut().for_each(|p| *p = affine.centered(*p));
            }
            match &self.points.value {
                Some(RowQuantizer::Static(affines)) => ActBits::ALL
                    .map(|width| self.bits.contains(&width).then(|| p_scale * affines.get(width).scale)),
                // The values are dequantized already: one group.
                _ => [None, Some(p_scale)],
            }
        };
        let product = |group: Option<ActBits>, out: &mut [f32]| {
            out.fill(0.0);
            for ((value, &p), &bits) in self.values.chunks_exact(d).zip(p.iter()).zip(&self.bits) {
                if group.is_none_or(|group| group == bits) {
                    for (out, v) in out.iter_mut().zip(value) {
                        *out += p * v;
                    }
                }
            }
        };
        if let [Some(four), Some(eight)] = factors {
            scratch.narrow.resize(d, 0.0);
            product(Some(ActBits::A8), out);
            product(Some(ActBits::A4), &mut scratch.narrow);
            for (out, narrow) in out.iter_mut().zip(&scratch.narrow) {
                *out = *out * eight + narrow * four;
            }
        } else {
            product(None, out);
            let factor = factors[0].or(factors[1]).unwrap_or(0.0);
            out.iter_mut().for_each(|out| *out *= factor);
        }
        sink_prob
    }
}
