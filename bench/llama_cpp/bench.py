#!/usr/bin/env python3
"""Prefill and decode throughput of llama.cpp on the CPU, through the PyPI package llama-cpp-python.

    pip install llama-cpp-python
    python bench/llama_cpp/bench.py smollm2-f16.gguf --threads 1,2 --prompt 128 --gen 64

Every sequence has its own prompt (nothing is shared). Logits are computed for every decoded row,
the next token is a fixed pseudo-random one: sampling is not part of the time. A time covers
llama_decode until its result is readable. Prints one JSON object; rates are tokens per second as
[min, median, max] over the repetitions.
"""

import argparse
import importlib.metadata
import json
import os
import pathlib
import platform
import random
import statistics
import time

import llama_cpp as lc

KV_TYPES = {"f32": 0, "f16": 1, "bf16": 30}


class Session:
    """One context on a loaded model. Positions of all sequences advance together."""

    def __init__(self, model, args, threads, sequences):
        params = lc.llama_context_default_params()
        per_sequence = args.prompt + args.gen
        # Each sequence gets its own stream of the KV cache; llama.cpp pads it to 256 cells.
        params.n_ctx = sequences * (-(-per_sequence // 256) * 256)
        params.n_seq_max = sequences
        params.n_batch = args.ubatch
        params.n_ubatch = args.ubatch
        params.n_threads = threads
        params.n_threads_batch = threads
        params.type_k = params.type_v = KV_TYPES[args.kv]
        params.flash_attn_type = {"auto": -1, "off": 0, "on": 1}[args.flash_attn]
        params.kv_unified = args.kv_unified
        params.no_perf = True
        self.context = lc.llama_init_from_model(model, params)
        if not self.context:
            raise RuntimeError("llama_init_from_model failed")
        self.memory = lc.llama_get_memory(self.context)
        self.batch = lc.llama_batch_init(args.ubatch, 0, 1)
        self.vocab = lc.llama_vocab_n_tokens(lc.llama_model_get_vocab(model))
        self.random = random.Random(1)

    def close(self):
        lc.llama_batch_free(self.batch)
        lc.llama_free(self.context)

    def clear(self):
        lc.llama_memory_clear(self.memory, False)

    def decode(self, rows):
        """Runs rows of (sequence, position, wants_logits); returns (seconds, CPU seconds)."""
        batch = self.batch
        batch.n_tokens = len(rows)
        for i, (sequence, position, wants_logits) in enumerate(rows):
            batch.token[i] = self.random.randrange(3, self.vocab)
            batch.pos[i] = position
            batch.n_seq_id[i] = 1
            batch.seq_id[i][0] = sequence
            batch.logits[i] = wants_logits
        start, cpu_start = time.perf_counter(), time.process_time()
        status = lc.llama_decode(self.context, batch)
        lc.llama_synchronize(self.context)
        elapsed = time.perf_counter() - start
        cpu = time.process_time() - cpu_start
        if status != 0:
            raise RuntimeError(f"llama_decode returned {status}")
        return elapsed, cpu

    def prefill(self, sequence, length, ubatch):
        """Times of one prompt in chunks of `ubatch`; only its last row produces logits."""
        return [
            self.decode([(sequence, p, p == length - 1)
                         for p in range(begin, min(begin + ubatch, length))])
            for begin in range(0, length, ubatch)
        ]


def spread(values):
    return [round(v, 2) for v in (min(values), statistics.median(values), max(values))]


def measure(model, args, threads, sequences):
    session = Session(model, args, threads, sequences)
    prefills, decodes = [], []  # per repetition: [(seconds, CPU seconds) of each llama_decode]
    for repetition in range(args.repetitions + 1):  # the first one warms up
        session.clear()
        prefill = [t for s in range(sequences)
                   for t in session.prefill(s, args.prompt, args.ubatch)]
        decode = [session.decode([(s, args.prompt + step, True) for s in range(sequences)])
                  for step in range(args.gen)]
        if repetition:
            prefills.append(prefill)
            decodes.append(decode)
    session.close()
    prompt_tokens, gen_tokens = sequences * args.prompt, sequences * args.gen
    rates = lambda runs, tokens, clock: spread([tokens / sum(t[clock] for t in r) for r in runs])
    result = {
        "threads": threads,
        "sequences": sequences,
        "prefill_tokens_per_s": rates(prefills, prompt_tokens, 0),
        "decode_tokens_per_s": rates(decodes, gen_tokens, 0),
        "decode_fastest_step_ms": round(1e3 * min(t[0] for run in decodes for t in run), 2),
    }
    if threads == 1:
        # What the rate would be if nobody else had used the core; with several threads CPU time
        # also counts spinning.
        result["prefill_tokens_per_cpu_s"] = rates(prefills, prompt_tokens, 1)
        result["decode_tokens_per_cpu_s"] = rates(decodes, gen_tokens, 1)
    return result


def cpu_name():
    for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor()


def int_list(text):
    return [int(part) for part in text.split(",")]


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("gguf")
    parser.add_argument("--threads", type=int_list, default=[1, 2])
    parser.add_argument("--batches", type=int_list, default=[1, 4, 16, 64])
    parser.add_argument("--prompt", type=int, default=128, help="tokens per prompt")
    parser.add_argument("--gen", type=int, default=64, help="decoded tokens per sequence")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--ubatch", type=int, default=512)
    parser.add_argument("--kv", choices=KV_TYPES, default="f16")
    parser.add_argument("--flash-attn", choices=["auto", "off", "on"], default="auto")
    parser.add_argument("--kv-unified", action="store_true")
    args = parser.parse_args()
    log_callback = lc.llama_log_callback(lambda *_: None)
    lc.llama_log_set(log_callback, None)
    lc.llama_backend_init()
    params = lc.llama_model_default_params()
    params.n_gpu_layers = 0
    model = lc.llama_model_load_from_file(args.gguf.encode(), params)
    if not model:
        raise SystemExit(f"cannot load {args.gguf}")
    load_before = os.getloadavg()
    results = []
    for threads in args.threads:
        for sequences in args.batches:
            results.append(measure(model, args, threads, sequences))
    report = {
        "model": pathlib.Path(args.gguf).name,
        "llama_cpp_python": importlib.metadata.version("llama-cpp-python"),
        "cpu": cpu_name(),
        "logical_cpus": os.cpu_count(),
        "system_info": lc.llama_print_system_info().decode(),
        "settings": {key: value for key, value in vars(args).items() if key != "gguf"},
        "load_average_before_after": [round(load_before[0], 2), round(os.getloadavg()[0], 2)],
    }
    fields = [f"{json.dumps(key)}: {json.dumps(value)}" for key, value in report.items()]
    rows = ",\n  ".join(json.dumps(result) for result in results)
    print("{\n " + ",\n ".join(fields) + ',\n "results": [\n  ' + rows + "\n ]\n}")
    lc.llama_model_free(model)


if __name__ == "__main__":
    main()
