//! Rows of codes in 32-bit words: dense, lowest bits first, codes may straddle two words (3 bits).
//!
//! This is what compressed-tensors 0.20 writes; for 3 bits, earlier versions put 10 whole codes in each word.

use squat_quant::pack::{PackError, pack_bits, packed_len, unpack_bits};

/// 32-bit words that a row of `cols` codes takes.
pub const fn words_per_row(cols: usize, bits: u32) -> usize {
    (cols * bits as usize).div_ceil(32)
}

/// Packs one row; `out` has [`words_per_row`] words.
///
/// # Errors
/// Bits outside 1..=8, a buffer of the wrong length, a code outside the width.
pub fn pack_row(codes: &[i8], bits: u32, out: &mut [i32]) -> Result<(), PackError> {
    check(codes.len(), bits, out.len())?;
    let mut bytes = vec![0u8; out.len() * 4];
    pack_bits(codes, bits, &mut bytes[..packed_len(codes.len(), bits)])?;
    for (word, quad) in out.iter_mut().zip(bytes.chunks_exact(4)) {
        *word = i32::from_le_bytes([quad[0], quad[1], quad[2], quad[3]]);
    }
    Ok(())
}

/// The inverse of [`pack_row`].
///
/// # Errors
/// Bits outside 1..=8, a buffer of the wrong length.
pub fn unpack_row(words: &[i32], bits: u32, codes: &mut [i8]) -> Result<(), PackError> {
    check(codes.len(), bits, words.len())?;
    let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
    unpack_bits(&bytes[..packed_len(codes.len(), bits)], bits, codes)
}

fn check(cols: usize, bits: u32, words: usize) -> Result<(), PackError> {
    if !(1..=8).contains(&bits) {
        return Err(PackError::Bits(bits));
    }
    let expected = words_per_row(cols, bits);
    if words == expected { Ok(()) } else { Err(PackError::Length(expected, words)) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn rows() -> impl Strategy<Value = (u32, Vec<i8>)> {
        (1u32..=8).prop_flat_map(|bits| {
            let low = -(1i16 << (bits - 1)) as i8;
            let high = ((1i16 << (bits - 1)) - 1) as i8;
            (Just(bits), prop::collection::vec(low..=high, 0..100))
        })
    }

    proptest! {
        #[test]
        fn reads_back((bits, codes) in rows()) {
            let mut words = vec![0i32; words_per_row(codes.len(), bits)];
            pack_row(&codes, bits, &mut words).unwrap();
            let mut back = vec![0i8; codes.len()];
            unpack_row(&words, bits, &mut back).unwrap();
            prop_assert_eq!(back, codes);
        }

        #[test]
        fn each_code_lies_at_its_bit((bits, codes) in rows()) {
            // The definition, one code at a time on a 64-bit window.
            let mut words = vec![0i32; words_per_row(codes.len(), bits) + 1];
            let n = words.len() - 1;
            pack_row(&codes, bits, &mut words[..n]).unwrap();
            for (index, &code) in codes.iter().enumerate() {
                let bit = index * bits as usize;
                let window = u64::from(words[bit / 32] as u32) | u64::from(words[bit / 32 + 1] as u32) << 32;
                let stored = (window >> (bit % 32)) & ((1 << bits) - 1);
                prop_assert_eq!(stored as i64 - (1 << (bits - 1)), i64::from(code));
            }
        }
    }

    #[test]
    fn known_words() {
        // -8 is stored as 0, 7 as 15; the first code has the lowest bits.
        let mut words = [0i32; 2];
        pack_row(&[-7, 7, -8, -8, -8, -8, -8, 0, 1], 4, &mut words).unwrap();
        assert_eq!(words, [0x8000_00F1u32 as i32, 9]);
        assert_eq!(pack_row(&[0], 4, &mut words), Err(PackError::Length(1, 2)));
        assert_eq!(unpack_row(&words, 9, &mut [0]), Err(PackError::Bits(9)));
        assert_eq!(pack_row(&[8; 8], 4, &mut words[..1]), Err(PackError::Code(0, 8)));
    }
}
