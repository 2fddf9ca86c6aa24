#include "tests/support/stream_compute.h"

#include <algorithm>
#include <array>
#include <utility>

#include "tests/support/sim_model.h"

namespace weir::testing {

StreamCompute::StreamCompute(SimDriver& driver, const WeightLayout& layout, VirtAddr weights,
                             const ComputeLimits& limits, const StreamComputeOptions& options)
    : driver_(driver),
      layout_(layout),
      weights_(weights),
      limits_(limits),
      options_(options),
      stream_(driver.CreateStream("steps").value()) {}

StreamCompute::~StreamCompute() {
  (void)driver_.DestroyStream(stream_);
}

Status StreamCompute::Scrub(std::span<const BlockId>) {
  return OkStatus();  // nobody reads KV
}

Status StreamCompute::ReadLayer(uint32_t layer) {
  const WeightSegment& s = layout_.layers[layer][0];
  const uint64_t granule = options_.granule_bytes;
  std::array<std::byte, 8> bytes{};
  for (uint64_t at = CeilDiv(s.offset, granule) * granule; at + bytes.size() <= s.offset + s.bytes;
       at += granule) {
    WEIR_TRY(driver_.Read(weights_ + at, bytes));
    for (uint64_t i = 0; i < bytes.size(); ++i) {
      if (bytes[i] == SimModel::WeightByte(at + i)) continue;
      ++wrong_granules_;
      break;
    }
  }
  return OkStatus();
}

Status StreamCompute::QueueLayer(Pending* step, uint32_t layer) {
  const int32_t chunk = step->chunk_of_gate.empty() ? -1 : step->chunk_of_gate[layer];
  const uint64_t number = step->device.pass_base + static_cast<uint64_t>(chunk) + 1;
  if (chunk >= 0) {
    WEIR_TRY(driver_.HostFunction(stream_, [this, step, layer] {
      step->times[layer].arrive_ns = driver_.Now();
      return OkStatus();
    }));
    WEIR_TRY(driver_.WaitCounter(stream_, step->device.produced, number));
    WEIR_TRY(driver_.HostFunction(stream_, [this, step, layer] {
      DeviceGateTimes& at = step->times[layer];
      at.pass_ns = driver_.Now();
      ++step->log.passed;
      const uint64_t stall = at.pass_ns - at.arrive_ns;
      if (stall > 0) ++step->log.faults;
      step->log.stall_ns += stall;
      step->log.max_stall_ns = std::max(step->log.max_stall_ns, stall);
      return OkStatus();
    }));
  }
  const WeightSegment& s = layout_.layers[layer][0];
  return driver_.Compute(stream_, options_.layer_ns,
                         {{.at = weights_ + s.offset, .bytes = s.bytes, .access = Access::kRead}},
                         [this, step, layer, chunk, number]() -> Status {
                           WEIR_TRY(ReadLayer(layer));
                           if (chunk < 0) return OkStatus();
                           step->log.departed = static_cast<uint32_t>(chunk) + 1;
                           return driver_.Write(step->device.consumed,
                                                std::as_bytes(std::span(&number, 1)));
                         });
}

Status StreamCompute::Submit(const StepBatch& batch, StepGates& gates) {
  driver_.AdvanceBy(options_.submit_ns);
  auto step = std::make_unique<Pending>();
  step->gates = &gates;
  step->device = gates.device_gates();
  step->chunk_of_gate.assign(step->device.chunk_of_gate.begin(), step->device.chunk_of_gate.end());
  step->device.chunk_of_gate = {};  // the pager's, which may change
  step->times.resize(layout_.layers.size());
  for (const StepSequence& s : batch.sequences) {
    if (s.wants_logits) step->positions.push_back(s.context);
  }
  WEIR_TRY(driver_.HostFunction(stream_, [this, p = step.get()] {
    p->begin = driver_.Now();
    return OkStatus();
  }));
  for (uint32_t layer = 0; layer < layout_.layers.size(); ++layer) {
    WEIR_TRY(QueueLayer(step.get(), layer));
  }
  WEIR_TRY(driver_.HostFunction(stream_, [this, p = step.get()] {
    p->end = driver_.Now();
    return OkStatus();
  }));
  step->done = WEIR_TRY(driver_.Record(stream_));
  pending_.push_back(std::move(step));
  return OkStatus();
}

Status StreamCompute::Collect(StepOutcome* outcome) {
  const std::unique_ptr<Pending> step = std::move(pending_.front());
  pending_.pop_front();
  *outcome = {};
  WEIR_TRY(driver_.Wait(step->done));
  ends_.push_back(step->end);
  outcome->compute_ns = step->end - step->begin;
  outcome->begin_ns = step->begin;
  outcome->end_ns = step->end;
  for (const uint64_t position : step->positions) {
    outcome->samples.emplace_back(
        SampledToken{.token = static_cast<int32_t>(position % limits_.vocab_size)});
  }
  step->log.times = step->times;
  return step->log.passed == 0 ? OkStatus() : step->gates->Report(step->log);
}

Result<std::vector<float>> StreamCompute::ReadLogits(uint32_t) {
  return Unsupported("steps without logits");
}

}  // namespace weir::testing
