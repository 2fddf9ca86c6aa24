#!/usr/bin/env bash
# The GPU figures of docs/performance.md, again: builds what is needed, runs one section after the
# other and keeps every report. A section that fails is named at the end.
#   bench/gpu.sh OUT [SECTION...]      sections: tests kernels latency throughput border overload
# border and overload need a second GPU (it holds what is away) and 96 GiB on the first for the
# 32B shape. With everything built: about 12 minutes on an H200.
set -uo pipefail
cd "$(dirname "$0")/.."
[ $# -ge 1 ] || { sed -n '2,7s/^# //p' "$0" >&2; exit 2; }
out=$1
shift
sections=("$@")
[ ${#sections[@]} -gt 0 ] || sections=(tests kernels latency throughput border overload)
mkdir -p "$out"
build=build/release
weir=$build/engine/cli/weir
small=bench/models/llama-3.1-8b.json
large=bench/models/qwen3-32b.json
failed=()

tools/setup.sh test || exit 1
cmake --preset release -DCMAKE_CXX_COMPILER_LAUNCHER=ccache -DWEIR_BUILD_TESTS=ON \
  -DWEIR_BUILD_BENCH=ON -DWEIR_CUDA_KERNELS=ON >/dev/null || exit 1
cmake --build $build -- --quiet || exit 1
nvidia-smi --query-gpu=name,memory.total,driver_version --format=csv | tee "$out/machine.txt"

report() { # report NAME COMMAND...: keeps what it prints
  local name=$1
  shift
  echo "== $name"
  "$@" 2>&1 | tee "$out/$name.txt"
  [ "${PIPESTATUS[0]}" -eq 0 ] || failed+=("$name")
}
latency() { # latency NAME MODEL BATCH CONTEXT
  report "latency_$1_$3_$4" "$weir" bench latency -m "$2" --dummy-weights --device cuda --quiet \
    --backing none --policy resident --max-num-batched-tokens 8192 --max-model-len $(($4 + 1024)) \
    --batch-size "$3" --context "$4" --output-len 100 --num-iters 1 --json "$out/latency_$1_$3_$4.json"
}

for section in "${sections[@]}"; do
  case $section in
    tests) report tests ctest --test-dir $build -L gpu --output-on-failure ;;
    kernels)
      report kernels_8b $build/bench/kernels/weir_cuda_kernel_bench $small \
        --decode 1x1024,64x1024,256x1024 --prefill 1x8192,1x8192@32768 --json "$out/kernels_8b.json"
      report kernels_32b $build/bench/kernels/weir_cuda_kernel_bench $large \
        --decode 1x1024,32x1024,64x1024 --prefill 1x8192 --json "$out/kernels_32b.json"
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
    border)
      report border_32b $build/bench/engine/weir_border_bench $large --dummy --device cuda \
        --backing peer --budget $((96 << 30)) --batch 64 --context 1024 --steps 40 \
        --granules 0,2,4,6,7,8,10,14,20,0
      ;;
    overload)
      report overload_8b $build/bench/engine/weir_overload_bench $small --dummy --device cuda \
        --backing peer --ratios 0.73,0.8,0.85,0.9 --warm 4 --measure 6 \
        --policies "resident;fixed{granules_per_layer=5};fixed{granules_per_layer=10};fixed{granules_per_layer=14};tide" \
        --algorithms "$out/algorithms" --json "$out/overload_8b.json"
      python3 bench/engine/plot_overload.py "$out/overload_8b.json" "$out/overload_8b.svg"
      ;;
    *)
      echo "no section $section; there are tests kernels latency throughput border overload" >&2
      exit 2
      ;;
  esac
done
[ ${#failed[@]} -eq 0 ] || { echo "failed: ${failed[*]}" >&2; exit 1; }
