"""A training step in PyTorch with the work of `squat bench --train`, to compare with.

    python benches/peers/torch_qat.py --scheme w4a8 --threads 1 --json

The same shapes, terms and self-distillation: per-channel LSQ for 4-bit weights (8-bit table and head) with learned log
scales, dynamic 8-bit (or 4-bit, or mixed) activations at every point, attention probabilities at 8 bits with the value's
scale folded in, cross-entropy + KL from a full-precision teacher of the same shape, entropy and alignment terms, clipping,
fused AdamW. Quantizers are custom autograd functions that keep only what they need; in full precision attention is
`scaled_dot_product_attention`. `--compile` lets torch.compile fuse the elementwise functions.
"""

import argparse
import json
import math
import resource
import statistics
import time

import torch
import torch.nn.functional as F

SHAPES = {"llama-58m": (16000, 512, 1024, 16, 8, False), "llama-6m": (6144, 256, 640, 6, 4, True)}


def lsq_forward(w, log_scale, low, high):
    scale = log_scale.exp()
    return (w / scale).clamp_(low, high).round_().mul_(scale)


def lsq_backward(grad, w, log_scale, low, high):
    scale = log_scale.exp()
    v = w / scale
    clamped = v.clamp(low, high)
    inside = clamped == v
    # round(v) - v inside the range, the limit outside.
    d_scale = clamped.round().sub_(torch.where(inside, v, 0.0))
    d_log = (grad * d_scale).sum(1, keepdim=True) * scale
    return grad * inside, d_log


def clipped_variance(x, inv, low, high):
    return (x * inv).clamp(low, high).var(-1, unbiased=False)


class LsqWeight(torch.autograd.Function):
    @staticmethod
    def forward(ctx, w, log_scale, low, high):
        ctx.save_for_backward(w, log_scale)
        ctx.range = (low, high)
        return FUNCTIONS["lsq_forward"](w, log_scale, low, high)

    @staticmethod
    def backward(ctx, grad):
        w, log_scale = ctx.saved_tensors
        d_w, d_log = FUNCTIONS["lsq_backward"](grad, w, log_scale, *ctx.range)
        return d_w, d_log, None, None


def dynamic(x, limit):
    scale = (x.abs().amax(-1, keepdim=True) / limit).clamp_min_(1e-38)
    return (x / scale).round_().mul_(scale), scale


def folded(p, scales, wide):
    """Probabilities as the value product uses them: p times the value's scale, quantized by precision group."""
    u = p * scales
    if wide is None:
        step = (u.amax(-1, keepdim=True) / 255).clamp_min_(1e-38)
        return (u / step).round_().mul_(step).div_(scales)
    out = torch.zeros_like(u)
    for mask in (wide, ~wide):
        part = u * mask
        step = (part.amax(-1, keepdim=True) / 255).clamp_min_(1e-38)
        out += (part / step).round_().mul_(step)
    return out.div_(scales)


FUNCTIONS = {"lsq_forward": lsq_forward, "lsq_backward": lsq_backward, "dynamic": dynamic, "folded": folded,
             "variance": clipped_variance}


class ThroughRows(torch.autograd.Function):
    """Dynamic quantization of rows; the gradient passes straight through."""

    @staticmethod
    def forward(ctx, x, limit):
        values, scale = FUNCTIONS["dynamic"](x, limit)
        ctx.mark_non_differentiable(scale)
        return values, scale

    @staticmethod
    def backward(ctx, grad, _):
        return grad, None


class ThroughProbabilities(torch.autograd.Function):
    @staticmethod
    def forward(ctx, p, scales, wide):
        return FUNCTIONS["folded"](p, scales, wide)

    @staticmethod
    def backward(ctx, grad):
        return grad, None, None


class Linear(torch.nn.Module):
    def __init__(self, inputs, outputs, bits, std=0.02):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.randn(outputs, inputs) * std)
        self.bits = bits
        if bits:
            high = 2 ** (bits - 1) - 1
            start = self.weight.detach().abs().amax(1, keepdim=True).div(high).log()
            self.log_scale = torch.nn.Parameter(start)

    def quantized(self):
        if not self.bits:
            return self.weight
        return LsqWeight.apply(self.weight, self.log_scale, -(2 ** (self.bits - 1)), 2 ** (self.bits - 1) - 1)

    def forward(self, x):
        return F.linear(x, self.quantized())


