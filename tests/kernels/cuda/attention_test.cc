#include "kernels/cuda/attention.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <random>

#include "tests/kernels/cuda/device_testing.h"

namespace weir::cuda {
namespace {

using testing::AsBf16;
using testing::DeviceBuffer;

struct Case {
  AttentionKernel kernel;
  PlanUse use;
  AttentionShape shape;
  KvOrder order;
  std::vector<int32_t> rows, contexts;  // of each sequence
};

struct Tables {
  std::vector<int32_t> q_indptr{0}, page_indptr{0}, last, blocks;
};

Tables MakeTables(const Case& c, int32_t pool_blocks, std::mt19937& rng) {
  Tables t;
  std::vector<int32_t> order(static_cast<size_t>(pool_blocks));
  std::iota(order.begin(), order.end(), 0);
  std::shuffle(order.begin(), order.end(), rng);
  for (size_t i = 0; i < c.rows.size(); ++i) {
    const int32_t pages = (c.contexts[i] + 15) / 16;
    t.q_indptr.push_back(t.q_indptr.back() + c.rows[i]);
    for (int32_t p = 0; p < pages; ++p) t.blocks.push_back(order[t.blocks.size()]);
    t.page_indptr.push_back(t.page_indptr.back() + pages);
    t.last.push_back(pages == 0 ? 0 : c.contexts[i] - 16 * (pages - 1));
  }
  return t;
}

// Row |row| of sequence |s|, head |head|, in double from the same bf16 inputs.
std::vector<double> Reference(const Case& c, const Tables& t, const KvLayout& layout,
                              const std::vector<uint16_t>& pool, const std::vector<uint16_t>& q,
                              size_t s, int32_t row, int32_t head, int32_t layer) {
  const auto dim = static_cast<size_t>(c.shape.head_dim);
  const int32_t visible = c.contexts[s] - c.rows[s] + row + 1;
  const int64_t kv_head = head / (c.shape.q_heads / c.shape.kv_heads);
  const size_t q_at = static_cast<size_t>((t.q_indptr[s] + row) * c.shape.q_heads + head) * dim;
  const auto at = [&](int32_t token, int64_t slab) {
    const int64_t block = t.blocks[static_cast<size_t>(t.page_indptr[s] + token / 16)];
    return static_cast<size_t>(block * layout.BlockElements() + slab +
                               (token % 16) * layout.TokenStride() + kv_head * layout.HeadStride());
  };
  std::vector<double> scores(static_cast<size_t>(visible)), out(dim, 0.0);
  double sum = 0, max = -1e300;
  for (int32_t i = 0; i < visible; ++i) {
    double dot = 0;
    const size_t k = at(i, layout.KOffset(layer));
    for (size_t d = 0; d < dim; ++d) {
      dot += double{cpu::Bf16ToFloat(q[q_at + d])} * double{cpu::Bf16ToFloat(pool[k + d])};
    }
    scores[static_cast<size_t>(i)] = dot / std::sqrt(static_cast<double>(dim));
    max = std::max(max, scores[static_cast<size_t>(i)]);
  }
  for (double& score : scores) sum += score = std::exp(score - max);
  for (int32_t i = 0; i < visible; ++i) {
    const size_t v = at(i, layout.VOffset(layer));
    const double p = scores[static_cast<size_t>(i)] / sum;
    for (size_t d = 0; d < dim; ++d) out[d] += p * double{cpu::Bf16ToFloat(pool[v + d])};
  }
  return out;
}

class CudaAttention : public testing::GpuTest {
 protected:
  void CheckCase(const Case& c, uint32_t seed) {
    if (!AttentionKernelAvailable(c.kernel)) return;
    std::mt19937 rng(seed);
    std::normal_distribution<float> normal;
    const KvLayout layout{3, c.shape.kv_heads, c.shape.head_dim, c.order};
    constexpr int32_t kLayer = 1;
    int32_t pool_blocks = 2;
    for (const int32_t context : c.contexts) pool_blocks += (context + 15) / 16;
    const Tables t = MakeTables(c, pool_blocks, rng);
    std::vector<uint16_t> pool(static_cast<size_t>(pool_blocks * layout.BlockElements()), 0xffff);
    std::vector<uint16_t> q(
        static_cast<size_t>(t.q_indptr.back() * c.shape.q_heads * c.shape.head_dim));
    for (uint16_t& x : q) x = cpu::FloatToBf16(normal(rng));
    FillContexts(c, t, layout, kLayer, rng, &pool);

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
    Compare(c, t, layout, pool, q, out.Download(), kLayer);
    (void)cudaFreeHost(buffers.host_int);
  }

  // Everything that is no visible token of |layer| stays NaN, except the rest of the last pages:
  // FlashInfer masks scores there but needs finite memory.
  void FillContexts(const Case& c, const Tables& t, const KvLayout& layout, int32_t layer,
                    std::mt19937& rng, std::vector<uint16_t>* pool) {
    std::normal_distribution<float> normal;
    for (size_t p = 0; p < static_cast<size_t>(t.page_indptr[c.rows.size()]); ++p) {
      const auto begin =
          static_cast<size_t>(t.blocks[p] * layout.BlockElements() + layout.KOffset(layer));
      const auto count = static_cast<size_t>(2 * layout.SlabElements());
      for (size_t i = 0; i < count; ++i) (*pool)[begin + i] = cpu::FloatToBf16(normal(rng));
    }
  }

  void Compare(const Case& c, const Tables& t, const KvLayout& layout,
               const std::vector<uint16_t>& pool, const std::vector<uint16_t>& q,
               const std::vector<uint16_t>& out, int32_t layer) {
    double error = 0, norm = 0;
    for (size_t s = 0; s < c.rows.size(); ++s) {
      if (c.contexts[s] == 0) continue;  // a padded slot
      for (int32_t row = 0; row < c.rows[s]; row += 1 + c.rows[s] / 7) {
        for (int32_t head = 0; head < c.shape.q_heads; ++head) {
          const auto want = Reference(c, t, layout, pool, q, s, row, head, layer);
          const auto at =
              static_cast<size_t>((t.q_indptr[s] + row) * c.shape.q_heads + head) * want.size();
          for (size_t d = 0; d < want.size(); ++d) {
            const double got = double{cpu::Bf16ToFloat(out[at + d])};
            ASSERT_TRUE(std::isfinite(got)) << "sequence " << s << ", row " << row;
            error += (got - want[d]) * (got - want[d]);
            norm += want[d] * want[d];
          }
        }
      }
    }
    EXPECT_LT(std::sqrt(error / norm), 5e-3);
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
