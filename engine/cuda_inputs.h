// CudaInputs: one step's batch as the CUDA back-end's kernels want it, in pinned host memory.
//
// Rows are reordered: sequences with one row first (their attention splits contexts), then the
// others (prefill kernels). Logit rows stay in the batch's order.
#pragma once

#include <memory>
#include <vector>

#include "engine/cuda_layout.h"
#include "kernels/cuda/sampling.h"
#include "pager/gates.h"

namespace weir {

// Pinned host memory.
class PinnedBuffer {
 public:
  static Result<PinnedBuffer> Create(uint64_t bytes);
  PinnedBuffer() = default;
  PinnedBuffer(PinnedBuffer&& other) noexcept : data_(std::exchange(other.data_, nullptr)) {}
  PinnedBuffer& operator=(PinnedBuffer&& other) noexcept {
    std::swap(data_, other.data_);
    return *this;
  }
  ~PinnedBuffer();
  template <typename T>
  T* At(uint64_t offset) const {
    return reinterpret_cast<T*>(data_ + offset);
  }

 private:
  std::byte* data_ = nullptr;
};

// The batch as filled.
struct CudaStepShape {
  uint32_t decode_sequences = 0;  // with one row each; the first rows
  uint32_t prefill_sequences = 0;
  uint32_t prefill_rows = 0;
  uint32_t logit_rows = 0;
  uint32_t bucket = 0;  // > 0: padded to this many sequences, for the captured decode step
  uint64_t decode_pages = 0;
  uint64_t edits = 0;
  bool wants_top_logprobs = false;
  bool armed = false;  // some gate is
  uint32_t rows() const { return bucket > 0 ? bucket : decode_sequences + prefill_rows; }
  // With padding: what attends with one row each.
  uint32_t decode_rows() const { return bucket > 0 ? bucket : decode_sequences; }
  uint32_t sample_rows() const { return bucket > 0 ? bucket : logit_rows; }
};

class CudaInputs {
 public:
  static Result<CudaInputs> Create(const CudaLayout& layout);

  // Of the step with this number. Takes a captured step where every sequence has one row and wants
  // logits. kNoMemory: the batch's penalties and biases are more than fit.
  Result<CudaStepShape> Fill(uint64_t step, const StepBatch& batch, const DeviceGates& gates,
                             const CudaLayout& layout);
  // What PlanAttention is told of the sequences with one row, of the others.
  cuda::AttentionBatch decode(const CudaStepShape& shape, const CudaLayout& layout) const;
  cuda::AttentionBatch prefill(const CudaStepShape& shape, const CudaLayout& layout) const;
  const std::byte* block() const { return block_.At<std::byte>(0); }  // CudaInputLayout::bytes
  const cuda::LogitEdit* edits() const { return edits_.At<cuda::LogitEdit>(0); }

 private:
  void AddTables(const CudaInputLayout::Tables& tables, uint32_t index, const StepSequence& s,
                 std::vector<int32_t>* contexts, uint64_t* pages, uint64_t first_page);
  // Says which part of the block the step needs, and of its results the host.
  void AddressTo(uint64_t step, const CudaStepShape& shape, uint64_t pages,
                 const CudaOutputLayout& out);
  Status AddSample(const StepSequence& s, uint32_t row, CudaStepShape* shape,
                   const CudaLayout& layout);

  PinnedBuffer block_;
  PinnedBuffer edits_;
  const CudaInputLayout* in_ = nullptr;
  std::vector<int32_t> decode_contexts_, prefill_contexts_;
};

}  // namespace weir
