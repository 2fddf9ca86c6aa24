#!/usr/bin/env python3
"""Writes tests/fixtures/sampler.json: what engine/sampler.cc must do, worked out with numpy.

A straightforward re-implementation of vLLM's V1 sampling order in float64 (sorts, full softmax),
with the logits given by a formula that the test repeats. Draws whose uniform number falls within
1e-5 of a boundary between tokens, and cases where a token is within 1e-5 of being cut, are left out
since single precision may decide them otherwise.

    python3 tests/engine/sampler_oracle.py          # needs numpy
"""
import json
import pathlib

import numpy as np

MARGIN = 1e-5
MASK32 = 0xFFFFFFFF


def logits_of(seed, vocab, scale):
    i = np.arange(vocab, dtype=np.uint64)
    x = (i + np.uint64(seed) * np.uint64(1000003)) * np.uint64(0x9E3779B97F4A7C15)
    x ^= x >> np.uint64(29)
    x *= np.uint64(0xBF58476D1CE4E5B9)
    x ^= x >> np.uint64(32)
    unit = (x >> np.uint64(40)).astype(np.float64) / 2.0**23 - 1.0
    return (scale * unit * unit * unit).astype(np.float32)


def philox(counter, key):
    c, k = list(counter), list(key)
    for _ in range(10):
        a, b = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [(b >> 32) ^ c[1] ^ k[0], b & MASK32, (a >> 32) ^ c[3] ^ k[1], a & MASK32]
        k = [(k[0] + 0x9E3779B9) & MASK32, (k[1] + 0xBB67AE85) & MASK32]
    return c


def uniform(seed, request_key, position):
    key = request_key if seed is None else seed
    out = philox([position & MASK32, position >> 32, 0 if seed is None else 1, 0],
                 [key & MASK32, key >> 32])
    return (((out[0] << 32) | out[1]) >> 11) * 2.0**-53


def process(raw, p, prompt, output, eos):
    x = raw.astype(np.float32).copy()
    for token, bias in p.get("logit_bias", []):
        x[token] += np.float32(bias)
    if len(output) < p.get("min_tokens", 0):
        x[eos + p.get("stop_token_ids", [])] = -np.inf
    repetition = np.float32(p.get("repetition_penalty", 1.0))
    seen = sorted(set(prompt) | set(output))
    if seen:
        x[seen] = np.where(x[seen] > 0, x[seen] / repetition, x[seen] * repetition)
    counts = np.bincount(np.array(output, dtype=np.int64), minlength=len(x)).astype(np.float32)
    x -= np.float32(p.get("frequency_penalty", 0.0)) * counts
    x -= np.float32(p.get("presence_penalty", 0.0)) * (counts > 0)
    return x


def softmax(x):
    e = np.exp(x - x.max())
    return e / e.sum()


def distribution(x, p):
    """Probabilities and whether every cut is clear of rounding."""
    temperature = p.get("temperature", 1.0)
    if temperature < 1e-5:
        one_hot = np.zeros(len(x))
        one_hot[int(np.argmax(x))] = 1
        return one_hot, True
    clear = True
    y = x.astype(np.float64) / temperature
    if p.get("min_p", 0) > 0:
        probs = softmax(y)
        ratio = probs / probs.max() / np.float64(np.float32(p["min_p"]))
        clear &= bool(np.all((np.abs(ratio - 1) > MARGIN) | (y == y.max())))
        y = np.where(ratio < 1, -np.inf, y)
    k = p.get("top_k", 0)
    if 0 < k < len(y):
        y = np.where(y < np.sort(y)[-k], -np.inf, y)  # ties with the k-th stay
    if p.get("top_p", 1.0) < 1:
        probs = softmax(y)
        order = np.lexsort((np.arange(len(y)), -y))
        before = np.cumsum(probs[order]) - probs[order]
        clear &= bool(np.all(np.abs(before - p["top_p"]) > MARGIN))
        drop = order[before >= p["top_p"]]
        drop = drop[drop != order[0]]
        y[drop] = -np.inf
    return softmax(y), clear


