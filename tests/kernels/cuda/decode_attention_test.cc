#include "kernels/cuda/decode_attention.h"

#include <memory>

#include "kernels/cuda/fill.h"
#include "kernels/cuda/qkv.h"
#include "tests/kernels/cuda/attention_testing.h"
#include "tests/kernels/cuda/rows_testing.h"

namespace weir::cuda {
namespace {

using testing::AsBf16;
using testing::AttentionTables;
using testing::DeviceBuffer;
using testing::Launched;

constexpr int32_t kLayers = 2, kLayer = 1;

// A batch in host memory: everything that is no visible token of kLayer is NaN, the rest of the
// last pages included.
struct Batch {
  AttentionShape shape;
  KvLayout layout;
  AttentionTables tables;
  std::vector<uint16_t> pool, q;

  Batch(const AttentionShape& s, KvOrder order, const std::vector<int32_t>& contexts, uint32_t seed)
      : shape(s), layout{kLayers, s.kv_heads, s.head_dim, order} {
    testing::Random random(seed);
    const int32_t blocks = 2 + testing::BlocksOf(contexts);
    tables = testing::MakeTables(std::vector<int32_t>(contexts.size(), 1), contexts, blocks,
                                 random.engine());
    pool.assign(static_cast<size_t>(blocks * layout.BlockElements()), 0xffff);
    q = random.Bf16s(sequences() * q_row());
    const std::vector<uint16_t> values = random.Bf16s(1 << 16);
    size_t next = 0;
    for (size_t i = 0; i < contexts.size(); ++i) {
      for (int32_t token = 0; token < contexts[i]; ++token) {
        for (int32_t head = 0; head < shape.kv_heads; ++head) {
          for (const int64_t slab : {layout.KOffset(kLayer), layout.VOffset(kLayer)}) {
            const size_t at = testing::AtToken(tables, layout, i, token, slab, head);
            for (int32_t d = 0; d < shape.head_dim; ++d) {
              pool[at + static_cast<size_t>(d)] = values[next++ % 65521];
            }
          }
        }
      }
    }
  }

  int32_t sequences() const { return static_cast<int32_t>(tables.sequences()); }
  int64_t q_row() const { return int64_t{shape.q_heads} * shape.head_dim; }

  // The same sequences with their pages elsewhere in the pool.
  void Move(std::mt19937& rng) {
    Batch moved = *this;
    moved.tables = testing::MakeTables(tables.rows, tables.contexts,
                                       static_cast<int32_t>(pool.size() / Block()), rng);
    moved.pool.assign(pool.size(), 0xffff);
    for (size_t page = 0; page < tables.blocks.size(); ++page) {
      std::copy_n(pool.begin() + At(tables, page), Block(),
                  moved.pool.begin() + At(moved.tables, page));
    }
    *this = std::move(moved);
  }

 private:
  size_t Block() const { return static_cast<size_t>(layout.BlockElements()); }
  int64_t At(const AttentionTables& t, size_t page) const {
    return t.blocks[page] * layout.BlockElements();
  }
};

class CudaDecodeAttention : public testing::GpuTest {
 protected:
  void SetUp() override {
    GpuTest::SetUp();
    if (IsSkipped()) return;
    DecodeAttention decode;
    const LaunchStatus status = DecodeAttention::Create({8, 2, 128}, &decode);
    if (status.code() == cudaErrorNotSupported) GTEST_SKIP() << status.message();
    ASSERT_TRUE(Launched(status));
  }

  // Device memory of a batch. The output is poisoned.
  struct OnDevice {
    OnDevice(const Batch& batch, const DecodeAttention& decode, void* workspace)
        : q(batch.q),
          pool(batch.pool),
          out(batch.q.size()),
          blocks(batch.tables.blocks),
          page_indptr(batch.tables.page_indptr),
          last(batch.tables.last) {
      params.q = AsBf16(q.get());
      params.q_stride = batch.q_row();
      params.out = AsBf16(out.get());
      params.scale = 1.0f / std::sqrt(static_cast<float>(batch.shape.head_dim));
      params.kv = {AsBf16(pool.get()), batch.layout.BlockElements(), batch.layout};
      params.layer = kLayer;
      params.sequences = batch.sequences();
      params.pages = {blocks.get(), page_indptr.get(), last.get(), nullptr};
      if (workspace == nullptr) {
        own = std::make_unique<DeviceBuffer<std::byte>>(
            std::vector<std::byte>(decode.workspace_bytes()));
        workspace = own->get();
      }
      params.workspace = workspace;
    }
    DeviceBuffer<uint16_t> q, pool, out;
    DeviceBuffer<int32_t> blocks, page_indptr, last;
    std::unique_ptr<DeviceBuffer<std::byte>> own;  // zeroed
    DecodeAttentionParams params;
  };

