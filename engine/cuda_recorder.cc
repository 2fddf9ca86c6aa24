#include "engine/cuda_recorder.h"

#include "engine/cuda_graph.h"
#include "kernels/cuda/activation.h"
#include "kernels/cuda/embed.h"
#include "kernels/cuda/norm.h"
#include "kernels/cuda/qkv.h"
#include "kernels/cuda/sampling.h"

namespace weir {

using cuda::Bf16;

CudaRecorder::CudaRecorder(const ModelConfig& config, const ComputeLimits& limits,
                           const WeightMap& map, const CudaLayout& layout,
                           const cuda::DecodeAttention* decode_attention, std::byte* weights,
                           cuda::KvPool kv, std::byte* scratch, uint64_t* produced,
                           uint64_t* consumed, const cuda::Exchange& exchange, cudaStream_t stream)
    : config_(config),
      limits_(limits),
      map_(map),
      layout_(layout),
      decode_attention_(decode_attention),
      weights_(weights),
      kv_(kv),
      scratch_(scratch),
      exchange_(exchange),
      stream_(stream),
      q_size_(int64_t{config.num_heads} * map.head_stride),
      kv_size_(int64_t{config.num_kv_heads} * map.head_stride) {
  gates_ = {.produced = produced,
            .consumed = consumed,
            .chunk_of_gate = Input<int32_t>(layout.in.chunk_of_gate),
            .header = Input<cuda::GateHeader>(layout.in.gate_header),
            .log = Output<cuda::StepLog>(layout.out.log),
            .records = Output<cuda::GateRecord>(layout.out.gate_records)};
}

const Bf16* CudaRecorder::Matrix(uint64_t offset) const {
  return offset == LayerOffsets::kAbsent ? nullptr
                                         : reinterpret_cast<const Bf16*>(weights_ + offset);
}

const float* CudaRecorder::Norm(uint64_t offset) const {
  return offset == LayerOffsets::kAbsent ? nullptr
                                         : reinterpret_cast<const float*>(weights_ + offset);
}

cuda::GatePoint CudaRecorder::Gate(int32_t arrive, int32_t depart) const {
  if (gates_.produced == nullptr) return {};  // nothing will ever be away
  return {.table = gates_, .arrive = arrive, .depart = depart};
}

cuda::WeightGate CudaRecorder::Before(uint32_t gate) const {
  if (gates_.produced == nullptr) return {};
  return {
      .chunk = gates_.chunk_of_gate + gate, .header = gates_.header, .produced = gates_.produced};
}

cuda::GemmParams CudaRecorder::Product(uint64_t weights, uint64_t bias, int64_t n, int64_t k,
                                       const Bf16* x, void* y, cuda::GemmOutput output) const {
  return {.kind = {.n = n, .k = k, .bias = bias != LayerOffsets::kAbsent, .output = output},
          .x = x,
          .weights = Matrix(weights),
          .bias = Matrix(bias),
          .y = y};
}

std::vector<cuda::GemmParams> CudaRecorder::ProductsOf(uint32_t layer) const {
  const LayerOffsets& w = map_.layers[layer];
  const int64_t hidden = config_.hidden_size;
  const int64_t ffn = config_.intermediate_size;
  using enum cuda::GemmOutput;
  const auto* normed = Scratch<Bf16>(layout_.normed);
  auto* x = Scratch<Bf16>(layout_.hidden);
  std::vector<cuda::GemmParams> products = {
      Product(w.qkv, w.qkv_bias, q_size_ + 2 * kv_size_, hidden, normed, Scratch<Bf16>(layout_.qkv),
              kOverwrite),
      Product(w.o, w.o_bias, hidden, q_size_, Scratch<Bf16>(layout_.attended), x, kAccumulate),
      Product(w.gate_up, w.gate_up_bias, 2 * ffn, hidden, normed, Scratch<Bf16>(layout_.gate_up),
              kOverwrite),
      Product(w.down, w.down_bias, hidden, ffn, Scratch<Bf16>(layout_.activated), x, kAccumulate)};
  products[2].kind.compressed = map_.compressed;
  const uint32_t gate = layer * kSegmentsPerLayer;
  products[0].gate = products[1].gate = Before(gate);
  products[2].gate = Before(gate + 1);
  products[3].gate = Before(gate + 2);
  return products;
}

cuda::GemmParams CudaRecorder::Logits() const {
  cuda::GemmParams p = Product(map_.lm_head, LayerOffsets::kAbsent, config_.vocab_size,
                               config_.hidden_size, Scratch<Bf16>(layout_.gathered),
                               Scratch<float>(layout_.logits), cuda::GemmOutput::kOverwrite);
  p.kind.type = cuda::GemmOutputType::kF32;
  p.gate = Before(map_.layout.gates() - 1);
  return p;
}

Status CudaRecorder::Prepare(cuda::GemmPlanner& gemm, uint32_t rows, uint32_t logit_rows) {
  // Each product goes through the weights of several layers while it is timed, so that they come
  // from HBM as they will in a step, and with its gate open.
  constexpr uint32_t kLayers = 4;
  std::vector<std::vector<cuda::GemmParams>> layers;
  for (uint32_t l = 0; l < std::min<uint32_t>(kLayers, config_.num_layers); ++l) {
    layers.push_back(ProductsOf(l));
  }
  for (size_t i = 0; i < layers[0].size() && rows > 0; ++i) {
    std::vector<const Bf16*> weights;
    for (const auto& layer : layers) weights.push_back(layer[i].weights);
    if (rows > 1024) weights.resize(1);
    cuda::GemmParams p = layers[0][i];
    p.m = rows;
    p.gate = {};
    WEIR_TRY(ToStatus(gemm.Prepare(p, weights, stream_)));
  }
  if (logit_rows == 0) return OkStatus();
  cuda::GemmParams p = Logits();
  p.m = logit_rows;
  p.gate = {};
  return ToStatus(gemm.Prepare(p, {}, stream_));
}

void CudaRecorder::Digest(const void* pointer) {
  if (!digesting_) return;
  const auto address = reinterpret_cast<uintptr_t>(pointer);
  for (unsigned shift = 0; shift < 64; shift += 8) {
    digest_ = (digest_ ^ ((address >> shift) & 0xff)) * 0x100000001b3ULL;
  }
}

cuda::PlanBuffers CudaRecorder::decode_buffers(void* host_int) const {
  return {.device_float = Scratch<void>(layout_.plan_float),
          .float_bytes = layout_.plan_float_bytes,
          .device_int = Scratch<void>(layout_.decode_int),
          .host_int = host_int,
          .int_bytes = layout_.decode_int_bytes};
}

cuda::PlanBuffers CudaRecorder::prefill_buffers(void* host_int) const {
  return {.device_float = Scratch<void>(layout_.plan_float),
          .float_bytes = layout_.plan_float_bytes,
          .device_int = Scratch<void>(layout_.prefill_int),
          .host_int = host_int,
          .int_bytes = layout_.prefill_int_bytes};
}

Status CudaRecorder::Enqueue(cuda::GemmPlanner& gemm, const CudaStepShape& shape,
                             const CudaStepPlans& plans, bool capturing) {
  digesting_ = capturing;
  const cuda::Launch launch = Early();
  const int64_t hidden = config_.hidden_size;
  auto* x = Scratch<Bf16>(layout_.hidden);
  const cuda::EmbedParams embed{.table = Matrix(map_.embedding),
                                .tokens = Input<int32_t>(layout_.in.tokens),
                                .sampled = Scratch<int32_t>(layout_.sampled),
                                .sampled_count = static_cast<int32_t>(limits_.max_sequences),
                                .vocab = static_cast<int32_t>(config_.vocab_size),
                                .y = x,
                                .m = shape.rows(),
                                .h = hidden,
                                .begin = gates_.log};
  for (const void* p : exchange_.host_inputs) Digest(p);
  for (const void* p : exchange_.host_results) Digest(p);
  for (const void* p :
       {static_cast<const void*>(embed.table), static_cast<const void*>(x),
        static_cast<const void*>(embed.tokens), static_cast<const void*>(embed.sampled)}) {
    Digest(p);
  }
  // Neither is early: behind the first all of the step before is there, behind the second the
  // inputs.
  WEIR_TRY(ToStatus(cuda::FetchInputs(exchange_, {.stream = stream_})));
  WEIR_TRY(ToStatus(cuda::Embed(embed, {.stream = stream_})));
  for (uint32_t l = 0; l < config_.num_layers; ++l) WEIR_TRY(Layer(gemm, l, shape, plans));

  const auto last_gate = static_cast<int32_t>(map_.layout.gates()) - 1;
  const uint32_t samples = shape.sample_rows();
  if (samples > 0) {
    auto* gathered = Scratch<Bf16>(layout_.gathered);
    WEIR_TRY(ToStatus(cuda::RmsNorm({.x = x,
                                     .ldx = hidden,
                                     .rows = Input<int32_t>(layout_.in.logit_rows),
                                     .weight = Norm(map_.final_norm),
                                     .eps = config_.rms_norm_eps,
                                     .y = gathered,
                                     .ldy = hidden,
                                     .m = samples,
                                     .h = hidden,
                                     .gate = Gate(-1, last_gate)},
                                    launch)));
    cuda::GemmParams logits = Logits();
    logits.m = samples;
    Digest(logits.x);
    Digest(logits.weights);
    Digest(logits.y);
    WEIR_TRY(ToStatus(gemm.Run(logits, launch)));
    WEIR_TRY(ToStatus(cuda::Sample({.logits = static_cast<const float*>(logits.y),
                                    .row = Input<cuda::SampleRow>(layout_.in.samples),
                                    .edits = Scratch<cuda::LogitEdit>(layout_.edits),
                                    .tokens = Scratch<int32_t>(layout_.sampled),
                                    .results = Output<cuda::SampleResult>(layout_.out.results),
                                    .top_tokens = Output<int32_t>(layout_.out.top_tokens),
                                    .top_logprobs = Output<float>(layout_.out.top_logprobs),
                                    .rows = samples,
                                    .vocab = config_.vocab_size},
                                   launch)));
  }
  WEIR_TRY(ToStatus(cuda::StepEnd(
      {.log = gates_.log, .gate = samples > 0 ? cuda::GatePoint{} : Gate(-1, last_gate)}, launch)));
  return ToStatus(cuda::ReturnResults(exchange_, launch));
}

Status CudaRecorder::Layer(cuda::GemmPlanner& gemm, uint32_t layer, const CudaStepShape& shape,
                           const CudaStepPlans& plans) {
  const LayerOffsets& w = map_.layers[layer];
  const cuda::Launch launch = Early();
  const int64_t hidden = config_.hidden_size;
  const int64_t m = shape.rows();
  const auto gate = static_cast<int32_t>(layer * kSegmentsPerLayer);
  std::vector<cuda::GemmParams> products = ProductsOf(layer);
  for (cuda::GemmParams& p : products) {
    p.m = m;
    Digest(p.x);
    Digest(p.weights);
    Digest(p.bias);
    Digest(p.y);
  }
  // The norm reads no gated byte, and the copy gets the time it takes.
  const auto norm = [&](uint64_t weight, int32_t arrive, int32_t depart) {
    const cuda::RmsNormParams p{.x = Scratch<Bf16>(layout_.hidden),
                                .ldx = hidden,
                                .weight = Norm(weight),
                                .eps = config_.rms_norm_eps,
                                .y = Scratch<Bf16>(layout_.normed),
                                .ldy = hidden,
                                .m = m,
                                .h = hidden,
                                .gate = Gate(arrive, depart)};
    Digest(p.weight);
    return ToStatus(cuda::RmsNorm(p, launch));
  };
  WEIR_TRY(norm(w.attn_norm, gate, gate - 1));
  WEIR_TRY(ToStatus(gemm.Run(products[0], launch)));
  const cuda::QkvParams qkv{.qkv = Scratch<Bf16>(layout_.qkv),
                            .ldqkv = q_size_ + 2 * kv_size_,
                            .m = m,
                            .q_heads = static_cast<int32_t>(config_.num_heads),
                            .head_dim = static_cast<int32_t>(config_.head_dim),
                            .q_norm = Norm(w.q_norm),
                            .k_norm = Norm(w.k_norm),
                            .eps = config_.rms_norm_eps,
                            .cos = Scratch<float>(layout_.rope_cos),
                            .sin = Scratch<float>(layout_.rope_sin),
                            .max_positions = static_cast<int32_t>(limits_.max_context),
                            .positions = Input<int32_t>(layout_.in.positions),
                            .slots = Input<int32_t>(layout_.in.slots),
                            .kv = kv_,
                            .layer = static_cast<int32_t>(layer)};
  Digest(kv_.base);
  WEIR_TRY(ToStatus(cuda::FinishQkv(qkv, launch)));
  WEIR_TRY(Attention(layer, shape, plans));
  WEIR_TRY(ToStatus(gemm.Run(products[1], launch)));

  WEIR_TRY(norm(w.mlp_norm, gate + 1, gate));
  WEIR_TRY(ToStatus(gemm.Run(products[2], launch)));
  WEIR_TRY(ToStatus(cuda::SiluMul({.gate_up = Scratch<Bf16>(layout_.gate_up),
                                   .y = Scratch<Bf16>(layout_.activated),
                                   .m = m,
                                   .f = config_.intermediate_size,
                                   .gate = Gate(gate + 2, gate + 1)},
                                  launch)));
  return ToStatus(gemm.Run(products[3], launch));
}

Status CudaRecorder::Attention(uint32_t layer, const CudaStepShape& shape,
                               const CudaStepPlans& plans) {
  const cuda::Launch launch = Early();
  const auto run = [&](const cuda::AttentionPlan& plan, const cuda::PlanBuffers& buffers,
                       const CudaInputLayout::Tables& tables, int64_t first_row,
                       uint64_t first_page) {
    return ToStatus(
        cuda::RunAttention(plan, buffers,
                           {.q = Scratch<Bf16>(layout_.qkv) + first_row * (q_size_ + 2 * kv_size_),
                            .q_stride = q_size_ + 2 * kv_size_,
                            .out = Scratch<Bf16>(layout_.attended) + first_row * q_size_,
                            .scale = attention_scale(),
                            .kv = kv_,
                            .layer = static_cast<int32_t>(layer),
                            .pages = {.blocks = Input<int32_t>(layout_.in.pages) + first_page,
                                      .page_indptr = Input<int32_t>(tables.page_indptr),
                                      .last_page_len = Input<int32_t>(tables.last_page_len),
                                      .q_indptr = Input<int32_t>(tables.q_indptr)}},
                           launch));
  };
  if (AttendsWithOwn(shape.decode_rows())) {
    WEIR_TRY(OwnDecodeAttention(layer, shape.decode_rows()));
  } else if (plans.decode != nullptr) {
    WEIR_TRY(run(*plans.decode, decode_buffers(nullptr), layout_.in.decode, 0, 0));
  }
  if (plans.prefill != nullptr) {
    WEIR_TRY(run(*plans.prefill, prefill_buffers(nullptr), layout_.in.prefill,
                 shape.decode_sequences, shape.decode_pages));
  }
  return OkStatus();
}

bool CudaRecorder::AttendsWithOwn(uint32_t decode_rows) const {
  return decode_attention_ != nullptr && decode_rows > 0 &&
         decode_rows <= static_cast<uint32_t>(cuda::kMaxDecodeSequences);
}

// Launched early it reads the page table and KV of earlier steps before the launch above it has
// ended: both were there before the step's first kernel, which is not launched early. Rows that
// prefill write no page of these sequences: the index learns of blocks once their step has ended.
Status CudaRecorder::OwnDecodeAttention(uint32_t layer, uint32_t decode_rows) {
  const CudaInputLayout::Tables& tables = layout_.in.decode;
  return ToStatus(
      decode_attention_->Run({.q = Scratch<Bf16>(layout_.qkv),
                              .q_stride = q_size_ + 2 * kv_size_,
                              .out = Scratch<Bf16>(layout_.attended),
                              .scale = attention_scale(),
                              .kv = kv_,
                              .layer = static_cast<int32_t>(layer),
                              .sequences = static_cast<int32_t>(decode_rows),
                              .pages = {.blocks = Input<int32_t>(layout_.in.pages),
                                        .page_indptr = Input<int32_t>(tables.page_indptr),
                                        .last_page_len = Input<int32_t>(tables.last_page_len)},
                              .workspace = Scratch<void>(layout_.decode_workspace)},
                             Early()));
}

}  // namespace weir
