#!/usr/bin/env bash
# The openai client, AIPerf and GuideLLM against `weir serve` on a GPU, on a machine without a
# network. Prints a line for each behaviour and each run with its failed requests; the exit status is
# 0 if there were none.
#
#   tests/server/gpu_clients.sh build/release/engine/cli/weir MODEL.gguf [DEVICE [REQUESTS]]
#
# MODEL.gguf: the default model (tools/get_model.sh), which also lends its tokenizer to a model of
# 8B shape with made-up weights (SHAPE=none leaves that out). DEVICE: cuda (default) or cpu.
# REQUESTS: of each run, 60. PYTHON (python3) must find the packages of openai-requirements.txt and
# client-requirements.txt: set PYTHONPATH where they were installed with `pip install --target`.
set -euo pipefail
cd "$(dirname "$0")/../.."

if [[ $# -lt 2 || $# -gt 4 ]]; then
  sed -n '2,/^set/{/^#/s/^# \{0,1\}//p}' "$0" >&2
  exit 2
fi
weir=$1 model=$2 device=${3:-cuda} requests=${4:-60}
python=$(command -v "${PYTHON:-python3}")
shape=${SHAPE:-bench/models/llama-3.1-8b.json}
for package in openai gguf transformers aiperf guidellm; do
  "$python" -c "import $package" 2> /dev/null || {
    echo "$python does not find the package $package: set PYTHONPATH or PYTHON" >&2
    exit 2
  }
done
work=$(mktemp -d)
server=
trap '[[ -z $server ]] || kill "$server" 2> /dev/null; rm -rf "$work"' EXIT
failed=0

# conformance.py against a server of its own.
"$weir" serve -m "$model" --device "$device" --port 0 > "$work/serve.out" 2> "$work/serve.err" &
server=$!
for _ in $(seq 1200); do
  url=$(sed -n 's/.* at \(http:[^ ]*\)$/\1/p' "$work/serve.out")
  [[ -n $url ]] && break
  kill -0 "$server" 2> /dev/null || break
  sleep 0.1
done
if [[ -z $url ]]; then
  echo "the server did not start:" >&2
  tail -20 "$work/serve.err" >&2
  exit 1
fi
echo "== openai client and request formats, $model on $device"
"$python" tests/server/conformance.py "$url" || failed=1
kill -TERM "$server"
code=0
wait "$server" || code=$?
server=
if [[ $code != 0 ]]; then
  echo "FAILED the server ended with $code:"
  tail -5 "$work/serve.err"
  failed=1
fi

echo "== AIPerf and GuideLLM, $model on $device"
"$python" tests/server/clients.py --python "$python" --requests "$requests" "$weir" "$model" -- \
  --device "$device" || failed=1

if [[ $shape != none ]]; then
  # The shape with the vocabulary of the tokenizer there is.
  "$python" tests/server/hub_tokenizer.py "$model" "$work/hf" 2> /dev/null
  mkdir "$work/made-up"
  cp -L "$work"/hf/hub/models--weir--smollm2/snapshots/*/tokenizer* \
    "$work"/hf/hub/models--weir--smollm2/snapshots/*/*.jinja "$work/made-up"
  "$python" - "$shape" "$work/made-up/config.json" << 'END'
import json
import sys

with open(sys.argv[1]) as shape, open(sys.argv[2], "w") as out:
    json.dump({**json.load(shape), "vocab_size": 49152, "bos_token_id": 1, "eos_token_id": 2}, out)
END
  echo "== AIPerf and GuideLLM, $shape with made-up weights on $device"
  "$python" tests/server/clients.py --python "$python" --requests "$requests" \
    --tokenizer "$model" "$weir" "$work/made-up" -- --device "$device" --dummy-weights \
    --max-model-len 8192 || failed=1
fi
exit $failed
