//! Tiny models in the layout of llama2.c.

/// Entries of [`tokenizer`]: three special ones, the bytes, `a` and `ab`.
pub const VOCABULARY: usize = 261;

/// A checkpoint of one layer for this number of token ids.
pub fn checkpoint(vocabulary: usize) -> Vec<u8> {
    // dim, hidden_dim, n_layers, n_heads, n_kv_heads, vocab_size, seq_len.
    let header: [i32; 7] = [8, 12, 1, 2, 1, vocabulary as i32, 16];
    let mut bytes: Vec<u8> = header.iter().flat_map(|n| n.to_le_bytes()).collect();
    // Table, two norms, queries, keys, values, output, three of the MLP, last norm, two tables of rotations.
    let floats = vocabulary * 8 + 2 * 8 + 64 + 32 + 32 + 64 + 3 * 96 + 8 + 2 * 16 * 2;
    bytes.extend((0..floats).flat_map(|i| (i as f32 * 0.37).sin().to_le_bytes()));
    bytes
}

/// A tokenizer of [`VOCABULARY`] entries.
pub fn tokenizer() -> Vec<u8> {
    let mut file = 8i32.to_le_bytes().to_vec();
    let words = ["<unk>", "<s>", "</s>"].into_iter().map(str::to_owned);
    let bytes = (0..256).map(|byte| format!("<0x{byte:02X}>"));
    for (index, word) in words.chain(bytes).chain(["a".to_owned(), "ab".to_owned()]).enumerate() {
        file.extend((index as f32).to_le_bytes());
        file.extend((word.len() as i32).to_le_bytes());
        file.extend(word.as_bytes());
    }
    file
}
