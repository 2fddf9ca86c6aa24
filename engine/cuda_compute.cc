#include "engine/cuda_compute.h"

#include <algorithm>
#include <array>
#include <deque>
#include <optional>

#include "engine/cuda_clock.h"
#include "engine/cuda_graph.h"
#include "engine/cuda_inputs.h"
#include "engine/cuda_layout.h"
#include "engine/cuda_recorder.h"
#include "kernels/cpu/rope.h"
#include "kernels/cuda/compressed_weights.h"
#include "kernels/cuda/fill.h"
#include "vmm/trace.h"

namespace weir {
namespace {

// Rows [first, first + count) of |matrix| at |to|, bf16.
Status FillRows(const MadeMatrix& matrix, uint64_t first, uint64_t count, VirtAddr to,
                CUstream_st* stream) {
  for (size_t i = 0; i < matrix.parts.size(); ++i) {
    const MadeMatrix::Part& part = matrix.parts[i];
    const uint64_t part_end =
        i + 1 < matrix.parts.size() ? matrix.parts[i + 1].first_row : matrix.rows;
    const uint64_t begin = std::max(first, part.first_row);
    const uint64_t end = std::min(first + count, part_end);
    if (begin >= end) continue;
    const VirtAddr at = to + (begin - first) * matrix.cols * sizeof(cuda::Bf16);
    WEIR_TRY(ToStatus(
        cuda::FillNormal({.dst = reinterpret_cast<cuda::Bf16*>(at),
                          .count = static_cast<int64_t>((end - begin) * matrix.cols),
                          .seed = part.tensor.seed * 0x9e3779b97f4a7c15ULL + part.tensor.tensor_id,
                          .first_index = (begin - part.first_row) * matrix.cols,
                          .scale = part.tensor.scale},
                         {.stream = stream})));
  }
  return OkStatus();
}

// Row counts for which the products of eager steps get algorithms of their own. Tiles have up to
// 256 rows: one that suits 896 rows makes 832 cost as much.
std::vector<uint32_t> RowBuckets(const std::vector<uint32_t>& decode, uint32_t max_rows) {
  std::vector<uint32_t> buckets = decode;
  uint32_t b = buckets.empty() ? 1 : buckets.back();
  while (b < max_rows) {
    b += b < 2048 ? 64 : 1024;
    buckets.push_back(std::min(b, max_rows));
  }
  return buckets;
}

// Whether anybody wants to know when something ran on the device.
bool TimesWanted() {
  return TraceEnabled(TraceType::kDeviceStep) || TraceEnabled(TraceType::kGateArrive) ||
         TraceEnabled(TraceType::kGatePass) || TraceEnabled(TraceType::kFaultMajor) ||
         TraceEnabled(TraceType::kCopy);
}

// A decode step of up to |bucket| sequences.
struct CapturedStep {
  uint32_t bucket = 0;
  cuda::AttentionPlan plan;  // none where it attends with our own kernel
  CudaGraph graph;
};

}  // namespace

struct CudaCompute::Impl {
  // What one step under way needs of the host.
  struct Slot {
    CudaInputs inputs;
    PinnedBuffer outputs, decode_int, prefill_int;
    cudaEvent_t done = nullptr;
    CudaStepShape shape;
    StepGates* gates = nullptr;
    TimeNs launched_ns = 0;         // by the host, before its launch; 0: nobody wants its times
    bool behind_another = false;    // submitted while the one before it was under way
    std::vector<int32_t> logprobs;  // by logit row: how many top ones were asked for; -1: none
    std::vector<uint8_t> sampled;   // by logit row
  };

  Impl(const ModelConfig& c, const ComputeLimits& l, const WeightMap& m, const Memory& mem,
       const Options& o)
      : config(c), limits(l), map(m), memory(mem), options(o) {}
  ~Impl() {
    if (memory.stream != nullptr) (void)cudaStreamSynchronize(memory.stream);
    for (Slot& s : slots) {
      if (s.done != nullptr) (void)cudaEventDestroy(s.done);
    }
  }

