// A life of the whole engine, simulated, from its records alone: the equalities a trace promises.
// And a session that writes a file.
#include "engine/trace_session.h"

#include <cstdio>
#include <cstring>
#include <fstream>
#include <map>
#include <set>
#include <sstream>

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "engine/core.h"
#include "engine/trace_metadata.h"
#include "policy/registry.h"
#include "tests/support/sim_model.h"
#include "vmm/sim_driver.h"
#include "vmm/trace_audit.h"

namespace weir {
namespace {

using testing::SimCompute;
using testing::SimModel;
using testing::SimModelShape;

// What the records say, added up.
struct Sums {
  TraceAudit audit;
  std::map<TraceType, uint64_t> count;
  std::map<uint8_t, uint64_t> faults;  // by cause
  uint64_t stall_ns = 0, copied = 0, expected_copied = 0, queues = 0;
  uint64_t evicted_bytes = 0, k1_problems = 0;
  int64_t used = 0, cached = 0, capacity = 0;
  std::vector<TraceRecord> prompts;

  void Add(const TraceRecord& r) {
    audit.Add(r);
    const auto type = static_cast<TraceType>(r.type);
    ++count[type];
    const auto n = [&r](size_t i) { return static_cast<int64_t>(r.args[i]); };
    switch (type) {
      case TraceType::kFaultMajor:
        stall_ns += r.args[3];
        ++faults[r.cause];
        break;
      case TraceType::kCopy: copied += r.args[3]; break;
      case TraceType::kPlacement:
        evicted_bytes = r.args[3];
        expected_copied += r.args[5];
        break;
      case TraceType::kStepEnd: expected_copied += evicted_bytes; break;
      case TraceType::kKvCapacity:
        capacity += n(2) == 1 ? n(1) : -n(1);
        k1_problems += capacity != n(3);
        break;
      case TraceType::kKvAlloc: used += n(2); break;
      case TraceType::kPromptBlocks: prompts.push_back(r); break;
      case TraceType::kKvFree:
        used -= n(2);
        cached += n(3);
        break;
      case TraceType::kKvHit:
        used += n(4);
        cached -= n(4);
        break;
      case TraceType::kKvEvict: cached -= n(1); break;
      case TraceType::kQueue:
        ++queues;
        k1_problems +=
            used != n(2) || cached != n(3) || capacity - used - cached != n(4) || capacity != n(5);
        break;
      default: break;
    }
  }
};

class Life {
 public:
  Life() : tracer_({.ring_records = 1U << 16, .clock = [this] { return driver_->Now(); }}) {
    SetTracer(&tracer_);
    MemoryOptions m;
    m.granule_bytes = 256;
    m.scratch_bytes = 1000;
    m.kv_block_bytes = shape_.block_bytes;
    m.kv_least_blocks = 8;
    m.weights = SimModel::Layout(shape_);
    m.hbm_budget_bytes = m.weights.region_bytes + m.scratch_bytes + 20 * shape_.block_bytes;
    memory_ = Memory::Create(*driver_, m).value();
    EXPECT_TRUE(memory_->weights().Write(0, SimModel::WeightBytes(shape_)).ok());
    EXPECT_TRUE(memory_->weights().Seal().ok());
    EXPECT_TRUE(memory_->MeasureLink().ok());
    const ComputeLimits limits{
        .max_rows = 32, .max_sequences = 8, .max_context = 512, .vocab_size = shape_.vocab};
    compute_ = std::make_unique<SimCompute>(
        *driver_, shape_, limits,
        SimCompute::Memory{memory_->weights().base(), memory_->kv().base(),
                           memory_->kv().block_stride()},
        [this](uint64_t ns) { driver_->AdvanceBy(ns); });
    policy_ = MakePolicy("stress_random").value();
    CoreOptions options;
    options.scheduler.max_batched_tokens = limits.max_rows;
    options.scheduler.max_prefill_chunk = 16;
    options.scheduler.max_sequences = limits.max_sequences;
    options.max_model_len = 512;
    core_ = std::make_unique<EngineCore>(*driver_, *memory_, *compute_, *policy_, options);
    EXPECT_TRUE(core_->Calibrate().ok());
    Drain();
  }
  ~Life() { SetTracer(nullptr); }