def case(name, vocab, scale, seed, params, prompt=(), output=(), eos=(0,), ties=None):
    prompt, output, eos = list(prompt), list(output), list(eos)
    raw = logits_of(seed, vocab, scale)
    if ties:
        raw = np.round(raw * ties) / np.float32(ties)
    probs, clear = distribution(process(raw, params, prompt, output, eos), params)
    if not clear:
        return None
    kept = np.flatnonzero(probs > 1e-37)
    cumulative = np.cumsum(probs)
    draws = []
    for position in range(12):
        u = uniform(params.get("seed"), 77, position)
        token = int(np.searchsorted(cumulative, u, side="right"))
        near = np.min(np.abs(cumulative - u)) < MARGIN and len(kept) > 1
        draws.append(-1 if near else min(token, vocab - 1))
    raw64 = raw.astype(np.float64)
    logprobs = raw64 - raw64.max() - np.log(np.exp(raw64 - raw64.max()).sum())
    n = max(0, params.get("logprobs", -1))
    top = np.lexsort((np.arange(vocab), -raw64))[:n]
    # Probabilities below 1e-30 are zeros in single precision, or not: -1 says do not compare.
    count = -1 if np.any((probs > 0) & (probs < 1e-30)) else int(len(kept))
    out = {"name": name, "vocab": vocab, "scale": scale, "logit_seed": seed, "ties": ties or 0,
           "params": params, "prompt": prompt, "output": output, "eos": eos, "draws": draws,
           "kept": count, "entropy": float(-np.sum(probs[kept] * np.log(probs[kept])))}
    if len(kept) <= 24:
        out["tokens"] = [int(t) for t in kept]
        out["probabilities"] = [float(f"{p:.8g}") for p in probs[kept]]
    if params.get("logprobs", -1) >= 0:
        out["draw_logprobs"] = [None if t < 0 else float(f"{logprobs[t]:.8g}") for t in draws]
        out["top_tokens"] = [int(t) for t in top]
        out["top_logprobs"] = [float(f"{logprobs[t]:.8g}") for t in top]
    return out


def cases():
    history = {"prompt": [1, 2, 3, 5, 8, 13, 1], "output": [2, 2, 2, 9, 30]}
    plain = [
        ("greedy", {"temperature": 0}), ("plain", {}), ("cold", {"temperature": 0.3}),
        ("hot", {"temperature": 2}), ("seeded", {"seed": 1234567890123}),
        ("top_k_1", {"top_k": 1}), ("top_k_5", {"top_k": 5}), ("top_k_off", {"top_k": -1}),
        ("top_k_beyond", {"top_k": 10**6}), ("top_p_half", {"top_p": 0.5}),
        ("top_p_most", {"top_p": 0.95}), ("top_p_tiny", {"top_p": 1e-6}),
        ("top_p_near_one", {"top_p": 0.999}), ("min_p", {"min_p": 0.05}), ("min_p_1", {"min_p": 1}),
        ("k_and_p", {"top_k": 20, "top_p": 0.8}),
        ("k_p_min", {"top_k": 9, "top_p": .9, "min_p": .1}),
        ("p_and_min_p", {"top_p": 0.9, "min_p": 0.02, "temperature": 1.5}),
        ("logprobs_0", {"logprobs": 0}), ("logprobs_5", {"logprobs": 5, "temperature": 0.7}),
        ("logprobs_20_greedy", {"logprobs": 20, "temperature": 0}),
    ]
    penal = [
        ("repetition", {"repetition_penalty": 1.3}),
        ("repetition_low", {"repetition_penalty": 0.5}),
        ("presence", {"presence_penalty": 1.5}), ("frequency", {"frequency_penalty": 0.8}),
        ("frequency_negative", {"frequency_penalty": -0.7, "temperature": 0}),
        ("all_penalties", {"repetition_penalty": 1.1, "presence_penalty": .5,
                           "frequency_penalty": .4, "top_p": 0.9}),
        ("penalties_logprobs", {"repetition_penalty": 2, "presence_penalty": 2, "logprobs": 4}),
        ("bias", {"logit_bias": [[3, 5], [4, -100], [7, 2.5]], "logprobs": 2}),
        ("bias_greedy", {"logit_bias": [[11, 100]], "temperature": 0}),
        ("min_tokens", {"min_tokens": 6, "stop_token_ids": [2, 4], "logit_bias": [[0, 100]]}),
        ("min_tokens_done", {"min_tokens": 5, "stop_token_ids": [2, 4]}),
    ]
    for vocab, scale in ((40, 4.0), (257, 8.0), (3001, 12.0), (49152, 18.0)):
        for i, (name, params) in enumerate(plain):
            yield case(f"{name}_{vocab}", vocab, scale, 100 + i, params)
        for i, (name, params) in enumerate(penal):
            yield case(f"{name}_{vocab}", vocab, scale, 200 + i, params, **history)
    for name, params in (("ties_greedy", {"temperature": 0}), ("ties_top_k", {"top_k": 3}),
                         ("ties_top_p", {"top_p": 0.61}), ("ties_logprobs", {"logprobs": 10})):
        yield case(name, 300, 3.0, 300, params, ties=1)


def main():
    written = [c for c in cases() if c]
    path = pathlib.Path(__file__).parent.parent / "fixtures" / "sampler.json"
    lines = ",\n".join(json.dumps(c, separators=(",", ":")) for c in written)
    path.write_text('{"written_by":"tests/engine/sampler_oracle.py","cases":[\n' + lines + "\n]}\n")
    print(f"{len(written)} cases, {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
