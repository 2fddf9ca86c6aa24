#include "vmm/trace.h"

#include <map>
#include <thread>

#include <gtest/gtest.h>

#include "vmm/trace_lane.h"

namespace weir {
namespace {

std::vector<TraceRecord> DrainAll(Tracer& tracer) {
  std::vector<TraceRecord> out;
  tracer.Drain([&](const TraceRecord& r) { out.push_back(r); });
  return out;
}

TEST(TraceTest, RecordsCarryWhatWasEmitted) {
  TimeNs clock = 17;
  Tracer tracer({.ring_records = 16, .clock = [&] { return clock; }});
  SetTracer(&tracer);
  TraceEmit(TraceType::kMap, 3, 1, 2u, uint64_t{3}, Tier::kHost);
  clock = 18;
  TraceEmit(TraceType::kStepBegin, 0);
  const auto records = DrainAll(tracer);
  ASSERT_EQ(records.size(), 2u);
  EXPECT_EQ(records[0].type, static_cast<uint16_t>(TraceType::kMap));
  EXPECT_EQ(records[0].cause, 3);
  EXPECT_EQ(records[0].time_ns, 17u);
  EXPECT_EQ(records[0].args[2], 3u);
  EXPECT_EQ(records[0].args[3], static_cast<uint64_t>(Tier::kHost));
  EXPECT_EQ(records[0].args[5], 0u);
  EXPECT_EQ(records[1].time_ns, 18u);
  EXPECT_TRUE(DrainAll(tracer).empty());
}

TEST(TraceTest, WithoutATracerNothingHappens) {
  EXPECT_EQ(GetTracer(), nullptr);
  EXPECT_FALSE(TraceEnabled(TraceType::kMap));
  TraceEmit(TraceType::kMap, 0, 1);
  {
    Tracer tracer({.ring_records = 4});
    SetTracer(&tracer);
    EXPECT_TRUE(TraceEnabled(TraceType::kMap));
  }
  EXPECT_EQ(GetTracer(), nullptr);  // it uninstalled itself
  EXPECT_FALSE(TraceEnabled(TraceType::kMap));
}

TEST(TraceTest, ALaneIsAThreadOfItsOwnWithTimesOfItsOwn) {
  TraceLane lane;
  lane.Emit(5, TraceType::kCopy, 0, 1);  // nobody listens
  for (int tracers = 0; tracers < 2; ++tracers) {
    Tracer tracer({.ring_records = 16, .clock = [] { return TimeNs{100}; }});
    SetTracer(&tracer);
    TraceEmit(TraceType::kStepBegin, 0, 7);
    lane.Emit(40, TraceType::kCopy, 2, 1, 2);
    lane.Emit(39, TraceType::kCopy, 2, 3);  // time does not go back
    lane.Emit(60, TraceType::kGatePass, 0, 4);
    const auto records = DrainAll(tracer);
    ASSERT_EQ(records.size(), 4u);
    EXPECT_EQ(records[0].time_ns, 100u);
    EXPECT_EQ(records[1].time_ns, 40u);
    EXPECT_EQ(records[1].cause, 2);
    EXPECT_EQ(records[1].args[1], 2u);
    EXPECT_EQ(records[2].time_ns, 40u);
    EXPECT_EQ(records[3].time_ns, 60u);
    EXPECT_EQ(records[1].thread, records[3].thread);
    EXPECT_NE(records[0].thread, records[1].thread);
  }
}

TEST(TraceTest, ALaneGivesItsRingBackAndCountsWhatDoesNotFit) {
  Tracer tracer({.ring_records = 4});
  SetTracer(&tracer);
  for (uint32_t i = 0; i < 3 * TraceSegment::kRings; ++i) {
    TraceLane lane;
    lane.Emit(i, TraceType::kCopy, 0, i);
    EXPECT_EQ(DrainAll(tracer).size(), 1u);
  }
  EXPECT_EQ(tracer.dropped(), 0u);
  TraceLane lane;
  for (uint64_t i = 0; i < 7; ++i) lane.Emit(i, TraceType::kCopy, 0, i);
  EXPECT_EQ(tracer.dropped(), 3u);
}

TEST(TraceTest, OnlySubscribedTypesAreKept) {
  Tracer tracer({.ring_records = 16, .mask = Tracer::MaskOf(TraceType::kEvict)});
  SetTracer(&tracer);
  TraceEmit(TraceType::kMap, 0);
  TraceEmit(TraceType::kEvict, 0);
  tracer.set_mask(Tracer::MaskOf(TraceType::kMap));
  TraceEmit(TraceType::kMap, 0);
  TraceEmit(TraceType::kEvict, 0);
  const auto records = DrainAll(tracer);
  ASSERT_EQ(records.size(), 2u);
  EXPECT_EQ(records[0].type, static_cast<uint16_t>(TraceType::kEvict));
  EXPECT_EQ(records[1].type, static_cast<uint16_t>(TraceType::kMap));
}

TEST(TraceTest, LossesAreCountedExactlyAndInPlace) {
  Tracer tracer({.ring_records = 8});
  SetTracer(&tracer);
  for (uint64_t i = 0; i < 20; ++i) TraceEmit(TraceType::kMap, 0, i);
  EXPECT_EQ(tracer.dropped(), 12u);
  auto records = DrainAll(tracer);
  ASSERT_EQ(records.size(), 8u);
  EXPECT_EQ(records.back().args[0], 7u);
  TraceEmit(TraceType::kMap, 0, 20);
  records = DrainAll(tracer);
  ASSERT_EQ(records.size(), 2u);
  EXPECT_EQ(records[0].type, static_cast<uint16_t>(TraceType::kDrop));
  EXPECT_EQ(records[0].args[0], 12u);
  EXPECT_EQ(records[0].args[1], 12u);
  EXPECT_EQ(records[1].args[0], 20u);
}

// Four producers against a slow drainer: every number is either there, in order, or counted.
TEST(TraceTest, ConcurrentProducersLoseNothingUncounted) {
  constexpr uint64_t kThreads = 4;
  constexpr uint64_t kEach = 20000;
  Tracer tracer({.ring_records = 256});
  SetTracer(&tracer);
  std::atomic<uint64_t> running{kThreads};
  std::vector<std::thread> producers;
  for (uint64_t t = 0; t < kThreads; ++t) {
    producers.emplace_back([&, t] {
      for (uint64_t i = 0; i < kEach; ++i) TraceEmit(TraceType::kKvAlloc, 0, t, i);
      running.fetch_sub(1);
      // A thread that ends gives its ring to the next: here each keeps its own.
      while (running.load() != 0) std::this_thread::yield();
    });
  }
  std::map<uint64_t, uint64_t> next;     // producer -> number expected
  std::map<uint32_t, uint64_t> skipped;  // ring -> announced losses not yet seen as a gap
  uint64_t kept = 0;
  uint64_t reported = 0;
  const auto sink = [&](const TraceRecord& r) {
    if (r.type == static_cast<uint16_t>(TraceType::kDrop)) {
      skipped[r.thread] = r.args[0];
      reported += r.args[0];
      return;
    }
    ++kept;
    uint64_t& expected = next[r.args[0]];
    EXPECT_EQ(r.args[1], expected + skipped[r.thread]);
    skipped[r.thread] = 0;
    expected = r.args[1] + 1;
  };
  while (running.load() != 0) {
    tracer.Drain(sink);
    std::this_thread::sleep_for(std::chrono::microseconds(200));
  }
  for (std::thread& t : producers) t.join();
  tracer.Drain(sink);
  EXPECT_EQ(kept + tracer.dropped(), kThreads * kEach);
  EXPECT_LE(reported, tracer.dropped());
}

TEST(TraceTest, AThreadThatEndsGivesItsRingBack) {
  Tracer tracer({.ring_records = 16});
  SetTracer(&tracer);
  uint64_t kept = 0;
  for (uint64_t i = 0; i < 4 * TraceSegment::kRings; ++i) {
    std::thread([i] { TraceEmit(TraceType::kMap, 0, i); }).join();
    tracer.Drain([&](const TraceRecord& r) {
      EXPECT_EQ(r.args[0], kept);
      EXPECT_EQ(r.thread, 0u);
      ++kept;
    });
  }
  EXPECT_EQ(kept, 4 * TraceSegment::kRings);
  EXPECT_EQ(tracer.dropped(), 0u);
}

TEST(TraceTest, ThreadsBeyondTheLastRingAreCountedAsLosses) {
  constexpr uint64_t kThreads = TraceSegment::kRings + 5;
  Tracer tracer({.ring_records = 16});
  SetTracer(&tracer);
  std::atomic<uint64_t> emitted{0};
  std::vector<std::thread> threads;
  for (uint64_t t = 0; t < kThreads; ++t) {
    threads.emplace_back([&] {
      TraceEmit(TraceType::kMap, 0);
      emitted.fetch_add(1);
      while (emitted.load() < kThreads) std::this_thread::yield();
    });
  }
  for (std::thread& t : threads) t.join();
  EXPECT_EQ(DrainAll(tracer).size(), TraceSegment::kRings);
  EXPECT_EQ(tracer.dropped(), 5u);
}

TEST(TraceTest, ALaterTracerDoesNotGetAnEarlierOnesRing) {
  for (int i = 0; i < 3; ++i) {
    Tracer tracer({.ring_records = 4});
    SetTracer(&tracer);
    TraceEmit(TraceType::kMap, 0, i);
    const auto records = DrainAll(tracer);
    ASSERT_EQ(records.size(), 1u);
    EXPECT_EQ(records[0].args[0], static_cast<uint64_t>(i));
  }
}

}  // namespace
}  // namespace weir
