#!/bin/bash
# Guess:   the width of a head in a GGUF is "attention.key_length": that is what the key is for, and llama.cpp reads it.
# Reality: transformers does not read the key. A LLaMA gets embedding_length / head_count and a Qwen3 the default of its class,
#          128. Most released models happen to have just that, so nothing shows; a LLaMA with other heads
#          (MiniCPM5-1B) or a Qwen3 of one's own with heads of 16 or 64 is refused because of the shapes of q, k, v and o, and the
#          message names the wrong width as the one that the model wants.
# Seen with: transformers 5.24.0, gguf 0.19.0, torch 2.15.0. 2026-11-27.
set -euo pipefail
T=$(mktemp -d); trap 'rm -rf "$T"' EXIT; cd "$T"
python3 -m venv v && v/bin/pip install -q --no-compile --disable-pip-version-check transformers==5.24.0 torch==2.15.0 accelerate==1.15.0 gguf==0.19.0 numpy==2.4.6
cat > run.py <<'P'
import importlib.metadata as im, os, sys, gguf, numpy as np, torch, transformers
os.environ["HF_HUB_OFFLINE"] = "1"
from transformers import AutoModelForCausalLM
transformers.logging.set_verbosity_error()
torch.set_num_threads(1)
H, V = 64, 64
def write(path, arch, head=16, extra=lambda w: None, **split):
    w = gguf.GGUFWriter(path, arch, **split)
    for f, x in ((w.add_context_length, 256), (w.add_embedding_length, H), (w.add_block_count, 2), (w.add_feed_forward_length, 96), (w.add_head_count, 4), (w.add_head_count_kv, 2), (w.add_key_length, head),
                 (w.add_value_length, head), (w.add_layer_norm_rms_eps, 1e-5), (w.add_rope_freq_base, 1e6), (w.add_vocab_size, V), (w.add_tokenizer_model, "llama"), (w.add_bos_token_id, 1), (w.add_eos_token_id, 2)): f(x)
    w.add_token_list([f"w{i}" for i in range(V)]); w.add_token_scores([0.0] * V); w.add_token_types([1] * V); extra(w)
    q, k = 4 * head, 2 * head
    names = [("token_embd.weight", V, H), ("output_norm.weight", H), ("output.weight", V, H)]
    for i in range(2):
        names += [(f"blk.{i}.{n}", *s) for n, *s in (("attn_norm.weight", H), ("attn_q.weight", q, H), ("attn_k.weight", k, H), ("attn_v.weight", k, H), ("attn_output.weight", H, q), ("ffn_norm.weight", H),
                  ("ffn_gate.weight", 96, H), ("ffn_up.weight", 96, H), ("ffn_down.weight", H, 96))]
        if arch == "qwen2": names += [(f"blk.{i}.attn_{n}.bias", s) for n, s in (("q", q), ("k", k), ("v", k))]
        if arch == "qwen3": names += [(f"blk.{i}.attn_{n}_norm.weight", head) for n in "qk"]
    r = np.random.default_rng(0)
    for n, *s in names: w.add_tensor(n, (r.standard_normal(s) * 0.2 + ("norm" in n)).astype(np.float32))
    w.write_header_to_file(); w.write_kv_data_to_file(); w.write_tensors_to_file(); w.close()
def load(arch, head):
    name = f"{arch}-{head}.gguf"
    write(name, arch, head=head)
    try: found = AutoModelForCausalLM.from_pretrained(".", gguf_file=name).config.head_dim
    except RuntimeError as e: found = "refused: mismatched sizes" if "mismatched" in str(e) else str(e)
    print(f"{arch:6} key_length {head:4} -> {found}")
    return found
print({n: im.version(n) for n in ("transformers", "gguf", "torch")})
ok = [load("llama", 16), load("qwen3", 128)] == [16, 128]
ok &= all(["mismatched" in str(load(*case)) for case in (("llama", 32), ("qwen3", 16), ("qwen3", 64))])
print("as stated" if ok else "DIFFERENT from what the header states"); sys.exit(not ok)
P
v/bin/python run.py
