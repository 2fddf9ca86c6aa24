#include <algorithm>
#include <fstream>
#include <iterator>
#include <utility>

#include <cuda_runtime_api.h>

#include "engine/backend.h"
#include "engine/cuda_compute.h"
#include "engine/cuda_graph.h"
#include "engine/cuda_layout.h"
#include "kernels/compressed_weights.h"
#include "kernels/cuda/skinny_gemm.h"
#include "vmm/cuda_driver.h"

namespace weir {
namespace {

// Of the memory that is free at start-up, as vLLM's gpu_memory_utilization; the rest is for what
// the CUDA libraries take behind our back.
constexpr double kShareOfFreeMemory = 0.9;

class CudaBackend final : public Backend {
 public:
  CudaBackend(const ModelConfig& config, const ComputeLimits& limits)
      : config_(config), limits_(limits) {}

  Status Open(const EngineOptions& options) {
    CudaDriverOptions cuda;
    cuda.device = static_cast<int>(options.device_index);
    if (options.backing == BackingChoice::kPeer)
      cuda.peer_device = static_cast<int>(options.peer_index);
    device_ = cuda.device;
    algorithms_ = options.gemm_algorithms;
    algorithm_file_ = options.gemm_algorithm_file;
    decode_attention_ = options.decode_attention;
    if (algorithms_.empty() && !algorithm_file_.empty()) {
      std::ifstream in(algorithm_file_);
      algorithms_.assign(std::istreambuf_iterator<char>(in), {});
    }
    driver_ = WEIR_TRY(CudaDriver::Create(cuda));
    if (const cudaError_t error = cudaSetDevice(device_); error != cudaSuccess) {
      return DriverError(std::string("cudaSetDevice: ") + cudaGetErrorString(error));
    }
    stream_ = WEIR_TRY(driver_->CreateStream("weir-compute"));
    // Memory's own choice for layers so small that it matters here.
    const uint64_t granule =
        options.granule != 0 ? options.granule : driver_->properties().granularity_bytes;
    if (options.compress_weights) WEIR_TRY(CheckCompressed());
    map_ = WeightMap::Make(config_, WeightFormat::kCuda, granule, options.compress_weights);
    const CudaLayout layout = WEIR_TRY(CudaLayout::Make(config_, map_, limits_));
    scratch_bytes_ = layout.bytes;
    activations_ = {layout.hidden, layout.rope_cos - layout.hidden};
    return OkStatus();
  }

  Driver& driver() override { return *driver_; }

  void Describe(MemoryOptions* memory) const override {
    memory->weights = map_.layout;
    memory->scratch_bytes = scratch_bytes_;
    memory->kv_block_bytes = CudaCompute::KvBlockBytes(config_, map_);
    memory->pager.device_gates = true;
    memory->pager.max_steps_under_way = 2;
    memory->map_kv_at_start = true;
    size_t free = 0, total = 0;
    if (memory->hbm_budget_bytes == 0 && memory->kv_wanted_bytes == 0 &&
        cudaMemGetInfo(&free, &total) == cudaSuccess) {
      memory->hbm_budget_bytes =
          static_cast<uint64_t>(kShareOfFreeMemory * static_cast<double>(free));
    }
  }

  Result<WeightLoadReport> Load(const Checkpoint& checkpoint, Memory& memory,
                                const ProgressFn& progress) override {
    return LoadWeights(
        checkpoint, map_, memory.weights(),
        [&](uint64_t done, uint64_t total) {
          if (progress) progress("loading weights", done, total);
        },
        MakeMatrices(memory), driver_.get());
  }

  Status Reload(const Checkpoint& checkpoint, Memory& memory,
                std::span<const WeightRange> ranges) override {
    return ReloadWeights(checkpoint, map_, memory.weights(), ranges, MakeMatrices(memory),
                         driver_.get());
  }

  Result<std::unique_ptr<Compute>> MakeCompute(Memory& memory,
                                               const ProgressFn& progress) override {
    const DeviceGates gates = memory.weights().device_gates();
    std::unique_ptr<CudaCompute> compute = WEIR_TRY(CudaCompute::Create(
        config_, limits_, map_,
        {.weights = memory.weights().base(),
         .kv = memory.kv().base(),
         .kv_block_stride = memory.kv().block_stride(),
         .scratch = memory.scratch(),
         .stream = driver_->native_stream(stream_),
         .produced = gates.produced,
         .consumed = gates.consumed},
        {.device = device_, .algorithms = algorithms_, .decode_attention = decode_attention_},
        [&](uint64_t done, uint64_t total) {
          if (progress) progress("choosing kernels", done, total);
        }));
    if (!algorithm_file_.empty() && compute->algorithms() != algorithms_) {
      std::ofstream out(algorithm_file_, std::ios::trunc);
      out << compute->algorithms();
      if (!out.flush()) return IoError("cannot write gemm_algorithm_file " + algorithm_file_);
    }
    return std::unique_ptr<Compute>(std::move(compute));
  }

 private:
  // Of compress_weights.
  Status CheckCompressed() const {
    cuda::SkinnyGemm products;
    WEIR_TRY(ToStatus(cuda::SkinnyGemm::Create(&products)).WithContext("compress_weights"));
    const cuda::GemmKind gate_up{
        .n = 2 * int64_t{config_.intermediate_size}, .k = config_.hidden_size, .compressed = true};
    if (products.Supports(gate_up, 1)) return OkStatus();
    return Unsupported("compress_weights: hidden_size must be a multiple of " +
                       std::to_string(compressed::kCols) + " and intermediate_size of 2, not " +
                       std::to_string(config_.hidden_size) + " and " +
                       std::to_string(config_.intermediate_size));
  }

  // Made-up matrices, made where a step's activations lie between steps.
  MakeMatrixFn MakeMatrices(Memory& memory) {
    return [this, &memory](const MadeMatrix& matrix) {
      return CudaCompute::MakeWeights(memory.weights(), *driver_,
                                      {.scratch = memory.scratch() + activations_.offset,
                                       .bytes = activations_.bytes,
                                       .stream_id = stream_,
                                       .stream = driver_->native_stream(stream_)},
                                      matrix);
    };
  }

  const ModelConfig config_;
  const ComputeLimits limits_;
  int device_ = 0;
  std::string algorithms_;
  std::string algorithm_file_;
  DecodeAttentionUse decode_attention_ = DecodeAttentionUse::kAuto;
  std::unique_ptr<CudaDriver> driver_;
  StreamId stream_;
  uint64_t scratch_bytes_ = 0;
  // Of the step buffers, what no step leaves for another.
  struct {
    uint64_t offset = 0;
    uint64_t bytes = 0;
  } activations_;
};

}  // namespace

Result<std::unique_ptr<Backend>> MakeCudaBackend(const EngineOptions& options,
                                                 const ModelConfig& config,
                                                 const ComputeLimits& limits) {
  if (options.kv_cache_dtype == KvCacheDtype::kF32) {
    return Unsupported("kv_cache_dtype f32: on a GPU the KV cache is bf16");
  }
  auto backend = std::make_unique<CudaBackend>(config, limits);
  WEIR_TRY(backend->Open(options));
  return std::unique_ptr<Backend>(std::move(backend));
}

}  // namespace weir
