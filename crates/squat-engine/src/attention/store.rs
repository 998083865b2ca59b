//! The rows of a cache as bytes: positions in order, keys and values as they were pushed.

use super::general::GeneralHead;
use super::head::HeadCache;
use crate::prefix::Reader;
use squat_kernels::{AttentionScheme, CodeRow, FloatKvHead, KvHead};
use squat_quant::ActBits;

impl HeadCache {
    /// Appends all rows to `out`.
    pub(crate) fn write(&self, out: &mut Vec<u8>) {
        match self {
            Self::Integer(head) => write_integers(head, out),
            Self::Float(head) => {
                for position in 0..head.len() {
                    let (key, value) = head.row(position);
                    out.extend(key.iter().chain(value).flat_map(|x| x.to_le_bytes()));
                }
            }
            Self::General(head) => head.write(out),
        }
    }

    /// Appends `positions` rows to an empty cache; `None` if the bytes are not valid rows.
    pub(crate) fn read(&mut self, reader: &mut Reader<'_>, positions: usize) -> Option<()> {
        match self {
            Self::Integer(head) => read_integers(head, reader, positions),
            Self::Float(head) => read_floats(head, reader, positions),
            Self::General(head) => GeneralHead::read(head, reader, positions),
        }
    }
}

/// Each position: width, codes of key and value (two to a byte at 4 bits), scales if they are dynamic.
fn write_integers(head: &KvHead, out: &mut Vec<u8>) {
    let dim = head.head_dim();
    let (mut key, mut value) = (vec![0i8; dim], vec![0i8; dim]);
    for position in 0..head.len() {
        let scales = head.read(position, &mut key, &mut value);
        let bits = head.bits(position);
        out.push(bits.bits() as u8);
        for codes in [&key, &value] {
            match bits {
                ActBits::A8 => out.extend(codes.iter().map(|&code| code as u8)),
                ActBits::A4 => out.extend(codes.chunks(2).map(|pair| {
                    let high = pair.get(1).copied().unwrap_or(0);
                    (pair[0] as u8 & 15) | (high as u8) << 4
                })),
            }
        }
        if *head.scheme() == AttentionScheme::Dynamic {
            out.extend([scales.0, scales.1].into_iter().flat_map(f32::to_le_bytes));
        }
    }
}

fn read_integers(head: &mut KvHead, reader: &mut Reader<'_>, positions: usize) -> Option<()> {
    let dim = head.head_dim();
    let scheme = *head.scheme();
    let mut rows = [vec![0i8; dim], vec![0i8; dim]];
    for _ in 0..positions {
        let [bits] = reader.array()?;
        let bits = ActBits::ALL.into_iter().find(|width| width.bits() == u32::from(bits))?;
        for codes in &mut rows {
            match bits {
                ActBits::A8 => {
                    let bytes = reader.bytes(dim)?;
                    codes.iter_mut().zip(bytes).for_each(|(code, &byte)| *code = byte as i8);
                }
                ActBits::A4 => {
                    let bytes = reader.bytes(dim.div_ceil(2))?;
                    for (pair, &byte) in codes.chunks_mut(2).zip(bytes) {
                        // Shifts of signed numbers bring the sign along.
                        let halves = [(byte << 4) as i8 >> 4, byte as i8 >> 4];
                        pair.iter_mut().zip(halves).for_each(|(code, half)| *code = half);
                    }
                }
            }
        }
        let quantizers = match scheme {
            AttentionScheme::Dynamic => {
                let scales = [reader.f32()?, reader.f32()?];
                // Every row of finite values has such a scale.
                scales.iter().all(|scale| *scale >= 0.0 && scale.is_finite()).then_some(())?;
                scales.map(|scale| (scale, 0))
            }
            AttentionScheme::Static { keys, values, .. } => {
                [keys, values].map(|affines| (affines.get(bits).scale, affines.get(bits).zero_point))
            }
        };
        let row = |index: usize| {
            let (scale, zero_point) = quantizers[index];
            let codes = &rows[index][..];
            let sum = codes.iter().map(|&code| i32::from(code)).sum();
            CodeRow { codes, scale, zero_point, sum, bits }
        };
        head.push(row(0), row(1)).ok()?;
    }
    Some(())
}

fn read_floats(head: &mut FloatKvHead, reader: &mut Reader<'_>, positions: usize) -> Option<()> {
    let dim = head.head_dim();
    let (mut key, mut value) = (vec![0f32; dim], vec![0f32; dim]);
    for _ in 0..positions {
        reader.floats(&mut key)?;
        reader.floats(&mut value)?;
        head.push(&key, &value).ok()?;
    }
    Some(())
}
