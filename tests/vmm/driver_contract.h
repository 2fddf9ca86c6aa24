// The contract of Driver as one suite, run for every implementation:
//
//   INSTANTIATE_TEST_SUITE_P(Host, DriverContract, ::testing::Values(DriverFactory{...}), ...);
//
// Include it in one source file of a test program. Where a driver cannot be made (no GPU), every
// test is skipped and says why.
#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <string>
#include <thread>

#include "tests/vmm/test_util.h"

namespace weir {

struct DriverFactory {
  std::string name;
  std::function<Result<std::unique_ptr<Driver>>()> make;
  uint64_t granules = 1;  // allocation size used, in granularities
};

class DriverContract : public ::testing::TestWithParam<DriverFactory> {
 protected:
  void SetUp() override {
    auto driver = GetParam().make();
    if (!driver.ok()) GTEST_SKIP() << GetParam().name << ": " << driver.status().ToString();
    driver_ = std::move(driver).value();
    size_ = driver_->properties().granularity_bytes * GetParam().granules;
  }

  AllocId NewAlloc(Tier tier = Tier::kHbm) { return driver_->Create(tier, size_).value(); }
  VirtAddr NewRange(uint64_t granules) { return driver_->Reserve(granules * size_, size_).value(); }
  void Bind(VirtAddr at, AllocId alloc) {
    ASSERT_OK(driver_->Map(at, alloc));
    ASSERT_OK(driver_->SetAccess(at, size_, Access::kReadWrite));
  }
  // |n| mapped granules in a row.
  VirtAddr NewMapped(uint64_t n, Tier tier = Tier::kHbm) {
    const VirtAddr base = NewRange(n);
    for (uint64_t i = 0; i < n; ++i) Bind(base + i * size_, NewAlloc(tier));
    return base;
  }
  void Finish(StreamId stream) { ASSERT_OK(driver_->Wait(driver_->Record(stream).value())); }

