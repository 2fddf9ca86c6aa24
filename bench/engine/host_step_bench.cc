// What the host does for a decode step: EngineCore::Step beside a compute that costs nothing.
//
// A batch decodes behind prompts of one length that the prefix cache has, two steps under way as on
// a GPU: all of its sequences need a new KV block in the same step. "prepare" is from the beginning
// of a step until its batch is submitted (policy, schedule, inputs), "accept" from when the step
// before it is collected to the end (tokens, prefix index, what is learnt); what the back-end does
// itself comes on top. --cold: MiB of other memory read where the host waits for the device, so
// that the CPU's caches hold nothing of the batch. --map step: granules are mapped in the steps
// that need them, and not at start. --warmups: batches decoded before, whose KV stays in the prefix
// cache: where that fills KV, as in a server that has run for a while, a new block is one evicted.
// The last columns: the steps in which every sequence takes a block, 50 %; for how many blocks at
// once memory was mapped, and how many were evicted.
//
//   weir_host_bench [--batch 1,64,256,512] [--context N (1024)] [--steps N (256)] [--rounds N (5)]
//                   [--cold MIB (0)] [--warmups N (0)] [--policy SPEC (tide)]
//                   [--map start|step (start)]
#include <algorithm>
#include <array>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <memory>
#include <numeric>
#include <random>
#include <sstream>
#include <string>
#include <vector>

#include "engine/core.h"
#include "policy/registry.h"
#include "vmm/host_driver.h"

namespace weir {
namespace {

// Llama 3.1 8B in small: its layers and gates, four KV blocks a granule.
constexpr uint32_t kLayers = 32, kSegments = 3, kVocab = 128'256;
constexpr uint64_t kGranuleBytes = 64 * kKiB, kBlockBytes = kGranuleBytes / 4;
constexpr uint64_t kSegmentBytes = 2 * kGranuleBytes;
constexpr uint32_t kMaxRows = 8192;
constexpr uint64_t kStepNs = 10'000'000;  // of the device, as it says

struct Args {
  std::vector<uint32_t> batches{1, 64, 256, 512};
  uint32_t context = 1024, steps = 256, rounds = 5, cold_mib = 0, warmups = 0;
  std::string policy = "tide";
  bool map_at_start = true;
};

// Stands in for a GPU: a step has been computed when it is collected.
class NullCompute final : public Compute {
 public:
  NullCompute(const ComputeLimits& limits, uint32_t cold_mib)
      : limits_(limits), other_(size_t{cold_mib} * (kMiB / sizeof(uint64_t))) {}

  const ComputeLimits& limits() const override { return limits_; }
  uint32_t depth() const override { return 2; }
  Status Scrub(std::span<const BlockId>) override { return OkStatus(); }
  Status Submit(const StepBatch& batch, StepGates&) override {
    submitted_ns = TraceMonotonicNs();
    std::vector<uint64_t> positions = std::move(spare_);
    positions.clear();
    for (const StepSequence& s : batch.sequences) {
      if (s.wants_logits) positions.push_back(s.sample.key * 0x9e3779b97f4a7c15ULL + s.context);
    }
    under_way_.push_back(std::move(positions));
    return OkStatus();
  }
  Status Collect(StepOutcome* outcome) override {
    sum_ = std::accumulate(other_.begin(), other_.end(), uint64_t{0});
    *outcome = {};
    outcome->compute_ns = kStepNs;
    outcome->idle_before_ns = 0;
    outcome->samples.reserve(under_way_.front().size());
    for (const uint64_t x : under_way_.front()) {
      outcome->samples.emplace_back(
          SampledToken{.token = static_cast<int32_t>((x >> 20) % kVocab)});
    }
    spare_ = std::move(under_way_.front());
    under_way_.pop_front();
    collected_ns = TraceMonotonicNs();
    return OkStatus();
  }
  Result<std::vector<float>> ReadLogits(uint32_t) override {
    return Unsupported("there are no logits");
  }
  uint64_t RecordedPointersDigest() const override { return 1; }
  uint32_t recordings() const override { return 1; }
  std::string description() const override { return "nothing"; }

  TimeNs submitted_ns = 0;  // the last Submit's begin
  TimeNs collected_ns = 0;  // the last Collect's end

 private:
  const ComputeLimits limits_;
  std::deque<std::vector<uint64_t>> under_way_;
  std::vector<uint64_t> spare_;
  std::vector<uint64_t> other_;  // memory of somebody else
  volatile uint64_t sum_ = 0;    // so that they are read
};

// Host time of decode steps, us.
struct Samples {
  std::vector<double> all, prepare, accept;
  std::vector<double> taking;  // of them, the steps in which every sequence took a block
  uint32_t most_mapped = 0;    // blocks, in one step
  uint32_t most_evicted = 0;   // likewise
};

class Batch {
 public:
  Batch(const Args& args, uint32_t sequences) : args_(args), sequences_(sequences) {}

