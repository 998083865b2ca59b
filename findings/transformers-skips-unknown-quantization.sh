#!/bin/bash
# Guess:   from_pretrained refuses a folder whose quantization_config names a quant_method that it does not know: the weights
#          are stored as integers under other names, so nothing else can be done with them. The class that reads the
#          configuration does raise a ValueError for unknown methods.
# Reality: the method is skipped with a warning ("Unknown quantization type ... we will skip the quantization") and a model
#          comes back whose linears and token table are random numbers; two loads of one folder give different logits. At
#          verbosity "error" nothing is said at all. Only an unknown model_type is refused, and a known method whose package
#          is not installed.
# Seen with: transformers 5.24.0, torch 2.15.0. 2026-11-27.
set -euo pipefail
T=$(mktemp -d); trap 'rm -rf "$T"' EXIT; cd "$T"
python3 -m venv v && v/bin/pip install -q --no-compile --disable-pip-version-check transformers==5.24.0 torch==2.15.0 numpy==2.4.6
cat > run.py <<'P'
import importlib.metadata as im, json, os, sys, torch, transformers
os.environ["HF_HUB_OFFLINE"] = "1"
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM
transformers.logging.set_verbosity_error()
torch.set_num_threads(1)
HIDDEN, VOCABULARY, INNER = 64, 96, 96

def folder(path, method, kind="llama"):
    os.makedirs(path)
    generator = torch.Generator().manual_seed(0)
    tensors = {"model.norm.weight": torch.ones(HIDDEN)}
    def packed(name, rows, columns):
        words = torch.randint(0, 2**31 - 1, (rows, columns // 8), generator=generator, dtype=torch.int32)
        tensors.update({f"{name}.weight_packed": words, f"{name}.weight_scale": torch.full((rows, 1), 0.01),
                        f"{name}.weight_shape": torch.tensor([rows, columns])})
    packed("model.embed_tokens", VOCABULARY, HIDDEN)
    for layer in range(2):
        at = f"model.layers.{layer}."
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            packed(at + "self_attn." + name, HIDDEN, HIDDEN)
        packed(at + "mlp.gate_proj", INNER, HIDDEN)
        packed(at + "mlp.up_proj", INNER, HIDDEN)
        packed(at + "mlp.down_proj", HIDDEN, INNER)
        for norm in ("input_layernorm", "post_attention_layernorm"):
            tensors[at + norm + ".weight"] = torch.ones(HIDDEN)
    save_file(tensors, path + "/model.safetensors", metadata={"format": "pt"})
    config = {"architectures": ["LlamaForCausalLM"], "model_type": kind, "vocab_size": VOCABULARY, "hidden_size": HIDDEN,
              "intermediate_size": INNER, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 4,
              "max_position_embeddings": 128, "rms_norm_eps": 1e-5, "tie_word_embeddings": True,
              "quantization_config": {"quant_method": method, "format": "pack-quantized", "config_groups": {}}}
    json.dump(config, open(path + "/config.json", "w"))
    return path

def outcome(path):
    ids = torch.tensor([[(i * 37) % VOCABULARY for i in range(20)]])
    try:
        first, second = (AutoModelForCausalLM.from_pretrained(path)(ids).logits for _ in range(2))
    except Exception as error:
        return type(error).__name__
    return "the same twice" if torch.equal(first, second) else "different each time"

def by_class(method):
    from transformers.quantizers.auto import AutoQuantizationConfig
    try:
        AutoQuantizationConfig.from_dict({"quant_method": method})
    except ValueError as error:
        return "Unknown quantization type" in str(error)
    return False

facts = {
    "an unknown method gives random weights": outcome(folder("a", "of-my-own")) == "different each time",
    "the class of configurations refuses it": by_class("of-my-own"),
    "a known method without its package is refused": outcome(folder("b", "compressed-tensors")) == "ImportError",
    "an unknown model_type is refused": outcome(folder("c", "of-my-own", "llama_of_my_own")) == "ValueError",
}
print({name: im.version(name) for name in ("transformers", "torch")})
for name, holds in facts.items():
    print(f"{name:50} {holds}")
print("as stated" if all(facts.values()) else "DIFFERENT from what the header states")
sys.exit(not all(facts.values()))
P
v/bin/python run.py