  Status Use() const { return FromCuda(cudaSetDevice(options.device), "cudaSetDevice"); }
  std::byte* scratch() const { return reinterpret_cast<std::byte*>(memory.scratch); }
  Status Build(const std::function<void(uint64_t, uint64_t)>& progress);
  Status MakeSlots();
  Status FillRopeTables();
  Status PlanPadding(CapturedStep* step);
  Status Capture(uint32_t bucket);
  Status Plan(Slot& slot, CapturedStep* captured, cuda::AttentionPlan* decode,
              cuda::AttentionPlan* prefill);
  // Our own attention needs no plan.
  bool PlansDecode(const CudaStepShape& shape) const {
    return shape.decode_sequences > 0 && !recorder->AttendsWithOwn(shape.decode_rows());
  }
  Status Launch(Slot& slot);
  Status UploadEdits(const Slot& slot);
  cuda::Exchange ExchangeOfSlots() const;
  // The next step to come is that of submitted + 1, whatever became of the one launched last.
  void GiveUp();
  CapturedStep* StepOf(uint32_t bucket);
  // Bounds the clock by the step's beginning and end, and tells both; gate times to |gate_times|.
  void ReadTimes(const Slot& slot, StepOutcome* outcome);
  void ReadSamples(const Slot& slot, StepOutcome* outcome) const;