  Status Run(Samples* samples) {
    WEIR_TRY(Build());
    WEIR_TRY(AddRequests(/*output_tokens=*/1));
    while (WEIR_TRY(core_->Step())) WEIR_TRY(CheckOutputs());
    for (uint32_t warmup = 0; warmup < args_.warmups; ++warmup) {
      WEIR_TRY(AddRequests(args_.steps + 8));
      while (WEIR_TRY(core_->Step())) WEIR_TRY(CheckOutputs());
    }
    WEIR_TRY(AddRequests(args_.steps + 8));
    uint32_t decoding = 0;
    for (uint64_t tokens = 0; decoding < args_.steps;) {
      const uint64_t before = core_->stats().output_tokens;
      const uint32_t mapped = memory_->blocks().counts().capacity;
      const uint32_t used = memory_->blocks().counts().used;
      const uint64_t evicted = memory_->blocks().prefix_stats().evicted_blocks;
      const TimeNs begin = TraceMonotonicNs();
      if (!WEIR_TRY(core_->Step())) return BadState("the batch ended early");
      const TimeNs end = TraceMonotonicNs();
      WEIR_TRY(CheckOutputs());
      // What is prepared and what is accepted: a token of each.
      const bool all_decode =
          tokens == sequences_ && core_->stats().output_tokens - before == sequences_;
      tokens = core_->stats().output_tokens - before;
      if (!all_decode) continue;
      ++decoding;
      const TimeNs prepare = compute_->submitted_ns - begin;
      const TimeNs accept = end - compute_->collected_ns;
      samples->prepare.push_back(static_cast<double>(prepare) / 1e3);
      samples->accept.push_back(static_cast<double>(accept) / 1e3);
      samples->all.push_back(static_cast<double>(prepare + accept) / 1e3);
      if (memory_->blocks().counts().used - used == sequences_) {
        samples->taking.push_back(samples->all.back());
      }
      samples->most_mapped =
          std::max(samples->most_mapped, memory_->blocks().counts().capacity - mapped);
      samples->most_evicted = std::max(
          samples->most_evicted,
          static_cast<uint32_t>(memory_->blocks().prefix_stats().evicted_blocks - evicted));
    }
    const bool plain = core_->scheduler_stats().preemptions == 0 &&
                       core_->stats().failed_steps == 0 && core_->stats().border_moves == 0;
    return plain ? OkStatus()
                 : BadState("preemptions, failures or a moving border among the steps");
  }

 private:
  Status Build() {
    driver_ = WEIR_TRY(HostDriver::Create({}));
    const uint32_t tokens = args_.context + args_.steps + 64;
    MemoryOptions m;
    m.granule_bytes = kGranuleBytes;
    m.scratch_bytes = kGranuleBytes;
    m.kv_block_bytes = kBlockBytes;
    m.pager.max_steps_under_way = 2;
    m.map_kv_at_start = args_.map_at_start;
    m.kv_wanted_bytes = uint64_t{sequences_} * (tokens / kBlockTokens + 2) * kBlockBytes;
    for (uint32_t l = 0; l < kLayers; ++l) {
      auto& layer = m.weights.layers.emplace_back();
      for (uint32_t s = 0; s < kSegments; ++s) {
        layer.push_back({.offset = m.weights.region_bytes, .bytes = kSegmentBytes});
        m.weights.region_bytes += kSegmentBytes;
      }
    }
    memory_ = WEIR_TRY(Memory::Create(*driver_, m));
    WEIR_TRY(memory_->weights().Seal());
    const ComputeLimits limits{.max_rows = kMaxRows,
                               .max_sequences = sequences_,
                               .max_context = tokens,
                               .vocab_size = kVocab};
    compute_ = std::make_unique<NullCompute>(limits, args_.cold_mib);
    policy_ = WEIR_TRY(MakePolicy(args_.policy));
    CoreOptions core;
    core.scheduler = {
        .max_batched_tokens = kMaxRows, .max_sequences = sequences_, .max_prefill_chunk = kMaxRows};
    core.max_model_len = tokens;
    core_ = std::make_unique<EngineCore>(*driver_, *memory_, *compute_, *policy_, core);
    return OkStatus();
  }

  // The same prompts every time.
  Status AddRequests(uint32_t output_tokens) {
    std::mt19937 random(1);
    for (uint32_t i = 0; i < sequences_; ++i) {
      CoreRequest request;
      for (uint32_t t = 0; t < args_.context; ++t) {
        request.prompt.push_back(static_cast<int32_t>(random() % kVocab));
      }
      request.sampling.ignore_eos = true;
      request.sampling.max_tokens = output_tokens;
      (void)WEIR_TRY(core_->Add(std::move(request)));
    }
    return OkStatus();
  }

