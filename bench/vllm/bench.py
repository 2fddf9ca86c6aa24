#!/usr/bin/env python3
"""The requests of `weir bench` through vLLM, on a GPU, with made-up weights of the same shape.

    weir bench throughput -m SHAPE.json --dummy-weights --save-requests requests.jsonl ...
    python bench/vllm/bench.py SHAPE.json --requests requests.jsonl
    python bench/vllm/bench.py SHAPE.json --batch-size 1,64,256 --context 1024 --output-len 100

--requests hands all requests over at once, as `weir bench throughput` does: the same token ids, every
request generates exactly its output length, greedily, nothing is detokenised. --batch-size gives the
time of a decode step behind a context: the difference of two runs that generate 1 token and
--output-len tokens, over the steps between. Prints one JSON object.
"""

import argparse
import importlib.metadata
import json
import pathlib
import random
import shutil
import statistics
import tempfile
import time

import torch
from vllm import LLM, SamplingParams


def greedy(tokens):
    return SamplingParams(temperature=0, ignore_eos=True, max_tokens=tokens, detokenize=False)


def timed(llm, prompts, lengths):
    """Seconds, and the outputs' lengths."""
    inputs = [{"prompt_token_ids": p} for p in prompts]
    begin = time.perf_counter()
    outputs = llm.generate(inputs, [greedy(n) for n in lengths], use_tqdm=False)
    seconds = time.perf_counter() - begin
    return seconds, [len(o.outputs[0].token_ids) for o in outputs]


def throughput(llm, path, vocab_size):
    requests = [json.loads(line) for line in pathlib.Path(path).read_text().splitlines()]
    prompts = [r["prompt_tokens"] for r in requests]
    lengths = [r["output_len"] for r in requests]
    # Other prompts first: kernels are loaded and compiled, nothing is found in the prefix cache.
    rng = random.Random(1)
    timed(llm, [[rng.randrange(vocab_size) for _ in range(64)] for _ in range(64)], [16] * 64)
    seconds, made = timed(llm, prompts, lengths)
    if made != lengths:
        raise SystemExit(f"{sum(a != b for a, b in zip(made, lengths))} outputs of another length")
    total_in, total_out = sum(map(len, prompts)), sum(lengths)
    return {"requests": len(requests), "prompt_tokens": total_in, "output_tokens": total_out,
            "wall_s": seconds, "requests_per_s": len(requests) / seconds,
            "output_tokens_per_s": total_out / seconds,
            "total_tokens_per_s": (total_in + total_out) / seconds}


def latency(llm, batch, context, output_len, vocab_size, repetitions):
    rng = random.Random(batch)

    def run(tokens):
        prompts = [[rng.randrange(vocab_size) for _ in range(context)] for _ in range(batch)]
        return timed(llm, prompts, [tokens] * batch)[0]

    run(output_len)
    steps = [(run(output_len) - run(1)) * 1e3 / (output_len - 1) for _ in range(repetitions)]
    return {"batch_size": batch, "context": context, "output_len": output_len,
            "step_ms": {"median": statistics.median(steps), "min": min(steps), "max": max(steps)}}


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shape", help="a model's config.json")
    parser.add_argument("--requests", nargs="+", default=[],
                        help="files that --save-requests of weir bench wrote")
    parser.add_argument("--batch-size", default="", help="decode steps of these batches, 1,64,...")
    parser.add_argument("--context", type=int, default=1024)
    parser.add_argument("--output-len", type=int, default=100)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--max-num-seqs", type=int, default=512)
    parser.add_argument("--max-num-batched-tokens", type=int, default=8192)
    parser.add_argument("--max-model-len", type=int, default=4096)
    parser.add_argument("--gpu-memory-utilization", type=float, default=0.9)
    parser.add_argument("--kv-cache-gib", type=float, help="device memory for KV; default: the rest")
    args = parser.parse_args()
    batches = [int(b) for b in args.batch_size.split(",") if b]
    if not batches and not args.requests:
        parser.error("one of --requests and --batch-size is needed")

    # vLLM takes a folder; the shape's file may have any name.
    folder = pathlib.Path(tempfile.mkdtemp())
    shutil.copy(args.shape, folder / "config.json")
    vocab_size = json.loads(pathlib.Path(args.shape).read_text())["vocab_size"]
    kv = {} if args.kv_cache_gib is None else {
        "kv_cache_memory_bytes": int(args.kv_cache_gib * 2**30)}
    begin = time.perf_counter()
    llm = LLM(model=str(folder), load_format="dummy", skip_tokenizer_init=True, dtype="bfloat16",
              max_num_seqs=args.max_num_seqs, max_num_batched_tokens=args.max_num_batched_tokens,
              max_model_len=args.max_model_len,
              gpu_memory_utilization=args.gpu_memory_utilization, **kv)
    report = {"vllm": importlib.metadata.version("vllm"), "torch": torch.__version__,
              "gpu": torch.cuda.get_device_name(0), "settings": vars(args),
              "ready_s": time.perf_counter() - begin}
    if args.requests:
        report["throughput"] = {path: throughput(llm, path, vocab_size) for path in args.requests}
    if batches:
        report["latency"] = [latency(llm, b, args.context, args.output_len, vocab_size,
                                     args.repetitions) for b in batches]
    shutil.rmtree(folder)
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
