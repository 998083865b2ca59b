//! Dense storage of codes.
//!
//! Codes are stored unsigned, with `2^(b-1)` added, lowest bits first, without gaps. Read as little-endian 32-bit words,
//! this is the layout of the `pack-quantized` format of compressed-tensors.

/// Errors of packing and unpacking.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PackError {
    /// Bits outside 1..=8.
    Bits(u32),
    /// A buffer of the wrong length: expected, got.
    Length(usize, usize),
    /// A code outside the range of its width: index, value.
    Code(usize, i32),
}

impl core::fmt::Display for PackError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::Bits(bits) => write!(f, "expected 1 to 8 bits for a code, got {bits}"),
            Self::Length(expected, got) => write!(f, "expected a buffer of {expected} entries, got {got}"),
            Self::Code(index, code) => {
                write!(f, "code {code} at index {index} is outside the range of its bit width")
            }
        }
    }
}

impl core::error::Error for PackError {}

/// Offset that makes signed codes of `bits` bits unsigned: `2^(b-1)`.
pub const fn offset(bits: u32) -> i32 {
    1 << (bits - 1)
}

/// Bytes that `n` codes of `bits` bits take in [`pack_bits`].
pub const fn packed_len(n: usize, bits: u32) -> usize {
    (n * bits as usize).div_ceil(8)
}

fn check(bits: u32, expected: usize, got: usize) -> Result<(), PackError> {
    if !(1..=8).contains(&bits) {
        return Err(PackError::Bits(bits));
    }
    if expected != got {
        return Err(PackError::Length(expected, got));
    }
    Ok(())
}

fn shifted(index: usize, code: i8, bits: u32) -> Result<u32, PackError> {
    let value = i32::from(code) + offset(bits);
    if value < 0 || value >= 1 << bits {
        return Err(PackError::Code(index, i32::from(code)));
    }
    Ok(value as u32)
}

/// Packs signed codes densely, lowest bits first; `out` has [`packed_len`] bytes.
///
/// # Errors
/// Bits outside 1..=8, a buffer of the wrong length, a code outside the width.
pub fn pack_bits(codes: &[i8], bits: u32, out: &mut [u8]) -> Result<(), PackError> {
    if !(1..=8).contains(&bits) {
        return Err(PackError::Bits(bits));
    }
    check(bits, packed_len(codes.len(), bits), out.len())?;
    let (mut held, mut count, mut at) = (0u32, 0u32, 0usize);
    for (index, &code) in codes.iter().enumerate() {
        held |= shifted(index, code, bits)? << count;
        count += bits;
        while count >= 8 {
            out[at] = held as u8;
            at += 1;
            held >>= 8;
            count -= 8;
        }
    }
    if count > 0 {
        out[at] = held as u8;
    }
    Ok(())
}

/// The inverse of [`pack_bits`].
///
/// # Errors
/// Bits outside 1..=8, a buffer of the wrong length.
pub fn unpack_bits(packed: &[u8], bits: u32, codes: &mut [i8]) -> Result<(), PackError> {
    if !(1..=8).contains(&bits) {
        return Err(PackError::Bits(bits));
    }
    check(bits, packed_len(codes.len(), bits), packed.len())?;
    let (mut held, mut count, mut at) = (0u32, 0u32, 0usize);
    let mask = (1u32 << bits) - 1;
    for code in codes {
        while count < bits {
            held |= u32::from(packed[at]) << count;
            at += 1;
            count += 8;
        }
        *code = ((held & mask) as i32 - offset(bits)) as i8;
        held >>= bits;
        count -= bits;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use proptest::prelude::*;
    use std::vec;
    use std::vec::Vec;

    fn codes() -> impl Strategy<Value = (u32, Vec<i8>)> {
        (1u32..=8).prop_flat_map(|bits| {
            let low = -(1i32 << (bits - 1));
            let high = (1i32 << (bits - 1)) - 1;
            (Just(bits), prop::collection::vec((low..=high).prop_map(|c| c as i8), 0..100))
        })
    }

    proptest! {
        #[test]
        fn dense_round_trip((bits, codes) in codes()) {
            let mut packed = vec![0u8; packed_len(codes.len(), bits)];
            pack_bits(&codes, bits, &mut packed).unwrap();
            let mut back = vec![0i8; codes.len()];
            unpack_bits(&packed, bits, &mut back).unwrap();
            prop_assert_eq!(&codes, &back);
        }
    }

    #[test]
    fn known_layout() {
        // Codes -8..=-1 are 0..=7 unsigned: the first code sits in the lowest nibble.
        let mut bytes = [0u8; 4];
        pack_bits(&[-8, -7, -6, -5, -4, -3, -2, -1], 4, &mut bytes).unwrap();
        assert_eq!(u32::from_le_bytes(bytes), 0x7654_3210);
    }

    #[test]
    fn misfits_are_refused() {
        let mut out = [0u8; 1];
        assert_eq!(pack_bits(&[8], 4, &mut out), Err(PackError::Code(0, 8)));
        assert_eq!(pack_bits(&[0, 0, 0], 4, &mut out), Err(PackError::Length(2, 1)));
        assert_eq!(pack_bits(&[0], 9, &mut out), Err(PackError::Bits(9)));
        assert_eq!(unpack_bits(&out, 0, &mut [0]), Err(PackError::Bits(0)));
        assert_eq!(unpack_bits(&[], 4, &mut [0]), Err(PackError::Length(1, 0)));
    }
}
