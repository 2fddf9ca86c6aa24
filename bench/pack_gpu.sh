#!/usr/bin/env bash
# Packs what `bench/gpu.sh --built OUT` and `bench/trace_gpu.sh` run, for a machine with a GPU on
# which nothing can be built or installed: stripped programs at their places in the build folder,
# and the libraries that such a machine lacks.
#   bench/pack_gpu.sh OUT [BUILD]      BUILD: build/release
set -euo pipefail
cd "$(dirname "$0")/.."
[ $# -ge 1 ] || { sed -n '2,5s/^# //p' "$0" >&2; exit 2; }
out=$1
build=${2:-build/release}
[ -f "$build/CMakeCache.txt" ] || { echo "$build is no build folder" >&2; exit 2; }
grep -q '^WEIR_CUDA_KERNELS:[A-Z]*=ON' "$build/CMakeCache.txt" ||
  { echo "$build has no CUDA kernels: configure it with -DWEIR_CUDA_KERNELS=ON" >&2; exit 2; }
cmake --build "$build" -- --quiet
mkdir -p "$out/lib"
programs=(engine/cli/weir tools/weir-trace bench/kernels/weir_cuda_kernel_bench
  bench/engine/weir_border_bench bench/engine/weir_overload_bench bench/engine/weir_load_bench
  bench/vmm/weir_remap_bench)
while read -r test; do programs+=("${test#"$build"/}"); done \
  < <(find "$build/tests" -name 'weir_*cuda*_test' -type f -perm -u+x)
for program in "${programs[@]}"; do
  mkdir -p "$out/$(dirname "$program")"
  strip -o "$out/$program" "$build/$program"
  ldd "$build/$program" | awk '$2 == "=>" {print $3}' |
    { grep -vE '/(libc|libm|libgcc_s|libstdc\+\+)\.so' || true; } | xargs -r cp -Lut "$out/lib"
done
du -sh "$out"
