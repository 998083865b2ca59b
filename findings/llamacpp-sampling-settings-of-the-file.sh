#!/bin/bash
# Guess:   a GGUF holds weights and a tokenizer; temperature, top-k and penalties are those of the program and the request.
# Reality: llama.cpp reads keys "general.sampling.*" of the file as its defaults. With "general.sampling.temp" 0 or
#          "general.sampling.top_k" 1 a request without settings becomes deterministic; with
#          "general.sampling.penalty_repeat" even a request with temperature 0 returns other tokens than the largest logits,
#          until the request itself says repeat_penalty 1. Two files with equal tensors and tokenizer write different text.
# Seen with: xllamacpp 2026.10.11549 (llama.cpp in a wheel), gguf 0.19.0. 2026-11-27.
set -euo pipefail
T=$(mktemp -d); trap 'rm -rf "$T"' EXIT; cd "$T"
python3 -m venv v && v/bin/pip install -q --no-compile --disable-pip-version-check xllamacpp==2026.10.11549 gguf==0.19.0 numpy==2.4.6
cat > run.py <<'P'
import importlib.metadata as im, json, subprocess, sys, gguf, numpy as np
H, V, K = 64, 320, gguf.Keys.General
def write(path, extra=lambda w: None):
    w = gguf.GGUFWriter(path, "llama")
    for f, x in ((w.add_context_length, 256), (w.add_embedding_length, H), (w.add_block_count, 1), (w.add_feed_forward_length, 96), (w.add_head_count, 4), (w.add_head_count_kv, 2),
                 (w.add_layer_norm_rms_eps, 1e-5), (w.add_vocab_size, V), (w.add_tokenizer_model, "llama"), (w.add_bos_token_id, 1), (w.add_eos_token_id, 2)): f(x)
    w.add_token_list(["<unk>", "<s>", "</s>"] + [f"<0x{i:02X}>" for i in range(256)] + [f"w{i}" for i in range(V - 259)])
    w.add_token_scores([0.0] * V); w.add_token_types([2, 3, 3] + [6] * 256 + [1] * (V - 259)); extra(w)
    r = np.random.default_rng(0)
    for n, *s in (("token_embd", V, H), ("output_norm", H), ("output", V, H), ("blk.0.attn_norm", H), ("blk.0.attn_q", H, H), ("blk.0.attn_k", 32, H), ("blk.0.attn_v", 32, H),
                  ("blk.0.attn_output", H, H), ("blk.0.ffn_norm", H), ("blk.0.ffn_gate", 96, H), ("blk.0.ffn_up", 96, H), ("blk.0.ffn_down", H, 96)):
        w.add_tensor(n + ".weight", (r.standard_normal(s) * 0.12 if len(s) == 2 else np.ones(s)).astype(np.float32))
    w.write_header_to_file(); w.write_kv_data_to_file(); w.write_tensors_to_file(); w.close()
program = '''
import json, sys, xllamacpp as x
p = x.CommonParams(); p.model.path = sys.argv[1]; p.n_ctx = 256; p.n_gpu_layers = 0; p.cpuparams.n_threads = 1; p.warmup = False
s = x.Server(p); out = []
for seed in range(4):
    r = s.handle_completions({"prompt": [1, 9, 7], "max_tokens": 48, "n_predict": 48, "seed": seed, **json.loads(sys.argv[2])})
    out.append((json.loads(r) if isinstance(r, str) else r)["choices"][0]["text"])
print("RESULT", json.dumps(out))
'''
def texts(name, extra=lambda w: None, **request):
    write(name, extra)
    o = subprocess.run([sys.executable, "-c", program, name, json.dumps(request)], capture_output=True, text=True)
    l = [x for x in o.stdout.splitlines() if x.startswith("RESULT")]
    if not l: sys.exit(f"{name}: {o.stdout[-300:]} {o.stderr[-300:]}")
    return json.loads(l[0][7:])
penalty = lambda w: w.add_float32(K.SAMPLING_PENALTY_REPEAT, 5.0)
greedy = texts("plain.gguf", temperature=0)
facts = {
    "plain file: four seeds, more than one text": len(set(texts("plain.gguf"))) > 1,
    "temp 0 in the file: one text": texts("temp.gguf", lambda w: w.add_float32(K.SAMPLING_TEMP, 0.0)) == greedy,
    "top_k 1 in the file: one text": texts("top.gguf", lambda w: w.add_int32(K.SAMPLING_TOP_K, 1)) == greedy,
    "penalty in the file: temperature 0 writes other text": texts("penalty.gguf", penalty, temperature=0) != greedy,
    "until the request says repeat_penalty 1": texts("penalty.gguf", penalty, temperature=0, repeat_penalty=1.0) == greedy,
}
print("xllamacpp", im.version("xllamacpp"), "gguf", im.version("gguf"))
for k, v in facts.items(): print(f"{k:56} {v}")
print("as stated" if all(facts.values()) else "DIFFERENT from what the header states"); sys.exit(not all(facts.values()))
P
v/bin/python run.py
