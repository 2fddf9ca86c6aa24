#include "kernels/cpu/attention.h"

#include <algorithm>
#include <numeric>

#include "tests/kernels/kernel_testing.h"

namespace weir::cpu {
namespace {

using testing::kNan;
using testing::Random;

struct Shape {
  int64_t q_heads, kv_heads, head_dim;
  KvDtype dtype;
};

// A pool of blocks, all NaN until tokens are appended, and sequences in shuffled blocks.
class World {
 public:
  World(const Shape& shape, int64_t blocks, uint32_t seed)
      : shape_(shape), random_(seed), free_(static_cast<size_t>(blocks)) {
    kv_.layout = {
        .layers = 2, .kv_heads = shape.kv_heads, .head_dim = shape.head_dim, .dtype = shape.dtype};
    kv_.block_stride_bytes = kv_.layout.BlockBytes() + 128;
    memory_.assign(static_cast<size_t>(kv_.block_stride_bytes * blocks), 0xff);
    kv_.base = memory_.data();
    std::iota(free_.begin(), free_.end(), 0);
    std::shuffle(free_.begin(), free_.end(), random_.engine());
  }

  struct Sequence {
    std::vector<int32_t> blocks;
    std::vector<float> q, k, v;  // [tokens][heads * head_dim]
    int64_t tokens = 0;
  };

  Sequence MakeSequence(int64_t tokens) {
    Sequence s;
    s.tokens = tokens;
    for (int64_t i = 0; i < tokens; i += 16) {
      s.blocks.push_back(free_.back());
      free_.pop_back();
    }
    s.q = random_.Values(tokens * QWidth(), 2.0f);
    s.k = random_.Values(tokens * KvWidth());
    s.v = random_.Values(tokens * KvWidth());
    return s;
  }

  // Writes tokens [begin, end) of the sequence to layer 1.
  void Append(const Sequence& s, int64_t begin, int64_t end) {
    std::vector<int64_t> slots;
    for (int64_t t = begin; t < end; ++t) {
      slots.push_back(s.blocks[static_cast<size_t>(t / 16)] * int64_t{16} + t % 16);
    }
    ThreadPool pool(1);
    KvAppend(kv_,
             {.k = s.k.data() + begin * KvWidth(),
              .v = s.v.data() + begin * KvWidth(),
              .row_stride = KvWidth(),
              .m = end - begin,
              .layer = 1,
              .slots = slots.data()},
             pool);
  }

  struct Chunk {
    const Sequence* sequence;
    int64_t begin, end;  // query tokens; the context is everything before end
  };

  // All chunks as one ragged batch; the result has their rows one after another.
  std::vector<float> Attend(const std::vector<Chunk>& chunks, ThreadPool& pool,
                            bool full_scratch = true) const {
    std::vector<float> q;
    std::vector<AttentionSeq> seqs;
    int64_t context = 0;
    int64_t row = 0;
    for (const Chunk& c : chunks) {
      q.insert(q.end(), c.sequence->q.begin() + c.begin * QWidth(),
               c.sequence->q.begin() + c.end * QWidth());
      seqs.push_back({.q_begin = row,
                      .q_end = row + c.end - c.begin,
                      .context = c.end,
                      .blocks = c.sequence->blocks.data()});
      row += c.end - c.begin;
      context += c.end * (c.end - c.begin);
    }
    const int64_t count = static_cast<int64_t>(seqs.size());
    const size_t bytes =
        AttentionScratchBytes(count, full_scratch ? context : 0, shape_.q_heads, shape_.head_dim);
    std::vector<uint8_t> scratch(bytes + 64, 0xff);
    std::vector<float> out = testing::Nans(row * QWidth());
    AttentionParams p{.q = q.data(),
                      .q_stride = QWidth(),
                      .out = out.data(),
                      .out_stride = QWidth(),
                      .q_heads = shape_.q_heads,
                      .layer = 1,
                      .scale = Scale(),
                      .seqs = seqs.data(),
                      .num_seqs = count,
                      .scratch = reinterpret_cast<void*>(
                          (reinterpret_cast<uintptr_t>(scratch.data()) + 63) / 64 * 64),
                      .scratch_bytes = bytes};
    PagedAttention(kv_, p, pool);
    return out;
  }

