// One contract for every backing store on every driver that carries it.
#include <atomic>
#include <chrono>
#include <future>
#include <random>
#include <thread>

#include <gtest/gtest.h>

#include "pager/backing_store.h"
#include "tests/pager/pager_world.h"

namespace weir {
namespace {

using test::DriverKind;

struct Param {
  DriverKind driver;
  Tier tier;
};

class BackingStoreContract : public testing::TestWithParam<Param> {
 protected:
  static constexpr uint64_t kBytes = 1'000'003;
  static constexpr uint64_t kPiece = 64 * kKiB;

  void SetUp() override {
    driver_ = test::MakeDriver(GetParam().driver);
    ASSERT_NE(driver_, nullptr);
    auto store = GetParam().tier == Tier::kHost
                     ? CreateMemoryBackingStore(*driver_, Tier::kHost, kBytes, kPiece)
                     : CreateFileBackingStore(*driver_, kBytes, {.io_bytes = 64 * kKiB});
    ASSERT_TRUE(store.ok()) << store.status().ToString();
    store_ = std::move(*store);
    data_ = test::Pattern(kBytes);
    // Device memory to fetch into.
    const uint64_t device_bytes = AlignUp(kBytes, 64 * kKiB);
    device_ = *driver_->Reserve(device_bytes, 4096);
    alloc_ = *driver_->Create(Tier::kHbm, device_bytes);
    ASSERT_TRUE(driver_->Map(device_, alloc_).ok());
    ASSERT_TRUE(driver_->SetAccess(device_, device_bytes, Access::kReadWrite).ok());
    stream_ = *driver_->CreateStream("fetch");
  }
  void TearDown() override {
    if (stream_.valid()) {
      EXPECT_TRUE(driver_->DestroyStream(stream_).ok());
    }
    store_.reset();
    EXPECT_TRUE(driver_->Unmap(device_).ok());
    EXPECT_TRUE(driver_->Release(alloc_).ok());
    EXPECT_TRUE(driver_->Free(device_).ok());
    if (auto* sim = dynamic_cast<SimDriver*>(driver_.get())) {
      EXPECT_EQ(sim->allocation_count(), 0U);
      EXPECT_EQ(sim->reservation_count(), 0U);
      EXPECT_EQ(sim->violations(), 0U);
    }
  }
  void StoreInPieces(uint64_t seed) {
    std::mt19937_64 rng(seed);
    std::vector<std::pair<uint64_t, uint64_t>> pieces;
    for (uint64_t at = 0; at < kBytes;) {
      const uint64_t n = std::min<uint64_t>(kBytes - at, 1 + rng() % 150'000);
      pieces.emplace_back(at, n);
      at += n;
    }
    std::shuffle(pieces.begin(), pieces.end(), rng);
    for (const auto& [at, n] : pieces) {
      const Status s = store_->Store(at, std::span(data_).subspan(at, n));
      ASSERT_TRUE(s.ok()) << s.ToString();
    }
  }
  Status FetchAndWait(uint64_t offset, uint64_t bytes, VirtAddr dst) {
    WEIR_TRY(store_->Fetch(stream_, offset, bytes, dst));
    return driver_->Wait(WEIR_TRY(driver_->Record(stream_)));
  }

  std::unique_ptr<Driver> driver_;
  std::unique_ptr<BackingStore> store_;
  std::vector<std::byte> data_;
  VirtAddr device_ = 0;
  AllocId alloc_;
  StreamId stream_;
};
INSTANTIATE_TEST_SUITE_P(Stores, BackingStoreContract,
                         testing::Values(Param{DriverKind::kHost, Tier::kHost},
                                         Param{DriverKind::kSim, Tier::kHost},
                                         Param{DriverKind::kHost, Tier::kNvme}),
                         [](const auto& param) {
                           return test::KindName(param.param.driver) +
                                  (param.param.tier == Tier::kHost ? "Memory" : "File");
                         });

TEST_P(BackingStoreContract, AFetchReturnsWhatWasStoredInAnyPieces) {
  StoreInPieces(1);
  ASSERT_TRUE(store_->Seal().ok());
  std::mt19937_64 rng(2);
  for (int i = 0; i < 30; ++i) {
    const uint64_t at = rng() % kBytes;
    const uint64_t n = i == 0 ? kBytes - at : 1 + rng() % (kBytes - at);
    const Status s = FetchAndWait(at, n, device_ + at);
    ASSERT_TRUE(s.ok()) << s.ToString();
    std::vector<std::byte> out(n);
    ASSERT_TRUE(driver_->Read(device_ + at, out).ok());
    ASSERT_EQ(std::memcmp(out.data(), &data_[at], n), 0) << at << " + " << n;
  }
}

TEST_P(BackingStoreContract, ALoadReturnsWhatWasStored) {
  StoreInPieces(3);
  ASSERT_TRUE(store_->Seal().ok());
  std::vector<std::byte> out(kBytes);
  ASSERT_TRUE(store_->Load(0, out).ok());
  EXPECT_EQ(out, data_);
  std::vector<std::byte> few(777);
  ASSERT_TRUE(store_->Load(65'530, few).ok());
  EXPECT_EQ(std::memcmp(few.data(), &data_[65'530], few.size()), 0);
}

TEST_P(BackingStoreContract, ManyFetchesMayBeQueuedAndCompleteInOrder) {
  StoreInPieces(4);
  ASSERT_TRUE(store_->Seal().ok());
  for (uint64_t at = 0; at + 40'000 <= kBytes; at += 40'000) {
    ASSERT_TRUE(store_->Fetch(stream_, at, 40'000, device_ + at).ok());
  }
  ASSERT_TRUE(driver_->Wait(*driver_->Record(stream_)).ok());
  std::vector<std::byte> out(1'000'000);
  ASSERT_TRUE(driver_->Read(device_, out).ok());
  EXPECT_EQ(std::memcmp(out.data(), data_.data(), out.size()), 0);
}

TEST_P(BackingStoreContract, TwoStreamsFetchAtTheSameTime) {
  StoreInPieces(5);
  ASSERT_TRUE(store_->Seal().ok());
  const StreamId other = *driver_->CreateStream("other");
  for (uint64_t at = 0; at + 100'000 <= kBytes; at += 100'000) {
    ASSERT_TRUE(store_->Fetch(at % 200'000 == 0 ? stream_ : other, at, 100'000, device_ + at).ok());
  }
  ASSERT_TRUE(driver_->Wait(*driver_->Record(stream_)).ok());
  ASSERT_TRUE(driver_->Wait(*driver_->Record(other)).ok());
  std::vector<std::byte> out(1'000'000);
  ASSERT_TRUE(driver_->Read(device_, out).ok());
  EXPECT_EQ(std::memcmp(out.data(), data_.data(), out.size()), 0);
  ASSERT_TRUE(driver_->DestroyStream(other).ok());
  store_->StreamGone(other);
}

TEST_P(BackingStoreContract, AfterSealingNothingIsStored) {
  StoreInPieces(6);
  ASSERT_TRUE(store_->Seal().ok());
  EXPECT_EQ(store_->Store(0, std::span(data_).first(10)).code(), StatusCode::kBadState);
  EXPECT_EQ(store_->tier(), GetParam().tier);
  EXPECT_EQ(store_->bytes(), kBytes);
}

TEST_P(BackingStoreContract, RangesOutsideAreRefused) {
  std::vector<std::byte> few(10);
  EXPECT_EQ(store_->Store(kBytes - 9, few).code(), StatusCode::kInvalidArgument);
  EXPECT_EQ(store_->Load(~uint64_t{0} - 3, few).code(), StatusCode::kInvalidArgument);
  EXPECT_EQ(store_->Fetch(stream_, kBytes, 1, device_).code(), StatusCode::kInvalidArgument);
}

// A piece mapped a second time shows what was stored there, and what a fetch of it would bring.
TEST_P(BackingStoreContract, PiecesCanBeMappedElsewhereIfThereAreAny) {
  StoreInPieces(7);
  ASSERT_TRUE(store_->Seal().ok());
  if (GetParam().tier == Tier::kNvme) {
    EXPECT_EQ(store_->piece_bytes(), 0U);
    const Status none = store_->PieceAt(0).status();
    EXPECT_EQ(none.code(), StatusCode::kUnsupported);
    EXPECT_NE(none.message().find("nvme"), std::string::npos) << none.ToString();
    return;
  }
  ASSERT_EQ(store_->piece_bytes(), kPiece);
  const uint64_t end = AlignUp(kBytes, kPiece);
  const VirtAddr window = *driver_->Reserve(end, kPiece);
  for (uint64_t at = 0; at < kBytes; at += kPiece) {
    const Result<AllocId> piece = store_->PieceAt(at + (at < kBytes - kPiece ? kPiece - 1 : 0));
    ASSERT_TRUE(piece.ok()) << piece.status().ToString();
    ASSERT_TRUE(driver_->Map(window + at, *piece).ok());
  }
  ASSERT_TRUE(driver_->SetAccess(window, end, Access::kRead).ok());  // also the last one, whole
  std::vector<std::byte> out(kBytes);
  ASSERT_TRUE(driver_->Read(window, out).ok());
  EXPECT_EQ(out, data_);
  for (uint64_t at = 0; at < kBytes; at += kPiece) {
    ASSERT_TRUE(driver_->Unmap(window + at).ok());
  }
  ASSERT_TRUE(driver_->Free(window).ok());
  EXPECT_EQ(store_->PieceAt(kBytes).status().code(), StatusCode::kInvalidArgument);
}

TEST(MemoryBackingStoreTest, PiecesAreWholeUnitsOfTheDevice) {
  auto driver = test::MakeDriver(DriverKind::kHost);
  for (const uint64_t piece : {uint64_t{0}, uint64_t{1000}, 4 * kKiB + 1}) {
    const Status refused = CreateMemoryBackingStore(*driver, Tier::kHost, 10'000, piece).status();
    EXPECT_EQ(refused.code(), StatusCode::kInvalidArgument) << piece;
    EXPECT_NE(refused.message().find("granularity"), std::string::npos) << refused.ToString();
  }
}

// --- Memory is taken in pieces, ahead of whoever stores ------------------------------------------

// A store of some pieces on a host driver whose host memory can be held back.
class MemoryPieces : public testing::Test {
 protected:
  static constexpr uint64_t kPiece = 32 * kMiB;
  static constexpr uint64_t kPieces = 6;
  static constexpr auto kLong = std::chrono::seconds(20);

  std::unique_ptr<BackingStore> Make(uint64_t host_bytes = 0) {
    inner_ = HostDriver::Create({.host_bytes = host_bytes}).value();
    driver_ = std::make_unique<test::FaultDriver>(*inner_);
    driver_->create_fails = [this](Tier) { return on_create_(++creates_); };
    return CreateMemoryBackingStore(*driver_, Tier::kHost, kPieces * kPiece, kPiece).value();
  }

  std::unique_ptr<Driver> inner_;
  std::unique_ptr<test::FaultDriver> driver_;
  std::function<Status(int)> on_create_ = [](int) { return OkStatus(); };  // any thread
  std::atomic<int> creates_{0};
  const std::vector<std::byte> some_ = test::Pattern(1000);
};

TEST_F(MemoryPieces, WhatIsThereIsUsedWhileTheRestIsTaken) {
  std::promise<void> go;
  on_create_ = [wait = go.get_future().share()](int n) {
    if (n > 1) wait.wait();
    return OkStatus();
  };
  const auto store = Make();
  EXPECT_TRUE(store->Store(0, some_).ok());
  EXPECT_TRUE(store->Store(kPiece - some_.size(), some_).ok());
  EXPECT_LE(creates_, 2);
  go.set_value();
  EXPECT_TRUE(store->Store(kPiece - 10, some_).ok());
  ASSERT_TRUE(store->Seal().ok());
  EXPECT_EQ(creates_, static_cast<int>(kPieces));
  std::vector<std::byte> out(some_.size());
  ASSERT_TRUE(store->Load(kPiece - 10, out).ok());
  EXPECT_EQ(out, some_);
}

TEST_F(MemoryPieces, WhatSomebodyWaitsForIsTakenNext) {
  std::promise<void> waits, served;
  const auto served_in_time = [late = served.get_future().share()] {
    return late.wait_for(kLong) == std::future_status::ready;
  };
  std::atomic<bool> in_time{false};
  on_create_ = [&, wait = waits.get_future().share()](int n) {
    if (n == 2) wait.wait();                 // the second piece
    if (n == 4) in_time = served_in_time();  // after the one that is waited for
    return OkStatus();
  };
  const auto store = Make();
  std::thread asks([&] {
    std::this_thread::sleep_for(std::chrono::milliseconds(50));  // until Store waits
    waits.set_value();
  });
  EXPECT_TRUE(store->Store(4 * kPiece, some_).ok());
  served.set_value();
  asks.join();
  ASSERT_TRUE(store->Seal().ok());
  EXPECT_TRUE(in_time);
}

TEST_F(MemoryPieces, ARefusalHalfWayIsSaidWhereThePieceIsNeededAndAllIsGivenBack) {
  auto store = Make(3 * kPiece);
  uint64_t there = 0;
  for (uint64_t i = 0; i < kPieces; ++i) {
    const Status stored = store->Store(i * kPiece, some_);
    if (stored.ok()) ++there;
    EXPECT_TRUE(stored.ok() || stored.code() == StatusCode::kNoMemory) << stored.ToString();
  }
  EXPECT_EQ(there, 3U);
  EXPECT_TRUE(store->Store(0, some_).ok());  // what is there stays good
  const Status sealed = store->Seal();
  EXPECT_EQ(sealed.code(), StatusCode::kNoMemory);
  EXPECT_NE(sealed.message().find("backing store in host memory"), std::string::npos);
  EXPECT_EQ(store->refusal().message(), sealed.message());
  store.reset();
  EXPECT_TRUE(inner_->Create(Tier::kHost, 3 * kPiece).ok());
}

TEST_F(MemoryPieces, AMistakeIsNoRefusal) {
  on_create_ = [](int n) { return n == 3 ? InvalidArgument("injected") : OkStatus(); };
  const auto store = Make();
  EXPECT_EQ(store->Seal().code(), StatusCode::kInvalidArgument);
  EXPECT_TRUE(store->refusal().ok());
}

TEST_F(MemoryPieces, AStoreMayEndWhileItsMemoryIsTaken) {
  for (int i = 0; i < 20; ++i) {
    auto store = Make(kPieces * kPiece);
    if (i % 2 == 0) std::this_thread::sleep_for(std::chrono::microseconds(50 * i));
    store.reset();
    EXPECT_TRUE(inner_->Create(Tier::kHost, kPieces * kPiece).ok());
    driver_.reset();
  }
}

TEST(FileBackingStoreTest, UnusableOptionsAreRefusedWithTheReason) {
  auto driver = test::MakeDriver(DriverKind::kHost);
  EXPECT_EQ(CreateFileBackingStore(*driver, 1000, {.directory = "/nonexistent"}).status().code(),
            StatusCode::kIo);
  EXPECT_EQ(CreateFileBackingStore(*driver, 1000, {.io_bytes = 5000}).status().code(),
            StatusCode::kInvalidArgument);
  EXPECT_EQ(CreateFileBackingStore(*driver, 0, {}).status().code(), StatusCode::kInvalidArgument);
  const Status procfs = CreateFileBackingStore(*driver, 1000, {.directory = "/proc"}).status();
  EXPECT_FALSE(procfs.ok());
  auto sim = test::MakeDriver(DriverKind::kSim);
  EXPECT_EQ(CreateFileBackingStore(*sim, 1000, {}).status().code(), StatusCode::kUnsupported);
}

}  // namespace
}  // namespace weir
