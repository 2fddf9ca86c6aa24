// CudaDriver on a real device: what the contract suite does not cover. Needs a GPU; without one
// every test is skipped and says why. No kernels: the driver's own calls are enough.
#include <algorithm>
#include <array>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include <gtest/gtest.h>

#include "tests/vmm/driver_contract.h"
#include "vmm/cuda_driver.h"

namespace weir {
namespace {

constexpr uint64_t kSecond = 1'000'000'000;

// A status that must be ok; anything else fails the test by exception, which GoogleTest reports.
void Ok(const Status& status) {
  if (!status.ok()) throw std::runtime_error(status.ToString());
}
template <typename T>
T Ok(Result<T> result) {
  Ok(result.status());
  return std::move(result).value();
}
template <typename T>
StatusCode CodeOf(const Result<T>& result) {
  return result.status().code();
}

DriverFactory CudaFactory(std::string name, uint64_t granules) {
  const auto make = [] {
    // Keeps the device's context alive from test to test: making one takes a good part of a second.
    static const auto* const keeper = new Result<std::unique_ptr<Driver>>(CreateCudaDriver({}));
    return keeper->ok() ? CreateCudaDriver({}) : Result<std::unique_ptr<Driver>>(keeper->status());
  };
  return {std::move(name), make, granules};
}
INSTANTIATE_TEST_SUITE_P(OnDevice, DriverContract,
                         ::testing::Values(CudaFactory("Cuda", 1), CudaFactory("CudaLarge", 16)),
                         [](const auto& param) { return param.param.name; });
INSTANTIATE_TEST_SUITE_P(OnDevice, GateWordContract, ::testing::Values(CudaFactory("Cuda", 1)),
                         [](const auto& param) { return param.param.name; });

class CudaDriverTest : public ::testing::Test {
 protected:
  void SetUp() override { Start({}); }
  void Start(const CudaDriverOptions& options) {
    driver_.reset();
    auto driver = CudaDriver::Create(options);
    if (!driver.ok()) GTEST_SKIP() << "no CUDA driver: " << driver.status().ToString();
    driver_ = std::move(driver).value();
    granule_ = driver_->properties().granularity_bytes;
  }
  bool TierIsMissing(Tier tier) {
    const Result<AllocId> probe = driver_->Create(tier, granule_);
    if (probe.ok()) Ok(driver_->Release(*probe));
    return CodeOf(probe) == StatusCode::kUnsupported;
  }

  void Bind(VirtAddr at, AllocId alloc, uint64_t bytes) {
    Ok(driver_->Map(at, alloc));
    Ok(driver_->SetAccess(at, bytes, Access::kReadWrite));
  }
  // |count| granules of |tier|, back to back in a reservation of their own.
  VirtAddr MakeRange(Tier tier, uint64_t count) {
    const VirtAddr base = Ok(driver_->Reserve(count * granule_, granule_));
    for (uint64_t i = 0; i < count; ++i) {
      Ok(driver_->Map(base + i * granule_, Ok(driver_->Create(tier, granule_))));
    }
    Ok(driver_->SetAccess(base, count * granule_, Access::kReadWrite));
    return base;
  }
  std::vector<std::byte> ReadBack(VirtAddr at, uint64_t bytes) {
    return ReadBytes(*driver_, at, bytes);
  }
  void Finish(StreamId stream) { Ok(driver_->Wait(Ok(driver_->Record(stream)))); }

  // Streams |stripes| granules from |backing| through a ring of two aliased granules, gated by two
  // words that only the GPU reads and writes, and compares what came out at the other end.
  void RunSluice(Tier backing_tier, VirtAddr produced, VirtAddr consumed);

