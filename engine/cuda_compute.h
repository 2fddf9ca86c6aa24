// CudaCompute: the model on an NVIDIA GPU.
//
// Represents one recorded step in two forms of the same list of launches: captured as CUDA graphs
// for decode steps, one per bucket of batch sizes, once, in Create; and enqueued launch by launch
// for steps that prefill. Both fetch their inputs to fixed addresses, return their results
// (kernels/cuda/exchange.h) and pass the gates of the weight pager (kernels/cuda/gates.h) by
// themselves. Sampling is part of the step: the next one finds its tokens on the device.
//
// Dense products are cuBLASLt's, algorithms chosen by timing in Create. Sequences with one row
// attend with our own kernel where it takes the shape (kernels/cuda/decode_attention.h), the others
// with FlashInfer's.
// Which algorithm computes a row depends on how many rows the step has, so tokens depend on the
// schedule; the same schedule gives the same bits, whatever the pager does (S2).
//
// Thread: one caller at a time; each call makes the device current. The memory behind |Memory| and
// the stream outlive it.
#pragma once

#include <functional>
#include <memory>

#include "engine/compute.h"
#include "engine/model/model_config.h"
#include "engine/options.h"
#include "engine/weight_loader.h"
#include "engine/weight_map.h"
#include "pager/weight_pager.h"

struct CUstream_st;

namespace weir {

class CudaCompute final : public Compute {
 public:
  struct Memory {
    VirtAddr weights = 0;
    VirtAddr kv = 0;
    uint64_t kv_block_stride = 0;  // bytes
    VirtAddr scratch = 0;          // ScratchBytes
    CUstream_st* stream = nullptr;
    VirtAddr produced = 0, consumed = 0;  // gate words; 0: nothing will ever be away
  };
  struct Options {
    int device = 0;
    // What an earlier Create on this kind of GPU chose (algorithms()); empty: choose by timing.
    std::string algorithms;
    DecodeAttentionUse decode_attention = DecodeAttentionUse::kAuto;
  };

  // kUnsupported: a shape that has no kernels; the message says what is accepted.
  static Result<uint64_t> ScratchBytes(const ModelConfig& config, const WeightMap& map,
                                       const ComputeLimits& limits);
  static uint64_t KvBlockBytes(const ModelConfig& config, const WeightMap& map);
  // Free device memory that MakeWeights overwrites, and the stream it does so on, by both names.
  struct Workplace {
    VirtAddr scratch = 0;
    uint64_t bytes = 0;
    StreamId stream_id;
    CUstream_st* stream = nullptr;
  };
  // Makes a made-up matrix in the weight region; waits.
  static Status MakeWeights(WeightPager& pager, Driver& driver, const Workplace& at,
                            const MadeMatrix& matrix);
  // Chooses algorithms and captures: seconds. The weights are loaded.
  static Result<std::unique_ptr<CudaCompute>> Create(
      const ModelConfig& config, const ComputeLimits& limits, const WeightMap& map,
      const Memory& memory, const Options& options,
      const std::function<void(uint64_t done, uint64_t total)>& progress = {});
  ~CudaCompute() override;

  const ComputeLimits& limits() const override;
  bool schedule_invariant() const override { return false; }
  uint32_t depth() const override { return 2; }
  Status Scrub(std::span<const BlockId> blocks) override;
  Status Submit(const StepBatch& batch, StepGates& gates) override;
  Status Collect(StepOutcome* outcome) override;
  Result<std::vector<float>> ReadLogits(uint32_t row) override;
  uint64_t RecordedPointersDigest() const override;
  uint32_t recordings() const override;
  std::string description() const override;
  uint64_t clock_error_ns() const override;

  std::string algorithms() const;
  // Device memory that the captured steps took.
  uint64_t graph_bytes() const;

 private:
  struct Impl;
  explicit CudaCompute(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace weir
