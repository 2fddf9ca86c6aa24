// CudaRecorder: the launches of one step, in order. Capturing and eager steps are the same list.
#pragma once

#include <cmath>
#include <string>
#include <vector>

#include "engine/cuda_inputs.h"
#include "engine/cuda_layout.h"
#include "kernels/cuda/attention.h"
#include "kernels/cuda/decode_attention.h"
#include "kernels/cuda/exchange.h"
#include "kernels/cuda/gates.h"
#include "kernels/cuda/gemm.h"

namespace weir {

// The attention plans of one step; a part that has no sequences, or attends with our own kernel,
// has no plan.
struct CudaStepPlans {
  const cuda::AttentionPlan* decode = nullptr;
  const cuda::AttentionPlan* prefill = nullptr;
};

// Represents the model as launches on one stream. Every pointer is fixed for its life.
class CudaRecorder {
 public:
  CudaRecorder(const ModelConfig& config, const ComputeLimits& limits, const WeightMap& map,
               const CudaLayout& layout, const cuda::DecodeAttention* decode_attention,
               std::byte* weights, cuda::KvPool kv, std::byte* scratch, uint64_t* produced,
               uint64_t* consumed, const cuda::Exchange& exchange, cudaStream_t stream);

  // Chooses the algorithms of every product for up to |rows| rows (up to |logit_rows| of logits).
  Status Prepare(cuda::GemmPlanner& gemm, uint32_t rows, uint32_t logit_rows);
  // Enqueues the step. |capturing|: its pointers go into the digest.
  Status Enqueue(cuda::GemmPlanner& gemm, const CudaStepShape& shape, const CudaStepPlans& plans,
                 bool capturing);
  uint64_t pointer_digest() const { return digest_; }

  cuda::PlanBuffers decode_buffers(void* host_int) const;
  cuda::PlanBuffers prefill_buffers(void* host_int) const;
  // Whether so many sequences with one row each attend with our own kernel: it needs no plan.
  bool AttendsWithOwn(uint32_t decode_rows) const;

 private:
  template <typename T>
  T* Scratch(uint64_t offset) const {
    return reinterpret_cast<T*>(scratch_ + offset);
  }
  template <typename T>
  T* Input(uint64_t offset) const {
    return Scratch<T>(layout_.inputs + offset);
  }
  template <typename T>
  T* Output(uint64_t offset) const {
    return Scratch<T>(layout_.outputs + offset);
  }
  const cuda::Bf16* Matrix(uint64_t offset) const;
  const float* Norm(uint64_t offset) const;
  cuda::GatePoint Gate(int32_t arrive, int32_t depart) const;
  cuda::GemmParams Product(uint64_t weights, uint64_t bias, int64_t n, int64_t k,
                           const cuda::Bf16* x, void* y, cuda::GemmOutput output) const;
  cuda::GemmParams Logits() const;
  std::vector<cuda::GemmParams> ProductsOf(uint32_t layer) const;  // qkv, o, gate_up, down
  // The gate, as products see it that read weights early.
  cuda::WeightGate Before(uint32_t gate) const;
  // A kernel may be placed before the one before it has ended.
  cuda::Launch Early() const { return {.stream = stream_, .overlap = cuda::Overlap::kPrologue}; }
  Status Layer(cuda::GemmPlanner& gemm, uint32_t layer, const CudaStepShape& shape,
               const CudaStepPlans& plans);
  Status Attention(uint32_t layer, const CudaStepShape& shape, const CudaStepPlans& plans);
  Status OwnDecodeAttention(uint32_t layer, uint32_t decode_rows);
  float attention_scale() const { return 1.0F / std::sqrt(static_cast<float>(config_.head_dim)); }
  void Digest(const void* pointer);

  const ModelConfig& config_;
  const ComputeLimits& limits_;
  const WeightMap& map_;
  const CudaLayout& layout_;
  const cuda::DecodeAttention* decode_attention_;  // null: FlashInfer's only
  std::byte* weights_;
  cuda::KvPool kv_;
  std::byte* scratch_;
  cuda::GateTable gates_;
  const cuda::Exchange exchange_;
  cudaStream_t stream_;
  int64_t q_size_, kv_size_;
  bool digesting_ = false;
  uint64_t digest_ = 0xcbf29ce484222325ULL;
};

}  // namespace weir
