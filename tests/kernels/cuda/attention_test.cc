#include "kernels/cuda/attention.h"

#include "tests/kernels/cuda/attention_testing.h"

namespace weir::cuda {
namespace {

using testing::AsBf16;
using testing::AttentionTables;
using testing::DeviceBuffer;

struct Case {
  AttentionKernel kernel;
  PlanUse use;
  AttentionShape shape;
  KvOrder order;
  std::vector<int32_t> rows, contexts;  // of each sequence
};

class CudaAttention : public testing::GpuTest {
 protected:
  void CheckCase(const Case& c, uint32_t seed) {
    if (!AttentionKernelAvailable(c.kernel)) return;
    std::mt19937 rng(seed);
    std::normal_distribution<float> normal;
    const KvLayout layout{3, c.shape.kv_heads, c.shape.head_dim, c.order};
    constexpr int32_t kLayer = 1;
    const int32_t pool_blocks = 2 + testing::BlocksOf(c.contexts);
    const AttentionTables t = testing::MakeTables(c.rows, c.contexts, pool_blocks, rng);
    std::vector<uint16_t> pool(static_cast<size_t>(pool_blocks * layout.BlockElements()), 0xffff);
    std::vector<uint16_t> q(
        static_cast<size_t>(t.q_indptr.back() * c.shape.q_heads * c.shape.head_dim));
    for (uint16_t& x : q) x = cpu::FloatToBf16(normal(rng));
    FillContexts(t, layout, kLayer, rng, &pool);

    PlanSizes sizes;
    LaunchStatus status = AttentionPlanSizes(
        c.kernel, c.shape, c.use, static_cast<int32_t>(c.rows.size()), t.q_indptr.back(), &sizes);
    ASSERT_TRUE(status.ok()) << status.message();
    const DeviceBuffer<std::byte> floats(sizes.float_bytes), ints(sizes.int_bytes);
    PlanBuffers buffers{floats.get(), sizes.float_bytes, ints.get(), nullptr, sizes.int_bytes};
    ASSERT_EQ(cudaMallocHost(&buffers.host_int, sizes.int_bytes), cudaSuccess);
    AttentionPlan plan;
    PlanRequest request;
    request.kernel = c.kernel;
    request.shape = c.shape;
    request.use = c.use;
    request.batch = {t.q_indptr.data(), t.page_indptr.data(), c.contexts.data(),
                     static_cast<int32_t>(c.rows.size())};
    status = PlanAttention(request, buffers, stream_, &plan);
    ASSERT_TRUE(status.ok()) << status.message();

    const DeviceBuffer<uint16_t> dq(q), dpool(pool), out(q.size());
    const DeviceBuffer<int32_t> blocks(t.blocks), pages(t.page_indptr), last(t.last),
        rows(t.q_indptr);
    AttentionRun run;
    run.q = AsBf16(dq.get());
    run.q_stride = int64_t{c.shape.q_heads} * c.shape.head_dim;
    run.out = AsBf16(out.get());
    run.scale = 1.0f / std::sqrt(static_cast<float>(c.shape.head_dim));
    run.kv = {AsBf16(dpool.get()), layout.BlockElements(), layout};
    run.layer = kLayer;
    run.pages = {blocks.get(), pages.get(), last.get(), rows.get()};
    status = RunAttention(plan, buffers, run, {stream_, Overlap::kNone});
    ASSERT_TRUE(status.ok()) << status.message();
    ASSERT_EQ(cudaStreamSynchronize(stream_), cudaSuccess);
    EXPECT_LT(testing::AttentionError(c.shape, t, layout, pool, q, out.Download(), kLayer), 5e-3);
    (void)cudaFreeHost(buffers.host_int);
  }

