#!/usr/bin/env python3
"""AIPerf and GuideLLM, unmodified, against `weir serve` with the default model. Takes minutes, and
some gigabytes from PyPI the first time; not part of ./check.

    tests/server/clients.py build/release/engine/cli/weir "$(tools/get_model.sh)"

--python PATH is a Python that has client-requirements.txt already; what follows -- are options of
`weir serve`. Prints a line for each run and exits with 1 when a request failed or the server's own
count of finished requests is another."""
import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile

import serving

HERE = pathlib.Path(__file__).resolve().parent
TOKENIZER = "weir/smollm2"  # what hub_tokenizer.py calls it


class Clients:
    def __init__(self, python, server, tokenizer, folder):
        self.python, self.server, self.folder = python, server, folder
        self.environment = {**os.environ, "HF_HOME": str(folder / "hf"), "HF_HUB_OFFLINE": "1",
                            "PATH": f"{python.parent}:{os.environ['PATH']}"}
        subprocess.run([python, HERE / "hub_tokenizer.py", tokenizer, folder / "hf"], check=True,
                       stderr=subprocess.DEVNULL)
        self.name = json.load(serving.get(server.url + "/v1/models"))["data"][0]["id"]

    def run(self, what, module, *arguments):
        log = self.folder / f"{what}.log"
        command = [self.python, "-m", module, *arguments]
        with log.open("w") as output:
            done = subprocess.run([str(part) for part in command], env=self.environment,
                                  cwd=self.folder, stdout=output, stderr=subprocess.STDOUT,
                                  timeout=900)
        if done.returncode != 0:
            sys.exit(f"{what} ended with {done.returncode}:\n{log.read_text()[-3000:]}")

    def aiperf(self, what, endpoint, requests, concurrency, *options):
        """Failed requests, and a line of figures."""
        path = {"chat": "/v1/chat/completions", "completions": "/v1/completions"}[endpoint]
        out = self.folder / what
        self.run(what, "aiperf", "profile", "--model", self.name, "--tokenizer",
                 TOKENIZER, "--endpoint-type", endpoint, "--endpoint", path, "--streaming", "--url",
                 f"127.0.0.1:{self.server.port}", "--synthetic-input-tokens-mean", 128,
                 "--synthetic-input-tokens-stddev", 0, "--output-tokens-mean", 32,
                 "--output-tokens-stddev", 0, "--extra-inputs", "min_tokens:32", "--extra-inputs",
                 "ignore_eos:true", "--concurrency", concurrency, "--request-count", requests,
                 "--random-seed", 100, "--ui-type", "none", "--output-artifact-dir", out, *options)
        report = json.loads((out / "profile_export_aiperf.json").read_text())
        answered = int(report["request_count"]["avg"])
        errors = report["error_summary"]
        return answered, errors, (f"TTFT p50 {report['time_to_first_token']['p50']:.0f} ms, "
                                  f"ITL p50 {report['inter_token_latency']['p50']:.1f} ms, "
                                  f"{report['output_token_throughput']['avg']:.0f} tokens/s")

    def guidellm(self, what, requests, *profile, request_format=None):
        out = self.folder / f"{what}.json"
        backend = f"kind=openai_http,target={self.server.url}"
        if request_format:
            backend += f",request_format={request_format}"
        self.run(what, "guidellm", "run", "--backend", backend, "--data",
                 "kind=synthetic_text,prompt_tokens=128,output_tokens=32", "--tokenizer",
                 f"kind=huggingface_auto,model={TOKENIZER}", "--profile", *profile, "--constraint",
                 f"kind=max_requests,count={requests}", "--output", f"kind=json,path={out}",
                 "--disable-console-interactive")
        benchmark = json.loads(out.read_text())["benchmarks"][0]
        # Not metrics' request_totals: those leave out a request that began after the end of the one
        # whose end was noticed last, which need not be the one that ended last.
        metrics, totals = benchmark["metrics"], benchmark["scheduler_state"]

        def p50(name):
            return metrics[name]["successful"]["percentiles"]["p50"]
        return totals["successful_requests"], (
            totals["errored_requests"] + totals["cancelled_requests"]), (
            f"TTFT p50 {p50('time_to_first_token_ms'):.0f} ms, "
            f"ITL p50 {p50('inter_token_latency_ms'):.1f} ms")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("weir")
    parser.add_argument("model")
    parser.add_argument("--python", type=pathlib.Path)
    parser.add_argument("--requests", type=int, default=100, help="of each run")
    parser.add_argument("--tokenizer", help="the default model's GGUF file, if |model| is another")
    parser.add_argument("serve_options", nargs="*")
    options = parser.parse_args()
    python = options.python or serving.venv("clients", HERE / "client-requirements.txt",
                                            hashes=False)
    bad = 0
    with tempfile.TemporaryDirectory() as folder, \
            serving.Server(serving.serve(options.weir, options.model,
                                         *options.serve_options)) as server:
        clients = Clients(python.absolute(), server, options.tokenizer or options.model,
                          pathlib.Path(folder))
        n = options.requests
        runs = {
            "aiperf-chat": lambda what: clients.aiperf(what, "chat", n, 8),
            "aiperf-completions": lambda what: clients.aiperf(what, "completions", n, 8),
            "aiperf-rate": lambda what: clients.aiperf(what, "chat", n, 32, "--request-rate", 10),
            "guidellm-concurrent": lambda what: clients.guidellm(what, n,
                                                                 "kind=concurrent,streams=8"),
            "guidellm-completions": lambda what: clients.guidellm(
                what, n, "kind=concurrent,streams=8", request_format="/v1/completions"),
            "guidellm-poisson": lambda what: clients.guidellm(what, n, "kind=poisson,rate=4"),
        }
        for what, run in runs.items():
            before = server.metrics()
            answered, errors, figures = run(what)
            ended = server.idle_metrics()
            served = ended["vllm:request_success_total"] - before["vllm:request_success_total"]
            ok = answered == n and not errors and served >= n
            bad += not ok
            print(f"{'ok    ' if ok else 'FAILED'} {what}: {answered} of {n} answered, "
                  f"{served:.0f} served, errors {errors or 0}, {figures}", flush=True)
        # AIPerf gives up a tenth of its requests after half a second; the others must not suffer.
        answered, errors, figures = clients.aiperf("aiperf-cancel", "chat", n, 8,
                                                   "--request-cancellation-rate", 10,
                                                   "--request-cancellation-delay", 0.05)
        cancelled = sum(e["count"] for e in errors if "ancel" in json.dumps(e))
        ended = server.idle_metrics()
        ok = answered + cancelled == n and ended["weir_leaked_kv_blocks"] == 0
        bad += not ok
        print(f"{'ok    ' if ok else 'FAILED'} aiperf-cancel: {answered} answered and {cancelled} "
              f"given up of {n}, {figures}")
        code = server.stop()
        if code != 0:
            print(f"the server ended with {code}:\n{server.log_text()[-2000:]}")
    print(f"{len(runs) + 1 - bad} passed, {bad} failed")
    return 1 if bad or code != 0 else 0


if __name__ == "__main__":
    sys.exit(main())
