#include "kernels/cuda/decode_walk.h"

#include <algorithm>
#include <map>
#include <random>
#include <set>
#include <tuple>
#include <vector>

#include <gtest/gtest.h>

namespace weir::cuda::decode {
namespace {

struct Batch {
  std::vector<int32_t> pages;  // by sequence; 0: a padded slot
  int32_t kv_heads = 8;
  uint32_t clusters = 132, ranks = 1, warps = 8;
};

using Page = std::tuple<int32_t, int32_t, int32_t>;  // sequence, kv head, page
using Head = std::pair<int32_t, int32_t>;

// Walks all shares of a batch as the blocks of a launch do, and keeps what they did.
class Launch {
 public:
  explicit Launch(const Batch& batch) : batch_(batch), page_indptr_{0} {
    for (const int32_t pages : batch.pages) page_indptr_.push_back(page_indptr_.back() + pages);
    for (uint32_t cluster = 0; cluster < batch.clusters; ++cluster) Walked(cluster);
  }

  void Check() const {
    int64_t wanted = 0;
    for (const int32_t pages : batch_.pages) wanted += int64_t{pages} * batch_.kv_heads;
    EXPECT_EQ(static_cast<int64_t>(taken_.size()), wanted);
    for (const auto& [page, times] : taken_) {
      ASSERT_EQ(times, 1) << "sequence " << std::get<0>(page) << ", kv head " << std::get<1>(page)
                          << ", page " << std::get<2>(page);
    }
    // Who has pages of a cut kv head is who the others wait for, and in the same order.
    for (const auto& [head, who] : cut_) {
      const auto& [first, last] = meeting_.at(head);
      std::vector<uint32_t> all;
      for (uint32_t cluster = first; cluster <= last; ++cluster) all.push_back(cluster);
      ASSERT_EQ(std::vector<uint32_t>(who.begin(), who.end()), all)
          << "sequence " << head.first << ", kv head " << head.second;
    }
  }

  // By cluster, what it has to do.
  struct Work {
    int64_t pages = 0, segments = 0;
  };
  const std::vector<Work>& work() const { return work_; }

 private:
  void Walked(uint32_t cluster) {
    const Line line{page_indptr_.data(), static_cast<int32_t>(batch_.pages.size()),
                    batch_.kv_heads};
    const auto workers = static_cast<int32_t>(batch_.ranks * batch_.warps);
    std::vector<int64_t> by_worker(static_cast<size_t>(workers));
    std::set<bool> ends;  // which places for cut kv heads the cluster has used
    const Share share = Share::Of(line, 0, batch_.ranks, cluster, batch_.clusters, batch_.warps);
    Work& work = work_.emplace_back();
    Walk walk(line, share);
    for (bool first = true; !walk.done(); walk.Next(), first = false) {
      const Segment& s = walk.segment();
      ASSERT_LT(s.first, s.end);
      ASSERT_LE(s.end, s.pages);
      ASSERT_EQ(s.pages, batch_.pages[static_cast<size_t>(s.sequence)]);
      work.pages += s.end - s.first;
      ++work.segments;
      for (int32_t worker = 0; worker < workers; ++worker) {
        for (int32_t page = walk.FirstPage(worker, workers); page < s.end; page += workers) {
          ASSERT_GE(page, s.first);
          ++taken_[{s.sequence, s.head, page}];
          ++by_worker[static_cast<size_t>(worker)];
        }
      }
      if (s.whole()) continue;
      ASSERT_TRUE(share.cuts);
      const uint32_t head_first = share.FirstClusterOf(s);
      ASSERT_TRUE(ends.insert(cluster == head_first).second) << "two pieces in one place";
      // The kv head that goes on in the next cluster is computed first.
      ASSERT_TRUE(first || cluster != head_first);
      cut_[{s.sequence, s.head}].insert(cluster);
      const std::pair<uint32_t, uint32_t> meeting{head_first, share.LastClusterOf(s)};
      const auto [at, added] = meeting_.emplace(Head{s.sequence, s.head}, meeting);
      ASSERT_EQ(at->second, meeting);
    }
    const auto [least, most] = std::minmax_element(by_worker.begin(), by_worker.end());
    EXPECT_LE(*most - *least, 1) << "pages go round among the warps";
  }