  Status CheckOutputs() {
    for (const CoreOutput& out : core_->TakeOutputs()) WEIR_TRY(out.error);
    return OkStatus();
  }

  const Args& args_;
  const uint32_t sequences_;
  std::unique_ptr<HostDriver> driver_;
  std::unique_ptr<Memory> memory_;
  std::unique_ptr<NullCompute> compute_;
  std::unique_ptr<Policy> policy_;
  std::unique_ptr<EngineCore> core_;
};

bool ParseNumber(const std::string& text, uint32_t least, uint32_t most, uint32_t* value) {
  char* end = nullptr;
  const unsigned long given = std::strtoul(text.c_str(), &end, 10);
  if (text.empty() || *end != 0 || given < least || given > most) return false;
  *value = static_cast<uint32_t>(given);
  return true;
}

bool Parse(int argc, char** argv, Args* args) {
  for (int i = 1; i < argc; i += 2) {
    if (i + 1 == argc) return false;
    const std::string flag = argv[i], value = argv[i + 1];
    bool good = false;
    if (flag == "--batch") {
      args->batches.clear();
      std::istringstream in(value);
      good = true;
      for (std::string one; good && std::getline(in, one, ',');) {
        good = ParseNumber(one, 1, 4096, &args->batches.emplace_back());
      }
      good = good && !args->batches.empty();
    } else if (flag == "--map") {
      args->map_at_start = value == "start";
      good = args->map_at_start || value == "step";
    } else if (flag == "--policy") {
      args->policy = value;
      good = true;
    } else {
      good = (flag == "--context" && ParseNumber(value, 1, 32'768, &args->context)) ||
             (flag == "--steps" && ParseNumber(value, 1, 65'536, &args->steps)) ||
             (flag == "--rounds" && ParseNumber(value, 1, 1000, &args->rounds)) ||
             (flag == "--warmups" && ParseNumber(value, 0, 1000, &args->warmups)) ||
             (flag == "--cold" && ParseNumber(value, 0, 1024, &args->cold_mib));
    }
    if (!good) return false;
  }
  return true;
}

double At(const std::vector<double>& sorted, double share) {
  return sorted[std::min(sorted.size() - 1,
                         static_cast<size_t>(share * static_cast<double>(sorted.size())))];
}

int Main(int argc, char** argv) {
  Args args;
  if (!Parse(argc, argv, &args)) {
    std::fprintf(
        stderr,
        "usage: weir_host_bench [--batch N,...] [--context N] [--steps N] [--rounds N]\n"
        "                       [--cold MIB] [--warmups N] [--policy SPEC] [--map start|step]\n");
    return 2;
  }
  std::printf("decode steps behind %u tokens, %u rounds of %u after %u warm-ups, policy %s\n",
              args.context, args.rounds, args.steps, args.warmups, args.policy.c_str());
  std::printf("%u MiB of other memory\n", args.cold_mib);
  std::printf("host time, us %34s %26s %28s %8s\n", "prepare", "accept", "taking", "blocks");
  std::printf("%5s %8s %8s %8s %8s %8s %8s %8s %8s %8s %8s %8s %7s %7s\n", "batch", "mean", "p50",
              "p90", "p99", "p50", "p90", "p99", "p50", "p90", "p99", "p50", "mapped", "evicted");
  for (const uint32_t sequences : args.batches) {
    Samples s;
    for (uint32_t round = 0; round < args.rounds; ++round) {
      if (const Status run = Batch(args, sequences).Run(&s); !run.ok()) {
        std::fprintf(stderr, "batch %u: %s\n", sequences, run.ToString().c_str());
        return 1;
      }
    }
    const double mean =
        std::accumulate(s.all.begin(), s.all.end(), 0.0) / static_cast<double>(s.all.size());
    for (auto* v : {&s.all, &s.prepare, &s.accept, &s.taking}) std::sort(v->begin(), v->end());
    std::printf("%5u %8.1f", sequences, mean);
    for (const auto* v : {&s.all, &s.prepare, &s.accept}) {
      for (const double share : {0.5, 0.9, 0.99}) std::printf(" %8.1f", At(*v, share));
    }
    std::printf(" %8.1f %7u %7u\n", s.taking.empty() ? 0 : At(s.taking, 0.5), s.most_mapped,
                s.most_evicted);
  }
  return 0;
}

}  // namespace
}  // namespace weir

int main(int argc, char** argv) {
  return weir::Main(argc, argv);
}
