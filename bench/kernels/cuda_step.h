// The kernels of one step of a model, each callable alone: engine/cuda_recorder.cc's launches over
// memory of the benchmark's own. A test of neither: when the recorder changes, so must this list.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "engine/cuda_inputs.h"
#include "engine/cuda_layout.h"
#include "engine/weight_map.h"
#include "kernels/cuda/decode_attention.h"
#include "kernels/cuda/gemm.h"

namespace weir::bench {

// A batch: |sequences| with |rows| new tokens each, the last of a context of |context| tokens; or,
// spread, of contexts from 1 to twice that, evenly, as sequences of all ages have.
struct StepSpec {
  uint32_t sequences = 1;
  uint32_t rows = 1;  // 1: decode
  uint32_t context = 1;
  bool spread = false;  // decode only, of 2 sequences or more
  bool decode() const { return rows == 1; }
  uint32_t ContextOf(uint32_t sequence) const {
    if (!spread) return context;
    return 1 + static_cast<uint32_t>(uint64_t{2 * context - 1} * sequence / (sequences - 1));
  }
  uint32_t longest() const { return spread ? 2 * context : context; }
  uint64_t BlocksOf(uint32_t sequence) const {
    return CeilDiv(ContextOf(sequence), uint64_t{cuda::kBlockTokens});
  }
  uint64_t blocks() const {
    uint64_t all = 0;
    for (uint32_t i = 0; i < sequences; ++i) all += BlocksOf(i);
    return all;
  }
  std::string Name() const;
};

struct StepOptions {
  cuda::KvOrder kv_order = cuda::KvOrder::kTokenHead;
  bool split_k = true;
  cuda::SkinnyUse skinny = cuda::SkinnyUse::kTimed;  // as CudaCompute
  int candidates = 6;                                // as CudaCompute
  bool own_attention = true;  // a decode step attends with our own kernel, where it has the shape
  // Layers whose weights a product goes through while algorithms are timed; CudaCompute takes 4.
  // 0: as many as make 256 MiB.
  uint32_t tune_layers = 0;
  bool compress_weights = false;  // gate and up, as the engine's option
};

enum class StepPart : uint8_t {
  kBegin,  // once a step, before the layers
  kLayer,  // once a layer
  kEnd,    // once a step, behind them
  // In place of the kernel above it, once a step or once a layer: not in the step.
  kAlternative,
  kLayerAlternative,
};

struct StepKernel {
  std::string name;
  StepPart part = StepPart::kLayer;
  // Of one call: device memory that it must touch once, wherever the caches have it.
  double weight_bytes = 0, kv_bytes = 0, activation_bytes = 0;
  double flops = 0;     // of matrix products
  uint32_t copies = 1;  // sets of memory of its own a layer has (CudaStep::sets, or 1)
  // Layer |layer|'s call, of copy |set|.
  std::function<Status(uint32_t layer, uint32_t set, cuda::Overlap overlap)> enqueue;

  double bytes() const { return weight_bytes + kv_bytes + activation_bytes; }
  // What comes from device memory in any case; activations only where there is nothing else.
  double bound_bytes() const {
    return weight_bytes + kv_bytes > 0 ? weight_bytes + kv_bytes : activation_bytes;
  }
};

// Represents a model's weights, KV pool and step buffers in one range of device memory, and one
// batch at a time. Weights and KV are made up. Layers that do not fit share memory with others.
// Thread: one. Everything runs on one stream.
class CudaStep {
 public:
  // |limits|: the most of all specs. Weights fill what the largest of |specs| leaves, and the KV
  // pool the rest.
  static Result<std::unique_ptr<CudaStep>> Create(const ModelConfig& config,
                                                  const ComputeLimits& limits,
                                                  const std::vector<StepSpec>& specs,
                                                  const StepOptions& options, std::byte* arena,
                                                  uint64_t arena_bytes, cudaStream_t stream);
  ~CudaStep();

