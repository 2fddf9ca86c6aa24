// HostDriver beyond the contract: memory accounting, placement, threads, cancellation.
#include "vmm/host_driver.h"

#include <thread>

#include <sys/mman.h>
#include <sys/resource.h>
#include <unistd.h>

#include "tests/vmm/test_util.h"

namespace weir {
namespace {

constexpr uint64_t kLongNs = 10'000'000'000;

class HostDriverTest : public ::testing::Test {
 protected:
  void Start(const HostDriver::Options& options = {}) {
    driver_ = HostDriver::Create(options).value();
    page_ = driver_->properties().granularity_bytes;
  }
  std::unique_ptr<HostDriver> driver_;
  uint64_t page_ = 0;
};

TEST_F(HostDriverTest, TheGranularityIsThePageSize) {
  Start();
  EXPECT_EQ(page_, static_cast<uint64_t>(::sysconf(_SC_PAGESIZE)));
}

// Not under sanitizers, whose shadow would fault as well.
__attribute__((no_sanitize("address"), no_sanitize("thread"))) uint64_t ReadEach(VirtAddr begin,
                                                                                 uint64_t bytes,
                                                                                 uint64_t step) {
  uint64_t sum = 0;
  for (uint64_t at = 0; at < bytes; at += step) {
    sum += *reinterpret_cast<const volatile uint8_t*>(begin + at);
  }
  return sum;
}

// Memory that is mapped a second time to be read: its page table entries are there too.
TEST_F(HostDriverTest, SetAccessBuildsThePageTablesOfWhatIsReadOnly) {
  HostDriver::Options options;
  options.populate = HostPopulate::kOnSetAccess;
  Start(options);
  constexpr uint64_t kPages = 256;
  const uint64_t bytes = kPages * page_;
  const AllocId alloc = driver_->Create(Tier::kHost, bytes).value();
  const VirtAddr written = driver_->Reserve(bytes, page_).value();
  const VirtAddr read = driver_->Reserve(bytes, page_).value();
  ASSERT_OK(driver_->Map(written, alloc));
  ASSERT_OK(driver_->SetAccess(written, bytes, Access::kReadWrite));
  ASSERT_OK(driver_->Write(written, Pattern(3, bytes)));
  if (::madvise(reinterpret_cast<void*>(written), page_, 22 /* MADV_POPULATE_READ */) != 0) {
    GTEST_SKIP() << "this kernel populates nothing on request";
  }
  ASSERT_OK(driver_->Map(read, alloc));
  ASSERT_OK(driver_->SetAccess(read, bytes, Access::kRead));
  const auto faults = [] {
    rusage usage{};
    (void)::getrusage(RUSAGE_THREAD, &usage);
    return usage.ru_minflt;
  };
  const long before = faults();
  const uint64_t sum = ReadEach(read, bytes, page_);
  // A fault maps up to 16 pages around it.
  EXPECT_LT(faults() - before, static_cast<long>(kPages / 32)) << sum;
}

TEST_F(HostDriverTest, ReleasedExtentsAreUsedAgainAndTheCapHolds) {
  Start();
  HostDriver::Options options;
  options.hbm_bytes = 10 * page_;
  Start(options);
  std::vector<AllocId> allocs;
  for (int i = 0; i < 10; ++i) allocs.push_back(driver_->Create(Tier::kHbm, page_).value());
  EXPECT_CODE(driver_->Create(Tier::kHbm, page_), kNoMemory);
  // Every other one, then the rest: holes merge, and a large extent fits again.
  for (size_t i = 0; i < 10; i += 2) ASSERT_OK(driver_->Release(allocs[i]));
  for (size_t i = 1; i < 10; i += 2) ASSERT_OK(driver_->Release(allocs[i]));
  const AllocId whole = driver_->Create(Tier::kHbm, 10 * page_).value();
  EXPECT_CODE(driver_->Create(Tier::kHbm, page_), kNoMemory);
  EXPECT_OK(driver_->Release(whole));
}

TEST_F(HostDriverTest, AllocationsNeverShareBytes) {
  Start();
  const VirtAddr base = driver_->Reserve(8 * page_, page_).value();
  std::vector<AllocId> allocs;
  const auto add = [&](uint64_t i) {
    allocs.push_back(driver_->Create(Tier::kHbm, page_).value());
    ASSERT_OK(driver_->Map(base + i * page_, allocs.back()));
    ASSERT_OK(driver_->SetAccess(base + i * page_, page_, Access::kReadWrite));
    ASSERT_OK(driver_->Write(base + i * page_, Pattern(i, page_)));
  };
  for (uint64_t i = 0; i < 4; ++i) add(i);
  ASSERT_OK(driver_->Unmap(base + page_));
  ASSERT_OK(driver_->Release(allocs[1]));
  add(4);  // takes the hole
  for (const uint64_t i : {0U, 2U, 3U, 4U}) {
    EXPECT_EQ(ReadBytes(*driver_, base + i * page_, page_), Pattern(i, page_)) << i;
  }
}

TEST_F(HostDriverTest, PlacementOnAMissingNodeIsRefused) {
  HostDriver::Options options;
  options.numa_node = 4000;
  EXPECT_CODE(HostDriver::Create(options), kUnsupported);
}

TEST_F(HostDriverTest, PlacementOnNodeZeroWorksWhereThereIsNuma) {
  HostDriver::Options options;
  options.numa_node = 0;
  auto driver = HostDriver::Create(options);
  if (!driver.ok()) GTEST_SKIP() << driver.status().ToString();
  const uint64_t page = (*driver)->properties().granularity_bytes;
  const auto alloc = (*driver)->Create(Tier::kHost, page);
  // A container may forbid mbind; then the error says so and nothing is left behind.
  if (!alloc.ok()) {
    EXPECT_CODE(alloc, kIo);
    GTEST_SKIP() << alloc.status().ToString();
  }
  EXPECT_OK((*driver)->Release(*alloc));
}

TEST_F(HostDriverTest, StreamsAreLimitedByThreads) {
  HostDriver::Options options;
  options.threads = 1;
  Start(options);
  const StreamId one = driver_->CreateStream("one").value();
  EXPECT_CODE(driver_->CreateStream("two"), kNoMemory);
  ASSERT_OK(driver_->DestroyStream(one));
  EXPECT_OK(driver_->CreateStream("three"));
}

TEST_F(HostDriverTest, CountersRunOutCleanly) {
  HostDriver::Options options;
  options.counters = 2;
  Start(options);
  const VirtAddr a = driver_->CreateCounter().value();
  ASSERT_OK(driver_->CreateCounter());
  EXPECT_CODE(driver_->CreateCounter(), kNoMemory);
  ASSERT_OK(driver_->DestroyCounter(a));
  EXPECT_OK(driver_->CreateCounter());
}

TEST_F(HostDriverTest, LargeCopiesOfAnyAlignmentAndOverlapAreExact) {
  Start();
  constexpr uint64_t kBytes = 16 * kMiB;
  const VirtAddr base = driver_->Reserve(kBytes, page_).value();
  ASSERT_OK(driver_->Map(base, driver_->Create(Tier::kHbm, kBytes).value()));
  ASSERT_OK(driver_->SetAccess(base, kBytes, Access::kReadWrite));
  const StreamId stream = driver_->CreateStream("large").value();
  constexpr uint64_t kCopied = 5 * kMiB + 13;
  const auto bytes = Pattern(1, kCopied);
  struct Case {
    uint64_t src, dst;
  };
  for (const Case c :
       {Case{0, 8 * kMiB}, Case{3, 8 * kMiB}, Case{0, 8 * kMiB + 7}, Case{0, 64}, Case{64, 0}}) {
    ASSERT_OK(driver_->Write(base + c.src, bytes));
    ASSERT_OK(driver_->Copy(stream, base + c.dst, base + c.src, kCopied));
    ASSERT_OK(driver_->Wait(driver_->Record(stream).value()));
    EXPECT_TRUE(ReadBytes(*driver_, base + c.dst, kCopied) == bytes) << c.src << " " << c.dst;
  }
}

TEST_F(HostDriverTest, DestroyingABlockedStreamCancelsItsWait) {
  Start();
  const VirtAddr base = driver_->Reserve(page_, page_).value();
  ASSERT_OK(driver_->Map(base, driver_->Create(Tier::kHbm, page_).value()));
  ASSERT_OK(driver_->SetAccess(base, page_, Access::kReadWrite));
  ASSERT_OK(driver_->Write(base, Pattern(1, page_)));
  const VirtAddr counter = driver_->CreateCounter().value();
  const VirtAddr arrived = driver_->CreateCounter().value();
  // Both before the thread sleeps and after.
  for (const int delay_us : {0, 5, 50, 2000}) {
    const StreamId stream = driver_->CreateStream("blocked").value();
    ASSERT_OK(driver_->WaitCounter(stream, counter, 1));
    const EventId waited = driver_->Record(stream).value();
    ASSERT_OK(driver_->Fill(stream, base, std::byte{0}, page_));
    ASSERT_OK(driver_->WriteCounter(stream, arrived, 1));
    if (delay_us > 0) std::this_thread::sleep_for(std::chrono::microseconds(delay_us));
    ASSERT_OK(driver_->DestroyStream(stream));
    EXPECT_CODE(driver_->Wait(waited), kCancelled);
  }
  // Nothing after the wait happened: no byte was written, nothing was announced.
  EXPECT_EQ(ReadBytes(*driver_, base, page_), Pattern(1, page_));
  EXPECT_EQ(driver_->LoadCounter(arrived), 0u);
  EXPECT_OK(driver_->DestroyCounter(counter));
}

TEST_F(HostDriverTest, DestroyingAStreamThatWaitsForABlockedStreamReturns) {
  Start();
  const VirtAddr counter = driver_->CreateCounter().value();
  for (const int delay_us : {0, 50, 2000}) {
    const StreamId first = driver_->CreateStream("first").value();
    const StreamId second = driver_->CreateStream("second").value();
    ASSERT_OK(driver_->WaitCounter(first, counter, 1));
    ASSERT_OK(driver_->StreamWait(second, driver_->Record(first).value()));
    const EventId done = driver_->Record(second).value();
    if (delay_us > 0) std::this_thread::sleep_for(std::chrono::microseconds(delay_us));
    ASSERT_OK(driver_->DestroyStream(second));
    EXPECT_CODE(driver_->Wait(done), kCancelled);
    ASSERT_OK(driver_->DestroyStream(first));
  }
}

TEST_F(HostDriverTest, AnErrorPassesThroughStreamWait) {
  Start();
  const StreamId first = driver_->CreateStream("first").value();
  const StreamId second = driver_->CreateStream("second").value();
  ASSERT_OK(driver_->HostFunction(first, [] { return DataLoss("torn"); }));
  ASSERT_OK(driver_->StreamWait(second, driver_->Record(first).value()));
  EXPECT_CODE(driver_->Wait(driver_->Record(second).value()), kDataLoss);
}

TEST_F(HostDriverTest, ACounterThatIsWaitedForIsNotDestroyed) {
  Start();
  const VirtAddr counter = driver_->CreateCounter().value();
  const VirtAddr started = driver_->CreateCounter().value();
  std::thread waiter([&] {
    driver_->StoreCounter(started, 1);
    EXPECT_OK(driver_->HostWaitCounter(counter, 1, kLongNs));
  });
  ASSERT_OK(driver_->HostWaitCounter(started, 1, kLongNs));
  std::this_thread::sleep_for(std::chrono::milliseconds(20));  // the waiter sleeps by now
  EXPECT_CODE(driver_->DestroyCounter(counter), kBadState);
  driver_->StoreCounter(counter, 1);
  waiter.join();
  EXPECT_OK(driver_->DestroyCounter(counter));
}

// A lost wakeup would show as a ten-second wait.
TEST_F(HostDriverTest, NoWakeupIsLostBetweenManyWaiters) {
  Start();
  const VirtAddr counter = driver_->CreateCounter().value();
  constexpr uint64_t kRounds = 300;
  std::vector<std::thread> waiters;
  std::atomic<uint64_t> woken{0};
  for (int t = 0; t < 3; ++t) {
    waiters.emplace_back([&] {
      for (uint64_t i = 1; i <= kRounds; ++i) {
        EXPECT_OK(driver_->HostWaitCounter(counter, i, kLongNs));
        woken.fetch_add(1);
      }
    });
  }
  for (uint64_t i = 1; i <= kRounds; ++i) {
    if (i % 3 == 0) std::this_thread::sleep_for(std::chrono::microseconds(60));
    driver_->StoreCounter(counter, i);
    while (woken.load() < 3 * i) std::this_thread::yield();
  }
  for (std::thread& t : waiters) t.join();
}

}  // namespace
}  // namespace weir
