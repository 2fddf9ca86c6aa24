// An engine on a GPU, recorded in this process: its trace has every gate and every copy, adds up,
// and passes `weir-trace check`. Skipped, with the reason, where there is no GPU, or no second one
// for weights on a peer. Every wait has a limit, and what a case found is said at once.
#include <chrono>
#include <random>
#include <thread>
#include <tuple>

#include <gtest/gtest.h>

#include "engine/core.h"
#include "engine/cuda_compute.h"
#include "engine/trace_metadata.h"
#include "policy/registry.h"
#include "tests/pager/fault_driver.h"
#include "tests/support/checked_trace.h"
#include "tests/support/cuda_devices.h"
#include "vmm/cuda_driver.h"

namespace weir {
namespace {

using test::CopyFault;
using test::FaultDriver;
using testing::CheckedTrace;
using testing::TraceFindings;

// Most time that one wave of requests may take; a case is meant to take a few seconds in all.
constexpr auto kServeLimit = std::chrono::seconds(30);
// Beyond it a step fails, which no test here expects. Another test's kernels may share the GPU.
constexpr uint64_t kGateTimeoutNs = 5'000'000'000;

double SecondsSince(std::chrono::steady_clock::time_point begin) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
}

constexpr char kMadeUp[] = R"({
  "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu",
  "hidden_size": 1024, "intermediate_size": 2816, "num_hidden_layers": 12,
  "num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 128, "vocab_size": 8192,
  "max_position_embeddings": 4096, "rms_norm_eps": 1e-5, "rope_theta": 500000.0,
  "tie_word_embeddings": false, "torch_dtype": "bfloat16", "bos_token_id": 1, "eos_token_id": 2})";

void Ok(const Status& status) {
  ASSERT_TRUE(status.ok()) << status.ToString();
}

// The parts of an engine, put together so that its driver can be made to fail.
class GpuLife {
 public:
  void Open(const std::string& policy_name, BackingTier backing) {
    // Chosen by the first engine of this process: choosing takes seconds.
    static std::string algorithms;
    const ModelConfig config = ParseModelConfig(kMadeUp).value();
    limits_ = {
        .max_rows = 256, .max_sequences = 32, .max_context = 1024, .vocab_size = config.vocab_size};
    auto made =
        CudaDriver::Create({.device = 0, .peer_device = backing == BackingTier::kPeer ? 1 : -1});
    Ok(made.status());
    cuda = std::move(*made);
    driver = std::make_unique<FaultDriver>(*cuda);
    const WeightMap map = WeightMap::Make(config, WeightFormat::kCuda);
    const StreamId stream = driver->CreateStream("weir-compute").value();
    const uint64_t scratch = CudaCompute::ScratchBytes(config, map, limits_).value();
    MemoryOptions m;
    m.backing = backing;
    m.weights = map.layout;
    m.scratch_bytes = scratch;
    m.kv_block_bytes = CudaCompute::KvBlockBytes(config, map);
    m.kv_least_blocks = 64;
    m.lookup_in_place = true;
    // Room for a third of what the requests of a wave want.
    m.hbm_budget_bytes = map.layout.region_bytes - map.layout.lookup.bytes + scratch + 64 * kMiB;
    m.pager.device_gates = true;
    m.pager.max_steps_under_way = 2;
    m.pager.gate_timeout_ns = kGateTimeoutNs;
    auto memory_made = Memory::Create(*driver, m);
    Ok(memory_made.status());
    memory = std::move(*memory_made);
    // All of the region as one matrix.
    constexpr uint64_t kCols = 128;
    ASSERT_EQ(map.layout.region_bytes % (kCols * 2), 0U);
    Ok(CudaCompute::MakeWeights(
        memory->weights(), *driver,
        {.scratch = memory->scratch(),
         .bytes = scratch,
         .stream_id = stream,
         .stream = cuda->native_stream(stream)},
        {.offset = 0,
         .rows = map.layout.region_bytes / (kCols * 2),
         .cols = kCols,
         .compressed = false,
         .parts = {{.first_row = 0, .tensor = {.seed = 0, .tensor_id = 7, .scale = 0.02F}}}}));
    Ok(memory->weights().Seal());
    Ok(memory->MeasureLink());
    const DeviceGates gates = memory->weights().device_gates();
    auto compute_made = CudaCompute::Create(config, limits_, map,
                                            {.weights = memory->weights().base(),
                                             .kv = memory->kv().base(),
                                             .kv_block_stride = memory->kv().block_stride(),
                                             .scratch = memory->scratch(),
                                             .stream = cuda->native_stream(stream),
                                             .produced = gates.produced,
                                             .consumed = gates.consumed},
                                            {.device = 0, .algorithms = algorithms});
    Ok(compute_made.status());
    compute = std::move(*compute_made);
    algorithms = compute->algorithms();
    auto policy_made = MakePolicy(policy_name);
    Ok(policy_made.status());
    policy = std::move(*policy_made);
    CoreOptions options;
    options.scheduler.max_batched_tokens = limits_.max_rows;
    options.scheduler.max_prefill_chunk = limits_.max_rows;
    options.scheduler.max_sequences = limits_.max_sequences;
    options.max_model_len = limits_.max_context;
    core = std::make_unique<EngineCore>(*driver, *memory, *compute, *policy, options);
    Ok(core->Calibrate());
    trace.Drain();
    open_s_ = SecondsSince(opened_);
  }

