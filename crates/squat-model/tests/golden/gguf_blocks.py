"""Prints the hashes of `values_of_the_reference_reader` in `src/format/gguf/blocks.rs`.

Needs numpy and gguf 0.19.0 from the Python package index. Q1_0 and Q2_0 are computed here from the layout in
ggml-common.h of llama-cpp-python 0.3.36: that package has no reader for them.
"""

import numpy as np
from gguf import GGMLQuantizationType, dequantize

BLOCKS = 64

# Name, bytes of a block, where its half-precision numbers are.
TYPES = [
    ("Q4_0", 18, [0]), ("Q4_1", 20, [0, 2]), ("Q5_0", 22, [0]), ("Q5_1", 24, [0, 2]), ("Q8_0", 34, [0]),
    ("Q2_K", 84, [80, 82]), ("Q3_K", 110, [108]), ("Q4_K", 144, [0, 2]), ("Q5_K", 176, [0, 2]),
    ("Q6_K", 210, [208]), ("IQ4_NL", 18, [0]), ("IQ4_XS", 136, [0]), ("TQ1_0", 54, [52]), ("TQ2_0", 66, [64]),
    ("MXFP4", 17, []), ("Q1_0", 18, [0]), ("Q2_0", 18, [0]),
]


def blocks(size, halves):
    """Pseudo-random bytes, with scales of moderate size."""
    state = 7
    out = bytearray()
    for _ in range(BLOCKS * size):
        state = (state * 6364136223846793005 + 1442695040888963407) % 2**64
        out.append(state >> 56)
    for block in range(BLOCKS):
        for at in halves:
            out[block * size + at + 1] = out[block * size + at + 1] & 0x83 | 0x20
    return np.frombuffer(bytes(out), dtype=np.uint8).reshape(BLOCKS, size)


def few_bits(data, bits):
    """Codes from the lowest bit up: two levels -1 and 1, or four from -1 to 2."""
    scale = data[:, :2].copy().view(np.float16).astype(np.float32)
    shifts = np.arange(0, 8, bits, dtype=np.uint8)
    codes = (data[:, 2:, None] >> shifts & (2**bits - 1)).reshape(BLOCKS, -1).astype(np.float32)
    return scale * (2 * codes - 1 if bits == 1 else codes - 1)


def fnv(data):
    hashed = 0xCBF29CE484222325
    for byte in data:
        hashed = (hashed ^ byte) * 0x100000001B3 % 2**64
    return hashed


for name, size, halves in TYPES:
    data = blocks(size, halves)
    if name in ("Q1_0", "Q2_0"):
        values = few_bits(data, int(name[1]))
    else:
        values = dequantize(data, GGMLQuantizationType[name])
    text = f"{fnv(values.astype(np.float32).tobytes()):016x}"
    grouped = "_".join(text[i : i + 4] for i in range(0, 16, 4))
    print(f"(BlockType::{name}, &{halves}, 0x{grouped}),")
