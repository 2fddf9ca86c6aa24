#include "kernels/cuda/gates.cuh"

#include "kernels/cuda/enqueue.cuh"

namespace weir::cuda {
namespace {

constexpr int kThreads = 64;  // the gate's two warps

__global__ void StepEndKernel(const StepEndParams params) {
  RunGateBlock(params.gate);
  __syncthreads();
  if (threadIdx.x == 0) params.log->end_ns = gates::Now();
}

}  // namespace

LaunchStatus CheckGatePoint(const GatePoint& gate, const char* what) {
  if (!gate.used()) return {};
  const GateTable& t = gate.table;
  if (t.chunk_of_gate == nullptr || t.header == nullptr || t.log == nullptr) {
    return LaunchStatus::Invalid(std::string(what) +
                                 ": a gate needs chunk_of_gate, header and log");
  }
  if (gate.arrive >= 0 && (t.produced == nullptr || t.records == nullptr)) {
    return LaunchStatus::Invalid(std::string(what) + ": an arrival needs produced and records");
  }
  if (gate.depart >= 0 && t.consumed == nullptr) {
    return LaunchStatus::Invalid(std::string(what) + ": a departure needs consumed");
  }
  return {};
}

LaunchStatus CheckWeightGate(const WeightGate& gate, const char* what) {
  if (gate.chunk == nullptr || (gate.header != nullptr && gate.produced != nullptr)) return {};
  return LaunchStatus::Invalid(std::string(what) +
                               ": a gate before weights needs header and produced");
}

LaunchStatus StepEnd(const StepEndParams& params, const Launch& launch) {
  if (params.log == nullptr) return LaunchStatus::Invalid("step end: it needs a log");
  if (LaunchStatus s = CheckGatePoint(params.gate, "step end"); !s.ok()) return s;
  // Never early: it ends the step.
  return Enqueue("step end", StepEndKernel, 1, kThreads, {launch.stream, Overlap::kNone}, params);
}

}  // namespace weir::cuda
