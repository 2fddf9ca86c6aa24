// Sequence: one request's state in the engine core, in tokens and blocks.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include <boost/intrusive/list_hook.hpp>

#include "engine/block_manager.h"
#include "engine/sampler.h"
#include "vmm/trace.h"
#include "vmm/types.h"

namespace weir {

using RequestId = uint64_t;

enum class FinishReason : uint8_t {
  kNone,
  kStop,       // an end-of-sequence or stop token, or a stop string
  kLength,     // max_tokens, or the model's context
  kCancelled,  // the client asked
  kError,      // the request could not be served; the status says why
};
constexpr std::string_view FinishReasonName(FinishReason reason) {
  switch (reason) {
    case FinishReason::kNone: return "none";
    case FinishReason::kStop: return "stop";
    case FinishReason::kLength: return "length";
    case FinishReason::kCancelled: return "cancelled";
    case FinishReason::kError: return "error";
  }
  return "?";
}

// States:  kWaiting --admit--> kRunning --finish--> kFinished
//                     ^            |
//                     +--preempt---+   (blocks released, computed KV forgotten; recomputed later)
enum class SequenceState : uint8_t { kWaiting, kRunning, kFinished };

// Represents one request between Add and its last output. Owned by the engine core; engine thread.
struct Sequence {
  RequestId id = 0;
  SequenceState state = SequenceState::kWaiting;

  // Prompt, then output. The last |pending| are being sampled by steps under way and are -1 here.
  std::vector<int32_t> tokens;
  uint32_t pending = 0;
  uint32_t prompt_tokens = 0;
  uint32_t computed = 0;           // tokens [0, computed) have their KV in |blocks|
  uint32_t cached_tokens = 0;      // of the first admission: taken from the prefix cache
  std::vector<BlockId> blocks;     // covers [0, computed + scheduled)
  std::vector<PrefixHash> hashes;  // chain of the full blocks registered or matched so far
  PrefixHash root;
  std::vector<PrefixHash> prompt_hashes;  // of its full blocks; empty without prefix caching

  SamplingParams sampling;
  TokenHistory history;      // of its tokens where it has penalties
  uint64_t logit_edits = 0;  // MostLogitEdits
  int32_t priority = 0;      // lower runs first
  uint64_t arrival = 0;      // order of Add; ties within a priority
  uint32_t preemptions = 0;
  uint64_t prefill_tokens = 0;  // computed for it, those that gave an output token not counted

  TimeNs added_ns = 0;
  TimeNs first_scheduled_ns = 0;
  TimeNs first_token_ns = 0;

  boost::intrusive::list_member_hook<> queue_hook;  // the scheduler's waiting or running list

  void TraceEvent(RequestEvent event) const {
    TraceEmit(TraceType::kRequest, static_cast<uint8_t>(event), id, prompt_tokens, cached_tokens,
              output_tokens(), preemptions, sampling.max_tokens);
  }

  uint32_t length() const { return static_cast<uint32_t>(tokens.size()); }
  uint32_t output_tokens() const { return length() - prompt_tokens; }
  uint32_t known_output_tokens() const { return output_tokens() - pending; }
  // The tokens being sampled are its last ones, whatever they are.
  bool ends_when_sampled() const { return pending > 0 && output_tokens() >= sampling.max_tokens; }
  std::span<const int32_t> output() const {
    return std::span<const int32_t>(tokens).subspan(prompt_tokens);
  }
};

}  // namespace weir
