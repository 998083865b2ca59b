"""Logits of a small GPT-2 by Hugging Face's transformers, for tests/gpt2.rs: python gpt2.py > gpt2.txt

Every value of every tensor follows from its name and its place: no file of weights is needed. One line of logits for
each token.
"""

import numpy
import torch
from transformers import GPT2Config, GPT2LMHeadModel

MASK = (1 << 64) - 1
TOKENS = [1, 7, 22, 0, 13, 13, 5, 18, 2, 9]


def noise(name, count):
    """Numbers in -1..1: SplitMix64 from FNV-1a of the name."""
    seed = 0xCBF29CE484222325
    for byte in name.encode():
        seed = (seed ^ byte) * 0x100000001B3 & MASK
    values = numpy.empty(count, dtype=numpy.float32)
    for index in range(count):
        z = (seed + (index + 1) * 0x9E3779B97F4A7C15) & MASK
        z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 & MASK
        z = (z ^ z >> 27) * 0x94D049BB133111EB & MASK
        values[index] = ((z ^ z >> 31) >> 40) / (1 << 23) - 1.0
    return values


config = GPT2Config(vocab_size=23, n_positions=16, n_embd=24, n_layer=2, n_head=4, layer_norm_epsilon=1e-5,
                    bos_token_id=1, eos_token_id=2)
model = GPT2LMHeadModel(config).eval()
with torch.no_grad():
    for name, parameter in model.named_parameters():
        gain = ".ln_" in name and name.endswith(".weight")
        values = (1.0 if gain else 0.0) + numpy.float32(0.5) * noise(name, parameter.numel())
        parameter.copy_(torch.from_numpy(values).reshape(parameter.shape))
    logits = model(torch.tensor([TOKENS])).logits[0]
for row in logits.tolist():
    print(" ".join(f"{x:.6f}" for x in row))
