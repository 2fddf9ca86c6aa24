#include "engine/cpu_compute.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstring>
#include <string>

#include "kernels/cpu/isa.h"

namespace weir {
namespace {

constexpr uint64_t kAlignment = 64;
// Long decode contexts are spread over spans when this much scratch is there for the partials.
constexpr int64_t kAttentionSpreadTokens = 64 * 1024;

// Combines digests of pointers (FNV-1a over the bytes of each address).
class PointerDigest {
 public:
  void Add(const void* p) {
    const auto address = reinterpret_cast<uintptr_t>(p);
    for (unsigned shift = 0; shift < 64; shift += 8) {
      hash_ = (hash_ ^ ((address >> shift) & 0xff)) * 0x100000001b3ULL;
    }
  }
  uint64_t value() const { return hash_; }

 private:
  uint64_t hash_ = 0xcbf29ce484222325ULL;
};

}  // namespace

CpuScratchPlan CpuScratchPlan::Make(const ModelConfig& c, const ComputeLimits& l) {
  CpuScratchPlan plan;
  uint64_t at = 0;
  const auto take = [&at](uint64_t size) {
    const uint64_t offset = at;
    at = AlignUp(at + size, kAlignment);
    return offset;
  };
  const uint64_t rows = l.max_rows;
  const uint64_t sequences = l.max_sequences;
  const uint64_t half = c.head_dim / 2;
  plan.hidden = take(rows * c.hidden_size * 4);
  plan.normed = take(rows * c.hidden_size * 4);
  plan.qkv = take(rows * (c.q_size() + 2 * c.kv_size()) * 4);
  plan.attended = take(rows * c.q_size() * 4);
  plan.gate_up = take(rows * 2 * c.intermediate_size * 4);
  plan.gathered = take(sequences * c.hidden_size * 4);
  plan.logits = take(sequences * c.vocab_size * 4);
  plan.rope_cos = take(l.max_context * half * 4);
  plan.rope_sin = take(l.max_context * half * 4);
  plan.tokens = take(rows * 4);
  plan.positions = take(rows * 4);
  plan.slots = take(rows * 8);
  plan.logit_rows = take(sequences * 4);
  plan.block_tables = take(sequences * CeilDiv(l.max_context, cpu::kBlockTokens) * 4);
  plan.sequences = take(sequences * sizeof(cpu::AttentionSeq));
  plan.attention_bytes = cpu::AttentionScratchBytes(
      static_cast<int64_t>(sequences), std::min<int64_t>(kAttentionSpreadTokens, l.max_context),
      c.num_heads, c.head_dim);
  plan.attention = take(plan.attention_bytes);
  plan.bytes = at;
  return plan;
}

cpu::KvLayout CpuCompute::KvLayoutOf(const ModelConfig& c, cpu::KvDtype dtype) {
  return {
      .layers = c.num_layers, .kv_heads = c.num_kv_heads, .head_dim = c.head_dim, .dtype = dtype};
}

std::unique_ptr<CpuCompute> CpuCompute::Create(const ModelConfig& config,
                                               const ComputeLimits& limits,
                                               const WeightMap& weights, const Memory& memory,
                                               cpu::KvDtype kv_dtype, cpu::ThreadPool& pool) {
  std::unique_ptr<CpuCompute> compute(new CpuCompute(config, limits, memory, kv_dtype, pool));
  compute->Record(weights);
  return compute;
}

CpuCompute::CpuCompute(const ModelConfig& config, const ComputeLimits& limits, const Memory& memory,
                       cpu::KvDtype kv_dtype, cpu::ThreadPool& pool)
    : config_(config),
      limits_(limits),
      memory_(memory),
      plan_(CpuScratchPlan::Make(config, limits)),
      kv_{memory.kv, static_cast<int64_t>(memory.kv_block_stride), KvLayoutOf(config, kv_dtype)},
      pool_(pool) {}

CpuCompute::~CpuCompute() = default;

const float* CpuCompute::Floats(uint64_t offset) const {
  if (offset == LayerOffsets::kAbsent) return nullptr;
  return reinterpret_cast<const float*>(memory_.weights + offset);
}

const uint16_t* CpuCompute::Panels(uint64_t offset) const {
  return reinterpret_cast<const uint16_t*>(memory_.weights + offset);
}

void CpuCompute::Record(const WeightMap& w) {
  ++recordings_;
  const std::vector<float> frequencies = RopeInverseFrequencies(config_);
  cpu::FillRopeTable(frequencies.data(), config_.head_dim / 2, 0, limits_.max_context,
                     RopeAttentionScale(config_), Scratch<float>(plan_.rope_cos),
                     Scratch<float>(plan_.rope_sin));
  const int64_t hidden = config_.hidden_size;
  ops_.push_back(EmbedOp{{.table = Panels(w.embedding),
                          .h = hidden,
                          .ids = Scratch<int32_t>(plan_.tokens),
                          .y = Scratch<float>(plan_.hidden),
                          .ldy = hidden}});
  for (uint32_t layer = 0; layer < config_.num_layers; ++layer) RecordLayer(w.layers[layer], layer);
  ops_.push_back(GatherOp{Scratch<float>(plan_.hidden), Scratch<int32_t>(plan_.logit_rows),
                          Scratch<float>(plan_.gathered)});
  ops_.push_back(LogitNormOp{{.x = Scratch<float>(plan_.gathered),
                              .ldx = hidden,
                              .weight = Floats(w.final_norm),
                              .eps = config_.rms_norm_eps,
                              .y = Scratch<float>(plan_.gathered),
                              .ldy = hidden,
                              .h = hidden}});
  ops_.push_back(LogitsOp{{.x = Scratch<float>(plan_.gathered),
                           .ldx = hidden,
                           .weights = Panels(w.lm_head),
                           .y = Scratch<float>(plan_.logits),
                           .ldy = config_.vocab_size,
                           .n = config_.vocab_size,
                           .k = hidden}});
}

void CpuCompute::RecordLayer(const LayerOffsets& w, uint32_t layer) {
  const int64_t hidden = config_.hidden_size;
  const int64_t head_dim = config_.head_dim;
  const int64_t q_size = config_.q_size();
  const int64_t kv_size = config_.kv_size();
  const int64_t qkv_size = q_size + 2 * kv_size;
  const int64_t ffn = config_.intermediate_size;
  const float eps = config_.rms_norm_eps;
  const uint32_t first_gate = layer * kSegmentsPerLayer;
  float* x = Scratch<float>(plan_.hidden);
  float* normed = Scratch<float>(plan_.normed);
  float* qkv = Scratch<float>(plan_.qkv);
  float* attended = Scratch<float>(plan_.attended);
  float* gate_up = Scratch<float>(plan_.gate_up);
  const auto norm = [&](const float* weight) {
    return NormOp{{.x = x,
                   .ldx = hidden,
                   .weight = weight,
                   .eps = eps,
                   .y = normed,
                   .ldy = hidden,
                   .h = hidden}};
  };
  const auto gemm = [](const float* in, int64_t ldx, const uint16_t* weights, const float* bias,
                       float* out, int64_t n, int64_t k, cpu::GemmOutput output) {
    return GemmOp{{.x = in,
                   .ldx = ldx,
                   .weights = weights,
                   .bias = bias,
                   .y = out,
                   .ldy = n,
                   .n = n,
                   .k = k,
                   .output = output}};
  };

  // Attention. The norm runs before the gate: it reads no gated byte and gives the copy more time.
  ops_.push_back(norm(Floats(w.attn_norm)));
  ops_.push_back(ArriveOp{first_gate});
  ops_.push_back(gemm(normed, hidden, Panels(w.qkv), Floats(w.qkv_bias), qkv, qkv_size, hidden,
                      cpu::GemmOutput::kOverwrite));
  if (config_.qk_norm) {
    ops_.push_back(HeadNormOp{{.x = qkv,
                               .row_stride = qkv_size,
                               .weight = Floats(w.q_norm),
                               .eps = eps,
                               .heads = config_.num_heads,
                               .head_dim = head_dim}});
    ops_.push_back(HeadNormOp{{.x = qkv + q_size,
                               .row_stride = qkv_size,
                               .weight = Floats(w.k_norm),
                               .eps = eps,
                               .heads = config_.num_kv_heads,
                               .head_dim = head_dim}});
  }
  ops_.push_back(RopeOp{{.x = qkv,
                         .row_stride = qkv_size,
                         .heads = config_.num_heads + config_.num_kv_heads,
                         .head_dim = head_dim,
                         .rotary_dim = head_dim,
                         .positions = Scratch<int32_t>(plan_.positions),
                         .cos = Scratch<float>(plan_.rope_cos),
                         .sin = Scratch<float>(plan_.rope_sin)}});
  ops_.push_back(AppendOp{{.k = qkv + q_size,
                           .v = qkv + q_size + kv_size,
                           .row_stride = qkv_size,
                           .layer = layer,
                           .slots = Scratch<int64_t>(plan_.slots)}});
  ops_.push_back(AttentionOp{{.q = qkv,
                              .q_stride = qkv_size,
                              .out = attended,
                              .out_stride = q_size,
                              .q_heads = config_.num_heads,
                              .layer = layer,
                              .scale = 1.0F / std::sqrt(static_cast<float>(head_dim)),
                              .seqs = Scratch<cpu::AttentionSeq>(plan_.sequences),
                              .scratch = Scratch<std::byte>(plan_.attention),
                              .scratch_bytes = plan_.attention_bytes}});
  ops_.push_back(gemm(attended, q_size, Panels(w.o), Floats(w.o_bias), x, hidden, q_size,
                      cpu::GemmOutput::kAccumulate));
  ops_.push_back(DepartOp{first_gate});

  // MLP.
  ops_.push_back(norm(Floats(w.mlp_norm)));
  ops_.push_back(ArriveOp{first_gate + 1});
  ops_.push_back(gemm(normed, hidden, Panels(w.gate_up), Floats(w.gate_up_bias), gate_up, 2 * ffn,
                      hidden, cpu::GemmOutput::kOverwrite));
  ops_.push_back(DepartOp{first_gate + 1});
  ops_.push_back(SiluOp{
      {.gate_up = gate_up, .ld_gate_up = 2 * ffn, .y = gate_up, .ldy = 2 * ffn, .ffn = ffn}});
  ops_.push_back(ArriveOp{first_gate + 2});
  ops_.push_back(gemm(gate_up, 2 * ffn, Panels(w.down), Floats(w.down_bias), x, hidden, ffn,
                      cpu::GemmOutput::kAccumulate));
  ops_.push_back(DepartOp{first_gate + 2});
  ops_.push_back(LayerEndOp{layer});
}

void CpuCompute::FillInputs(const StepBatch& batch) {
  rows_ = batch.rows();
  sequences_ = static_cast<int64_t>(batch.sequences.size());
  logit_count_ = 0;
  std::copy(batch.tokens.begin(), batch.tokens.end(), Scratch<int32_t>(plan_.tokens));
  std::copy(batch.positions.begin(), batch.positions.end(), Scratch<int32_t>(plan_.positions));
  auto* slots = Scratch<int64_t>(plan_.slots);
  auto* tables = Scratch<int32_t>(plan_.block_tables);
  auto* logit_rows = Scratch<int32_t>(plan_.logit_rows);
  auto* sequences = Scratch<cpu::AttentionSeq>(plan_.sequences);
  const uint64_t table_stride = CeilDiv(limits_.max_context, cpu::kBlockTokens);
  for (size_t i = 0; i < batch.sequences.size(); ++i) {
    const StepSequence& s = batch.sequences[i];
    int32_t* table = tables + i * table_stride;
    std::copy(s.blocks.begin(), s.blocks.end(), table);
    sequences[i] = {.q_begin = s.first_row,
                    .q_end = s.first_row + s.rows,
                    .context = s.context,
                    .blocks = table};
    for (uint32_t r = s.first_row; r < s.first_row + s.rows; ++r) {
      const int64_t position = batch.positions[r];
      slots[r] = int64_t{table[position / cpu::kBlockTokens]} * cpu::kBlockTokens +
                 position % cpu::kBlockTokens;
    }
    if (s.wants_logits) {
      logit_rows[logit_count_++] = static_cast<int32_t>(s.first_row + s.rows - 1);
    }
  }
}

Status CpuCompute::Scrub(std::span<const BlockId> blocks) {
  const auto stride = static_cast<size_t>(kv_.block_stride_bytes);
  return ForEachRun(blocks, [&](BlockId first, size_t n) -> Status {
    std::memset(static_cast<std::byte*>(kv_.base) + first * stride, 0, n * stride);
    return OkStatus();
  });
}

Status CpuCompute::Submit(const StepBatch& batch, StepGates& gates) {
  WEIR_CHECK(batch.rows() > 0 && batch.rows() <= limits_.max_rows, "step rows");
  WEIR_CHECK(batch.sequences.size() <= limits_.max_sequences, "step sequences");
  outcome_ = {};
  const auto start = std::chrono::steady_clock::now();
  FillInputs(batch);
  WEIR_TRY(Replay(gates));
  outcome_.compute_ns = static_cast<uint64_t>((std::chrono::steady_clock::now() - start).count());
  SampleOnHost(
      batch, sampler_, [this](uint32_t row) { return logits(row); }, &outcome_);
  return OkStatus();
}

Status CpuCompute::Collect(StepOutcome* outcome) {
  *outcome = std::move(outcome_);
  return OkStatus();
}

Result<std::vector<float>> CpuCompute::ReadLogits(uint32_t row) {
  const std::span<const float> have = logits(row);
  return std::vector<float>(have.begin(), have.end());
}

Status CpuCompute::Replay(StepGates& gates) {
  struct Player {
    CpuCompute& c;
    StepGates& gates;
    Status operator()(EmbedOp op) {
      op.p.m = c.rows_;
      cpu::EmbedPacked(op.p, c.pool_);
      return {};
    }
    Status operator()(NormOp op) {
      op.p.m = c.rows_;
      cpu::RmsNorm(op.p, c.pool_);
      return {};
    }
    Status operator()(HeadNormOp op) {
      op.p.m = c.rows_;
      cpu::HeadRmsNorm(op.p, c.pool_);
      return {};
    }
    Status operator()(GemmOp op) {
      op.p.m = c.rows_;
      cpu::Gemm(op.p, c.pool_);
      return {};
    }
    Status operator()(RopeOp op) {
      op.p.m = c.rows_;
      cpu::ApplyRope(op.p, c.pool_);
      return {};
    }
    Status operator()(AppendOp op) {
      op.p.m = c.rows_;
      cpu::KvAppend(c.kv_, op.p, c.pool_);
      return {};
    }
    Status operator()(AttentionOp op) {
      op.p.num_seqs = c.sequences_;
      cpu::PagedAttention(c.kv_, op.p, c.pool_);
      return {};
    }
    Status operator()(SiluOp op) {
      op.p.m = c.rows_;
      cpu::SiluMul(op.p, c.pool_);
      return {};
    }
    Status operator()(GatherOp op) {
      const int64_t hidden = c.config_.hidden_size;
      cpu::GatherRows(op.x, hidden, op.rows, c.logit_count_, hidden, op.y, hidden);
      return {};
    }
    Status operator()(LogitNormOp op) {
      op.p.m = c.logit_count_;
      cpu::RmsNorm(op.p, c.pool_);
      return {};
    }
    Status operator()(LogitsOp op) {
      op.p.m = c.logit_count_;
      if (op.p.m > 0) cpu::Gemm(op.p, c.pool_);
      return {};
    }
    Status operator()(ArriveOp op) { return gates.Arrive(op.gate); }
    Status operator()(DepartOp op) {
      gates.Depart(op.gate);
      return {};
    }
    Status operator()(LayerEndOp op) {
      if (c.probe_) {
        const auto n = static_cast<size_t>(c.rows_) * c.config_.hidden_size;
        c.probe_(op.layer, {c.Scratch<float>(c.plan_.hidden), n});
      }
      return {};
    }
  };
  Player player{*this, gates};
  for (const Op& op : ops_) {
    Status status = std::visit(player, op);
    if (!status.ok()) return status;
  }
  return {};
}

std::span<float> CpuCompute::logits(uint32_t row) {
  WEIR_CHECK(row < logit_count_, "no such row of logits in the last step");
  return {Scratch<float>(plan_.logits) + size_t{row} * config_.vocab_size, config_.vocab_size};
}

uint64_t CpuCompute::RecordedPointersDigest() const {
  PointerDigest digest;
  digest.Add(kv_.base);
  const auto add = [&digest](auto... pointers) { (digest.Add(pointers), ...); };
  struct Walker {
    decltype(add)& a;
    void operator()(const EmbedOp& o) { a(o.p.table, o.p.ids, o.p.y); }
    void operator()(const NormOp& o) { a(o.p.x, o.p.weight, o.p.y); }
    void operator()(const HeadNormOp& o) { a(o.p.x, o.p.weight); }
    void operator()(const GemmOp& o) { a(o.p.x, o.p.weights, o.p.bias, o.p.y); }
    void operator()(const RopeOp& o) { a(o.p.x, o.p.positions, o.p.cos, o.p.sin); }
    void operator()(const AppendOp& o) { a(o.p.k, o.p.v, o.p.slots); }
    void operator()(const AttentionOp& o) { a(o.p.q, o.p.out, o.p.seqs, o.p.scratch); }
    void operator()(const SiluOp& o) { a(o.p.gate_up, o.p.y); }
    void operator()(const GatherOp& o) { a(o.x, o.rows, o.y); }
    void operator()(const LogitNormOp& o) { a(o.p.x, o.p.weight, o.p.y); }
    void operator()(const LogitsOp& o) { a(o.p.x, o.p.weights, o.p.y); }
    void operator()(const ArriveOp&) {}
    void operator()(const DepartOp&) {}
    void operator()(const LayerEndOp&) {}
  };
  for (const Op& op : ops_) std::visit(Walker{add}, op);
  return digest.value();
}

std::string CpuCompute::description() const {
  return "cpu " + std::string(cpu::IsaName(cpu::ActiveIsa())) + ", " +
         std::to_string(pool_.threads()) + (pool_.threads() == 1 ? " thread" : " threads");
}

}  // namespace weir