  // Plain double-precision attention of one query token.
  std::vector<double> Reference(const Sequence& s, int64_t token) const {
    std::vector<double> out(static_cast<size_t>(QWidth()), 0.0);
    const int64_t dim = shape_.head_dim;
    for (int64_t h = 0; h < shape_.q_heads; ++h) {
      const int64_t kv = h / (shape_.q_heads / shape_.kv_heads);
      std::vector<double> p;
      for (int64_t t = 0; t <= token; ++t) {
        double dot = 0;
        for (int64_t d = 0; d < dim; ++d) {
          dot += static_cast<double>(s.q[static_cast<size_t>(token * QWidth() + h * dim + d)]) *
                 Stored(s.k[static_cast<size_t>(t * KvWidth() + kv * dim + d)]);
        }
        p.push_back(dot * Scale());
      }
      const double top = *std::max_element(p.begin(), p.end());
      double sum = 0;
      for (double& x : p) sum += x = std::exp(x - top);
      for (int64_t t = 0; t <= token; ++t) {
        for (int64_t d = 0; d < dim; ++d) {
          out[static_cast<size_t>(h * dim + d)] +=
              p[static_cast<size_t>(t)] / sum *
              Stored(s.v[static_cast<size_t>(t * KvWidth() + kv * dim + d)]);
        }
      }
    }
    return out;
  }

  int64_t QWidth() const { return shape_.q_heads * shape_.head_dim; }
  int64_t KvWidth() const { return shape_.kv_heads * shape_.head_dim; }

 private:
  float Scale() const { return 1.0f / std::sqrt(static_cast<float>(shape_.head_dim)); }
  double Stored(float x) const {
    return shape_.dtype == KvDtype::kBf16 ? testing::RoundToBf16(x) : x;
  }