  std::vector<uint16_t> Run(const Batch& batch, void* workspace = nullptr) {
    DecodeAttention decode;
    EXPECT_TRUE(Launched(DecodeAttention::Create(batch.shape, &decode)));
    const OnDevice on(batch, decode, workspace);
    EXPECT_TRUE(Launched(decode.Run(on.params, {.stream = stream_})));
    EXPECT_EQ(cudaStreamSynchronize(stream_), cudaSuccess);
    return on.out.Download();
  }

  void Check(const Batch& batch, void* workspace = nullptr) {
    const std::vector<uint16_t> out = Run(batch, workspace);
    EXPECT_LT(testing::AttentionError(batch.shape, batch.tables, batch.layout, batch.pool, batch.q,
                                      out, kLayer),
              5e-3);
    for (int32_t i = 0; i < batch.sequences(); ++i) {
      if (batch.tables.contexts[static_cast<size_t>(i)] != 0) continue;
      const auto row = out.begin() + i * batch.q_row();
      EXPECT_TRUE(std::all_of(row, row + batch.q_row(), [](uint16_t x) { return x == 0; }))
          << "padded slot " << i;
    }
  }
};

TEST_F(CudaDecodeAttention, EveryGroupHeadSizeAndOrderWithPaddedSlots) {
  uint32_t seed = 1;
  for (const int32_t dim : {64, 128, 256}) {
    for (int32_t group = 1; group <= kMaxDecodeGroup; ++group) {
      for (const KvOrder order : {KvOrder::kTokenHead, KvOrder::kHeadToken}) {
        SCOPED_TRACE("head_dim " + std::to_string(dim) + ", group " + std::to_string(group));
        Check({{2 * group, 2, dim}, order, {1, 16, 700, 0, 17}, seed++});
      }
    }
  }
}

// Clusters of every size, shares that cut kv heads and shares that do not, one after the other in
// the same workspace.
TEST_F(CudaDecodeAttention, RandomBatchesShareAWorkspace) {
  testing::Random random(7);
  for (const int32_t dim : {64, 128, 256}) {
    DecodeAttention decode;
    ASSERT_TRUE(Launched(DecodeAttention::Create({8, 8, dim}, &decode)));
    // No less than any other shape of this head size needs.
    const DeviceBuffer<std::byte> workspace(std::vector<std::byte>(decode.workspace_bytes()));
    for (uint32_t round = 0; round < 24; ++round) {
      const int32_t kv_heads = 1 << random.Int(0, 3);
      const int32_t group = random.Int(1, kv_heads == 8 ? 4 : 8);
      const bool many = round % 6 == 5;  // short ones: shares that have little but beginnings
      const int32_t most = many || random.Int(0, 2) == 0 ? 40 : 2000;
      const int32_t sequences = many ? 400 : round % 4 == 0 ? 20 : 6;
      std::vector<int32_t> contexts(static_cast<size_t>(random.Int(1, sequences)));
      for (int32_t& c : contexts) c = random.Int(0, 7) == 0 ? 0 : random.Int(1, most);
      contexts[0] = random.Int(1, most);
      if (round % 5 == 0) contexts.back() = 6000;  // far longer than the others
      SCOPED_TRACE("head_dim " + std::to_string(dim) + ", round " + std::to_string(round));
      Check({{kv_heads * group, kv_heads, dim}, KvOrder::kTokenHead, contexts, 100 + round},
            workspace.get());
    }
  }
}

TEST_F(CudaDecodeAttention, TheSameBitsInEveryRunAndWhereverPagesLie) {
  testing::Random random(11);
  for (const size_t sequences : {size_t{1}, size_t{4}, size_t{64}}) {
    std::vector<int32_t> contexts(sequences);
    for (int32_t& c : contexts) c = random.Int(1, sequences > 4 ? 700 : 5000);
    Batch batch({32, 8, 128}, KvOrder::kTokenHead, contexts, 5);
    const std::vector<uint16_t> first = Run(batch);
    for (int round = 0; round < 10; ++round) {
      batch.Move(random.engine());
      ASSERT_EQ(Run(batch), first) << sequences << " sequences, round " << round;
    }
  }
}

// What a captured decode step does: the launch is made with nothing but padding.
TEST_F(CudaDecodeAttention, ACapturedLaunchIsReplayedForOtherContexts) {
  constexpr int32_t kSequences = 8;
  const AttentionShape shape{32, 8, 128};
  testing::Random random(13);
  Batch largest(shape, KvOrder::kTokenHead, std::vector<int32_t>(kSequences, 2000), 3);
  DecodeAttention decode;
  ASSERT_TRUE(Launched(DecodeAttention::Create(shape, &decode)));
  const OnDevice on(largest, decode, nullptr);
  ASSERT_EQ(cudaMemset(on.page_indptr.get(), 0, on.page_indptr.Bytes()), cudaSuccess);
  ASSERT_EQ(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeThreadLocal), cudaSuccess);
  const LaunchStatus captured = decode.Run(on.params, {.stream = stream_});
  cudaGraph_t graph = nullptr;
  ASSERT_EQ(cudaStreamEndCapture(stream_, &graph), cudaSuccess);
  ASSERT_TRUE(Launched(captured));
  cudaGraphExec_t exec = nullptr;
  ASSERT_EQ(cudaGraphInstantiate(&exec, graph, 0), cudaSuccess);
  const auto upload = [](const DeviceBuffer<int32_t>& to, const std::vector<int32_t>& from) {
    ASSERT_EQ(cudaMemcpy(to.get(), from.data(), from.size() * 4, cudaMemcpyHostToDevice),
              cudaSuccess);
  };
  for (int round = 0; round < 12; ++round) {
    std::vector<int32_t> contexts(kSequences, 0);
    for (int32_t i = 0; i < random.Int(1, kSequences); ++i) {
      contexts[static_cast<size_t>(i)] = random.Int(1, round % 2 == 0 ? 2000 : 100);
    }
    // The first pages of the same sequences.
    Batch batch = largest;
    batch.tables.contexts = contexts;
    batch.tables.page_indptr = {0};
    batch.tables.last.clear();
    batch.tables.blocks.clear();
    for (size_t i = 0; i < kSequences; ++i) {
      const auto pages = (contexts[i] + 15) / 16;
      const auto first = largest.tables.blocks.begin() + largest.tables.page_indptr[i];
      batch.tables.blocks.insert(batch.tables.blocks.end(), first, first + pages);
      batch.tables.page_indptr.push_back(batch.tables.page_indptr.back() + pages);
      batch.tables.last.push_back(pages == 0 ? 0 : contexts[i] - 16 * (pages - 1));
    }
    upload(on.blocks, batch.tables.blocks);
    upload(on.page_indptr, batch.tables.page_indptr);
    upload(on.last, batch.tables.last);
    ASSERT_EQ(cudaMemset(on.out.get(), 0xff, on.out.Bytes()), cudaSuccess);
    ASSERT_EQ(cudaGraphLaunch(exec, stream_), cudaSuccess);
    ASSERT_EQ(cudaStreamSynchronize(stream_), cudaSuccess);
    ASSERT_EQ(on.out.Download(), Run(batch)) << "round " << round;
  }
  (void)cudaGraphExecDestroy(exec);
  (void)cudaGraphDestroy(graph);
}

// The predecessor writes each sequence's last token; the kernel may not have read it before.
TEST_F(CudaDecodeAttention, LaunchedEarlyItSeesWhatItsPredecessorWrites) {
  const AttentionShape shape{32, 8, 128};
  const std::vector<std::vector<int32_t>> batches = {
      {1}, {1024}, {1, 7, 16, 17, 300, 1500}, std::vector<int32_t>(40, 33)};
  for (const std::vector<int32_t>& contexts : batches) {
    const Batch batch(shape, KvOrder::kTokenHead, contexts, 17);
    const int32_t m = batch.sequences();
    const std::vector<uint16_t> want = Run(batch);
    DecodeAttention decode;
    ASSERT_TRUE(Launched(DecodeAttention::Create(shape, &decode)));
    OnDevice on(batch, decode, nullptr);

    // Rows as the QKV product leaves them, with the keys and values that the pool has.
    const int64_t stride = batch.q_row() + 2 * 8 * 128;
    std::vector<uint16_t> rows(static_cast<size_t>(m * stride));
    std::vector<int32_t> slots;
    for (int32_t i = 0; i < m; ++i) {
      const auto row = rows.begin() + i * stride;
      std::copy_n(batch.q.begin() + i * batch.q_row(), batch.q_row(), row);
      const int32_t token = contexts[static_cast<size_t>(i)] - 1;
      for (int32_t head = 0; head < 8; ++head) {
        for (const bool v : {false, true}) {
          const int64_t slab = v ? batch.layout.VOffset(kLayer) : batch.layout.KOffset(kLayer);
          const size_t at = testing::AtToken(batch.tables, batch.layout, static_cast<size_t>(i),
                                             token, slab, head);
          std::copy_n(batch.pool.begin() + static_cast<int64_t>(at), 128,
                      row + batch.q_row() + (v ? 8 : 0) * 128 + head * 128);
        }
      }
      const auto page =
          static_cast<size_t>(batch.tables.page_indptr[static_cast<size_t>(i)] + token / 16);
      slots.push_back(batch.tables.blocks[page] * 16 + token % 16);
    }
    const DeviceBuffer<uint16_t> qkv(rows), nothing(rows.size());  // of NaN
    const DeviceBuffer<int32_t> d_slots(slots),
        positions(std::vector<int32_t>(static_cast<size_t>(m)));
    const DeviceBuffer<float> cos(std::vector<float>(64, 1.0f)), sin(std::vector<float>(64, 0.0f));
    const auto finish = [&](const DeviceBuffer<uint16_t>& from, Overlap overlap) {
      return FinishQkv({.qkv = AsBf16(from.get()),
                        .ldqkv = stride,
                        .m = m,
                        .q_heads = 32,
                        .head_dim = 128,
                        .cos = cos.get(),
                        .sin = sin.get(),
                        .max_positions = 1,
                        .positions = positions.get(),
                        .slots = d_slots.get(),
                        .kv = on.params.kv,
                        .layer = kLayer},
                       {.stream = stream_, .overlap = overlap});
    };
    on.params.q = AsBf16(qkv.get());
    on.params.q_stride = stride;
    const DeviceBuffer<uint16_t> slow(1 << 25);
    for (int round = 0; round < 10; ++round) {
      ASSERT_EQ(cudaMemsetAsync(on.out.get(), 0xff, on.out.Bytes(), stream_), cudaSuccess);
      ASSERT_TRUE(Launched(finish(nothing, Overlap::kNone)));
      ASSERT_TRUE(Launched(FillNormal({.dst = AsBf16(slow.get()), .count = 1 << 25},
                                      {.stream = stream_, .overlap = Overlap::kNone})));
      ASSERT_TRUE(Launched(finish(qkv, Overlap::kPrologue)));
      ASSERT_TRUE(
          Launched(decode.Run(on.params, {.stream = stream_, .overlap = Overlap::kPrologue})));
      ASSERT_EQ(cudaStreamSynchronize(stream_), cudaSuccess);
      ASSERT_EQ(on.out.Download(), want) << m << " sequences, round " << round;
    }
  }
}

TEST_F(CudaDecodeAttention, NamesWhatIsWrongWithARun) {
  const Batch batch({8, 2, 128}, KvOrder::kTokenHead, {20}, 1);
  DecodeAttention decode;
  ASSERT_TRUE(Launched(DecodeAttention::Create(batch.shape, &decode)));
  const OnDevice on(batch, decode, nullptr);
  const auto message = [&](auto change) {
    DecodeAttentionParams params = on.params;
    change(&params);
    return decode.Run(params, {.stream = stream_}).message();
  };
  EXPECT_NE(message([](auto* p) { p->sequences = 1025; }).find("1 to 1024"), std::string::npos);
  EXPECT_NE(message([](auto* p) { p->q_stride = 64; }).find("at least 1024"), std::string::npos);
  EXPECT_NE(message([](auto* p) { p->kv.layout.kv_heads = 1; }).find("made for 2 kv heads"),
            std::string::npos);
  EXPECT_NE(message([](auto* p) { p->workspace = nullptr; }).find("workspace"), std::string::npos);
  EXPECT_NE(message([](auto* p) { p->layer = kLayers; }).find("layer"), std::string::npos);
}

// Needs no device.
TEST(CudaDecodeAttentionChecks, NamesShapesThatHaveNoKernel) {
  DecodeAttention decode;
  EXPECT_NE(DecodeAttention::Create({8, 2, 96}, &decode).message().find("64, 128 or 256"),
            std::string::npos);
  const LaunchStatus status = DecodeAttention::Create({32, 2, 128}, &decode);
  EXPECT_NE(status.message().find("1 to 8 times kv_heads"), std::string::npos);
  EXPECT_EQ(status.code(), cudaErrorNotSupported);
  EXPECT_FALSE(decode.Run({}, {}).ok());
}

}  // namespace
}  // namespace weir::cuda
