#!/usr/bin/env python3
"""Load for minutes: hundreds of streams at once, and beside them clients that leave, are killed, read
nothing, send a byte a second or send garbage. At the end every request must be accounted for, every
stream must have had the right tokens, and blocks, descriptors and memory must be back.

    tests/server/load.py build/release/tests/engine/server/weir_sim_server --seconds 600

The server is the one of `weir serve` over a simulated engine, whose tokens depend on every byte of
weights and KV that they should depend on. Only loopback. Prints a summary; exits with 1 if anything
was not as it should be. Not part of ./check, which runs it for some seconds."""
import argparse
import asyncio
import collections
import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import time

import serving

TOKEN = re.compile(rb'"token_ids":\[(\d+)\]')
PROMPTS = 48
LONGEST = 200  # tokens of an answer
SHARED = 120   # tokens that every fourth prompt begins with


def body_of(prompt, tokens, **more):
    return json.dumps({"prompt": prompt, "max_tokens": tokens, "temperature": 0, "stream": True,
                       "ignore_eos": True, "return_token_ids": True, **more}).encode()


def post(body, path="/v1/completions"):
    return (f"POST {path} HTTP/1.1\r\nHost: load\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\n\r\n").encode() + body


class Gaps:
    """Times between two reads of a stream, in buckets of a millisecond."""

    def __init__(self):
        self.buckets = collections.Counter()
        self.most = 0

    def add(self, seconds):
        self.buckets[int(seconds * 1000)] += 1
        self.most = max(self.most, seconds)

    def percentile(self, percent):
        left = sum(self.buckets.values()) * percent / 100
        for bucket in sorted(self.buckets):
            left -= self.buckets[bucket]
            if left <= 0:
                return bucket
        return 0


class Stream(asyncio.Protocol):
    """One request on one connection; |done| gives how it ended: "ok", "refused", "lost"."""

    def __init__(self, request, gaps, leave_after=None):
        self.request, self.gaps, self.leave_after = request, gaps, leave_after
        self.bytes = bytearray()
        self.last = None
        self.done = asyncio.get_running_loop().create_future()
        self.transport = None

    def connection_made(self, transport):
        self.transport = transport
        transport.write(self.request)

    def data_received(self, data):
        now = time.monotonic()
        if self.last is not None:
            self.gaps.add(now - self.last)
        self.last = now
        self.bytes += data
        if self.leave_after is not None and len(self.bytes) > self.leave_after:
            return self.end("left")
        if self.bytes.endswith(b"0\r\n\r\n"):
            self.end("ok" if b"data: [DONE]" in self.bytes[-64:] else "lost")
        elif self.bytes.startswith(b"HTTP/1.1 503") and self.bytes.endswith(b"}"):
            self.end("refused")

    def end(self, how):
        if not self.done.done():
            self.done.set_result(how)
        self.transport.abort()

    def connection_lost(self, _):
        if not self.done.done():
            self.done.set_result("lost")

    def tokens(self):
        return [int(t) for t in TOKEN.findall(self.bytes)]


