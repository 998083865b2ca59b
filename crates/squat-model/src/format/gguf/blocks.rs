//! How GGUF stores elements: plain floats, or blocks of few-bit codes with scales of their own.
//!
//! Written after the published layouts; the order of float operations is that of the reference reader (`gguf` on the
//! Python package index), so values are equal to the bit.

use half::{bf16, f16};

/// A type of elements that is read here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BlockType {
    /// 32-bit float.
    F32,
    /// IEEE half.
    F16,
    /// bfloat16.
    Bf16,
    /// 32 codes of 8 bits, one scale.
    Q8_0,
    /// 32 codes of 4 bits, one scale.
    Q4_0,
    /// 32 codes of 4 bits, scale and offset.
    Q4_1,
    /// 32 codes of 5 bits, one scale.
    Q5_0,
    /// 32 codes of 5 bits, scale and offset.
    Q5_1,
    /// 256 codes of 4 bits; scales and offsets of 8 groups in 6 bits, scaled again.
    Q4K,
    /// As `Q4K`, codes of 5 bits.
    Q5K,
    /// 256 codes of 6 bits; scales of 16 groups in 8 bits, scaled again.
    Q6K,
}

/// Number in files, name, elements of a block, bytes of a block.
const TYPES: [(BlockType, u32, &str, usize, usize); 11] = [
    (BlockType::F32, 0, "F32", 1, 4),
    (BlockType::F16, 1, "F16", 1, 2),
    (BlockType::Q4_0, 2, "Q4_0", 32, 18),
    (BlockType::Q4_1, 3, "Q4_1", 32, 20),
    (BlockType::Q5_0, 6, "Q5_0", 32, 22),
    (BlockType::Q5_1, 7, "Q5_1", 32, 24),
    (BlockType::Q8_0, 8, "Q8_0", 32, 34),
    (BlockType::Q4K, 12, "Q4_K", 256, 144),
    (BlockType::Q5K, 13, "Q5_K", 256, 176),
    (BlockType::Q6K, 14, "Q6_K", 256, 210),
    (BlockType::Bf16, 30, "BF16", 1, 2),
];

/// Types that are recognized but not supported.
const OTHERS: [(u32, &str); 19] = [
    (9, "Q8_1"),
    (10, "Q2_K"),
    (11, "Q3_K"),
    (15, "Q8_K"),
    (16, "IQ2_XXS"),
    (17, "IQ2_XS"),
    (18, "IQ3_XXS"),
    (19, "IQ1_S"),
    (20, "IQ4_NL"),
    (21, "IQ3_S"),
    (22, "IQ2_S"),
    (23, "IQ4_XS"),
    (28, "F64"),
    (29, "IQ1_M"),
    (34, "TQ1_0"),
    (35, "TQ2_0"),
    (39, "MXFP4"),
    (41, "Q1_0"),
    (42, "Q2_0"),
];

/// The type of a number, in words for messages.
pub(super) fn type_name(id: u32) -> String {
    let read = TYPES.iter().map(|row| (row.1, row.2));
    match read.chain(OTHERS).find(|(number, _)| *number == id) {
        Some((_, name)) => name.to_owned(),
        None => format!("GGUF type number {id}"),
    }
}

impl BlockType {
    /// The type of a number in a file, if it is read here.
    pub fn of_id(id: u32) -> Option<Self> {
        TYPES.iter().find(|row| row.1 == id).map(|row| row.0)
    }

    /// Every name, for messages.
    pub fn names() -> String {
        TYPES.map(|row| row.2).join(", ")
    }

