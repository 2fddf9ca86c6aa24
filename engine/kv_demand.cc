#include "engine/kv_demand.h"

#include "vmm/check.h"
#include "vmm/types.h"

namespace weir {
namespace {

uint64_t BlocksFor(uint64_t tokens) {
  return CeilDiv(tokens, kBlockTokens);
}

// Blocks beside the full ones of the prompt: its tail and what was generated.
uint64_t PrivateNow(const Sequence& s) {
  return BlocksFor(s.length()) - s.prompt_hashes.size();
}
uint64_t PrivateAtEnd(const Sequence& s) {
  return BlocksFor(s.prompt_tokens + uint64_t{s.sampling.max_tokens}) - s.prompt_hashes.size();
}

}  // namespace

void KvDemand::AddHolder(const PrefixHash& hash, SequenceState state) {
  Holders& holders = census_[hash];
  const bool only_waiting = holders.waiting > 0 && holders.running == 0;
  ++(state == SequenceState::kRunning ? holders.running : holders.waiting);
  const bool now_only_waiting = holders.running == 0;
  waiting_prefixes_ += now_only_waiting ? 1 : 0;
  waiting_prefixes_ -= only_waiting ? 1 : 0;
}

void KvDemand::RemoveHolder(const PrefixHash& hash, SequenceState state) {
  const auto it = census_.find(hash);
  WEIR_CHECK(it != census_.end(), "a prompt block that was never counted");
  Holders& holders = it->second;
  const bool only_waiting = holders.running == 0;
  uint32_t& count = state == SequenceState::kRunning ? holders.running : holders.waiting;
  WEIR_CHECK(count > 0, "a prompt block with fewer holders than counted");
  --count;
  const bool now_only_waiting = holders.running == 0 && holders.waiting > 0;
  waiting_prefixes_ += now_only_waiting ? 1 : 0;
  waiting_prefixes_ -= only_waiting ? 1 : 0;
  if (holders.running == 0 && holders.waiting == 0) census_.erase(it);
}

void KvDemand::Enqueue(Sequence& sequence) {
  WEIR_CHECK(sequence.prompt_hashes.empty(), "counted already");
  if (sharing_ == Sharing::kPrefixes) {
    const std::span<const int32_t> prompt =
        std::span<const int32_t>(sequence.tokens).first(sequence.prompt_tokens);
    PrefixHash hash = sequence.root;
    for (size_t at = 0; at + kBlockTokens <= prompt.size(); at += kBlockTokens) {
      hash = ChainPrefix(hash, prompt.subspan(at).first<kBlockTokens>());
      sequence.prompt_hashes.push_back(hash);
      AddHolder(hash, SequenceState::kWaiting);
    }
  }
  waiting_private_ += PrivateNow(sequence);
  expected_private_ += PrivateAtEnd(sequence);
  asked_tokens_ += sequence.sampling.max_tokens;
}

void KvDemand::Move(const Sequence& sequence, SequenceState from, SequenceState to) {
  for (const PrefixHash& hash : sequence.prompt_hashes) {
    AddHolder(hash, to);
    RemoveHolder(hash, from);
  }
}

void KvDemand::Admit(const Sequence& sequence) {
  Move(sequence, SequenceState::kWaiting, SequenceState::kRunning);
  waiting_private_ -= PrivateNow(sequence);
}

void KvDemand::Requeue(const Sequence& sequence) {
  Move(sequence, SequenceState::kRunning, SequenceState::kWaiting);
  waiting_private_ += PrivateNow(sequence);
}

void KvDemand::Forget(const Sequence& sequence, SequenceState was) {
  for (const PrefixHash& hash : sequence.prompt_hashes) RemoveHolder(hash, was);
  if (was == SequenceState::kWaiting) waiting_private_ -= PrivateNow(sequence);
  expected_private_ -= PrivateAtEnd(sequence);
  asked_tokens_ -= sequence.sampling.max_tokens;
}

}  // namespace weir
