#!/usr/bin/env python3
"""Measures what the server promises under stress, each on a server of its own: many streams, a storm
of clients that give up, ten times more than it can do, and whether the time to the first token tells
what another tenant asked. Some minutes; not in ./check.

    tests/server/goals.py build/release/tests/engine/server/weir_sim_server build/release/engine/cli/weir

Prints each goal with its figure; exits with the number of those that were missed."""
import argparse
import asyncio
import http.client
import json
import pathlib
import random
import sys
import tempfile
import time

import load
import serving

TINY = serving.ROOT / "tests/fixtures/models/gguf_llama/q8_0.gguf"


def percentile(values, percent):
    values = sorted(values)
    return values[int((len(values) - 1) * percent / 100)] if values else float("nan")


class Timed(load.Stream):
    """Also knows how long connecting and the first token took."""

    def __init__(self, request):
        super().__init__(request, load.Gaps())
        self.began = time.monotonic()
        self.first = self.ended = None

    def data_received(self, data):
        super().data_received(data)
        if self.first is None and b"data: " in self.bytes:
            self.first = time.monotonic() - self.began

    def end(self, how):
        self.ended = self.ended or time.monotonic() - self.began
        super().end(how)


async def open_stream(port, tokens, prompt=(1, 2, 3, 4)):
    timed = Timed(load.post(load.body_of(list(prompt), tokens)))
    await asyncio.get_running_loop().create_connection(lambda: timed, "127.0.0.1", port)
    return timed


