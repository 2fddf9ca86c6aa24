// The launches of CudaStep, in the order of engine/cuda_recorder.cc.
#include <cmath>

#include "bench/kernels/cuda_step.h"
#include "engine/cuda_graph.h"
#include "kernels/cuda/activation.h"
#include "kernels/cuda/embed.h"
#include "kernels/cuda/norm.h"
#include "kernels/cuda/qkv.h"
#include "kernels/cuda/sampling.h"

namespace weir::bench {

using cuda::Bf16;
using cuda::Overlap;

StepKernel CudaStep::ProductKernel(const char* name, StepPart part, size_t index, int64_t m) {
  const cuda::GemmParams p = Products(0)[index];
  const auto rows = static_cast<double>(m);
  const auto n = static_cast<double>(p.kind.n);
  const auto k = static_cast<double>(p.kind.k);
  const double result_bytes = p.kind.type == cuda::GemmOutputType::kF32        ? 4
                              : p.kind.output == cuda::GemmOutput::kAccumulate ? 4  // read as well
                                                                               : 2;
  return {.name = name,
          .part = part,
          .weight_bytes = static_cast<double>(p.kind.WeightBytes()) + (p.kind.bias ? n * 2 : 0),
          .activation_bytes = rows * (k * 2 + n * result_bytes),
          .flops = 2 * rows * n * k,
          .enqueue = [this, index, m](uint32_t layer, uint32_t, Overlap overlap) {
            cuda::GemmParams params = Products(layer)[index];
            params.m = m;
            return ToStatus(gemm_->Run(params, {.stream = stream_, .overlap = overlap}));
          }};
}

StepKernel CudaStep::NormKernel(const char* name, StepPart part) {
  const bool last = part == StepPart::kEnd;
  const bool mlp = std::string(name) == "mlp_norm";
  const int64_t m = last ? shape_.sample_rows() : shape_.rows();
  const int64_t hidden = config_.hidden_size;
  return {.name = name,
          .part = part,
          .activation_bytes = static_cast<double>(m * hidden * 4 + hidden * 4),
          .enqueue = [this, last, mlp, m, hidden](uint32_t layer, uint32_t set, Overlap overlap) {
            const LayerOffsets& w = LayerAt(layer);
            return ToStatus(
                cuda::RmsNorm({.x = Scratch<Bf16>(layout_.hidden),
                               .ldx = hidden,
                               .rows = last ? Input<int32_t>(set, layout_.in.logit_rows) : nullptr,
                               .weight = Weights<float>(last  ? map_.final_norm
                                                        : mlp ? w.mlp_norm
                                                              : w.attn_norm),
                               .eps = config_.rms_norm_eps,
                               .y = Scratch<Bf16>(last ? layout_.gathered : layout_.normed),
                               .ldy = hidden,
                               .m = m,
                               .h = hidden},
                              {.stream = stream_, .overlap = overlap}));
          }};
}

StepKernel CudaStep::FinishQkvKernel() {
  const int64_t m = shape_.rows();
  return {
      .name = "finish_qkv",
      // q is read and written; k and v are read and go to the pool.
      .activation_bytes = static_cast<double>(m * (2 * q_size_ + 4 * kv_size_) * 2),
      .copies = sets_,
      .enqueue = [this, m](uint32_t layer, uint32_t set, Overlap overlap) {
        const LayerOffsets& w = LayerAt(layer);
        return ToStatus(cuda::FinishQkv({.qkv = Scratch<Bf16>(layout_.qkv),
                                         .ldqkv = q_size_ + 2 * kv_size_,
                                         .m = m,
                                         .q_heads = static_cast<int32_t>(config_.num_heads),
                                         .head_dim = static_cast<int32_t>(config_.head_dim),
                                         .q_norm = Weights<float>(w.q_norm),
                                         .k_norm = Weights<float>(w.k_norm),
                                         .eps = config_.rms_norm_eps,
                                         .cos = Scratch<float>(layout_.rope_cos),
                                         .sin = Scratch<float>(layout_.rope_sin),
                                         .max_positions = static_cast<int32_t>(limits_.max_context),
                                         .positions = Input<int32_t>(set, layout_.in.positions),
                                         .slots = Input<int32_t>(set, layout_.in.slots),
                                         .kv = kv_,
                                         .layer = static_cast<int32_t>(layer % kv_layers())},
                                        {.stream = stream_, .overlap = overlap}));
      }};
}

StepKernel CudaStep::AttentionKernel(StepPart part, const Attention& attention) {
  const bool decode = spec_.decode();
  const auto n = static_cast<double>(spec_.sequences);
  const auto rows = static_cast<double>(spec_.rows);
  const auto context = static_cast<double>(spec_.context);
  const double pairs = n * rows * (context - (rows - 1) / 2);
  const bool fa3 = attention.plan.kernel == cuda::AttentionKernel::kFa3;
  return {.name = fa3 ? "attention FA3" : "attention FA2",
          .part = part,
          .kv_bytes = n * context * static_cast<double>(2 * kv_size_ * 2),
          .activation_bytes = n * rows * static_cast<double>(2 * q_size_ * 2),
          .flops = 4 * pairs * static_cast<double>(q_size_),
          .copies = sets_,
          .enqueue = [this, decode, &attention](uint32_t layer, uint32_t set, Overlap overlap) {
            const CudaInputLayout::Tables& tables = decode ? layout_.in.decode : layout_.in.prefill;
            return ToStatus(cuda::RunAttention(
                attention.plan, attention.buffers,
                {.q = Scratch<Bf16>(layout_.qkv),
                 .q_stride = q_size_ + 2 * kv_size_,
                 .out = Scratch<Bf16>(layout_.attended),
                 .scale = 1.0F / std::sqrt(static_cast<float>(config_.head_dim)),
                 .kv = kv_,
                 .layer = static_cast<int32_t>(layer % kv_layers()),
                 .pages = {.blocks = Input<int32_t>(set, layout_.in.pages),
                           .page_indptr = Input<int32_t>(set, tables.page_indptr),
                           .last_page_len = Input<int32_t>(set, tables.last_page_len),
                           .q_indptr = Input<int32_t>(set, tables.q_indptr)}},
                {.stream = stream_, .overlap = overlap}));
          }};
}

StepKernel CudaStep::OwnAttentionKernel(StepPart part) {
  StepKernel kernel = AttentionKernel(part, attention_);
  kernel.name = "attention own";
  kernel.enqueue = [this](uint32_t layer, uint32_t set, Overlap overlap) {
    const CudaInputLayout::Tables& tables = layout_.in.decode;
    return ToStatus(decode_attention_.Run(
        {.q = Scratch<Bf16>(layout_.qkv),
         .q_stride = q_size_ + 2 * kv_size_,
         .out = Scratch<Bf16>(layout_.attended),
         .scale = 1.0F / std::sqrt(static_cast<float>(config_.head_dim)),
         .kv = kv_,
         .layer = static_cast<int32_t>(layer % kv_layers()),
         .sequences = static_cast<int32_t>(shape_.rows()),
         .pages = {.blocks = Input<int32_t>(set, layout_.in.pages),
                   .page_indptr = Input<int32_t>(set, tables.page_indptr),
                   .last_page_len = Input<int32_t>(set, tables.last_page_len)},
         .workspace = Scratch<void>(layout_.decode_workspace)},
        {.stream = stream_, .overlap = overlap}));
  };
  return kernel;
}

StepKernel CudaStep::SampleKernel(const char* name, StepPart part, uint32_t set) {
  const int64_t m = shape_.sample_rows();
  return {.name = name,
          .part = part,
          .activation_bytes = static_cast<double>(m * config_.vocab_size * 4),
          .enqueue = [this, m, set](uint32_t, uint32_t, Overlap overlap) {
            const uint64_t out = layout_.outputs;
            return ToStatus(
                cuda::Sample({.logits = Scratch<float>(layout_.logits),
                              .row = Input<cuda::SampleRow>(set, layout_.in.samples),
                              .edits = Scratch<cuda::LogitEdit>(layout_.edits),
                              .tokens = Scratch<int32_t>(layout_.sampled),
                              .results = Scratch<cuda::SampleResult>(out + layout_.out.results),
                              .top_tokens = Scratch<int32_t>(out + layout_.out.top_tokens),
                              .top_logprobs = Scratch<float>(out + layout_.out.top_logprobs),
                              .rows = m,
                              .vocab = config_.vocab_size},
                             {.stream = stream_, .overlap = overlap}));
          }};
}

std::vector<StepKernel> CudaStep::Kernels() {
  const int64_t m = shape_.rows();
  const int64_t samples = shape_.sample_rows();
  const int64_t hidden = config_.hidden_size;
  const int64_t ffn = config_.intermediate_size;
  auto* log = Scratch<cuda::StepLog>(layout_.outputs + layout_.out.log);
  std::vector<StepKernel> kernels;
  kernels.push_back(
      {.name = "embed",
       .part = StepPart::kBegin,
       .activation_bytes = static_cast<double>(m * hidden * 4),
       .enqueue = [this, m, hidden, log](uint32_t, uint32_t set, Overlap) {
         return ToStatus(cuda::Embed({.table = Weights<Bf16>(map_.embedding),
                                      .tokens = Input<int32_t>(set, layout_.in.tokens),
                                      .sampled = Scratch<int32_t>(layout_.sampled),
                                      .sampled_count = static_cast<int32_t>(limits_.max_sequences),
                                      .vocab = static_cast<int32_t>(config_.vocab_size),
                                      .y = Scratch<Bf16>(layout_.hidden),
                                      .m = m,
                                      .h = hidden,
                                      .begin = log},
                                     {.stream = stream_}));
       }});
  kernels.push_back(NormKernel("attn_norm", StepPart::kLayer));
  kernels.push_back(ProductKernel("qkv", StepPart::kLayer, 0, m));
  kernels.push_back(FinishQkvKernel());
  const bool own = has_own_attention_ && spec_.decode() && m <= cuda::kMaxDecodeSequences;
  if (own && options_.own_attention) {
    kernels.push_back(OwnAttentionKernel(StepPart::kLayer));
    kernels.push_back(AttentionKernel(StepPart::kLayerAlternative, attention_));
  } else {
    kernels.push_back(AttentionKernel(StepPart::kLayer, attention_));
    if (own) kernels.push_back(OwnAttentionKernel(StepPart::kLayerAlternative));
    if (fa2_prefill_) {
      kernels.push_back(AttentionKernel(StepPart::kLayerAlternative, *fa2_prefill_));
    }
  }
  kernels.push_back(ProductKernel("o", StepPart::kLayer, 1, m));
  kernels.push_back(NormKernel("mlp_norm", StepPart::kLayer));
  kernels.push_back(ProductKernel("gate_up", StepPart::kLayer, 2, m));
  kernels.push_back({.name = "silu_mul",
                     .activation_bytes = static_cast<double>(m * 3 * ffn * 2),
                     .enqueue = [this, m, ffn](uint32_t, uint32_t, Overlap overlap) {
                       return ToStatus(cuda::SiluMul({.gate_up = Scratch<Bf16>(layout_.gate_up),
                                                      .y = Scratch<Bf16>(layout_.activated),
                                                      .m = m,
                                                      .f = ffn},
                                                     {.stream = stream_, .overlap = overlap}));
                     }});
  kernels.push_back(ProductKernel("down", StepPart::kLayer, 3, m));
  kernels.push_back(NormKernel("final_norm", StepPart::kEnd));
  kernels.push_back(ProductKernel("logits", StepPart::kEnd, 4, samples));
  kernels.push_back(SampleKernel("sample greedy", StepPart::kEnd, 0));
  kernels.push_back(SampleKernel("sample top-p", StepPart::kAlternative, sets_));
  kernels.push_back({.name = "step_end",
                     .part = StepPart::kEnd,
                     .enqueue = [this, log](uint32_t, uint32_t, Overlap) {
                       return ToStatus(cuda::StepEnd({.log = log}, {.stream = stream_}));
                     }});
  return kernels;
}

}  // namespace weir::bench
