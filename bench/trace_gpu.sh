#!/usr/bin/env bash
# Traces on a GPU: records an 8B-shaped server under load swings, checks and reads the trace with
# every command, and measures what recording costs. Builds nothing, so that it runs with programs
# that were built elsewhere.
#   bench/trace_gpu.sh OUT [OPTION VALUE]...
#     --built DIR        a build folder, or what bench/pack_gpu.sh made elsewhere [build/release]
#     --model FILE       a config.json                     [bench/models/llama-3.1-8b.json]
#     --backing WHERE    host or peer                      [peer if there is a second GPU]
#     --budget SIZE      device memory for weir            [20GiB]
#     --policy NAME      that moves weights                [tide]
#     --rate N           requests a second, in bursts      [24]
#     --requests N       of the recorded run               [600]
#     --pairs N          runs without and with recording   [6]
#     --prompts N        requests of each of those runs    [800]
# Exit status 1 when something failed; OUT keeps every report.
set -uo pipefail
cd "$(dirname "$0")/.." || exit 2
usage() {
  sed -n '5,14s/^# //p' "$0" >&2
  exit 2
}
[ $# -ge 1 ] || usage
out=$1
shift
built=build/release
model=bench/models/llama-3.1-8b.json
backing=
budget=20GiB
policy=tide
rate=24
requests=600
pairs=6
prompts=800
while [ $# -gt 0 ]; do
  [ $# -ge 2 ] || usage
  case $1 in
    --built) built=$2 ;;
    --model) model=$2 ;;
    --backing) backing=$2 ;;
    --budget) budget=$2 ;;
    --policy) policy=$2 ;;
    --rate) rate=$2 ;;
    --requests) requests=$2 ;;
    --pairs) pairs=$2 ;;
    --prompts) prompts=$2 ;;
    *) usage ;;
  esac
  shift 2
done
weir=$built/engine/cli/weir
trace=$built/tools/weir-trace
export LD_LIBRARY_PATH=$built/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
for program in "$weir" "$trace"; do
  [ -x "$program" ] || { echo "$program is not there or not a program" >&2; exit 2; }
done
if [ -z "$backing" ]; then
  backing=host
  [ "$(nvidia-smi --list-gpus | wc -l)" -lt 2 ] || backing=peer
fi
mkdir -p "$out"
failed=()
nvidia-smi --query-gpu=name,memory.total,driver_version --format=csv | tee "$out/machine.txt"
engine=(-m "$model" --dummy-weights --device cuda --quiet --backing "$backing"
  --hbm-budget "$budget" --policy "$policy" --max-num-seqs 256 --max-num-batched-tokens 4096
  --max-model-len 4096 --gemm-algorithm-file "$out/algorithms")

report() { # report NAME COMMAND...: keeps what it prints
  local name=$1
  shift
  echo "== $name"
  "$@" 2>&1 | tee "$out/$name.txt"
  [ "${PIPESTATUS[0]}" -eq 0 ] || failed+=("$name")
}
throughput() { # throughput NAME [OPTION...]
  local name=$1
  shift
  "$weir" bench throughput "${engine[@]}" --dataset-name sharegpt_like --num-prompts "$prompts" \
    --json "$out/$name.json" "$@" >"$out/$name.txt" 2>&1 || failed+=("$name")
}

# Bursts of requests, then little: weights go and come home.
report serve "$weir" bench serve-trace "${engine[@]}" --dataset-name sharegpt_like \
  --num-prompts "$requests" --request-rate "$rate" --burstiness 0.05 --json "$out/serve.json" \
  --trace "$out/swings.trace"
report check "$trace" check --complete "$out/swings.trace"
report report "$trace" report "$out/swings.trace"
"$trace" report --json "$out/swings.trace" >"$out/report.json" || failed+=(report.json)
report hist "$trace" hist "$out/swings.trace" --of stall,copy,step
report perfetto "$trace" export --perfetto "$out/swings.trace" -o "$out/swings.perfetto.json"
report plot "$trace" plot "$out/swings.trace" -o "$out/swings.html"

# What recording costs: pairs in turn, the one that goes first changing places. One of each before,
# which chooses algorithms and does not count.
throughput warm
for i in $(seq "$pairs"); do
  if [ $((i % 2)) -eq 1 ]; then
    throughput "plain_$i"
    throughput "recorded_$i" --trace "$out/cost.trace"
  else
    throughput "recorded_$i" --trace "$out/cost.trace"
    throughput "plain_$i"
  fi
  "$trace" report --json "$out/cost.trace" >"$out/cost_$i.json" || failed+=("cost_$i")
done
rm -f "$out/cost.trace"

report accounts python3 - "$out" "$pairs" <<'PYTHON'
import json, statistics, sys
out, pairs = sys.argv[1], int(sys.argv[2])
load = lambda name: json.load(open(f"{out}/{name}.json"))
ok = True
r = load("report")
faults, counter = r["stall"]["sum_ns"], r["step_stall_ns"]
apart = abs(faults - counter) / max(1, counter)
ok &= apart <= 0.01
print(f"stall in faults {faults / 1e6:.3f} ms, the engine's counter {counter / 1e6:.3f} ms: "
      f"{100 * apart:.3f} % apart (at most 1 %)")
d = r.get("device")
ok &= d is not None
if d:
    print(f"device: {d['steps']} steps, {d['busy_ns'] / 1e9:.3f} s, {d['idle_ns'] / 1e9:.3f} s between "
          f"them, clocks within {d['clock_error_ns'] / 1e3:.1f} us")
copied = r["links"]
print("links: " + ", ".join(f"{t} {v['bytes'] / 2**30:.2f} GiB in {v['transfers']} transfers"
                            for t, v in copied.items()))
speed = lambda name: load(name)["results"]["output_tokens_per_s"]
change = []
for i in range(1, pairs + 1):
    plain, recorded, cost = speed(f"plain_{i}"), speed(f"recorded_{i}"), load(f"cost_{i}")
    change.append(100 * (recorded / plain - 1))
    print(f"pair {i}: {plain:.1f} tokens/s, recorded {recorded:.1f} ({change[-1]:+.2f} %), "
          f"{cost['records'] / cost['seconds']:.0f} records/s, stall {cost['stall']['sum_ns'] / 1e6:.1f} ms")
mean = statistics.mean(change)
error = statistics.stdev(change) / len(change) ** 0.5 if len(change) > 1 else float("nan")
print(f"recording changes throughput by {mean:+.2f} % (standard error {error:.2f}, "
      f"median {statistics.median(change):+.2f})")
sys.exit(0 if ok else 1)
PYTHON
[ ${#failed[@]} -eq 0 ] || { echo "failed: ${failed[*]}" >&2; exit 1; }
