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
    /// 64-bit float, rounded to the nearest 32-bit one.
    F64,
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
    /// 256 codes of 2 bits; scales and offsets of 16 groups in 4 bits, scaled again.
    Q2K,
    /// 256 codes of 3 bits; scales of 16 groups in 6 bits, scaled again.
    Q3K,
    /// 256 codes of 4 bits; scales and offsets of 8 groups in 6 bits, scaled again.
    Q4K,
    /// As `Q4K`, codes of 5 bits.
    Q5K,
    /// 256 codes of 6 bits; scales of 16 groups in 8 bits, scaled again.
    Q6K,
    /// 32 indices into [`LEVELS`], one scale.
    Iq4Nl,
    /// 256 indices into [`LEVELS`]; scales of 8 groups in 6 bits, scaled again.
    Iq4Xs,
    /// 256 codes of -1, 0 and 1, five in a byte, one scale.
    Tq1_0,
    /// 256 codes of -1 to 2, four in a byte, one scale.
    Tq2_0,
    /// 32 floats of 4 bits (E2M1), the scale a power of two.
    Mxfp4,
    /// 128 signs, one scale.
    Q1_0,
    /// 64 codes of -1 to 2, four in a byte, one scale.
    Q2_0,
}

/// Number in files, name, elements of a block, bytes of a block.
const TYPES: [(BlockType, u32, &str, usize, usize); 21] = [
    (BlockType::F32, 0, "F32", 1, 4),
    (BlockType::F16, 1, "F16", 1, 2),
    (BlockType::Q4_0, 2, "Q4_0", 32, 18),
    (BlockType::Q4_1, 3, "Q4_1", 32, 20),
    (BlockType::Q5_0, 6, "Q5_0", 32, 22),
    (BlockType::Q5_1, 7, "Q5_1", 32, 24),
    (BlockType::Q8_0, 8, "Q8_0", 32, 34),
    (BlockType::Q2K, 10, "Q2_K", 256, 84),
    (BlockType::Q3K, 11, "Q3_K", 256, 110),
    (BlockType::Q4K, 12, "Q4_K", 256, 144),
    (BlockType::Q5K, 13, "Q5_K", 256, 176),
    (BlockType::Q6K, 14, "Q6_K", 256, 210),
    (BlockType::Iq4Nl, 20, "IQ4_NL", 32, 18),
    (BlockType::Iq4Xs, 23, "IQ4_XS", 256, 136),
    (BlockType::F64, 28, "F64", 1, 8),
    (BlockType::Bf16, 30, "BF16", 1, 2),
    (BlockType::Tq1_0, 34, "TQ1_0", 256, 54),
    (BlockType::Tq2_0, 35, "TQ2_0", 256, 66),
    (BlockType::Mxfp4, 39, "MXFP4", 32, 17),
    (BlockType::Q1_0, 41, "Q1_0", 128, 18),
    (BlockType::Q2_0, 42, "Q2_0", 64, 18),
];

/// Types that are recognized but not supported.
const OTHERS: [(u32, &str); 10] = [
    (9, "Q8_1"),
    (15, "Q8_K"),
    (16, "IQ2_XXS"),
    (17, "IQ2_XS"),
    (18, "IQ3_XXS"),
    (19, "IQ1_S"),
    (21, "IQ3_S"),
    (22, "IQ2_S"),
    (29, "IQ1_M"),
    (40, "NVFP4"),
];

