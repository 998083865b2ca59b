#!/bin/bash
# Guess:   `generate(do_sample=False)` returns the tokens of largest logits: a reference for greedy text of another engine.
# Reality: do_sample=False switches off sampling alone. What else generation_config.json holds still acts: with
#          `"repetition_penalty": 1.1` (as released Qwen2.5 chat models have it) the text leaves the argmax path,
#          with `"num_beams": 4` it is a beam search, `suppress_tokens` removes tokens; temperature, top_k and top_p do not
#          act. A comparison has to set repetition_penalty=1.0 and num_beams=1 in the call, or take argmax of the logits.
# Seen with: transformers 5.24.0, torch 2.15.0. 2026-11-27.
set -euo pipefail
T=$(mktemp -d); trap 'rm -rf "$T"' EXIT; cd "$T"
python3 -m venv v && v/bin/pip install -q --no-compile --disable-pip-version-check transformers==5.24.0 torch==2.15.0 numpy==2.4.6
cat > run.py <<'P'
import importlib.metadata as im, json, os, sys, torch, transformers
os.environ["HF_HUB_OFFLINE"] = "1"
from transformers import AutoModelForCausalLM, Qwen2Config, Qwen2ForCausalLM
transformers.logging.set_verbosity_error()
torch.set_num_threads(1); torch.manual_seed(0)
Qwen2ForCausalLM(Qwen2Config(vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
                             initializer_range=0.3)).save_pretrained("m")
def text(settings, **call):
    json.dump({"eos_token_id": 63} | settings, open("m/generation_config.json", "w"))
    model = AutoModelForCausalLM.from_pretrained("m")
    return model, model.generate(torch.tensor([[1, 5, 9]]), max_new_tokens=24, pad_token_id=0, do_sample=False, **call)[0, 3:].tolist()
model, plain = text({})
ids = torch.tensor([[1, 5, 9]])
for _ in range(24): ids = torch.cat([ids, model(ids).logits[:, -1].argmax(-1, keepdim=True)], 1)
argmax = ids[0, 3:].tolist()
sampling = {"do_sample": True, "temperature": 0.7, "top_p": 0.8, "top_k": 20}
facts = {
    "no settings: argmax": plain == argmax,
    "temperature, top_p, top_k in the file: argmax": text(sampling)[1] == argmax,
    "repetition_penalty 1.1 in the file: other text": text(sampling | {"repetition_penalty": 1.1})[1] != argmax,
    "num_beams 4 in the file: other text": text({"num_beams": 4})[1] != argmax,
    "suppress_tokens in the file: other text": text({"suppress_tokens": [argmax[0]]})[1] != argmax,
    "both reset in the call: argmax": text({"num_beams": 4, "repetition_penalty": 1.1}, repetition_penalty=1.0, num_beams=1)[1] == argmax,
}
print("transformers", im.version("transformers"), "torch", im.version("torch"))
for k, v in facts.items(): print(f"{k:50} {v}")
print("as stated" if all(facts.values()) else "DIFFERENT from what the header states"); sys.exit(not all(facts.values()))
P
v/bin/python run.py