    fn row(self) -> &'static (Self, u32, &'static str, usize, usize) {
        TYPES.iter().find(|row| row.0 == self).expect("every type has a row in the table")
    }

    /// Name in the format's own words.
    pub fn name(self) -> &'static str {
        self.row().2
    }

    /// Elements that are stored together.
    pub fn block(self) -> usize {
        self.row().3
    }

    /// Bytes of `elements` elements; `None` if they do not fill whole blocks or overflow.
    pub fn bytes(self, elements: usize) -> Option<usize> {
        let (_, _, _, block, bytes) = *self.row();
        elements.is_multiple_of(block).then(|| (elements / block).checked_mul(bytes)).flatten()
    }

    /// Writes the values of blocks that fill `out`.
    pub(super) fn dequantize(self, bytes: &[u8], out: &mut [f32]) {
        let (_, _, _, block, size) = *self.row();
        let decode: fn(&[u8], &mut [f32]) = match self {
            Self::F32 => |bytes, out| out[0] = f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]),
            Self::F16 => |bytes, out| out[0] = half(bytes),
            Self::Bf16 => |bytes, out| out[0] = bf16::from_le_bytes([bytes[0], bytes[1]]).to_f32(),
            Self::Q8_0 => |bytes, out| {
                let scale = half(bytes);
                out.iter_mut().zip(&bytes[2..]).for_each(|(y, &code)| *y = f32::from(code as i8) * scale);
            },
            Self::Q4_0 => |bytes, out| {
                let scale = half(bytes);
                nibbles(&bytes[2..], out, |code, _| f32::from(code as i8 - 8) * scale);
            },
            Self::Q4_1 => |bytes, out| {
                let (scale, offset) = (half(bytes), half(&bytes[2..]));
                nibbles(&bytes[4..], out, |code, _| f32::from(code) * scale + offset);
            },
            Self::Q5_0 => |bytes, out| {
                let (scale, high) = (half(bytes), word(&bytes[2..]));
                nibbles(&bytes[6..], out, |code, i| f32::from(fifth(code, high, i) as i8 - 16) * scale);
            },
            Self::Q5_1 => |bytes, out| {
                let (scale, offset, high) = (half(bytes), half(&bytes[2..]), word(&bytes[4..]));
                nibbles(&bytes[8..], out, |code, i| f32::from(fifth(code, high, i)) * scale + offset);
            },
            Self::Q4K => |bytes, out| groups_of_32(bytes, &[], &bytes[16..], out),
            Self::Q5K => |bytes, out| groups_of_32(bytes, &bytes[16..48], &bytes[48..], out),
            Self::Q6K => groups_of_16,
        };
        bytes.chunks_exact(size).zip(out.chunks_exact_mut(block)).for_each(|(bytes, out)| decode(bytes, out));
    }
}

/// The half-precision number that begins `bytes`.
fn half(bytes: &[u8]) -> f32 {
    f16::from_le_bytes([bytes[0], bytes[1]]).to_f32()
}

fn word(bytes: &[u8]) -> u32 {
    u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])
}

/// A 4-bit code with bit `index` of `high` above it.
fn fifth(code: u8, high: u32, index: usize) -> u8 {
    code | ((high >> index & 1) << 4) as u8
}

/// 32 codes in 16 bytes: the low halves are the first 16, the high halves the others.
fn nibbles(bytes: &[u8], out: &mut [f32], value: impl Fn(u8, usize) -> f32) {
    let (low, high) = out.split_at_mut(16);
    for (i, ((low, high), &byte)) in low.iter_mut().zip(high).zip(bytes).enumerate() {
        *low = value(byte & 15, i);
        *high = value(byte >> 4, i + 16);
    }
}

/// `Q4K` and `Q5K`: eight groups of 32, `d * scale * code - dmin * offset`; scales and offsets have 6 bits in 12 bytes.
/// `fifths` holds the fifth bits, bit `g` of byte `i` that of element `i` of group `g`; it is empty for four bits.
fn groups_of_32(bytes: &[u8], fifths: &[u8], codes: &[u8], out: &mut [f32]) {
    let (d, d_min) = (half(bytes), half(&bytes[2..]));
    let packed = &bytes[4..16];
    for (group, out) in out.chunks_exact_mut(32).enumerate() {
        let (scale, offset) = match group {
            0..4 => (packed[group] & 63, packed[group + 4] & 63),
            _ => (
                (packed[group + 4] & 15) | (packed[group - 4] >> 6 << 4),
                (packed[group + 4] >> 4) | (packed[group] >> 6 << 4),
            ),
        };
        let (scale, offset) = (d * f32::from(scale), d_min * f32::from(offset));
        // Two groups share 32 bytes: low halves the even one, high halves the odd one.
        let shift = 4 * (group % 2);
        for (i, (y, &byte)) in out.iter_mut().zip(&codes[group / 2 * 32..]).enumerate() {
            let fifth = fifths.get(i).map_or(0, |bits| (bits >> group & 1) << 4);
            *y = scale * f32::from((byte >> shift & 15) | fifth) - offset;
        }
    }
}