  // Everything that is no visible token of |layer| stays NaN, except the rest of the last pages:
  // FlashInfer masks scores there but needs finite memory.
  void FillContexts(const AttentionTables& t, const KvLayout& layout, int32_t layer,
                    std::mt19937& rng, std::vector<uint16_t>* pool) {
    std::normal_distribution<float> normal;
    for (size_t p = 0; p < static_cast<size_t>(t.page_indptr[t.sequences()]); ++p) {
      const auto begin =
          static_cast<size_t>(t.blocks[p] * layout.BlockElements() + layout.KOffset(layer));
      const auto count = static_cast<size_t>(2 * layout.SlabElements());
      for (size_t i = 0; i < count; ++i) (*pool)[begin + i] = cpu::FloatToBf16(normal(rng));
    }
  }
};

TEST_F(CudaAttention, DecodesForEveryGroupHeadSizeAndOrderWithPaddedSlots) {
  uint32_t seed = 1;
  for (const int32_t dim : {64, 128, 256}) {
    for (const int32_t group : {1, 4, 7, 8}) {
      for (const KvOrder order : {KvOrder::kTokenHead, KvOrder::kHeadToken}) {
        SCOPED_TRACE("head_dim " + std::to_string(dim) + ", group " + std::to_string(group));
        CheckCase({AttentionKernel::kFa2,
                   PlanUse::kDecodeGraph,
                   {2 * group, 2, dim},
                   order,
                   {1, 1, 1, 1},
                   {1, 16, 700, 0}},
                  seed++);
      }
    }
  }
}

TEST_F(CudaAttention, PrefillsInChunksWithBothKernels) {
  uint32_t seed = 100;
  for (const AttentionKernel kernel : {AttentionKernel::kFa2, AttentionKernel::kFa3}) {
    for (const int32_t dim : {64, 128, 256}) {
      for (const KvOrder order : {KvOrder::kTokenHead, KvOrder::kHeadToken}) {
        SCOPED_TRACE("head_dim " + std::to_string(dim));
        CheckCase({kernel, PlanUse::kEager, {8, 2, dim}, order, {1, 33, 300}, {1, 200, 300}},
                  seed++);
      }
    }
  }
}

TEST_F(CudaAttention, ANewPlanOfTheSameBucketIsTheSameLaunch) {
  const AttentionShape shape{32, 8, 128};
  PlanSizes sizes;
  ASSERT_TRUE(
      AttentionPlanSizes(AttentionKernel::kFa2, shape, PlanUse::kDecodeGraph, 8, 8, &sizes).ok());
  const DeviceBuffer<std::byte> floats(sizes.float_bytes), ints(sizes.int_bytes);
  PlanBuffers buffers{floats.get(), sizes.float_bytes, ints.get(), nullptr, sizes.int_bytes};
  ASSERT_EQ(cudaMallocHost(&buffers.host_int, sizes.int_bytes), cudaSuccess);
  std::mt19937 rng(5);
  AttentionPlan first;
  for (int round = 0; round < 20; ++round) {
    std::vector<int32_t> q{0}, pages{0}, contexts;
    for (int32_t i = 1; i <= 8; ++i) {
      contexts.push_back(std::uniform_int_distribution<int32_t>(0, 5000)(rng));
      pages.push_back(pages.back() + (contexts.back() + 15) / 16);
      q.push_back(i);
    }
    PlanRequest request;
    request.shape = shape;
    request.use = PlanUse::kDecodeGraph;
    request.batch = {q.data(), pages.data(), contexts.data(), 8};
    AttentionPlan plan;
    const LaunchStatus status = PlanAttention(request, buffers, stream_, &plan);
    ASSERT_TRUE(status.ok()) << status.message();
    ASSERT_EQ(cudaStreamSynchronize(stream_), cudaSuccess);
    if (round == 0) first = plan;
    EXPECT_TRUE(SameLaunch(first, plan)) << "round " << round;
  }
  (void)cudaFreeHost(buffers.host_int);
}

// Needs no device.
TEST(CudaAttentionChecks, KvPoolNamesWhatIsWrong) {
  KvPool pool;
  pool.layout = {4, 2, 96, KvOrder::kTokenHead};
  EXPECT_NE(CheckKvPool(pool, 0).message().find("64, 128 or 256"), std::string::npos);
  pool.layout.head_dim = 128;
  pool.block_stride = 8;
  EXPECT_NE(CheckKvPool(pool, 0).message().find("block_stride"), std::string::npos);
  EXPECT_FALSE(CheckKvPool(pool, 4).ok());
  pool.block_stride = pool.layout.BlockElements();
  EXPECT_TRUE(CheckKvPool(pool, 3).ok());
}

}  // namespace
}  // namespace weir::cuda
