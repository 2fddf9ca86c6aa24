#include "bench/kernels/cuda_step.h"

#include <algorithm>
#include <cstdio>
#include <numeric>
#include <random>
#include <span>
#include <utility>

#include "bench/kernels/cuda_timing.h"
#include "engine/cuda_graph.h"
#include "kernels/cpu/rope.h"
#include "kernels/cuda/compressed_weights.h"
#include "kernels/cuda/fill.h"

namespace weir::bench {
namespace {

using cuda::Bf16;

constexpr uint64_t kCold = 256 * kMiB;  // well over any L2 cache
constexpr uint32_t kMostSets = 32;
constexpr uint64_t kPlacement = 2 * kMiB;
constexpr float kWeightScale = 0.02f;

// The model with |layers| layers and no embedding besides the output matrix.
WeightMap MapOf(ModelConfig config, uint32_t layers, const StepOptions& options) {
  config.num_layers = layers;
  config.tie_word_embeddings = true;
  return WeightMap::Make(config, WeightFormat::kCuda, 0, options.compress_weights);
}

std::string GiBText(uint64_t bytes) {
  char text[32];
  std::snprintf(text, sizeof(text), "%.1f GiB", static_cast<double>(bytes) / double{kGiB});
  return text;
}

}  // namespace

std::string StepSpec::Name() const {
  if (decode()) {
    return "decode " + std::to_string(sequences) + "x" + std::to_string(context) +
           (spread ? "~" : "");
  }
  return "prefill " + std::to_string(sequences) + "x" + std::to_string(rows) + "@" +
         std::to_string(context);
}

CudaStep::CudaStep(const ModelConfig& config, const ComputeLimits& limits,
                   const StepOptions& options, cudaStream_t stream)
    : config_(config), limits_(limits), options_(options), stream_(stream) {}

CudaStep::~CudaStep() {
  (void)cudaStreamSynchronize(stream_);
  if (inputs_ != nullptr) (void)cudaFree(inputs_);
  if (fa2_memory_ != nullptr) (void)cudaFree(fa2_memory_);
}

Result<std::unique_ptr<CudaStep>> CudaStep::Create(const ModelConfig& config,
                                                   const ComputeLimits& limits,
                                                   const std::vector<StepSpec>& specs,
                                                   const StepOptions& options, std::byte* arena,
                                                   uint64_t arena_bytes, cudaStream_t stream) {
  if (options.compress_weights && !compressed::Fits(config.hidden_size)) {
    return Unsupported("compressed weights have a hidden_size that is a multiple of " +
                       std::to_string(compressed::kCols) + ", not " +
                       std::to_string(config.hidden_size));
  }
  std::unique_ptr<CudaStep> step(new CudaStep(config, limits, options, stream));
  WEIR_TRY(step->Place(specs, arena, arena_bytes));
  WEIR_TRY(step->FillWeights());
  WEIR_TRY(step->FillRopeTables());
  step->host_inputs_ = WEIR_TRY(CudaInputs::Create(step->layout_));
  step->plan_int_ = WEIR_TRY(PinnedBuffer::Create(
      std::max(step->layout_.decode_int_bytes, step->layout_.prefill_int_bytes)));
  const cuda::LaunchStatus own =
      cuda::DecodeAttention::Create(AttentionShapeOf(config, step->map_), &step->decode_attention_);
  step->has_own_attention_ = own.ok();
  // Where it is not asked for, a GPU or a shape without it has FlashInfer's kernel alone.
  if (own.code() != cudaErrorNotSupported) WEIR_TRY(ToStatus(own));
  WEIR_TRY(ToStatus(
      cuda::GemmPlanner::Create({.workspace = step->Scratch<void>(step->layout_.gemm_workspace),
                                 .workspace_bytes = kGemmWorkspaceBytes,
                                 .expanded = step->Scratch<cuda::Bf16>(step->layout_.expanded),
                                 .expanded_bytes = step->layout_.expanded_bytes,
                                 .allow_split_k = options.split_k,
                                 .candidates = options.candidates,
                                 .rounds = 3,
                                 .skinny = options.skinny},
                                &step->gemm_)));
  return step;
}

// Step buffers, then as many layers' weights as leave the KV its share: all that it wants if
// everything fits, else at least a quarter of the rest or four layers of the largest batch.
Status CudaStep::Place(const std::vector<StepSpec>& specs, std::byte* arena, uint64_t arena_bytes) {
  map_ = MapOf(config_, 1, options_);
  layout_ = WEIR_TRY(CudaLayout::Make(config_, map_, limits_));
  q_size_ = int64_t{config_.num_heads} * map_.head_stride;
  kv_size_ = int64_t{config_.num_kv_heads} * map_.head_stride;
  const uint64_t scratch_bytes = AlignUp(layout_.bytes, kPlacement);
  uint64_t blocks = 1;
  for (const StepSpec& s : specs) blocks = std::max(blocks, s.blocks());
  const auto layer_bytes = blocks *
                           static_cast<uint64_t>(CudaKvLayoutOf(config_, map_).BlockBytes()) /
                           config_.num_layers;
  const uint64_t wanted = std::max(layer_bytes * config_.num_layers, 2 * kCold);
  const auto weight_bytes = [&](uint32_t layers) {
    return AlignUp(MapOf(config_, layers, options_).layout.region_bytes, kPlacement);
  };
  uint32_t layers = config_.num_layers;
  if (scratch_bytes + weight_bytes(layers) + wanted > arena_bytes) {
    const uint64_t rest = arena_bytes - std::min(arena_bytes, scratch_bytes);
    const uint64_t share = std::min(wanted, std::max({rest / 4, 4 * layer_bytes, 2 * kCold}));
    while (layers > 1 && weight_bytes(layers) + share > rest) --layers;
  }
  const uint64_t used = scratch_bytes + weight_bytes(layers);
  const uint32_t least = std::min(config_.num_layers, 2U);
  if (layers < least || used + 2 * layer_bytes > arena_bytes) {
    return NoMemory("two layers' weights with their step buffers take " +
                    GiBText(scratch_bytes + weight_bytes(least)) +
                    " and two layers' KV of the largest batch " + GiBText(2 * layer_bytes) +
                    "; there are " + GiBText(arena_bytes) +
                    ": smaller batches or contexts, or a larger --budget");
  }
  map_ = MapOf(config_, layers, options_);
  scratch_ = arena;
  weights_ = scratch_ + scratch_bytes;
  pool_ = arena + used;
  pool_bytes_ = AlignDown(arena_bytes - used, 256);
  return OkStatus();
}

Status CudaStep::FillWeights() {
  const cuda::Launch launch{.stream = stream_};
  WEIR_TRY(FromCuda(cudaMemsetAsync(scratch_, 0, layout_.bytes, stream_), "step buffers"));
  const auto normal = [&](std::byte* at, uint64_t bytes, uint64_t seed, float scale) {
    return ToStatus(cuda::FillNormal({.dst = reinterpret_cast<Bf16*>(at),
                                      .count = static_cast<int64_t>(bytes / 2),
                                      .seed = seed,
                                      .scale = scale},
                                     launch));
  };
  WEIR_TRY(normal(weights_, map_.layout.region_bytes, 1, kWeightScale));
  if (map_.compressed) WEIR_TRY(FillCompressed());
  WEIR_TRY(normal(pool_, pool_bytes_, 2, 1.0f));
  // What a product reads before a step has run.
  for (const uint64_t at : {layout_.hidden, layout_.normed, layout_.qkv, layout_.attended,
                            layout_.gate_up, layout_.activated, layout_.gathered}) {
    const uint64_t rows = at == layout_.gathered ? limits_.max_sequences : limits_.max_rows;
    const auto columns =
        static_cast<uint64_t>(at == layout_.qkv         ? q_size_ + 2 * kv_size_
                              : at == layout_.attended  ? q_size_
                              : at == layout_.gate_up   ? 2 * int64_t{config_.intermediate_size}
                              : at == layout_.activated ? int64_t{config_.intermediate_size}
                                                        : int64_t{config_.hidden_size});
    WEIR_TRY(normal(scratch_ + at, rows * columns * 2, 3, 1.0f));
  }
  const auto ones = [&](uint64_t offset, uint32_t n) {
    if (offset == LayerOffsets::kAbsent) return OkStatus();
    return ToStatus(cuda::FillFloat(Weights<float>(offset), n, 1.0f, launch));
  };
  WEIR_TRY(ones(map_.final_norm, config_.hidden_size));
  for (const LayerOffsets& l : map_.layers) {
    WEIR_TRY(ones(l.attn_norm, config_.hidden_size));
    WEIR_TRY(ones(l.mlp_norm, config_.hidden_size));
    WEIR_TRY(ones(l.q_norm, config_.head_dim));
    WEIR_TRY(ones(l.k_norm, config_.head_dim));
  }
  return FromCuda(cudaStreamSynchronize(stream_), "filling weights and KV");
}

// Every layer's gate and up, all of one made-up matrix, which lies in the KV pool meanwhile.
Status CudaStep::FillCompressed() {
  const int64_t rows = 2 * int64_t{config_.intermediate_size};
  const int64_t cols = config_.hidden_size;
  const cuda::Launch launch{.stream = stream_};
  if (pool_bytes_ < static_cast<uint64_t>(rows * cols) * sizeof(Bf16)) {
    return NoMemory("a plain matrix gate|up does not fit into the " + GiBText(pool_bytes_) +
                    " for KV: a larger --budget");
  }
  auto* plain = reinterpret_cast<Bf16*>(pool_);
  auto* failed = reinterpret_cast<uint32_t*>(scratch_);  // zero, as all step buffers are
  WEIR_TRY(ToStatus(cuda::FillNormal(
      {.dst = plain, .count = rows * cols, .seed = 1, .scale = kWeightScale}, launch)));
  for (const LayerOffsets& l : map_.layers) {
    WEIR_TRY(ToStatus(cuda::CompressWeights({.weights = plain,
                                             .rows = rows,
                                             .cols = cols,
                                             .out = Weights<uint8_t>(l.gate_up),
                                             .failed = failed},
                                            launch)));
  }
  uint32_t blocks = 0;
  WEIR_TRY(FromCuda(cudaStreamSynchronize(stream_), "compressing weights"));
  WEIR_TRY(FromCuda(cudaMemcpy(&blocks, failed, sizeof(blocks), cudaMemcpyDeviceToHost),
                    "compressing weights"));
  return blocks == 0 ? OkStatus() : BadState("made-up weights have too many exponents");
}

Status CudaStep::FillRopeTables() {
  const std::vector<float> frequencies = RopeInverseFrequencies(config_);
  const size_t n = size_t{limits_.max_context} * (config_.head_dim / 2);
  std::vector<float> cos(n), sin(n);
  cpu::FillRopeTable(frequencies.data(), config_.head_dim / 2, 0, limits_.max_context,
                     RopeAttentionScale(config_), cos.data(), sin.data());
  WEIR_TRY(
      FromCuda(cudaMemcpy(scratch_ + layout_.rope_cos, cos.data(), n * 4, cudaMemcpyHostToDevice),
               "rope tables"));
  return FromCuda(
      cudaMemcpy(scratch_ + layout_.rope_sin, sin.data(), n * 4, cudaMemcpyHostToDevice),
      "rope tables");
}

// --- A batch -------------------------------------------------------------------------------------

Status CudaStep::Load(const StepSpec& spec) {
  spec_ = spec;
  kv_ = {.base = reinterpret_cast<Bf16*>(pool_), .layout = CudaKvLayoutOf(config_, map_)};
  const auto layer_block =
      static_cast<uint64_t>(kv_.layout.BlockBytes()) / static_cast<uint64_t>(kv_.layout.layers);
  const uint64_t one_layer = layer_block * spec.blocks();
  const uint64_t fit = std::min<uint64_t>(config_.num_layers, pool_bytes_ / one_layer);
  if (fit < std::min(config_.num_layers, 2U)) {
    return NoMemory("two layers' KV of " + spec.Name() + " takes " + GiBText(2 * one_layer) +
                    ", the pool has " + GiBText(pool_bytes_));
  }
  kv_.layout.layers = static_cast<int32_t>(fit);
  kv_.layout.order = options_.kv_order;
  kv_.block_stride = kv_.layout.BlockElements();
  const uint64_t set_bytes = fit * one_layer;
  sets_ = static_cast<uint32_t>(
      std::min({CeilDiv(kCold, set_bytes), pool_bytes_ / set_bytes, uint64_t{kMostSets}}));

  if (inputs_ != nullptr) WEIR_TRY(FromCuda(cudaFree(std::exchange(inputs_, nullptr)), "inputs"));
  void* inputs = nullptr;
  WEIR_TRY(FromCuda(cudaMalloc(&inputs, (sets_ + 1) * layout_.in.bytes), "a step's inputs"));
  inputs_ = static_cast<std::byte*>(inputs);
  WEIR_TRY(FillInputs(spec, sets_, false));
  for (uint32_t set = sets_; set-- > 0;) WEIR_TRY(FillInputs(spec, set, true));
  WEIR_TRY(Plan());
  return PrepareProducts(shape_.rows(), shape_.sample_rows());
}

// Blocks lie in the pool in random order, as after many requests.
Status CudaStep::FillInputs(const StepSpec& spec, uint32_t set, bool greedy) {
  std::vector<BlockId> blocks(spec.blocks() * sets_);
  std::iota(blocks.begin(), blocks.end(), 0U);
  std::shuffle(blocks.begin(), blocks.end(), std::mt19937(1));
  size_t at = spec.blocks() * (set % sets_);
  std::vector<uint32_t> order(spec.sequences);  // spread contexts come as requests do, in none
  std::iota(order.begin(), order.end(), 0U);
  std::shuffle(order.begin(), order.end(), std::mt19937(3));

  SamplingParams params;
  params.temperature = greedy ? 0.0 : 1.0;
  params.top_p = greedy ? 1.0 : 0.9;
  std::mt19937 random(7);
  StepBatch batch;
  for (uint32_t i = 0; i < spec.sequences; ++i) {
    const uint32_t context = spec.ContextOf(order[i]);
    const uint64_t own = spec.BlocksOf(order[i]);
    batch.sequences.push_back({.first_row = i * spec.rows,
                               .rows = spec.rows,
                               .context = context,
                               .blocks = std::span(blocks).subspan(at, own),
                               .wants_logits = true,
                               .sample = {.params = &params, .key = i, .position = context}});
    at += own;
    for (uint32_t r = 0; r < spec.rows; ++r) {
      batch.tokens.push_back(static_cast<int32_t>(random() % config_.vocab_size));
      batch.positions.push_back(static_cast<int32_t>(context - spec.rows + r));
    }
  }
  shape_ = WEIR_TRY(host_inputs_.Fill(0, batch, DeviceGates{}, layout_));
  return FromCuda(cudaMemcpy(Input<void>(set, 0), host_inputs_.block(), layout_.in.bytes,
                             cudaMemcpyHostToDevice),
                  "uploading a step");
}

// Of the inputs that were filled last; all sets have the same plan.
// A prompt's step counts FA3 wherever there is one, with FA2 beside it; the engine takes the sooner
// of the two (kernels/cuda/prefill_choice.h).
Status CudaStep::Plan() {
  const bool decode = spec_.decode();
  attention_.buffers = {
      .device_float = Scratch<void>(layout_.plan_float),
      .float_bytes = layout_.plan_float_bytes,
      .device_int = Scratch<void>(decode ? layout_.decode_int : layout_.prefill_int),
      .host_int = plan_int_.At<void>(0),
      .int_bytes = decode ? layout_.decode_int_bytes : layout_.prefill_int_bytes};
  fa2_prefill_.reset();
  if (decode) return PlanWith(cuda::AttentionKernel::kFa2, &attention_);
  if (!cuda::AttentionKernelAvailable(cuda::AttentionKernel::kFa3)) {
    return PlanWith(cuda::AttentionKernel::kFa2, &attention_);
  }
  WEIR_TRY(PlanWith(cuda::AttentionKernel::kFa3, &attention_));
  return PlanFa2Prefill();
}

// In memory of its own, for the step buffers have room for one plan.
Status CudaStep::PlanFa2Prefill() {
  constexpr auto kFa2 = cuda::AttentionKernel::kFa2;
  cuda::PlanSizes sizes;
  WEIR_TRY(ToStatus(cuda::AttentionPlanSizes(
      kFa2, AttentionShapeOf(config_, map_), cuda::PlanUse::kEager,
      static_cast<int32_t>(spec_.sequences), static_cast<int32_t>(shape_.rows()), &sizes)));
  const uint64_t float_bytes = AlignUp(sizes.float_bytes, 256);
  if (fa2_memory_ != nullptr) {
    WEIR_TRY(FromCuda(cudaFree(std::exchange(fa2_memory_, nullptr)), "a plan's buffers"));
  }
  void* memory = nullptr;
  WEIR_TRY(FromCuda(cudaMalloc(&memory, float_bytes + sizes.int_bytes), "a plan's buffers"));
  fa2_memory_ = static_cast<std::byte*>(memory);
  fa2_int_ = WEIR_TRY(PinnedBuffer::Create(sizes.int_bytes));
  fa2_prefill_ = Attention{.plan = {},
                           .buffers = {.device_float = fa2_memory_,
                                       .float_bytes = sizes.float_bytes,
                                       .device_int = fa2_memory_ + float_bytes,
                                       .host_int = fa2_int_.At<void>(0),
                                       .int_bytes = sizes.int_bytes}};
  return PlanWith(kFa2, &*fa2_prefill_);
}

Status CudaStep::PlanWith(cuda::AttentionKernel kernel, Attention* attention) const {
  const bool decode = spec_.decode();
  const cuda::PlanRequest request{
      .kernel = kernel,
      .shape = AttentionShapeOf(config_, map_),
      .batch =
          decode ? host_inputs_.decode(shape_, layout_) : host_inputs_.prefill(shape_, layout_),
      .use = decode ? cuda::PlanUse::kDecodeGraph : cuda::PlanUse::kEager};
  WEIR_TRY(ToStatus(cuda::PlanAttention(request, attention->buffers, stream_, &attention->plan)));
  return FromCuda(cudaStreamSynchronize(stream_), "planning");
}

Status CudaStep::CheckSamples() const {
  WEIR_TRY(FromCuda(cudaStreamSynchronize(stream_), "a step"));
  std::vector<cuda::SampleResult> results(shape_.sample_rows());
  WEIR_TRY(FromCuda(cudaMemcpy(results.data(), Scratch<void>(layout_.outputs + layout_.out.results),
                               results.size() * sizeof(cuda::SampleResult), cudaMemcpyDeviceToHost),
                    "the sampled tokens"));
  for (size_t i = 0; i < results.size(); ++i) {
    if (results[i].error != cuda::SampleError::kNone) {
      return DataLoss("row " + std::to_string(i) + " of the step has no token: sampler error " +
                      std::to_string(static_cast<int>(results[i].error)) +
                      " (1: a logit is not a number, 2: infinite, 3: none possible)");
    }
  }
  return OkStatus();
}

// --- Products ------------------------------------------------------------------------------------

std::vector<cuda::GemmParams> CudaStep::Products(uint32_t layer) const {
  const LayerOffsets& w = LayerAt(layer);
  const int64_t hidden = config_.hidden_size;
  const int64_t ffn = config_.intermediate_size;
  const auto product = [&](uint64_t weights, uint64_t bias, int64_t n, int64_t k, uint64_t x,
                           uint64_t y, cuda::GemmOutput output) -> cuda::GemmParams {
    return {.kind = {.n = n, .k = k, .bias = bias != LayerOffsets::kAbsent, .output = output},
            .x = Scratch<Bf16>(x),
            .weights = Weights<Bf16>(weights),
            .bias = Weights<Bf16>(bias),
            .y = Scratch<void>(y)};
  };
  using enum cuda::GemmOutput;
  cuda::GemmParams logits = product(map_.lm_head, LayerOffsets::kAbsent, config_.vocab_size, hidden,
                                    layout_.gathered, layout_.logits, kOverwrite);
  logits.kind.type = cuda::GemmOutputType::kF32;
  cuda::GemmParams gate_up = product(w.gate_up, w.gate_up_bias, 2 * ffn, hidden, layout_.normed,
                                     layout_.gate_up, kOverwrite);
  gate_up.kind.compressed = map_.compressed;
  return {product(w.qkv, w.qkv_bias, q_size_ + 2 * kv_size_, hidden, layout_.normed, layout_.qkv,
                  kOverwrite),
          product(w.o, w.o_bias, hidden, q_size_, layout_.attended, layout_.hidden, kAccumulate),
          gate_up,
          product(w.down, w.down_bias, hidden, ffn, layout_.activated, layout_.hidden, kAccumulate),
          logits};
}

Status CudaStep::PrepareProducts(int64_t rows, int64_t logit_rows) {
  std::vector<std::vector<cuda::GemmParams>> layers;
  for (uint32_t l = 0; l < weight_layers(); ++l) layers.push_back(Products(l));
  const size_t logits = layers[0].size() - 1;
  for (size_t i = 0; i <= logits; ++i) {
    cuda::GemmParams p = layers[0][i];
    p.m = i == logits ? logit_rows : rows;
    if (p.m == 0) continue;
    const auto bytes = static_cast<uint64_t>(p.kind.WeightBytes());
    size_t n = options_.tune_layers > 0 ? options_.tune_layers : CeilDiv(kCold, bytes);
    if (rows > 1024 || i == logits) n = 1;
    std::vector<const Bf16*> weights;
    for (size_t l = 0; l < std::min(n, layers.size()); ++l) weights.push_back(layers[l][i].weights);
    WEIR_TRY(ToStatus(gemm_->Prepare(p, weights, stream_)));
  }
  return OkStatus();
}

}  // namespace weir::bench