  const ModelConfig config;
  ComputeLimits limits;
  const WeightMap map;
  const Memory memory;
  const Options options;
  CudaLayout layout;
  std::unique_ptr<cuda::GemmPlanner> gemm;
  std::optional<cuda::DecodeAttention> decode_attention;  // our own; unset: FlashInfer's only
  std::unique_ptr<CudaRecorder> recorder;
  std::vector<CapturedStep> captured;
  std::array<Slot, 2> slots;
  uint64_t submitted = 0, collected = 0;
  uint32_t recordings = 0;
  uint64_t graph_bytes = 0;
  std::string gpu;
  uint64_t last_end_ns = 0;
  CudaClock clock;
  std::vector<DeviceGateTimes> gate_times;  // by gate, of the step being collected
};

// --- Making --------------------------------------------------------------------------------------

Result<uint64_t> CudaCompute::ScratchBytes(const ModelConfig& config, const WeightMap& map,
                                           const ComputeLimits& limits) {
  const CudaLayout layout = WEIR_TRY(CudaLayout::Make(config, map, limits));
  return layout.bytes;
}

uint64_t CudaCompute::KvBlockBytes(const ModelConfig& config, const WeightMap& map) {
  return static_cast<uint64_t>(CudaKvLayoutOf(config, map).BlockBytes());
}

Status CudaCompute::MakeWeights(WeightPager& pager, Driver& driver, const Workplace& at,
                                const MadeMatrix& matrix) {
  const auto cols = static_cast<int64_t>(matrix.cols);
  const uint64_t row_bytes = matrix.cols * sizeof(cuda::Bf16);
  // The scratch: a word for what could not be compressed, some rows, and these compressed.
  constexpr uint64_t kWordSpace = 256;
  const uint64_t tile_rows = matrix.compressed ? compressed::kRows : 1;
  const uint64_t tile_out =
      matrix.compressed ? static_cast<uint64_t>(compressed::Bytes(compressed::kRows, cols)) : 0;
  const uint64_t tiles =
      (at.bytes - std::min(at.bytes, kWordSpace)) / (tile_rows * row_bytes + tile_out);
  if (tiles == 0) {
    return NoMemory("making up weights: the step buffers have " + std::to_string(at.bytes) +
                    " bytes, too few for " + std::to_string(tile_rows) + " rows of " +
                    std::to_string(row_bytes));
  }
  const VirtAddr word = at.scratch;
  const VirtAddr in = word + kWordSpace;
  const VirtAddr out = in + tiles * tile_rows * row_bytes;
  uint32_t failed = 0;
  if (matrix.compressed) {
    WEIR_TRY(FromCuda(cudaMemsetAsync(reinterpret_cast<void*>(word), 0, sizeof(failed), at.stream),
                      "a word"));
  }
  for (uint64_t row = 0; row < matrix.rows; row += tiles * tile_rows) {
    const uint64_t rows = std::min(tiles * tile_rows, matrix.rows - row);
    WEIR_TRY(FillRows(matrix, row, rows, in, at.stream));
    if (!matrix.compressed) {
      WEIR_TRY(
          pager.WriteFrom(at.stream_id, matrix.offset + row * row_bytes, rows * row_bytes, in));
      continue;
    }
    WEIR_TRY(ToStatus(cuda::CompressWeights({.weights = reinterpret_cast<const cuda::Bf16*>(in),
                                             .rows = static_cast<int64_t>(rows),
                                             .cols = cols,
                                             .out = reinterpret_cast<uint8_t*>(out),
                                             .failed = reinterpret_cast<uint32_t*>(word)},
                                            {.stream = at.stream})));
    WEIR_TRY(pager.WriteFrom(at.stream_id, matrix.offset + row / tile_rows * tile_out,
                             CeilDiv(rows, tile_rows) * tile_out, out));
  }
  const EventId made = WEIR_TRY(driver.Record(at.stream_id));
  WEIR_TRY(driver.Wait(made));
  if (!matrix.compressed) return OkStatus();
  WEIR_TRY(FromCuda(cudaMemcpy(&failed, reinterpret_cast<const void*>(word), sizeof(failed),
                               cudaMemcpyDeviceToHost),
                    "a word"));
  if (failed == 0) return OkStatus();
  return Unsupported("compress_weights: " + std::to_string(failed) +
                     " blocks of made-up weights have too many exponents. Start without it");
}

CudaCompute::CudaCompute(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
CudaCompute::~CudaCompute() = default;

Result<std::unique_ptr<CudaCompute>> CudaCompute::Create(
    const ModelConfig& config, const ComputeLimits& limits, const WeightMap& map,
    const Memory& memory, const Options& options,
    const std::function<void(uint64_t, uint64_t)>& progress) {
  auto impl = std::make_unique<Impl>(config, limits, map, memory, options);
  WEIR_TRY(impl->Build(progress));
  return std::unique_ptr<CudaCompute>(new CudaCompute(std::move(impl)));
}

Status CudaCompute::Impl::Build(const std::function<void(uint64_t, uint64_t)>& progress) {
  WEIR_TRY(Use());
  cudaDeviceProp properties = {};
  WEIR_TRY(FromCuda(cudaGetDeviceProperties(&properties, options.device), "the device"));
  gpu = properties.name;
  layout = WEIR_TRY(CudaLayout::Make(config, map, limits));
  limits.max_logit_edits = layout.max_edits;
  WEIR_TRY(FromCuda(cudaMemsetAsync(scratch(), 0, layout.bytes, memory.stream), "step buffers"));
  WEIR_TRY(FillRopeTables());
  WEIR_TRY(MakeSlots());
  WEIR_TRY(clock.Open());

  cuda::KvPool kv{.base = reinterpret_cast<cuda::Bf16*>(memory.kv),
                  .block_stride = static_cast<int64_t>(memory.kv_block_stride / 2),
                  .layout = CudaKvLayoutOf(config, map)};
  if (options.decode_attention == DecodeAttentionUse::kAuto) {
    cuda::DecodeAttention own;
    const cuda::LaunchStatus made =
        cuda::DecodeAttention::Create(AttentionShapeOf(config, map), &own);
    if (made.ok()) {
      decode_attention = own;
    } else if (made.code() != cudaErrorNotSupported) {
      return ToStatus(made);
    }
  }
  recorder = std::make_unique<CudaRecorder>(
      config, limits, map, layout, decode_attention ? &*decode_attention : nullptr,
      reinterpret_cast<std::byte*>(memory.weights), kv, scratch(),
      reinterpret_cast<uint64_t*>(memory.produced), reinterpret_cast<uint64_t*>(memory.consumed),
      ExchangeOfSlots(), memory.stream);
  WEIR_TRY(ToStatus(cuda::GemmPlanner::Create(
      {.workspace = scratch() + layout.gemm_workspace,
       .workspace_bytes = kGemmWorkspaceBytes,
       .expanded = reinterpret_cast<cuda::Bf16*>(scratch() + layout.expanded),
       .expanded_bytes = layout.expanded_bytes,
       .candidates = 6,
       .rounds = 3},
      &gemm)));
  // Choices of another library version or GPU are of no use; then all are made anew.
  if (!options.algorithms.empty()) (void)gemm->Import(options.algorithms);
  const std::vector<uint32_t> rows = RowBuckets(layout.decode_buckets, limits.max_rows);
  const uint64_t total = rows.size() + layout.decode_buckets.size();
  uint64_t done = 0;
  for (size_t i = 0; i < rows.size(); ++i) {
    const bool decode = i < layout.decode_buckets.size();
    WEIR_TRY(recorder->Prepare(*gemm, rows[i], decode ? rows[i] : 0));
    if (progress) progress(++done, total);
  }
  ++recordings;
  size_t before = 0, after = 0, all = 0;
  WEIR_TRY(FromCuda(cudaMemGetInfo(&before, &all), "free memory"));
  for (const uint32_t bucket : layout.decode_buckets) {
    WEIR_TRY(Capture(bucket).WithContext("capturing the decode step of " + std::to_string(bucket) +
                                         " sequences"));
    if (progress) progress(++done, total);
  }
  WEIR_TRY(FromCuda(cudaStreamSynchronize(memory.stream), "capturing"));
  WEIR_TRY(FromCuda(cudaMemGetInfo(&after, &all), "free memory"));
  graph_bytes = before > after ? before - after : 0;
  return OkStatus();
}

Status CudaCompute::Impl::MakeSlots() {
  for (Slot& s : slots) {
    s.inputs = WEIR_TRY(CudaInputs::Create(layout));
    s.outputs = WEIR_TRY(PinnedBuffer::Create(layout.out.bytes));
    s.decode_int = WEIR_TRY(PinnedBuffer::Create(layout.decode_int_bytes));
    s.prefill_int = WEIR_TRY(PinnedBuffer::Create(layout.prefill_int_bytes));
    WEIR_TRY(FromCuda(cudaEventCreateWithFlags(&s.done, cudaEventDisableTiming), "an event"));
  }
  return OkStatus();
}

cuda::Exchange CudaCompute::Impl::ExchangeOfSlots() const {
  cuda::Exchange exchange{.inputs = scratch() + layout.inputs,
                          .results = scratch() + layout.outputs,
                          .turn = reinterpret_cast<uint32_t*>(scratch() + layout.turn)};
  static_assert(std::tuple_size_v<decltype(slots)> ==
                std::tuple_size_v<decltype(exchange.host_inputs)>);
  for (size_t i = 0; i < slots.size(); ++i) {
    exchange.host_inputs[i] = slots[i].inputs.block();
    exchange.host_results[i] = slots[i].outputs.At<std::byte>(0);
  }
  return exchange;
}

Status CudaCompute::Impl::FillRopeTables() {
  const std::vector<float> frequencies = RopeInverseFrequencies(config);
  const size_t n = size_t{limits.max_context} * (config.head_dim / 2);
  std::vector<float> cos(n), sin(n);
  cpu::FillRopeTable(frequencies.data(), config.head_dim / 2, 0, limits.max_context,
                     RopeAttentionScale(config), cos.data(), sin.data());
  WEIR_TRY(FromCuda(cudaStreamSynchronize(memory.stream), "rope tables"));
  WEIR_TRY(FromCuda(cudaMemcpy(scratch() + layout.rope_cos, cos.data(), n * sizeof(float),
                               cudaMemcpyHostToDevice),
                    "rope tables"));
  return FromCuda(cudaMemcpy(scratch() + layout.rope_sin, sin.data(), n * sizeof(float),
                             cudaMemcpyHostToDevice),
                  "rope tables");
}

Status CudaCompute::Impl::PlanPadding(CapturedStep* step) {
  const uint32_t bucket = step->bucket;
  std::vector<int32_t> q_indptr(bucket + 1), page_indptr(bucket + 1, 0), contexts(bucket, 0);
  for (uint32_t i = 0; i <= bucket; ++i) q_indptr[i] = static_cast<int32_t>(i);
  const cuda::PlanRequest request{
      .kernel = cuda::AttentionKernel::kFa2,
      .shape = AttentionShapeOf(config, map),
      .batch = {q_indptr.data(), page_indptr.data(), contexts.data(), static_cast<int32_t>(bucket)},
      .use = cuda::PlanUse::kDecodeGraph};
  WEIR_TRY(ToStatus(cuda::PlanAttention(request,
                                        recorder->decode_buffers(slots[0].decode_int.At<void>(0)),
                                        memory.stream, &step->plan)));
  return FromCuda(cudaStreamSynchronize(memory.stream), "planning");
}

// Captures with a batch of nothing but padding: the launches depend on the bucket only.
Status CudaCompute::Impl::Capture(uint32_t bucket) {
  CapturedStep step;
  step.bucket = bucket;
  CudaStepShape shape;
  shape.bucket = bucket;
  const bool own_attention = recorder->AttendsWithOwn(bucket);
  if (!own_attention) WEIR_TRY(PlanPadding(&step));

  step.graph = WEIR_TRY(CaptureCudaGraph(memory.stream, [&] {
    const cuda::AttentionPlan* plan = own_attention ? nullptr : &step.plan;
    return recorder->Enqueue(*gemm, shape, {.decode = plan, .prefill = nullptr}, true);
  }));
  captured.push_back(std::move(step));
  return OkStatus();
}

// --- Running -------------------------------------------------------------------------------------

CapturedStep* CudaCompute::Impl::StepOf(uint32_t bucket) {
  const auto at = std::lower_bound(captured.begin(), captured.end(), bucket,
                                   [](const CapturedStep& s, uint32_t b) { return s.bucket < b; });
  return &*at;
}

Status CudaCompute::Impl::Plan(Slot& slot, CapturedStep* step, cuda::AttentionPlan* decode,
                               cuda::AttentionPlan* prefill) {
  cuda::PlanRequest request{
      .kernel = cuda::AttentionKernel::kFa2,
      .shape = AttentionShapeOf(config, map),
      .use = step != nullptr ? cuda::PlanUse::kDecodeGraph : cuda::PlanUse::kEager};
  if (PlansDecode(slot.shape)) {
    request.batch = slot.inputs.decode(slot.shape, layout);
    WEIR_TRY(ToStatus(cuda::PlanAttention(
        request, recorder->decode_buffers(slot.decode_int.At<void>(0)), memory.stream, decode)));
    if (step != nullptr && !cuda::SameLaunch(*decode, step->plan)) {
      return BadState("the attention plan of " + std::to_string(step->bucket) +
                      " sequences is not the captured one");
    }
  }
  if (slot.shape.prefill_sequences > 0) {
    request.batch = slot.inputs.prefill(slot.shape, layout);
    request.kernel = cuda::PrefillKernel(request.shape, request.batch);
    WEIR_TRY(ToStatus(cuda::PlanAttention(
        request, recorder->prefill_buffers(slot.prefill_int.At<void>(0)), memory.stream, prefill)));
  }
  return OkStatus();
}

Status CudaCompute::Impl::UploadEdits(const Slot& slot) {
  return FromCuda(cudaMemcpyAsync(scratch() + layout.edits, slot.inputs.edits(),
                                  slot.shape.edits * sizeof(cuda::LogitEdit),
                                  cudaMemcpyHostToDevice, memory.stream),
                  "uploading penalties");
}

void CudaCompute::Impl::GiveUp() {
  // M2: what was launched of it may still read weights that the caller is about to unmap.
  (void)cudaStreamSynchronize(memory.stream);
  const auto turn = static_cast<uint32_t>(submitted);
  (void)cudaMemcpy(scratch() + layout.turn, &turn, sizeof(turn), cudaMemcpyHostToDevice);
}

Status CudaCompute::Scrub(std::span<const BlockId> blocks) {
  const Memory& memory = impl_->memory;
  WEIR_TRY(impl_->Use());
  Status queued = ForEachRun(blocks, [&](BlockId first, size_t n) {
    void* at = reinterpret_cast<void*>(memory.kv + first * memory.kv_block_stride);
    return FromCuda(cudaMemsetAsync(at, 0, n * memory.kv_block_stride, memory.stream),
                    "scrubbing KV blocks");
  });
  // M2: the caller may unmap them now.
  if (!queued.ok()) (void)cudaStreamSynchronize(memory.stream);
  return queued;
}

Status CudaCompute::Submit(const StepBatch& batch, StepGates& gates) {
  Impl& m = *impl_;
  WEIR_CHECK(batch.rows() > 0 && batch.rows() <= m.limits.max_rows, "step rows");
  WEIR_CHECK(batch.sequences.size() <= m.limits.max_sequences, "step sequences");
  WEIR_CHECK(m.submitted - m.collected < depth(), "collect a step first");
  WEIR_TRY(m.Use());
  Impl::Slot& slot = m.slots[m.submitted % m.slots.size()];
  slot.shape = WEIR_TRY(slot.inputs.Fill(m.submitted + 1, batch, gates.device_gates(), m.layout));
  slot.gates = &gates;
  slot.behind_another = m.submitted != m.collected;
  slot.logprobs.clear();
  slot.sampled.clear();
  for (const StepSequence& s : batch.sequences) {
    if (!s.wants_logits) continue;
    slot.logprobs.push_back(s.sample.params != nullptr ? s.sample.params->logprobs : -1);
    slot.sampled.push_back(s.sample.params != nullptr ? 1 : 0);
  }
  slot.launched_ns = 0;
  if (TimesWanted()) {
    WEIR_TRY(m.clock.Refresh());
    slot.launched_ns = TraceMonotonicNs();
  }
  Status launched = m.Launch(slot);
  if (!launched.ok()) {
    m.GiveUp();
    return launched;
  }
  ++m.submitted;
  return OkStatus();
}

Status CudaCompute::Impl::Launch(Slot& slot) {
  CapturedStep* step = slot.shape.bucket > 0 ? StepOf(slot.shape.bucket) : nullptr;
  if (slot.shape.edits > 0) WEIR_TRY(UploadEdits(slot));
  cuda::AttentionPlan decode, prefill;
  WEIR_TRY(Plan(slot, step, &decode, &prefill));
  if (step != nullptr) {
    WEIR_TRY(FromCuda(cudaGraphLaunch(step->graph.get(), memory.stream), "cudaGraphLaunch"));
  } else {
    WEIR_TRY(recorder->Enqueue(*gemm, slot.shape,
                               {.decode = PlansDecode(slot.shape) ? &decode : nullptr,
                                .prefill = slot.shape.prefill_sequences > 0 ? &prefill : nullptr},
                               false));
  }
  return FromCuda(cudaEventRecord(slot.done, memory.stream), "ending a step");
}

Status CudaCompute::Collect(StepOutcome* outcome) {
  Impl& m = *impl_;
  *outcome = {};
  WEIR_CHECK(m.collected < m.submitted, "no step is under way");
  Impl::Slot& slot = m.slots[m.collected++ % m.slots.size()];
  const uint64_t step = m.collected;
  WEIR_TRY(m.Use());
  WEIR_TRY(FromCuda(cudaEventSynchronize(slot.done), "a step"));
  WEIR_CHECK(*slot.outputs.At<uint64_t>(m.layout.out.step) == step, "results of another step");
  const cuda::StepLog& log = *slot.outputs.At<cuda::StepLog>(m.layout.out.log);
  outcome->compute_ns = log.end_ns - log.begin_ns;
  if (slot.behind_another) {
    outcome->idle_before_ns = log.begin_ns > m.last_end_ns ? log.begin_ns - m.last_end_ns : 0;
  }
  m.last_end_ns = log.end_ns;
  m.gate_times.clear();
  if (slot.launched_ns != 0) m.ReadTimes(slot, outcome);
  if (slot.shape.armed) {
    WEIR_TRY(slot.gates->Report({.passed = log.passed,
                                 .departed = log.departed,
                                 .faults = log.faults,
                                 .failed_gate = log.failed_gate,
                                 .stall_ns = log.stall_ns,
                                 .max_stall_ns = log.max_stall_ns,
                                 .times = m.gate_times,
                                 .clock_error_ns = outcome->clock_error_ns}));
  }
  m.ReadSamples(slot, outcome);
  return OkStatus();
}

void CudaCompute::Impl::ReadTimes(const Slot& slot, StepOutcome* outcome) {
  const cuda::StepLog& log = *slot.outputs.At<cuda::StepLog>(layout.out.log);
  clock.Bound(log.begin_ns, slot.launched_ns, ClockMap::kNever);
  clock.Bound(log.end_ns, ClockMap::kEver, TraceMonotonicNs());
  outcome->begin_ns = clock.ToHost(log.begin_ns);
  outcome->end_ns = outcome->begin_ns + (log.end_ns - log.begin_ns);
  outcome->clock_error_ns = clock.error_ns(log.begin_ns);
  if (!slot.shape.armed) return;
  const auto* records = slot.outputs.At<cuda::GateRecord>(layout.out.gate_records);
  const uint32_t gates = map.layout.gates();
  gate_times.resize(gates);
  for (uint32_t gate = 0; gate < gates; ++gate) {
    const cuda::GateRecord& r = records[gate];
    if (r.arrive_ns == 0) continue;
    // By the step's beginning, so that a wait is as long as it was measured.
    const TimeNs arrive = outcome->begin_ns + (r.arrive_ns - log.begin_ns);
    gate_times[gate] = {arrive, arrive + (r.pass_ns - r.arrive_ns)};
  }
}

void CudaCompute::Impl::ReadSamples(const Slot& slot, StepOutcome* outcome) const {
  const auto* results = slot.outputs.At<cuda::SampleResult>(layout.out.results);
  outcome->samples.reserve(slot.shape.logit_rows);
  for (uint32_t row = 0; row < slot.shape.logit_rows; ++row) {
    if (slot.sampled[row] == 0) continue;
    const cuda::SampleResult& r = results[row];
    switch (r.error) {
      case cuda::SampleError::kNone: break;
      case cuda::SampleError::kNan:
        outcome->samples.emplace_back(DataLoss("the model produced a logit that is not a number"));
        continue;
      case cuda::SampleError::kInfinite:
        outcome->samples.emplace_back(DataLoss("the model produced an infinite logit"));
        continue;
      case cuda::SampleError::kNothingPossible:
        outcome->samples.emplace_back(DataLoss("no token is possible: every logit is -infinity"));
        continue;
    }
    SampledToken token{.token = r.token, .logprob = r.logprob};
    const size_t first = size_t{row} * cuda::kMaxTopLogprobs;
    for (int32_t i = 0; i < slot.logprobs[row]; ++i) {
      const int32_t id =
          slot.outputs.At<int32_t>(layout.out.top_tokens)[first + static_cast<size_t>(i)];
      if (id < 0) break;
      token.top.push_back(
          {id, slot.outputs.At<float>(layout.out.top_logprobs)[first + static_cast<size_t>(i)]});
    }
    outcome->samples.emplace_back(std::move(token));
  }
}

Result<std::vector<float>> CudaCompute::ReadLogits(uint32_t row) {
  Impl& m = *impl_;
  WEIR_TRY(m.Use());
  if (m.collected != m.submitted) return BadState("a step is under way");
  std::vector<float> logits(m.config.vocab_size);
  WEIR_TRY(FromCuda(cudaMemcpy(logits.data(),
                               m.scratch() + m.layout.logits +
                                   uint64_t{row} * m.config.vocab_size * sizeof(float),
                               logits.size() * sizeof(float), cudaMemcpyDeviceToHost),
                    "reading logits"));
  return logits;
}

// --- Looking -------------------------------------------------------------------------------------

const ComputeLimits& CudaCompute::limits() const {
  return impl_->limits;
}

uint64_t CudaCompute::RecordedPointersDigest() const {
  return impl_->recorder->pointer_digest();
}

uint32_t CudaCompute::recordings() const {
  return impl_->recordings;
}

std::string CudaCompute::description() const {
  const auto own = std::count_if(
      impl_->captured.begin(), impl_->captured.end(),
      [this](const CapturedStep& step) { return impl_->recorder->AttendsWithOwn(step.bucket); });
  return "cuda " + impl_->gpu + ", " + std::to_string(impl_->captured.size()) + " captured steps" +
         (own > 0 ? ", " + std::to_string(own) + " with weir's decode attention" : "");
}

std::string CudaCompute::algorithms() const {
  return impl_->gemm->Export();
}

uint64_t CudaCompute::clock_error_ns() const {
  return impl_->clock.error_ns();
}

uint64_t CudaCompute::graph_bytes() const {
  return impl_->graph_bytes;
}

}  // namespace weir
