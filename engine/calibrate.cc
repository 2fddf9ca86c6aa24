// EngineCore::Calibrate: measures what steps cost on this machine before the first request.
#include <algorithm>
#include <utility>

#include "engine/core.h"
#include "engine/kv_trace.h"
#include "engine/step_trace.h"

namespace weir {
namespace {

// One batch shape to time: |sequences| of |rows| new tokens each, ending at |context| tokens.
struct Shape {
  uint32_t sequences = 1;
  uint32_t rows = 1;
  uint32_t context = 16;
};

constexpr int kRepeats = 2;  // the first also warms caches; the faster one counts

}  // namespace

Status EngineCore::Calibrate() {
  WEIR_CHECK(sequences_.empty(), "calibrate before the first request");
  BlockManager& blocks = memory_.blocks();
  const uint32_t max_rows = options_.scheduler.max_batched_tokens;
  const uint32_t max_sequences = options_.scheduler.max_sequences;
  const uint32_t long_context = std::min(options_.max_model_len, 512U);
  std::vector<Shape> shapes;
  for (const Shape& s :
       {Shape{1, 1, 16}, Shape{4, 1, 16}, Shape{16, 1, 16}, Shape{64, 1, 16},
        Shape{1, 1, long_context}, Shape{8, 1, long_context}, Shape{64, 1, long_context},
        Shape{1, 64, 64}, Shape{1, 256, 256}, Shape{1, 1024, 1024}, Shape{4, 256, 256}}) {
    if (s.sequences <= max_sequences && s.sequences * s.rows <= max_rows &&
        s.context <= options_.max_model_len && s.rows <= s.context) {
      shapes.push_back(s);
    }
  }

  std::vector<StepSample> samples;
  const auto measure = [&](const Shape& shape) -> Status {
    const auto per_sequence = static_cast<uint32_t>(CeilDiv(shape.context, kBlockTokens));
    const uint32_t need = per_sequence * shape.sequences;
    if (blocks.counts().free < need) WEIR_TRY(memory_.GrowKv(need - blocks.counts().free));
    if (blocks.available() < need) return OkStatus();  // a small budget measures small shapes only
    std::vector<BlockId> held;
    BlockRuns allocated(TraceType::kKvAlloc, kTraceNoSequence);
    StepBatch batch;
    for (uint32_t i = 0; i < shape.sequences; ++i) {
      StepSequence s;
      s.first_row = batch.rows();
      s.rows = shape.rows;
      s.context = shape.context;
      s.wants_logits = true;
      for (uint32_t b = 0; b < per_sequence; ++b) {
        held.push_back(blocks.Allocate(kNobody).value());
        allocated.Add(held.back());
      }
      for (uint32_t r = shape.context - shape.rows; r < shape.context; ++r) {
        batch.tokens.push_back(0);
        batch.positions.push_back(static_cast<int32_t>(r));
      }
      batch.sequences.push_back(s);
    }
    allocated.Flush();
    for (uint32_t i = 0; i < shape.sequences; ++i) {
      batch.sequences[i].blocks = std::span(held).subspan(size_t{i} * per_sequence, per_sequence);
    }
    StepSample best;
    Status status;
    for (int i = 0; i < kRepeats && status.ok(); ++i) {
      WeightPager& weights = memory_.weights();
      const uint64_t bytes = weights.stats().bytes_copied;
      const uint64_t stall = weights.stats().stall_ns;
      const TimeNs start = driver_.Now();
      const StepTrace trace(StepKind::kCalibration, batch, driver_, weights.stats().steps);
      StepOutcome outcome;
      status = weights.BeginStep();
      if (status.ok()) {
        status = compute_.Submit(batch, weights);
        if (!status.ok()) weights.CancelStep();
      }
      if (status.ok()) {
        status = compute_.Collect(&outcome);
        Status ended = weights.EndStep();
        if (status.ok()) status = std::move(ended);
      }
      const TimeNs took = compute_.depth() > 1 ? outcome.compute_ns : driver_.Now() - start;
      if (status.ok()) {
        trace.Ran(outcome);
        trace.Ended(took, weights.stats().stall_ns - stall, weights.stats().bytes_copied - bytes);
      } else {
        status = trace.Failed(std::move(status));
      }
      const auto step_ns = static_cast<double>(took);
      if (i == 0 || step_ns < best.step_ns) {
        best.tokens = batch.rows();
        best.context = static_cast<double>(batch.context_tokens());
        best.pairs = batch.prompt_pairs();
        best.evicted_bytes = static_cast<double>(weights.stats().bytes_copied - bytes);
        best.stall_ns = static_cast<double>(weights.stats().stall_ns - stall);
        best.step_ns = step_ns;
      }
    }
    BlockRuns freed(TraceType::kKvFree, kTraceNoSequence);
    for (auto it = held.rbegin(); it != held.rend(); ++it) {
      blocks.Release(*it);  // never indexed, never shared
      freed.Add(*it);
    }
    if (status.ok()) samples.push_back(best);
    return status;
  };

  for (const Shape& shape : shapes) WEIR_TRY(measure(shape));
  if (memory_.max_granules_per_layer() > 0) {
    cost_.SetLinkSpeed(memory_.link_bytes_per_ns());
    const Result<double> probed = memory_.ProbeLink();
    if (probed.ok()) {
      link_.SetExpectedOfProbe(*probed);
    } else if (probed.status().code() != StatusCode::kShouldWait) {
      return probed.status();
    }
    // The same small shapes with weights away tell how much copying disturbs the compute.
    const EvictionTarget home = memory_.weights().plan().target();
    WEIR_TRY(MoveBorder({.granules_per_layer = memory_.max_granules_per_layer(),
                         .ring_slots = memory_.ring_slots()}));
    for (size_t i = 0; i < std::min<size_t>(3, shapes.size()); ++i) WEIR_TRY(measure(shapes[i]));
    WEIR_TRY(MoveBorder(home));
  }
  return cost_.Calibrate(samples);
}

}  // namespace weir