class Load:
    def __init__(self, server, options):
        self.server, self.options = server, options
        self.random = random.Random(options.seed)
        shared = [self.random.randrange(1000) for _ in range(SHARED)]
        self.prompts = [(shared if i % 4 == 0 else []) +
                        [self.random.randrange(1000) for _ in range(self.random.randint(1, 60))]
                        for i in range(PROMPTS)]
        self.expected = []
        self.ends = collections.Counter()
        self.wrong = []
        self.gaps = {"plain": Gaps(), "beside slow readers": Gaps()}
        self.slow_now = False
        self.stop_at = 0
        self.sent_tokens = 0
        self.chaos = collections.Counter()
        self.rss = []

    async def one(self, prompt, tokens, leave_after=None):
        gaps = self.gaps["beside slow readers" if self.slow_now else "plain"]
        request = post(body_of(self.prompts[prompt], tokens))
        try:
            _, stream = await asyncio.get_running_loop().create_connection(
                lambda: Stream(request, gaps, leave_after), "127.0.0.1", self.server.port)
        except OSError:
            return "unconnected", []
        how = await asyncio.wait_for(stream.done, 120)
        return how, stream.tokens()

    async def learn(self):
        """The tokens of each prompt, one after the other."""
        expected = []
        for prompt in range(PROMPTS):
            how, tokens = await self.one(prompt, LONGEST)
            assert how == "ok" and len(tokens) == LONGEST, (how, len(tokens))
            expected.append(tokens)
        return expected

    async def worker(self):
        while time.monotonic() < self.stop_at:
            prompt, tokens = self.random.randrange(PROMPTS), self.random.randint(20, LONGEST)
            leave = self.random.randint(300, 30000) if self.random.random() < 0.1 else None
            try:
                how, got = await self.one(prompt, tokens, leave)
            except asyncio.TimeoutError:
                how, got = "timeout", []
            self.ends[how] += 1
            self.sent_tokens += len(got)
            if got != self.expected[prompt][:len(got)] or (how == "ok" and len(got) != tokens):
                self.wrong.append((prompt, tokens, len(got)))

    async def killers(self):
        """Processes with streams of their own, killed in the middle of them."""
        while time.monotonic() < self.stop_at:
            child = await asyncio.create_subprocess_exec(
                sys.executable, __file__, "--kill-me", str(self.server.port),
                stdout=asyncio.subprocess.PIPE)
            await child.stdout.readline()  # its streams run
            await asyncio.sleep(self.random.uniform(0.05, 0.5))
            child.send_signal(signal.SIGKILL)
            await child.wait()
            self.chaos["processes killed"] += 1
            self.ends["killed"] += 8
            await asyncio.sleep(2)

    async def slow_readers(self):
        """Every other while, streams that nobody reads."""
        request = post(body_of(self.prompts[0], 8000))
        while time.monotonic() < self.stop_at:
            await asyncio.sleep(self.options.turn)
            sockets = []
            for _ in range(16):
                s = socket.socket()
                s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
                s.connect(("127.0.0.1", self.server.port))
                s.sendall(request)
                sockets.append(s)
            self.slow_now = True
            self.chaos["slow readers"] += len(sockets)
            self.ends["slow"] += len(sockets)
            await asyncio.sleep(self.options.turn)
            for s in sockets:
                s.close()
            self.slow_now = False

    async def slowloris(self):
        async def dribble():
            try:
                reader, writer = await asyncio.open_connection("127.0.0.1", self.server.port)
                writer.write(b"POST /v1/completions HTTP/1.1\r\n")
                began = time.monotonic()
                while True:
                    try:
                        answer = await asyncio.wait_for(reader.read(1000), 2)
                        break
                    except asyncio.TimeoutError:
                        writer.write(b"X")
                self.chaos["slowloris cut off"] += b" 408 " in answer or answer == b""
                self.chaos["slowloris longest s"] = max(self.chaos["slowloris longest s"],
                                                        int(time.monotonic() - began))
                writer.close()
            except OSError:
                self.chaos["slowloris cut off"] += 1
            self.chaos["slowloris"] += 1
        while time.monotonic() < self.stop_at:
            await asyncio.gather(*(dribble() for _ in range(50)))

    async def garbage(self):
        """Malformed HTTP, JSON and UTF-8: each is answered 4xx or 5xx, or the connection ends."""
        while time.monotonic() < self.stop_at:
            await asyncio.sleep(0.05)
            sent = self.malformed()
            try:
                reader, writer = await asyncio.open_connection("127.0.0.1", self.server.port)
                writer.write(sent)
                if writer.can_write_eof():
                    writer.write_eof()
                answer = await asyncio.wait_for(reader.read(4096), 60)
                writer.close()
            except (OSError, asyncio.TimeoutError) as error:
                answer = type(error).__name__.encode()
            status = answer[9:12].decode("ascii", "replace") if answer.startswith(b"HTTP") else \
                answer[:12].decode() or "closed"
            self.chaos["malformed -> " + status] += 1
            if status.startswith("2") or "Timeout" in status:
                self.wrong.append(("malformed answered", status, sent[:60]))

    def malformed(self):
        r = self.random
        good = post(body_of([1, 2, 3], 1))
        kind = r.randrange(8)
        if kind == 0:  # random bytes
            return r.randbytes(r.randint(1, 3000)) + b"\r\n\r\n"
        if kind == 1:  # cut short
            return good[:r.randint(1, len(good) - 1)]
        if kind == 2:  # a byte of the head changed to one that no header has
            at = r.randrange(good.index(b"\r\n\r\n"))
            return good[:at] + b"\x00" + good[at + 1:]
        if kind == 3:
            return post(b'{"prompt":"' + r.randbytes(20).replace(b'"', b"\xff") + b'\xff"}')
        if kind == 4:
            return post(b'{"prompt":[1],"x":' + b"[" * r.randint(65, 100000))
        if kind == 5:
            return post(r.choice([b"", b"null", b"[]", b'{"prompt":[1e99]}', b'{"prompt":[-1]}',
                                  b'{"prompt":[1],"prompt":[2]}', b'{"prompt":"\\ud800"}']))
        if kind == 6:
            return b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n" \
                   b"Transfer-Encoding: chunked\r\n\r\n" + r.choice([b"ffffffffffffffff\r\n", b"-1\r\n",
                                                                   b"zz\r\n", b"5\r\nabc"])
        return b"GET /" + b"a" * r.randint(9000, 40000) + b" HTTP/1.1\r\nHost: a\r\n\r\n"

    async def watch(self):
        while time.monotonic() < self.stop_at:
            self.rss.append((time.monotonic(), self.server.resident_bytes()))
            await asyncio.sleep(2)

    async def run(self, seconds, *, chaos):
        self.stop_at = time.monotonic() + seconds
        tasks = [self.worker() for _ in range(self.options.streams)] + [self.watch()]
        if chaos:
            tasks += [self.killers(), self.slow_readers(), self.slowloris(), self.garbage()]
        await asyncio.gather(*tasks)


