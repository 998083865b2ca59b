#!/usr/bin/env python3
"""Times llama.cpp on a GGUF file as its own llama-bench does, and prints what `squat bench --json` prints.

    llamacpp.py MODEL.gguf [-p 128] [-n 128] [-t 1] [-r 5]

Needs the package llama-cpp-python, built for this CPU (GGML_NATIVE, the default of a build from source). Everything
is llama-bench's default: the file is mapped, weights are repacked where ggml has a layout for this CPU, batches of 2048
in parts of 512, flash attention left to the library, keys and values in F16, a warm-up before each test.
"""

import argparse
import json
import os
import random
import statistics
import time

import llama_cpp.llama_cpp as lib


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("model")
    arguments.add_argument("-p", type=int, default=128)
    arguments.add_argument("-n", type=int, default=128)
    arguments.add_argument("-t", type=int, default=1)
    arguments.add_argument("-r", type=int, default=5)
    args = arguments.parse_args()

    silent = lib.llama_log_callback(lambda level, text, data: None)
    lib.llama_log_set(silent, None)
    lib.llama_backend_init()
    params = lib.llama_model_default_params()
    params.n_gpu_layers = 0
    model = lib.llama_model_load_from_file(args.model.encode(), params)
    if not model:
        raise SystemExit(f"{args.model}: llama.cpp cannot load it")
    params = lib.llama_context_default_params()
    params.n_ctx = max(args.p + args.n, 1)
    params.n_batch, params.n_ubatch = 2048, 512
    params.n_threads = params.n_threads_batch = args.t
    context = lib.llama_init_from_model(model, params)
    if not context:
        raise SystemExit("llama.cpp cannot make a context")
    memory = lib.llama_get_memory(context)
    vocabulary = lib.llama_vocab_n_tokens(lib.llama_model_get_vocab(model))
    rng = random.Random(1)

    def decode(count):
        tokens = (lib.llama_token * count)(*(rng.randrange(vocabulary) for _ in range(count)))
        if lib.llama_decode(context, lib.llama_batch_get_one(tokens, count)) != 0:
            raise SystemExit("llama_decode failed")
        lib.llama_synchronize(context)

    def once(tokens, at_a_time):
        lib.llama_memory_clear(memory, False)
        started = time.perf_counter()
        for _ in range(tokens // at_a_time):
            decode(at_a_time)
        return tokens / (time.perf_counter() - started)

    rows = []
    for name, tokens, at_a_time in (("pp", args.p, args.p), ("tg", args.n, 1)):
        if tokens == 0:
            continue
        once(tokens, at_a_time)
        samples = [once(tokens, at_a_time) for _ in range(args.r)]
        rows.append({
            "model": os.path.basename(args.model), "test": f"{name}{tokens}", "threads": args.t,
            "tokens_per_second": statistics.median(samples), "min": min(samples), "max": max(samples),
            "samples": samples, "kernel": "llama.cpp", "model_bytes": lib.llama_model_size(model),
        })
    print(json.dumps(rows))
    lib.llama_free(context)
    lib.llama_model_free(model)


if __name__ == "__main__":
    main()
