// CpuCompute: the model on the CPU, as a recorded list of kernel calls on fixed pointers.
//
// Represents one recorded step. Recording happens once, in Create; Run fills the fixed input
// buffers and replays. Weights are read at their addresses in the weight region, between Arrive and
// Depart of their segment's gate; KV at the arena's. Every kernel has a fixed reduction order
// (kernels/cpu/), so a sequence's logits do not depend on what else is in the batch, on chunking,
// on paging or on threads (S2). Thread: one caller; kernels use |pool|.
#pragma once

#include <functional>
#include <memory>
#include <variant>

#include "engine/compute.h"
#include "engine/model/model_config.h"
#include "engine/weight_map.h"
#include "kernels/cpu/attention.h"
#include "kernels/cpu/elementwise.h"
#include "kernels/cpu/gemm.h"
#include "kernels/cpu/kv.h"
#include "kernels/cpu/norm.h"
#include "kernels/cpu/rope.h"
#include "kernels/cpu/thread_pool.h"

namespace weir {

// Step buffers, all in one block of memory handed in by the caller (scratch granules).
struct CpuScratchPlan {
  uint64_t hidden = 0, normed = 0, qkv = 0, attended = 0, gate_up = 0, gathered = 0, logits = 0;
  uint64_t rope_cos = 0, rope_sin = 0;
  uint64_t tokens = 0, positions = 0, slots = 0, logit_rows = 0, block_tables = 0, sequences = 0;
  uint64_t attention = 0, attention_bytes = 0;
  uint64_t bytes = 0;
  static CpuScratchPlan Make(const ModelConfig& config, const ComputeLimits& limits);
};

class CpuCompute final : public Compute {
 public:
  struct Memory {
    std::byte* weights = nullptr;  // base of the weight region
    std::byte* kv = nullptr;       // base of the KV region
    uint64_t kv_block_stride = 0;
    std::byte* scratch = nullptr;  // CpuScratchPlan::bytes
  };
  static std::unique_ptr<CpuCompute> Create(const ModelConfig& config, const ComputeLimits& limits,
                                            const WeightMap& weights, const Memory& memory,
                                            cpu::KvDtype kv_dtype, cpu::ThreadPool& pool);
  ~CpuCompute() override;

  const ComputeLimits& limits() const override { return limits_; }
  // Runs the step to its end and samples; Collect hands the outcome over.
  Status Scrub(std::span<const BlockId> blocks) override;
  Status Submit(const StepBatch& batch, StepGates& gates) override;
  Status Collect(StepOutcome* outcome) override;
  Result<std::vector<float>> ReadLogits(uint32_t row) override;
  uint64_t RecordedPointersDigest() const override;
  uint32_t recordings() const override { return recordings_; }
  std::string description() const override;

  // Called after each decoder layer with the residual stream [rows, hidden]; for tests that compare
  // with a reference. Not part of the recording.
  using LayerProbe = std::function<void(uint32_t layer, std::span<const float> hidden)>;
  void set_layer_probe(LayerProbe probe) { probe_ = std::move(probe); }

  static cpu::KvLayout KvLayoutOf(const ModelConfig& config, cpu::KvDtype dtype);

 private:
  // The recorded operations. Row counts are read from |rows_| and |logit_count_| at replay.
  struct EmbedOp {
    cpu::EmbedParams p;
  };
  struct NormOp {
    cpu::RmsNormParams p;
  };
  struct HeadNormOp {
    cpu::HeadRmsNormParams p;
  };
  struct GemmOp {
    cpu::GemmParams p;
  };
  struct RopeOp {
    cpu::RopeParams p;
  };
  struct AppendOp {
    cpu::KvAppendParams p;
  };
  struct AttentionOp {
    cpu::AttentionParams p;
  };
  struct SiluOp {
    cpu::SiluMulParams p;
  };
  struct GatherOp {
    const float* x;
    const int32_t* rows;
    float* y;
  };
  struct LogitsOp {
    cpu::GemmParams p;
  };
  struct LogitNormOp {
    cpu::RmsNormParams p;
  };
  struct ArriveOp {
    uint32_t gate;
  };
  struct DepartOp {
    uint32_t gate;
  };
  struct LayerEndOp {
    uint32_t layer;
  };
  using Op = std::variant<EmbedOp, NormOp, HeadNormOp, GemmOp, RopeOp, AppendOp, AttentionOp,
                          SiluOp, GatherOp, LogitsOp, LogitNormOp, ArriveOp, DepartOp, LayerEndOp>;

  CpuCompute(const ModelConfig& config, const ComputeLimits& limits, const Memory& memory,
             cpu::KvDtype kv_dtype, cpu::ThreadPool& pool);
  void Record(const WeightMap& weights);
  void RecordLayer(const LayerOffsets& w, uint32_t layer);
  void FillInputs(const StepBatch& batch);
  Status Replay(StepGates& gates);
  std::span<float> logits(uint32_t row);
  const float* Floats(uint64_t offset) const;  // of the weight region; null when absent
  const uint16_t* Panels(uint64_t offset) const;
  template <typename T>
  T* Scratch(uint64_t offset) const {
    return reinterpret_cast<T*>(memory_.scratch + offset);
  }

  ModelConfig config_;
  ComputeLimits limits_;
  Memory memory_;
  CpuScratchPlan plan_;
  cpu::KvPool kv_;
  cpu::ThreadPool& pool_;
  std::vector<Op> ops_;
  uint32_t recordings_ = 0;
  LayerProbe probe_;
  Sampler sampler_;
  StepOutcome outcome_;
  // This step's sizes: the only thing besides buffer contents that differs between replays.
  int64_t rows_ = 0;
  int64_t logit_count_ = 0;
  int64_t sequences_ = 0;
};

}  // namespace weir