  // Makes |spec| the batch: inputs, plan, algorithms. kNoMemory: its KV does not fit for 2 layers.
  Status Load(const StepSpec& spec);
  // Of the loaded batch, as in a step.
  std::vector<StepKernel> Kernels();
  // kDataLoss: the step that ran last produced logits that are no numbers, so that times of it say
  // little. Waits.
  Status CheckSamples() const;

  // Chooses the algorithms for |rows| rows of every product. In Products()' order.
  Status PrepareProducts(int64_t rows, int64_t logit_rows);
  // Layer |layer|'s qkv, o, gate_up, down; then the logits. m is 0.
  std::vector<cuda::GemmParams> Products(uint32_t layer) const;
  cuda::GemmPlanner& gemm() { return *gemm_; }

  uint32_t layers() const { return config_.num_layers; }
  uint32_t weight_layers() const { return static_cast<uint32_t>(map_.layers.size()); }
  uint32_t kv_layers() const { return static_cast<uint32_t>(kv_.layout.layers); }
  uint32_t sets() const { return sets_; }  // copies of the batch's KV, so that it leaves the L2
  int64_t rows() const { return shape_.rows(); }  // with padding
  const std::vector<uint32_t>& decode_buckets() const { return layout_.decode_buckets; }

 private:
  CudaStep(const ModelConfig& config, const ComputeLimits& limits, const StepOptions& options,
           cudaStream_t stream);
  Status Place(const std::vector<StepSpec>& specs, std::byte* arena, uint64_t arena_bytes);
  Status FillWeights();
  Status FillCompressed();
  Status FillRopeTables();
  Status FillInputs(const StepSpec& spec, uint32_t set, bool greedy);
  // FlashInfer's attention of the batch: a plan, and the buffers it lies in.
  struct Attention {
    cuda::AttentionPlan plan;
    cuda::PlanBuffers buffers;
  };
  Status Plan();
  Status PlanFa2Prefill();
  Status PlanWith(cuda::AttentionKernel kernel, Attention* attention) const;
  StepKernel ProductKernel(const char* name, StepPart part, size_t index, int64_t m);
  StepKernel NormKernel(const char* name, StepPart part);
  StepKernel AttentionKernel(StepPart part, const Attention& attention);
  StepKernel OwnAttentionKernel(StepPart part);
  StepKernel FinishQkvKernel();
  StepKernel SampleKernel(const char* name, StepPart part, uint32_t set);

  template <typename T>
  T* Scratch(uint64_t offset) const {
    return reinterpret_cast<T*>(scratch_ + offset);
  }
  template <typename T>
  T* Input(uint32_t set, uint64_t offset) const {
    return reinterpret_cast<T*>(inputs_ + set * layout_.in.bytes + offset);
  }
  template <typename T>
  T* Weights(uint64_t offset) const {
    return offset == LayerOffsets::kAbsent ? nullptr : reinterpret_cast<T*>(weights_ + offset);
  }
  const LayerOffsets& LayerAt(uint32_t layer) const { return map_.layers[layer % weight_layers()]; }

  const ModelConfig config_;
  const ComputeLimits limits_;
  const StepOptions options_;
  cudaStream_t stream_;
  WeightMap map_;  // of the layers that have weights of their own; tied, so without an embedding
  CudaLayout layout_;
  int64_t q_size_ = 0, kv_size_ = 0;
  std::byte* weights_ = nullptr;
  std::byte* scratch_ = nullptr;
  std::byte* pool_ = nullptr;
  uint64_t pool_bytes_ = 0;
  std::byte* inputs_ = nullptr;  // [sets + 1], the last for top-p
  cuda::KvPool kv_;
  uint32_t sets_ = 1;
  StepSpec spec_;
  CudaInputs host_inputs_;
  PinnedBuffer plan_int_;
  CudaStepShape shape_;
  Attention attention_;
  std::optional<Attention> fa2_prefill_;  // beside FA3
  std::byte* fa2_memory_ = nullptr;
  PinnedBuffer fa2_int_;
  cuda::DecodeAttention decode_attention_;
  bool has_own_attention_ = false;  // the GPU and the shape do
  std::unique_ptr<cuda::GemmPlanner> gemm_;
};

}  // namespace weir::bench
