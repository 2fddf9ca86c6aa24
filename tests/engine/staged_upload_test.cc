// Weights through staging memory: the same bytes as without it, in the region and its backing copy.
#include "engine/staged_upload.h"

#include <algorithm>
#include <fstream>
#include <random>

#include <gtest/gtest.h>

#include "engine/memory.h"
#include "engine/model/checkpoint.h"
#include "engine/weight_loader.h"
#include "vmm/host_driver.h"

namespace weir {
namespace {

std::vector<std::byte> RandomBytes(size_t n, uint64_t seed) {
  std::mt19937_64 random(seed);
  std::vector<std::byte> bytes(n);
  for (std::byte& b : bytes) b = static_cast<std::byte>(random());
  return bytes;
}

// A host driver with |layout|'s weights in memory, and what of them is away.
struct World {
  World(const WeightLayout& layout, BackingTier backing, uint64_t host_bytes = 0,
        uint64_t budget = 0) {
    driver = HostDriver::Create({.host_bytes = host_bytes}).value();
    MemoryOptions m;
    m.granule_bytes = 4096;
    m.hbm_budget_bytes = budget;
    m.scratch_bytes = 4096;
    m.kv_block_bytes = 4096;
    m.kv_wanted_bytes = 4096;
    m.weights = layout;
    m.backing = backing;
    memory = Memory::Create(*driver, m).value();
  }
  std::vector<std::byte> Region() const {
    std::vector<std::byte> bytes(memory->weights().layout().region_bytes);
    EXPECT_TRUE(driver->Read(memory->weights().base(), bytes).ok());
    return bytes;
  }
  std::unique_ptr<Driver> driver;
  std::unique_ptr<Memory> memory;
};

WeightLayout LayoutOf(uint32_t layers, uint64_t segment) {
  WeightLayout layout;
  for (uint32_t l = 0; l < layers; ++l) layout.layers.push_back({{l * segment, segment}});
  layout.region_bytes = layers * segment;
  return layout;
}

// Pieces of any size from any place of a file, and from memory between them.
TEST(StagedUpload, AnyPieceOfAFileArrivesWhereItIsPut) {
  const std::vector<std::byte> content = RandomBytes(700'001, 1);
  const std::string path = ::testing::TempDir() + "/weir_staged_upload";
  std::ofstream(path, std::ios::binary)
      .write(reinterpret_cast<const char*>(content.data()),
             static_cast<std::streamsize>(content.size()));
  const UploadFile file = UploadFile::Open(path).value();
  EXPECT_EQ(file.bytes(), content.size());
  for (uint64_t seed = 0; seed < 40; ++seed) {
    SCOPED_TRACE(seed);
    std::mt19937_64 random(seed);
    const auto pick = [&](uint64_t n) { return random() % n; };
    World world(LayoutOf(5, 160'000), BackingTier::kHost);
    auto upload = StagedUpload::Create(*world.driver, world.memory->weights(),
                                       {.buffer_bytes = 8192ULL << pick(4),
                                        .buffers = static_cast<uint32_t>(2 + pick(7))})
                      .value();
    std::vector<std::byte> want(world.memory->weights().layout().region_bytes);
    for (uint64_t at = 0; at < want.size();) {
      const uint64_t n = std::min<uint64_t>(want.size() - at, 1 + pick(150'000));
      // Often up to the very end of the file.
      const uint64_t from = pick(3) == 0 ? content.size() - n : pick(content.size() - n + 1);
      const auto piece = std::span(content).subspan(from, n);
      std::copy(piece.begin(), piece.end(), want.begin() + static_cast<std::ptrdiff_t>(at));
      const Status put =
          pick(3) == 0 ? upload->PutBytes(piece, at) : upload->PutFile(file, from, n, at);
      ASSERT_TRUE(put.ok()) << put.ToString();
      at += n;
    }
    const Status finished = upload->Finish();
    ASSERT_TRUE(finished.ok()) << finished.ToString();
    upload.reset();
    ASSERT_TRUE(world.memory->weights().Seal().ok());
    ASSERT_TRUE(world.Region() == want);
    const Status sound = world.memory->CheckIntegrity();  // the backing copy too
    ASSERT_TRUE(sound.ok()) << sound.ToString();
  }
}

TEST(StagedUpload, AFileThatEndsTooSoonIsAnError) {
  const std::string path = ::testing::TempDir() + "/weir_staged_upload_short";
  std::ofstream(path) << std::string(10'000, 'x');
  const UploadFile file = UploadFile::Open(path).value();
  World world(LayoutOf(4, 16'384), BackingTier::kNone);
  const auto upload =
      StagedUpload::Create(*world.driver, world.memory->weights(), {.buffer_bytes = 8192}).value();
  Status status = upload->PutFile(file, 0, 12'000, 0);
  if (status.ok()) status = upload->Finish();
  EXPECT_EQ(status.code(), StatusCode::kDataLoss);
  EXPECT_EQ(UploadFile::Open(path + ".missing").status().code(), StatusCode::kIo);
}

TEST(StagedUpload, AModelIsLoadedToTheSameBytes) {
  for (const char* model : {"smollm2_gqa3", "llama_biases", "qwen3_hd128", "mistral_gqa7_hd80"}) {
    SCOPED_TRACE(model);
    const Checkpoint checkpoint =
        Checkpoint::Open(std::string("tests/fixtures/models/") + model).value();
    const WeightMap map = WeightMap::Make(checkpoint.config(), WeightFormat::kCuda);
    const auto load = [&](World& world, bool staged) {
      return LoadWeights(checkpoint, map, world.memory->weights(), {}, {},
                         staged ? world.driver.get() : nullptr)
          .value();
    };
    World plain(map.layout, BackingTier::kHost);
    const WeightLoadReport plainly = load(plain, false);
    EXPECT_FALSE(plainly.staged);
    World through(map.layout, BackingTier::kHost);
    const WeightLoadReport staged = load(through, true);
    EXPECT_TRUE(staged.staged) << staged.staging_reason;
    EXPECT_EQ(staged.bytes_read, plainly.bytes_read);
    EXPECT_TRUE(through.Region() == plain.Region());
    EXPECT_TRUE(through.memory->CheckIntegrity().ok());
    // No host memory for the device: the weights stay, they take the way through ordinary memory,
    // and the reasons are told.
    World refused(map.layout, BackingTier::kHost, 4096);
    const WeightLoadReport without = load(refused, true);
    EXPECT_FALSE(without.staged);
    EXPECT_NE(without.staging_reason, "");
    EXPECT_TRUE(refused.Region() == plain.Region());
    EXPECT_EQ(refused.memory->backing_refusal().code(), StatusCode::kNoMemory);
    EXPECT_EQ(refused.memory->max_granules_per_layer(), 0U);
    EXPECT_EQ(refused.memory->max_layers(), 0U);
    EXPECT_EQ(refused.memory->max_in_place_per_layer(), 0U);
    EXPECT_TRUE(through.memory->backing_refusal().ok());
  }
}

}  // namespace
}  // namespace weir