  void Add(int requests) {
    for (int i = 0; i < requests; ++i) {
      CoreRequest request;
      request.prompt.resize(100 + random_() % 400);
      for (int32_t& t : request.prompt) t = static_cast<int32_t>(random_() % 8192);
      request.sampling.temperature = 0;
      request.sampling.max_tokens = 30 + static_cast<uint32_t>(random_() % 60);
      request.sampling.ignore_eos = true;
      ASSERT_TRUE(core->Add(std::move(request)).ok());
    }
  }
  // |steps| steps, or until nothing is left to do: false.
  bool Serve(int steps = 100'000) {
    const auto begin = std::chrono::steady_clock::now();
    for (int i = 0; i < steps; ++i) {
      if (std::chrono::steady_clock::now() - begin > kServeLimit) {
        ADD_FAILURE() << "not done after " << SecondsSince(begin) << " s and " << i
                      << " steps: " << core->scheduler().running() << " requests run, "
                      << core->scheduler().waiting() << " wait, " << core->stats().failed_steps
                      << " steps failed, " << core->stats().border_moves
                      << " moves of the border; last refusal: "
                      << core->last_border_error().ToString();
        return true;
      }
      const auto worked = core->Step();
      EXPECT_TRUE(worked.ok()) << worked.status().ToString();
      trace.Drain();
      (void)core->TakeOutputs();
      if (!worked.ok() || !*worked) return false;
    }
    return true;
  }
  TraceFindings Close() {
    EngineInfo info;
    info.granule_bytes = memory->view().granule_bytes;
    info.clock_error_ns = compute->clock_error_ns();
    const std::string metadata = TraceMetadata({}, info, *memory, *policy);
    border_moves = core->stats().border_moves;
    failed_steps = core->stats().failed_steps;
    core.reset();
    counters = memory->weights().stats();
    stamp_error_ns = driver->stamp_error_ns();
    compute.reset();
    memory.reset();
    trace.Drain();
    EXPECT_EQ(trace.tracer().dropped(), 0U);
    const auto checking = std::chrono::steady_clock::now();
    const double served_s = SecondsSince(opened_) - open_s_;
    const TraceFindings f = trace.Check(metadata, /*complete=*/true);
    std::printf(
        "%s: %lu records, %lu steps, %lu border moves, %lu behind gates, %lu gates, %lu faults, "
        "stall %.3f ms, %lu copies of %.1f MiB, GPU idle %.3f ms; clock error: steps %.1f us (most "
        "%.1f), stamps %.1f us; %.1f s to open, %.1f s to serve, %.1f s to check\n",
        std::string(policy->name()).c_str(), trace.records().size(), f.steps, border_moves, f.moves,
        f.passes, f.faults, static_cast<double>(f.stall_ns) * 1e-6, f.copies,
        static_cast<double>(f.copied_bytes) / (1 << 20),
        static_cast<double>(f.device_idle_ns) * 1e-6,
        static_cast<double>(f.latest_clock_error_ns) * 1e-3,
        static_cast<double>(f.most_clock_error_ns) * 1e-3,
        static_cast<double>(stamp_error_ns) * 1e-3, open_s_, served_s, SecondsSince(checking));
    for (const auto& [cause, n] : f.by_cause) {
      std::printf("  %lu faults of cause %u\n", n, static_cast<unsigned>(cause));
    }
    std::fflush(stdout);
    return f;
  }

  CheckedTrace trace;
  std::unique_ptr<CudaDriver> cuda;
  std::unique_ptr<FaultDriver> driver;
  std::unique_ptr<Memory> memory;
  std::unique_ptr<CudaCompute> compute;
  std::unique_ptr<Policy> policy;
  std::unique_ptr<EngineCore> core;
  WeightPagerStats counters;
  uint64_t border_moves = 0, failed_steps = 0, stamp_error_ns = 0;

 private:
  const std::chrono::steady_clock::time_point opened_ = std::chrono::steady_clock::now();
  double open_s_ = 0;
  ComputeLimits limits_;
  std::mt19937 random_{11};
};

// Skips what the machine has no devices for.
#define SKIP_WITHOUT_DEVICES(backing)                                          \
  if (testing::CudaDevices() == 0) GTEST_SKIP() << "no CUDA device";           \
  if ((backing) == BackingTier::kPeer && testing::CudaDevices() < 2) {         \
    GTEST_SKIP() << "no second CUDA device to hold the weights that are away"; \
  }

std::string NameOf(BackingTier backing) {
  return backing == BackingTier::kPeer ? "Peer" : "Host";
}

