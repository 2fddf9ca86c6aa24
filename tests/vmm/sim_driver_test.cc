// SimDriver beyond the contract: virtual time, links, faults, violations, determinism.
#include "vmm/sim_driver.h"

#include "tests/vmm/test_util.h"

namespace weir {
namespace {

class SimDriverTest : public ::testing::Test {
 protected:
  static constexpr uint64_t kSize = 4096;
  void Start(SimDriver::Options options = {}) { driver_ = SimDriver::Create(options).value(); }
  VirtAddr NewMapped(Tier tier = Tier::kHbm, uint64_t bytes = kSize) {
    const VirtAddr at = driver_->Reserve(bytes, kSize).value();
    EXPECT_OK(driver_->Map(at, driver_->Create(tier, bytes).value()));
    EXPECT_OK(driver_->SetAccess(at, bytes, Access::kReadWrite));
    return at;
  }
  StreamId NewStream(const char* name = "s") { return driver_->CreateStream(name).value(); }
  EventId Record(StreamId s) { return driver_->Record(s).value(); }
  std::unique_ptr<SimDriver> driver_;
};

TEST_F(SimDriverTest, WorkTakesVirtualTimeOnly) {
  SimDriver::Options options;
  options.host_link.in_bytes_per_s = 1e9;
  options.copy_latency_ns = 100;
  Start(options);
  const VirtAddr device = NewMapped();
  const VirtAddr host = NewMapped(Tier::kHost);
  ASSERT_OK(driver_->Write(host, Pattern(1, kSize)));
  const StreamId stream = NewStream();
  ASSERT_OK(driver_->Copy(stream, device, host, kSize));
  const EventId done = Record(stream);
  driver_->AdvanceBy(4195);
  EXPECT_FALSE(driver_->IsComplete(done).value());
  EXPECT_NE(ReadBytes(*driver_, device, kSize), Pattern(1, kSize));
  driver_->AdvanceBy(1);  // 4096 ns + 100 ns
  EXPECT_TRUE(driver_->IsComplete(done).value());
  EXPECT_EQ(ReadBytes(*driver_, device, kSize), Pattern(1, kSize));
  EXPECT_EQ(driver_->Now(), 4196u);
}

TEST_F(SimDriverTest, CopiesShareADirectionOfALinkAndNotTheOther) {
  SimDriver::Options options;
  options.host_link = {1e9, 1e9};
  options.copy_latency_ns = 0;
  Start(options);
  const VirtAddr device = NewMapped();
  const VirtAddr host = NewMapped(Tier::kHost);
  const StreamId a = NewStream("a");
  const StreamId b = NewStream("b");
  const StreamId c = NewStream("c");
  ASSERT_OK(driver_->Copy(a, device, host, kSize));
  ASSERT_OK(driver_->Copy(b, device, host, kSize));
  ASSERT_OK(driver_->Copy(c, host, device, kSize));
  ASSERT_OK(driver_->Wait(Record(c)));
  EXPECT_EQ(driver_->Now(), 4096u);
  ASSERT_OK(driver_->Wait(Record(b)));
  EXPECT_EQ(driver_->Now(), 8192u);
  driver_->faults().link_slowdown = 2.0;
  ASSERT_OK(driver_->Copy(a, device, host, kSize));
  ASSERT_OK(driver_->Wait(Record(a)));
  EXPECT_EQ(driver_->Now(), 3 * 8192u - 8192u);
}

TEST_F(SimDriverTest, CallsCostWhatWasConfigured) {
  SimDriver::Options options;
  options.create_ns = 1;
  options.map_ns = 10;
  options.set_access_ns = 100;
  options.unmap_ns = 1000;
  Start(options);
  const VirtAddr at = NewMapped();
  EXPECT_EQ(driver_->Now(), 111u);
  ASSERT_OK(driver_->Unmap(at));
  EXPECT_EQ(driver_->Now(), 1111u);
}

TEST_F(SimDriverTest, AnUnmapWaitsForCopiesBetweenTiersButNotForEver) {
  SimDriver::Options options;
  options.host_link = {1e9, 1e9};  // a copy takes 4096 ns
  options.copy_latency_ns = 0;
  options.unmap_waits_for_copies_ns = 5000;
  options.unmap_handover_ns = 70;
  Start(options);
  const VirtAddr device = NewMapped();
  const VirtAddr host = NewMapped(Tier::kHost);
  const StreamId stream = NewStream("copies");
  ASSERT_OK(driver_->Unmap(NewMapped()));
  EXPECT_EQ(driver_->Now(), 0u);
  ASSERT_OK(driver_->Copy(stream, device, host, kSize));
  ASSERT_OK(driver_->Unmap(NewMapped()));
  EXPECT_EQ(driver_->Now(), 4096u + 70u);
  for (int i = 0; i < 3; ++i) ASSERT_OK(driver_->Copy(stream, device, host, kSize));
  ASSERT_OK(driver_->Unmap(NewMapped()));
  EXPECT_EQ(driver_->Now(), 4166u + 5000u + 70u);
  ASSERT_OK(driver_->Wait(Record(stream)));
  const TimeNs rest = driver_->Now();
  ASSERT_OK(driver_->Unmap(NewMapped()));
  EXPECT_EQ(driver_->Now(), rest);
}

TEST_F(SimDriverTest, ADeadlockIsReportedWithWhoWaits) {
  Start();
  const StreamId a = NewStream("copier");
  const StreamId b = NewStream("compute");
  const VirtAddr x = driver_->CreateCounter().value();
  const VirtAddr y = driver_->CreateCounter().value();
  ASSERT_OK(driver_->WaitCounter(a, x, 1));
  ASSERT_OK(driver_->WriteCounter(a, y, 1));
  ASSERT_OK(driver_->WaitCounter(b, y, 1));
  ASSERT_OK(driver_->WriteCounter(b, x, 1));
  const Status s = driver_->Wait(Record(b));
  EXPECT_CODE(s, kDriver);
  EXPECT_NE(s.message().find("copier"), std::string::npos) << s.message();
  EXPECT_CODE(driver_->HostWaitCounter(x, 1, ~uint64_t{0}), kShouldWait);
  driver_->StoreCounter(x, 1);  // the host can still help
  EXPECT_OK(driver_->Wait(Record(b)));
}

TEST_F(SimDriverTest, UnmapUnderQueuedWorkIsAViolationAndFailsTheStream) {
  Start();
  const VirtAddr from = NewMapped();
  const VirtAddr to = NewMapped();
  const StreamId stream = NewStream();
  ASSERT_OK(driver_->Copy(stream, to, from, kSize));
  ASSERT_OK(driver_->Unmap(from));
  EXPECT_EQ(driver_->violations(), 1u);
  EXPECT_NE(driver_->violation_list()[0].find("M2"), std::string::npos);
  EXPECT_CODE(driver_->Wait(Record(stream)), kDriver);
  EXPECT_EQ(driver_->violations(), 2u);  // and the copy found it out
}

TEST_F(SimDriverTest, ComputeIsCheckedWhileItRunsAndNotWhileItIsQueued) {
  Start();
  const VirtAddr at = NewMapped();
  const StreamId stream = NewStream();
  const VirtAddr gate = driver_->CreateCounter().value();
  ASSERT_OK(driver_->WaitCounter(stream, gate, 1));
  ASSERT_OK(driver_->Compute(stream, 1000, {{at, kSize, Access::kRead}}, nullptr));
  // Behind a closed gate a remap is allowed.
  const AllocId other = driver_->Create(Tier::kHbm, kSize).value();
  ASSERT_OK(driver_->Unmap(at));
  ASSERT_OK(driver_->Map(at, other));
  ASSERT_OK(driver_->SetAccess(at, kSize, Access::kReadWrite));
  EXPECT_EQ(driver_->violations(), 0u);
  driver_->StoreCounter(gate, 1);
  driver_->AdvanceBy(500);
  ASSERT_OK(driver_->Unmap(at));  // in the middle of it
  EXPECT_EQ(driver_->violations(), 1u);
  EXPECT_CODE(driver_->Wait(Record(stream)), kDriver);
}

TEST_F(SimDriverTest, ComputeOnAnUnmappedSlotFailsItsStream) {
  Start();
  const VirtAddr hole = driver_->Reserve(kSize, kSize).value();
  const StreamId stream = NewStream();
  bool ran = false;
  ASSERT_OK(driver_->Compute(stream, 10, {{hole, kSize, Access::kRead}}, [&] {
    ran = true;
    return OkStatus();
  }));
  EXPECT_CODE(driver_->Wait(Record(stream)), kDriver);
  EXPECT_FALSE(ran);
  EXPECT_EQ(driver_->violations(), 1u);
}

TEST_F(SimDriverTest, NthCallsFailOnceAndChangeNothing) {
  Start();
  const VirtAddr at = driver_->Reserve(kSize, kSize).value();
  const AllocId alloc = driver_->Create(Tier::kHbm, kSize).value();
  driver_->faults().FailNth(SimCall::kMap, 1);
  EXPECT_CODE(driver_->Map(at, alloc), kDriver);
  EXPECT_OK(driver_->Map(at, alloc));
  driver_->faults().FailNth(SimCall::kUnmap, 2, StatusCode::kNoMemory);
  EXPECT_OK(driver_->Unmap(at));
  EXPECT_OK(driver_->Map(at, alloc));
  EXPECT_CODE(driver_->Unmap(at), kNoMemory);
  EXPECT_OK(driver_->Unmap(at));
  EXPECT_EQ(driver_->faults().injected(), 2u);
}

TEST_F(SimDriverTest, CopiesCanBeLateLostOrFail) {
  Start();
  const VirtAddr from = NewMapped();
  const VirtAddr to = NewMapped();
  ASSERT_OK(driver_->Write(from, Pattern(1, kSize)));
  ASSERT_OK(driver_->Write(to, Pattern(2, kSize)));
  const StreamId stream = NewStream();

  driver_->faults().NthCopy(SimCopyFault::kLost, 1);
  ASSERT_OK(driver_->Copy(stream, to, from, kSize));
  ASSERT_OK(driver_->Wait(Record(stream)));
  EXPECT_EQ(ReadBytes(*driver_, to, kSize), Pattern(2, kSize));

  driver_->faults().NthCopy(SimCopyFault::kLate, 1);
  const TimeNs begin = driver_->Now();
  ASSERT_OK(driver_->Copy(stream, to, from, kSize));
  ASSERT_OK(driver_->Wait(Record(stream)));
  EXPECT_GE(driver_->Now() - begin, driver_->faults().late_ns);
  EXPECT_EQ(ReadBytes(*driver_, to, kSize), Pattern(1, kSize));

  driver_->faults().NthCopy(SimCopyFault::kFail, 1);
  const VirtAddr produced = driver_->CreateCounter().value();
  ASSERT_OK(driver_->Copy(stream, to, from, kSize));
  ASSERT_OK(driver_->WriteCounter(stream, produced, 1));
  EXPECT_CODE(driver_->Wait(Record(stream)), kDriver);
  EXPECT_EQ(driver_->LoadCounter(produced), 0u);  // bytes that did not arrive are not announced
}

TEST_F(SimDriverTest, OnlyTheKeptPartOfALargeAllocationHasBytes) {
  SimDriver::Options options;
  options.content_bytes = 64;
  Start(options);
  const VirtAddr a = NewMapped(Tier::kHbm, 64 * kMiB);
  const VirtAddr b = NewMapped(Tier::kHost, 64 * kMiB);
  ASSERT_OK(driver_->Write(a, Pattern(1, kSize)));
  const StreamId stream = NewStream();
  ASSERT_OK(driver_->Copy(stream, b, a, 64 * kMiB));
  ASSERT_OK(driver_->Wait(Record(stream)));
  EXPECT_EQ(ReadBytes(*driver_, b, 64), Pattern(1, 64));
  EXPECT_EQ(ReadBytes(*driver_, b + 64, 8), std::vector(8, std::byte{0xCD}));
}

TEST_F(SimDriverTest, UnwrittenMemoryIsNotZero) {
  Start();
  EXPECT_EQ(ReadBytes(*driver_, NewMapped(), 8), std::vector(8, std::byte{0xCD}));
}

TEST_F(SimDriverTest, DestroyingABlockedStreamCancelsItsWait) {
  Start();
  const StreamId stream = NewStream();
  const VirtAddr counter = driver_->CreateCounter().value();
  ASSERT_OK(driver_->WaitCounter(stream, counter, 1));
  const EventId waited = Record(stream);
  EXPECT_CODE(driver_->DestroyCounter(counter), kBadState);
  ASSERT_OK(driver_->DestroyStream(stream));
  EXPECT_CODE(driver_->Wait(waited), kCancelled);
  EXPECT_OK(driver_->DestroyCounter(counter));
}

TEST_F(SimDriverTest, AHostFunctionMayOnlyUseCounters) {
  Start();
  const StreamId stream = NewStream();
  StatusCode code = StatusCode::kOk;
  ASSERT_OK(driver_->HostFunction(stream, [&] {
    code = driver_->HostFunction(stream, [] { return OkStatus(); }).code();
    return OkStatus();
  }));
  ASSERT_OK(driver_->Wait(Record(stream)));
  EXPECT_EQ(code, StatusCode::kBadState);
}

// The same calls with the same seed: the same faults at the same nanosecond.
TEST_F(SimDriverTest, AWaitThatRunsOutLetsItsTimePassAndADeadlockDoesNot) {
  SimDriver::Options options;
  options.hbm_bytes_per_s = 8192e9 / 1e6;  // a copy takes 1 ms
  options.copy_latency_ns = 0;
  Start(options);
  const VirtAddr at = NewMapped(Tier::kHbm, 2 * kSize);
  const StreamId stream = NewStream();
  ASSERT_OK(driver_->Copy(stream, at, at + kSize, kSize));
  const EventId copied = Record(stream);
  EXPECT_CODE(driver_->WaitFor(copied, 400'000), kShouldWait);
  EXPECT_EQ(driver_->Now(), 400'000u);
  EXPECT_CODE(driver_->WaitFor(copied, 400'000), kShouldWait);
  EXPECT_OK(driver_->WaitFor(copied, 400'000));
  EXPECT_EQ(driver_->Now(), 1'000'000u);
  ASSERT_OK(driver_->WaitCounter(stream, driver_->CreateGateWord().value(), 1));
  EXPECT_CODE(driver_->WaitFor(Record(stream), kSize), kShouldWait);
  EXPECT_EQ(driver_->Now(), 1'000'000u);
}

TEST_F(SimDriverTest, AGateWordThatAStreamIsAboutToWriteIsWrittenByNobodyElse) {
  Start();
  const VirtAddr word = driver_->CreateGateWord().value();
  const StreamId stream = NewStream();
  const uint64_t value = 3;
  ASSERT_OK(driver_->WriteCounter(stream, word, 1));
  ASSERT_OK(driver_->Write(word, std::as_bytes(std::span(&value, 1))));
  EXPECT_EQ(driver_->violations(), 1u);
  ASSERT_OK(driver_->Wait(Record(stream)));
  ASSERT_OK(driver_->Write(word, std::as_bytes(std::span(&value, 1))));
  EXPECT_EQ(driver_->violations(), 1u);
  EXPECT_EQ(driver_->word_count(), 1u);
}

TEST_F(SimDriverTest, ARunIsAFunctionOfItsSeed) {
  const auto run = [&](uint64_t seed) {
    SimDriver::Options options;
    options.seed = seed;
    Start(options);
    driver_->faults().CopyWithProbability(SimCopyFault::kLate, 0.2);
    driver_->faults().CopyWithProbability(SimCopyFault::kLost, 0.2);
    driver_->faults().FailWithProbability(SimCall::kCopy, 0.1);
    const VirtAddr from = NewMapped(Tier::kHost);
    const VirtAddr to = NewMapped();
    const StreamId a = NewStream("a");
    const StreamId b = NewStream("b");
    std::string log;
    for (int i = 0; i < 200; ++i) {
      const Status s = driver_->Copy(i % 2 ? a : b, to, from, kSize);
      driver_->AdvanceBy(100);
      log += s.ok() ? "." : "x";
    }
    EXPECT_OK(driver_->Wait(Record(a)));
    return log + std::to_string(driver_->Now());
  };
  EXPECT_EQ(run(5), run(5));
  EXPECT_NE(run(5), run(6));
}

}  // namespace
}  // namespace weir
