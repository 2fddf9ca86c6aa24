// What the host does for a prompt whose KV is in the prefix cache, per block of 16 tokens: demand
// counted when the request arrives, admission with its match, and its end. Nothing else shares the
// index but as many other prompts as --others says, so that lookups miss the CPU's caches as they
// do in a server.
//
//   weir_prefix_bench [--tokens N (4096)] [--others N (256)] [--rounds N (200)]
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <vector>

#include "engine/kv_demand.h"
#include "vmm/trace.h"

namespace weir {
namespace {

struct Costs {
  double arrive = 0, admit = 0, end = 0;  // ns a block
};

class PrefixBench {
 public:
  PrefixBench(uint32_t tokens, uint32_t prompts)
      : blocks_of_prompt_(tokens / kBlockTokens),
        blocks_({.blocks_per_extent = blocks_of_prompt_, .max_extents = prompts}) {
    std::mt19937 random(1);
    for (uint32_t p = 0; p < prompts; ++p) {
      std::vector<int32_t>& prompt = prompts_.emplace_back(tokens);
      for (int32_t& t : prompt) t = static_cast<int32_t>(random() % 128'000);
      blocks_.AddExtent(p);
      Compute(prompt);
    }
  }

  // One request of prompt |p|; all of it hits.
  Costs Serve(uint32_t p) {
    Sequence sequence;
    sequence.tokens = prompts_[p];
    sequence.prompt_tokens = static_cast<uint32_t>(sequence.tokens.size());
    sequence.root = root_;
    const TimeNs arrived = TraceMonotonicNs();
    demand_.Enqueue(sequence);
    const TimeNs enqueued = TraceMonotonicNs();
    sequence.blocks =
        blocks_.MatchAndAcquire(root_, sequence.tokens, blocks_of_prompt_, &sequence.hashes);
    demand_.Admit(sequence);
    const TimeNs admitted = TraceMonotonicNs();
    if (sequence.blocks.size() != blocks_of_prompt_) {
      std::fprintf(stderr, "%zu of %u blocks hit\n", sequence.blocks.size(), blocks_of_prompt_);
      std::exit(1);
    }
    const TimeNs ending = TraceMonotonicNs();
    for (size_t i = sequence.blocks.size(); i-- > 0;) (void)blocks_.Release(sequence.blocks[i]);
    demand_.Forget(sequence, SequenceState::kRunning);
    const TimeNs ended = TraceMonotonicNs();
    const auto a_block = [&](TimeNs from, TimeNs to) {
      return static_cast<double>(to - from) / blocks_of_prompt_;
    };
    return {a_block(arrived, enqueued), a_block(enqueued, admitted), a_block(ending, ended)};
  }

 private:
  void Compute(std::span<const int32_t> prompt) {
    std::vector<BlockId> held;
    PrefixHash parent = root_;
    for (size_t at = 0; at + kBlockTokens <= prompt.size(); at += kBlockTokens) {
      held.push_back(*blocks_.Allocate(root_));
      const BlockContent content{parent, prompt.subspan(at).first<kBlockTokens>()};
      blocks_.Register(held.back(), content);
      parent = content.hash;
    }
    for (size_t i = held.size(); i-- > 0;) (void)blocks_.Release(held[i]);
  }

  const uint32_t blocks_of_prompt_;
  const PrefixHash root_ = PrefixRoot(1);
  BlockManager blocks_;
  KvDemand demand_{KvDemand::Sharing::kPrefixes};
  std::vector<std::vector<int32_t>> prompts_;
};

int Main(int argc, char** argv) {
  uint32_t tokens = 4096, others = 256, rounds = 200;
  for (int i = 1; i < argc; i += 2) {
    uint32_t* value = std::strcmp(argv[i], "--tokens") == 0   ? &tokens
                      : std::strcmp(argv[i], "--others") == 0 ? &others
                      : std::strcmp(argv[i], "--rounds") == 0 ? &rounds
                                                              : nullptr;
    char* end = nullptr;
    const unsigned long given = i + 1 < argc ? std::strtoul(argv[i + 1], &end, 10) : 0;
    if (value == nullptr || end == nullptr || *end != 0 || given < 1 || given > 10'000'000) {
      std::fprintf(stderr, "usage: weir_prefix_bench [--tokens N] [--others N] [--rounds N]\n");
      return 2;
    }
    *value = static_cast<uint32_t>(given);
  }
  if (tokens < kBlockTokens) {
    std::fprintf(stderr, "--tokens must be a block of %u or more\n", kBlockTokens);
    return 2;
  }
  PrefixBench bench(tokens, others + 1);
  std::mt19937 random(2);
  std::vector<double> arrive, admit, end, all;
  for (uint32_t i = 0; i < rounds; ++i) {
    const Costs c = bench.Serve(static_cast<uint32_t>(random() % (others + 1)));
    arrive.push_back(c.arrive);
    admit.push_back(c.admit);
    end.push_back(c.end);
    all.push_back(c.arrive + c.admit + c.end);
  }
  std::printf("%u tokens, %u prompts in the index, %u requests; ns a block, 50 %% [10 %%, 90 %%]\n",
              tokens, others + 1, rounds);
  const auto print = [](const char* what, std::vector<double>& v) {
    std::sort(v.begin(), v.end());
    std::printf("  %-22s %6.0f [%.0f, %.0f]\n", what, v[v.size() / 2], v[v.size() / 10],
                v[v.size() * 9 / 10]);
  };
  print("arrival", arrive);
  print("admission, with match", admit);
  print("end", end);
  print("in all", all);
  return 0;
}

}  // namespace
}  // namespace weir

int main(int argc, char** argv) {
  return weir::Main(argc, argv);
}
