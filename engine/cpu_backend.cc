#include <thread>
#include <utility>

#include "engine/backend.h"
#include "engine/cpu_compute.h"
#include "kernels/cpu/thread_pool.h"
#include "vmm/host_driver.h"

namespace weir {
namespace {

class CpuBackend final : public Backend {
 public:
  CpuBackend(const ModelConfig& config, const ComputeLimits& limits, cpu::KvDtype kv_dtype)
      : config_(config), limits_(limits), kv_dtype_(kv_dtype) {
    map_ = WeightMap::Make(config, WeightFormat::kCpu);
  }

  Status Open(const EngineOptions& options) {
    const uint32_t threads =
        options.threads != 0 ? options.threads : std::max(1U, std::thread::hardware_concurrency());
    pool_ = std::make_unique<cpu::ThreadPool>(static_cast<int>(threads));
    HostDriver::Options host;
    host.populate = HostPopulate::kOnSetAccess;  // page faults belong into remaps, not into steps
    host.huge_pages = true;
    driver_ = WEIR_TRY(HostDriver::Create(host));
    return OkStatus();
  }

  Driver& driver() override { return *driver_; }

  void Describe(MemoryOptions* memory) const override {
    memory->weights = map_.layout;
    memory->scratch_bytes = CpuScratchPlan::Make(config_, limits_).bytes;
    memory->kv_block_bytes =
        static_cast<uint64_t>(CpuCompute::KvLayoutOf(config_, kv_dtype_).BlockBytes());
  }

  Result<WeightLoadReport> Load(const Checkpoint& checkpoint, Memory& memory,
                                const ProgressFn& progress) override {
    return LoadWeights(checkpoint, map_, memory.weights(), [&](uint64_t done, uint64_t total) {
      if (progress) progress("loading weights", done, total);
    });
  }

  Status Reload(const Checkpoint& checkpoint, Memory& memory,
                std::span<const WeightRange> ranges) override {
    return ReloadWeights(checkpoint, map_, memory.weights(), ranges);
  }

  Result<std::unique_ptr<Compute>> MakeCompute(Memory& memory, const ProgressFn&) override {
    return std::unique_ptr<Compute>(
        CpuCompute::Create(config_, limits_, map_,
                           {.weights = reinterpret_cast<std::byte*>(memory.weights().base()),
                            .kv = reinterpret_cast<std::byte*>(memory.kv().base()),
                            .kv_block_stride = memory.kv().block_stride(),
                            .scratch = reinterpret_cast<std::byte*>(memory.scratch())},
                           kv_dtype_, *pool_));
  }

 private:
  const ModelConfig config_;
  const ComputeLimits limits_;
  const cpu::KvDtype kv_dtype_;
  std::unique_ptr<cpu::ThreadPool> pool_;
  std::unique_ptr<Driver> driver_;
};

}  // namespace

Result<std::unique_ptr<Backend>> MakeCpuBackend(const EngineOptions& options,
                                                const ModelConfig& config,
                                                const ComputeLimits& limits) {
  const cpu::KvDtype kv_dtype =
      options.kv_cache_dtype == KvCacheDtype::kF32 ? cpu::KvDtype::kF32 : cpu::KvDtype::kBf16;
  if (!CpuCompute::KvLayoutOf(config, kv_dtype).Valid()) {
    return Unsupported("head_dim " + std::to_string(config.head_dim) +
                       ": the CPU back-end takes multiples of 8 from 8 to 256");
  }
  if (options.backing == BackingChoice::kPeer) {
    return Unsupported("backing peer: on the CPU there is no peer device; use host, nvme or none");
  }
  if (options.compress_weights) {
    return Unsupported(
        "compress_weights: on the CPU weights stay as they are; a Hopper GPU takes it");
  }
  auto backend = std::make_unique<CpuBackend>(config, limits, kv_dtype);
  WEIR_TRY(backend->Open(options));
  return std::unique_ptr<Backend>(std::move(backend));
}

}  // namespace weir