/// Levels of `IQ4_NL` and `IQ4_XS`.
const LEVELS: [f32; 16] = [
    -127.0, -104.0, -83.0, -65.0, -49.0, -35.0, -22.0, -10.0, 1.0, 13.0, 25.0, 38.0, 53.0, 69.0, 89.0, 113.0,
];
/// Twice the values of E2M1; the format's scales are halved instead. Its negative zero reads as zero.
const E2M1: [f32; 16] =
    [0.0, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 0.0, -1.0, -2.0, -3.0, -4.0, -6.0, -8.0, -12.0];

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
        match self {
            Self::F32 => plain(bytes, out, f32::from_le_bytes),
            Self::F64 => plain(bytes, out, |bytes| f64::from_le_bytes(bytes) as f32),
            Self::F16 => plain(bytes, out, |bytes| f16::from_le_bytes(bytes).to_f32()),
            Self::Bf16 => plain(bytes, out, |bytes| bf16::from_le_bytes(bytes).to_f32()),
            Self::Q8_0 => each::<34, 32>(bytes, out, |bytes, out| {
                let scale = half(bytes);
                out.iter_mut().zip(&bytes[2..]).for_each(|(y, &code)| *y = f32::from(code as i8) * scale);
            }),
            Self::Q4_0 => each::<18, 32>(bytes, out, |bytes, out| {
                let scale = half(bytes);
                nibbles(&bytes[2..], out, |code, _| f32::from(code as i8 - 8) * scale);
            }),
            Self::Q4_1 => each::<20, 32>(bytes, out, |bytes, out| {
                let (scale, offset) = (half(bytes), half(&bytes[2..]));
                nibbles(&bytes[4..], out, |code, _| f32::from(code) * scale + offset);
            }),
            Self::Q5_0 => each::<22, 32>(bytes, out, |bytes, out| {
                let (scale, high) = (half(bytes), word(&bytes[2..]));
                nibbles(&bytes[6..], out, |code, i| f32::from(fifth(code, high, i) as i8 - 16) * scale);
            }),
            Self::Q5_1 => each::<24, 32>(bytes, out, |bytes, out| {
                let (scale, offset, high) = (half(bytes), half(&bytes[2..]), word(&bytes[4..]));
                nibbles(&bytes[8..], out, |code, i| f32::from(fifth(code, high, i)) * scale + offset);
            }),
            Self::Q2K => each::<84, 256>(bytes, out, q2_k),
            Self::Q3K => each::<110, 256>(bytes, out, q3_k),
            Self::Q4K => each::<144, 256>(bytes, out, |bytes, out| {
                q4_k(bytes, &bytes[16..], out, |_, _| 0);
            }),
            Self::Q5K => each::<176, 256>(bytes, out, |bytes, out| {
                // Bit `g` of byte `i` is the fifth bit of element `i` of group `g`.
                q4_k(bytes, &bytes[48..], out, |group, i| (bytes[16 + i] >> group & 1) << 4);
            }),
            Self::Q6K => each::<210, 256>(bytes, out, q6_k),
            Self::Iq4Nl => each::<18, 32>(bytes, out, |bytes, out| {
                let scale = half(bytes);
                nibbles(&bytes[2..], out, |code, _| scale * LEVELS[usize::from(code)]);
            }),
            Self::Iq4Xs => each::<136, 256>(bytes, out, iq4_xs),
            Self::Tq1_0 => each::<54, 256>(bytes, out, tq1_0),
            Self::Tq2_0 => each::<66, 256>(bytes, out, |bytes, out| {
                let scale = half(&bytes[64..]);
                runs_of_two_bits(&bytes[..64], out, |code, _| scale * f32::from(code as i8 - 1));
            }),
            Self::Mxfp4 => each::<17, 32>(bytes, out, |bytes, out| {
                let scale = half_power(bytes[0]);
                nibbles(&bytes[1..], out, |code, _| scale * E2M1[usize::from(code)]);
            }),
            Self::Q1_0 => each::<18, 128>(bytes, out, |bytes, out| {
                let scale = half(bytes);
                for (out, &byte) in out.as_chunks_mut::<8>().0.iter_mut().zip(&bytes[2..]) {
                    out.iter_mut()
                        .enumerate()
                        .for_each(|(i, y)| *y = if byte >> i & 1 == 1 { scale } else { -scale });
                }
            }),
            Self::Q2_0 => each::<18, 64>(bytes, out, |bytes, out| {
                let scale = half(bytes);
                for (out, &byte) in out.as_chunks_mut::<4>().0.iter_mut().zip(&bytes[2..]) {
                    out.iter_mut()
                        .enumerate()
                        .for_each(|(i, y)| *y = scale * f32::from((byte >> (2 * i) & 3) as i8 - 1));
                }
            }),
        }
    }
}

/// Elements of `SIZE` bytes each.
fn plain<const SIZE: usize>(bytes: &[u8], out: &mut [f32], value: impl Fn([u8; SIZE]) -> f32) {
    out.iter_mut().zip(bytes.as_chunks::<SIZE>().0).for_each(|(y, &bytes)| *y = value(bytes));
}

/// Decodes blocks of `SIZE` bytes and `BLOCK` elements one by one.
fn each<const SIZE: usize, const BLOCK: usize>(
    bytes: &[u8],
    out: &mut [f32],
    decode: impl Fn(&[u8; SIZE], &mut [f32; BLOCK]),
) {
    let blocks = bytes.as_chunks::<SIZE>().0.iter();
    blocks.zip(out.as_chunks_mut::<BLOCK>().0).for_each(|(bytes, out)| decode(bytes, out));
}

/// The half-precision number that begins `bytes`.
fn half(bytes: &[u8]) -> f32 {
    f16::from_le_bytes([bytes[0], bytes[1]]).to_f32()
}

fn word(bytes: &[u8]) -> u32 {
    u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])
}

