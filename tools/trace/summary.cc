#include "tools/trace/summary.h"

#include <algorithm>

#include "tools/trace/schema.h"

namespace weir::trace_tool {

void Summary::OnFault(const TraceEvent& event) {
  const TraceRecord& r = event.record;
  faults_[r.cause].Add(r.args[3]);
  stall_.Add(r.args[3]);
  layers_[reader_.meta().LayerOfGate(r.args[0])].stall.Add(r.args[3]);
  if (top_.size() == kTopFaults && top_.back().event.record.args[3] >= r.args[3]) return;
  if (top_.size() == kTopFaults) top_.pop_back();
  const auto place = std::find_if(top_.begin(), top_.end(), [&](const FaultSeen& seen) {
    return seen.event.record.args[3] < r.args[3];
  });
  top_.insert(place, FaultSeen{event, last_decision_});
}

void Summary::OnTransfer(const TraceRecord& r, uint64_t first_slot, bool copy) {
  LinkTotals& link = links_[r.cause];
  link.bytes += r.args[3];
  ++link.transfers;
  link.busy.Add(r.args[4], r.args[5]);
  LayerTotals& layer = layers_[reader_.meta().LayerOfSlot(first_slot)];
  (copy ? layer.copied_bytes : layer.filled_bytes) += r.args[3];
}

void Summary::OnRequest(const TraceRecord& r) {
  ++requests_[r.cause];
  const auto event = static_cast<RequestEvent>(r.cause);
  if (event == RequestEvent::kAdded) {
    added_[r.args[0]] = r.time_ns;
    return;
  }
  const auto it = added_.find(r.args[0]);
  if (it == added_.end()) return;
  if (event == RequestEvent::kScheduled && r.args[4] == 0) cached_tokens_ += r.args[2];
  if (event == RequestEvent::kFirstToken) first_token_.Add(r.time_ns - it->second);
  if (event == RequestEvent::kFinished) whole_request_.Add(r.time_ns - it->second);
  if (event == RequestEvent::kFinished || event == RequestEvent::kCancelled ||
      event == RequestEvent::kFailed) {
    added_.erase(it);
  }
}

void Summary::OnDeviceStep(const TraceRecord& r) {
  if (r.args[1] > r.args[2]) return;
  ++device_steps_;
  device_busy_ns_ += r.args[2] - r.args[1];
  if (device_end_ns_ != 0 && r.args[1] > device_end_ns_) {
    device_idle_ns_ += r.args[1] - device_end_ns_;
  }
  device_end_ns_ = r.args[2];
  clock_error_ns_ = std::max(clock_error_ns_, r.args[3]);
}

void Summary::OnQueue(const TraceRecord& r) {
  if (queue_.type != 0 && r.time_ns > queue_.time_ns) {
    const auto dt = static_cast<double>(r.time_ns - queue_.time_ns);
    kv_.time_ns += dt;
    kv_.used_ns += dt * static_cast<double>(queue_.args[2]);
    kv_.cached_ns += dt * static_cast<double>(queue_.args[3]);
    kv_.capacity_ns += dt * static_cast<double>(queue_.args[5]);
  }
  queue_ = r;
  kv_.most_waiting = std::max(kv_.most_waiting, r.args[1]);
  kv_.most_used = std::max(kv_.most_used, r.args[2]);
  kv_.most_capacity = std::max(kv_.most_capacity, r.args[5]);
  const uint64_t span = std::max<uint64_t>(1, last_ns_ - first_ns_);
  const double at = static_cast<double>(r.time_ns - first_ns_) / static_cast<double>(span);
  const auto i = static_cast<size_t>(std::min(at, 1.0) * kSamples);
  samples_[std::min(i, kSamples - 1)] = {true,      r.args[0], r.args[1],     r.args[2],
                                         r.args[3], r.args[4], evicted_bytes_};
}

void Summary::Add(const TraceEvent& event) {
  const TraceRecord& r = event.record;
  const auto type = static_cast<TraceType>(r.type);
  const bool inside = r.time_ns >= first_ns_ && r.time_ns <= last_ns_;
  if (!inside && type != TraceType::kGranuleState && type != TraceType::kOwner &&
      type != TraceType::kPlacement && type != TraceType::kTransition) {
    return;
  }
  switch (type) {
    case TraceType::kFaultMajor:
    case TraceType::kFaultMinor: OnFault(event); break;
    case TraceType::kCopy: OnTransfer(r, r.args[2], true); break;
    case TraceType::kFill: OnTransfer(r, r.args[1], false); break;
    case TraceType::kEvict:
      layers_[reader_.meta().LayerOfSlot(r.args[1])].evicted_slots += r.args[2];
      break;
    case TraceType::kMap: ++owners_[r.args[4]].maps; break;
    case TraceType::kGranuleState:
    case TraceType::kOwner: {
      const bool handed = r.type == static_cast<uint16_t>(TraceType::kOwner);
      const uint64_t to = handed ? r.args[2] : r.args[3];
      uint64_t& owner = granule_owner_[{r.cause, r.args[0]}];
      if (owner == to) break;
      if (owner != kOwnerNone && owners_[owner].granules > 0) --owners_[owner].granules;
      owner = to;
      if (to == kOwnerNone) break;
      OwnerTotals& totals = owners_[to];
      totals.most = std::max(totals.most, ++totals.granules);
      break;
    }
    case TraceType::kPlanCommit:
      plans_[r.cause].Add(r.args[3]);
      taken_[r.cause] += r.args[1];
      freed_[r.cause] += r.args[2];
      break;
    case TraceType::kPlanRollback: ++rollbacks_; break;
    case TraceType::kPlacement:
    case TraceType::kTransition: evicted_bytes_ = r.args[3]; break;
    case TraceType::kStepBegin: open_steps_.Begin(r); break;
    case TraceType::kStepEnd:
      if (const auto begun = open_steps_.End(r.args[0]);
          begun && r.cause == static_cast<uint8_t>(StepKind::kServing)) {
        generated_ += r.args[2] - std::min(r.args[2], begun->args[3]);
      }
      ++steps_;
      tokens_ += r.args[2];
      step_.Add(r.args[3]);
      step_stall_ns_ += r.args[4];
      streamed_ += r.args[5];
      break;
    case TraceType::kStepFailed: ++failed_steps_; break;
    case TraceType::kDeviceStep: OnDeviceStep(r); break;
    case TraceType::kRequest: OnRequest(r); break;
    case TraceType::kKvEvict: kv_evicted_ += r.args[1]; break;
    case TraceType::kKvHit: kv_hit_ += r.args[1]; break;
    case TraceType::kPolicyDecision:
      ++decisions_;
      clipped_ += r.args[3] != 0 ? 1 : 0;
      last_decision_ = {r.time_ns, r, true};
      break;
    case TraceType::kQueue: OnQueue(r); break;
    default: break;
  }
}

double Summary::Seconds() const {
  return static_cast<double>(last_ns_ - first_ns_) * 1e-9;
}

}  // namespace weir::trace_tool
