#!/bin/bash
# Guess:   a GGUF of Qwen2 carries its tokenizer: tokens, merges and "tokenizer.ggml.pre" = "qwen2" say how text becomes ids.
# Reality: Qwen's tokenizer.json first brings text to Unicode NFC, and GGUF has no key for that. llama.cpp does not do it, and
#          transformers does not either when it takes the tokenizer from the GGUF (gguf_file=...), while it does for the
#          folder that the GGUF was made from. Decomposed text ("e" + U+0301, Korean as single jamo, as macOS writes file
#          names) gets 5 tokens in place of 2, and the model sees pieces that it was never trained on.
# Seen with: xllamacpp 2026.10.11549 (llama.cpp in a wheel), gguf 0.19.0, transformers 5.24.0, tokenizers 0.23.3. 2026-11-27.
set -euo pipefail
T=$(mktemp -d); trap 'rm -rf "$T"' EXIT; cd "$T"
python3 -m venv v && v/bin/pip install -q --no-compile --disable-pip-version-check xllamacpp==2026.10.11549 gguf==0.19.0 numpy==2.4.6 transformers==5.24.0 tokenizers==0.23.3 torch==2.15.0 accelerate==1.15.0
cat > run.py <<'P'
import importlib.metadata as im, json, os, subprocess, sys, gguf, numpy as np
os.environ["HF_HUB_OFFLINE"] = "1"
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer
H = 64
TEXTS = {"composed": "The caf\u00e9", "decomposed": "The cafe\u0301", "Hangul": "\uac00\uac01", "jamo": "\u1100\u1161\u1100\u1161\u11a8"}
raw = Tokenizer(models.BPE()); raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False); raw.decoder = decoders.ByteLevel()
raw.train_from_iterator(["The caf\u00e9 and \uac00\uac01. " * 30], trainers.BpeTrainer(vocab_size=320, special_tokens=["<|endoftext|>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
os.mkdir("folder"); raw.save("folder/tokenizer.json")
json.dump({"model_type": "qwen2"}, open("folder/config.json", "w"))
AutoTokenizer.from_pretrained("folder").save_pretrained("folder")  # with Qwen's own normalizer and pre-tokenizer
model = json.loads(raw.to_str())["model"]
tokens = sorted(model["vocab"], key=model["vocab"].get); V = len(tokens)
w = gguf.GGUFWriter("folder/m.gguf", "qwen2")
for f, x in ((w.add_context_length, 256), (w.add_embedding_length, H), (w.add_block_count, 1), (w.add_feed_forward_length, 96), (w.add_head_count, 4), (w.add_head_count_kv, 2), (w.add_layer_norm_rms_eps, 1e-5),
             (w.add_vocab_size, V), (w.add_tokenizer_model, "gpt2"), (w.add_tokenizer_pre, "qwen2"), (w.add_eos_token_id, 0), (w.add_add_bos_token, False)): f(x)
w.add_token_list(tokens); w.add_token_types([3] + [1] * (V - 1)); w.add_token_merges([m if isinstance(m, str) else " ".join(m) for m in model["merges"]])
r = np.random.default_rng(0)
for n, *s in (("token_embd.weight", V, H), ("output_norm.weight", H), ("output.weight", V, H), ("blk.0.attn_norm.weight", H), ("blk.0.attn_q.weight", H, H), ("blk.0.attn_k.weight", 32, H), ("blk.0.attn_v.weight", 32, H),
              ("blk.0.attn_q.bias", H), ("blk.0.attn_k.bias", 32), ("blk.0.attn_v.bias", 32), ("blk.0.attn_output.weight", H, H), ("blk.0.ffn_norm.weight", H), ("blk.0.ffn_gate.weight", 96, H), ("blk.0.ffn_up.weight", 96, H),
              ("blk.0.ffn_down.weight", H, 96)): w.add_tensor(n, (r.standard_normal(s) * 0.12 if len(s) == 2 else np.ones(s)).astype(np.float32))
w.write_header_to_file(); w.write_kv_data_to_file(); w.write_tensors_to_file(); w.close()
program = '''
import json, sys, xllamacpp as x
p = x.CommonParams(); p.model.path = sys.argv[1]; p.n_ctx = 256; p.n_gpu_layers = 0; p.cpuparams.n_threads = 1; p.warmup = False
s = x.Server(p); out = []
for t in json.loads(sys.argv[2]):
    r = s.handle_completions({"prompt": t, "max_tokens": 1, "n_predict": 1})
    out.append((json.loads(r) if isinstance(r, str) else r)["usage"]["prompt_tokens"])
print("RESULT", json.dumps(out))
'''
o = subprocess.run([sys.executable, "-c", program, "folder/m.gguf", json.dumps(list(TEXTS.values()))], capture_output=True, text=True)
lines = [x for x in o.stdout.splitlines() if x.startswith("RESULT")]
if not lines: sys.exit(o.stderr[-600:])
folder, file = AutoTokenizer.from_pretrained("folder"), AutoTokenizer.from_pretrained("folder", gguf_file="m.gguf")
count = {name: (len(folder(t).input_ids), n, len(file(t).input_ids)) for (name, t), n in zip(TEXTS.items(), json.loads(lines[0][7:]))}
print({n: im.version(n) for n in ("xllamacpp", "gguf", "transformers", "tokenizers")})
for name, (a, b, c) in count.items(): print(f"{name:10} tokens: folder in transformers {a}, GGUF in llama.cpp {b}, GGUF in transformers {c}")
ok = all(len(set(count[n])) == 1 for n in ("composed", "Hangul"))
ok &= count["decomposed"][0] == count["composed"][0] and count["jamo"][0] == count["Hangul"][0]
ok &= all(count[n][1] > count[n][0] and count[n][2] == count[n][1] for n in ("decomposed", "jamo"))
print("as stated" if ok else "DIFFERENT from what the header states"); sys.exit(not ok)
P
v/bin/python run.py
