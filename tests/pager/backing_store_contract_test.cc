// One contract for every backing store on every driver that carries it.
#include <random>

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
