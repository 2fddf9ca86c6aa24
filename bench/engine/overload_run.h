// One load on one engine under the policy it has: what weir_overload_bench measures.
#pragma once

#include <string>
#include <unordered_map>
#include <vector>

#include "engine/bench/workload.h"
#include "engine/engine.h"
#include "vmm/status.h"

namespace weir::overload {

// Milliseconds.
struct Latencies {
  std::vector<double> ttft;  // from when a request was due
  std::vector<double> tpot;  // of each request: per token after the first
  std::vector<double> itl;   // between one output of a request and the next
};

struct Figures {
  double seconds = 0;
  double tokens_per_s = 0, prompt_tokens_per_s = 0, requests_per_s = 0;
  double running = 0, away_gib = 0, kv_blocks = 0;  // means over the time of the steps
  double step_ms = 0, step_p99_ms = 0;
  double decode_step_ms = 0, prompt_step_ms = 0;  // means of steps without and with prompts in them
  double stall_share = 0;                         // of the steps' time, at gates
  double waited_share = 0;                        // of the gates passed, those where a step stood
  double streamed_gb_s = 0, border_ms = 0;
  uint64_t steps = 0, prompt_steps = 0, preemptions = 0, border_moves = 0, border_refusals = 0;
};

// Represents the requests under way of one run, from the workload's |first| on; the same workload
// and salt give the same requests. The engine is idle before, and again after Stop.
class LoadRun {
 public:
  LoadRun(Engine& engine, const bench::Workload& workload, uint64_t salt, size_t first);

  // Serves for |seconds| with requests always waiting.
  Status Flood(double seconds);
  // Serves for |seconds| what comes at |requests_per_s|: a Poisson process that |seed| determines.
  // Latencies of these requests go to |phase|.
  Status Stream(double requests_per_s, double seconds, uint64_t seed, size_t phase);
  // Of the time since the last Mark, or the start.
  Result<Figures> Take();
  // Figures and latencies begin here.
  void Mark();
  // Ends what is left.
  Status Stop();

  // By phase, of what happened since the last Mark.
  const std::vector<Latencies>& latencies() const { return latencies_; }

 private:
  struct Live {
    TimeNs due = 0, first = 0, last = 0;
    uint64_t tokens = 0;
    size_t phase = 0;
  };
  Status Submit(TimeNs due, size_t phase);
  Status StepOnce(bool* worked);
  void Note(const GenerationOutput& out, TimeNs now);

  Engine& engine_;
  const bench::Workload& workload_;
  const uint64_t salt_;
  size_t next_;
  std::unordered_map<RequestId, Live> live_;
  std::vector<Latencies> latencies_;

  // At the last Mark.
  TimeNs begin_ = 0;
  uint64_t tokens_ = 0, ended_ = 0;  // since
  size_t first_record_ = 0;
  CoreStats core_;
  WeightPagerStats pager_;
  uint64_t preemptions_ = 0;
};

}  // namespace weir::overload
