#!/usr/bin/env bash
# Fetches FlashInfer's headers (pinned, hash-checked; 18 MB, no dependencies) into .cache/flashinfer
# and prints the folder that holds include/, cccl/ and cutlass/. Only headers are used.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
version=0.6.18
folder=$root/.cache/flashinfer/$version

if [ ! -f "$folder/include/flashinfer/attention/prefill.cuh" ]; then
  scratch=$(mktemp -d)
  trap 'rm -rf "$scratch"' EXIT
  echo "fetching the headers of FlashInfer $version (18 MB)" >&2
  python3 -m pip download --quiet --disable-pip-version-check --no-deps --require-hashes \
    --only-binary=:all: -d "$scratch" -r "$root/tools/flashinfer-requirements.txt" >&2
  python3 -m zipfile -e "$scratch"/flashinfer_python-*.whl "$scratch/wheel"
  data=$scratch/wheel/flashinfer/data
  for part in include/flashinfer cccl/cub cccl/thrust cccl/libcudacxx/include cutlass/include \
    cutlass/tools/util/include; do
    if [ ! -d "$data/$part" ]; then
      echo "get_flashinfer: the wheel of $version has no $part" >&2
      exit 1
    fi
  done
  mkdir -p "$root/.cache/flashinfer"
  rm -rf "$folder.part" "$folder"
  mkdir "$folder.part"
  mv "$data/include" "$data/cccl" "$data/cutlass" "$folder.part"
  mv "$folder.part" "$folder"
fi
echo "$folder"