/// Half of the power of two that has this biased exponent, denormal where it is too small.
fn half_power(exponent: u8) -> f32 {
    f32::from_bits(match exponent {
        0 | 1 => 0x0020_0000 << exponent,
        _ => u32::from(exponent - 1) << 23,
    })
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

/// 256 codes in 64 bytes: each half of 32 bytes holds four runs of 32 elements, two bits of each byte a run. `value` takes
/// a code and its index.
fn runs_of_two_bits(bytes: &[u8], out: &mut [f32; 256], value: impl Fn(u8, usize) -> f32) {
    for (run, out) in out.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        let shift = 2 * (run % 4);
        for (i, (y, &byte)) in out.iter_mut().zip(&bytes[run / 4 * 32..]).enumerate() {
            *y = value(byte >> shift & 3, 32 * run + i);
        }
    }
}

/// `Q2K`: 16 bytes with scale (low half) and offset of each group, 64 of codes, then the scales of both.
fn q2_k(bytes: &[u8; 84], out: &mut [f32; 256]) {
    let (d, d_min) = (half(&bytes[80..]), half(&bytes[82..]));
    let scales: [(f32, f32); 16] =
        std::array::from_fn(|group| (d * f32::from(bytes[group] & 15), d_min * f32::from(bytes[group] >> 4)));
    runs_of_two_bits(&bytes[16..80], out, |code, at| {
        let (scale, offset) = scales[at / 16];
        scale * f32::from(code) - offset
    });
}

/// `Q3K`: 32 bytes of third bits (0 takes 4 off), 64 of low bits, 12 of scales, the scale of those. Bit `r` of byte `i` is
/// that of element `i` of run `r`; a scale has four bits in the first eight bytes and two in the last four.
fn q3_k(bytes: &[u8; 110], out: &mut [f32; 256]) {
    let (packed, d) = (&bytes[96..108], half(&bytes[108..]));
    let scales: [f32; 16] = std::array::from_fn(|group| {
        let low = packed[group % 8] >> (4 * (group / 8)) & 15;
        let high = packed[8 + group % 4] >> (2 * (group / 4)) & 3;
        d * f32::from((low | high << 4) as i8 - 32)
    });
    runs_of_two_bits(&bytes[32..96], out, |code, at| {
        let third = bytes[at % 32] >> (at / 32) & 1;
        scales[at / 16] * f32::from((code | third << 2) as i8 - 4)
    });
}

/// `Q4K` and `Q5K`: eight groups of 32, `d * scale * code - dmin * offset`; scales and offsets have 6 bits in 12 bytes.
/// `fifth` gives what is above the four bits of an element of a group.
fn q4_k(bytes: &[u8], codes: &[u8], out: &mut [f32; 256], fifth: impl Fn(usize, usize) -> u8) {
    let (d, d_min) = (half(bytes), half(&bytes[2..]));
    let packed = &bytes[4..16];
    for (group, out) in out.as_chunks_mut::<32>().0.iter_mut().enumerate() {
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
            *y = scale * f32::from((byte >> shift & 15) | fifth(group, i)) - offset;
        }
    }
}

/// `Q6K`: in each half of 128, four runs of 32 elements: their low four bits occupy two runs of 32 bytes, their high two
/// bits one; one scale per 16 elements.
fn q6_k(bytes: &[u8; 210], out: &mut [f32; 256]) {
    let d = half(&bytes[208..]);
    for (run, out) in out.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        let (part, run) = (run / 4, run % 4);
        let low = &bytes[64 * part + 32 * (run % 2)..][..32];
        let high = &bytes[128 + 32 * part..][..32];
        let scale = |half: usize| d * f32::from(bytes[192 + 8 * part + 2 * run + half] as i8);
        let scales = [scale(0), scale(1)];
        for (i, ((y, &low), &high)) in out.iter_mut().zip(low).zip(high).enumerate() {
            let code = (low >> (4 * (run / 2)) & 15) | (high >> (2 * run) & 3) << 4;
            *y = scales[i / 16] * f32::from(code as i8 - 32);
        }
    }
}

/// `Iq4Xs`: the scale, 16 bits with the high two of each group's scale, 4 bytes with the low four, the indices.
fn iq4_xs(bytes: &[u8; 136], out: &mut [f32; 256]) {
    let (d, high) = (half(bytes), u16::from_le_bytes([bytes[2], bytes[3]]));
    for (group, out) in out.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        let low = bytes[4 + group / 2] >> (4 * (group % 2)) & 15;
        let high = (high >> (2 * group) & 3) as u8;
        let scale = d * f32::from((low | high << 4) as i8 - 32);
        nibbles(&bytes[8 + 16 * group..][..16], out, |code, _| scale * LEVELS[usize::from(code)]);
    }
}