  std::unique_ptr<Driver> driver_;
  uint64_t size_ = 0;
};

constexpr uint64_t kLongNs = 10'000'000'000;

// --- D1..D5, D7: memory
// ----------------------------------------------------------------------------

TEST_P(DriverContract, PropertiesDescribeTheDevice) {
  const DriverProperties& p = driver_->properties();
  EXPECT_FALSE(p.name.empty());
  EXPECT_FALSE(p.device.empty());
  EXPECT_TRUE(IsPowerOfTwo(p.granularity_bytes));
}

TEST_P(DriverContract, CreateTakesOnlyMultiplesOfTheGranularity) {
  EXPECT_CODE(driver_->Create(Tier::kHbm, 0), kInvalidArgument);
  EXPECT_CODE(driver_->Create(Tier::kHbm, size_ + 1), kInvalidArgument);
}

TEST_P(DriverContract, MissingTiersAreUnsupported) {
  EXPECT_CODE(driver_->Create(Tier::kNvme, size_), kUnsupported);
  if (!driver_->properties().has_peer) {
    EXPECT_CODE(driver_->Create(Tier::kPeer, size_), kUnsupported);
  }
}

TEST_P(DriverContract, CreatingMoreThanThereIsIsNoMemoryAndHarmless) {
  EXPECT_CODE(driver_->Create(Tier::kHbm, uint64_t{1} << 50), kNoMemory);
  EXPECT_OK(driver_->Release(NewAlloc()));
}

TEST_P(DriverContract, ReservationsAreAlignedAndDisjoint) {
  const uint64_t alignment = size_ * 8;
  const VirtAddr a = driver_->Reserve(size_ * 3, alignment).value();
  const VirtAddr b = driver_->Reserve(size_ * 3, alignment).value();
  EXPECT_EQ(a % alignment, 0u);
  EXPECT_EQ(b % alignment, 0u);
  EXPECT_TRUE(a + size_ * 3 <= b || b + size_ * 3 <= a);
  EXPECT_OK(driver_->Free(a));
  EXPECT_OK(driver_->Free(b));
}

TEST_P(DriverContract, ReserveRefusesOddSizesAndAlignments) {
  EXPECT_CODE(driver_->Reserve(0, size_), kInvalidArgument);
  EXPECT_CODE(driver_->Reserve(size_ + 1, size_), kInvalidArgument);
  EXPECT_CODE(driver_->Reserve(size_, size_ * 3), kInvalidArgument);
}

TEST_P(DriverContract, FreeNamesOneReservation) {
  const VirtAddr base = NewRange(2);
  EXPECT_CODE(driver_->Free(base + size_), kInvalidArgument);
  EXPECT_OK(driver_->Free(base));
  EXPECT_CODE(driver_->Free(base), kInvalidArgument);
}

TEST_P(DriverContract, FreeOfAReservationWithMappingsIsBadState) {
  const VirtAddr base = NewMapped(1);
  EXPECT_CODE(driver_->Free(base), kBadState);
  EXPECT_OK(driver_->Write(base, Pattern(1, size_)));  // D7
  EXPECT_OK(driver_->Unmap(base));
  EXPECT_OK(driver_->Free(base));
}

TEST_P(DriverContract, MapNeedsAReservationAroundTheWholeAllocation) {
  const VirtAddr base = NewRange(2);
  const AllocId big = driver_->Create(Tier::kHbm, size_ * 2).value();
  EXPECT_CODE(driver_->Map(base + size_, big), kInvalidArgument);
  EXPECT_CODE(driver_->Map(base + 1, big), kInvalidArgument);
  EXPECT_CODE(driver_->Map(base, AllocId(123456789)), kInvalidArgument);
  EXPECT_OK(driver_->Map(base, big));
}

TEST_P(DriverContract, MapOverAMappingIsRefusedAndLeavesIt) {
  const VirtAddr base = NewMapped(1);
  const auto bytes = Pattern(7, size_);
  ASSERT_OK(driver_->Write(base, bytes));
  EXPECT_CODE(driver_->Map(base, NewAlloc()), kInvalidArgument);
  EXPECT_EQ(ReadBytes(*driver_, base, size_), bytes);
}

TEST_P(DriverContract, UnmapNamesExactlyOneMap) {
  const VirtAddr base = NewRange(2);
  const AllocId big = driver_->Create(Tier::kHbm, size_ * 2).value();
  ASSERT_OK(driver_->Map(base, big));
  EXPECT_CODE(driver_->Unmap(base + size_), kInvalidArgument);  // a part
  EXPECT_OK(driver_->Unmap(base));
  EXPECT_CODE(driver_->Unmap(base), kInvalidArgument);  // twice
}

TEST_P(DriverContract, AMappingStartsWithoutAccess) {
  const VirtAddr base = NewRange(1);
  ASSERT_OK(driver_->Map(base, NewAlloc()));
  std::vector<std::byte> bytes(size_);
  EXPECT_CODE(driver_->Read(base, bytes), kInvalidArgument);
  EXPECT_CODE(driver_->Write(base, bytes), kInvalidArgument);
  const StreamId stream = driver_->CreateStream("s").value();
  EXPECT_CODE(driver_->Fill(stream, base, std::byte{1}, size_), kInvalidArgument);
  EXPECT_OK(driver_->SetAccess(base, size_, Access::kReadWrite));
  EXPECT_OK(driver_->Write(base, bytes));
}

TEST_P(DriverContract, ReadAccessRefusesWrites) {
  const VirtAddr base = NewMapped(1);
  const auto bytes = Pattern(3, size_);
  ASSERT_OK(driver_->Write(base, bytes));
  ASSERT_OK(driver_->SetAccess(base, size_, Access::kRead));
  EXPECT_EQ(ReadBytes(*driver_, base, size_), bytes);
  EXPECT_CODE(driver_->Write(base, bytes), kInvalidArgument);
}

TEST_P(DriverContract, SetAccessTakesARunOfWholeMappings) {
  const VirtAddr base = NewRange(4);
  for (uint64_t i = 0; i < 3; ++i) ASSERT_OK(driver_->Map(base + i * size_, NewAlloc()));
  EXPECT_CODE(driver_->SetAccess(base, size_ * 4, Access::kReadWrite), kInvalidArgument);
  EXPECT_CODE(driver_->SetAccess(base, 0, Access::kReadWrite), kInvalidArgument);
  EXPECT_OK(driver_->SetAccess(base, size_ * 3, Access::kReadWrite));
  EXPECT_OK(driver_->Write(base, Pattern(1, size_ * 3)));  // across mappings
}

TEST_P(DriverContract, SetAccessOfPartOfAMappingIsRefused) {
  const VirtAddr base = NewRange(2);
  ASSERT_OK(driver_->Map(base, driver_->Create(Tier::kHbm, size_ * 2).value()));
  EXPECT_CODE(driver_->SetAccess(base, size_, Access::kReadWrite), kInvalidArgument);
}

TEST_P(DriverContract, UnmappedAddressesAreRefused) {
  const VirtAddr base = NewMapped(1);
  const VirtAddr hole = NewRange(1);
  const StreamId stream = driver_->CreateStream("s").value();
  std::vector<std::byte> bytes(size_);
  EXPECT_CODE(driver_->Read(hole, bytes), kInvalidArgument);
  EXPECT_CODE(driver_->Copy(stream, base, hole, size_), kInvalidArgument);
  EXPECT_CODE(driver_->Copy(stream, hole, base, size_), kInvalidArgument);
  EXPECT_CODE(driver_->Copy(stream, base, base, size_ * 2), kInvalidArgument);  // runs out of it
}

TEST_P(DriverContract, ReleaseOfAMappedAllocationIsBadState) {
  const VirtAddr base = NewRange(1);
  const AllocId alloc = NewAlloc();
  Bind(base, alloc);
  EXPECT_CODE(driver_->Release(alloc), kBadState);
  EXPECT_OK(driver_->Write(base, Pattern(1, size_)));  // D7
  ASSERT_OK(driver_->Unmap(base));
  EXPECT_OK(driver_->Release(alloc));
  EXPECT_CODE(driver_->Release(alloc), kInvalidArgument);
}

TEST_P(DriverContract, AliasesShowTheSameBytes) {
  const VirtAddr base = NewRange(3);
  const AllocId alloc = NewAlloc();
  for (uint64_t i = 0; i < 3; ++i) Bind(base + i * size_, alloc);
  const auto bytes = Pattern(11, size_);
  ASSERT_OK(driver_->Write(base + size_, bytes));
  EXPECT_EQ(ReadBytes(*driver_, base, size_), bytes);
  EXPECT_EQ(ReadBytes(*driver_, base + 2 * size_, size_), bytes);
  ASSERT_OK(driver_->Unmap(base + size_));
  EXPECT_EQ(ReadBytes(*driver_, base + 2 * size_, size_), bytes);
  EXPECT_CODE(driver_->Release(alloc), kBadState);
}

// The point of the whole thing: the address stays, the memory behind it changes.
TEST_P(DriverContract, RemappingChangesTheBytesBehindAnAddress) {
  const VirtAddr base = NewRange(1);
  const VirtAddr side = NewRange(1);
  const AllocId one = NewAlloc();
  const AllocId two = NewAlloc();
  Bind(base, one);
  Bind(side, two);
  ASSERT_OK(driver_->Write(base, Pattern(1, size_)));
  ASSERT_OK(driver_->Write(side, Pattern(2, size_)));
  for (int round = 0; round < 3; ++round) {
    ASSERT_OK(driver_->Unmap(base));
    Bind(base, two);
    EXPECT_EQ(ReadBytes(*driver_, base, size_), Pattern(2, size_));
    ASSERT_OK(driver_->Unmap(base));
    Bind(base, one);
    EXPECT_EQ(ReadBytes(*driver_, base, size_), Pattern(1, size_));
  }
}

TEST_P(DriverContract, BytesSurviveWhileNothingIsMapped) {
  const VirtAddr base = NewRange(8);
  std::vector<AllocId> allocs;
  for (uint64_t i = 0; i < 8; ++i) {
    allocs.push_back(NewAlloc());
    Bind(base + i * size_, allocs[i]);
    ASSERT_OK(driver_->Write(base + i * size_, Pattern(i, size_)));
  }
  for (uint64_t i = 0; i < 8; ++i) ASSERT_OK(driver_->Unmap(base + i * size_));
  for (uint64_t i = 0; i < 8; ++i) Bind(base + i * size_, allocs[7 - i]);
  for (uint64_t i = 0; i < 8; ++i) {
    EXPECT_EQ(ReadBytes(*driver_, base + i * size_, size_), Pattern(7 - i, size_)) << i;
  }
}

// As a backing store does while a loader uses what it has.
TEST_P(DriverContract, OneMoreThreadMayTakeMemory) {
  if (driver_->properties().virtual_time) GTEST_SKIP() << "under virtual time there is one thread";
  constexpr uint64_t kPieces = 16;
  const VirtAddr here = NewMapped(2);
  const VirtAddr there = NewRange(kPieces);
  const StreamId stream = driver_->CreateStream("uses").value();
  std::atomic<uint64_t> taken{0};
  std::vector<AllocId> pieces(kPieces);
  std::thread takes([&] {
    for (uint64_t i = 0; i < kPieces; ++i) {
      for (const bool again : {true, false}) {
        pieces[i] = NewAlloc();
        Bind(there + i * size_, pieces[i]);
        if (!again) break;
        ASSERT_OK(driver_->Unmap(there + i * size_));
        ASSERT_OK(driver_->Release(pieces[i]));
      }
      taken.store(i + 1, std::memory_order_release);
    }
  });
  const auto bytes = Pattern(3, size_);
  for (uint64_t i = 0; i < kPieces;) {
    ASSERT_OK(driver_->Write(here, bytes));
    ASSERT_OK(driver_->Copy(stream, here + size_, here, size_));
    Finish(stream);
    for (; i < taken.load(std::memory_order_acquire); ++i) {
      ASSERT_OK(driver_->Copy(stream, there + i * size_, here + size_, size_));
      Finish(stream);
    }
  }
  takes.join();
  for (uint64_t i = 0; i < kPieces; ++i) {
    EXPECT_EQ(ReadBytes(*driver_, there + i * size_, size_), bytes);
  }
}

TEST_P(DriverContract, HostAddressableMemoryIsRealMemory) {
  if (!driver_->properties().host_addressable) GTEST_SKIP() << "addresses are the device's";
  const VirtAddr base = NewMapped(1);
  auto* words = reinterpret_cast<uint64_t*>(base);
  words[3] = 42;
  EXPECT_EQ(ReadBytes(*driver_, base + 24, 1)[0], std::byte{42});
  ASSERT_OK(driver_->Unmap(base));
  EXPECT_DEATH(words[3] = 43, "");
}

// --- D6: streams
// -----------------------------------------------------------------------------------

TEST_P(DriverContract, OneStreamRunsInOrder) {
  const VirtAddr base = NewMapped(2);
  const StreamId stream = driver_->CreateStream("order").value();
  for (int i = 1; i <= 50; ++i) {
    ASSERT_OK(driver_->Fill(stream, base, static_cast<std::byte>(i), size_));
    ASSERT_OK(driver_->Copy(stream, base + size_, base, size_));
  }
  Finish(stream);
  EXPECT_EQ(ReadBytes(*driver_, base + size_, size_), std::vector(size_, std::byte{50}));
}

TEST_P(DriverContract, CopiesBetweenTiersKeepBytes) {
  if (AsStatus(driver_->Create(Tier::kHost, size_)).code() == StatusCode::kUnsupported) {
    GTEST_SKIP() << "no host tier";
  }
  const VirtAddr device = NewMapped(2);
  const VirtAddr host = NewMapped(1, Tier::kHost);
  const StreamId stream = driver_->CreateStream("tiers").value();
  ASSERT_OK(driver_->Write(device, Pattern(5, size_)));
  ASSERT_OK(driver_->Copy(stream, host, device, size_));
  ASSERT_OK(driver_->Copy(stream, device + size_, host, size_));
  Finish(stream);
  EXPECT_EQ(ReadBytes(*driver_, device + size_, size_), Pattern(5, size_));
}

TEST_P(DriverContract, AnEventIsCompleteOnlyAfterTheWorkBeforeIt) {
  const StreamId stream = driver_->CreateStream("events").value();
  const VirtAddr counter = driver_->CreateCounter().value();
  const EventId before = driver_->Record(stream).value();
  ASSERT_OK(driver_->WaitCounter(stream, counter, 1));
  const EventId after = driver_->Record(stream).value();
  EXPECT_OK(driver_->Wait(before));
  EXPECT_FALSE(driver_->IsComplete(after).value());
  driver_->StoreCounter(counter, 1);
  EXPECT_OK(driver_->Wait(after));
  EXPECT_TRUE(driver_->IsComplete(after).value());
  EXPECT_TRUE(driver_->IsComplete(before).value());
}

TEST_P(DriverContract, WaitForGivesUpAndLeavesTheWork) {
  const VirtAddr counter = driver_->CreateCounter().value();
  const StreamId stream = driver_->CreateStream("waiter").value();
  ASSERT_OK(driver_->WaitCounter(stream, counter, 1));
  const EventId done = driver_->Record(stream).value();
  EXPECT_CODE(driver_->WaitFor(done, 0), kShouldWait);
  EXPECT_CODE(driver_->WaitFor(done, 1'000'000), kShouldWait);
  driver_->StoreCounter(counter, 1);
  EXPECT_OK(driver_->WaitFor(done, kLongNs));
}

TEST_P(DriverContract, StreamWaitOrdersAcrossStreams) {
  const VirtAddr base = NewMapped(2);
  const StreamId producer = driver_->CreateStream("producer").value();
  const StreamId consumer = driver_->CreateStream("consumer").value();
  const VirtAddr counter = driver_->CreateCounter().value();
  ASSERT_OK(driver_->WaitCounter(producer, counter, 1));
  ASSERT_OK(driver_->Fill(producer, base, std::byte{9}, size_));
  ASSERT_OK(driver_->StreamWait(consumer, driver_->Record(producer).value()));
  ASSERT_OK(driver_->Copy(consumer, base + size_, base, size_));
  const EventId done = driver_->Record(consumer).value();
  EXPECT_FALSE(driver_->IsComplete(done).value());
  driver_->StoreCounter(counter, 1);
  ASSERT_OK(driver_->Wait(done));
  EXPECT_EQ(ReadBytes(*driver_, base + size_, size_), std::vector(size_, std::byte{9}));
}

TEST_P(DriverContract, StreamsRunConcurrently) {
  const StreamId blocked = driver_->CreateStream("blocked").value();
  const StreamId free = driver_->CreateStream("free").value();
  const VirtAddr counter = driver_->CreateCounter().value();
  ASSERT_OK(driver_->WaitCounter(blocked, counter, 1));
  ASSERT_OK(driver_->WriteCounter(free, counter, 1));
  Finish(blocked);  // hangs if one stream held up the other
  Finish(free);
}

TEST_P(DriverContract, HostFunctionsRunInStreamOrder) {
  const VirtAddr base = NewMapped(1);
  const VirtAddr counter = driver_->CreateCounter().value();
  const StreamId stream = driver_->CreateStream("host").value();
  std::string order;
  ASSERT_OK(driver_->HostFunction(stream, [&] {
    order += "a";
    return OkStatus();
  }));
  ASSERT_OK(driver_->Fill(stream, base, std::byte{1}, size_));
  ASSERT_OK(driver_->HostFunction(stream, [&] {
    order += driver_->LoadCounter(counter) == 0 ? "b" : "?";
    driver_->StoreCounter(counter, 5);
    return OkStatus();
  }));
  Finish(stream);
  EXPECT_EQ(order, "ab");
  EXPECT_EQ(driver_->LoadCounter(counter), 5u);
}

TEST_P(DriverContract, AHostFunctionsErrorIsTheErrorOfLaterEvents) {
  const StreamId stream = driver_->CreateStream("fails").value();
  const EventId before = driver_->Record(stream).value();
  ASSERT_OK(driver_->HostFunction(stream, [] { return DataLoss("bad stripe"); }));
  const EventId after = driver_->Record(stream).value();
  EXPECT_CODE(driver_->Wait(after), kDataLoss);
  EXPECT_CODE(driver_->IsComplete(after), kDataLoss);
  EXPECT_OK(driver_->Wait(before));
  ASSERT_OK(driver_->HostFunction(stream, [] { return OkStatus(); }));
  EXPECT_CODE(driver_->Wait(driver_->Record(stream).value()), kDataLoss);
}

TEST_P(DriverContract, UnknownStreamsAndEventsAreRefused) {
  EXPECT_CODE(driver_->Record(StreamId(77)), kInvalidArgument);
  EXPECT_CODE(driver_->Wait(EventId()), kInvalidArgument);
  const StreamId stream = driver_->CreateStream("gone").value();
  EXPECT_OK(driver_->DestroyStream(stream));
  EXPECT_CODE(driver_->DestroyStream(stream), kInvalidArgument);
  EXPECT_CODE(driver_->Record(stream), kInvalidArgument);
}

TEST_P(DriverContract, EventsOutliveTheirStream) {
  const VirtAddr base = NewMapped(1);
  const StreamId stream = driver_->CreateStream("short").value();
  ASSERT_OK(driver_->Fill(stream, base, std::byte{4}, size_));
  const EventId done = driver_->Record(stream).value();
  ASSERT_OK(driver_->DestroyStream(stream));
  EXPECT_TRUE(driver_->IsComplete(done).value());
  EXPECT_EQ(ReadBytes(*driver_, base, size_), std::vector(size_, std::byte{4}));
}

// --- Counters
// --------------------------------------------------------------------------------------

TEST_P(DriverContract, CountersStartAtZeroAndKeepWhatIsStored) {
  const VirtAddr a = driver_->CreateCounter().value();
  const VirtAddr b = driver_->CreateCounter().value();
  EXPECT_NE(a, b);
  EXPECT_EQ(driver_->LoadCounter(a), 0u);
  driver_->StoreCounter(a, 7);
  EXPECT_EQ(driver_->LoadCounter(a), 7u);
  EXPECT_EQ(driver_->LoadCounter(b), 0u);
  EXPECT_OK(driver_->DestroyCounter(a));
  EXPECT_CODE(driver_->DestroyCounter(a), kInvalidArgument);
  const VirtAddr c = driver_->CreateCounter().value();
  EXPECT_EQ(driver_->LoadCounter(c), 0u);
}

TEST_P(DriverContract, AStreamWritesACounterAfterTheWorkBeforeIt) {
  const VirtAddr base = NewMapped(2);
  const VirtAddr counter = driver_->CreateCounter().value();
  const StreamId stream = driver_->CreateStream("writer").value();
  ASSERT_OK(driver_->Write(base, Pattern(3, size_)));
  ASSERT_OK(driver_->Copy(stream, base + size_, base, size_));
  ASSERT_OK(driver_->WriteCounter(stream, counter, 1));
  ASSERT_OK(driver_->HostWaitCounter(counter, 1, kLongNs));
  EXPECT_EQ(ReadBytes(*driver_, base + size_, size_), Pattern(3, size_));
}

TEST_P(DriverContract, AStreamWaitsForTheHost) {
  const VirtAddr base = NewMapped(1);
  const VirtAddr counter = driver_->CreateCounter().value();
  const StreamId stream = driver_->CreateStream("waiter").value();
  ASSERT_OK(driver_->Write(base, Pattern(3, size_)));
  ASSERT_OK(driver_->WaitCounter(stream, counter, 3));
  ASSERT_OK(driver_->Fill(stream, base, std::byte{8}, size_));
  const EventId done = driver_->Record(stream).value();
  driver_->StoreCounter(counter, 2);
  EXPECT_FALSE(driver_->IsComplete(done).value());
  EXPECT_EQ(ReadBytes(*driver_, base, size_), Pattern(3, size_));
  driver_->StoreCounter(counter, 4);  // past it is enough
  ASSERT_OK(driver_->Wait(done));
  EXPECT_EQ(ReadBytes(*driver_, base, size_), std::vector(size_, std::byte{8}));
}

// The sluice's protocol in small: two streams, two counters, a ring of two slots.
TEST_P(DriverContract, TwoStreamsHandOverThroughTwoCounters) {
  constexpr uint64_t kChunks = 40;
  const VirtAddr source = NewMapped(4);
  const VirtAddr ring = NewMapped(2);
  const VirtAddr sink = NewMapped(4);
  for (uint64_t i = 0; i < 4; ++i) {
    ASSERT_OK(driver_->Write(source + i * size_, Pattern(i, size_)));
  }
  const VirtAddr produced = driver_->CreateCounter().value();
  const VirtAddr consumed = driver_->CreateCounter().value();
  const StreamId copier = driver_->CreateStream("copier").value();
  const StreamId compute = driver_->CreateStream("compute").value();
  for (uint64_t n = 0; n < kChunks; ++n) {
    if (n >= 2) {
      ASSERT_OK(driver_->WaitCounter(copier, consumed, n - 1));
    }
    ASSERT_OK(driver_->Copy(copier, ring + n % 2 * size_, source + n % 4 * size_, size_));
    ASSERT_OK(driver_->WriteCounter(copier, produced, n + 1));
    ASSERT_OK(driver_->WaitCounter(compute, produced, n + 1));
    ASSERT_OK(driver_->Copy(compute, sink + n % 4 * size_, ring + n % 2 * size_, size_));
    ASSERT_OK(driver_->WriteCounter(compute, consumed, n + 1));
  }
  Finish(compute);
  Finish(copier);
  for (uint64_t i = 0; i < 4; ++i) {
    EXPECT_EQ(ReadBytes(*driver_, sink + i * size_, size_), Pattern(i, size_)) << i;
  }
}

TEST_P(DriverContract, HostWaitCounterGivesUp) {
  const VirtAddr counter = driver_->CreateCounter().value();
  driver_->StoreCounter(counter, 1);
  EXPECT_OK(driver_->HostWaitCounter(counter, 1, 0));
  EXPECT_CODE(driver_->HostWaitCounter(counter, 2, 1'000'000), kShouldWait);
}

TEST_P(DriverContract, ThreadsWakeEachOtherThroughCounters) {
  if (driver_->properties().virtual_time) GTEST_SKIP() << "one thread only";
  const VirtAddr ping = driver_->CreateCounter().value();
  const VirtAddr pong = driver_->CreateCounter().value();
  constexpr uint64_t kRounds = 2000;
  std::thread other([&] {
    for (uint64_t i = 1; i <= kRounds; ++i) {
      EXPECT_OK(driver_->HostWaitCounter(ping, i, kLongNs));
      if (i % 100 == 0) std::this_thread::sleep_for(std::chrono::microseconds(100));
      driver_->StoreCounter(pong, i);
    }
  });
  for (uint64_t i = 1; i <= kRounds; ++i) {
    driver_->StoreCounter(ping, i);
    ASSERT_OK(driver_->HostWaitCounter(pong, i, kLongNs));
  }
  other.join();
}

TEST_P(DriverContract, NowDoesNotGoBack) {
  TimeNs last = driver_->Now();
  const StreamId stream = driver_->CreateStream("clock").value();
  const VirtAddr base = NewMapped(1);
  for (int i = 0; i < 10; ++i) {
    ASSERT_OK(driver_->Fill(stream, base, std::byte{1}, size_));
    Finish(stream);
    EXPECT_GE(driver_->Now(), last);
    last = driver_->Now();
  }
}

// --- Gate words
// ------------------------------------------------------------------------------------

class GateWordContract : public DriverContract {
 protected:
  void SetUp() override {
    DriverContract::SetUp();
    if (IsSkipped()) return;
    const auto word = driver_->CreateGateWord();
    if (word.ok()) {
      word_ = *word;
      return;
    }
    EXPECT_CODE(word, kUnsupported);
    EXPECT_CODE(driver_->DestroyGateWord(0), kInvalidArgument);
    GTEST_SKIP() << word.status().ToString();
  }
  uint64_t Get(VirtAddr word) {
    uint64_t value = 0;
    EXPECT_OK(driver_->Read(word, std::as_writable_bytes(std::span(&value, 1))));
    return value;
  }
  void Set(VirtAddr word, uint64_t value) {
    EXPECT_OK(driver_->Write(word, std::as_bytes(std::span(&value, 1))));
  }

