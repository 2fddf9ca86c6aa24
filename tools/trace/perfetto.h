// ChromeTraceWriter: a weir trace as Chrome JSON trace events, which ui.perfetto.dev and
// chrome://tracing open.
//
// Represents the conversion of one trace, fed in order of time; text goes to a sink as it is made,
// so that memory does not grow with the trace. Processes of the result are groups of tracks:
//   engine     steps, gates that were waited for, plans, the policy's decisions. Of a device that
//              runs steps by itself: the steps as they ran there, and beside them each from its
//              submission to its collection
//   links      copies of stripes and fills, by tier they came from
//   requests   a lane for each that runs at the same time
//   counters   KV blocks, requests, weights away, granules by owner, link, tokens
// Slices of one track never overlap: transfers that do get a track each.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include <nlohmann/json_fwd.hpp>

#include "tools/trace/memory_state.h"
#include "tools/trace/open_steps.h"
#include "tools/trace/reader.h"

namespace weir::trace_tool {

class ChromeTraceWriter {
 public:
  using Out = std::function<void(std::string_view)>;

  ChromeTraceWriter(const TraceReader& reader, Out out);
  void Add(const TraceEvent& event);
  // Ends what is open, and the file.
  void Finish();
  uint64_t written() const { return written_; }

 private:
  struct Track {
    int pid = 0, tid = 0;
  };
  struct Request {
    uint64_t added_ns = 0, scheduled_ns = 0, first_token_ns = 0;
    uint64_t lane = 0;
    bool runs = false;
    bool had_token = false;
  };
  struct Span {
    uint64_t begin_ns = 0, end_ns = 0;
  };

  void Write(const nlohmann::ordered_json& event);
  void NameTrack(Track track, const std::string& name);
  void Slice(Track track, const std::string& name, Span span, nlohmann::ordered_json args);
  void Instant(Track track, const std::string& name, uint64_t at, nlohmann::ordered_json args);
  void Counter(const std::string& name, uint64_t at, nlohmann::ordered_json values);
  nlohmann::ordered_json Time(uint64_t time_ns) const;
  uint64_t Before(uint64_t time_ns, uint64_t duration_ns) const;

  void OnStep(const TraceRecord& r);
  void OnDeviceStep(const TraceRecord& r, const std::string& name);
  void OnTransfer(const TraceRecord& r, bool copy);
  void FlushFill();
  void OnRequest(const TraceRecord& r);
  void EndRun(uint64_t id, Request& request, uint64_t at, const std::string& how,
              const TraceRecord* r);
  void OnPlan(const TraceRecord& r);
  void OnDecision(const TraceRecord& r);
  void Counters(uint64_t at);
  // A track of |pid| whose last slice has ended at |begin_ns|; made with |name| if there is none.
  Track FreeLane(int pid, const std::string& name, Span span);

  const TraceReader& reader_;
  const Out out_;
  const uint64_t origin_ns_;
  MemoryState state_;
  OpenSteps open_steps_;
  TraceRecord device_step_;  // the last; its step may not have ended
  uint64_t device_end_ns_ = 0;
  TraceRecord fill_;  // runs that were filled together, until another comes
  uint64_t last_fault_cause_ = 0;
  std::map<uint64_t, Request> requests_;
  std::vector<bool> request_lanes_;
  std::map<std::string, std::vector<uint64_t>> lanes_;  // by track name: when each lane is free
  std::map<std::string, int> lane_base_;
  std::map<std::string, std::string> last_counter_;
  uint64_t written_ = 0;
};

}  // namespace weir::trace_tool
