#!/usr/bin/env python3
"""Starts `weir serve` with the default model and a key, and runs conformance.py against it with the
official client from PyPI. Skipped where WEIR_SMOLLM2_GGUF names no model or PyPI cannot be reached.
Usage: conformance_test.py WEIR, or --prepare to fetch the client only"""
import os
import pathlib
import subprocess
import sys

import serving

HERE = pathlib.Path(__file__).resolve().parent
KEY = "conformance-key"


def main():
    weir = sys.argv[1]
    if weir == "--prepare":
        serving.venv("conformance", HERE / "openai-requirements.txt", hashes=True)
        return 0
    model = os.environ.get("WEIR_SMOLLM2_GGUF")
    if not model:
        serving.skip("WEIR_SMOLLM2_GGUF does not name the default model (tools/get_model.sh)")
    python = serving.venv("conformance", HERE / "openai-requirements.txt", hashes=True)
    with serving.Server(serving.serve(weir, model), environment={"WEIR_SERVER_API_KEY": KEY}) as server:
        failures = subprocess.run([python, HERE / "conformance.py", server.url, KEY]).returncode
        stopped = server.stop()
        if failures or stopped != 0:
            print(f"the server ended with {stopped}; its log:\n{server.log_text()[-3000:]}")
    return 1 if failures or stopped != 0 else 0


if __name__ == "__main__":
    sys.exit(main())
