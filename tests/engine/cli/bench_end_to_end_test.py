#!/usr/bin/env python3
"""Runs `weir bench` on a tiny shape with made-up weights. Usage: bench_end_to_end_test.py WEIR"""
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import unittest

ROOT = pathlib.Path(__file__).resolve().parents[3]
SHAPE = ROOT / "tests/fixtures/models/smollm2_gqa3/config.json"  # a context of 256 tokens
WEIR = ""
DISTRIBUTION = {"count", "mean", "min", "p10", "p50", "p90", "p95", "p99", "max"}


def weir(*args):
    variables = {k: v for k, v in os.environ.items() if not k.startswith("WEIR_")}
    return subprocess.run([WEIR, "bench", *map(str, args)], env=variables, cwd=ROOT, text=True,
                          encoding="utf-8", errors="replace", capture_output=True, timeout=300)


class Bench(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = pathlib.Path(folder.name)

    def bench(self, command, *args):
        """What the command printed, and what it wrote."""
        path = self.folder / "report.json"
        done = weir(command, "-m", SHAPE, "--dummy-weights", "--quiet", "--threads", "1", "--json",
                    path, *args)
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
        report = json.loads(path.read_text())
        for key in ("command", "version", "commit", "ended", "device", "driver", "policy", "model",
                    "memory", "options", "bench", "workload", "results"):
            self.assertIn(key, report)
        self.assertEqual(report["command"], "bench " + command)
        self.assertEqual(report["options"]["compute.threads"], "1")
        self.assertIn(report["workload"]["digest"], done.stdout)
        return done.stdout, report

    def check_counts(self, report, requests):
        workload, results = report["workload"], report["results"]
        self.assertEqual(workload["requests"], requests)
        self.assertEqual(results["requests"], requests)
        self.assertEqual((results["failed"], results["other_length"]), (0, 0))
        self.assertEqual(results["output_tokens"], workload["output_tokens"])
        self.assertEqual(results["prompt_tokens"], workload["prompt_tokens"])
        self.assertEqual(results["prompt_tokens"],
                         results["prompt_tokens_computed"] + results["prompt_tokens_cached"])

    def test_throughput_counts_are_exact(self):
        text, report = self.bench("throughput", "--num-prompts", 10, "--input-len", 40,
                                  "--output-len", 12, "--warmups", 3)
        self.check_counts(report, 10)
        results = report["results"]
        self.assertEqual(results["prompt_tokens"], 400)
        self.assertEqual(results["output_tokens"], 120)
        # A warm-up leaves nothing that the measured requests could find.
        self.assertEqual(results["prompt_tokens_cached"], 0)
        self.assertEqual(set(results["step_ms"]), DISTRIBUTION)
        for key in ("wall_s", "requests_per_s", "output_tokens_per_s", "total_tokens_per_s",
                    "steps", "mean_batch_tokens", "mean_running", "preemptions", "border_moves",
                    "streamed_bytes", "gate_faults", "stall_s", "host_outside_compute_s"):
            self.assertIn(key, results)
        # The engine's thread runs the steps: there is no time of its own beside them.
        self.assertEqual(results["host_us_a_step"], 0)
        self.assertGreater(results["output_tokens_per_s"], 0)
        self.assertIn("output tokens/s", text)

    def test_the_digest_depends_on_the_seed_alone(self):
        args = ["throughput", "--num-prompts", 5, "--dataset-name", "sharegpt_like"]
        digests = [self.bench(*args, "--seed", seed)[1]["workload"]["digest"] for seed in (1, 1, 2)]
        self.assertEqual(digests[0], digests[1])
        self.assertNotEqual(digests[0], digests[2])
        other = self.bench(*args, "--seed", 1, "--max-num-seqs", 2, "--policy", "resident")[1]
        self.assertEqual(other["workload"]["digest"], digests[0])

    def test_requests_can_be_saved_for_other_programs(self):
        path = self.folder / "requests.jsonl"
        _, report = self.bench("throughput", "--num-prompts", 5, "--dataset-name", "sharegpt_like",
                               "--save-requests", path)
        saved = [json.loads(line) for line in path.read_text().splitlines()]
        workload = report["workload"]
        self.assertEqual(len(saved), 5)
        self.assertEqual(sum(len(r["prompt_tokens"]) for r in saved), workload["prompt_tokens"])
        self.assertEqual(sum(r["output_len"] for r in saved), workload["output_tokens"])
        self.assertEqual({r["at_ms"] for r in saved}, {0})
        done = weir("throughput", "-m", SHAPE, "--dummy-weights", "--num-prompts", 1,
                    "--save-requests", self.folder / "no" / "such" / "folder")
        self.assertNotEqual(done.returncode, 0)
        self.assertIn("no/such/folder", done.stderr)

    def test_shared_prefixes_are_found_and_counted(self):
        _, report = self.bench("throughput", "--dataset-name", "prefix_repetition",
                               "--num-prefixes", 2, "--prefix-len", 64, "--suffix-len", 16,
                               "--num-prompts", 12, "--output-len", 4, "--max-num-seqs", 2)
        self.check_counts(report, 12)
        self.assertGreater(report["results"]["prompt_tokens_cached"], 0)

    def test_weights_that_are_away_are_streamed_and_counted(self):
        _, report = self.bench("throughput", "--num-prompts", 10, "--input-len", 40,
                               "--output-len", 10, "--policy", "fixed{granules_per_layer=3}")
        self.check_counts(report, 10)
        self.assertGreater(report["results"]["border_moves"], 0)
        self.assertGreater(report["results"]["peak_away_bytes"], 0)
        self.assertGreater(report["results"]["streamed_bytes"], 0)
        self.assertGreater(report["results"]["gate_arrivals"], 0)

    def test_latency_takes_the_steps_in_which_all_decode(self):
        text, report = self.bench("latency", "--batch-size", 4, "--input-len", 32, "--output-len",
                                  9, "--num-iters", 3, "--num-iters-warmup", 1)
        results = report["results"]
        self.assertEqual(report["workload"]["requests"], 4)
        self.assertEqual(results["iterations"], 3)
        self.assertEqual(results["output_tokens"], 36)
        # The prompts fit into one step, which gives the first token of each.
        self.assertEqual(results["decode_step_ms"]["count"], 3 * 8)
        self.assertEqual(results["decode_interval_ms"]["count"], 3 * 7)
        self.assertEqual(results["prefill_ms"]["count"], 3)
        self.assertEqual(results["prompt_tokens_cached"], 0)
        self.assertEqual(set(results["decode_step_ms"]), DISTRIBUTION)
        self.assertGreater(results["decode_tokens_per_s"], 0)
        self.assertIn("decode step, ms", text)

    def test_latency_behind_a_long_context_computes_it_once(self):
        # Without the prefix cache some sequences would end before others have their prompt: 3 x 200
        # tokens in steps of 32.
        _, report = self.bench("latency", "--batch-size", 3, "--context", 200, "--output-len", 12,
                               "--max-num-batched-tokens", 32, "--num-iters", 2)
        results = report["results"]
        self.assertEqual(results["prefill_ms"]["count"], 1)
        self.assertGreater(results["prompt_tokens_cached"], 3 * 180)
        self.assertGreaterEqual(results["decode_step_ms"]["count"], 2 * 8)
        self.assertEqual(results["preemptions"], 0)

    def test_latency_makes_room_for_a_large_batch(self):
        _, report = self.bench("latency", "--batch-size", 80, "--input-len", 64, "--output-len",
                               100, "--num-iters", 1, "--num-iters-warmup", 0)
        self.assertEqual(report["options"]["scheduler.max_num_seqs"], "80")
        self.assertEqual(report["results"]["preemptions"], 0)
        self.assertGreater(report["results"]["decode_step_ms"]["count"], 0)

    def test_serve_trace_reports_latencies_goodput_and_series(self):
        text, report = self.bench("serve-trace", "--num-prompts", 20, "--input-len", 40,
                                  "--output-len", 10, "--request-rate", 100, "--burstiness", 0.5,
                                  "--goodput", "ttft:100000", "tpot:100000")
        self.check_counts(report, 20)
        results = report["results"]
        for key in ("ttft_ms", "tpot_ms", "itl_ms", "e2el_ms"):
            self.assertEqual(set(results[key]), DISTRIBUTION)
        self.assertEqual(results["ttft_ms"]["count"], 20)
        self.assertEqual(results["itl_ms"]["count"], 20 * 9)
        self.assertEqual(results["good_requests"], 20)
        self.assertEqual(len(results["request"]), 20)
        self.assertAlmostEqual(results["last_arrival_s"], 0.2, places=3)
        self.assertGreaterEqual(results["wall_s"], 0.2)
        series = results["series"]
        self.assertEqual({len(values) for values in series.values()}, {len(series["running"])})
        for key in ("running", "waiting", "kv_capacity_blocks", "weights_away_bytes"):
            self.assertTrue(series[key], key)
        self.assertIn("goodput", text)

    def test_goodput_counts_only_requests_that_keep_every_bound(self):
        _, report = self.bench("serve-trace", "--num-prompts", 4, "--input-len", 40, "--output-len",
                               4, "--goodput", "ttft:100000", "e2el:0")
        self.assertEqual(report["results"]["good_requests"], 0)
        self.assertEqual(report["bench"]["goodput"], {"ttft_ms": 100000.0, "e2el_ms": 0.0})

    def test_a_trace_file_gives_lengths_and_times(self):
        trace = self.folder / "trace.csv"
        trace.write_text("TIMESTAMP,ContextTokens,GeneratedTokens\n"
                         "2023-11-16 18:15:46.00,30,4\n2023-11-16 18:15:46.05,50,6\n"
                         "2023-11-16 18:15:46.10,999,9\n")
        args = ["--dataset-name", "azure", "--dataset-path", trace]
        _, report = self.bench("serve-trace", *args, "--time-scale", 2)
        self.check_counts(report, 3)
        self.assertEqual(report["results"]["output_tokens"], 4 + 6 + 9)
        self.assertEqual(report["workload"]["clipped"], 1)
        self.assertAlmostEqual(report["results"]["request"][2]["due_s"], 0.2, places=6)
        _, at_once = self.bench("throughput", *args)
        self.check_counts(at_once, 3)

    def test_mistakes_get_one_clear_line_and_exit_code_2(self):
        shape = ["-m", SHAPE, "--dummy-weights"]
        cases = [
            ([], "subcommand"),
            (["speed"], "speed"),
            (["throughput"], "--model"),
            (["throughput", "-m", SHAPE], "--dummy-weights"),
            (["throughput", *shape, "--num-prompts", "many"], "a whole number from 1 to"),
            (["throughput", *shape, "--num-prompt", "3"], "--num-prompts"),
            (["throughput", *shape, "--dataset-name", "wiki"], "sharegpt_like"),
            (["throughput", *shape, "--dataset-name", "azure"], "--dataset-path"),
            (["throughput", *shape, "--dataset-path", "x"], "azure and mooncake"),
            (["throughput", *shape, "--dataset-name", "azure", "--dataset-path", "/no/such"],
             "/no/such"),
            (["throughput", *shape, "--hbm-budget", "1KiB"], "the least that runs"),
            (["throughput", *shape, "--request-rate", "3"], "--request-rate"),
            (["latency", *shape, "--output-len", "1"], "from 2"),
            (["latency", *shape, "--input-len", "300"], "--max-model-len"),
            (["latency", *shape, "--batch-size", "8", "--max-num-seqs", "4"], "max_num_seqs is 4"),
            (["latency", *shape, "--context", "99", "--no-enable-prefix-caching"], "prefix"),
            (["serve-trace", *shape, "--goodput", "itl:5"], "ttft:MS"),
            (["serve-trace", *shape, "--request-rate", "-1"], "neither inf nor a rate"),
            (["serve-trace", *shape, "--ramp-up-strategy", "cubic"], "linear or exponential"),
            (["serve-trace", *shape, "--ramp-up-strategy", "linear"], "ramp-up-start-rps"),
        ]
        for args, expected in cases:
            done = weir(*args)
            self.assertEqual(done.returncode, 2, f"{args}: {done.stdout}{done.stderr}")
            errors = [e for e in done.stderr.splitlines() if e.startswith("weir: error: ")]
            self.assertEqual(len(errors), 1, f"{args}: {done.stderr}")
            self.assertIn(expected, errors[0])

    def test_a_report_that_cannot_be_written_is_a_failure(self):
        path = self.folder / "no" / "such" / "folder.json"
        done = weir("throughput", "-m", SHAPE, "--dummy-weights", "--num-prompts", 1, "--input-len",
                    8, "--output-len", 2, "--json", path)
        self.assertEqual(done.returncode, 1, done.stdout + done.stderr)
        self.assertIn("cannot write", done.stderr)

    def test_help_has_examples(self):
        for args in ([], ["throughput"], ["latency"], ["serve-trace"]):
            done = weir(*args, "--help")
            self.assertEqual(done.returncode, 0)
            self.assertIn("Examples:", done.stdout)


if __name__ == "__main__":
    WEIR = os.path.abspath(sys.argv.pop(1))
    unittest.main()