async def many_streams(server, count, tokens):
    streams = await asyncio.gather(*(open_stream(server.port, tokens, (i % 900, i // 900, 7))
                                     for i in range(count)))
    ends = await asyncio.gather(*(s.done for s in streams))
    complete = sum(e == "ok" and len(s.tokens()) == tokens for e, s in zip(ends, streams))
    return complete, percentile([s.first for s in streams if s.first], 99)


async def storm(server, count, tokens):
    """Seconds from the last client's leaving until a new request is answered, and until no block is
    in use."""
    streams = await asyncio.gather(*(open_stream(server.port, tokens, (i % 900, 3))
                                     for i in range(count)))
    await asyncio.sleep(0.5)
    for s in streams:
        s.transport.abort()
    gone = time.monotonic()
    await (await open_stream(server.port, 1)).done
    answered = time.monotonic() - gone
    while True:
        now = server.metrics()
        if now["weir_requests_unfinished"] == 0 or time.monotonic() - gone > 10:
            return answered, time.monotonic() - gone, now


async def overload(server, rate, seconds, tokens):
    """|rate| requests a second, whatever becomes of them."""
    streams, tasks = [], []

    async def one():
        stream = await open_stream(server.port, tokens, [random.randrange(1000) for _ in range(16)])
        streams.append(stream)
        await stream.done
    began = time.monotonic()
    while (now := time.monotonic() - began) < seconds:
        while len(tasks) < now * rate:
            tasks.append(asyncio.create_task(one()))
        await asyncio.sleep(0.002)
    results = await asyncio.gather(*tasks, return_exceptions=True)
    failed = [r for r in results if r is not None]
    return streams, failed


def auc(a, b):
    """The chance that one of |a| is less than one of |b|."""
    ranked = sorted([(x, 0) for x in a] + [(x, 1) for x in b])
    before = wins = 0
    for _, side in ranked:
        if side == 0:
            before += 1
        else:
            wins += before
    return wins / (len(a) * len(b))


def probe(server, key, prompt):
    """The time to the first token that |key| sees, and how much came from the cache."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
    connection.connect()
    body = json.dumps({"prompt": prompt, "max_tokens": 1, "temperature": 0, "ignore_eos": True})
    began = time.perf_counter()
    connection.request("POST", "/v1/completions", body,
                       {"content-type": "application/json", "authorization": "Bearer " + key})
    reply = json.load(connection.getresponse())
    took = time.perf_counter() - began
    connection.close()
    return took, reply["usage"]["prompt_tokens_details"]["cached_tokens"]


def isolation(server, probes):
    """AUC of telling prompts that tenant one has just asked from fresh ones: by one, and by two."""
    chooser = random.Random(5)
    times = {"one": ([], []), "two": ([], [])}
    cached_by_two = 0
    for i in range(probes):
        asker = "one" if i % 2 else "two"
        seen = [chooser.randrange(3, 250) for _ in range(200)]
        fresh = [chooser.randrange(3, 250) for _ in range(200)]
        probe(server, "secret-one", seen)
        order = [(0, seen), (1, fresh)]
        chooser.shuffle(order)
        for side, prompt in order:
            took, cached = probe(server, "secret-" + asker, prompt)
            times[asker][side].append(took)
            cached_by_two += cached if asker == "two" else 0
    return auc(*times["one"]), auc(*times["two"]), cached_by_two


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("sim")
    parser.add_argument("weir")
    parser.add_argument("--probes", type=int, default=2000, help="half of them across tenants")
    parser.add_argument("--overload-seconds", type=float, default=30)
    options = parser.parse_args()
    verdict = load.Verdict()

    for count, most in ((1000, 0.5), (4000, None)):
        with serving.Server([options.sim, "--max-num-seqs", count, "--max-queued-requests", count,
                             "--budget-percent", 400]) as server:
            complete, first = asyncio.run(many_streams(server, count, 20))
            verdict.expect(complete == count and (most is None or first <= most),
                           f"{count} streams at once: {complete} complete, connect to first token "
                           f"p99 {first * 1000:.0f} ms" + (f" (aim: {most * 1000:.0f})" if most else ""))

    with serving.Server([options.sim, "--max-num-seqs", 256, "--step-us", 5000]) as server:
        answered, free, end = asyncio.run(storm(server, 200, 10000))
        verdict.expect(answered < 5 and free < 0.15 and end["weir_leaked_kv_blocks"] == 0,
                       f"200 clients gave up 10,000 tokens after 0.5 s: next request answered after "
                       f"{answered * 1000:.0f} ms, no request or block left after {free * 1000:.0f} ms "
                       "(aims: 5 s; a step + 100 ms)")

    # 32 at once, 64 tokens of 10 ms: about 48 requests a second; 40 may wait, so who is taken waits
    # for about 0.9 s. The target a user would set for that is 1 s.
    with serving.Server([options.sim, "--max-num-seqs", 32, "--max-queued-requests", 40,
                         "--step-us", 10000, "--budget-percent", 400]) as server:
        before = server.resident_bytes()
        streams, failed = asyncio.run(overload(server, 480, options.overload_seconds, 64))
        taken = [s for s in streams if s.first is not None]
        refused = [s.ended for s in streams if s.first is None and s.done.result() == "refused"]
        grown = (server.resident_bytes() - before) / 2**20
        ttft, reject = percentile([s.first for s in taken], 99), percentile(refused, 99)
        complete = sum(s.done.result() == "ok" for s in taken)
        verdict.expect(not failed and complete == len(taken) and len(taken) + len(refused) ==
                       len(streams) and ttft <= 2 and reject <= 0.010,
                       f"480 requests a second for {options.overload_seconds:.0f} s, ten times what it "
                       f"can do: {complete} answered, first token p99 {ttft:.2f} s (aim: 2), "
                       f"{len(refused)} refused, p99 after {reject * 1000:.1f} ms (aim: 10), {len(failed)} "
                       f"failed, memory +{grown:.1f} MiB")
        print("        refused p50 after", f"{percentile(refused, 50) * 1000:.1f} ms")

    with tempfile.TemporaryDirectory() as folder:
        keys = pathlib.Path(folder) / "keys"
        keys.write_text("one secret-one\ntwo secret-two\n")
        keys.chmod(0o600)
        with serving.Server(serving.serve(options.weir, TINY, "--api-key-file", keys, "--threads", 1,
                                          "--hbm-budget", "8MiB")) as server:
            same, across, cached = isolation(server, options.probes)
            verdict.expect(across <= 0.55 and cached == 0,
                           f"{options.probes // 2} probes: AUC of telling what another tenant asked "
                           f"{across:.3f} (aim: at most 0.55), what oneself asked {same:.3f}; tokens "
                           f"from the other's cache: {cached}")
    return verdict.bad


if __name__ == "__main__":
    sys.exit(main())
