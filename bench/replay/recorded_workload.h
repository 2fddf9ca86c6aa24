// RecordedWorkload: what a trace tells of the requests and decisions of a run, for its replay.
//
// Represents requests with arrival, prompt, output length and shared prefixes; the border
// decisions; and what things cost: steps, plans, copies, the pause between steps. Texts are in no
// trace: tokens are made up, so that prompts are equal exactly as far as the trace shows that KV
// blocks were shared. What a request shares with blocks whose origin was not recorded is not shared
// again.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "policy/policy.h"
#include "tools/trace/reader.h"

namespace weir::replay {

// The simulated model: the token after |token| at |position|. Known in closed form, so that a
// prompt that continues another request's output can be made up before that request has run.
inline constexpr uint32_t kVocab = 256;
int32_t NextToken(int32_t token, uint64_t position);

struct RecordedRequest {
  uint64_t id = 0;                                          // of the trace
  uint64_t added_ns = 0, first_token_ns = 0, ended_ns = 0;  // the trace's clock; 0: did not
  uint64_t prompt_tokens = 0, cached_tokens = 0, output_tokens = 0, max_tokens = 0;
  uint64_t preemptions = 0;
  int64_t prefix_of = -1;      // index of the request whose beginning it shares
  uint64_t shared_tokens = 0;  // of which so many
  std::vector<int32_t> prompt;
};

struct RecordedDecision {
  uint64_t time_ns = 0;
  Placement placement = Placement::kStripe;
  uint32_t amount = 0;  // granules of each layer, or whole layers
  uint32_t ring_slots = 0;
};

// compute time of a step = fixed + per_token x tokens + per_context x context + per_byte x
// streamed, by least squares without negative terms.
struct StepFit {
  double fixed_ns = 0, per_token_ns = 0, per_context_ns = 0, per_byte_ns = 0;
  double error = 0;  // mean of |fitted - measured| over the mean of measured
  uint64_t steps = 0;
  double Ns(double tokens, double context, double bytes) const {
    return fixed_ns + per_token_ns * tokens + per_context_ns * context + per_byte_ns * bytes;
  }
};

struct RecordedWorkload {
  std::vector<RecordedRequest> requests;    // by arrival
  std::vector<RecordedDecision> decisions;  // by time
  StepFit fit;
  double pause_ns = 0;  // between two steps in a row, without plans: median
  double op_ns = 0;     // of a plan: map or unmap
  double link_bytes_per_s = 0;
  uint64_t begin_ns = 0, end_ns = 0;  // of serving: first arrival, end of the last request
  uint64_t left_out = 0;              // requests whose output length the trace does not tell
  uint64_t unknown_prefixes = 0;      // requests that shared blocks of unknown origin

  // Throws trace_tool::TraceError: no request, no step, or metadata without a memory layout.
  static RecordedWorkload FromTrace(trace_tool::TraceReader& reader);
};

}  // namespace weir::replay
