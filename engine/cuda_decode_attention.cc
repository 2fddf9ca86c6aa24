#include "engine/cuda_decode_attention.h"

#include <algorithm>
#include <functional>
#include <limits>
#include <numeric>
#include <sstream>
#include <vector>

#include "engine/cuda_graph.h"

namespace weir {
namespace {

// Milliseconds of |calls| calls one after the other in a graph; the least of some replays.
Result<float> Time(cudaStream_t stream, uint32_t calls,
                   const std::function<Status(uint32_t)>& enqueue) {
  constexpr int kRounds = 4;
  WEIR_TRY(enqueue(0));  // no module is loaded during the capture
  WEIR_TRY(FromCuda(cudaStreamSynchronize(stream), "the first run"));
  const CudaGraph graph = WEIR_TRY(CaptureCudaGraph(stream, [&] {
    Status status;
    for (uint32_t i = 0; i < calls && status.ok(); ++i) status = enqueue(i);
    return status;
  }));
  const CudaEvent begin = WEIR_TRY(MakeCudaEvent());
  const CudaEvent end = WEIR_TRY(MakeCudaEvent());
  float least = std::numeric_limits<float>::max();
  for (int round = 0; round <= kRounds; ++round) {  // round 0 warms up
    WEIR_TRY(FromCuda(cudaEventRecord(begin.get(), stream), "timing"));
    WEIR_TRY(FromCuda(cudaGraphLaunch(graph.get(), stream), "cudaGraphLaunch"));
    WEIR_TRY(FromCuda(cudaEventRecord(end.get(), stream), "timing"));
    WEIR_TRY(FromCuda(cudaEventSynchronize(end.get()), "timing"));
    float ms = 0;
    WEIR_TRY(FromCuda(cudaEventElapsedTime(&ms, begin.get(), end.get()), "timing"));
    if (round > 0) least = std::min(least, ms);
  }
  return least;
}

}  // namespace

Result<CudaDecodeAttention> CudaDecodeAttention::Create(const cuda::AttentionShape& shape,
                                                        DecodeAttentionUse use) {
  CudaDecodeAttention made(shape, use);
  if (use == DecodeAttentionUse::kNever) return made;
  const cuda::LaunchStatus status = cuda::DecodeAttention::Create(shape, &made.own_);
  made.supported_ = status.ok();
  if (use == DecodeAttentionUse::kAlways || status.code() != cudaErrorNotSupported) {
    WEIR_TRY(ToStatus(status));
  }
  return made;
}

bool CudaDecodeAttention::Supports(uint32_t bucket) const {
  return supported_ && bucket <= static_cast<uint32_t>(cuda::kMaxDecodeSequences);
}

CudaDecodeAttention::Key CudaDecodeAttention::KeyOf(uint32_t bucket) const {
  return {static_cast<uint32_t>(shape_.q_heads), static_cast<uint32_t>(shape_.kv_heads),
          static_cast<uint32_t>(shape_.head_dim), bucket};
}

bool CudaDecodeAttention::UsesOwn(uint32_t bucket) const {
  if (use_ != DecodeAttentionUse::kTimed) {
    return use_ == DecodeAttentionUse::kAlways && Supports(bucket);
  }
  const auto at = timed_.find(KeyOf(bucket));
  return at != timed_.end() && at->second;
}

Status CudaDecodeAttention::Choose(uint32_t bucket, const Trial& trial) {
  if (use_ == DecodeAttentionUse::kNever) return OkStatus();
  if (use_ == DecodeAttentionUse::kAlways) {
    if (Supports(bucket)) return OkStatus();
    return Unsupported("decode_attention always: our own kernel takes at most " +
                       std::to_string(cuda::kMaxDecodeSequences) + " sequences, and a step of " +
                       std::to_string(bucket) + " is to be captured");
  }
  if (!timed_.contains(KeyOf(bucket))) {
    timed_[KeyOf(bucket)] = Supports(bucket) ? WEIR_TRY(OwnIsFaster(bucket, trial)) : false;
  } else if (UsesOwn(bucket) && !Supports(bucket)) {
    return InvalidArgument("the imported choice for " + std::to_string(bucket) +
                           " sequences is our own decode attention, which cannot take them here");
  }
  return OkStatus();
}

Result<bool> CudaDecodeAttention::OwnIsFaster(uint32_t bucket, const Trial& trial) const {
  constexpr uint32_t kContext = 1024;
  constexpr uint64_t kCold = 256 * kMiB;  // KV that does not stay in the L2 cache
  constexpr uint64_t kMostCalls = 64;
  const uint32_t context = std::min(kContext, trial.max_context);
  const uint32_t pages = static_cast<uint32_t>(CeilDiv(context, uint32_t{cuda::kBlockTokens}));
  WEIR_CHECK(trial.pool_blocks > 0, "a trial needs a block of KV");
  const auto block_bytes = static_cast<uint64_t>(trial.run.kv.layout.BlockBytes());
  const uint64_t call_blocks = uint64_t{bucket} * pages;
  const auto calls = static_cast<uint32_t>(
      std::clamp<uint64_t>(kCold / (call_blocks * block_bytes), 4, kMostCalls));

  // Call i has the pool's blocks behind those of call i - 1, where the pool is large enough.
  std::vector<int32_t> blocks(call_blocks), q_indptr(bucket + 1), page_indptr(bucket + 1);
  const uint64_t span = std::min(call_blocks, trial.pool_blocks);
  for (uint64_t i = 0; i < call_blocks; ++i) blocks[i] = static_cast<int32_t>(i % span);
  const uint64_t places = std::max<uint64_t>(1, trial.pool_blocks / span);
  std::iota(q_indptr.begin(), q_indptr.end(), 0);
  for (size_t i = 0; i < page_indptr.size(); ++i) {
    page_indptr[i] = static_cast<int32_t>(i * pages);
  }
  const std::vector<int32_t> last(
      bucket, static_cast<int32_t>((context - 1) % uint32_t{cuda::kBlockTokens} + 1));
  const std::vector<int32_t> contexts(bucket, static_cast<int32_t>(context));
  const auto upload = [](int32_t* to, const std::vector<int32_t>& from) {
    return FromCuda(
        cudaMemcpy(to, from.data(), from.size() * sizeof(int32_t), cudaMemcpyHostToDevice),
        "the tables of a trial");
  };
  WEIR_TRY(FromCuda(cudaStreamSynchronize(trial.stream), "what came before"));
  WEIR_TRY(upload(trial.run.pages.blocks, blocks));
  WEIR_TRY(upload(trial.run.pages.page_indptr, page_indptr));
  WEIR_TRY(upload(trial.run.pages.last_page_len, last));
  WEIR_TRY(upload(trial.run.pages.q_indptr, q_indptr));
  const auto kv_of = [&](uint32_t call) {
    cuda::KvPool kv = trial.run.kv;
    kv.base += static_cast<int64_t>(call % places * span) * kv.block_stride;
    return kv;
  };

  cuda::AttentionPlan plan;
  WEIR_TRY(ToStatus(cuda::PlanAttention({.kernel = cuda::AttentionKernel::kFa2,
                                         .shape = shape_,
                                         .batch = {q_indptr.data(), page_indptr.data(),
                                                   contexts.data(), static_cast<int32_t>(bucket)},
                                         .use = cuda::PlanUse::kDecodeGraph},
                                        trial.buffers, trial.stream, &plan)));
  // Neither early: each would read ahead while it still runs itself, which no step does.
  const cuda::Launch launch{.stream = trial.stream};
  const float theirs = WEIR_TRY(Time(trial.stream, calls, [&](uint32_t i) {
    cuda::AttentionRun run = trial.run;
    run.kv = kv_of(i);
    return ToStatus(cuda::RunAttention(plan, trial.buffers, run, launch));
  }));
  const float ours = WEIR_TRY(Time(trial.stream, calls, [&](uint32_t i) {
    return ToStatus(own_.Run({.q = trial.run.q,
                              .q_stride = trial.run.q_stride,
                              .out = trial.run.out,
                              .scale = trial.run.scale,
                              .kv = kv_of(i),
                              .layer = trial.run.layer,
                              .sequences = static_cast<int32_t>(bucket),
                              .pages = trial.run.pages,
                              .workspace = trial.workspace},
                             launch));
  }));
  return ours < theirs;
}

std::string CudaDecodeAttention::Export() const {
  std::string text;
  for (const auto& [key, own] : timed_) {
    text += kLine;
    for (const uint32_t number : key) text += std::to_string(number) + " ";
    text += own ? "own\n" : "flashinfer\n";
  }
  return text;
}

Status CudaDecodeAttention::Import(const std::string& text) {
  std::istringstream lines(text);
  std::string line;
  std::map<Key, bool> read;
  while (std::getline(lines, line)) {
    std::istringstream in(line);
    std::string word, kernel, rest;
    Key key{};
    in >> word;
    for (uint32_t& number : key) in >> number;
    in >> kernel;
    if (in.fail() || in >> rest || word + " " != kLine ||
        (kernel != "own" && kernel != "flashinfer")) {
      return InvalidArgument("not a line of exported attention kernels: " + line.substr(0, 120));
    }
    read[key] = kernel == "own";
  }
  timed_.insert(read.begin(), read.end());
  return OkStatus();
}

}  // namespace weir