  VirtAddr word_ = 0;
};

TEST_P(GateWordContract, StartsAtZeroKeepsWhatIsWrittenAndIsDestroyedOnce) {
  const VirtAddr other = driver_->CreateGateWord().value();
  EXPECT_NE(word_, other);
  EXPECT_EQ(Get(word_), 0u);
  Set(word_, 7);
  EXPECT_EQ(Get(word_), 7u);
  EXPECT_EQ(Get(other), 0u);
  EXPECT_OK(driver_->DestroyGateWord(word_));
  EXPECT_CODE(driver_->DestroyGateWord(word_), kInvalidArgument);
  EXPECT_EQ(Get(driver_->CreateGateWord().value()), 0u);
}

TEST_P(GateWordContract, IsNoCounterAndACounterIsNoGateWord) {
  EXPECT_CODE(driver_->DestroyCounter(word_), kInvalidArgument);
  const VirtAddr counter = driver_->CreateCounter().value();
  EXPECT_CODE(driver_->DestroyGateWord(counter), kInvalidArgument);
  EXPECT_EQ(Get(word_), 0u);
  EXPECT_EQ(driver_->LoadCounter(counter), 0u);
}

TEST_P(GateWordContract, AStreamWritesItAfterTheWorkBeforeIt) {
  const VirtAddr base = NewMapped(2);
  const StreamId stream = driver_->CreateStream("writer").value();
  ASSERT_OK(driver_->Write(base, Pattern(3, size_)));
  ASSERT_OK(driver_->Copy(stream, base + size_, base, size_));
  ASSERT_OK(driver_->WriteCounter(stream, word_, 5));
  Finish(stream);
  EXPECT_EQ(Get(word_), 5u);
  EXPECT_EQ(ReadBytes(*driver_, base + size_, size_), Pattern(3, size_));
}

TEST_P(GateWordContract, AStreamWaitsForIt) {
  const VirtAddr base = NewMapped(1);
  const StreamId stream = driver_->CreateStream("waiter").value();
  ASSERT_OK(driver_->Write(base, Pattern(3, size_)));
  ASSERT_OK(driver_->WaitCounter(stream, word_, 3));
  ASSERT_OK(driver_->Fill(stream, base, std::byte{8}, size_));
  const EventId done = driver_->Record(stream).value();
  Set(word_, 2);
  EXPECT_CODE(driver_->WaitFor(done, 1'000'000), kShouldWait);
  EXPECT_EQ(ReadBytes(*driver_, base, size_), Pattern(3, size_));
  Set(word_, 4);  // past it is enough
  ASSERT_OK(driver_->WaitFor(done, kLongNs));
  EXPECT_EQ(ReadBytes(*driver_, base, size_), std::vector(size_, std::byte{8}));
}

TEST_P(GateWordContract, StampsTellWhenTheWorkBeforeThemWasDone) {
  const VirtAddr base = NewMapped(2);
  const StreamId stream = driver_->CreateStream("stamped").value();
  const TimeNs error = driver_->stamp_error_ns();
  ASSERT_OK(driver_->WaitCounter(stream, word_, 1));
  const StampId begin = driver_->Stamp(stream).value();
  ASSERT_OK(driver_->Copy(stream, base + size_, base, size_));
  const StampId end = driver_->Stamp(stream).value();
  const StampId dropped = driver_->Stamp(stream).value();
  EXPECT_CODE(driver_->TakeStamp(begin), kShouldWait);
  driver_->DropStamp(dropped);
  EXPECT_CODE(driver_->TakeStamp(dropped), kInvalidArgument);
  const TimeNs opened = driver_->Now();
  Set(word_, 1);
  Finish(stream);
  const TimeNs finished = driver_->Now();
  const TimeNs begun = driver_->TakeStamp(begin).value();
  const TimeNs ended = driver_->TakeStamp(end).value();
  EXPECT_GE(begun + error, opened);
  EXPECT_GE(ended, begun);
  EXPECT_LE(ended, finished + error);
  EXPECT_CODE(driver_->TakeStamp(end), kInvalidArgument);
}

TEST_P(GateWordContract, ManyStampsKeepTheirOrder) {
  const VirtAddr base = NewMapped(2);
  const StreamId stream = driver_->CreateStream("stamped").value();
  for (int round = 0; round < 3; ++round) {
    std::vector<StampId> stamps;
    for (int i = 0; i < 200; ++i) {
      ASSERT_OK(driver_->Copy(stream, base + size_, base, size_));
      stamps.push_back(driver_->Stamp(stream).value());
    }
    Finish(stream);
    TimeNs last = 0;
    for (const StampId stamp : stamps) {
      const TimeNs time = driver_->TakeStamp(stamp).value();
      EXPECT_GE(time, last);
      last = time;
    }
  }
}

// --- Shutdown
// --------------------------------------------------------------------------------------

TEST_P(DriverContract, ADriverIsDestroyedWithStreamsBlocked) {
  const VirtAddr base = NewMapped(2);
  const VirtAddr counter = driver_->CreateCounter().value();
  const StreamId a = driver_->CreateStream("a").value();
  const StreamId b = driver_->CreateStream("b").value();
  ASSERT_OK(driver_->WaitCounter(a, counter, 1));
  ASSERT_OK(driver_->Copy(a, base, base + size_, size_));
  ASSERT_OK(driver_->StreamWait(b, driver_->Record(a).value()));
  ASSERT_OK(driver_->Fill(b, base, std::byte{1}, size_));
  driver_.reset();  // hangs, or touches what is gone, if it is wrong
}

}  // namespace weir