/// `Tq1_0`: 32 bytes of five codes, 16 bytes of five, 4 bytes of four, each code of a byte in a run of its own; the scale.
/// A byte is a fraction of 256 in base 3: times 3 to the n, modulo 256, its next digit is code n.
fn tq1_0(bytes: &[u8; 54], out: &mut [f32; 256]) {
    let scale = half(&bytes[52..]);
    let mut out = &mut out[..];
    for (bytes, digits) in [(&bytes[..32], 5), (&bytes[32..48], 5), (&bytes[48..52], 4)] {
        for digit in 0..digits {
            let (run, rest) = std::mem::take(&mut out).split_at_mut(bytes.len());
            for (y, &byte) in run.iter_mut().zip(bytes) {
                let code = (u16::from(byte.wrapping_mul(3u8.pow(digit))) * 3) >> 8;
                *y = scale * (f32::from(code) - 1.0);
            }
            out = rest;
        }
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

    /// Four bits and fewer without a reference reader, or with corners that random bytes seldom meet.
    #[test]
    fn small_codes_by_hand() {
        let y = values(BlockType::Q1_0, &[&f16_bytes(0.5)[..], &[0b101], &[0; 14], &[128]].concat());
        assert_eq!((y[0], y[1], y[2], y[126], y[127]), (0.5, -0.5, 0.5, -0.5, 0.5));
        let y = values(BlockType::Q2_0, &[&f16_bytes(0.5)[..], &[0b1110_0100], &[0; 15]].concat());
        assert_eq!(y[..5], [-0.5, 0.0, 0.5, 1.0, -0.5]);
        let y = values(BlockType::Mxfp4, &[&[128][..], &[0x71], &[0xf8; 15]].concat());
        assert_eq!((y[0], y[16], y[1], y[17]), (1.0, 12.0, 0.0, -12.0));
        // The smallest scale is no normal number: 2 to the -127, its half times 2 is the value of code 2.
        let y = values(BlockType::Mxfp4, &[&[0][..], &[0x22; 16]].concat());
        assert_eq!((y[0], half_power(254)), (2f32.powi(-127), 2f32.powi(126)));
        assert_eq!((half_power(1), half_power(2)), (2f32.powi(-127), 2f32.powi(-126)));
        // 2, 1, 0, 2, 1 in base 3, as a fraction of 256 rounded up.
        let byte = (u32::div_ceil((2 * 81 + 27 + 2 * 3 + 1) * 256, 243)) as u8;
        let y = values(BlockType::Tq1_0, &[&[byte; 52][..], &f16_bytes(2.0)].concat());
        assert_eq!([0, 32, 64, 96, 128].map(|at| y[at]), [2.0, 0.0, -2.0, 2.0, 0.0]);
        assert_eq!([240, 244, 248, 252].map(|at| y[at]), [2.0, 0.0, -2.0, 2.0]);
        assert_eq!(values(BlockType::F64, &0.1f64.to_le_bytes()), [0.1f32]);
    }

    /// Values of 64 blocks of pseudo-random bytes, equal to the bit to those of the reference reader: FNV-1a of their
    /// bytes, computed by `tests/golden/gguf_blocks.py`; and where a block has half-precision numbers.
    #[test]
    fn values_of_the_reference_reader() {
        let expected: [(BlockType, &[usize], u64); 17] = [
            (BlockType::Q4_0, &[0], 0x59d5_b573_6419_7a14),
            (BlockType::Q4_1, &[0, 2], 0x3953_62a8_f573_6ae7),
            (BlockType::Q5_0, &[0], 0x6bb5_0556_fdaf_d87b),
            (BlockType::Q5_1, &[0, 2], 0x99ad_4ca7_2785_a241),
            (BlockType::Q8_0, &[0], 0xc965_ef66_51b4_c567),
            (BlockType::Q2K, &[80, 82], 0xdd25_4608_e1e8_8a9f),
            (BlockType::Q3K, &[108], 0x5598_ce04_3efa_ebaf),
            (BlockType::Q4K, &[0, 2], 0xe220_baa4_f757_65cb),
            (BlockType::Q5K, &[0, 2], 0x94d7_b99a_7f74_4229),
            (BlockType::Q6K, &[208], 0xf8dd_3cd1_6c8a_1158),
            (BlockType::Iq4Nl, &[0], 0x7704_4d6b_af03_d664),
            (BlockType::Iq4Xs, &[0], 0x92b5_84e5_7ff4_e6d2),
            (BlockType::Tq1_0, &[52], 0x4e51_41e8_e9e3_4562),
            (BlockType::Tq2_0, &[64], 0xbede_2279_39ef_6d9b),
            (BlockType::Mxfp4, &[], 0x05e6_3d5a_9637_9ada),
            (BlockType::Q1_0, &[0], 0x5cf2_5080_6ef7_eca5),
            (BlockType::Q2_0, &[0], 0xacc8_2f70_a56d_da51),
        ];
        for (kind, halves, expected) in expected {
            let size = kind.bytes(kind.block()).unwrap();
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
