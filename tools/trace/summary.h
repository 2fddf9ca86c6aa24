// Summary: one pass over a trace, gathered for `report`.
//
// Represents totals, not records: memory depends on how many layers, causes and owners there are,
// not on the length of the trace. Feed it in order of time.
#pragma once

#include <algorithm>
#include <cstdint>
#include <map>
#include <string>
#include <unordered_map>
#include <vector>

#include <nlohmann/json_fwd.hpp>

#include "tools/trace/busy_time.h"
#include "tools/trace/histogram.h"
#include "tools/trace/open_steps.h"
#include "tools/trace/reader.h"

namespace weir::trace_tool {

// A policy decision, with the time it was recorded.
struct DecisionSeen {
  uint64_t time_ns = 0;
  TraceRecord record;
  bool any = false;
};

struct FaultSeen {
  TraceEvent event;
  DecisionSeen decision;  // the last one before the fault
};

struct LayerTotals {
  Histogram stall;
  uint64_t filled_bytes = 0, copied_bytes = 0, evicted_slots = 0;
};

struct LinkTotals {
  uint64_t bytes = 0, transfers = 0;
  BusyTime busy;  // with at least one of them
};

// KV blocks over the time from the first to the last kQueue.
struct KvTotals {
  double capacity_ns = 0, used_ns = 0, cached_ns = 0, time_ns = 0;  // blocks x time
  uint64_t most_capacity = 0, most_used = 0, most_waiting = 0;
  double Mean(double blocks_ns) const { return time_ns > 0 ? blocks_ns / time_ns : 0; }
};

struct KvSample {
  bool any = false;
  uint64_t running = 0, waiting = 0, used = 0, cached = 0, free = 0, evicted_bytes = 0;
};

class Summary {
 public:
  static constexpr size_t kTopFaults = 10;
  static constexpr size_t kSamples = 12;

  explicit Summary(const TraceReader& reader)
      : Summary(reader, reader.first_ns(), reader.last_ns()) {}
  // Of [first_ns, last_ns] only. What granules there are and who owns them counts from the start.
  Summary(const TraceReader& reader, uint64_t first_ns, uint64_t last_ns)
      : reader_(reader), first_ns_(first_ns), last_ns_(std::max(first_ns, last_ns)) {}
  void Add(const TraceEvent& event);

  // |sort|: "cause", "owner" or "layer", which table comes first.
  std::string Text(const std::string& sort) const;
  nlohmann::ordered_json Json() const;

  // Totals, for `diff`.
  double Seconds() const;
  const Histogram& step() const { return step_; }
  const Histogram& stall() const { return stall_; }
  const std::map<uint64_t, Histogram>& faults() const { return faults_; }  // by cause
  const std::map<uint64_t, Histogram>& plans() const { return plans_; }    // by cause
  const std::map<uint64_t, LinkTotals>& links() const { return links_; }   // by source tier
  const KvTotals& kv() const { return kv_; }
  uint64_t steps() const { return steps_; }
  uint64_t failed_steps() const { return failed_steps_; }
  uint64_t tokens() const { return tokens_; }
  uint64_t generated() const { return generated_; }  // of |tokens|, serving, no prompt's
  uint64_t rollbacks() const { return rollbacks_; }
  uint64_t decisions() const { return decisions_; }
  uint64_t clipped() const { return clipped_; }
  uint64_t kv_hit() const { return kv_hit_; }
  uint64_t kv_evicted() const { return kv_evicted_; }
  uint64_t cached_tokens() const { return cached_tokens_; }  // of prompts, at admission
  // From arrival to the first token, and to the end.
  const Histogram& first_token() const { return first_token_; }
  const Histogram& whole_request() const { return whole_request_; }
  uint64_t requests(RequestEvent event) const {
    const auto it = requests_.find(static_cast<uint64_t>(event));
    return it == requests_.end() ? 0 : it->second;
  }

 private:
  void OnFault(const TraceEvent& event);
  void OnTransfer(const TraceRecord& r, uint64_t first_slot, bool copy);
  std::string HeadText() const;
  std::string CauseText() const;
  std::string OwnerText() const;
  std::string LayerText() const;
  std::string LinkText() const;
  std::string KvText() const;
  std::string TopText() const;
  void OnQueue(const TraceRecord& r);
  void OnRequest(const TraceRecord& r);
  void OnDeviceStep(const TraceRecord& r);

  const TraceReader& reader_;
  const uint64_t first_ns_, last_ns_;
  std::map<uint64_t, Histogram> faults_;  // by cause
  std::map<uint64_t, Histogram> plans_;   // by cause: durations
  std::map<uint64_t, uint64_t> taken_, freed_;
  std::map<int64_t, LayerTotals> layers_;  // -1: not known
  std::map<uint64_t, LinkTotals> links_;   // by source tier
  struct OwnerTotals {
    uint64_t maps = 0, granules = 0, most = 0;
  };
  std::map<uint64_t, OwnerTotals> owners_;
  std::map<std::pair<uint8_t, uint64_t>, uint64_t> granule_owner_;
  std::map<uint64_t, uint64_t> requests_;  // by event
  Histogram stall_, step_;
  uint64_t steps_ = 0, failed_steps_ = 0, tokens_ = 0, generated_ = 0, step_stall_ns_ = 0,
           streamed_ = 0;
  uint64_t rollbacks_ = 0, decisions_ = 0, clipped_ = 0, evicted_bytes_ = 0;
  uint64_t kv_evicted_ = 0, kv_hit_ = 0;
  DecisionSeen last_decision_;
  KvTotals kv_;
  Histogram first_token_, whole_request_;
  std::unordered_map<uint64_t, uint64_t> added_;  // requests that are not over: when they came
  uint64_t cached_tokens_ = 0;
  TraceRecord queue_;
  OpenSteps open_steps_;
  // Steps where they ran, if that is a device of its own.
  uint64_t device_steps_ = 0, device_busy_ns_ = 0, device_idle_ns_ = 0, device_end_ns_ = 0;
  uint64_t clock_error_ns_ = 0;  // the largest
  std::vector<FaultSeen> top_;
  std::vector<KvSample> samples_ = std::vector<KvSample>(kSamples);
};

}  // namespace weir::trace_tool
