#!/usr/bin/env python3
"""Times OpenVINO GenAI on a GGUF file with a tokenizer, and prints what `squat bench --json` prints.

    openvino_gguf.py MODEL.gguf [-p 128] [-n 128] [-t 1] [-r 5]

Needs the packages openvino-genai and openvino-tokenizers. The prompt's speed is taken from the time to the first token,
the generation's from the mean time of each further one, as the library itself measures them.
"""

import argparse
import json
import os
import random
import statistics

import numpy
import openvino
import openvino_genai


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("model")
    arguments.add_argument("-p", type=int, default=128)
    arguments.add_argument("-n", type=int, default=128)
    arguments.add_argument("-t", type=int, default=1)
    arguments.add_argument("-r", type=int, default=5)
    args = arguments.parse_args()

    options = {"INFERENCE_NUM_THREADS": args.t, "PERFORMANCE_HINT": "LATENCY", "ATTENTION_BACKEND": "SDPA"}
    pipeline = openvino_genai.LLMPipeline(args.model, "CPU", **options)
    rng = random.Random(1)

    def generate(prompt, new):
        ids = numpy.array([[rng.randrange(1000, 16_000) for _ in range(prompt)]], dtype=numpy.int64)
        inputs = openvino_genai.TokenizedInputs(
            openvino.Tensor(ids), openvino.Tensor(numpy.ones_like(ids)))
        config = openvino_genai.GenerationConfig()
        config.max_new_tokens = config.min_new_tokens = new
        config.ignore_eos = True
        config.do_sample = False
        metrics = pipeline.generate(inputs, config).perf_metrics
        return 1000 * prompt / metrics.get_ttft().mean, 1000 / max(metrics.get_tpot().mean, 1e-9)

    rows = []

    def row(test, samples):
        rows.append({
            "model": os.path.basename(args.model), "test": test, "threads": args.t,
            "tokens_per_second": statistics.median(samples), "min": min(samples), "max": max(samples),
            "samples": samples, "kernel": "OpenVINO", "model_bytes": os.path.getsize(args.model),
        })

    generate(max(args.p, 1), 2)
    if args.p:
        row(f"pp{args.p}", [generate(args.p, 1)[0] for _ in range(args.r)])
    if args.n:
        row(f"tg{args.n}", [generate(1, args.n + 1)[1] for _ in range(args.r)])
    print(json.dumps(rows))


if __name__ == "__main__":
    main()
