// CudaDecodeAttention: which kernel attends in the captured decode steps, FlashInfer's or our own
// (kernels/cuda/decode_attention.h), chosen for each bucket once, before it is captured.
//
// Thread: one caller, on one CUDA device.
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <string>

#include "engine/cuda_layout.h"
#include "engine/options.h"
#include "kernels/cuda/decode_attention.h"

namespace weir {

class CudaDecodeAttention {
 public:
  // What both kernels are timed on; all of it is device memory but for the sizes. q and out have
  // |bucket| rows, the tables are for as many sequences and are overwritten, as is |out|.
  struct Trial {
    cuda::AttentionRun run;     // of layer 0 of a pool of one layer; its tables are written
    uint64_t pool_blocks = 0;   // of that pool, readable; the contents do not matter
    uint32_t max_context = 0;   // tokens; the tables hold it for every sequence
    cuda::PlanBuffers buffers;  // of a decode plan
    void* workspace = nullptr;  // of our own kernel
    cudaStream_t stream = nullptr;
  };

  // kUnsupported: kAlways, on a GPU or a shape that has no such kernel; the message says what is
  // accepted. kTimed leaves those to FlashInfer.
  static Result<CudaDecodeAttention> Create(const cuda::AttentionShape& shape,
                                            DecodeAttentionUse use);

  // Chooses for steps of |bucket| sequences. With kTimed, unless it was imported: times both, with
  // contexts of 1,024 tokens (or the most there can be), and takes the faster one. Waits for the
  // stream.
  Status Choose(uint32_t bucket, const Trial& trial);
  // Whether our own kernel was chosen.
  bool UsesOwn(uint32_t bucket) const;
  const cuda::DecodeAttention& own() const { return own_; }

  // What was timed, as lines that begin with kLine, and back. What was imported is exported again,
  // also where this engine has no use for it.
  static constexpr const char* kLine = "attention ";
  std::string Export() const;
  Status Import(const std::string& text);

 private:
  CudaDecodeAttention(const cuda::AttentionShape& shape, DecodeAttentionUse use)
      : shape_(shape), use_(use) {}
  using Key = std::array<uint32_t, 4>;  // q_heads, kv_heads, head_dim, bucket
  Key KeyOf(uint32_t bucket) const;
  bool Supports(uint32_t bucket) const;
  Result<bool> OwnIsFaster(uint32_t bucket, const Trial& trial) const;

  cuda::AttentionShape shape_;
  DecodeAttentionUse use_;
  bool supported_ = false;
  cuda::DecodeAttention own_;
  std::map<Key, bool> timed_;  // or imported; true: our own is faster
};

}  // namespace weir
