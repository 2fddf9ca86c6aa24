#include "tools/trace/timeline.h"

#include <algorithm>

#include <fmt/format.h>

namespace weir::trace_tool {

Timeline::Timeline(TraceReader& reader, const TimelineOptions& options) {
  const uint64_t origin = std::min(reader.header().start_ns, reader.first_ns());
  const double last_s = reader.SecondsOf(reader.last_ns());
  from_s_ = std::max(options.from_s, reader.SecondsOf(reader.first_ns()));
  const double to_s = options.to_s > 0 ? std::min(options.to_s, last_s) : last_s;
  if (reader.records() == 0) throw TraceError("there is no record in the trace: nothing to show");
  if (to_s < from_s_) {
    throw TraceError(
        fmt::format("nothing lies between {} s and {} s; the trace goes from 0 to {} s",
                    options.from_s, options.to_s, last_s));
  }
  begin_ns_ = origin + static_cast<uint64_t>(from_s_ * 1e9);
  end_ns_ = std::max(origin + static_cast<uint64_t>(to_s * 1e9), begin_ns_ + 1);
  columns_.resize(std::max<size_t>(1, options.columns));
  column_ns_ = static_cast<double>(end_ns_ - begin_ns_) / static_cast<double>(columns_.size());
  layers_ = reader.meta().layers.size();
  MemoryState state(reader.meta());
  reader.ForEach([&](const TraceEvent& event) {
    CloseColumnsBefore(event.record.time_ns, state);
    state.Add(event.record);
    Add(event.record, reader);
  });
  CloseColumnsBefore(UINT64_MAX, state);
  if (serving_from_s_ < 0) serving_from_s_ = from_s_;
}

void Timeline::CloseColumnsBefore(uint64_t time_ns, const MemoryState& state) {
  while (closed_ < columns_.size()) {
    const double end =
        static_cast<double>(begin_ns_) + column_ns_ * static_cast<double>(closed_ + 1);
    if (static_cast<double>(time_ns) <= end) return;
    TimelineColumn& c = columns_[closed_++];
    c.known = state.granules() != 0 || state.queue().capacity != 0;
    for (uint64_t owner = 0; owner < MemoryState::kOwners; ++owner) {
      c.granules[owner] = state.GranulesOf(owner);
    }
    c.queue = state.queue();
    c.evicted_bytes = state.evicted_bytes();
    for (const auto& layer : state.layers()) c.home.push_back(static_cast<float>(layer.share()));
  }
}

template <typename Fn>
void Timeline::Spread(uint64_t begin_ns, uint64_t end_ns, Fn add) {
  if (end_ns < begin_ns) return;
  const auto position = [this](uint64_t t) {
    return (static_cast<double>(t) - static_cast<double>(begin_ns_)) / column_ns_;
  };
  const double begin = position(begin_ns);
  const double end = position(end_ns);
  const auto n = static_cast<double>(columns_.size());
  if (end < 0 || begin > n) return;
  const auto first = static_cast<size_t>(std::clamp(begin, 0.0, n - 1));
  const auto last = static_cast<size_t>(std::clamp(end, 0.0, n - 1));
  if (end - begin < 1e-6) return add(columns_[first], 1.0);
  for (size_t i = first; i <= last; ++i) {
    const double from = std::max(begin, static_cast<double>(i));
    const double to = std::min(end, static_cast<double>(i + 1));
    if (to > from) add(columns_[i], (to - from) / (end - begin));
  }
}

void Timeline::OnStep(const TraceRecord& r) {
  const std::optional<TraceRecord> begun = open_steps_.End(r.args[0]);
  const uint64_t begin = r.time_ns - std::min(r.time_ns, r.args[3]);
  if (begin >= end_ns_ || r.time_ns < begin_ns_) return;
  const uint64_t prompt = begun ? std::min(begun->args[3], r.args[2]) : 0;
  step_ns += static_cast<double>(r.args[3]);
  if (r.cause == static_cast<uint8_t>(StepKind::kCalibration)) return;  // nobody's tokens
  ++steps;
  tokens += r.args[2];
  output_tokens += r.args[2] - prompt;
  Spread(begin, r.time_ns, [&](TimelineColumn& c, double share) {
    c.prompt_tokens += share * static_cast<double>(prompt);
    c.output_tokens += share * static_cast<double>(r.args[2] - prompt);
  });
}

void Timeline::Add(const TraceRecord& r, TraceReader& reader) {
  const bool inside = r.time_ns >= begin_ns_ && r.time_ns <= end_ns_;
  switch (static_cast<TraceType>(r.type)) {
    case TraceType::kStepBegin:
      open_steps_.Begin(r);
      if (r.cause == static_cast<uint8_t>(StepKind::kServing) && serving_from_s_ < 0) {
        serving_from_s_ = reader.SecondsOf(r.time_ns);
      }
      break;
    case TraceType::kStepEnd: OnStep(r); break;
    case TraceType::kStepFailed:
      Spread(r.time_ns, r.time_ns, [](TimelineColumn& c, double) { ++c.failed_steps; });
      break;
    case TraceType::kFaultMajor:
    case TraceType::kFaultMinor: {
      if (!inside) break;
      ++faults;
      stall_ns += static_cast<double>(r.args[3]);
      const size_t cause = r.cause < kFaultCauses ? r.cause : 0;
      Spread(r.time_ns, r.time_ns, [](TimelineColumn& c, double) { ++c.faults; });
      Spread(r.time_ns - std::min(r.time_ns, r.args[3]), r.time_ns,
             [&](TimelineColumn& c, double share) {
               c.stall_ns[cause] += share * static_cast<double>(r.args[3]);
             });
      break;
    }
    case TraceType::kCopy:
    case TraceType::kFill:
      if (inside) streamed_bytes += static_cast<double>(r.args[3]);
      Spread(r.args[4], r.args[5], [&](TimelineColumn& c, double share) {
        c.link_bytes[std::min<uint64_t>(r.cause, 7)] += share * static_cast<double>(r.args[3]);
      });
      break;
    case TraceType::kPlanCommit:
    case TraceType::kPlanRollback: {
      const bool rolled_back = r.type == static_cast<uint16_t>(TraceType::kPlanRollback);
      const bool moves =
          r.cause == kPlanEvict || r.cause == kPlanRestore || r.cause == kPlanKvShrink;
      if (!inside || !(moves || rolled_back) || plans_.size() >= kMostPlans) break;
      plans_.push_back({r.time_ns, r.args[3], r.cause, r.args[0], rolled_back ? 0 : r.args[1],
                        rolled_back ? 0 : r.args[2], rolled_back});
      break;
    }
    default: break;
  }
}

}  // namespace weir::trace_tool
