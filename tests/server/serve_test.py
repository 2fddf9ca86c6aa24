#!/usr/bin/env python3
"""`weir serve` as a process: stopping, keys, isolation, overload, clients that give up. The model is a
tiny one with made-up weights and a long context. Usage: serve_test.py WEIR [--slow]"""
import concurrent.futures
import json
import pathlib
import signal
import subprocess
import sys
import tempfile
import time
import unittest
import urllib.error
import urllib.request

import serving

TINY = serving.ROOT / "tests/fixtures/models/smollm2_gqa3/config.json"
WEIR = ""
DRAINED = 4000  # tokens of a stream that still runs some tenths of a second later


def request(url, body=None, key=None, timeout=60):
    headers = {"content-type": "application/json"}
    if key:
        headers["authorization"] = "Bearer " + key
    data = None if body is None else json.dumps(body).encode()
    return urllib.request.urlopen(urllib.request.Request(url, data, headers), timeout=timeout)


def status_of(url, body=None, key=None):
    try:
        return request(url, body, key).status
    except urllib.error.HTTPError as error:
        error.read()
        return error.code


def completion(tokens, prompt=(5, 6, 7), **more):
    return {"prompt": list(prompt), "max_tokens": tokens, "ignore_eos": True, "temperature": 0,
            **more}


def stream(server, tokens, key=None):
    """The events of a stream, read as they come."""
    reply = request(server.url + "/v1/completions", completion(tokens, stream=True), key)
    for line in reply:
        if line.startswith(b"data: "):
            yield line[6:].decode().strip()


class Serve(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = pathlib.Path(folder.name)
        config = json.loads(TINY.read_text())
        config["max_position_embeddings"] = 16384
        self.model = self.folder / "config.json"
        self.model.write_text(json.dumps(config))

    def start(self, *options, **more):
        server = serving.Server(serving.serve(WEIR, self.model, "--dummy-weights", "--threads", 1,
                                              "--served-model-name", "tiny", "--hbm-budget", "64MiB",
                                              *options), **more)
        self.addCleanup(server.stop)
        return server

    def begin(self, server, count, tokens):
        """|count| streams of which each has its first token; futures of all events."""
        pool = concurrent.futures.ThreadPoolExecutor(count)
        self.addCleanup(pool.shutdown)
        streams = [stream(server, tokens) for _ in range(count)]
        first = list(pool.map(next, streams))
        return [pool.submit(lambda s=s, f=f: [f, *s]) for s, f in zip(streams, first)]

    def test_sigterm_lets_what_is_in_flight_end_and_refuses_the_rest(self):
        server = self.start("--shutdown-timeout", 60)
        streams = self.begin(server, 8, DRAINED)
        server.process.send_signal(signal.SIGTERM)
        time.sleep(0.1)
        self.assertEqual(status_of(server.url + "/v1/completions", completion(1)), 503)
        self.assertEqual(status_of(server.url + "/health"), 503)
        for events in streams:
            self.assertEqual(len(events.result(60)), DRAINED + 1)
            self.assertEqual(events.result()[-1], "[DONE]")
        ended = time.monotonic()
        self.assertEqual(server.process.wait(30), 0)
        self.assertLess(time.monotonic() - ended, 3)

    def test_what_is_not_done_in_time_ends_with_an_error(self):
        for second_signal in (False, True):
            server = self.start("--shutdown-timeout", 60 if second_signal else 0)
            streams = self.begin(server, 4, 15000)
            began = time.monotonic()
            server.process.send_signal(signal.SIGTERM)
            if second_signal:
                time.sleep(0.2)
                server.process.send_signal(signal.SIGTERM)
            self.assertEqual(server.process.wait(10), 1)
            self.assertLess(time.monotonic() - began, 4.5)
            for events in streams:
                self.assertIn("error", json.loads(events.result(10)[-1]))

    def test_a_storm_of_clients_that_give_up_leaves_nothing(self):
        server = self.start("--max-num-seqs", 32)

        def give_up(_):
            try:
                request(server.url + "/v1/completions", completion(10000), timeout=0.5).read()
            except OSError:
                return True
            return False
        with concurrent.futures.ThreadPoolExecutor(200) as pool:
            self.assertTrue(all(pool.map(give_up, range(200))))
        gone = time.monotonic()
        request(server.url + "/v1/completions", completion(2)).read()
        self.assertLess(time.monotonic() - gone, 5)
        end = server.idle_metrics()
        self.assertEqual(end["weir_requests_unfinished"], 0)
        self.assertEqual(end["weir_leaked_kv_blocks"], 0)
        self.assertEqual(end["vllm:kv_cache_usage_perc"], 0)

    def test_every_route_but_health_needs_a_key_and_a_tenant_has_its_own_cache(self):
        keys = self.folder / "keys"
        keys.write_text("one secret-1\ntwo secret-2\n")
        keys.chmod(0o600)
        server = self.start("--api-key-file", keys)
        paths = json.load(request(server.url + "/openapi.json", key="secret-1"))["paths"]
        for path, methods in paths.items():
            for method in methods:
                url = server.url + path.replace("{id}", "tiny")
                body = {} if method == "post" else None
                wanted = 200 if path == "/health" else 401
                self.assertEqual(status_of(url, body), wanted, path)
                self.assertEqual(status_of(url, body, "secret-3"), wanted, path)
                self.assertNotEqual(status_of(url, body, "secret-2"), 401, path)
        prompt = [i % 300 for i in range(200)]

        def cached(key):
            reply = json.load(request(server.url + "/v1/completions", completion(1, prompt), key))
            return reply["usage"]["prompt_tokens_details"]["cached_tokens"]
        self.assertEqual(cached("secret-1"), 0)
        self.assertGreater(cached("secret-1"), 100)
        self.assertEqual(cached("secret-2"), 0)
        self.assertNotIn("secret", server.log_text())

    def test_a_full_queue_refuses_at_once_and_says_when_to_come_back(self):
        server = self.start("--max-num-seqs", 1, "--max-queued-requests", 2, "--shutdown-timeout", 0)
        streams = self.begin(server, 1, 16000)
        with concurrent.futures.ThreadPoolExecutor(20) as pool:
            statuses = list(pool.map(lambda _: status_of(
                server.url + "/v1/completions", completion(1, deadline_ms=2000)), range(20)))
        # Two places; who had one came to its turn or did not in time.
        self.assertGreaterEqual(statuses.count(503), 10, statuses)
        self.assertLessEqual(set(statuses), {200, 503, 504}, statuses)
        with self.assertRaises(urllib.error.HTTPError) as refused:
            request(server.url + "/v1/completions", completion(1, n=4))
        self.assertEqual(refused.exception.code, 503)
        self.assertEqual(refused.exception.headers["retry-after"], "1")
        server.stop()
        self.assertIn("error", streams[0].result(30)[-1])

    def test_a_port_that_is_taken_is_told_in_one_line(self):
        server = self.start()
        second = subprocess.run([WEIR, "serve", "-m", self.model, "--dummy-weights", "--port",
                                 str(server.port)], capture_output=True, text=True, timeout=60)
        self.assertEqual(second.returncode, 2)
        self.assertIn("is taken by another program", second.stderr)


if __name__ == "__main__":
    WEIR = sys.argv.pop(1)
    if sys.argv[1:2] == ["--slow"]:  # a sanitizer's build
        del sys.argv[1]
        DRAINED = 500
    unittest.main(verbosity=2)
