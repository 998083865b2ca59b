"""Families of models by Hugging Face's transformers 5.24, for tests/families.rs: python families.py > families.json

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
from transformers import (Ernie4_5Config, Ernie4_5ForCausalLM, Exaone4Config, Exaone4ForCausalLM, Gemma3ForCausalLM,
                          Gemma3TextConfig, GraniteConfig, GraniteForCausalLM, GraniteMoeHybridConfig,
                          GraniteMoeHybridForCausalLM, LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM,
                          Olmo2Config, Olmo2ForCausalLM, Qwen2Config, Qwen2ForCausalLM, Qwen3Config, Qwen3ForCausalLM,
                          SmolLM3Config, SmolLM3ForCausalLM)

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
    ("qwen3-window", Qwen3ForCausalLM,
     Qwen3Config(**SIZES, head_dim=8, use_sliding_window=True, sliding_window=5, max_window_layers=1)),
    ("llama3", LlamaForCausalLM,
     LlamaConfig(**SIZES, tie_word_embeddings=True,
                 rope_parameters={"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0,
                                  "high_freq_factor": 4.0, "original_max_position_embeddings": 16})),
    ("mistral", MistralForCausalLM, MistralConfig(**SIZES, head_dim=6, sliding_window=None)),
    ("mistral-window", MistralForCausalLM, MistralConfig(**SIZES, sliding_window=7)),
    ("gemma3", Gemma3ForCausalLM,
     Gemma3TextConfig(**SIZES | {"num_hidden_layers": 4}, pad_token_id=0, head_dim=8, sliding_window=6, query_pre_attn_scalar=12,
                      layer_types=["sliding_attention", "sliding_attention", "full_attention", "sliding_attention"],
                      rope_parameters={"full_attention": {"rope_type": "default", "rope_theta": 1e6},
                                       "sliding_attention": {"rope_type": "default", "rope_theta": 1e4}})),
    ("gemma3-untied", Gemma3ForCausalLM,
     Gemma3TextConfig(**SIZES | {"num_hidden_layers": 7, "num_key_value_heads": 1}, pad_token_id=0, head_dim=6, sliding_window=512,
                      tie_word_embeddings=False)),
    ("granite", GraniteForCausalLM,
     GraniteConfig(**SIZES, embedding_multiplier=12.0, logits_scaling=1.5, residual_multiplier=0.22,
                   attention_multiplier=0.3)),
    ("granite-tied", GraniteForCausalLM,
     GraniteConfig(**SIZES, embedding_multiplier=3.0, logits_scaling=4.0, residual_multiplier=0.5,
                   attention_multiplier=0.125, attention_bias=True, mlp_bias=True, tie_word_embeddings=True)),
    ("granitemoehybrid", GraniteMoeHybridForCausalLM,
     GraniteMoeHybridConfig(**SIZES, num_local_experts=0, num_experts_per_tok=0, shared_intermediate_size=40,
                            layer_types=["attention"] * 3, position_embedding_type="rope", embedding_multiplier=12.0,
                            logits_scaling=3.0, residual_multiplier=0.25, attention_multiplier=0.2,
                            tie_word_embeddings=True, mamba_n_heads=8, mamba_d_head=6, mamba_expand=2)),
    ("smollm3", SmolLM3ForCausalLM, SmolLM3Config(**SIZES | {"num_hidden_layers": 4}, pad_token_id=0)),
    ("smollm3-untied", SmolLM3ForCausalLM,
     SmolLM3Config(**SIZES, pad_token_id=0, no_rope_layers=[0, 1, 1], tie_word_embeddings=False)),
    ("olmo2", Olmo2ForCausalLM, Olmo2Config(**SIZES, pad_token_id=0)),
    ("olmo2-tied", Olmo2ForCausalLM,
     Olmo2Config(**SIZES | {"num_key_value_heads": 4}, pad_token_id=0, tie_word_embeddings=True, attention_bias=True)),
    ("exaone4", Exaone4ForCausalLM, Exaone4Config(**SIZES, sliding_window=None, layer_types=["full_attention"] * 3, tie_word_embeddings=True)),
    ("exaone4-window", Exaone4ForCausalLM,
     Exaone4Config(**SIZES | {"num_hidden_layers": 4}, sliding_window=6, sliding_window_pattern=4)),
    ("ernie4_5", Ernie4_5ForCausalLM, Ernie4_5Config(**SIZES, pad_token_id=0, head_dim=8)),
    ("ernie4_5-untied", Ernie4_5ForCausalLM,
     Ernie4_5Config(**SIZES, pad_token_id=0, head_dim=6, use_bias=True, tie_word_embeddings=False)),
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
        # Gemma's gains are stored without their 1.
        gain = "norm" in name and "Gemma" not in type(model).__name__
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