void ExpectSound(const GpuLife& life, const TraceFindings& f) {
  EXPECT_EQ(f.violations, 0U) << f.first;
  EXPECT_TRUE(f.conclusive);
  EXPECT_EQ(life.failed_steps, 0U);
  EXPECT_EQ(f.stall_ns, life.counters.stall_ns);
  EXPECT_EQ(f.passes, life.counters.gate_arrivals);
  EXPECT_EQ(f.copies, life.counters.chunks_copied);
  EXPECT_EQ(f.copied_bytes, life.counters.bytes_copied);
  EXPECT_EQ(f.copied_bytes, f.expected_bytes);
  EXPECT_EQ(f.device_steps, f.steps);
  EXPECT_EQ(f.moves, life.counters.hidden_transitions + life.counters.split_transitions);
  EXPECT_LT(f.most_clock_error_ns, 2'000'000U);  // 130 us on a quiet machine
}

struct SwingPolicy {
  const char* name;
  const char* spec;
};
void PrintTo(const SwingPolicy& policy, std::ostream* out) {
  *out << policy.name;
}
using Swing = std::tuple<BackingTier, SwingPolicy>;

class CudaTraceSwingTest : public ::testing::TestWithParam<Swing> {};

INSTANTIATE_TEST_SUITE_P(
    All, CudaTraceSwingTest,
    ::testing::Combine(
        ::testing::Values(BackingTier::kHost, BackingTier::kPeer),
        ::testing::Values(SwingPolicy{"Tide", "tide{hold_steps=4; settle_steps=2}"},
                          SwingPolicy{"StressRandom", "stress_random{hold_steps=3; seed=3}"},
                          SwingPolicy{"Fixed", "fixed{granules_per_layer=4}"},
                          SwingPolicy{"FixedInPlace",
                                      "fixed{granules_per_layer=4; placement=in_place}"})),
    [](const auto& test) {
      return NameOf(std::get<0>(test.param)) + std::get<1>(test.param).name;
    });

TEST_P(CudaTraceSwingTest, LoadSwingsGiveATraceThatChecksAndAddsUp) {
  const auto& [backing, policy] = GetParam();
  SKIP_WITHOUT_DEVICES(backing);
  GpuLife life;
  ASSERT_NO_FATAL_FAILURE(life.Open(policy.spec, backing));
  // More than fit at once, and next to none, in turns.
  for (const int requests : {40, 3, 20, 1}) {
    ASSERT_NO_FATAL_FAILURE(life.Add(requests));
    ASSERT_FALSE(life.Serve());
    std::this_thread::sleep_for(std::chrono::milliseconds(100));  // clocks drift meanwhile
  }
  const TraceFindings f = life.Close();
  ExpectSound(life, f);
  const std::string_view name(policy.name);
  // tide may find that no border pays on this machine; calibration moves weights all the same.
  if (name != "Tide") {
    EXPECT_GT(life.border_moves, 0U);
  }
  if (name == "StressRandom") {
    EXPECT_GT(f.moves, 0U);
  }
  EXPECT_GT(f.copies, 0U);
  EXPECT_FALSE(f.by_cause.contains(FaultCause::kUnknown));
  EXPECT_FALSE(f.by_cause.contains(FaultCause::kRepair));
}

class CudaTraceTest : public ::testing::TestWithParam<BackingTier> {};

INSTANTIATE_TEST_SUITE_P(All, CudaTraceTest,
                         ::testing::Values(BackingTier::kHost, BackingTier::kPeer),
                         [](const auto& test) { return NameOf(test.param); });

TEST_P(CudaTraceTest, OneLateCopyIsAMajorFaultWithThatCauseAndItsWait) {
  constexpr auto kLate = std::chrono::milliseconds(40);
  SKIP_WITHOUT_DEVICES(GetParam());
  GpuLife life;
  ASSERT_NO_FATAL_FAILURE(life.Open("fixed{granules_per_layer=2}", GetParam()));
  ASSERT_NO_FATAL_FAILURE(life.Add(8));
  ASSERT_TRUE(life.Serve(20));
  const VirtAddr blocker = life.driver->CreateCounter().value();
  life.driver->blocker = blocker;
  std::thread opener;
  life.driver->on_copy = [&, n = 0]() mutable {
    if (++n != 5) return CopyFault::kNone;
    opener = std::thread([&] {
      std::this_thread::sleep_for(kLate);
      life.cuda->StoreCounter(blocker, 1);
    });
    return CopyFault::kBlock;
  };
  EXPECT_FALSE(life.Serve());
  ASSERT_TRUE(opener.joinable());
  opener.join();
  life.driver->on_copy = {};
  const TraceFindings f = life.Close();
  ExpectSound(life, f);
  uint64_t longest = 0;
  for (const TraceRecord& r : f.fault_records) {
    if (r.cause != static_cast<uint8_t>(FaultCause::kLateCopy)) continue;
    longest = std::max(longest, r.args[3]);
  }
  // The copy was queued up to two steps ahead of its gate, which take a few milliseconds.
  EXPECT_GT(longest, 20'000'000U);
  EXPECT_LT(longest, 60'000'000U);
  EXPECT_GE(life.counters.max_stall_ns, longest);
}

}  // namespace
}  // namespace weir
