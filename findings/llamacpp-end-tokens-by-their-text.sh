#!/bin/bash
# Guess:   llama.cpp ends a text at the ids that the file names: tokenizer.ggml.eos_token_id, and eot_token_id where it is set.
# Reality: it also ends at every token whose TEXT is in a list of its own: "<|im_end|>", "<|endoftext|>", "<|eot_id|>", "<|end|>",
#          "<end_of_turn>", "<EOT>", "<|return|>", "<eos>", "[EOS]", "<|end_of_text|>", "</s>"... The type of the token does not
#          matter (normal, control or user-defined), nor does eos_token_id: set to another id, or missing, the same tokens
#          end the text. "<|eos|>", "<|im_start|>" and "END" are not in the list. The same GGUF in a program that follows the
#          metadata alone writes on.
# Seen with: xllamacpp 2026.10.11549 (llama.cpp in a wheel), gguf 0.19.0. 2026-11-27.
set -euo pipefail
T=$(mktemp -d); trap 'rm -rf "$T"' EXIT; cd "$T"
python3 -m venv v && v/bin/pip install -q --no-compile --disable-pip-version-check xllamacpp==2026.10.11549 gguf==0.19.0 numpy==2.4.6
cat > run.py <<'P'
import importlib.metadata as im, json, subprocess, sys, gguf, numpy as np
H, V = 64, 320
ENDS = ["<|im_end|>", "<|endoftext|>", "<|eot_id|>", "<|end|>", "<end_of_turn>", "<EOT>", "<|return|>", "<eos>", "[EOS]", "<|end_of_text|>"]
OTHER = ["<|eos|>", "<|im_start|>", "END"]
TOKENS = ["<unk>", "<s>", "</s>"] + [f"<0x{i:02X}>" for i in range(256)] + ENDS + OTHER
def write(path, kind, eos):
    w = gguf.GGUFWriter(path, "llama")
    for f, x in ((w.add_context_length, 256), (w.add_embedding_length, H), (w.add_block_count, 1), (w.add_feed_forward_length, 96), (w.add_head_count, 4),
                 (w.add_head_count_kv, 2), (w.add_layer_norm_rms_eps, 1e-5), (w.add_vocab_size, V), (w.add_tokenizer_model, "llama"), (w.add_bos_token_id, 1)): f(x)
    if eos is not None: w.add_eos_token_id(eos)
    words = [f"w{i}" for i in range(V - len(TOKENS))]
    w.add_token_list(TOKENS + words); w.add_token_scores([0.0] * V)
    w.add_token_types([2, 3, 3] + [6] * 256 + [kind] * (len(ENDS) + len(OTHER)) + [1] * len(words))
    r = np.random.default_rng(0)
    for n, *s in (("token_embd", V, H), ("output_norm", H), ("output", V, H), ("blk.0.attn_norm", H), ("blk.0.attn_q", H, H), ("blk.0.attn_k", 32, H), ("blk.0.attn_v", 32, H),
                  ("blk.0.attn_output", H, H), ("blk.0.ffn_norm", H), ("blk.0.ffn_gate", 96, H), ("blk.0.ffn_up", 96, H), ("blk.0.ffn_down", H, 96)):
        w.add_tensor(n + ".weight", (r.standard_normal(s) * 0.12 if len(s) == 2 else np.ones(s)).astype(np.float32))
    w.write_header_to_file(); w.write_kv_data_to_file(); w.write_tensors_to_file(); w.close()
# Each token in turn is made the next one by a bias; a text that ends there stops before three tokens.
program = '''
import json, sys, xllamacpp as x
p = x.CommonParams(); p.model.path = sys.argv[1]; p.n_ctx = 256; p.n_gpu_layers = 0; p.cpuparams.n_threads = 1; p.warmup = False
s = x.Server(p); ends = []
for t in json.loads(sys.argv[2]):
    r = s.handle_completions({"prompt": [1, 9, 7], "max_tokens": 3, "n_predict": 3, "temperature": 0, "logit_bias": [[t, 100000.0]]})
    r = json.loads(r) if isinstance(r, str) else r
    if r["choices"][0]["finish_reason"] == "stop": ends.append(t)
print("RESULT", json.dumps(ends))
'''
def ends(name, kind, eos):
    write(name, kind, eos)
    o = subprocess.run([sys.executable, "-c", program, name, json.dumps([2, *range(259, len(TOKENS))])], capture_output=True, text=True)
    l = [x for x in o.stdout.splitlines() if x.startswith("RESULT")]
    if not l: sys.exit(f"{name}: {o.stdout[-300:]} {o.stderr[-300:]}")
    found = [TOKENS[t] for t in json.loads(l[0][7:])]
    print(f"{name:24} {' '.join(found)}")
    return found
print("xllamacpp", im.version("xllamacpp"), "gguf", im.version("gguf"))
want = ["</s>"] + ENDS
ok = all(ends(*case) == want for case in (("normal.gguf", 1, 2), ("control.gguf", 3, 2), ("user-defined.gguf", 4, 2), ("eos-is-9.gguf", 1, 9), ("no-eos.gguf", 1, None)))
print("as stated" if ok else "DIFFERENT from what the header states"); sys.exit(not ok)
P
v/bin/python run.py
