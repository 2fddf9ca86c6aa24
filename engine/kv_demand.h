// KvDemand: how many KV blocks the known requests need, each shared prompt block counted once.
//
// Represents the requests between Enqueue and Forget and a census of their prompts' full blocks by
// chained prefix hash. What a policy is told to make room for follows from it: with a system prompt
// common to a hundred requests, the sum of their lengths is far more than they will ever hold.
// Costs one map operation per prompt block when a request arrives, starts, is preempted or ends;
// the totals are kept, so that a step asks for free. Engine thread only.
#pragma once

#include <cstdint>
#include <unordered_map>

#include "engine/block_manager.h"
#include "engine/sequence.h"

namespace weir {

class KvDemand {
 public:
  enum class Sharing : uint8_t { kPrefixes, kNone };
  explicit KvDemand(Sharing sharing) : sharing_(sharing) {}

  void Enqueue(Sequence& sequence);  // new, waiting; fills sequence.prompt_hashes
  void Admit(const Sequence& sequence);
  void Requeue(const Sequence& sequence);  // preempted: waits again
  void Forget(const Sequence& sequence, SequenceState was);

  // Blocks the waiting sequences need beside those that running ones share with them.
  uint64_t waiting_blocks() const { return waiting_private_ + waiting_prefixes_; }
  // Blocks all known sequences would hold if each reached its max_tokens.
  uint64_t expected_blocks() const { return expected_private_ + census_.size(); }
  // Sum of max_tokens over all known sequences.
  uint64_t asked_tokens() const { return asked_tokens_; }

 private:
  struct Holders {
    uint32_t waiting = 0;
    uint32_t running = 0;
  };
  struct HashOfPrefix {
    size_t operator()(const PrefixHash& h) const noexcept { return h.low; }
  };
  void AddHolder(const PrefixHash& hash, SequenceState state);
  void RemoveHolder(const PrefixHash& hash, SequenceState state);
  void Move(const Sequence& sequence, SequenceState from, SequenceState to);

  const Sharing sharing_;
  std::unordered_map<PrefixHash, Holders, HashOfPrefix> census_;
  uint64_t waiting_prefixes_ = 0;  // entries that only waiting sequences hold
  uint64_t waiting_private_ = 0;
  uint64_t expected_private_ = 0;
  uint64_t asked_tokens_ = 0;
};

}  // namespace weir
