#include "tools/trace/perfetto.h"

#include <algorithm>
#include <string>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "tools/trace/schema.h"

namespace weir::trace_tool {
namespace {

using Json = nlohmann::ordered_json;

enum Group : int { kEngine = 1, kLinks, kRequests, kCounters };
enum EngineTrack : int { kSteps = 1, kDeviceSteps, kGates, kPlans, kPolicy };
constexpr int kFirstLane = 16;       // tracks that come as they are needed
constexpr size_t kMostLanes = 4096;  // beyond that slices share the last one

// Numbers with a point are written as they stand: 3 digits are nanoseconds.
Json Microseconds(uint64_t ns) {
  return static_cast<double>(ns) / 1000;
}

std::string StepName(const std::optional<TraceRecord>& begin, uint8_t kind) {
  if (kind == static_cast<uint8_t>(StepKind::kCalibration)) return "calibration";
  if (!begin) return "step";
  return begin->args[3] == 0 ? "decode" : "with prefill";
}

}  // namespace

ChromeTraceWriter::ChromeTraceWriter(const TraceReader& reader, Out out)
    : reader_(reader),
      out_(std::move(out)),
      origin_ns_(std::min(reader.header().start_ns, reader.first_ns())),
      state_(reader.meta()) {
  const TraceMeta& m = reader.meta();
  Json about;
  for (const auto& [key, value] : {std::pair{"program", &m.program},
                                   {"version", &m.version},
                                   {"commit", &m.commit},
                                   {"command", &m.command},
                                   {"model", &m.model},
                                   {"policy", &m.policy},
                                   {"host", &m.host},
                                   {"device", &m.device}}) {
    if (!value->empty()) about[key] = *value;
  }
  for (const std::string& line : reader.losses().Lines()) about["missing"].push_back(line);
  out_("{\"displayTimeUnit\":\"ms\",\"otherData\":" +
       about.dump(-1, ' ', false, Json::error_handler_t::replace) + ",\"traceEvents\":[\n");
  const std::string model = m.model.substr(m.model.find_last_of('/') + 1);
  const std::string groups[] = {"engine: " + model, "links", "requests", "memory and load"};
  for (int i = 0; i < 4; ++i) {
    Write({{"ph", "M"}, {"pid", i + 1}, {"name", "process_name"}, {"args", {{"name", groups[i]}}}});
    Write({{"ph", "M"},
           {"pid", i + 1},
           {"name", "process_sort_index"},
           {"args", {{"sort_index", i}}}});
  }
  NameTrack({kEngine, kSteps}, "steps");
  NameTrack({kEngine, kGates}, "gates waited for");
  NameTrack({kEngine, kPlans}, "plans");
  NameTrack({kEngine, kPolicy}, "policy");
}

void ChromeTraceWriter::Write(const Json& event) {
  out_((written_++ == 0 ? "" : ",\n") + event.dump(-1, ' ', false, Json::error_handler_t::replace));
}

void ChromeTraceWriter::NameTrack(Track track, const std::string& name) {
  for (const char* what : {"thread_name", "thread_sort_index"}) {
    const bool text = std::string_view(what) == "thread_name";
    Json event = {{"ph", "M"}, {"pid", track.pid}, {"tid", track.tid}, {"name", what}};
    event["args"] = text ? Json{{"name", name}} : Json{{"sort_index", track.tid}};
    Write(event);
  }
}

Json ChromeTraceWriter::Time(uint64_t time_ns) const {
  return Microseconds(time_ns > origin_ns_ ? time_ns - origin_ns_ : 0);
}

// The moment |duration_ns| before; not before the trace began.
uint64_t ChromeTraceWriter::Before(uint64_t time_ns, uint64_t duration_ns) const {
  return time_ns - std::min(duration_ns, time_ns - std::min(time_ns, origin_ns_));
}

void ChromeTraceWriter::Slice(Track track, const std::string& name, Span span, Json args) {
  const uint64_t begin = std::max(span.begin_ns, origin_ns_);
  const uint64_t length = span.end_ns > begin ? span.end_ns - begin : 0;
  Json event = {{"ph", "X"},
                {"pid", track.pid},
                {"tid", track.tid},
                {"ts", Time(begin)},
                {"dur", Microseconds(length)},
                {"name", name}};
  if (!args.empty()) event["args"] = std::move(args);
  Write(event);
}

void ChromeTraceWriter::Instant(Track track, const std::string& name, uint64_t at, Json args) {
  Write({{"ph", "i"},
         {"s", "t"},
         {"pid", track.pid},
         {"tid", track.tid},
         {"ts", Time(at)},
         {"name", name},
         {"args", std::move(args)}});
}

// Only where it changes.
void ChromeTraceWriter::Counter(const std::string& name, uint64_t at, Json values) {
  std::string text = values.dump();
  std::string& last = last_counter_[name];
  if (text == last) return;
  last = std::move(text);
  Write({{"ph", "C"},
         {"pid", kCounters},
         {"tid", 0},
         {"ts", Time(at)},
         {"name", name},
         {"args", std::move(values)}});
}

// The gap before it is time in which the device had nothing to do.
void ChromeTraceWriter::OnDeviceStep(const TraceRecord& r, const std::string& name) {
  if (device_end_ns_ == 0) NameTrack({kEngine, kDeviceSteps}, "steps on the device");
  const Span span{std::max(r.args[1], device_end_ns_), std::max(r.args[2], device_end_ns_)};
  Json args = {{"step", r.args[0]}, {"clock_error_us", Microseconds(r.args[3])}};
  if (device_end_ns_ != 0) args["idle_before_us"] = Microseconds(span.begin_ns - device_end_ns_);
  device_end_ns_ = span.end_ns;
  Slice({kEngine, kDeviceSteps}, name, span, std::move(args));
}

void ChromeTraceWriter::OnStep(const TraceRecord& r) {
  const std::optional<TraceRecord> begin = open_steps_.End(r.args[0]);
  const bool failed = r.type == static_cast<uint16_t>(TraceType::kStepFailed);
  const uint64_t duration = failed ? r.args[2] : r.args[3];
  Json args = {{"step", r.args[0]}};
  if (begin) {
    args["sequences"] = begin->args[1];
    args["tokens"] = begin->args[2];
    args["prompt_tokens"] = begin->args[3];
    args["context_tokens"] = begin->args[4];
  }
  if (failed) {
    args["status"] = r.args[1];
  } else {
    args["stall_ms"] = static_cast<double>(r.args[4]) * 1e-6;
    args["streamed_bytes"] = r.args[5];
  }
  const std::string name = failed ? "failed step" : StepName(begin, r.cause);
  const Span span{Before(r.time_ns, duration), r.time_ns};
  if (device_step_.type != 0 && device_step_.args[0] == r.args[0] && !failed) {
    OnDeviceStep(device_step_, name);
    device_step_ = {};
    // The host's steps overlap: the next is submitted while this one runs.
    const Span host{begin ? begin->time_ns : span.begin_ns, r.time_ns};
    Slice(FreeLane(kEngine, "steps on the host", host), name, host, std::move(args));
  } else {
    Slice({kEngine, kSteps}, name, span, std::move(args));
  }
  if (failed) return;
  const double seconds = static_cast<double>(std::max<uint64_t>(1, duration)) * 1e-9;
  Counter("tokens per second", span.begin_ns,
          {{"value", static_cast<double>(r.args[2]) / seconds}});
  Counter("streamed MB per second", span.begin_ns,
          {{"value", static_cast<double>(r.args[5]) * 1e-6 / seconds}});
  Counter("stall ms per step", span.begin_ns, {{"value", static_cast<double>(r.args[4]) * 1e-6}});
}

ChromeTraceWriter::Track ChromeTraceWriter::FreeLane(int pid, const std::string& name, Span span) {
  std::vector<uint64_t>& lanes = lanes_[name];
  const auto base = lane_base_.emplace(
      name, static_cast<int>(lane_base_.size()) * static_cast<int>(kMostLanes) + kFirstLane);
  auto lane = std::find_if(lanes.begin(), lanes.end(),
                           [&](uint64_t until) { return until <= span.begin_ns; });
  if (lane == lanes.end() && lanes.size() == kMostLanes) --lane;
  if (lane == lanes.end()) {
    lane = lanes.insert(lanes.end(), 0);
    const auto number = static_cast<int>(lanes.size());
    NameTrack({pid, base.first->second + number - 1},
              number == 1 ? name : name + " " + std::to_string(number));
  }
  *lane = span.end_ns;
  return {pid, base.first->second + static_cast<int>(lane - lanes.begin())};
}

// Fills of one batch have one begin and one end: they are one slice.
void ChromeTraceWriter::FlushFill() {
  if (fill_.type == 0) return;
  const Span span{fill_.args[4], std::max(fill_.args[4], fill_.args[5])};
  Slice(FreeLane(kLinks, TierName(fill_.cause) + " to device: fills", span), "fill", span,
        {{"slots", fill_.args[2]}, {"bytes", fill_.args[3]}});
  fill_ = {};
}

void ChromeTraceWriter::OnTransfer(const TraceRecord& r, bool copy) {
  if (!copy) {
    if (fill_.type != 0 && fill_.cause == r.cause && fill_.args[4] == r.args[4] &&
        fill_.args[5] == r.args[5]) {
      fill_.args[2] += r.args[2];
      fill_.args[3] += r.args[3];
      return;
    }
    FlushFill();
    fill_ = r;
    return;
  }
  const Span span{r.args[4], std::max(r.args[4], r.args[5])};
  const int64_t layer = reader_.meta().LayerOfSlot(r.args[2]);
  const double seconds = static_cast<double>(span.end_ns - span.begin_ns) * 1e-9;
  Json args = {{"chunk", r.args[0]}, {"first_slot", r.args[2]}, {"bytes", r.args[3]}};
  if (seconds > 0) args["GB_per_s"] = static_cast<double>(r.args[3]) * 1e-9 / seconds;
  Slice(FreeLane(kLinks, TierName(r.cause) + " to device: stripes", span),
        layer < 0 ? "copy" : "layer " + std::to_string(layer), span, std::move(args));
}

void ChromeTraceWriter::EndRun(uint64_t id, Request& request, uint64_t at, const std::string& how,
                               const TraceRecord* r) {
  const Track track{kRequests, static_cast<int>(request.lane) + 1};
  Json args = {{"request", id}, {"end", how}};
  if (request.added_ns != 0) {
    args["queued_ms"] = static_cast<double>(request.scheduled_ns - request.added_ns) * 1e-6;
  }
  if (r != nullptr) {
    args["prompt_tokens"] = r->args[1];
    args["cached_tokens"] = r->args[2];
    args["output_tokens"] = r->args[3];
    args["preemptions"] = r->args[4];
  }
  Slice(track, "request " + std::to_string(id), {request.scheduled_ns, at}, std::move(args));
  const bool first = request.first_token_ns >= request.scheduled_ns;
  const uint64_t split = first ? std::min(request.first_token_ns, at) : request.scheduled_ns;
  if (!request.had_token) {
    Slice(track, "prefill", {request.scheduled_ns, at}, {});
  } else {
    if (first) Slice(track, "prefill", {request.scheduled_ns, split}, {});
    Slice(track, "decode", {split, at}, {});
  }
  request.runs = false;
  request_lanes_[request.lane] = false;
}

void ChromeTraceWriter::OnRequest(const TraceRecord& r) {
  const auto event = static_cast<RequestEvent>(r.cause);
  Request& request = requests_[r.args[0]];
  switch (event) {
    case RequestEvent::kAdded: request.added_ns = r.time_ns; break;
    case RequestEvent::kScheduled: {
      if (request.runs) break;
      auto lane = std::find(request_lanes_.begin(), request_lanes_.end(), false);
      if (lane == request_lanes_.end()) {
        NameTrack({kRequests, static_cast<int>(request_lanes_.size()) + 1},
                  "lane " + std::to_string(request_lanes_.size() + 1));
        lane = request_lanes_.insert(request_lanes_.end(), false);
      }
      *lane = true;
      request.lane = static_cast<uint64_t>(lane - request_lanes_.begin());
      request.scheduled_ns = r.time_ns;
      request.runs = true;
      break;
    }
    case RequestEvent::kFirstToken:
      request.first_token_ns = r.time_ns;
      request.had_token = true;
      break;
    case RequestEvent::kPreempted:
    case RequestEvent::kFinished:
    case RequestEvent::kCancelled:
    case RequestEvent::kFailed:
      if (request.runs) EndRun(r.args[0], request, r.time_ns, RequestEventName(r.cause), &r);
      if (event == RequestEvent::kPreempted) {
        request.added_ns = r.time_ns;
      } else {
        requests_.erase(r.args[0]);
      }
      break;
    case RequestEvent::kUnknown: break;
  }
}

void ChromeTraceWriter::OnPlan(const TraceRecord& r) {
  const bool rolled_back = r.type == static_cast<uint16_t>(TraceType::kPlanRollback);
  Json args = {{"plan", r.args[0]}};
  if (rolled_back) {
    args["status"] = r.args[1];
    args["undo_failed"] = r.args[2];
  } else {
    args["granules_taken"] = r.args[1];
    args["granules_freed"] = r.args[2];
  }
  Slice({kEngine, kPlans}, RemapCauseName(r.cause) + (rolled_back ? " (rolled back)" : ""),
        {Before(r.time_ns, r.args[3]), r.time_ns}, std::move(args));
}

void ChromeTraceWriter::OnDecision(const TraceRecord& r) {
  Instant({kEngine, kPolicy},
          r.args[1] == r.args[2]  ? "keep"
          : r.args[1] > r.args[2] ? "evict more"
                                  : "bring home",
          r.time_ns,
          {{"decision", r.args[0]},
           {r.cause == 0 ? "granules_a_layer" : "layers", r.args[1]},
           {"before", r.args[2]},
           {"clipped", r.args[3] != 0},
           {"ring_slots", r.args[4]},
           {"reason", reader_.meta().ReasonText(r.args[5])}});
}

// What is there at the end of a step or of a plan.
void ChromeTraceWriter::Counters(uint64_t at) {
  const MemoryState::Queue& q = state_.queue();
  Counter("KV blocks", at, {{"used", q.used}, {"cached", q.cached}, {"free", q.free}});
  Counter("requests", at, {{"running", q.running}, {"waiting", q.waiting}});
  constexpr double kMiB = 1024 * 1024;
  Counter("weights away MiB", at, {{"value", static_cast<double>(state_.evicted_bytes()) / kMiB}});
  if (state_.granules() == 0) return;
  const double mib = static_cast<double>(reader_.meta().granule_bytes) / kMiB;
  Json owned;
  for (uint64_t owner = kOwnerWeights; owner < MemoryState::kOwners; ++owner) {
    const uint64_t n = state_.GranulesOf(owner);
    if (n != 0 || owner <= kOwnerKv) {
      owned[reader_.meta().OwnerName(owner)] = static_cast<double>(n) * mib;
    }
  }
  owned["free"] = static_cast<double>(state_.GranulesOf(kOwnerNone)) * mib;
  Counter("device memory MiB", at, std::move(owned));
}

void ChromeTraceWriter::Add(const TraceEvent& event) {
  const TraceRecord& r = event.record;
  state_.Add(r);
  switch (static_cast<TraceType>(r.type)) {
    case TraceType::kStepBegin: open_steps_.Begin(r); break;
    case TraceType::kDeviceStep: device_step_ = r; break;
    case TraceType::kStepEnd:
    case TraceType::kStepFailed:
      OnStep(r);
      Counters(r.time_ns);
      break;
    case TraceType::kFaultMajor:
    case TraceType::kFaultMinor: {
      Json args = {{"cause", FaultCauseName(r.cause)}, {"step", r.args[1]}, {"chunk", r.args[2]}};
      Slice({kEngine, kGates}, reader_.meta().GateName(r.args[0]),
            {Before(r.time_ns, r.args[3]), r.time_ns}, std::move(args));
      break;
    }
    case TraceType::kCopy: OnTransfer(r, true); break;
    case TraceType::kFill: OnTransfer(r, false); break;
    case TraceType::kPlanCommit:
    case TraceType::kPlanRollback:
      OnPlan(r);
      Counters(r.time_ns);
      break;
    case TraceType::kRequest: OnRequest(r); break;
    case TraceType::kPolicyDecision: OnDecision(r); break;
    case TraceType::kPressure:
      Instant({kEngine, kPolicy}, "pressure: " + CauseName(CauseKind::kPressureLevel, r.cause),
              r.time_ns, {{"free_granules", r.args[1]}});
      break;
    case TraceType::kDrop:
      Instant({kEngine, kSteps}, "records lost", r.time_ns, {{"records", r.args[0]}});
      break;
    case TraceType::kQueue: Counters(r.time_ns); break;
    default: break;
  }
}

void ChromeTraceWriter::Finish() {
  FlushFill();
  for (auto& [id, request] : requests_) {
    if (request.runs) EndRun(id, request, reader_.last_ns(), "still running", nullptr);
  }
  Counters(reader_.last_ns());
  out_("\n]}\n");
}

}  // namespace weir::trace_tool
