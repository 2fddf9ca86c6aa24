#include "bench/vmm/remap_load.h"

#include <algorithm>
#include <utility>

namespace weir::bench {
namespace {

constexpr uint64_t kHelpingNs = 10'000'000;
constexpr uint64_t kEndLimitNs = 2'000'000'000;
constexpr uint64_t kUnderWayNs = 100'000;  // from the first launch to the device being at work
constexpr uint32_t kTrialUnits = 8;

}  // namespace

Result<std::unique_ptr<RemapLoad>> RemapLoad::Create(Driver& driver, DeviceWork* work,
                                                     const LoadStreams& streams,
                                                     const LoadSpec& spec,
                                                     const LoadMemory& memory) {
  auto load = std::unique_ptr<RemapLoad>(new RemapLoad(driver, work, streams, spec, memory));
  WEIR_TRY(load->Init());
  return load;
}

RemapLoad::~RemapLoad() {
  (void)End();
}

Status RemapLoad::Init() {
  if (spec_.reads) {
    WEIR_TRY(AddPart(streams_.compute, [this] {
      return work_->Read(streams_.compute, memory_.read_at, memory_.read_bytes);
    }));
  }
  if (spec_.graph)
    WEIR_TRY(AddPart(streams_.compute, [this] { return work_->Graph(streams_.compute); }));
  if (spec_.copies) WEIR_TRY(AddCopies(*spec_.copies));
  WEIR_TRY(Begin());
  return End();
}

Status RemapLoad::AddCopies(Tier from) {
  const auto source = std::find_if(memory_.sources.begin(), memory_.sources.end(),
                                   [&](const LoadMemory::Source& s) { return s.tier == from; });
  if (source == memory_.sources.end()) {
    return Unsupported("there is no memory of tier " + std::string(TierName(from)) +
                       " to copy from");
  }
  return AddPart(streams_.copy, [this, source = *source] {
    const uint64_t at = next_piece_++ * memory_.piece_bytes;
    return driver_.Copy(streams_.copy, memory_.write_at + at % memory_.write_bytes,
                        source.at + at % source.bytes, memory_.piece_bytes);
  });
}

// As many units a helping as take kHelpingNs, but no more than a stream's queue has room for, and
// one behind a gate, which ends the helping instead.
Status RemapLoad::AddPart(StreamId stream, std::function<Status()> unit) {
  Part part{.stream = stream, .unit = std::move(unit)};
  (void)WEIR_TRY(TimeUnits(part, 1));  // pages and code that come with the first use
  const uint64_t trial_ns = WEIR_TRY(TimeUnits(part, kTrialUnits));
  const uint64_t unit_ns = std::max<uint64_t>(trial_ns / kTrialUnits, 1);
  const uint64_t most = spec_.gate && stream == streams_.compute ? 1 : DeviceWork::kQueuedLaunches;
  part.units = static_cast<uint32_t>(std::clamp<uint64_t>(kHelpingNs / unit_ns, 1, most));
  parts_.push_back(std::move(part));
  return OkStatus();
}

Result<uint64_t> RemapLoad::TimeUnits(const Part& part, uint32_t units) {
  const TimeNs begin = driver_.Now();
  for (uint32_t i = 0; i < units; ++i) WEIR_TRY(part.unit());
  const EventId end = WEIR_TRY(driver_.Record(part.stream));
  WEIR_TRY(driver_.WaitFor(end, kEndLimitNs));
  return driver_.Now() - begin;
}

Status RemapLoad::Begin() {
  if (spec_.gate || spec_.launches) {
    WEIR_TRY(work_->CloseGate(streams_.compute));
    gate_closed_ = true;
    if (spec_.launches) WEIR_TRY(work_->Launches(streams_.compute, DeviceWork::kQueuedLaunches));
    gated_ = WEIR_TRY(driver_.Record(streams_.compute));
  }
  for (Part& part : parts_) {
    for (uint32_t i = 0; i < part.units; ++i) WEIR_TRY(part.unit());
    part.end = WEIR_TRY(driver_.Record(part.stream));
  }
  if (gate_closed_ && !spec_.gate) {
    WEIR_TRY(work_->OpenGate());
    gate_closed_ = false;
  }
  if (spec_.rests()) return OkStatus();
  for (const TimeNs begin = driver_.Now(); driver_.Now() - begin < kUnderWayNs;) {
  }
  return OkStatus();
}

Result<bool> RemapLoad::Running() {
  if (gated_.valid() && WEIR_TRY(driver_.IsComplete(gated_))) return false;
  for (const Part& part : parts_) {
    if (WEIR_TRY(driver_.IsComplete(part.end))) return false;
  }
  return true;
}

Status RemapLoad::End() {
  if (gate_closed_) WEIR_TRY(work_->OpenGate());
  gate_closed_ = false;
  if (gated_.valid()) WEIR_TRY(driver_.WaitFor(gated_, kEndLimitNs));
  for (const Part& part : parts_) {
    if (part.end.valid()) WEIR_TRY(driver_.WaitFor(part.end, kEndLimitNs));
  }
  return OkStatus();
}

}  // namespace weir::bench