  std::unique_ptr<CudaDriver> driver_;
  uint64_t granule_ = 0;
};

TEST(CudaDriverStart, SaysWhyThereIsNoDriverOrMakesOne) {
  const auto driver = CreateCudaDriver({});
  EXPECT_EQ(driver.ok(), CudaDriverPresent()) << driver.status().ToString();
  if (driver.ok()) return;
  EXPECT_TRUE(CodeOf(driver) == StatusCode::kNotFound ||
              CodeOf(driver) == StatusCode::kUnsupported);
  EXPECT_FALSE(driver.status().message().empty());
  GTEST_SKIP() << driver.status().ToString();
}

TEST(CudaDriverStart, KernelsLoadedAtTheirFirstLaunchAreRefused) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");  // a process in which CUDA has not started
  EXPECT_EXIT(
      {
        setenv("CUDA_MODULE_LOADING", "LAZY", /*overwrite=*/1);
        std::fprintf(stderr, "%s", CreateCudaDriver({}).status().ToString().c_str());
        std::exit(0);
      },
      ::testing::ExitedWithCode(0), "CUDA_MODULE_LOADING=EAGER|not found|no CUDA device");
}

TEST_F(CudaDriverTest, AnUnknownDeviceIsNotFound) {
  EXPECT_EQ(CodeOf(CreateCudaDriver({.device = 4096})), StatusCode::kNotFound);
  EXPECT_EQ(CodeOf(CreateCudaDriver({.peer_device = 4096})), StatusCode::kNotFound);
  EXPECT_EQ(CodeOf(CreateCudaDriver({.peer_device = 0})), StatusCode::kInvalidArgument);
}

TEST_F(CudaDriverTest, PropertiesDescribeTheDevice) {
  const DriverProperties& p = driver_->properties();
  std::printf("device %s, %.1f GiB, granularity %llu KiB, host tier %s\n", p.device.c_str(),
              static_cast<double>(p.hbm_bytes) / static_cast<double>(kGiB),
              static_cast<unsigned long long>(p.granularity_bytes / kKiB),
              TierIsMissing(Tier::kHost) ? "missing" : "present");
  EXPECT_EQ(p.name, "cuda");
  EXPECT_FALSE(p.device.empty());
  EXPECT_TRUE(IsPowerOfTwo(p.granularity_bytes));
  EXPECT_GT(p.hbm_bytes, kGiB);
  EXPECT_FALSE(p.host_addressable);
  EXPECT_FALSE(p.virtual_time);
  EXPECT_FALSE(p.has_peer);
  EXPECT_EQ(CodeOf(driver_->Create(Tier::kPeer, granule_)), StatusCode::kUnsupported);
  EXPECT_EQ(CodeOf(driver_->Create(Tier::kNvme, granule_)), StatusCode::kUnsupported);
}

TEST_F(CudaDriverTest, MoreThanTheDeviceHasIsNoMemory) {
  const uint64_t too_much = AlignUp(driver_->properties().hbm_bytes, granule_) + kGiB;
  EXPECT_EQ(CodeOf(driver_->Create(Tier::kHbm, too_much)), StatusCode::kNoMemory);
  Ok(driver_->Release(Ok(driver_->Create(Tier::kHbm, granule_))));
}

TEST_F(CudaDriverTest, ReservationsAreAlignedAsAsked) {
  for (const uint64_t alignment : {uint64_t{1}, granule_, 256 * kMiB, kGiB, 64 * kGiB}) {
    const VirtAddr base = Ok(driver_->Reserve(4 * granule_, alignment));
    EXPECT_EQ(base % std::max(alignment, granule_), 0U) << alignment;
    const AllocId alloc = Ok(driver_->Create(Tier::kHbm, granule_));
    Bind(base + 3 * granule_, alloc, granule_);
    EXPECT_EQ(driver_->Free(base).code(), StatusCode::kBadState);
    Ok(driver_->Unmap(base + 3 * granule_));
    Ok(driver_->Free(base));
    Ok(driver_->Release(alloc));
  }
  Ok(driver_->Free(Ok(driver_->Reserve(1024 * kGiB, granule_))));
}

TEST_F(CudaDriverTest, RemappingUnderAnAliasMovesTheNameNotTheBytes) {
  const VirtAddr w = Ok(driver_->Reserve(2 * granule_, granule_));
  const VirtAddr k = w + granule_;
  const AllocId a = Ok(driver_->Create(Tier::kHbm, granule_));
  const AllocId b = Ok(driver_->Create(Tier::kHbm, granule_));
  const auto one = Pattern(1, granule_);
  const auto two = Pattern(2, granule_);
  Bind(w, a, granule_);
  Bind(k, a, granule_);
  Ok(driver_->Write(w, one));
  EXPECT_EQ(ReadBack(k, granule_), one);

  Ok(driver_->Unmap(k));
  Bind(k, b, granule_);
  Ok(driver_->Write(k, two));
  EXPECT_EQ(ReadBack(w, granule_), one) << "the other name of the first granule";

  Ok(driver_->Unmap(w));
  Bind(w, b, granule_);
  EXPECT_EQ(ReadBack(w, granule_), two);
  Ok(driver_->Unmap(k));
  Bind(k, a, granule_);
  EXPECT_EQ(ReadBack(k, granule_), one) << "bytes outlive the mapping";
  EXPECT_EQ(driver_->Release(a).code(), StatusCode::kBadState);
}

TEST_F(CudaDriverTest, AccessCanBeTakenAwayAndGivenBack) {
  const VirtAddr at = MakeRange(Tier::kHbm, 2);
  const auto data = Pattern(3, 2 * granule_);
  Ok(driver_->Write(at, data));
  Ok(driver_->SetAccess(at, 2 * granule_, Access::kRead));
  EXPECT_EQ(ReadBack(at, 2 * granule_), data);
  EXPECT_EQ(driver_->Write(at, data).code(), StatusCode::kInvalidArgument);
  Ok(driver_->SetAccess(at + granule_, granule_, Access::kNone));
  std::array<std::byte, 64> few{};
  EXPECT_EQ(driver_->Read(at + granule_, few).code(), StatusCode::kInvalidArgument);
  Ok(driver_->Read(at, few));
  Ok(driver_->SetAccess(at, 2 * granule_, Access::kReadWrite));
  EXPECT_EQ(ReadBack(at, 2 * granule_), data);
}

// As weights are read in place: one allocation of another tier at two addresses, written through
// one and only read through the other.
TEST_F(CudaDriverTest, MemoryOfAnotherTierIsMappedASecondTimeToBeRead) {
  const bool two = CudaDriver::Create({.peer_device = 1}).ok();
  if (two) Start({.peer_device = 1});
  int tiers = 0;
  for (const Tier tier : {Tier::kHost, Tier::kPeer}) {
    if (TierIsMissing(tier)) continue;
    SCOPED_TRACE(TierName(tier));
    ++tiers;
    const AllocId alloc = Ok(driver_->Create(tier, granule_));
    const VirtAddr store = Ok(driver_->Reserve(granule_, granule_));
    Bind(store, alloc, granule_);
    const auto data = Pattern(21, granule_);
    Ok(driver_->Write(store, data));
    // Between two granules of the device, as in the weights' region.
    const VirtAddr weights = MakeRange(Tier::kHbm, 3);
    Ok(driver_->Unmap(weights + granule_));
    Ok(driver_->Map(weights + granule_, alloc));
    Ok(driver_->SetAccess(weights + granule_, granule_, Access::kRead));
    EXPECT_EQ(ReadBack(weights + granule_, granule_), data);
    EXPECT_EQ(driver_->Write(weights + granule_, data).code(), StatusCode::kInvalidArgument);
    const VirtAddr out = MakeRange(Tier::kHbm, 3);
    const StreamId stream = Ok(driver_->CreateStream("read"));
    Ok(driver_->Copy(stream, out, weights, 3 * granule_));
    Finish(stream);
    EXPECT_EQ(ReadBack(out + granule_, granule_), data);
    EXPECT_EQ(driver_->Release(alloc).code(), StatusCode::kBadState);
    Ok(driver_->Unmap(weights + granule_));
    EXPECT_EQ(ReadBack(store, granule_), data);
  }
  if (tiers == 0) GTEST_SKIP() << "neither host nor peer memory can be mapped here";
}

TEST_F(CudaDriverTest, AMistakenCopyIsAStatusAndNotAFault) {
  const VirtAddr at = MakeRange(Tier::kHbm, 1);
  const StreamId stream = Ok(driver_->CreateStream("copy"));
  const VirtAddr bare = Ok(driver_->Reserve(granule_, granule_));
  std::array<std::byte, 8> few{};
  EXPECT_EQ(driver_->Copy(stream, bare, at, 8).code(), StatusCode::kInvalidArgument);
  EXPECT_EQ(driver_->Copy(stream, at, bare, 8).code(), StatusCode::kInvalidArgument);
  EXPECT_EQ(driver_->Copy(stream, at, at + granule_ - 4, 8).code(), StatusCode::kInvalidArgument);
  EXPECT_EQ(driver_->Fill(stream, ~VirtAddr{7}, std::byte{1}, 64).code(),
            StatusCode::kInvalidArgument);
  EXPECT_EQ(driver_->Read(0, few).code(), StatusCode::kInvalidArgument);
  const AllocId alloc = Ok(driver_->Create(Tier::kHbm, granule_));
  Ok(driver_->Map(bare, alloc));
  EXPECT_EQ(driver_->Copy(stream, bare, at, 8).code(), StatusCode::kInvalidArgument)
      << "mapped, without access";
  Finish(stream);
}

TEST_F(CudaDriverTest, HostMemoryIsFilledThroughItsVirtualAddress) {
  if (TierIsMissing(Tier::kHost)) GTEST_SKIP() << "this device cannot map host NUMA memory";
  const VirtAddr host = MakeRange(Tier::kHost, 3);
  const VirtAddr hbm = MakeRange(Tier::kHbm, 3);
  const uint64_t bytes = 3 * granule_;
  const StreamId stream = Ok(driver_->CreateStream("copy"));
  const auto data = Pattern(4, bytes);
  std::memcpy(reinterpret_cast<void*>(host), data.data(), bytes);
  Ok(driver_->Copy(stream, hbm, host, bytes));
  Finish(stream);
  EXPECT_EQ(ReadBack(hbm, bytes), data);

  Ok(driver_->Fill(stream, hbm, std::byte{0x5a}, bytes));
  Ok(driver_->Copy(stream, host, hbm, bytes));
  Finish(stream);
  EXPECT_EQ(std::memcmp(reinterpret_cast<void*>(host), ReadBack(hbm, bytes).data(), bytes), 0);
  EXPECT_EQ(*reinterpret_cast<unsigned char*>(host + bytes - 1), 0x5a);

  Ok(driver_->Fill(stream, host, std::byte{0x11}, bytes));
  Finish(stream);
  EXPECT_EQ(ReadBack(host, bytes), std::vector<std::byte>(bytes, std::byte{0x11}));
}

TEST_F(CudaDriverTest, OneAddressMovesFromHbmToHostMemoryAndBack) {
  if (TierIsMissing(Tier::kHost)) GTEST_SKIP() << "this device cannot map host NUMA memory";
  const VirtAddr at = Ok(driver_->Reserve(granule_, granule_));
  const AllocId hbm = Ok(driver_->Create(Tier::kHbm, granule_));
  const AllocId host = Ok(driver_->Create(Tier::kHost, granule_));
  const auto one = Pattern(5, granule_);
  const auto two = Pattern(6, granule_);
  Bind(at, hbm, granule_);
  Ok(driver_->Write(at, one));
  Ok(driver_->Unmap(at));
  Bind(at, host, granule_);
  Ok(driver_->Write(at, two));
  EXPECT_EQ(std::memcmp(reinterpret_cast<void*>(at), two.data(), granule_), 0);
  Ok(driver_->Unmap(at));
  Bind(at, hbm, granule_);
  EXPECT_EQ(ReadBack(at, granule_), one);
}

TEST_F(CudaDriverTest, CopiesAndFillsCrossHandlesAndTiers) {
  std::vector<Tier> tiers(7, Tier::kHbm);
  if (!TierIsMissing(Tier::kHost)) tiers[2] = tiers[3] = tiers[6] = Tier::kHost;
  const VirtAddr mixed = Ok(driver_->Reserve(7 * granule_, granule_));
  for (uint64_t i = 0; i < 7; ++i) {
    Bind(mixed + i * granule_, Ok(driver_->Create(tiers[i], granule_)), granule_);
  }
  const VirtAddr plain = MakeRange(Tier::kHbm, 7);
  const StreamId stream = Ok(driver_->CreateStream("copy"));
  const uint64_t bytes = 6 * granule_;  // shifted, so that no granule's edges meet
  const auto data = Pattern(7, bytes);
  Ok(driver_->Write(plain + 4096, data));
  Ok(driver_->Copy(stream, mixed + 512, plain + 4096, bytes));
  Finish(stream);
  EXPECT_EQ(ReadBack(mixed + 512, bytes), data);
  Ok(driver_->Fill(stream, plain, std::byte{0}, 7 * granule_));
  Ok(driver_->Copy(stream, plain + 8, mixed + 512, bytes));
  Ok(driver_->Fill(stream, mixed + 100, std::byte{0x77}, bytes));
  Finish(stream);
  EXPECT_EQ(ReadBack(plain + 8, bytes), data);
  EXPECT_EQ(ReadBack(mixed + 100, bytes), std::vector<std::byte>(bytes, std::byte{0x77}));
  if (tiers[2] == Tier::kHost) {
    Ok(driver_->Write(mixed + 2 * granule_, Pattern(8, granule_)));
    Ok(driver_->Copy(stream, mixed + 3 * granule_, mixed + 2 * granule_, granule_));
    Finish(stream);
    EXPECT_EQ(ReadBack(mixed + 3 * granule_, granule_), Pattern(8, granule_)) << "host to host";
  }
}

TEST_F(CudaDriverTest, PeerMemoryHoldsWhatIsCopiedToIt) {
  const Result<std::unique_ptr<CudaDriver>> two = CudaDriver::Create({.peer_device = 1});
  if (!two.ok()) GTEST_SKIP() << "no second GPU: " << two.status().ToString();
  Start({.peer_device = 1});
  EXPECT_TRUE(driver_->properties().has_peer);
  const VirtAddr peer = MakeRange(Tier::kPeer, 4);
  const VirtAddr hbm = MakeRange(Tier::kHbm, 4);
  const uint64_t bytes = 4 * granule_;
  const auto data = Pattern(9, bytes);
  const StreamId stream = Ok(driver_->CreateStream("peer"));
  Ok(driver_->Write(peer, data));
  Ok(driver_->Copy(stream, hbm, peer, bytes));
  Finish(stream);
  EXPECT_EQ(ReadBack(hbm, bytes), data);
  Ok(driver_->Fill(stream, peer, std::byte{0x3c}, bytes));
  Ok(driver_->Copy(stream, hbm, peer, bytes));
  Finish(stream);
  EXPECT_EQ(ReadBack(hbm, bytes), std::vector<std::byte>(bytes, std::byte{0x3c}));

  // One range, the two memories behind each other.
  Ok(driver_->Unmap(hbm + granule_));
  Bind(hbm + granule_, Ok(driver_->Create(Tier::kPeer, granule_)), granule_);
  Ok(driver_->Write(peer, data));
  Ok(driver_->Copy(stream, hbm + 256, peer + 256, bytes - 256));
  Finish(stream);
  EXPECT_EQ(ReadBack(hbm + 256, bytes - 256),
            std::vector<std::byte>(data.begin() + 256, data.end()));
}

// D6: with one stream held by a closed counter, no call waits for it.
TEST_F(CudaDriverTest, NoCallWaitsForAStreamBehindAClosedCounter) {
  const VirtAddr at = MakeRange(Tier::kHbm, 2);
  const StreamId held = Ok(driver_->CreateStream("held"));
  const VirtAddr gate = Ok(driver_->CreateCounter());
  Ok(driver_->Fill(held, at, std::byte{1}, granule_));
  Finish(held);
  Ok(driver_->WaitCounter(held, gate, 1));
  Ok(driver_->Fill(held, at, std::byte{2}, granule_));
  Ok(driver_->Copy(held, at + granule_, at, granule_));
  const EventId done = Ok(driver_->Record(held));

  // If a call does wait, the gate opens after 20 s and the test fails instead of hanging.
  std::jthread guard([&](const std::stop_token& stop) {
    for (int i = 0; i < 2000 && !stop.stop_requested(); ++i) {
      std::this_thread::sleep_for(std::chrono::milliseconds(10));
    }
    if (!stop.stop_requested()) driver_->StoreCounter(gate, 1);
  });
  const auto timed = [&](const char* what, const std::function<void()>& call) {
    const TimeNs start = driver_->Now();
    call();
    const uint64_t took = driver_->Now() - start;
    std::printf("  beside a held stream: %-28s %8.1f us\n", what, static_cast<double>(took) / 1e3);
    EXPECT_LT(took, 2 * kSecond) << what;
  };
  AllocId alloc;
  VirtAddr range = 0;
  StreamId other;
  EventId event;
  std::vector<std::byte> data(granule_);
  timed("create", [&] { alloc = Ok(driver_->Create(Tier::kHbm, granule_)); });
  timed("reserve", [&] { range = Ok(driver_->Reserve(granule_, granule_)); });
  timed("map and access", [&] { Bind(range, alloc, granule_); });
  timed("create stream", [&] { other = Ok(driver_->CreateStream("other")); });
  timed("fill and wait elsewhere", [&] {
    Ok(driver_->Fill(other, range, std::byte{9}, granule_));
    Finish(other);
  });
  timed("read", [&] { Ok(driver_->Read(range, data)); });
  timed("write", [&] { Ok(driver_->Write(range, data)); });
  timed("host function elsewhere", [&] {
    Ok(driver_->HostFunction(other, [] { return OkStatus(); }));
    Finish(other);
  });
  timed("create counter, gate word", [&] {
    Ok(driver_->CreateCounter());
    Ok(driver_->CreateGateWord());
  });
  timed("wait on an event elsewhere", [&] {
    event = Ok(driver_->Record(other));
    Ok(driver_->StreamWait(held, event));
  });
  timed("unmap", [&] { Ok(driver_->Unmap(range)); });
  timed("release", [&] { Ok(driver_->Release(alloc)); });
  timed("free", [&] { Ok(driver_->Free(range)); });
  timed("destroy stream", [&] { Ok(driver_->DestroyStream(other)); });
  EXPECT_FALSE(Ok(driver_->IsComplete(done)));
  EXPECT_EQ(driver_->LoadCounter(gate), 0U);
  EXPECT_EQ(ReadBack(at, 64), std::vector<std::byte>(64, std::byte{1}));
  driver_->StoreCounter(gate, 1);
  Ok(driver_->Wait(done));
  guard.request_stop();
  EXPECT_EQ(ReadBack(at + granule_, 64), std::vector<std::byte>(64, std::byte{2}));
}

TEST_F(CudaDriverTest, ManyGatedStreamsDoNotHoldOthersUp) {
  const VirtAddr gate = Ok(driver_->CreateCounter());
  std::vector<EventId> held;
  for (int i = 0; i < 16; ++i) {
    const StreamId stream = Ok(driver_->CreateStream("held"));
    Ok(driver_->WaitCounter(stream, gate, 1));
    held.push_back(Ok(driver_->Record(stream)));
  }
  const VirtAddr reached = Ok(driver_->CreateCounter());
  for (uint64_t i = 1; i <= 8; ++i) {
    const StreamId free_stream = Ok(driver_->CreateStream("free"));
    Ok(driver_->WriteCounter(free_stream, reached, i));
    EXPECT_TRUE(driver_->HostWaitCounter(reached, i, 5 * kSecond).ok()) << "stream " << i;
  }
  for (const EventId event : held) EXPECT_FALSE(Ok(driver_->IsComplete(event)));
  driver_->StoreCounter(gate, 1);
  for (const EventId event : held) Ok(driver_->Wait(event));
}

void CudaDriverTest::RunSluice(Tier backing_tier, VirtAddr produced, VirtAddr consumed) {
  constexpr uint64_t kStripes = 64;
  constexpr uint64_t kSlots = 2;
  const VirtAddr backing = MakeRange(backing_tier, kStripes);
  const VirtAddr out = MakeRange(Tier::kHbm, kStripes);
  const VirtAddr window = Ok(driver_->Reserve(kStripes * granule_, granule_));
  std::array<AllocId, kSlots> ring{};
  for (AllocId& slot : ring) slot = Ok(driver_->Create(Tier::kHbm, granule_));
  for (uint64_t i = 0; i < kStripes; ++i) {
    Ok(driver_->Write(backing + i * granule_, Pattern(i, granule_)));
    Bind(window + i * granule_, ring[i % kSlots], granule_);
  }
  const StreamId copy = Ok(driver_->CreateStream("copy"));
  const StreamId compute = Ok(driver_->CreateStream("compute"));
  const VirtAddr start = Ok(driver_->CreateCounter());  // both streams are full before either runs
  Ok(driver_->WaitCounter(copy, start, 1));
  Ok(driver_->WaitCounter(compute, start, 1));
  for (uint64_t i = 0; i < kStripes; ++i) {
    const VirtAddr at = window + i * granule_;
    if (i >= kSlots) Ok(driver_->WaitCounter(copy, consumed, i - kSlots + 1));
    Ok(driver_->Copy(copy, at, backing + i * granule_, granule_));
    Ok(driver_->WriteCounter(copy, produced, i + 1));
    Ok(driver_->WaitCounter(compute, produced, i + 1));
    Ok(driver_->Copy(compute, out + i * granule_, at, granule_));
    Ok(driver_->WriteCounter(compute, consumed, i + 1));
  }
  const EventId copied = Ok(driver_->Record(copy));
  const EventId computed = Ok(driver_->Record(compute));
  EXPECT_FALSE(Ok(driver_->IsComplete(computed)));
  const TimeNs begin = driver_->Now();
  driver_->StoreCounter(start, 1);
  Ok(driver_->Wait(computed));
  const double seconds = static_cast<double>(driver_->Now() - begin) / 1e9;
  EXPECT_TRUE(Ok(driver_->IsComplete(copied)));
  std::printf("  sluice from tier %s: %.2f ms for %llu stripes, %.1f GB/s\n",
              std::string(TierName(backing_tier)).c_str(), seconds * 1e3,
              static_cast<unsigned long long>(kStripes),
              static_cast<double>(kStripes * granule_) / seconds / 1e9);
  for (uint64_t i = 0; i < kStripes; ++i) {
    ASSERT_EQ(ReadBack(out + i * granule_, granule_), Pattern(i, granule_)) << "stripe " << i;
  }
}

TEST_F(CudaDriverTest, ASluiceGatedByCountersDeliversEveryStripe) {
  RunSluice(Tier::kHbm, Ok(driver_->CreateCounter()), Ok(driver_->CreateCounter()));
}
TEST_F(CudaDriverTest, ASluiceGatedByGateWordsDeliversEveryStripe) {
  const VirtAddr produced = Ok(driver_->CreateGateWord());
  const VirtAddr consumed = Ok(driver_->CreateGateWord());
  RunSluice(Tier::kHbm, produced, consumed);
  uint64_t word = 0;
  Ok(driver_->Read(produced, std::as_writable_bytes(std::span(&word, 1))));
  EXPECT_EQ(word, 64U);
  Ok(driver_->DestroyGateWord(produced));
  EXPECT_EQ(driver_->DestroyGateWord(produced).code(), StatusCode::kInvalidArgument);
}
TEST_F(CudaDriverTest, ASluiceFromHostMemoryDeliversEveryStripe) {
  if (TierIsMissing(Tier::kHost)) GTEST_SKIP() << "this device cannot map host NUMA memory";
  RunSluice(Tier::kHost, Ok(driver_->CreateCounter()), Ok(driver_->CreateCounter()));
}
TEST_F(CudaDriverTest, ASluiceFromPeerMemoryDeliversEveryStripe) {
  const Result<std::unique_ptr<CudaDriver>> two = CudaDriver::Create({.peer_device = 1});
  if (!two.ok()) GTEST_SKIP() << "no second GPU: " << two.status().ToString();
  Start({.peer_device = 1});
  RunSluice(Tier::kPeer, Ok(driver_->CreateGateWord()), Ok(driver_->CreateGateWord()));
}

TEST_F(CudaDriverTest, CountersThatAreNoCountersAndHugeValuesAreRefused) {
  const StreamId stream = Ok(driver_->CreateStream("s"));
  const VirtAddr counter = Ok(driver_->CreateCounter());
  EXPECT_EQ(driver_->WaitCounter(stream, counter, UINT64_MAX).code(), StatusCode::kInvalidArgument);
  EXPECT_EQ(driver_->WriteCounter(stream, counter + 8, 1).code(), StatusCode::kInvalidArgument);
  Ok(driver_->DestroyCounter(counter));
  EXPECT_EQ(driver_->WriteCounter(stream, counter, 1).code(), StatusCode::kInvalidArgument);
  const VirtAddr again = Ok(driver_->CreateCounter());
  EXPECT_EQ(driver_->LoadCounter(again), 0U);
}

TEST_F(CudaDriverTest, EventsNobodyAsksForAreRecycledAndStayComplete) {
  const StreamId stream = Ok(driver_->CreateStream("s"));
  std::vector<EventId> events;
  for (int i = 0; i < 20'000; ++i) {
    events.push_back(Ok(driver_->Record(stream)));
    if (i > 0) {
      EXPECT_LT(events[events.size() - 2], events.back());
    }
  }
  Ok(driver_->Wait(events.back()));
  for (const EventId event : events) EXPECT_TRUE(Ok(driver_->IsComplete(event)));
  EXPECT_EQ(CodeOf(driver_->IsComplete(EventId(1'000'000))), StatusCode::kInvalidArgument);
  Ok(driver_->DestroyStream(stream));
  EXPECT_TRUE(Ok(driver_->IsComplete(events.front())));
}

TEST_F(CudaDriverTest, AFailedHostFunctionIsTheErrorOfLaterEventsOnly) {
  const StreamId stream = Ok(driver_->CreateStream("s"));
  const StreamId other = Ok(driver_->CreateStream("t"));
  const EventId before = Ok(driver_->Record(stream));
  Ok(driver_->HostFunction(stream, [] { return DataLoss("bad checksum"); }));
  Ok(driver_->HostFunction(stream, [] { return IoError("a later one"); }));
  const EventId after = Ok(driver_->Record(stream));
  const EventId later = Ok(driver_->Record(stream));
  EXPECT_EQ(driver_->Wait(later).code(), StatusCode::kDataLoss);
  Ok(driver_->Wait(before));
  EXPECT_EQ(CodeOf(driver_->IsComplete(after)), StatusCode::kDataLoss);
  Finish(other);
  Ok(driver_->DestroyStream(stream));
  EXPECT_EQ(CodeOf(driver_->IsComplete(after)), StatusCode::kDataLoss);
}

TEST_F(CudaDriverTest, AFailedHostFunctionWritesNoCounterAndFailsWhoWaitsForIt) {
  const StreamId stream = Ok(driver_->CreateStream("s"));
  const StreamId other = Ok(driver_->CreateStream("t"));
  const VirtAddr start = Ok(driver_->CreateCounter());
  const VirtAddr arrived = Ok(driver_->CreateCounter());
  const VirtAddr word = Ok(driver_->CreateGateWord());
  Ok(driver_->WaitCounter(stream, start, 1));
  Ok(driver_->HostFunction(stream, [] { return OkStatus(); }));
  Ok(driver_->WriteCounter(stream, arrived, 1));
  Ok(driver_->HostFunction(stream, [] { return IoError("bad sector"); }));
  Ok(driver_->WriteCounter(stream, arrived, 2));
  EXPECT_EQ(driver_->WriteCounter(stream, word, 1).code(), StatusCode::kUnsupported);
  bool ran = false;
  Ok(driver_->HostFunction(stream, [&] {
    ran = true;
    return OkStatus();
  }));
  const EventId after = Ok(driver_->Record(stream));
  Ok(driver_->StreamWait(other, after));
  driver_->StoreCounter(start, 1);
  EXPECT_EQ(driver_->Wait(Ok(driver_->Record(other))).code(), StatusCode::kIo);
  EXPECT_EQ(driver_->Wait(after).code(), StatusCode::kIo);
  EXPECT_EQ(driver_->LoadCounter(arrived), 1U);
  EXPECT_FALSE(ran);
  Ok(driver_->WriteCounter(stream, arrived, 3));  // accepted, without effect
  EXPECT_EQ(driver_->Wait(Ok(driver_->Record(stream))).code(), StatusCode::kIo);
  EXPECT_EQ(driver_->LoadCounter(arrived), 1U);

  const StreamId late = Ok(driver_->CreateStream("late"));
  Ok(driver_->StreamWait(late, after));
  EXPECT_EQ(driver_->Wait(Ok(driver_->Record(late))).code(), StatusCode::kIo);
}

TEST_F(CudaDriverTest, AHostFunctionMayStoreTheCounterAnotherStreamWaitsFor) {
  const StreamId reader = Ok(driver_->CreateStream("reader"));
  const StreamId device = Ok(driver_->CreateStream("device"));
  const VirtAddr counter = Ok(driver_->CreateCounter());
  const VirtAddr at = MakeRange(Tier::kHbm, 1);
  Ok(driver_->WaitCounter(device, counter, 7));
  Ok(driver_->Fill(device, at, std::byte{7}, granule_));
  Ok(driver_->HostFunction(reader, [&] {
    driver_->StoreCounter(counter, 7);
    return OkStatus();
  }));
  Finish(device);
  Finish(reader);
  EXPECT_EQ(ReadBack(at, 8), std::vector<std::byte>(8, std::byte{7}));
  EXPECT_EQ(driver_->HostWaitCounter(counter, 8, 1'000'000).code(), StatusCode::kShouldWait);
}

TEST_F(CudaDriverTest, DestructionOpensWhatIsHeldAndGivesEverythingBack) {
  for (int round = 0; round < 3; ++round) {
    const VirtAddr at = MakeRange(Tier::kHbm, 8);
    const VirtAddr gate = Ok(driver_->CreateCounter());
    const VirtAddr word = Ok(driver_->CreateGateWord());
    const StreamId first = Ok(driver_->CreateStream("first"));
    const StreamId second = Ok(driver_->CreateStream("second"));
    Ok(driver_->WaitCounter(first, gate, 5));
    Ok(driver_->WriteCounter(first, gate, 1));  // lowers what the destructor raised
    Ok(driver_->WaitCounter(first, gate, 2));
    Ok(driver_->Fill(first, at, std::byte{1}, 8 * granule_));
    Ok(driver_->WaitCounter(second, word, 1));
    Ok(driver_->StreamWait(second, Ok(driver_->Record(first))));
    Ok(driver_->Copy(second, at, at + granule_, granule_));
    const TimeNs start = driver_->Now();
    driver_.reset();
    driver_ = Ok(CudaDriver::Create({}));
    EXPECT_LT(driver_->Now() - start, 8 * kSecond);
  }
}

TEST_F(CudaDriverTest, TwoDriversOfOneDeviceLiveSideBySide) {
  auto second = Ok(CudaDriver::Create({}));
  const VirtAddr at = MakeRange(Tier::kHbm, 1);
  std::array<std::byte, 8> few{};
  EXPECT_EQ(second->Read(at, few).code(), StatusCode::kInvalidArgument) << "not its mapping";
  second.reset();
  Ok(driver_->Read(at, few));
}

TEST_F(CudaDriverTest, CallsWorkFromAnotherThread) {
  const VirtAddr at = MakeRange(Tier::kHbm, 1);
  const auto data = Pattern(10, granule_);
  std::string failure;
  std::thread([&] {
    const Status status = driver_->Write(at, data);
    if (!status.ok()) failure = status.ToString();
  }).join();
  EXPECT_EQ(failure, "");
  EXPECT_EQ(ReadBack(at, granule_), data);
}

// Not a check: the figures belong in docs/performance.md.
TEST_F(CudaDriverTest, RemapCostTable) {
  const auto median = [](std::vector<double>& v) {
    std::sort(v.begin(), v.end());
    return v[v.size() / 2];
  };
  std::printf("  median us        create      map   access    unmap  release\n");
  for (const Tier tier : {Tier::kHbm, Tier::kHost}) {
    if (TierIsMissing(tier)) continue;
    const auto sizes = tier == Tier::kHbm ? std::vector<uint64_t>{2 * kMiB, 32 * kMiB, 256 * kMiB}
                                          : std::vector<uint64_t>{2 * kMiB, 32 * kMiB};
    for (const uint64_t size : sizes) {
      const uint64_t bytes = AlignUp(size, granule_);
      const VirtAddr at = Ok(driver_->Reserve(bytes, granule_));
      std::array<std::vector<double>, 5> times;
      for (int i = 0; i < 21; ++i) {
        AllocId alloc;
        size_t column = 0;
        const auto timed = [&](const std::function<void()>& call) {
          const TimeNs start = driver_->Now();
          call();
          times[column++].push_back(static_cast<double>(driver_->Now() - start) / 1e3);
        };
        timed([&] { alloc = Ok(driver_->Create(tier, bytes)); });
        timed([&] { Ok(driver_->Map(at, alloc)); });
        timed([&] { Ok(driver_->SetAccess(at, bytes, Access::kReadWrite)); });
        timed([&] { Ok(driver_->Unmap(at)); });
        timed([&] { Ok(driver_->Release(alloc)); });
      }
      std::printf("  %-4s %4llu MiB ", std::string(TierName(tier)).c_str(),
                  static_cast<unsigned long long>(bytes / kMiB));
      for (auto& column : times) std::printf(" %8.1f", median(column));
      std::printf("\n");
      Ok(driver_->Free(at));
    }
  }
}

}  // namespace
}  // namespace weir
