#!/bin/bash
# Guess:   generate ends at eos_token_id of generation_config.json, and at that of config.json where the other file names none.
# Reality: if generation_config.json exists, config.json's end tokens never count. A file that holds sampling settings alone, or
#          `"eos_token_id": null`, gives a model that writes up to the length limit. Ids of both files are not united either.
#          Without the file config.json's ids count; but where config.json lacks the key too, nothing ends a text, although
#          `model.config.eos_token_id` shows 2 (the default of the class) for a LLaMA.
# Seen with: transformers 5.24.0, torch 2.15.0. 2026-11-27.
set -euo pipefail
T=$(mktemp -d); trap 'rm -rf "$T"' EXIT; cd "$T"
python3 -m venv v && v/bin/pip install -q --no-compile --disable-pip-version-check transformers==5.24.0 torch==2.15.0 numpy==2.4.6
cat > run.py <<'P'
import importlib.metadata as im, json, os, sys, torch, transformers
os.environ["HF_HUB_OFFLINE"] = "1"
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, LogitsProcessor
transformers.logging.set_verbosity_error()
torch.set_num_threads(1)
LlamaForCausalLM(LlamaConfig(vocab_size=16, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2)).save_pretrained("m")
base = json.load(open("m/config.json"))
class Next(LogitsProcessor):
    def __init__(self, token): self.token = token
    def __call__(self, ids, scores):
        scores = torch.full_like(scores, -1e9); scores[:, self.token] = 0; return scores
def ends(config, generation):
    json.dump({k: v for k, v in base.items() if k != "eos_token_id"} | config, open("m/config.json", "w"))
    if os.path.exists("m/generation_config.json"): os.remove("m/generation_config.json")
    if generation is not None: json.dump(generation, open("m/generation_config.json", "w"))
    model = AutoModelForCausalLM.from_pretrained("m")
    found = [t for t in range(8) if model.generate(torch.tensor([[1, 9]]), max_new_tokens=3, do_sample=False, pad_token_id=0, logits_processor=[Next(t)]).shape[1] == 3]
    print(f"config {config!s:26} generation_config {generation!s:28} ends at {found}; model.config.eos_token_id {model.config.eos_token_id}")
    return found, model.config.eos_token_id
print("transformers", im.version("transformers"), "torch", im.version("torch"))
two = {"eos_token_id": 2}
ok = ends(two, None)[0] == [2] and ends({"eos_token_id": [2, 4]}, None)[0] == [2, 4]
ok &= ends(two, {"temperature": 0.7, "do_sample": True})[0] == []
ok &= ends({"eos_token_id": [2, 4]}, {"eos_token_id": None})[0] == []
ok &= ends(two, {"eos_token_id": [3, 5]})[0] == [3, 5]
ok &= ends({}, None) == ([], 2)
print("as stated" if ok else "DIFFERENT from what the header states"); sys.exit(not ok)
P
v/bin/python run.py
