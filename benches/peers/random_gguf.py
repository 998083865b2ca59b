#!/usr/bin/env python3
"""Writes a GGUF file of the LLaMA-58M shape with random weights in F16, for measuring speed.

    random_gguf.py OUT.gguf [TOKENIZER.gguf]

The tokenizer is the first 16,000 tokens of another file's byte-level BPE, if one is given: enough to turn text into
ids. llama-quantize makes the other types of it: `llama-quantize --pure OUT.gguf OUT-q4_0.gguf Q4_0`.
Needs the packages gguf and numpy.
"""

import sys

import gguf
import numpy

VOCABULARY, HIDDEN, MLP, LAYERS, HEADS = 16_000, 512, 1024, 16, 8


def add_tokenizer(writer, source):
    read = lambda key: source.get_field("tokenizer.ggml." + key).contents()
    tokens = read("tokens")[:VOCABULARY]
    known = set(tokens)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(read("pre"))
    writer.add_token_list(tokens)
    writer.add_token_types(read("token_type")[:VOCABULARY])
    writer.add_token_merges([merge for merge in read("merges") if merge.replace(" ", "") in known])
    writer.add_bos_token_id(read("bos_token_id"))
    writer.add_eos_token_id(read("eos_token_id"))


def main(path, tokenizer=None):
    rng = numpy.random.default_rng(1)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(2048)
    writer.add_embedding_length(HIDDEN)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(MLP)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_rope_dimension_count(HIDDEN // HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10_000.0)
    writer.add_vocab_size(VOCABULARY)
    if tokenizer is None:
        writer.add_tokenizer_model("none")
    else:
        add_tokenizer(writer, gguf.GGUFReader(tokenizer))
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)

    def matrix(name, rows, cols):
        values = rng.standard_normal((rows, cols), dtype=numpy.float32) * 0.05
        writer.add_tensor(name, values.astype(numpy.float16))

    def norm(name):
        writer.add_tensor(name, numpy.ones(HIDDEN, dtype=numpy.float32))

    matrix("token_embd.weight", VOCABULARY, HIDDEN)
    matrix("output.weight", VOCABULARY, HIDDEN)
    norm("output_norm.weight")
    for layer in range(LAYERS):
        block = f"blk.{layer}."
        norm(block + "attn_norm.weight")
        norm(block + "ffn_norm.weight")
        for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
            matrix(f"{block}{name}.weight", HIDDEN, HIDDEN)
        matrix(block + "ffn_gate.weight", MLP, HIDDEN)
        matrix(block + "ffn_up.weight", MLP, HIDDEN)
        matrix(block + "ffn_down.weight", HIDDEN, MLP)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    if not 2 <= len(sys.argv) <= 3:
        sys.exit(__doc__)
    main(*sys.argv[1:])
