// Weights through staging memory: the same bytes as without it, in the region and its backing copy;
// and weights that are compressed on their way.
#include "engine/staged_upload.h"

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <random>

#include <gtest/gtest.h>

#include "engine/memory.h"
#include "engine/model/checkpoint.h"
#include "engine/weight_loader.h"
#include "kernels/cpu/compressed_weights.h"
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

// The matrix gate|up of |layer| as bf16 bits.
std::vector<uint16_t> GateUpOf(const World& world, const WeightMap& map, const ModelConfig& c,
                               size_t layer) {
  const uint64_t rows = 2 * uint64_t{c.intermediate_size};
  const std::vector<std::byte> region = world.Region();
  const std::byte* from = region.data() + map.layers[layer].gate_up;
  std::vector<uint16_t> bits(rows * c.hidden_size);
  if (map.compressed) {
    cpu::ExpandWeights(reinterpret_cast<const uint8_t*>(from), static_cast<int64_t>(rows),
                       c.hidden_size, bits.data());
  } else {
    std::memcpy(bits.data(), from, bits.size() * sizeof(uint16_t));
  }
  return bits;
}

TEST(CompressedUpload, ExpandsToWhatIsLoadedOtherwise) {
  for (const char* model : {"llama2_mha", "qwen2_yarn"}) {
    SCOPED_TRACE(model);
    const Checkpoint stored =
        Checkpoint::Open(std::string("tests/fixtures/models/") + model).value();
    const Checkpoint made_up = Checkpoint::Dummy(stored.config(), 3).value();
    for (const Checkpoint* checkpoint : {&stored, &made_up}) {
      const ModelConfig& c = checkpoint->config();
      const WeightMap plain = WeightMap::Make(c, WeightFormat::kCuda);
      const WeightMap map = WeightMap::Make(c, WeightFormat::kCuda, 0, true);
      World want(plain.layout, BackingTier::kHost);
      ASSERT_TRUE(LoadWeights(*checkpoint, plain, want.memory->weights(), {}, {}, nullptr).ok());
      std::vector<std::byte> region;
      for (const bool staged : {false, true}) {
        SCOPED_TRACE(staged);
        World got(map.layout, BackingTier::kHost);
        const auto loaded = LoadWeights(*checkpoint, map, got.memory->weights(), {}, {},
                                        staged ? got.driver.get() : nullptr);
        ASSERT_TRUE(loaded.ok()) << loaded.status().ToString();
        EXPECT_TRUE(got.memory->CheckIntegrity().ok());
        for (size_t l = 0; l < c.num_layers; ++l) {
          EXPECT_TRUE(GateUpOf(got, map, c, l) == GateUpOf(want, plain, c, l)) << "layer " << l;
          // What lies before it and behind it.
          const auto same = [&](uint64_t at, uint64_t plain_at, uint64_t bytes) {
            return std::memcmp(got.Region().data() + at, want.Region().data() + plain_at, bytes) ==
                   0;
          };
          const LayerOffsets& o = map.layers[l];
          const LayerOffsets& p = plain.layers[l];
          EXPECT_TRUE(same(o.qkv, p.qkv, o.gate_up - o.qkv)) << "layer " << l;
          EXPECT_TRUE(same(o.down, p.down, map.MatrixBytes(c.hidden_size, c.intermediate_size)))
              << "layer " << l;
        }
        if (region.empty()) region = got.Region();
        EXPECT_TRUE(got.Region() == region);
      }
    }
  }
}

TEST(CompressedUpload, NamesTheLayerThatCannotBeCompressed) {
  namespace fs = std::filesystem;
  const fs::path copy = fs::path(::testing::TempDir()) / "weir_many_exponents";
  fs::remove_all(copy);
  fs::copy("tests/fixtures/models/llama2_mha", copy);
  fs::permissions(copy / "model.safetensors", fs::perms::owner_write, fs::perm_options::add);
  uint64_t gate_at = 0;
  {
    const Checkpoint whole = Checkpoint::Open(copy.string()).value();
    gate_at = whole.Find(TensorRole::kGate, 1).value().info.offset;
  }
  // 40 of the first row have exponents of their own.
  std::string odd;
  for (int i = 0; i < 40; ++i) odd += {1, static_cast<char>(i < 20 ? i : 80 + i)};
  std::fstream file(copy / "model.safetensors", std::ios::binary | std::ios::in | std::ios::out);
  file.seekp(static_cast<std::streamoff>(gate_at))
      .write(odd.data(), static_cast<std::streamsize>(odd.size()));
  file.close();
  const Checkpoint checkpoint = Checkpoint::Open(copy.string()).value();
  const WeightMap map = WeightMap::Make(checkpoint.config(), WeightFormat::kCuda, 0, true);
  World world(map.layout, BackingTier::kNone);
  const Status status =
      LoadWeights(checkpoint, map, world.memory->weights(), {}, {}, nullptr).status();
  EXPECT_EQ(status.code(), StatusCode::kUnsupported);
  EXPECT_NE(status.message().find("gate and up of layer 1 cannot be compressed"), std::string::npos)
      << status.ToString();
  EXPECT_NE(status.message().find("row 0 and column 0"), std::string::npos) << status.ToString();
  fs::remove_all(copy);
}

}  // namespace
}  // namespace weir