class Block(torch.nn.Module):
    def __init__(self, hidden, inner, heads, bits):
        super().__init__()
        self.heads, self.dim = heads, hidden // heads
        self.norm1 = torch.nn.Parameter(torch.ones(hidden))
        self.norm2 = torch.nn.Parameter(torch.ones(hidden))
        self.q, self.k, self.v, self.o = (Linear(hidden, hidden, bits) for _ in range(4))
        self.gate, self.up = Linear(hidden, inner, bits), Linear(hidden, inner, bits)
        self.down = Linear(inner, hidden, bits)


def rotate(x, cos, sin):
    a, b = x.chunk(2, -1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), -1)


class Model(torch.nn.Module):
    def __init__(self, shape, scheme):
        super().__init__()
        vocabulary, hidden, inner, layers, heads, tied = shape
        self.scheme = scheme
        bits = 0 if scheme == "fp" else 4
        self.table = Linear(hidden, vocabulary, 8 if bits else 0)
        self.head = self.table if tied else Linear(hidden, vocabulary, 8 if bits else 0)
        self.blocks = torch.nn.ModuleList(Block(hidden, inner, heads, bits) for _ in range(layers))
        self.norm = torch.nn.Parameter(torch.ones(hidden))
        angles = torch.arange(2048)[:, None] / 10000 ** (torch.arange(0, hidden // heads, 2) / (hidden // heads))
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)

    def embed(self, ids):
        if self.scheme == "fp":
            return F.embedding(ids, self.table.weight)
        # Only the rows that the batch names are quantized.
        rows = F.embedding(ids, self.table.weight).flatten(0, 1)
        logs = F.embedding(ids, self.table.log_scale).flatten(0, 1)
        return LsqWeight.apply(rows, logs, -128, 127).view(*ids.shape, -1)

    def forward(self, ids, maps=None, teacher_maps=None):
        """Logits; `maps` collects softmax rows; with `teacher_maps` also the entropy and alignment terms."""
        batch, seq = ids.shape
        quant = self.scheme != "fp"
        cos, sin = self.cos[:seq], self.sin[:seq]
        mask = torch.ones(seq, seq, dtype=torch.bool).tril()
        bias = torch.zeros(seq, seq).masked_fill_(~mask, -math.inf)
        x = self.embed(ids)
        entropy, alignment, sink = [], [], None
        eps = 1e-5
        for index, block in enumerate(self.blocks):
            # Codes of 8 or 4 bits for each token.
            wide, limit = None, 127.0
            if self.scheme == "w4a4":
                limit = 7.0
            elif self.scheme == "rho50":
                wide = torch.ones(batch, seq, dtype=torch.bool)
                if index > 0:
                    wide = sink * torch.arange(1, seq + 1) >= 1.0
                    wide[:, 0] = True
                limit = torch.where(wide, 127.0, 7.0)[..., None]
            through = (lambda y: ThroughRows.apply(y, limit)[0]) if quant else (lambda y: y)
            h = through(F.rms_norm(x, block.norm1.shape, block.norm1, eps))
            q, k, v = (
                f(h).view(batch, seq, block.heads, block.dim).transpose(1, 2) for f in (block.q, block.k, block.v)
            )
            q, k = rotate(q, cos, sin), rotate(k, cos, sin)
            if not quant and maps is None:
                a = F.scaled_dot_product_attention(q, k, v, is_causal=True)
            else:
                if quant:
                    head_limit = limit[:, None] if wide is not None else limit
                    raw_q, raw_k = q, k
                    q, _ = ThroughRows.apply(q, head_limit)
                    k, _ = ThroughRows.apply(k, head_limit)
                    v, v_scale = ThroughRows.apply(v, head_limit)
                    for raw in (raw_q, raw_k):
                        high = limit[:, None] if wide is not None else limit
                        inv = high / raw.abs().amax(-1, keepdim=True)
                        low = -high - 1
                        entropy.append(-0.5 * torch.log1p(FUNCTIONS["variance"](raw, inv, low, high)).mean())
                p = torch.softmax(torch.baddbmm(
                    bias.expand(batch * block.heads, -1, -1), q.flatten(0, 1), k.flatten(0, 1).mT,
                    alpha=block.dim**-0.5).view(batch, block.heads, seq, seq), -1)
                if maps is not None:
                    maps.append(p)
                if quant:
                    sink = p.detach()[..., 0].mean(1)
                    target = teacher_maps[index]
                    cosine = F.cosine_similarity(p[:, :, 1:], target[:, :, 1:], dim=-1)
                    alignment.append(1 - cosine.mean())
                    groups = wide[:, None, None, :] if wide is not None else None
                    p = ThroughProbabilities.apply(p, v_scale.mT, groups)
                a = p @ v
            a = through(a.transpose(1, 2).reshape(batch, seq, -1))
            x = x + block.o(a)
            h = through(F.rms_norm(x, block.norm2.shape, block.norm2, eps))
            x = x + block.down(through(F.silu(block.gate(h)) * block.up(h)))
        x = F.rms_norm(x, self.norm.shape, self.norm, eps)
        if quant:
            x, _ = ThroughRows.apply(x, 127.0)
        return self.head(x), entropy, alignment


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="llama-58m", choices=SHAPES)
    parser.add_argument("--scheme", default="fp", choices=["fp", "w4a8", "w4a4", "rho50"])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--seq", type=int, default=128)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(1)
    if args.compile:
        for name, function in FUNCTIONS.items():
            FUNCTIONS[name] = torch.compile(function, dynamic=False)
    shape = SHAPES[args.shape]
    model = Model(shape, args.scheme)
    teacher = None
    if args.scheme != "fp":
        teacher = Model(shape, "fp").requires_grad_(False)
        own = model.state_dict()
        teacher.load_state_dict({name: own[name] for name in teacher.state_dict()})
    groups = [
        {"params": [p for p in model.parameters() if p.dim() == 2 and p.shape[1] > 1], "weight_decay": 0.1},
        {"params": [p for p in model.parameters() if p.dim() == 1 or p.shape[1] == 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=1e-4, betas=(0.9, 0.95), fused=True)
    phases = {"teacher": [], "forward": [], "backward": [], "optimizer": []}
    times, gamma, t, loss = [], 0.5, 2.0, None
    for step in range(args.steps + 1):
        ids = torch.randint(shape[0], (args.batch, args.seq + 1))
        ids, targets = ids[:, :-1], ids[:, 1:].reshape(-1)
        clock = [(time.process_time(), time.perf_counter())]

        def lap():
            clock.append((time.process_time(), time.perf_counter()))

        maps = []
        if teacher is not None:
            with torch.no_grad():
                taught = teacher(ids, maps=maps)[0].flatten(0, 1)
        lap()
        logits, entropy, alignment = model(ids, teacher_maps=maps)
        logits = logits.flatten(0, 1)
        loss = F.cross_entropy(logits, targets)
        if teacher is not None:
            own, theirs = F.log_softmax(logits / t, -1), F.log_softmax(taught / t, -1)
            divergence = F.kl_div(own, theirs, reduction="batchmean", log_target=True)
            loss = (1 - gamma) * loss + gamma * t * t * divergence
            loss = loss + 0.01 * torch.stack(entropy).mean() + 0.1 * torch.stack(alignment).mean()
            del own, theirs, taught, divergence
        lap()
        loss.backward()
        lap()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        lap()
        del logits, entropy, alignment, maps
        if step > 0:
            times.append((clock[-1][0] - clock[0][0], clock[-1][1] - clock[0][1]))
            for name, a, b in zip(phases, clock, clock[1:]):
                phases[name].append(b[0] - a[0])
    cpu, wall = (statistics.median(values) for values in zip(*times))
    result = {
        "model": args.shape, "scheme": args.scheme, "threads": args.threads, "batch": args.batch, "seq": args.seq,
        "cpu_seconds_per_step": cpu, "wall_seconds_per_step": wall,
        "tokens_per_second": args.batch * args.seq / wall,
        "peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "loss": float(loss.detach()), "torch": torch.__version__, "compiled": args.compile,
        **{name: statistics.median(values) for name, values in phases.items()},
    }
    if args.json:
        print(json.dumps(result))
    else:
        for name, value in result.items():
            print(f"{name}: {value}")


if __name__ == "__main__":
    main()
