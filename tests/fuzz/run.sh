#!/usr/bin/env bash
# Builds the libFuzzer targets and runs each for the given seconds, starting from the kept corpus
# (tests/fuzz/corpus/<target>: made by hand, and inputs of fixed bugs; <target>.tar.gz: grown by half
# an hour of fuzzing and merged). New inputs go to a scratch folder. Usage: tests/fuzz/run.sh SECONDS [TARGET]
set -euo pipefail
cd "$(dirname "$0")/../.."
seconds=${1:-60}
# The sanitizer keeps freed memory back, 256 MiB by default: the limit below is meant for the code.
export ASAN_OPTIONS=quarantine_size_mb=32
cmake --preset fuzz -DCMAKE_CXX_COMPILER_LAUNCHER=ccache >/dev/null
cmake --build build/fuzz -- --quiet
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
fuzz_one() {
  local target=$1 corpus
  corpus=tests/fuzz/corpus/$(basename "$target")
  mkdir -p "$scratch/$(basename "$target")"
  if [ -f "$corpus.tar.gz" ]; then tar -xzf "$corpus.tar.gz" -C "$scratch/$(basename "$target")"; fi
  [ -d "$corpus" ] || corpus=
  if ! "$target" -max_total_time="$seconds" -rss_limit_mb=512 -timeout=5 -print_final_stats=1 \
      -artifact_prefix="$scratch/" "$scratch/$(basename "$target")" $corpus \
      >"$scratch/$(basename "$target").log" 2>&1; then
    cat "$scratch/$(basename "$target").log"
    return 1
  fi
  echo "$(basename "$target"): $(grep -o 'number_of_executed_units: .*' "$scratch/$(basename "$target").log")"
}
export -f fuzz_one
export scratch seconds
find build/fuzz -name "${2:-weir_fuzz_*}" -type f -perm -u+x -print0 |
  xargs -0 -P 2 -I{} bash -c 'fuzz_one {}'