  void Serve() {
    for (int i = 0; i < 12; ++i) {
      CoreRequest request;
      for (int t = 0; t < 20 + 3 * i; ++t) request.prompt.push_back(t < 16 ? t : (t * i) % 50);
      request.sampling.temperature = 0;
      request.sampling.max_tokens = 24;
      EXPECT_TRUE(core_->Add(std::move(request)).ok());
    }
    for (int i = 0; i < 5000; ++i) {
      const auto worked = core_->Step();
      ASSERT_TRUE(worked.ok());
      Drain();
      if (!*worked) break;
    }
    ASSERT_TRUE(core_->idle());
  }
  // The end of the process; what was queued ahead has then been copied.
  void Close() {
    stats_ = memory_->weights().stats();
    border_moves_ = core_->stats().border_moves;
    core_.reset();
    compute_.reset();
    memory_.reset();
    Drain();
  }

  void Drain() {
    std::vector<TraceRecord> records;
    tracer_.Drain([&](const TraceRecord& r) { records.push_back(r); });
    for (const TraceRecord& r : records) sums.Add(r);
  }

  Sums sums;
  SimModelShape shape_;
  std::unique_ptr<SimDriver> driver_ = SimDriver::Create({.granularity_bytes = 256}).value();
  Tracer tracer_;
  std::unique_ptr<Memory> memory_;
  std::unique_ptr<SimCompute> compute_;
  std::unique_ptr<Policy> policy_;
  std::unique_ptr<EngineCore> core_;
  WeightPagerStats stats_;
  uint64_t border_moves_ = 0;
};

TEST(TraceOfALife, StallBytesAndBlocksAddUpExactly) {
  Life life;
  life.driver_->faults().link_slowdown = 200;  // so that gates are faults
  life.Serve();
  life.Close();
  const Sums& s = life.sums;
  const Status sound = s.audit.CheckAtEnd();
  EXPECT_TRUE(sound.ok()) << sound.ToString();
  EXPECT_GT(life.border_moves_, 0u);
  EXPECT_GT(life.stats_.stall_ns, 0u);
  EXPECT_EQ(s.stall_ns, life.stats_.stall_ns);
  EXPECT_EQ(s.count.at(TraceType::kFaultMajor), life.stats_.faults);
  EXPECT_GT(s.copied, 0u);
  EXPECT_EQ(s.copied, life.stats_.bytes_copied);
  EXPECT_EQ(s.copied, s.expected_copied);
  EXPECT_GT(s.queues, 20u);
  EXPECT_EQ(s.k1_problems, 0u);
  EXPECT_EQ(life.tracer_.dropped(), 0u);
  for (const TraceType type :
       {TraceType::kKvHit, TraceType::kRequest, TraceType::kPolicyDecision, TraceType::kFill,
        TraceType::kEvict, TraceType::kOwner, TraceType::kGatePass}) {
    EXPECT_TRUE(s.count.contains(type)) << TraceTypeName(type);
  }
}

TEST(TraceOfALife, PromptsThatBeginAlikeHaveEqualFingerprintsAndNothingElseOfThem) {
  Life life;
  life.Serve();
  std::set<uint64_t> first, second;
  for (const TraceRecord& r : life.sums.prompts) {
    if (r.args[1] != 0) continue;
    EXPECT_NE(r.args[2], 0u);
    first.insert(r.args[2]);
    if (r.args[3] != 0) second.insert(r.args[3]);
  }
  EXPECT_EQ(first.size(), 1u);  // every prompt begins with the same 16 tokens
  EXPECT_GT(second.size(), 1u);
  life.Close();
}

TEST(TraceMetadata, NamesWhatRanAndWhatAReplayNeeds) {
  Life life;
  EngineOptions options;
  options.trace.version = "1.2.3";
  options.trace.commit = "abc";
  options.trace.command = "weir run memory.granule=2MiB";
  EngineInfo info;
  info.scratch_bytes = 1000;
  const auto json =
      nlohmann::json::parse(TraceMetadata(options, info, *life.memory_, *life.policy_));
  EXPECT_EQ(json["version"], "1.2.3");
  EXPECT_EQ(json["commit"], "abc");
  EXPECT_EQ(json["command"], "weir run memory.granule=2MiB");
  EXPECT_EQ(json["scratch_bytes"], 1000);
  EXPECT_EQ(json["scheduler"]["max_batched_tokens"], options.max_num_batched_tokens);
  EXPECT_EQ(json["scheduler"]["prefix_caching"], true);
  EXPECT_EQ(json["weights"]["layers"].size(), life.shape_.layers);
  life.Close();
}

TEST(TraceOfALife, AnInjectedLateCopyIsAFaultWithThatCause) {
  Life life;
  life.driver_->faults().late_ns = 5'000'000;
  life.driver_->faults().CopyWithProbability(SimCopyFault::kLate, 0.05);
  life.Serve();
  EXPECT_GT(life.sums.faults[static_cast<uint8_t>(FaultCause::kLateCopy)], 0u);
  life.Close();
  EXPECT_EQ(life.sums.stall_ns, life.stats_.stall_ns);
}

TEST(TraceSession, AFileHasEveryRecordAndIsPrivate) {
  const std::string path = ::testing::TempDir() + "trace_session_test.wtrace";
  constexpr uint64_t kEvents = 20000;
  {
    auto session = TraceSession::Start({.file = path}).value();
    ASSERT_NE(session, nullptr);
    for (uint64_t i = 0; i < kEvents; ++i) {
      TraceEmit(TraceType::kMap, 0, i);
      if (i % 4000 == 3999) std::this_thread::sleep_for(std::chrono::milliseconds(20));
    }
    EXPECT_TRUE(session->tracer().SetMetadata("{\"program\":\"test\"}").ok());
  }
  EXPECT_EQ(GetTracer(), nullptr);
  std::ifstream in(path, std::ios::binary);
  std::stringstream text;
  text << in.rdbuf();
  const std::string bytes = text.str();
  TraceFileHeader header;
  ASSERT_GE(bytes.size(), sizeof(header));
  std::memcpy(&header, bytes.data(), sizeof(header));
  EXPECT_EQ(std::memcmp(header.magic, kTraceFileMagic, sizeof(header.magic)), 0);
  EXPECT_NE(header.tail_meta_offset, 0u);
  EXPECT_NE(bytes.substr(header.tail_meta_offset).find("\"program\":\"test\""), std::string::npos);
  EXPECT_NE(bytes.substr(sizeof(header), 64).find("\"program\":\"test\""), std::string::npos);
  uint64_t next = 0;
  uint64_t lost = 0;
  for (size_t at = sizeof(header) + header.meta_bytes; at < header.tail_meta_offset;) {
    TraceBlockHeader block;
    std::memcpy(&block, &bytes[at], sizeof(block));
    ASSERT_EQ(block.magic, kTraceBlockMagic);
    lost += block.lost;
    at += sizeof(block);
    for (uint32_t i = 0; i < block.records; ++i, at += sizeof(TraceRecord)) {
      TraceRecord r;
      std::memcpy(&r, &bytes[at], sizeof(r));
      if (r.type != static_cast<uint16_t>(TraceType::kMap)) continue;
      EXPECT_EQ(r.args[0], next);
      next = r.args[0] + 1;
    }
  }
  EXPECT_EQ(next, kEvents);
  EXPECT_EQ(lost, 0u);
  std::remove(path.c_str());
}

TEST(TraceSession, ADiskThatIsFullEndsTheRecordingOnly) {
  auto refused = TraceSession::Start({.file = "/dev/full"});
  EXPECT_FALSE(refused.ok());
  EXPECT_FALSE(TraceSession::Start({.file = "/no/such/directory/t"}).ok());
  EXPECT_FALSE(TraceSession::Start({.ring_records = 1000}).ok());
  EXPECT_EQ(GetTracer(), nullptr);
}

}  // namespace
}  // namespace weir
