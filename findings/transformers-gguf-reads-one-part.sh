#!/bin/bash
# Guess:   a split GGUF is read with all its parts, or the first part alone is refused: "split.count" says that there are more.
# Reality: from_pretrained(gguf_file="x-00001-of-00003.gguf") reads that part alone, even when the others lie beside it, and
#          fills all other tensors with random numbers: a model comes back, with a table of missing keys as a warning (none
#          at verbosity "error"), and two loads of one file give different logits. The other parts are refused for their lack
#          of an architecture; GGUFReader of the gguf package shows the tensors of its own part, too.
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
tokens = torch.tensor([[(i * 37) % V for i in range(20)]])
load = lambda name: AutoModelForCausalLM.from_pretrained(".", gguf_file=name)(tokens).logits
write("whole.gguf", "qwen2")
write("x.gguf", "qwen2", split_max_tensors=10)
parts = sorted(n for n in os.listdir(".") if n.startswith("x-"))
readers = [gguf.GGUFReader(n) for n in parts]
count, total = (readers[0].fields[k].contents() for k in ("split.count", "split.tensors.count"))
whole = load("whole.gguf")
first, again = load(parts[0]), load(parts[0])
def refused(name):
    try: load(name)
    except ValueError as e: return "general.architecture" in str(e)
    return False
facts = {
    "three parts, named as usual": parts == [f"x-0000{i}-of-00003.gguf" for i in (1, 2, 3)] and count == 3,
    "the first part holds a third of the tensors": len(readers[0].tensors) == 10 and sum(len(r.tensors) for r in readers) == total,
    "the whole file loads the same twice": torch.equal(whole, load("whole.gguf")),
    "the first part loads, with other logits": not torch.allclose(first, whole, atol=1e-3),
    "and others again the next time": not torch.allclose(first, again, atol=1e-3),
    "second and third part are refused": refused(parts[1]) and refused(parts[2]),
}
print({n: im.version(n) for n in ("transformers", "gguf", "torch")})
for k, v in facts.items(): print(f"{k:50} {v}")
print("as stated" if all(facts.values()) else "DIFFERENT from what the header states"); sys.exit(not all(facts.values()))
P
v/bin/python run.py
