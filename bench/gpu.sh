#!/usr/bin/env bash
# The GPU figures of docs/performance.md, again: builds what is needed, runs one section after the
# other and keeps every report. A section that fails is named at the end.
#   bench/gpu.sh [--built DIR] OUT [SECTION...]
#     --built DIR   builds and installs nothing; DIR is what bench/pack_gpu.sh made elsewhere
#     sections      tests remap kernels latency throughput load prefix pcie border overload swing context compressed
# The last five need a second GPU (it holds what is away); border also 96 GiB on the first for the
# 32B shape.
set -uo pipefail
cd "$(dirname "$0")/.." || exit 2
usage() {
  sed -n '2,8s/^# //p' "$0" >&2
  exit 2
}
build=
if [ "${1:-}" = --built ]; then
  build=${2:-}
  [ -x "$build/engine/cli/weir" ] || { echo "no program $build/engine/cli/weir" >&2; exit 2; }
  export LD_LIBRARY_PATH=$build/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
  shift 2
fi
[ $# -ge 1 ] || usage
out=$1
shift
all="tests remap kernels latency throughput load prefix pcie border overload swing context compressed"
sections=("$@")
[ ${#sections[@]} -gt 0 ] || read -ra sections <<<"$all"
for section in "${sections[@]}"; do
  [[ " $all " == *" $section "* ]] || { echo "no section $section; there are $all" >&2; exit 2; }
done
mkdir -p "$out"
small=bench/models/llama-3.1-8b.json
large=bench/models/qwen3-32b.json
failed=()

if [ -z "$build" ]; then
  build=build/release
  tools/setup.sh test || exit 1
  cmake --preset release -DCMAKE_CXX_COMPILER_LAUNCHER=ccache -DWEIR_BUILD_TESTS=ON \
    -DWEIR_BUILD_BENCH=ON -DWEIR_CUDA_KERNELS=ON >/dev/null || exit 1
  cmake --build $build -- --quiet || exit 1
fi
weir=$build/engine/cli/weir
nvidia-smi --query-gpu=name,memory.total,driver_version --format=csv | tee "$out/machine.txt"

report() { # report NAME COMMAND...: keeps what it prints
  local name=$1
  shift
  echo "== $name"
  "$@" 2>&1 | tee "$out/$name.txt"
  [ "${PIPESTATUS[0]}" -eq 0 ] || failed+=("$name")
}
latency() { # latency NAME MODEL BATCH CONTEXT [OPTION...]
  local name=latency_$1_$3_$4
  report "$name" "$weir" bench latency -m "$2" --dummy-weights --device cuda --quiet \
    --backing none --policy resident --max-num-batched-tokens 8192 --max-model-len $(($4 + 1024)) \
    --gemm-algorithm-file "$out/algorithms_$1" \
    --batch-size "$3" --context "$4" --output-len 100 --num-iters 1 --json "$out/$name.json" "${@:5}"
}
overload() { # overload NAME OPTION...: Llama-3.1-8B's shape; NAME.json and NAME.svg
  local name=$1
  shift
  report "$name" "$build"/bench/engine/weir_overload_bench $small --dummy --device cuda \
    --backing peer --algorithms "$out/algorithms" --json "$out/$name.json" "$@"
  python3 bench/engine/plot_overload.py "$out/$name.json" "$out/$name.svg" || failed+=("$name.svg")
}

for section in "${sections[@]}"; do
  case $section in
    tests)
      while read -r test; do report "$(basename "$test")" "$test" --gtest_brief=1; done \
        < <(find "$build/tests" -name 'weir_*cuda*_test' -type f -perm -u+x)
      ;;
    remap)
      report remap "$build"/bench/vmm/weir_remap_bench --driver cuda --json "$out/remap.json"
      report remap_beside "$build"/bench/vmm/weir_remap_bench --driver cuda --beside \
        --json "$out/remap_beside.json"
      ;;
    kernels)
      report kernels_8b "$build"/bench/kernels/weir_cuda_kernel_bench $small \
        --decode 1x1024,64x1024,256x1024,60x512~,104x512~ --prefill 1x8192,1x8192@32768 \
        --json "$out/kernels_8b.json"
      report kernels_32b "$build"/bench/kernels/weir_cuda_kernel_bench $large \
        --decode 1x1024,32x1024,64x1024 --prefill 1x8192,1x8192@32768 --json "$out/kernels_32b.json"
      ;;
    latency)
      for batch in 1 64 256; do latency 8b $small $batch 1024; done
      for batch in 1 32 64; do latency 32b $large $batch 1024; done
      ;;
    throughput)
      report throughput_random "$weir" bench throughput -m $small --dummy-weights --device cuda \
        --backing none --policy resident --quiet --num-prompts 1000 --input-len 512 --output-len 256 \
        --max-num-seqs 512 --max-num-batched-tokens 8192 --max-model-len 4096 \
        --json "$out/throughput_random.json"
      report throughput_sharegpt "$weir" bench throughput -m $small --dummy-weights --device cuda \
        --backing none --policy resident --quiet --dataset-name sharegpt_like --num-prompts 2000 \
        --max-num-seqs 512 --max-num-batched-tokens 8192 --max-model-len 4096 \
        --json "$out/throughput_sharegpt.json"
      ;;
    load)
      report load_8b "$build"/bench/engine/weir_load_bench $small --device cuda \
        --directory "$out/checkpoint" --backing none,host --rounds 2
      rm -rf "$out/checkpoint"
      ;;
    prefix)
      # Prompts of which nine tenths are shared, one at a time; the first one fills the cache.
      for length in 4096 6144 8192 10240 12288 16384; do
        shared=$((length * 9 / 10 / 16 * 16))
        for cache in enable no-enable; do
          report prefix_${length}_$cache "$weir" bench serve-trace -m $small --dummy-weights \
            --device cuda --backing none --policy resident --quiet --$cache-prefix-caching \
            --num-prompts 10 --dataset-name prefix_repetition --num-prefixes 1 \
            --prefix-len $shared --suffix-len $((length - shared)) --output-len 16 \
            --request-rate 0.8 --burstiness 100 --max-num-batched-tokens 8192 --max-model-len 20480 \
            --gemm-algorithm-file "$out/algorithms_8b" --json "$out/prefix_${length}_$cache.json"
        done
      done
      ;;
    pcie)
      # Host memory behind the bus: long steps hide what short ones cannot.
      for tokens in 2048 4096; do
        report border_8b_host_$tokens "$build"/bench/engine/weir_border_bench $small --dummy \
          --device cuda --backing host --budget $((40 << 30)) --prefill $tokens --context 4096 \
          --steps 16 --granules 0,2,4,6,8,9,10,12,0
      done
      ;;
    border)
      report border_32b "$build"/bench/engine/weir_border_bench $large --dummy --device cuda \
        --backing peer --budget $((96 << 30)) --batch 64 --context 1024 --steps 40 \
        --granules 0,2,4,6,7,8,10,14,20,0
      report transition_32b "$build"/bench/engine/weir_border_bench $large --dummy --device cuda \
        --backing peer --budget $((96 << 30)) --batch 64 --context 1024 --steps 40 --transition 8
      report transition_32b_large "$build"/bench/engine/weir_border_bench $large --dummy \
        --device cuda --backing peer --budget $((96 << 30)) --batch 64 --context 1024 --steps 40 \
        --granule 32 --transition 4
      for batch in 8 64 512; do
        # KV does not hold 512 contexts of their own, so most of them is shared.
        shared=0; [ $batch = 512 ] && shared=480
        report border_in_place_32b_$batch "$build"/bench/engine/weir_border_bench $large --dummy \
          --device cuda --backing peer --budget $((96 << 30)) --batch $batch --context 512 \
          --shared $shared --steps 40 --placement in_place --granules 0,1,2,4,8,14,20,0
      done
      ;;
    overload)
      # Long enough for sequences to be as old as they get; oneiros before tide, and fixed after it.
      overload overload_8b --ratios 0.73,0.8,0.85,0.9 --modes flood --warm 8 --measure 12 --policies \
        "resident;static{fraction=0.25};oneiros;zero-inference;tide;fixed{granules_per_layer=8};fixed{granules_per_layer=12}"
      ;;
    swing)
      overload swing_8b --ratios 0.85 --modes flood,swing --warm 3 --measure 4 --phase 5 --rounds 2 \
        --policies "resident;static{fraction=0.25};oneiros;fixed{granules_per_layer=10};tide"
      overload light_8b --ratios 0.73 --modes light --phase 20 --rounds 3 --policies "resident;tide"
      ;;
    context)
      overload context_8b --ratios 0.8 --modes flood --warm 4 --measure 5 --dataset random \
        --input-len 4096 --output-len 256 --range-ratio 0.2 --max-model-len 8192 \
        --policies "resident;static{fraction=0.25};oneiros;fixed{granules_per_layer=10};tide"
      ;;
    compressed)
      for batch in 1 64 104 144; do
        latency 8b $small $batch 1024
        latency 8b_compressed $small $batch 1024 --compress-weights
      done
      report kernels_8b_compressed "$build"/bench/kernels/weir_cuda_kernel_bench $small \
        --compress-weights --decode 1x1024,64x1024,104x512~,144x512~ --prefill none \
        --json "$out/kernels_8b_compressed.json"
      overload compressed_8b --compress --ratios 0.73,0.8,0.85,0.9 --modes flood --warm 8 \
        --measure 12 --policies "resident;oneiros;tide"
      # Beside plain weights, where those have been measured.
      if [ -f "$out/overload_8b.json" ]; then
        python3 bench/engine/plot_overload.py "$out"/{overload,compressed}_8b.json \
          "$out/overload_both.svg" --panels 1 || failed+=("overload_both.svg")
      fi
      ;;
  esac
done
[ ${#failed[@]} -eq 0 ] || { echo "failed: ${failed[*]}" >&2; exit 1; }
