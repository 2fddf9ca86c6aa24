#!/usr/bin/env python3
"""Runs the program: the main job on a tiny model (and on the default one where WEIR_SMOLLM2_GGUF
names it), and what users get for mistakes. Usage: end_to_end_test.py WEIR"""
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import unittest

ROOT = pathlib.Path(__file__).resolve().parents[3]
TINY = ROOT / "tests/fixtures/models/gguf_llama/q8_0.gguf"
WEIR = ""


def weir(*args, stdin="", env=None):
    variables = {k: v for k, v in os.environ.items() if not k.startswith("WEIR_")}
    variables.update(env or {})
    return subprocess.run([WEIR, *map(str, args)], input=stdin, env=variables, cwd=ROOT, text=True,
                          encoding="utf-8", errors="replace", capture_output=True, timeout=300)


class EndToEnd(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = pathlib.Path(folder.name)

    def run_job(self, *args):
        report = self.folder / "report.json"
        done = weir("run", "--quiet", "--json", report, *args)
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
        return done, json.loads(report.read_text())

    def check(self, report, prompts, passes):
        self.assertTrue(report["passed"])
        self.assertTrue(report["tokens_identical"])
        self.assertEqual(report["failed_requests"], 0)
        self.assertEqual(list(report["jobs"]), passes)
        for job in report["jobs"].values():
            self.assertEqual(job["requests"], prompts)
            self.assertEqual(job["output_tokens"], sum(len(r["tokens"]) for r in job["request"]))
            self.assertGreater(job["output_tokens"], 0)
            self.assertTrue(job["series"])

    def test_main_job_on_a_tiny_model(self):
        prompts = self.folder / "prompts.jsonl"
        lines = [{"define": "shared", "text": "You are a lamp. " * 2}]
        lines += [{"prefix": "shared", "prompt": f"Say {n} words."} for n in range(12)]
        prompts.write_text("".join(json.dumps(line) + "\n" for line in lines))
        out = self.folder / "out.jsonl"
        done, report = self.run_job("-m", TINY, "--prompts", prompts, "--out", out, "--verify",
                                    "--max-tokens", "8", "--max-num-seqs", "4")
        self.assertNotIn("no chat template", done.stdout)
        self.check(report, 12, ["tide", "resident", "no budget"])
        self.assertEqual(len(out.read_text().splitlines()), 12)

    def plain_model(self):
        """A model with a tokenizer and without a chat template."""
        model = self.folder / "plain"
        model.mkdir()
        for name in ("config.json", "model.safetensors"):
            shutil.copy(ROOT / "tests/fixtures/models/smollm2_gqa3" / name, model)
        shutil.copy(TINY.parent / "tokenizer.json", model)
        return model

    def test_a_model_without_a_chat_template_gets_plain_prompts_and_no_chat(self):
        model = self.plain_model()
        prompts = self.folder / "prompts.jsonl"
        prompts.write_text('{"system": "Be short.", "prompt": "Hello"}\n' * 3)
        done, report = self.run_job("-m", model, "--prompts", prompts, "--max-tokens", "4")
        self.assertIn("no chat template; prompts go in as plain text", done.stdout)
        self.check(report, 3, ["tide", "resident"])
        refused = weir("chat", "-m", model)
        self.assertEqual(refused.returncode, 2)
        self.assertIn("chat template", refused.stderr)

    def test_arrivals_over_time(self):
        prompts = self.folder / "prompts.jsonl"
        prompts.write_text('{"prompt": "Hello"}\n' * 5)
        _, report = self.run_job("-m", TINY, "--prompts", prompts, "--request-rate", "50",
                                 "--max-tokens", "4", "--only")
        self.check(report, 5, ["tide"])

    def test_a_failed_request_fails_the_run(self):
        prompts = self.folder / "prompts.jsonl"
        prompts.write_text(json.dumps({"prompt": "far too long " * 500}) + "\n" +
                           '{"prompt": "Hello"}\n')
        report = self.folder / "report.json"
        done = weir("run", "-m", TINY, "--prompts", prompts, "--json", report, "--max-tokens", "4")
        self.assertEqual(done.returncode, 1, done.stdout + done.stderr)
        self.assertIn("context takes at most", done.stdout)
        self.assertEqual(json.loads(report.read_text())["jobs"]["tide"]["failed"], 1)

    @unittest.skipUnless(os.environ.get("WEIR_SMOLLM2_GGUF"), "WEIR_SMOLLM2_GGUF is not set")
    def test_main_job_on_the_default_model(self):
        _, report = self.run_job("-m", os.environ["WEIR_SMOLLM2_GGUF"], "--limit", "12",
                                 "--max-tokens", "12", "--verify")
        self.assertTrue(report["chat_template"])
        self.check(report, 12, ["tide", "resident", "no budget"])

    def test_generate_streams_text_or_tokens(self):
        done = weir("generate", "-m", TINY, "-p", "Hello", "-n", "5", "--raw", "--ignore-eos")
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertEqual(len(done.stdout.split()), 5)
        piped = weir("generate", "-m", TINY, "-p", "-", "-n", "5", "--raw", "--ignore-eos",
                     stdin="Hello")
        self.assertEqual(piped.stdout, done.stdout)
        self.assertIn("tokens/s", done.stderr)

    def test_a_prompt_that_is_not_utf8_is_refused(self):
        done = subprocess.run([WEIR, "generate", "-m", str(TINY), "-p", "-"], input=b"\xff\xfe",
                              capture_output=True, timeout=60)
        self.assertEqual(done.returncode, 2, done.stderr)
        self.assertIn(b"weir: error: ", done.stderr)
        self.assertIn(b"UTF-8", done.stderr)

    def test_mistakes_get_one_clear_line_and_exit_code_2(self):
        broken = self.folder / "weir.toml"
        broken.write_text("[memory]\nhbm_budgt = 1\n")
        cases = [
            (["run", "--bogus"], "--bogus"),
            (["run", "-m", TINY, "--max-num-seq", "3"], "--max-num-seqs"),
            ([], "subcommand"),
            (["run", "-m", "/no/such/model"], "/no/such/model"),
            (["info"], "--model"),
            (["run", "-m", TINY, "--prompts", "/no/such/file"], "/no/such/file"),
            (["generate", "-m", TINY, "-p", "x", "--hbm-budget", "1KiB"], "the least that runs"),
            (["run", "-m", TINY, "--hbm-budget", "lots"], "300MiB"),
            (["run", "-m", TINY, "--policy", "tid"], "tide"),
            (["run", "-m", TINY, "--config", broken], "Did you mean \"hbm_budget\""),
            (["config", "check", broken], "weir.toml:2"),
        ]
        for args, expected in cases:
            done = weir(*args)
            self.assertEqual(done.returncode, 2, f"{args}: {done.stdout}{done.stderr}")
            errors = [e for e in done.stderr.splitlines() if e.startswith("weir: error: ")]
            self.assertEqual(len(errors), 1, f"{args}: {done.stderr}")
            self.assertIn(expected, errors[0])

    def test_configuration_is_echoed_with_sources(self):
        good = self.folder / "weir.toml"
        good.write_text('[memory]\nhbm_budget = "300MiB"\n')
        self.assertEqual(weir("config", "check", good).returncode, 0)
        done = weir("run", "--config", good, "--no-enable-prefix-caching", "--print-config",
                    env={"WEIR_SCHEDULER_MAX_NUM_SEQS": "5"})
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertRegex(done.stdout, r'hbm_budget = "300MiB" +# .*weir.toml:2')
        self.assertRegex(done.stdout, r"max_num_seqs = 5 +# environment")
        self.assertRegex(done.stdout, r"enable_prefix_caching = false +# flag")
        self.assertRegex(done.stdout, r"max_tokens = 64 +# default of run")

    def test_info_policies_version_and_help(self):
        self.assertIn("the least that runs", weir("info", TINY).stdout)
        self.assertIn("tide", weir("policies").stdout)
        self.assertRegex(weir("--version").stdout, r"^weir \d+\.\d+\.\d+ \(")
        for command in ("run", "generate", "chat", "info", "policies", "config"):
            done = weir(command, "--help")
            self.assertEqual(done.returncode, 0)
            self.assertIn("Examples:", done.stdout)


if __name__ == "__main__":
    WEIR = os.path.abspath(sys.argv.pop(1))
    unittest.main()