  const Batch& batch_;
  std::vector<int32_t> page_indptr_;
  std::map<Page, int> taken_;
  std::map<Head, std::set<uint32_t>> cut_;
  std::map<Head, std::pair<uint32_t, uint32_t>> meeting_;
  std::vector<Work> work_;
};

TEST(DecodeWalk, EveryPageOfARandomBatchIsTakenOnce) {
  std::mt19937 random(5);
  const auto upto = [&](int32_t most) { return std::uniform_int_distribution(1, most)(random); };
  for (int round = 0; round < 600 && !::testing::Test::HasFailure(); ++round) {
    Batch batch;
    batch.kv_heads = upto(8);
    batch.ranks = 1U << random() % 4;
    batch.clusters = (random() % 2 == 0 ? 132 : static_cast<uint32_t>(upto(132))) / batch.ranks + 1;
    batch.warps = random() % 3 == 0 ? 4 : 8;
    const int32_t most = random() % 3 == 0 ? 3 : random() % 2 == 0 ? 40 : 300;
    batch.pages.resize(static_cast<size_t>(upto(random() % 8 == 0 ? 1024 : 60)));
    for (int32_t& pages : batch.pages) pages = random() % 8 == 0 ? 0 : upto(most);
    if (random() % 4 == 0) batch.pages[random() % batch.pages.size()] = 2000;
    const auto padded = upto(static_cast<int32_t>(batch.pages.size())) - 1;
    if (random() % 2 == 0) std::fill(batch.pages.end() - padded, batch.pages.end(), 0);
    SCOPED_TRACE("round " + std::to_string(round));
    Launch(batch).Check();
  }
}

TEST(DecodeWalk, NothingIsDoneForABatchOfPaddedSlots) {
  const Batch batch{.pages = {0, 0, 0}};
  const Launch launch(batch);
  launch.Check();
  for (const Launch::Work& work : launch.work()) EXPECT_EQ(work.segments, 0);
}

TEST(DecodeWalk, OneKvHeadGoesToAClusterWhereThereAreFewOfThem) {
  Batch batch{.pages = {64, 60, 64, 50}, .clusters = 32, .ranks = 4};
  const Launch launch(batch);
  launch.Check();
  for (size_t i = 0; i < 32; ++i) {
    EXPECT_EQ(launch.work()[i].segments, 1);
    EXPECT_EQ(launch.work()[i].pages, batch.pages[i / 8]);
  }
  batch.pages[0] = 2000;  // too long for one
  const Launch cut(batch);
  cut.Check();
  for (const Launch::Work& work : cut.work()) EXPECT_LT(work.pages, 2000);
}

// 60 sequences behind 1 to 1,024 tokens: by pages alone, a share of short ones has several times as
// many segments as others, and all wait for it.
TEST(DecodeWalk, SharesOfShortSequencesHaveNoMoreToDoThanOthers) {
  constexpr double kSegment = 10;  // pages; the least that was measured to even out the time
  Batch batch;
  for (int32_t i = 0; i < 60; ++i) batch.pages.push_back(1 + i);
  std::shuffle(batch.pages.begin(), batch.pages.end(), std::mt19937(3));
  const Launch launch(batch);
  launch.Check();
  double most = 0, all = 0;
  for (const Launch::Work& work : launch.work()) {
    const double own =
        static_cast<double>(work.pages) + kSegment * static_cast<double>(work.segments);
    most = std::max(most, own);
    all += own;
  }
  EXPECT_LE(most, 1.15 * all / batch.clusters);
}

}  // namespace
}  // namespace weir::cuda::decode