async def kill_me(port):
    """Eight streams, then a line, then waits for its end."""
    async def start():
        _, stream = await asyncio.get_running_loop().create_connection(
            lambda: Stream(post(body_of([5, 6, 7], 8000)), Gaps()), "127.0.0.1", port)
        while not stream.bytes and not stream.done.done():
            await asyncio.sleep(0.01)
    await asyncio.gather(*(start() for _ in range(8)))
    print("running", flush=True)
    await asyncio.sleep(60)


class Verdict:
    def __init__(self):
        self.bad = 0

    def expect(self, good, what):
        self.bad += not good
        print("ok    " if good else "FAILED", what, flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("server")
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--warm", type=float, default=10, help="seconds before memory is compared")
    parser.add_argument("--streams", type=int, default=512)
    parser.add_argument("--step-us", type=int, default=10000)
    parser.add_argument("--budget-percent", type=int, default=130)
    parser.add_argument("--timeout", type=float, default=30, help="of the server, in seconds")
    parser.add_argument("--turn", type=float, default=20, help="seconds with, then without, slow readers")
    parser.add_argument("--grow-mib", type=float, default=8, help="that memory may grow after warming")
    parser.add_argument("--slack-ms", type=float, default=20, help="that slow readers may cost others")
    parser.add_argument("--seed", type=int, default=1)
    if sys.argv[1:2] == ["--kill-me"]:
        return asyncio.run(kill_me(int(sys.argv[2])))
    options = parser.parse_args()
    verdict = Verdict()
    # What the tokens should be: one request at a time, and memory for everything.
    with serving.Server([options.server, "--budget-percent", 1000]) as server:
        expected = asyncio.run(Load(server, options).learn())
    with serving.Server([options.server, "--max-num-seqs", options.streams + 64, "--step-us",
                         options.step_us, "--budget-percent", options.budget_percent,
                         "--timeout-ms", int(options.timeout * 1000)]) as server:
        fds_at_start = server.descriptors()
        load = Load(server, options)
        load.expected = expected
        asyncio.run(load.run(options.warm, chaos=True))
        warm = server.idle_metrics(40)
        warm_rss = server.resident_bytes()
        began = time.monotonic()
        asyncio.run(load.run(options.seconds, chaos=True))
        took = time.monotonic() - began
        report(load, verdict, server, options, warm, warm_rss, fds_at_start, took)
        code = server.stop(60)
        verdict.expect(code == 0, f"the server drained and ended with 0 ({code})")
        if code != 0:
            print(server.log_text()[-2000:])
    print(f"{'passed' if verdict.bad == 0 else 'FAILED'}: {verdict.bad} of the checks failed")
    return 1 if verdict.bad else 0


def report(load, verdict, server, options, warm, warm_rss, fds_at_start, took):
    end = server.idle_metrics(40)
    idle_from = time.monotonic()
    while server.descriptors() > fds_at_start and time.monotonic() - idle_from < options.timeout + 5:
        time.sleep(0.1)  # connections linger until their client has closed
    ends = load.ends
    print(f"{options.streams} streams at once for {took:.0f} s; requests by their end, as clients "
          f"saw it: {dict(ends)}")
    print(f"chaos: {dict(load.chaos)}")
    served = {k.split('finished_reason="')[1].split('"')[0]: int(v) for k, v in end.items()
              if k.startswith("vllm:request_success_total{")}
    tokens = end["vllm:generation_tokens_total"] - warm["vllm:generation_tokens_total"]
    print(f"requests by their end, as the server saw it: {served}; "
          f"{tokens / took:.0f} tokens/s, {(end['weir_steps_total'] - warm['weir_steps_total']) / took:.0f} steps/s, "
          f"{end['weir_border_moves_total']:.0f} border moves, "
          f"{end['weir_num_preemptions_total']:.0f} preemptions, "
          f"{end['weir_granules_remapped_total']:.0f} granules remapped")
    for name, gaps in load.gaps.items():
        print(f"between two reads of a stream, {name}: p50 {gaps.percentile(50)} ms, "
              f"p99 {gaps.percentile(99)} ms, most {gaps.most * 1000:.0f} ms")
    half = [rss for at, rss in load.rss if at > load.rss[-1][0] - took]
    rss = server.resident_bytes()
    print(f"resident MiB: {warm_rss / 2**20:.1f} idle after the warm-up, "
          f"{max(half) / 2**20:.1f} most under load, {rss / 2**20:.1f} idle at the end")
    verdict.expect(not load.wrong, f"every stream had the tokens of its solo run {load.wrong[:3]}")
    verdict.expect(ends["lost"] == ends["timeout"] == ends["unconnected"] == 0,
                   "no stream was lost, late or unconnected")
    complete, gone = ends["ok"], ends["left"] + ends["killed"] + ends["slow"]
    # Who leaves may have been given everything, or may have left before the request was read.
    counted = sum(served.values())
    verdict.expect(complete <= served["length"] + served["stop"] <= complete + gone and
                   complete <= counted <= complete + gone,
                   f"{counted} requests ended at the server, {complete} + at most {gone} at clients")
    verdict.expect(end["weir_requests_unfinished"] == 0, "no request is left")
    used = end['weir_kv_blocks{model_name="sim",engine="0",state="used"}']
    verdict.expect(used == 0 and end["weir_leaked_kv_blocks"] == 0, "no KV block is in use")
    verdict.expect(end["weir_http_body_bytes"] == 0, "no body is held")
    fds = server.descriptors()
    verdict.expect(fds <= fds_at_start, f"descriptors: {fds_at_start} at the start, {fds} at the end")
    grown = (rss - warm_rss) / 2**20
    verdict.expect(grown <= options.grow_mib, f"memory grew by {grown:.1f} MiB since the warm-up "
                   f"(at most {options.grow_mib:g})")
    plain, slow = (load.gaps[name].percentile(99) for name in load.gaps)
    if load.gaps["beside slow readers"].buckets:
        verdict.expect(slow <= 2 * plain + options.slack_ms, f"slow readers stall nobody: p99 {plain} -> {slow} ms")


if __name__ == "__main__":
    sys.exit(main())
