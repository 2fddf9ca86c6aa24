#include "engine/cuda_layout.h"

#include <algorithm>

#include "engine/cuda_graph.h"
#include "kernels/cuda/decode_attention.h"
#include "kernels/cuda/exchange_header.h"
#include "kernels/cuda/gates.h"
#include "kernels/cuda/sampling.h"

namespace weir {
namespace {

constexpr uint64_t kAlignment = 256;
constexpr uint64_t kMostEditBytes = 64 * kMiB;

class Cursor {
 public:
  uint64_t Take(uint64_t bytes) {
    const uint64_t at = offset_;
    offset_ = AlignUp(offset_ + bytes, kAlignment);
    return at;
  }
  uint64_t offset() const { return offset_; }

 private:
  uint64_t offset_ = 0;
};

// A captured decode step runs for the next larger of these; what is added is padding. Close
// together where a row more costs time, so that little of it is wasted.
std::vector<uint32_t> DecodeBuckets(uint32_t max_sequences) {
  std::vector<uint32_t> buckets;
  for (uint32_t b = 1; b < max_sequences; b += b < 4 ? b : b < 8 ? 4 : b < 256 ? 8 : 16) {
    buckets.push_back(b);
  }
  buckets.push_back(max_sequences);
  return buckets;
}

CudaInputLayout::Tables TakeTables(Cursor& at, uint64_t sequences) {
  CudaInputLayout::Tables t;
  t.q_indptr = at.Take((sequences + 1) * 4);
  t.page_indptr = at.Take((sequences + 1) * 4);
  t.last_page_len = at.Take(sequences * 4);
  return t;
}

}  // namespace

cuda::AttentionShape AttentionShapeOf(const ModelConfig& c, const WeightMap& map) {
  return {.q_heads = static_cast<int32_t>(c.num_heads),
          .kv_heads = static_cast<int32_t>(c.num_kv_heads),
          .head_dim = static_cast<int32_t>(map.head_stride)};
}

cuda::KvLayout CudaKvLayoutOf(const ModelConfig& c, const WeightMap& map) {
  return {.layers = static_cast<int32_t>(c.num_layers),
          .kv_heads = static_cast<int32_t>(c.num_kv_heads),
          .head_dim = static_cast<int32_t>(map.head_stride)};
}

Result<CudaLayout> CudaLayout::Make(const ModelConfig& c, const WeightMap& map,
                                    const ComputeLimits& limits) {
  CudaLayout l;
  l.decode_buckets = DecodeBuckets(limits.max_sequences);
  const uint64_t sequences = limits.max_sequences;
  const uint64_t rows = std::max<uint64_t>(limits.max_rows, sequences);
  const uint64_t gates = map.layout.gates();
  const uint64_t vocab = AlignUp(c.vocab_size, 4);
  const uint64_t q_size = uint64_t{c.num_heads} * map.head_stride;
  const uint64_t kv_size = uint64_t{c.num_kv_heads} * map.head_stride;

  Cursor in;
  l.in.exchange = in.Take(sizeof(cuda::ExchangeHeader));
  l.in.gate_header = in.Take(sizeof(cuda::GateHeader));
  l.in.chunk_of_gate = in.Take(gates * 4);
  l.in.tokens = in.Take(rows * 4);
  l.in.positions = in.Take(rows * 4);
  l.in.slots = in.Take(rows * 4);
  l.in.logit_rows = in.Take(sequences * 4);
  l.in.samples = in.Take(sequences * sizeof(cuda::SampleRow));
  l.in.decode = TakeTables(in, sequences);
  l.in.prefill = TakeTables(in, sequences);
  l.in.pages = in.Take(sequences * CeilDiv(limits.max_context, cuda::kBlockTokens) * 4);
  l.in.bytes = in.offset();

  Cursor out;
  l.out.step = out.Take(sizeof(uint64_t));
  l.out.log = out.Take(sizeof(cuda::StepLog));
  l.out.results = out.Take(sequences * sizeof(cuda::SampleResult));
  l.out.gate_records = out.Take(gates * sizeof(cuda::GateRecord));
  l.out.top_tokens = out.Take(sequences * cuda::kMaxTopLogprobs * 4);
  l.out.top_logprobs = out.Take(sequences * cuda::kMaxTopLogprobs * 4);
  l.out.bytes = out.offset();

  // The most that any plan of a step needs.
  const cuda::AttentionShape shape = AttentionShapeOf(c, map);
  const auto add = [&](cuda::AttentionKernel kernel, cuda::PlanUse use, uint64_t n, uint64_t m,
                       uint64_t* int_bytes) -> Status {
    cuda::PlanSizes sizes;
    WEIR_TRY(ToStatus(cuda::AttentionPlanSizes(kernel, shape, use, static_cast<int32_t>(n),
                                               static_cast<int32_t>(m), &sizes)));
    *int_bytes = std::max<uint64_t>(*int_bytes, sizes.int_bytes);
    l.plan_float_bytes = std::max<uint64_t>(l.plan_float_bytes, sizes.float_bytes);
    return OkStatus();
  };
  using cuda::AttentionKernel;
  using cuda::PlanUse;
  WEIR_TRY(
      add(AttentionKernel::kFa2, PlanUse::kDecodeGraph, sequences, sequences, &l.decode_int_bytes));
  WEIR_TRY(add(AttentionKernel::kFa2, PlanUse::kEager, sequences, sequences, &l.decode_int_bytes));
  for (const AttentionKernel kernel : {AttentionKernel::kFa2, AttentionKernel::kFa3}) {
    if (!cuda::AttentionKernelAvailable(kernel)) continue;
    WEIR_TRY(add(kernel, PlanUse::kEager, std::min(sequences, rows), rows, &l.prefill_int_bytes));
  }

  cuda::DecodeAttention decode;
  const cuda::LaunchStatus own = cuda::DecodeAttention::Create(shape, &decode);
  if (own.code() != cudaErrorNotSupported) WEIR_TRY(ToStatus(own));
  l.decode_workspace_bytes = own.ok() ? decode.workspace_bytes() : 0;

  Cursor at;
  l.inputs = at.Take(l.in.bytes);
  l.outputs = at.Take(l.out.bytes);
  l.turn = at.Take(sizeof(uint32_t));
  l.sampled = at.Take(sequences * 4);
  // Any one sequence's, and about what all of them are likely to need: who does not fit waits.
  l.max_edits = std::max<uint64_t>(
      c.vocab_size,
      std::min(sequences * std::min<uint64_t>(c.vocab_size, limits.max_context + 1024),
               kMostEditBytes / sizeof(cuda::LogitEdit)));
  l.edits = at.Take(l.max_edits * sizeof(cuda::LogitEdit));
  l.hidden = at.Take(rows * c.hidden_size * 2);
  l.normed = at.Take(rows * c.hidden_size * 2);
  l.qkv = at.Take(rows * (q_size + 2 * kv_size) * 2);
  l.attended = at.Take(rows * q_size * 2);
  l.gate_up = at.Take(rows * 2 * c.intermediate_size * 2);
  l.activated = at.Take(rows * c.intermediate_size * 2);
  l.gathered = at.Take(sequences * c.hidden_size * 2);
  // Weights are expanded before there are logits.
  l.expanded_bytes = std::max(sequences * vocab * 4, map.compressed ? kLeastExpandedBytes : 0);
  l.logits = l.expanded = at.Take(l.expanded_bytes);
  l.rope_cos = at.Take(uint64_t{limits.max_context} * (c.head_dim / 2) * 4);
  l.rope_sin = at.Take(uint64_t{limits.max_context} * (c.head_dim / 2) * 4);
  l.gemm_workspace = at.Take(kGemmWorkspaceBytes);
  l.plan_float = at.Take(l.plan_float_bytes);
  l.decode_int = at.Take(l.decode_int_bytes);
  l.prefill_int = at.Take(l.prefill_int_bytes);
  l.decode_workspace = at.Take(l.decode_workspace_bytes);
  l.bytes = at.offset();
  return l;
}

}  // namespace weir