/// `Q6K`: in each half of 128, four runs of 32 elements: their low four bits occupy two runs of 32 bytes, their high two
/// bits one; one scale per 16 elements.
fn groups_of_16(bytes: &[u8], out: &mut [f32]) {
    let (low, rest) = bytes.split_at(128);
    let (high, rest) = rest.split_at(64);
    let (scales, d) = (&rest[..16], half(&rest[16..]));
    for (at, y) in out.iter_mut().enumerate() {
        let (part, run, i) = (at / 128, at / 32 % 4, at % 32);
        let low = low[64 * part + 32 * (run % 2) + i] >> (4 * (run / 2)) & 15;
        let high = high[32 * part + i] >> (2 * run) & 3;
        let scale = d * f32::from(scales[at / 16] as i8);
        *y = scale * f32::from((low | high << 4) as i8 - 32);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn f16_bytes(value: f32) -> [u8; 2] {
        f16::from_f32(value).to_le_bytes()
    }

    fn values(kind: BlockType, bytes: &[u8]) -> Vec<f32> {
        assert_eq!(kind.bytes(kind.block()), Some(bytes.len()));
        let mut out = vec![f32::NAN; kind.block()];
        kind.dequantize(bytes, &mut out);
        out
    }

    #[test]
    fn blocks_of_32_by_hand() {
        let codes: Vec<u8> = (0..16u8).map(|i| i | (15 - i) << 4).collect();
        let four = [&f16_bytes(0.5)[..], &codes].concat();
        let y = values(BlockType::Q4_0, &four);
        assert_eq!((y[0], y[15], y[16], y[31]), (-4.0, 3.5, 3.5, -4.0));
        let y = values(BlockType::Q4_1, &[&f16_bytes(0.5)[..], &f16_bytes(-1.0), &codes].concat());
        assert_eq!((y[0], y[15], y[16], y[31]), (-1.0, 6.5, 6.5, -1.0));
        let high = 1u32 << 31 | 1;
        let y = values(BlockType::Q5_0, &[&f16_bytes(1.0)[..], &high.to_le_bytes(), &codes].concat());
        assert_eq!((y[0], y[1], y[16], y[31]), (0.0, -15.0, -1.0, 0.0));
        let eight: Vec<u8> = (0..32u8).map(|i| i.wrapping_sub(16)).collect();
        let y = values(BlockType::Q8_0, &[&f16_bytes(2.0)[..], &eight].concat());
        assert_eq!((y[0], y[31]), (-32.0, 30.0));
    }

    #[test]
    fn sizes() {
        assert_eq!(BlockType::Q4_0.bytes(64), Some(36));
        assert_eq!(BlockType::Q4_0.bytes(65), None);
        assert_eq!(BlockType::F32.bytes(usize::MAX), None);
        assert_eq!(BlockType::of_id(12), Some(BlockType::Q4K));
        assert_eq!(BlockType::of_id(4), None);
    }

    /// Values of 64 blocks of pseudo-random bytes, equal to the bit to those of the reference reader: FNV-1a of their
    /// bytes, computed with `gguf.quants.dequantize` of the Python package gguf 0.19.
    #[test]
    fn values_of_the_reference_reader() {
        let expected = [
            (BlockType::Q4_0, 0x59d5_b573_6419_7a14),
            (BlockType::Q4_1, 0x3953_62a8_f573_6ae7),
            (BlockType::Q5_0, 0x6bb5_0556_fdaf_d87b),
            (BlockType::Q5_1, 0x99ad_4ca7_2785_a241),
            (BlockType::Q8_0, 0xc965_ef66_51b4_c567),
            (BlockType::Q4K, 0xe220_baa4_f757_65cb),
            (BlockType::Q5K, 0x94d7_b99a_7f74_4229),
            (BlockType::Q6K, 0xf8dd_3cd1_6c8a_1158u64),
        ];
        for (kind, expected) in expected {
            let size = kind.bytes(kind.block()).unwrap();
            let halves: &[usize] = match kind {
                BlockType::Q4_0 | BlockType::Q5_0 | BlockType::Q8_0 => &[0],
                BlockType::Q6K => &[208],
                _ => &[0, 2],
            };
            let mut state = 7u64;
            let mut bytes = Vec::new();
            for _ in 0..64 {
                let first = bytes.len();
                for _ in 0..size {
                    state =
                        state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                    bytes.push((state >> 56) as u8);
                }
                // Scales of moderate size.
                halves.iter().for_each(|at| bytes[first + at + 1] = bytes[first + at + 1] & 0x83 | 0x20);
            }
            let mut values = vec![0f32; 64 * kind.block()];
            kind.dequantize(&bytes, &mut values);
            let hash =
                values.iter().flat_map(|x| x.to_le_bytes()).fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| {
                    (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
                });
            assert_eq!(hash, expected, "{}", kind.name());
        }
    }
}
