#!/usr/bin/env python3
"""Times PyTorch with dynamic int8 linears on a LLaMA of a known shape with random weights, as `squat bench --json` does.

    torch_int8.py llama-58m|smollm2-135m [-p 128] [-n 128] [-t 1] [-r 5] [--float]

Needs the package torch. Weights are int8 per channel and activations are quantized row by row
(`torch.ao.quantization.quantize_dynamic`, oneDNN); attention is `scaled_dot_product_attention` over a cache of given
size, the token table is a plain lookup and the head is quantized like the other linears. Projections of the same input
are one linear, as here. `--float` leaves everything in f32.
"""

import argparse
import json
import statistics
import time
import warnings

import torch
import torch.nn.functional as F
from torch import nn

SHAPES = {
    "llama-58m": dict(vocabulary=16_000, hidden=512, mlp=1024, layers=16, heads=8, kv_heads=8),
    "smollm2-135m": dict(vocabulary=49_152, hidden=576, mlp=1536, layers=30, heads=9, kv_heads=3),
}
HEAD_DIM = 64


class Layer(nn.Module):
    def __init__(self, hidden, mlp, heads, kv_heads, room):
        super().__init__()
        self.heads, self.kv_heads, self.mlp = heads, kv_heads, mlp
        self.attn_norm, self.mlp_norm = nn.RMSNorm(hidden, eps=1e-5), nn.RMSNorm(hidden, eps=1e-5)
        self.qkv = nn.Linear(hidden, (heads + 2 * kv_heads) * HEAD_DIM, bias=False)
        self.o = nn.Linear(heads * HEAD_DIM, hidden, bias=False)
        self.gate_up = nn.Linear(hidden, 2 * mlp, bias=False)
        self.down = nn.Linear(mlp, hidden, bias=False)
        self.k = torch.zeros(1, kv_heads, room, HEAD_DIM)
        self.v = torch.zeros(1, kv_heads, room, HEAD_DIM)

    def forward(self, x, at, cos, sin):
        tokens = x.shape[0]
        parts = self.qkv(self.attn_norm(x)).view(tokens, -1, HEAD_DIM).transpose(0, 1)
        q, k, v = parts.split([self.heads, self.kv_heads, self.kv_heads])

        def rotate(y):
            a, b = y.chunk(2, -1)
            return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)

        self.k[0, :, at:at + tokens] = rotate(k)
        self.v[0, :, at:at + tokens] = v
        keys, values = self.k[:, :, :at + tokens], self.v[:, :, :at + tokens]
        y = F.scaled_dot_product_attention(
            rotate(q)[None], keys, values, is_causal=tokens > 1, enable_gqa=self.heads != self.kv_heads)
        x = x + self.o(y[0].transpose(0, 1).reshape(tokens, -1))
        gate, up = self.gate_up(self.mlp_norm(x)).split(self.mlp, -1)
        return x + self.down(F.silu(gate) * up)


class Model(nn.Module):
    def __init__(self, vocabulary, hidden, mlp, layers, heads, kv_heads, room):
        super().__init__()
        self.table = nn.Embedding(vocabulary, hidden)
        self.layers = nn.ModuleList(Layer(hidden, mlp, heads, kv_heads, room) for _ in range(layers))
        self.norm = nn.RMSNorm(hidden, eps=1e-5)
        self.head = nn.Linear(hidden, vocabulary, bias=False)
        angles = torch.outer(torch.arange(room), 10_000.0 ** -(torch.arange(HEAD_DIM // 2) / (HEAD_DIM // 2)))
        self.cos, self.sin = angles.cos(), angles.sin()

    def forward(self, ids, at):
        """Logits of the last token."""
        x = self.table(ids)
        cos, sin = self.cos[at:at + len(ids)], self.sin[at:at + len(ids)]
        for layer in self.layers:
            x = layer(x, at, cos, sin)
        return self.head(self.norm(x[-1:]))


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("shape", choices=SHAPES)
    arguments.add_argument("-p", type=int, default=128)
    arguments.add_argument("-n", type=int, default=128)
    arguments.add_argument("-t", type=int, default=1)
    arguments.add_argument("-r", type=int, default=5)
    arguments.add_argument("--float", action="store_true")
    args = arguments.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(args.t)
    torch.manual_seed(1)
    model = Model(**SHAPES[args.shape], room=max(args.p, args.n, 1)).eval()
    if not args.float:
        torch.backends.quantized.engine = "onednn"
        model = torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)
    ids = torch.randint(SHAPES[args.shape]["vocabulary"], (max(args.p, args.n),))

    def once(tokens, at_a_time):
        started = time.perf_counter()
        with torch.inference_mode():
            for at in range(0, tokens, at_a_time):
                model(ids[at:at + at_a_time], at)
        return tokens / (time.perf_counter() - started)

    rows = []
    for name, tokens, at_a_time in (("pp", args.p, args.p), ("tg", args.n, 1)):
        if tokens == 0:
            continue
        once(tokens, at_a_time)
        samples = [once(tokens, at_a_time) for _ in range(args.r)]
        rows.append({
            "model": args.shape, "test": f"{name}{tokens}", "threads": args.t,
            "tokens_per_second": statistics.median(samples), "min": min(samples), "max": max(samples),
            "samples": samples, "kernel": "PyTorch f32" if args.float else "PyTorch int8",
            "model_bytes": None,
        })
    print(json.dumps(rows))


if __name__ == "__main__":
    main()
