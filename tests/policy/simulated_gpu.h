// GPUs as docs/performance.md measured them, for the simulated server: a step reads the weights
// once, or takes as long as its products do; it reads the KV of what it attends to, and the copies
// into the ring take their share of the memory's bandwidth.
#pragma once

#include <algorithm>

#include "tests/policy/simulated_server.h"

namespace weir {

struct SimulatedGpu {
  const char* name = "";
  uint32_t layers = 32;
  uint32_t granules_per_layer = 52;
  uint64_t granule_bytes = 8u << 20;
  double weights = 16e9;                    // bytes read in a step
  double kv_per_token = 131072;             // bytes
  double token_ns = 23e3;                   // a token's products at the matrix rate
  double hbm = 4100;                        // bytes/ns
  double link_busy = 345, link_idle = 372;  // bytes/ns while the GPU reads all the time, or waits
  double overhead_ns = 3e5;

  TrueStep Step(const StepWork& w) const {
    TrueStep step;
    // Attention of a prompt's chunk is arithmetic: 3e-5 of a token's products a pair.
    const double products = (w.tokens + w.pairs * 3e-5) * token_ns;
    step.compute_ns = overhead_ns + std::max(weights / hbm, products) +
                      (w.decode_context + w.prefill_context) * kv_per_token / hbm +
                      w.evicted_bytes / hbm;
    const double fast = w.evicted_bytes / link_idle;
    const double busy = fast > 0 ? std::min(1.0, step.compute_ns / fast) : 1;
    step.step_ns =
        std::max(step.compute_ns, w.evicted_bytes / (link_idle + (link_busy - link_idle) * busy));
    return step;
  }

  // With |share| of the memory taken by weights.
  ServerShape Server(double share) const {
    ServerShape shape;
    shape.layers = layers;
    shape.granules_per_layer = granules_per_layer;
    shape.granule_bytes = granule_bytes;
    shape.kv_granules =
        static_cast<uint32_t>(weights * (1 / share - 1) / static_cast<double>(granule_bytes));
    shape.blocks_per_granule =
        static_cast<uint32_t>(static_cast<double>(granule_bytes) / (16 * kv_per_token));
    shape.max_running = 256;
    shape.link_at_start = link_idle;
    shape.truth = [gpu = *this](const StepWork& w) { return gpu.Step(w); };
    return shape;
  }
};

inline SimulatedGpu Llama8bOnH200() {
  return {.name = "8B"};
}
inline SimulatedGpu Qwen32bOnH200() {
  return {.name = "32B",
          .layers = 64,
          .granules_per_layer = 58,
          .granule_bytes = 16u << 20,
          .weights = 64e9,
          .kv_per_token = 262144,
          .token_ns = 92e3};
}

}  // namespace weir
