#include "engine/scheduler.h"

#include <algorithm>
#include <array>
#include <random>
#include <unordered_map>
#include <unordered_set>

#include "engine/kv_trace.h"
#include "engine/prefetch.h"
#include "vmm/types.h"

namespace weir {
namespace {

// A preemption throws away a sequence's KV, which costs some hundred tokens of prefill; a block
// kept free costs a share of one sequence. In a steady overload (ShareGPT's lengths, KV of 30 to
// 100 sequences) these settle near one block a sequence. docs/performance.md has the measurement.
constexpr double kHeadroomRise = 0.1;
constexpr double kHeadroomMost = 4;
constexpr double kHeadroomFall = 1.0 / 512;

uint32_t BlocksFor(uint32_t tokens) {
  return static_cast<uint32_t>(CeilDiv(tokens, kBlockTokens));
}

bool RunsBefore(const Sequence& a, const Sequence& b) {
  if (a.priority != b.priority) return a.priority < b.priority;
  return a.arrival < b.arrival;
}

// See kPromptBlocks.
uint64_t Fingerprint(const PrefixHash& hash) {
  static const uint64_t key = [] {
    std::random_device random;
    return (uint64_t{random()} << 32) | random();
  }();
  uint64_t x = hash.low ^ key;
  for (const uint64_t salt : {hash.high, key}) {
    x = (x ^ (x >> 32)) * 0xd6e8feb86659fd93ULL;
    x = (x ^ (x >> 32)) * 0xd6e8feb86659fd93ULL;
    x ^= (x >> 32) ^ salt;
  }
  return x | 1;
}

// What OnComputed reads of a sequence that has filled a block; itself it is fetched already.
void PrefetchFilled(const ScheduledSequence& s) {
  const Sequence& sequence = *s.sequence;
  const size_t block = sequence.hashes.size();
  if (!s.current() || s.end / kBlockTokens <= block) return;
  Prefetch(sequence.tokens.data() + block * kBlockTokens, kBlockTokens * sizeof(int32_t));
  Prefetch(sequence.blocks.data() + block, sizeof(BlockId));
  Prefetch(sequence.hashes.data() + (block == 0 ? 0 : block - 1), 2 * sizeof(PrefixHash));
}

void TracePrompt(const Sequence& s) {
  if (!TraceEnabled(TraceType::kPromptBlocks)) return;
  constexpr size_t kEach = 4;
  for (size_t i = 0; i < s.prompt_hashes.size(); i += kEach) {
    std::array<uint64_t, kEach> prints{};
    for (size_t k = 0; k < std::min(kEach, s.prompt_hashes.size() - i); ++k) {
      prints[k] = Fingerprint(s.prompt_hashes[i + k]);
    }
    TraceEmit(TraceType::kPromptBlocks, 0, s.id, i, prints[0], prints[1], prints[2], prints[3]);
  }
}

}  // namespace

void Scheduler::Add(Sequence* sequence) {
  demand_.Enqueue(*sequence);
  TracePrompt(*sequence);
  Enqueue(sequence);
}

void Scheduler::Enqueue(Sequence* sequence) {
  WEIR_CHECK(sequence->state == SequenceState::kWaiting, "only waiting sequences are queued");
  // From the back: arrivals are mostly in order, preempted ones go near the front.
  auto at = waiting_.end();
  while (at != waiting_.begin() && RunsBefore(*sequence, *std::prev(at))) --at;
  waiting_.insert(at, *sequence);
}

void Scheduler::Finish(Sequence* sequence) {
  demand_.Forget(*sequence, sequence->state);
  if (sequence->state == SequenceState::kWaiting) {
    waiting_.erase(waiting_.iterator_to(*sequence));
  } else if (sequence->state == SequenceState::kRunning) {
    running_.erase(running_.iterator_to(*sequence));
  }
  ReleaseBlocks(*sequence);
  sequence->state = SequenceState::kFinished;
}

void Scheduler::ReleaseBlocks(Sequence& sequence) {
  // Last to first: the tail of a prefix is evicted before its head.
  BlockRuns freed(TraceType::kKvFree, sequence.id);
  for (auto it = sequence.blocks.rbegin(); it != sequence.blocks.rend(); ++it) {
    const BlockManager::Released state = blocks_.Release(*it);
    if (state == BlockManager::Released::kStillUsed) continue;
    freed.Add(*it, state == BlockManager::Released::kCached);
  }
  sequence.blocks.clear();
  sequence.hashes.clear();
  sequence.computed = 0;
}

void Scheduler::Preempt(Sequence* sequence) {
  ++stats_.preemptions;
  headroom_ = std::min(kHeadroomMost, headroom_ + kHeadroomRise);
  ++sequence->preemptions;
  stats_.recomputed_tokens += sequence->computed;
  running_.erase(running_.iterator_to(*sequence));
  ReleaseBlocks(*sequence);
  sequence->state = SequenceState::kWaiting;
  sequence->TraceEvent(RequestEvent::kPreempted);
  demand_.Requeue(*sequence);
  Enqueue(sequence);
}

bool Scheduler::ReserveBlocks(Sequence& sequence, uint32_t length) {
  const uint32_t have = static_cast<uint32_t>(sequence.blocks.size());
  const uint32_t need = BlocksFor(length);
  if (need <= have) return true;
  const uint32_t missing = need - have;
  if (blocks_.counts().free < missing) grow_(missing - blocks_.counts().free);
  if (blocks_.available() < missing) return false;
  BlockRuns allocated(TraceType::kKvAlloc, sequence.id);
  for (uint32_t i = 0; i < missing; ++i) {
    sequence.blocks.push_back(blocks_.Allocate(sequence.root).value());
    allocated.Add(sequence.blocks.back());
  }
  return true;
}

uint32_t Scheduler::ChunkOf(const Sequence& sequence, const Budget& budget) const {
  const uint32_t left = sequence.length() - sequence.computed;
  if (left == 1) return std::min(left, budget.tokens);
  return std::min({left, budget.tokens, budget.prompt_tokens, options_.max_prefill_chunk});
}

void Scheduler::Spend(const Sequence& sequence, uint32_t chunk, Budget* budget) {
  budget->tokens -= chunk;
  if (sequence.length() - sequence.computed > 1) budget->prompt_tokens -= chunk;
}

void Scheduler::Schedule(std::vector<ScheduledSequence>* batch, uint32_t prompt_tokens) {
  Budget budget{.tokens = options_.max_batched_tokens,
                .prompt_tokens = options_.max_batched_tokens};
  if (prompt_tokens > 0) budget.prompt_tokens = std::min(budget.prompt_tokens, prompt_tokens);
  headroom_ -= headroom_ * kHeadroomFall;
  const uint64_t preemptions = stats_.preemptions;
  ScheduleRunning(&budget, batch);
  // After a preemption nothing is admitted: its blocks belong to those already running.
  if (stats_.preemptions == preemptions) AdmitWaiting(&budget, batch);
}

void Scheduler::ScheduleRunning(Budget* budget, std::vector<ScheduledSequence>* batch) {
  for (auto it = running_.begin(); it != running_.end() && budget->tokens > 0;) {
    Sequence& sequence = *it;
    if (sequence.ends_when_sampled()) {
      ++it;
      continue;
    }
    const uint32_t chunk = ChunkOf(sequence, *budget);
    if (chunk == 0) {
      ++it;
      continue;
    }
    bool reserved = ReserveBlocks(sequence, sequence.computed + chunk);
    while (!reserved) {
      Sequence* victim = &running_.back();
      if (victim == &sequence) break;
      Preempt(victim);
      reserved = ReserveBlocks(sequence, sequence.computed + chunk);
    }
    if (!reserved) {
      // Alone at the end of the queue and still without room: give way to those before it. If it
      // is the only one, the engine sees an empty batch and fails it (S3).
      Preempt(&sequence);
      return;
    }
    batch->push_back({&sequence, chunk, sequence.computed + chunk, sequence.preemptions});
    Spend(sequence, chunk, budget);
    ++it;
  }
}

void Scheduler::AdmitWaiting(Budget* budget, std::vector<ScheduledSequence>* batch) {
  while (!waiting_.empty() && budget->tokens > 0 && budget->prompt_tokens > 0 &&
         running_.size() < options_.max_sequences) {
    Sequence& sequence = waiting_.front();
    if (!LogitEditsFit(sequence)) return;
    // At least one token is computed, for its logits.
    const uint32_t max_hit = (sequence.length() - 1) / kBlockTokens;
    sequence.blocks = blocks_.MatchAndAcquire(sequence.root, sequence.tokens, max_hit,
                                              &sequence.hashes, sequence.id);
    sequence.computed = static_cast<uint32_t>(sequence.blocks.size()) * kBlockTokens;
    const uint32_t hit = sequence.computed;
    const uint32_t chunk = ChunkOf(sequence, *budget);
    // All blocks of the known tokens are taken at admission, not just the first chunk's: otherwise
    // half-prefilled sequences would preempt each other.
    const uint32_t need =
        BlocksFor(sequence.length()) - static_cast<uint32_t>(sequence.blocks.size());
    const auto spare = static_cast<uint32_t>(headroom_ * static_cast<double>(running_.size()));
    if (blocks_.counts().free < need + spare) grow_(need + spare - blocks_.counts().free);
    if (blocks_.available() < need + spare || !ReserveBlocks(sequence, sequence.length())) {
      ReleaseBlocks(sequence);
      return;
    }
    if (sequence.preemptions == 0) {
      sequence.cached_tokens = hit;
      blocks_.CountQuery(sequence.length(), hit);
    }
    waiting_.pop_front();
    sequence.state = SequenceState::kRunning;
    demand_.Admit(sequence);
    sequence.TraceEvent(RequestEvent::kScheduled);
    running_.push_back(sequence);
    batch->push_back({&sequence, chunk, hit + chunk, sequence.preemptions});
    Spend(sequence, chunk, budget);
  }
}

bool Scheduler::LogitEditsFit(const Sequence& next) const {
  if (options_.max_logit_edits == 0 || next.logit_edits == 0 || running_.empty()) return true;
  uint64_t edits = next.logit_edits;
  for (const Sequence& s : running_) edits += s.logit_edits;
  return edits <= options_.max_logit_edits;
}

void Scheduler::OnSubmitted(const std::vector<ScheduledSequence>& batch) {
  for (const ScheduledSequence& s : batch) s.sequence->computed = s.end;
}

void Scheduler::OnFailed(const std::vector<ScheduledSequence>& batch) {
  for (const ScheduledSequence& s : batch) {
    if (s.current()) s.sequence->computed = s.end - s.tokens;
  }
}

void Scheduler::OnComputed(const std::vector<ScheduledSequence>& batch) {
  // Sequences that run in step fill their blocks in the same one. What a block's entry touches lies
  // anywhere in the tables of the prefix index: it is fetched for all of them first.
  filled_.clear();
  for (size_t i = 0; i < batch.size(); ++i) {
    if (i + kPrefetchAhead < batch.size()) {
      Prefetch(batch[i + kPrefetchAhead].sequence, sizeof(Sequence));
    }
    if (i + kPrefetchAhead / 2 < batch.size()) PrefetchFilled(batch[i + kPrefetchAhead / 2]);
    const ScheduledSequence& s = batch[i];
    if (!s.current()) continue;
    Sequence& sequence = *s.sequence;
    const uint32_t full = s.end / kBlockTokens;
    for (auto b = static_cast<uint32_t>(sequence.hashes.size()); b < full; ++b) {
      const PrefixHash& parent = b == 0 ? sequence.root : sequence.hashes[b - 1];
      const auto tokens = std::span<const int32_t>(sequence.tokens)
                              .subspan(size_t{b} * kBlockTokens)
                              .first<kBlockTokens>();
      filled_.push_back({sequence.blocks[b], BlockContent{parent, tokens}});
      const FilledBlock& filled = filled_.back();
      blocks_.PrefetchFor(filled.block, filled.content);
      sequence.hashes.push_back(filled.content.hash);
    }
  }
  for (const FilledBlock& filled : filled_) blocks_.Register(filled.block, filled.content);
}

void Scheduler::PreemptLast() {
  Sequence& sequence = running_.back();
  // What the policy makes to be computed again is no property of the load.
  sequence.prefill_tokens -= std::min<uint64_t>(sequence.prefill_tokens, sequence.computed);
  Preempt(&sequence);
}

void Scheduler::PreemptAll() {
  while (!running_.empty()) Preempt(&running_.back());
}

void Scheduler::PatchBlocks(const std::vector<BlockMoveRequest>& moves) {
  if (moves.empty()) return;
  std::unordered_map<BlockId, BlockId> moved;
  for (const BlockMoveRequest& m : moves) moved.emplace(m.from, m.to);
  for (Sequence& sequence : running_) {
    for (BlockId& block : sequence.blocks) {
      const auto it = moved.find(block);
      if (it != moved.end()) block = it->second;
    }
  }
}

void Scheduler::TraceState() const {
  std::unordered_set<BlockId> told;
  for (const Sequence& s : running_) {
    s.TraceEvent(RequestEvent::kAdded);
    TracePrompt(s);
    s.TraceEvent(RequestEvent::kScheduled);
    BlockRuns used(TraceType::kKvAlloc, s.id);
    for (const BlockId block : s.blocks) {
      if (told.insert(block).second) {
        used.Add(block);
      } else {
        TraceEmit(TraceType::kKvHit, 0, s.id, 1, Tier::kHbm, block, 0);
      }
    }
  }
  for (const Sequence& s : waiting_) {
    s.TraceEvent(RequestEvent::kAdded);
    TracePrompt(s);
  }
}

uint32_t Scheduler::decoding() const {
  const auto n = std::count_if(running_.begin(), running_.end(),
                               [](const Sequence& s) { return s.length() - s.computed <= 1; });
  return static_cast<uint32_t>(n);
}

double Scheduler::mean_running_tokens() const {
  if (running_.empty()) return 0;
  double n = 0;
  for (const Sequence& s : running_) n += s.length();
  return n / static_cast<double>(running_.size());
}

uint64_t Scheduler::running_output_tokens() const {
  uint64_t n = 0;
  for (const Sequence& s : running_) n += s.output_tokens();
  return n;
}

}  // namespace weir
