// GPUs as docs/performance.md measured them, for the simulated server. A step reads the weights and
// does their products, which hide behind each other but for where they take about as long; it reads
// the KV of what it attends to; and the copies into the ring take their share of the memory. Steps
// of few tokens have kernels of their own for the products.
#pragma once

#include <algorithm>
#include <cmath>

#include "tests/policy/simulated_server.h"

namespace weir {

struct SimulatedGpu {
  const char* name = "";
  uint32_t layers = 32;
  uint32_t granules_per_layer = 52;
  uint64_t granule_bytes = 8u << 20;
  double weights = 16.06e9;                 // bytes
  double read = 15.0e9;                     // of them, in a step: all but the embeddings
  double kv_per_token = 131072;             // bytes
  double token_ns = 28e3;                   // a token's products at the matrix rate
  double hbm = 3500;                        // bytes/ns that kernels read
  double ring_write = 4300;                 // bytes/ns that copies take from the kernels
  double link_busy = 345, link_idle = 372;  // bytes/ns while the GPU reads all the time, or waits
  double overhead_ns = 6e5;
  double few_tokens = 64;  // so many at most, and what their kernels save of reading the weights
  double few_saves = 0.05;

  // How well the two hide: 1 not at all, infinity quite.
  static constexpr double kOverlap = 6;

  TrueStep Step(const StepWork& w) const {
    TrueStep step;
    // Attention of a prompt's chunk is arithmetic: 3e-5 of a token's products a pair.
    const double products = (w.tokens + w.pairs * 3e-5) * token_ns;
    const double reading = read / hbm * (w.tokens <= few_tokens ? 1 - few_saves : 1);
    const double more = std::max(reading, products);
    const double ratio = std::min(reading, products) / more;
    step.compute_ns = overhead_ns + more * std::pow(1 + std::pow(ratio, kOverlap), 1 / kOverlap) +
                      (w.decode_context + w.prefill_context) * kv_per_token / hbm +
                      w.evicted_bytes / ring_write;
    const double fast = w.evicted_bytes / link_idle;
    const double busy = fast > 0 ? std::min(1.0, step.compute_ns / fast) : 1;
    const double copying = w.evicted_bytes / (link_idle + (link_busy - link_idle) * busy);
    step.step_ns = std::max(step.compute_ns, copying + w.link_rests * step.compute_ns);
    return step;
  }

  SimulatedGpu Behind(double link) const {
    SimulatedGpu gpu = *this;
    gpu.link_idle *= link / link_busy;
    gpu.link_busy = link;
    return gpu;
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
          .weights = 65.5e9,
          .read = 64e9,
          .kv_per_token = 262144,
          .token_ns = 92e3};
}

// What one of two GPUs that share the model holds and computes.
inline SimulatedGpu HalfOfLlama70bOnH200() {
  return {.name = "70B",
          .layers = 80,
          .granules_per_layer = 52,
          .granule_bytes = 16u << 20,
          .weights = 70.6e9,
          .read = 69.5e9,
          .kv_per_token = 163840,
          .token_ns = 122e3};
}

}  // namespace weir
