// Backend: everything of an engine that depends on where the model runs: the driver of its memory,
// the layout of its weights, the sizes of its buffers, and the Compute on top.
#pragma once

#include <functional>
#include <memory>
#include <span>
#include <string_view>

#include "engine/compute.h"
#include "engine/memory.h"
#include "engine/model/checkpoint.h"
#include "engine/options.h"
#include "engine/weight_loader.h"
#include "engine/weight_map.h"
#include "vmm/driver.h"

namespace weir {

using ProgressFn = std::function<void(std::string_view phase, uint64_t done, uint64_t total)>;

// Represents one device and what a model looks like there. It outlives the Memory made with its
// driver, and that the Compute.
class Backend {
 public:
  virtual ~Backend() = default;
  virtual Driver& driver() = 0;
  const WeightMap& map() const { return map_; }

  // Sizes and, where the user gave no budget, the device's share that weir takes.
  virtual void Describe(MemoryOptions* memory) const = 0;
  // Fills memory.weights() and seals it.
  virtual Result<WeightLoadReport> Load(const Checkpoint& checkpoint, Memory& memory,
                                        const ProgressFn& progress) = 0;
  // Writes |ranges| of memory.weights() again as Load did (a WeightSource). No step is under way.
  virtual Status Reload(const Checkpoint& checkpoint, Memory& memory,
                        std::span<const WeightRange> ranges) = 0;
  virtual Result<std::unique_ptr<Compute>> MakeCompute(Memory& memory,
                                                       const ProgressFn& progress) = 0;

 protected:
  WeightMap map_;
};

// The back-end that |options| choose; auto: the GPU if this build and this machine have one.
// kUnsupported says what is missing or accepted.
Result<std::unique_ptr<Backend>> MakeBackend(const EngineOptions& options,
                                             const ModelConfig& config,
                                             const ComputeLimits& limits);

Result<std::unique_ptr<Backend>> MakeCpuBackend(const EngineOptions& options,
                                                const ModelConfig& config,
                                                const ComputeLimits& limits);
#if defined(WEIR_HAVE_CUDA_COMPUTE)
Result<std::unique_ptr<Backend>> MakeCudaBackend(const EngineOptions& options,
                                                 const ModelConfig& config,
                                                 const ComputeLimits& limits);
#endif

}  // namespace weir
