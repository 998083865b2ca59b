"""Qwen2 and Qwen3 by Hugging Face's transformers 5.24, for tests/qwen.rs: python qwen.py > qwen.json

Every value of every tensor follows from its name and its place: no file of weights is needed. For each model the JSON
holds the files that `save_pretrained` writes beside the weights, names and shapes of the tensors, log-likelihoods of
each token of a few sequences given those before it, and greedy continuations.
"""

import json
import pathlib
import tempfile

import numpy
import torch
from safetensors import safe_open
from transformers import Qwen2Config, Qwen2ForCausalLM, Qwen3Config, Qwen3ForCausalLM

MASK = (1 << 64) - 1
SEQUENCES = [[1, 7, 22, 0, 13, 13, 5, 18, 2, 9], [1, 28, 3], [(i * i * 7 + i * 3 + 1) % 29 for i in range(32)],
             [1, 16, 11, 26, 19, 8, 21, 14, 6, 10, 27, 25, 12]]
PROMPTS = [[1, 7, 22], [1], [1, 28, 3, 17, 9, 24]]
SIZES = dict(vocab_size=29, hidden_size=24, intermediate_size=40, num_hidden_layers=3, num_attention_heads=4,
             num_key_value_heads=2, max_position_embeddings=32, rms_norm_eps=1e-6, bos_token_id=1, eos_token_id=2)
MODELS = [
    ("qwen2", Qwen2ForCausalLM, Qwen2Config(**SIZES, sliding_window=8, max_window_layers=1)),
    ("qwen2-tied", Qwen2ForCausalLM,
     Qwen2Config(**SIZES, tie_word_embeddings=True, rope_parameters={"rope_type": "default", "rope_theta": 1e6})),
    ("qwen3", Qwen3ForCausalLM,
     Qwen3Config(**SIZES, head_dim=10, rope_parameters={"rope_type": "default", "rope_theta": 1e6})),
    ("qwen3-tied", Qwen3ForCausalLM, Qwen3Config(**SIZES | {"num_key_value_heads": 1}, head_dim=8, tie_word_embeddings=True)),
]


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


def fill(model):
    for name, parameter in model.named_parameters():
        gain = "norm" in name
        values = (1.0 if gain else 0.0) + numpy.float32(0.5) * noise(name, parameter.numel())
        parameter.copy_(torch.from_numpy(values).reshape(parameter.shape))


def written(model):
    """What `save_pretrained` writes: the two JSON files, names and shapes of the tensors."""
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        path = pathlib.Path(folder)
        with safe_open(path / "model.safetensors", "pt") as file:
            shapes = {name: file.get_slice(name).get_shape() for name in sorted(file.keys())}
        return {"config": json.loads((path / "config.json").read_text()),
                "generation_config": json.loads((path / "generation_config.json").read_text()), "tensors": shapes}


def golden(name, model):
    model.generation_config.eos_token_id = [2, 12]
    scored = []
    for tokens in SEQUENCES:
        rows = torch.log_softmax(model(torch.tensor([tokens])).logits[0], dim=-1)
        scored.append({"tokens": tokens, "log_likelihoods":
                       [round(rows[i, t].item(), 7) for i, t in enumerate(tokens[1:])]})
    greedy = []
    for prompt in PROMPTS:
        text = model.generate(torch.tensor([prompt]), do_sample=False, max_new_tokens=20, pad_token_id=0)[0].tolist()
        greedy.append({"prompt": prompt, "text": text[len(prompt):]})
    return {"name": name, **written(model), "sequences": scored, "greedy": greedy}


def main():
    torch.set_num_threads(1)
    models = []
    with torch.no_grad():
        for name, kind, config in MODELS:
            model = kind(config).eval()
            fill(model)
            models.append(golden(name, model))
    lines = []
    for model in models:
        entries = []
        for key, value in model.items():
            if key in ("sequences", "greedy"):
                rows = ",\n   ".join(json.dumps(row) for row in value)
                entries.append(f"  {json.dumps(key)}: [\n   {rows}]")
            else:
                entries.append(f"  {json.dumps(key)}: {json.dumps(value)}")
        lines.append(" {\n" + ",\n".join(entries) + "\n }")
    print("[\n" + ",\n".join(lines) + "\n]")


main()