  Shape shape_;
  Random random_;
  std::vector<int32_t> free_;
  std::vector<uint8_t> memory_;
  KvPool kv_;
};

const Shape kShapes[] = {
    {9, 3, 64, KvDtype::kBf16}, {9, 3, 64, KvDtype::kF32},   {2, 2, 80, KvDtype::kBf16},
    {7, 1, 96, KvDtype::kBf16}, {14, 2, 128, KvDtype::kF32}, {6, 1, 72, KvDtype::kBf16},
    {40, 1, 8, KvDtype::kBf16}, {3, 1, 256, KvDtype::kBf16}, {4, 1, 24, KvDtype::kF32},
};

TEST(AttentionTest, RaggedBatchesMatchTheReferenceOnEveryIsaAndThreadCount) {
  uint32_t seed = 1;
  for (const Shape& shape : kShapes) {
    SCOPED_TRACE(::testing::Message()
                 << shape.q_heads << "/" << shape.kv_heads << " heads of " << shape.head_dim);
    World world(shape, 64, seed++);
    const World::Sequence a = world.MakeSequence(150);  // its last 37 tokens are queries
    const World::Sequence b = world.MakeSequence(17);   // a prompt
    const World::Sequence c = world.MakeSequence(97);   // one decode step
    const World::Sequence d = world.MakeSequence(1);
    for (const auto* s : {&a, &b, &c, &d}) world.Append(*s, 0, s->tokens);
    const std::vector<World::Chunk> chunks = {
        {&a, 113, 150}, {&b, 0, 17}, {&c, 96, 97}, {&d, 0, 1}};
    const std::vector<float> out =
        testing::SameBitsEverywhere([&](ThreadPool& pool) { return world.Attend(chunks, pool); });
    size_t at = 0;
    for (const World::Chunk& chunk : chunks) {
      for (int64_t t = chunk.begin; t < chunk.end; ++t) {
        for (const double expected : world.Reference(*chunk.sequence, t)) {
          ASSERT_NEAR(out[at], expected, 2e-5) << "token " << t << ", value " << at;
          ++at;
        }
      }
    }
  }
}

TEST(AttentionTest, ARowIsTheSameInAnyChunkingAndBatch) {
  for (const Shape& shape : kShapes) {
    World world(shape, 64, 77);
    const World::Sequence a = world.MakeSequence(140);
    const World::Sequence b = world.MakeSequence(60);
    world.Append(b, 0, 60);
    ThreadPool pool(2);
    // Token by token, each with nothing of the future written yet.
    std::vector<float> alone;
    for (int64_t t = 0; t < a.tokens; ++t) {
      world.Append(a, t, t + 1);
      const std::vector<float> row = world.Attend({{&a, t, t + 1}}, pool);
      alone.insert(alone.end(), row.begin(), row.end());
    }
    for (const int64_t chunk : {140, 33, 16, 7}) {
      std::vector<float> chunked;
      for (int64_t t = 0; t < a.tokens; t += chunk) {
        const int64_t end = std::min(t + chunk, a.tokens);
        const std::vector<float> rows = world.Attend({{&b, 20, 60}, {&a, t, end}}, pool);
        chunked.insert(chunked.end(), rows.begin() + 40 * world.QWidth(), rows.end());
      }
      ASSERT_EQ(chunked.size(), alone.size());
      testing::ExpectSameBits(alone.data(), chunked.data(), static_cast<int64_t>(alone.size()),
                              "chunks of " + std::to_string(chunk));
    }
  }
}

TEST(AttentionTest, LongContextsAreTheSameSplitOverSpansOrNot) {
  const Shape shape{6, 2, 64, KvDtype::kBf16};
  World world(shape, 400, 5);
  const World::Sequence a = world.MakeSequence(2500);
  const World::Sequence b = world.MakeSequence(1025);
  const World::Sequence c = world.MakeSequence(1024);
  for (const auto* s : {&a, &b, &c}) world.Append(*s, 0, s->tokens);
  // Few query rows (split over spans when scratch allows) against many (never split).
  const std::vector<World::Chunk> few = {{&a, 2499, 2500}, {&b, 1022, 1025}, {&c, 1023, 1024}};
  const std::vector<float> split =
      testing::SameBitsEverywhere([&](ThreadPool& pool) { return world.Attend(few, pool); });
  ThreadPool pool(2);
  const std::vector<float> whole = world.Attend(few, pool, /*full_scratch=*/false);
  testing::ExpectSameBits(split.data(), whole.data(), static_cast<int64_t>(split.size()), "split");
  const std::vector<float> many =
      world.Attend({{&a, 2400, 2500}, {&b, 980, 1025}, {&c, 0, 1024}}, pool);
  const int64_t w = world.QWidth();
  testing::ExpectSameBits(split.data(), many.data() + 99 * w, w, "a");
  testing::ExpectSameBits(split.data() + w, many.data() + (100 + 42) * w, 3 * w, "b");
  testing::ExpectSameBits(split.data() + 4 * w, many.data() + (145 + 1023) * w, w, "c");
  size_t at = 0;
  for (const World::Chunk& chunk : few) {
    for (int64_t t = chunk.begin; t < chunk.end; ++t) {
      for (const double expected : world.Reference(*chunk.sequence, t)) {
        ASSERT_NEAR(split[at++], expected, 2e-5);
      }
    }
  }
}

TEST(AttentionTest, LargeScoresDoNotOverflow) {
  World world({2, 1, 64, KvDtype::kF32}, 16, 9);
  World::Sequence s = world.MakeSequence(100);
  for (float& q : s.q) q *= 1000.0f;
  world.Append(s, 0, 100);
  ThreadPool pool(1);
  const std::vector<float> out = world.Attend({{&s, 0, 100}}, pool);
  for (const float x : out) ASSERT_TRUE(std::isfinite(x));
}

}  // namespace
}  // namespace weir::cpu
